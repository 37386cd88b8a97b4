"""Datasets, in the order in which `load_dataset` uses these files.

`minari.py` and `d4rl.py` read a source into a `Recording` (`pointmaze.py` generates mazes first), `rewards.py` applies
the rules of the benchmark family, and the result is an `OfflineDataset` (`dataset.py`). `replay.py` checks whether
recorded steps reproduce in today's simulators.

May import `evaluation`, which owns the environments.
"""
