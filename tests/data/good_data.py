"""Small good datasets in every format that is read, to be damaged."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer


def d4rl_arrays(width: int = 11, actions: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n = 21
    return {
        "observations": rng.normal(size=(n, width)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, actions)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": np.arange(n) == 6,
        "timeouts": np.isin(np.arange(n), (13, 20)),
        "next_observations": rng.normal(size=(n, width)).astype(np.float32),
    }


def write_d4rl(path: Path, skip: tuple[str, ...] = (), packed: bool = True, **settings: Any) -> h5py.File:
    """An open file with the arrays of `d4rl_arrays`."""
    file = h5py.File(path, "w", **settings)
    for name, array in d4rl_arrays().items():
        if name not in skip:
            file.create_dataset(name, data=array, compression="gzip" if packed else None)
    return file


def episode(steps: int, goals: bool) -> EpisodeBuffer:
    rng = np.random.default_rng(steps)
    observations: Any = rng.normal(size=(steps + 1, 4))
    if goals:
        place = rng.uniform(-1, 1, (steps + 1, 2))
        observations = {"observation": observations, "achieved_goal": place, "desired_goal": np.ones_like(place)}
    return EpisodeBuffer(
        observations=observations,
        actions=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),  # type: ignore[arg-type]
        rewards=rng.normal(size=steps),  # type: ignore[arg-type]
        terminations=np.zeros(steps, bool),  # type: ignore[arg-type]
        truncations=np.arange(steps) == steps - 1,  # type: ignore[arg-type]
        infos=None,
    )


FLAT, GOALS = "test/flat-v0", "test/pointmaze-v0"


def write_good(folder: Path) -> None:
    """Two D4RL files, packed and plain, and two Minari datasets with PointMaze as their evaluation environment."""
    from ld_agents.evaluation.environments import register_robotics
    from ld_agents.evaluation.eval_env import evaluation_spec

    write_d4rl(folder / "packed.hdf5").close()
    write_d4rl(folder / "plain.hdf5", packed=False, libver="latest").close()
    box = spaces.Box(-np.inf, np.inf, (4,), np.float64)
    place = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    actions = spaces.Box(-1, 1, (2,), np.float32)
    dictionary = spaces.Dict({"observation": box, "achieved_goal": place, "desired_goal": place})
    register_robotics()
    spec = evaluation_spec("umaze")
    env = gym.make(spec.id, max_episode_steps=spec.max_episode_steps, **spec.kwargs)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        warnings.simplefilter("ignore")
        for name, space in ((FLAT, box), (GOALS, dictionary)):
            parts = [episode(steps, name == GOALS) for steps in (7, 3, 5)]
            settings = {"observation_space": space, "action_space": actions, "eval_env": env}
            minari.create_dataset_from_buffers(name, parts, **settings)
    env.close()


def write_others(folder: Path) -> None:
    """Files in OGBench's, robomimic's and both of d3rlpy's layouts."""
    arrays = d4rl_arrays()
    columns = {name: arrays[name] for name in ("observations", "actions", "rewards")}
    last = arrays["terminals"] | arrays["timeouts"]
    ogbench = columns | {"terminals": last, "next_observations": arrays["next_observations"]}
    np.savez(folder / "stored.npz", allow_pickle=False, **ogbench)
    np.savez_compressed(folder / "compressed.npz", allow_pickle=False, **ogbench)
    episodes = [slice(0, 7), slice(7, 14), slice(14, 21)]
    with h5py.File(folder / "robomimic.hdf5", "w") as file:
        for i, rows in enumerate(episodes):
            demo = file.create_group(f"data/demo_{i}")
            demo["obs/a"], demo["obs/b"] = arrays["observations"][rows, :4], arrays["observations"][rows, 4:]
            demo["next_obs/a"], demo["next_obs/b"] = (
                arrays["next_observations"][rows, :4],
                arrays["next_observations"][rows, 4:],
            )
            demo["actions"], demo["rewards"] = arrays["actions"][rows], np.zeros(7)
            demo["dones"] = np.arange(7) == 6
    with h5py.File(folder / "mdp.h5", "w") as file:
        file["columns"], file["num_episodes"] = list(columns), 3
        for i, rows in enumerate(episodes):
            for name, array in columns.items():
                file[f"{name}_{i}"] = array[rows].reshape(7, -1)
            file[f"terminated_{i}"] = i == 0
    with h5py.File(folder / "mdp1.h5", "w") as file:
        for name, array in columns.items():
            file[name] = array
        file["terminals"], file["episode_terminals"] = arrays["terminals"], last
