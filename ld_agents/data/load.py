"""From a name to a dataset: a reader for each format, then the rules of the family."""

from __future__ import annotations

from pathlib import Path

from ld_agents.data.d4rl import find_d4rl_file, read_d4rl
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.minari import read_minari
from ld_agents.data.pointmaze import BUILT_IN, generate
from ld_agents.data.rewards import Goal, to_dataset
from ld_agents.data.storage import is_local
from ld_agents.evaluation.scores import D4RL_TASKS


def load_dataset(source: str | Path, *, goal: Goal = "relabel", download: bool = True) -> OfflineDataset:
    """Load a dataset by its Minari id or from a D4RL HDF5 file.

    Args:
        source: a Minari id (local, else downloaded), one of the built-in ids ``ld-agents/pointmaze/umaze-v0``,
            ``medium-v0``, ``large-v0`` (made on this machine when missing, a minute or two), the path of a D4RL file
            (ends in ``.hdf5`` or ``.h5``), or D4RL's name of one, such as ``hopper-medium-v2``, which is looked for
            where D4RL keeps its files (``D4RL_DATASET_DIR``, else ``~/.d4rl/datasets``) unless the local Minari
            folder holds a set of that name. What is done to the
            recordings of each benchmark family is in ``ld_agents/data/rewards.py``.
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
    if isinstance(source, Path) or source.endswith((".hdf5", ".h5")):
        return to_dataset(read_d4rl(source, goals=goal == "keep"), goal)
    task, _, version = source.rpartition("-")
    if (known := [name for name in D4RL_TASKS if name.rpartition("-")[0] == task]) and not is_local(source):
        if source not in known:
            raise FileNotFoundError(f"D4RL has no {version} of {task}. Choose one of {', '.join(known)}.")
        return to_dataset(read_d4rl(find_d4rl_file(source), goals=goal == "keep"), goal)
    if source in BUILT_IN and not is_local(source):
        maze, n_steps, episodes = BUILT_IN[source]
        generate(maze, source, n_steps, evaluation_episodes=episodes)
    return to_dataset(read_minari(source, download=download), goal)
