"""Tiny planners that learned from noise, under the name of a dataset whose evaluation environment is known by name."""

from __future__ import annotations

import functools
import io

import numpy as np

from conftest import AGENTS, make_agent, saved
from ld_agents import DatasetInfo, OfflineDataset
from ld_agents.common.offline_algorithm import OfflineAlgorithm

MAZE = "ld-agents/pointmaze/umaze-v0"


def noise(dataset_id: str = MAZE, n: int = 200) -> OfflineDataset:
    """Observations of a point maze [n, 4], actions [n, 2]; a timeout every 50 rows."""
    rng = np.random.default_rng(0)
    return OfflineDataset(
        rng.uniform(-1, 1, (n, 4)).astype(np.float32),
        rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        rng.uniform(0, 1, n).astype(np.float32),
        np.zeros(n, bool),
        np.arange(n) % 50 == 49,
        observation_keys=("observation",),
        info=DatasetInfo(dataset_id, replay_check={"passed": True}, reference_scores=(23.85, 161.86)),
    )


@functools.cache
def _trained(name: str) -> bytes:
    return saved(make_agent(name, noise()).learn(40))


def maze_agent(name: str = "LDCQ") -> OfflineAlgorithm:
    """A trained copy, by its name in `AGENTS`."""
    return AGENTS[name][0].load(io.BytesIO(_trained(name)), dataset=noise())
