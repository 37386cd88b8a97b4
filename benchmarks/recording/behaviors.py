"""Behaviors: the policies that datasets are recorded with.

A behavior acts for many environments at once with one forward pass in numpy. Its randomness comes from one generator
per environment, so what happens in one environment does not depend on the others.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ld_agents.evaluation.environments import ANTMAZE_GOALS, CELL_SIZE, cell_position, draw_goal
from ld_agents.evaluation.mazes import free_cells, next_cells

Array = NDArray[Any]
Generators = Sequence[np.random.Generator]  # one per environment
Drawn = dict[str, Any]  # what `Behavior.begin` drew for an episode

POLICIES = Path(__file__).resolve().parent.parent / "policies"
"""The policies that belong to this repository: the actors of `train_sac.py`."""


@dataclass(frozen=True)
class Behavior:
    """Uniformly random actions in [-1, 1]; the base of all other behaviors.

    Args:
        action_size: number of actions A.
        noise: standard deviation of Gaussian noise that is added to every action.
    """

    action_size: int
    noise: float = 0.0

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the behavior is read from."""
        return tuple(value for field in fields(self) if isinstance(value := getattr(self, field.name), Path))

    @property
    def stages(self) -> Sequence[Behavior]:
        """The behaviors that follow each other in this one, with equal shares of the steps."""
        return (self,)

    def describe(self) -> dict[str, Any]:
        """Class, settings and the hashes of the files, as JSON."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            "behaviour": type(self).__name__,
            **{name: value.name if isinstance(value, Path) else value for name, value in settings.items()},
            "sha256": {file.name: sha256(file) for file in self.files},
        }

    def begin(self, rng: np.random.Generator) -> Drawn:
        """What is drawn for a new episode; it is passed to the environment's reset as options."""
        return {}

    def start(self, env: gym.Env[Any, Any], episode: Drawn) -> None:
        """Called after the reset; a behavior that sees more than the observations keeps it in `episode`."""

    def finished(self, episode: Drawn) -> bool:
        """Whether the behavior has finished its task, so that the recording of the episode ends."""
        return False

    def act(self, observations: Array, rngs: Generators, episodes: Sequence[Drawn]) -> Array:
        """Actions [n, A] in [-1, 1] for n environments with observations [n, S]."""
        actions = self.mean_actions(observations, rngs, episodes)
        if self.noise:
            actions = actions + self.noise * self.normal(rngs)
        return np.clip(actions, -1.0, 1.0)

    def mean_actions(self, observations: Array, rngs: Generators, episodes: Sequence[Drawn]) -> Array:
        """Actions before noise and clipping."""
        return np.stack([rng.uniform(-1.0, 1.0, self.action_size) for rng in rngs])

    def normal(self, rngs: Generators) -> Array:
        """Standard normal numbers [n, A]."""
        return np.stack([rng.standard_normal(self.action_size) for rng in rngs])


def sha256(file: Path) -> str:
    """SHA-256 (hex) of a file."""
    return hashlib.sha256(_existing(file).read_bytes()).hexdigest()


def _existing(file: Path) -> Path:
    if not file.is_file():
        todo = "Give the folder with the behavior policies: --policies DIR"
        if file.parent == POLICIES:
            todo = f"Run: python benchmarks/make_datasets.py --train-sac {file.stem.removesuffix('_sac')}"
        raise FileNotFoundError(f"There is no file {file}. {todo}")
    return file


def read_arrays(file: Path) -> dict[str, Array]:
    """The arrays of an .npz file; nothing in it can run code.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with np.load(_existing(file), allow_pickle=False) as stored:
        return dict(stored)


@dataclass(frozen=True)
class StoredPolicy(Behavior):
    """A policy whose weights are the arrays of an .npz file."""

    file: Path = Path()

    @cached_property
    def weights(self) -> dict[str, Array]:
        return read_arrays(self.file)


@dataclass(frozen=True)
class LocomotionActor(StoredPolicy):
    """The actor of an agent of RL Baselines3 Zoo: a multi-layer perceptron with its observation normalizer.

    `stochastic` samples the actor's own Gaussian (through the tanh, if it ends in one) before `noise` is added.
    """

    stochastic: bool = False

    def mean_actions(self, observations: Array, rngs: Generators, episodes: Sequence[Drawn]) -> Array:
        w = self.weights
        hidden = observations.astype(np.float32)
        if "obs_mean" in w:
            hidden = (hidden - w["obs_mean"]) / np.sqrt(w["obs_var"] + w["epsilon"])
            hidden = np.clip(hidden, -w["clip_obs"], w["clip_obs"]).astype(np.float32)
        layers = int(w["n_layers"])
        for i in range(layers - 1):
            hidden = hidden @ w[f"w{i}"].T + w[f"b{i}"]
            hidden = np.tanh(hidden) if str(w["activation"]) == "tanh" else np.maximum(hidden, 0.0)
        actions = hidden @ w[f"w{layers - 1}"].T + w[f"b{layers - 1}"]
        if self.stochastic and "log_std_w" in w:
            log_std = np.clip(hidden @ w["log_std_w"].T + w["log_std_b"], -20.0, 2.0)
            actions = actions + np.exp(log_std) * self.normal(rngs)
        elif self.stochastic:
            actions = actions + np.exp(w["log_std"]) * self.normal(rngs)
        return np.tanh(actions) if w["squash"] else np.clip(actions, -1.0, 1.0)


@dataclass(frozen=True)
class SacActor(LocomotionActor):
    """The stochastic actor of a SAC training at one of its snapshots (`train_sac.py`), the last one unless told.

    The arrays of the file are stacked over snapshots, weights and biases in half precision. With `snapshot` None all
    snapshots act in turn, each for its share of the steps, as the actor did that filled the training's replay buffer.
    """

    stochastic: bool = True
    snapshot: int | None = -1

    @property
    def stages(self) -> Sequence[Behavior]:
        if self.snapshot is not None:
            return (self,)
        return [replace(self, snapshot=index) for index in range(len(read_arrays(self.file)["steps"]))]

    @cached_property
    def weights(self) -> dict[str, Array]:
        assert self.snapshot is not None, "take the stages"
        return {
            name: value[self.snapshot].astype(np.float32) if value.dtype == np.float16 else value
            for name, value in read_arrays(self.file).items()
        }


@dataclass(frozen=True)
class DapgPolicy(StoredPolicy):
    """An expert of Rajeswaran et al. 2018 (DAPG) with its own Gaussian noise, whose deviation is times `spread`."""

    spread: float = 1.0

    def mean_actions(self, observations: Array, rngs: Generators, episodes: Sequence[Drawn]) -> Array:
        w = self.weights
        hidden = (observations - w["in_shift"]) / (w["in_scale"] + 1e-8)
        hidden = np.tanh(hidden @ w["w0"].T + w["b0"])
        hidden = np.tanh(hidden @ w["w1"].T + w["b1"])
        mean = (hidden @ w["w2"].T + w["b2"]) * w["out_scale"] + w["out_shift"]
        return mean + self.spread * np.exp(w["log_std"]) * self.normal(rngs)


@dataclass(frozen=True)
class AntNavigator(StoredPolicy):
    """D4RL's way-point controller for AntMaze: a goal-reaching ant that is sent from cell to cell.

    At every step the ant is sent to the next cell on a shortest path to the episode's goal: to a point drawn up to 1 m
    beyond its center (on either axis), or to the goal itself when it lies in that cell. The policy sees the direction
    only, rescaled to norm 10. `random_cells` draws the cells of start and goal of each episode from all cells (D4RL's
    "diverse"); otherwise they are the fixed ones of the evaluation. Offsets from the centers of cells are D4RL's, for
    goals those of `environments.draw_goal`. D4RL takes the ant to be in a cell from its center up to the next one's;
    here it is in the cell whose floor it is on.
    """

    maze: str = "umaze"
    random_cells: bool = False

    def begin(self, rng: np.random.Generator) -> Drawn:
        if not self.random_cells:
            cell = ANTMAZE_GOALS[self.maze]
            return {"cell": cell, "goal": draw_goal(cell, rng), "start": (0.0, 0.0)}
        free = free_cells(self.maze)
        start, cell = (free[i] for i in rng.choice(len(free), 2, replace=False))
        return {"cell": cell, "goal": draw_goal(cell, rng), "start": self._beyond(start, rng)}

    def _beyond(self, cell: tuple[int, int], rng: np.random.Generator) -> tuple[float, float]:
        x, y = cell_position(cell)
        dx, dy = rng.uniform(0.0, 1.0, 2)
        return x + float(dx), y + float(dy)

    def _direction(self, x: float, y: float, episode: Drawn, rng: np.random.Generator) -> tuple[float, float]:
        route = next_cells(self.maze)[episode["cell"]]
        at = round(y / CELL_SIZE) + 1, round(x / CELL_SIZE) + 1
        if at not in route:  # a leg may reach over a wall's corner
            at = min(free_cells(self.maze), key=lambda cell: math.dist(cell_position(cell), (x, y)))
        aim = episode["goal"] if route[at] == episode["cell"] else self._beyond(route[at], rng)
        dx, dy = aim[0] - x, aim[1] - y
        norm = math.hypot(dx, dy) + 1e-9
        return 10.0 * dx / norm, 10.0 * dy / norm

    def mean_actions(self, observations: Array, rngs: Generators, episodes: Sequence[Drawn]) -> Array:
        w = self.weights
        directions = [
            self._direction(float(row[0]), float(row[1]), episode, rng)
            for row, episode, rng in zip(observations, episodes, rngs, strict=True)
        ]
        hidden = np.concatenate([observations[:, 2:], directions], axis=1).astype(np.float32)
        hidden = np.maximum(hidden @ w["fc0_weight"].T + w["fc0_bias"], 0.0)
        hidden = np.maximum(hidden @ w["fc1_weight"].T + w["fc1_bias"], 0.0)
        mean = hidden @ w["last_fc_weight"].T + w["last_fc_bias"]
        log_std = np.clip(hidden @ w["last_fc_log_std_weight"].T + w["last_fc_log_std_bias"], -20.0, 2.0)
        return np.tanh(mean + np.exp(log_std) * self.normal(rngs))


@dataclass(frozen=True)
class SavedAgent(Behavior):
    """An agent from a zip, acting deterministically before `noise`: of ld_agents, Stable-Baselines3 or sb3-contrib.

    Zips of the latter two hold pickles, which can run any code when they are read: only with `trusted`.
    """

    file: Path = Path()
    algorithm: str = "BC"
    trusted: bool = False

    @cached_property
    def agent(self) -> Any:
        import torch

        torch.set_num_threads(1)
        return agent_class(self.algorithm, self.trusted).load(self.file, device="cpu")

    def mean_actions(self, observations: Array, rngs: Generators, episodes: Sequence[Drawn]) -> Array:
        actions, _ = self.agent.predict(observations.astype(np.float32), deterministic=True)
        space = self.agent.action_space
        return 2.0 * (actions - space.low) / (space.high - space.low) - 1.0


SB3_ALGORITHMS = ("SAC", "TD3", "PPO", "TQC", "TRPO")


def agent_class(algorithm: str, trusted: bool) -> Any:
    """The class of an agent by its name.

    Raises:
        PermissionError: the zips of that class hold pickles and `trusted` is false.
        ValueError: there is no such class.
    """
    import ld_agents

    if algorithm in ld_agents.__all__ and hasattr(getattr(ld_agents, algorithm), "load"):
        return getattr(ld_agents, algorithm)
    if algorithm not in SB3_ALGORITHMS:
        raise ValueError(f"Unknown algorithm {algorithm!r}. Choose one of {', '.join(SB3_ALGORITHMS)}.")
    if not trusted:
        raise PermissionError(
            f"A zip saved by {algorithm} holds pickled objects, and reading them can run any code on this machine. If "
            "you know where the file comes from and trust it, add --trust."
        )
    library = "sb3_contrib" if algorithm in ("TQC", "TRPO") else "stable_baselines3"
    return getattr(importlib.import_module(library), algorithm)
