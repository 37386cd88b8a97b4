"""Data sets: `OfflineDataset`, one file per source, the rules of each benchmark family, and the replay check.

May import `evaluation`, which owns the environments.
"""
