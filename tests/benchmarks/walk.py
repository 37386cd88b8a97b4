"""A walk on a line, the recipe that records it, and what the tests of recording share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from ld_agents import OfflineDataset, load_dataset
from recording.behaviors import Behavior
from recording.making import make
from recording.recipes import Recipe


class Walk(gym.Env[Any, Any]):
    """A point on a line. Every step moves it by the first action; beyond 1 it ends with reward 1, as often as it likes.

    `unseeded` adds noise that no seed reaches.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(np.array([-2, -1], np.float32), np.array([2, 1], np.float32))

    def __init__(self, unseeded: bool = False) -> None:
        self.unseeded = np.random.default_rng() if unseeded else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-0.5, 0.5), 0
        if options is not None and "initial_state_dict" in options:
            self.x = float(options["initial_state_dict"]["x"])
        return np.array([self.x, 0.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.x += 0.25 * float(action[0])
        if self.unseeded is not None:
            self.x += 0.01 * float(self.unseeded.normal())
        self.t += 1
        done = self.x > 1
        return np.array([self.x, self.t / 10]), float(done), done, False, {"success": done}


gym.register("test/Walk-v0", f"{__name__}:Walk", max_episode_steps=12)
gym.register("test/UnseededWalk-v0", f"{__name__}:Walk", max_episode_steps=12, kwargs={"unseeded": True})

WALK = Recipe("test/Walk-v0", "stand-in", "A walk.", [Behavior(2)], steps=1_000, original_steps=5_000)


def quiet(dataset_id: str, recipe: Recipe = WALK, steps: int | None = None, **settings: Any) -> OfflineDataset:
    make(dataset_id, recipe, steps, **{"chunk_steps": 200, "show_progress": False, **settings})
    return load_dataset(dataset_id, download=False)


def metadata(folder: Path, dataset_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "minari" / dataset_id / "data" / "metadata.json").read_text())
    return found


def streams(n: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(n)]


def write_sac(file: Path, biases: list[float]) -> None:
    """Snapshots of an actor that ignores what it sees: tanh of N(bias, exp(-9)) in both actions."""
    n = len(biases)
    arrays: dict[str, Any] = {
        "w0": np.zeros((n, 4, 2)),
        "b0": np.ones((n, 4)),
        "w1": np.zeros((n, 2, 4)),
        "b1": np.repeat(biases, 2).reshape(n, 2),
        "log_std_w": np.zeros((n, 2, 4)),
        "log_std_b": np.full((n, 2), -9.0),
    }
    half = {name: value.astype(np.float16) for name, value in arrays.items()}
    about = {"steps": 10_000 * np.arange(1, n + 1), "returns": np.arange(n, dtype=float), "n_layers": np.array(2)}
    np.savez(file, **half, **about, activation=np.array("relu"), squash=np.array("tanh"))
