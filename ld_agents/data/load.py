"""From a name to a dataset: a reader for each format, then the rules of the family."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ld_agents.data.d4rl import find_d4rl_file, read_d4rl
from ld_agents.data.dataset import DatasetInfo, OfflineDataset
from ld_agents.data.formats import read_hdf5, read_ogbench
from ld_agents.data.minari import read_minari
from ld_agents.data.pointmaze import BUILT_IN, generate
from ld_agents.data.rewards import Goal, episode_ends, to_dataset
from ld_agents.data.storage import is_local
from ld_agents.evaluation.environments import has_new_contacts
from ld_agents.evaluation.scores import D4RL_TASKS

P = ParamSpec("P")
R = TypeVar("R")


def _naming_the_source(load: Callable[P, R]) -> Callable[P, R]:
    """Errors of data tell which file or id they are of."""

    @functools.wraps(load)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return load(*args, **kwargs)
        except (TypeError, ValueError) as error:
            source = args[0] if args else kwargs.get("source")
            if not isinstance(source, str | Path) or str(source) in str(error):
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{source}: {error}") from None

    return named


@_naming_the_source
def load_dataset(source: Any, *, goal: Goal = "relabel", download: bool = True) -> OfflineDataset:
    """Load a dataset by its Minari id, from a file, or from arrays.

    How each format marks the ends of episodes, what is dropped and what is done here: the table "Formats of data" in
    results/README.md.

    Args:
        source: a dictionary of arrays (observations, actions, rewards, terminals, timeouts, perhaps next_observations),
            a `MinariDataset`, the path of a file of D4RL, robomimic or d3rlpy (``.hdf5``, ``.h5``) or of OGBench
            (``.npz``), a Minari id (local, else downloaded), one of the built-in ids ``ld-agents/pointmaze/umaze-v0``,
            ``medium-v0``, ``large-v0`` (made on this machine when missing, a minute or two), or D4RL's
            name of one of its files, such as ``hopper-medium-v2``, which is looked for
            where D4RL keeps its files (``D4RL_DATASET_DIR``, else ``~/.d4rl/datasets``) unless the local Minari
            folder holds a set of that name. What is done to the recordings of each benchmark family is in
            ``ld_agents/data/rewards.py``.
        goal: what to do with observations that hold a goal. ``"relabel"`` (D4RL's convention): leave the goal out and
            pay for the evaluation environment's one goal: mazes get new rewards, Kitchen pays for each task once.
            ``"keep"``: append the goal to the observation and use the rewards as stored.
        download: whether a dataset that is not on this machine may be fetched from Minari's hub.

    Raises:
        FileNotFoundError: the dataset is neither here nor can it be fetched.
        ValueError: the data are malformed; the message names the episode and what to do.
    """
    if goal not in ("relabel", "keep"):
        raise ValueError(f'goal is {goal!r}. Choose "relabel" or "keep".')
    if isinstance(source, Mapping):
        return _from_arrays(source)
    if (spec := getattr(source, "spec", None)) is not None and hasattr(spec, "dataset_id"):
        if source.total_episodes != source.storage.total_episodes:
            raise ValueError(
                f"This is a part of the episodes of {spec.dataset_id}, and datasets are read whole here. Store "
                "the part as a dataset of its own (minari.create_dataset_from_buffers) and give its id."
            )
        source = str(spec.dataset_id)
    if not isinstance(source, str | Path):
        raise TypeError(
            f"{source!r:.100} is no dataset. Agents learn from recorded data: give an OfflineDataset, a Minari id, the "
            "path of a file, or a dictionary of arrays. Of an environment, record data first (minari.DataCollector)."
        )
    if isinstance(source, Path) or source.endswith((".hdf5", ".h5", ".npz")):
        path = Path(source).expanduser()
        if path.suffix == ".npz":
            return read_ogbench(path)
        found = read_hdf5(path) if path.is_file() else None
        return found or to_dataset(read_d4rl(source, goals=goal == "keep"), goal)
    task, _, number = source.rpartition("-")
    if (known := [name for name in D4RL_TASKS if name.rpartition("-")[0] == task]) and not is_local(source):
        if source not in known:
            raise FileNotFoundError(f"D4RL has no {number} of {task}. Choose one of {', '.join(known)}.")
        return to_dataset(read_d4rl(find_d4rl_file(source), goals=goal == "keep"), goal)
    if source in BUILT_IN and not is_local(source):
        maze, n_steps, episodes = BUILT_IN[source]
        generate(maze, source, n_steps, evaluation_episodes=episodes)
    recording = read_minari(source, download=download)
    _warn_of_another_simulator(recording.info)
    return to_dataset(recording, goal)


def _warn_of_another_simulator(info: DatasetInfo) -> None:
    try:
        installed = version("mujoco")
    except PackageNotFoundError:
        return
    if info.mujoco is not None and has_new_contacts(info.mujoco) != has_new_contacts(installed):
        warnings.warn(
            f"{info.id} was recorded on mujoco {info.mujoco}, and this is mujoco {installed}: contacts changed in "
            "3.5.0, so the environment is another simulator than that of the data, and scores do not compare with "
            "those made there. Record the data again, or install a version of the data's side.",
            stacklevel=4,
        )


def _from_arrays(arrays: Mapping[str, Any]) -> OfflineDataset:
    names = ("observations", "actions", "rewards", "terminals", "timeouts")
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(
            f"The dictionary has no {missing[0]!r}. It needs {', '.join(names)}; without timeouts, as just-d4rl "
            "returns it, nothing tells where an episode ends: load D4RL's own file instead."
        )
    final = arrays.get("next_observations")
    if final is not None:
        flags = [np.asarray(arrays[name]).astype(bool) for name in ("terminals", "timeouts")]
        final = np.asarray(final)[episode_ends(*flags) - 1]
    return OfflineDataset(*(arrays[name] for name in names), final_observations=final)
