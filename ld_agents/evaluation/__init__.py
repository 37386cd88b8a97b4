"""Environments, seeded rollouts, and reference scores. Imports no other room of this package."""
