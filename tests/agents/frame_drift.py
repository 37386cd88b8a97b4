"""The tiny environment of `conftest.py` seen in frames, and data recorded in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from conftest import BOX, Drift
from ld_agents import OfflineDataset

SHAPE = (9, 12, 2)  # neither square nor even


class FrameDrift(Drift):
    """`Drift`, seen as a bright spot on noise that is the same in every frame; the second channel is the first, dim."""

    observation_space = spaces.Box(0, 255, SHAPE, np.uint8)
    background = np.random.default_rng(0).integers(0, 60, SHAPE)

    def observe(self) -> Any:
        rows, columns = np.linspace(-3, 3, SHAPE[0]), np.linspace(-3, 3, SHAPE[1])
        spot = np.exp(-((rows[:, None] - self.position[0]) ** 2) - (columns - self.position[1]) ** 2)
        return (self.background + spot[..., None] * np.array([190.0, 60.0])).astype(np.uint8)


def record_frames() -> OfflineDataset:
    """30 episodes of 12 random steps."""
    rng, env = np.random.default_rng(0), FrameDrift(max_steps=12)
    columns: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "rewards", "terminals")}
    ends, final = [], []
    for episode in range(30):
        observation, done = env.reset(seed=episode)[0], False
        while not done:
            action = rng.uniform(BOX.low, BOX.high).astype(np.float32)
            after, reward, terminal, timeout, _ = env.step(action)
            for column, value in zip(columns.values(), (observation, action, reward, terminal), strict=True):
                column.append(value)
            observation, done = after, terminal or timeout
        ends.append(len(columns["actions"]))
        final.append(observation)
    arrays = {name: np.array(column) for name, column in columns.items()}
    timeouts = np.isin(np.arange(ends[-1]) + 1, ends) & ~arrays["terminals"]
    return OfflineDataset(**arrays, timeouts=timeouts, action_space=BOX, final_observations=np.array(final))
