"""Diffusion models: schedules, solvers, sampling and guidance. Imports nothing else of this package."""
