"""Diffusion models: schedules, solvers, sampling and guidance. May import `networks`."""
