"""From a name to a dataset: a reader for each format, then the rules of the family."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

from ld_agents.data.d4rl import find_d4rl_file, read_d4rl
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.data.formats import read_hdf5, read_ogbench
from ld_agents.data.in_memory import from_arrays, from_episodes, from_frame, from_replay_buffer
from ld_agents.data.minari import read_minari
from ld_agents.data.pointmaze import BUILT_IN, generate
from ld_agents.data.rewards import Goal, to_dataset
from ld_agents.data.storage import is_local
from ld_agents.evaluation import environments
from ld_agents.evaluation.drawn_goals import DrawnFrom
from ld_agents.evaluation.eval_env import DRAWN_GOALS
from ld_agents.evaluation.scores import D4RL_TASKS, family


def load_dataset(
    source: Any,
    *,
    goal: Goal = "relabel",
    download: bool = True,
    env: Any = None,
    start_noise: float = 0.0,
    eval_goals: DrawnFrom | None = None,
) -> OfflineDataset:
    """Load a dataset by its Minari id, from a file, or from arrays.

    How each format marks the ends of episodes, what is dropped and what is done here: the table "Formats of data" in
    results/README.md.

    Args:
        source: a dictionary of arrays or a pandas frame (observations, actions, rewards, terminals, timeouts, perhaps
            next_observations), a list of episodes, d3rlpy's `MDPDataset` or a replay buffer of Stable-Baselines3 (for
            these see ``ld_agents/data/in_memory.py``), a `MinariDataset`, the path of a file of D4RL, robomimic or
            d3rlpy (``.hdf5``, ``.h5``), of OGBench (``.npz``) or of the arrays above (``.npz`` with timeouts), a Minari
            id (local, else downloaded), one of the built-in ids ``ld-agents/pointmaze/umaze-v0``, ``medium-v0``,
            ``large-v0`` (made on this machine when missing, a minute or two), or D4RL's name of one of its files, such
            as ``hopper-medium-v2``, which is looked for where D4RL keeps its files (``D4RL_DATASET_DIR``, else
            ``~/.d4rl/datasets``) unless the local Minari folder holds a set of that name. What is done to the
            recordings of each benchmark family is in ``ld_agents/data/rewards.py``.
        goal: what to do with observations that hold a goal. ``"relabel"`` (D4RL's convention): leave the goal out and
            pay for the evaluation environment's one goal: mazes get new rewards, Kitchen pays for each task once.
            ``"keep"``: append the goal to the observation and use the rewards as stored.
        download: whether a dataset that is not on this machine may be fetched from Minari's hub.
        env: the environment of arrays, episodes and files of one's own, or its id; see `OfflineDataset`.
        start_noise: noise of the ant's start in the evaluation of the hub's AntMaze: half-width on the pose, standard
            deviation on the velocities. 0: gymnasium-robotics' environment as it is, where every episode starts in one
            pose at rest; 0.1: D4RL's.
        eval_goals: start and goal of each episode in the evaluation of a maze. None: D4RL's one goal; "cells": any two
            cells; "ogbench": the five tasks of OGBench's mazes. See `ld_agents/evaluation/drawn_goals.py`. Returns are
            rates of success then, on no scale of D4RL's.

    Raises:
        FileNotFoundError: the dataset is neither here nor can it be fetched.
        ValueError: the data are malformed, the message names the episode and what to do; or start_noise was given for
            data that gymnasium-robotics' AntMaze does not evaluate.
    """
    try:
        data = _load(source, goal, download, env)
    except (TypeError, ValueError) as error:
        if not isinstance(source, str | Path) or str(source) in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{source}: {error}") from None  # errors of data tell which file or id they are of
    if start_noise:
        spec = data.info.eval_env
        if spec is None or not spec.id.startswith("AntMaze_") or start_noise < 0:
            raise ValueError(
                f"start_noise is {start_noise:g} for {data.info.id}. Give a positive number for data of AntMaze from "
                "Minari's hub, and leave it out elsewhere."
            )
        data.info = replace(data.info, eval_env=replace(spec, start_noise=start_noise))
    if eval_goals is not None:
        _draw_goals(data, eval_goals)
    return data


def _draw_goals(data: OfflineDataset, drawn_from: DrawnFrom) -> None:
    info = data.info
    if drawn_from not in get_args(DrawnFrom) or info.eval_env is None or family(info.id) not in ("maze2d", "antmaze"):
        raise ValueError(
            f"eval_goals is {drawn_from!r} for {info.id}. Give one of {get_args(DrawnFrom)} for data of a maze that "
            "names its environment, and leave it out elsewhere."
        )
    spec = info.eval_env.with_drawn_goals(drawn_from)
    spec.make().close()  # tells what is wrong
    name = f"{info.id}{DRAWN_GOALS}{drawn_from}"  # what was measured for the one goal does not hold
    data.info = replace(info, id=name, eval_env=spec, reference_scores=None, controller=None)
    if data.observation_keys is None:
        data.observation_keys = ("observation",)


def _load(source: Any, goal: Goal, download: bool, env: Any) -> OfflineDataset:
    if goal not in ("relabel", "keep"):
        raise ValueError(f'goal is {goal!r}. Choose "relabel" or "keep".')
    if isinstance(source, OfflineDataset):
        return source.to(source.rewards.device)  # of its own, to set noise and goals on; shares memory
    if (read := _reader(source)) is not None:
        return read(source, env)
    if (spec := getattr(source, "spec", None)) is not None and hasattr(spec, "dataset_id"):
        if source.total_episodes != source.storage.total_episodes:
            raise ValueError(
                f"This is a part of the episodes of {spec.dataset_id}, and datasets are read whole here. Give its "
                "episodes, load_dataset(list(part.iterate_episodes()), env=...): rewards and goals then stay as "
                "they are recorded."
            )
        source = str(spec.dataset_id)
    if not isinstance(source, str | Path):
        raise TypeError(
            f"{source!r:.100} is no dataset. Agents learn from recorded data: give an OfflineDataset, a Minari id, the "
            "path of a file, a dictionary of arrays or a list of episodes. Of an environment, record data first "
            "(minari.DataCollector)."
        )
    if isinstance(source, Path) or source.endswith((".hdf5", ".h5", ".npz")):
        path = Path(source).expanduser()
        if path.suffix == ".npz":
            return read_ogbench(path, env)
        found = read_hdf5(path, env) if path.is_file() else None
        return found or to_dataset(read_d4rl(source, goals=goal == "keep"), goal, env)
    task, _, number = source.rpartition("-")
    if (known := [name for name in D4RL_TASKS if name.rpartition("-")[0] == task]) and not is_local(source):
        if source not in known:
            raise FileNotFoundError(f"D4RL has no {number} of {task}. Choose one of {', '.join(known)}.")
        return to_dataset(read_d4rl(find_d4rl_file(source), goals=goal == "keep"), goal)
    if _is_environment(source) and not is_local(source):
        raise TypeError(
            f"{source!r} is an environment and no dataset. Record data in it first (minari.DataCollector), or give "
            f"those that you have: load_dataset(data, env={source!r})."
        )
    if source in BUILT_IN and not is_local(source):
        maze, n_steps, episodes = BUILT_IN[source]
        generate(maze, source, n_steps, evaluation_episodes=episodes)
    recording = read_minari(source, download=download)
    _warn_of_another_simulator(recording.info)
    return to_dataset(recording, goal)


def _reader(source: Any) -> Callable[[Any, Any], OfflineDataset] | None:
    """What makes a dataset of things in memory; None for anything else."""
    if isinstance(source, Mapping):
        return from_arrays
    if hasattr(source, "columns") and hasattr(source, "to_numpy"):
        return from_frame
    if hasattr(source, "dones") and hasattr(source, "pos"):
        return from_replay_buffer
    if isinstance(source, list | tuple):
        return from_episodes
    if isinstance(episodes := getattr(source, "episodes", None), Sequence):  # d3rlpy's MDPDataset
        return lambda _, env: from_episodes(episodes, env)
    return None


def _is_environment(source: str) -> bool:
    if source.rpartition("/")[2][:1].isupper():  # names of datasets are in lower case
        with contextlib.suppress(ValueError, ImportError):
            return environments.find(source) is not None
    return False


def _warn_of_another_simulator(info: DatasetInfo) -> None:
    try:
        installed = version("mujoco")
    except PackageNotFoundError:
        return
    if info.mujoco is not None and environments.has_new_contacts(info.mujoco) != environments.has_new_contacts(
        installed
    ):
        warnings.warn(
            f"{info.id} was recorded on mujoco {info.mujoco}, and this is mujoco {installed}: contacts changed in "
            "3.5.0, so the environment is another simulator than that of the data, and scores do not compare with "
            "those made there. Record the data again, or install a version of the data's side.",
            stacklevel=4,
        )
