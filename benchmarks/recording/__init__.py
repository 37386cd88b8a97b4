"""Datasets made on this machine: recipes, the behaviors that they are recorded with, and the recorder."""
