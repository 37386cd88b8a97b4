"""Tasks with a known optimum that the baselines are trained on."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ld_agents import OfflineDataset

BEST = np.array([0.6, -0.5, 0.7, -0.4, 0.5], np.float32)


class Echo(gym.Env[Any, Any]):
    """Each action is paid for one step later: 1 - (a_{t-1} - BEST[t])^2 at step t, five steps, then the end.

    The observation is (t, a_{t-1}) with a_{-1} = 0. The best actions are BEST[1:], whatever was done before; what the
    last action is does not matter. The best return is 5 - BEST[0]^2 = 4.64, that of doing nothing 3.48.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.last = 0, 0.0
        return np.array([0, 0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 1 - (self.last - BEST[self.t]) ** 2
        self.t, self.last = self.t + 1, float(action[0])
        return np.array([self.t, self.last], np.float32), float(reward), self.t == 5, False, {}


def echoes(episodes: int = 600) -> OfflineDataset:
    """Uniformly random actions: their mean does nothing."""
    actions = np.random.default_rng(0).uniform(-1, 1, (episodes, 5)).astype(np.float32)
    last = np.concatenate([np.zeros((episodes, 1), np.float32), actions[:, :-1]], 1)
    t = np.tile(np.arange(5, dtype=np.float32), (episodes, 1))
    return OfflineDataset(
        np.stack([t, last], -1).reshape(-1, 2),
        actions.reshape(-1, 1),
        (1 - (last - BEST) ** 2).reshape(-1),
        (t == 4).reshape(-1),
        np.zeros(5 * episodes),
        action_space=Echo.action_space,
        final_observations=np.stack([np.full(episodes, 5), actions[:, -1]], 1),
    )


def echo_states() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Observations of which the action matters, all over the data's range, and the best actions. [m, 2], [m]."""
    pairs = [(0, 0.0), *((t, last) for t in (1, 2, 3) for last in np.linspace(-0.9, 0.9, 7))]
    return np.array(pairs, np.float32), np.array([BEST[t + 1] for t, _ in pairs])


def one_state_data(terminals: Any, timeouts: Any, action_dim: int = 1) -> OfflineDataset:
    """One state, reward 1 at every step."""
    n = len(terminals)
    rng = np.random.default_rng(0)
    return OfflineDataset(
        np.zeros((n, 1)),
        rng.uniform(-1, 1, (n, action_dim)),
        np.ones(n),
        terminals,
        timeouts,
        action_space=spaces.Box(-1.0, 1.0, (action_dim,), np.float32),
        final_observations=np.zeros((int((np.asarray(terminals) + np.asarray(timeouts) > 0).sum()), 1)),
    )
