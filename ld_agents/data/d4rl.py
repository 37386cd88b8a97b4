"""D4RL's HDF5 files, read as they are."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ld_agents.data import hdf5
from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.data.rewards import Recording, episode_ends
from ld_agents.evaluation.eval_env import file_environment
from ld_agents.evaluation.scores import D4RL_TASKS, REFERENCE_SCORES, TASKS, d4rl_name, family

FILE_SIZES: dict[str, tuple[int, int]] = {
    **{task: (4, 2) for task in TASKS.values() if family(task) == "maze2d"},
    **{task: (29, 8) for task in TASKS.values() if family(task) == "antmaze"},
    "halfcheetah": (17, 6),
    "hopper": (11, 3),
    "walker2d": (17, 6),
    "ant": (111, 8),
    "pen": (45, 24),
    "hammer": (46, 26),
    "door": (39, 28),
    "relocate": (39, 30),
    **{task: (60, 9) for task in TASKS.values() if family(task) == "kitchen"},
    "carla-lane": (48 * 48 * 3, 2),
}
"""Sizes of observations and actions, by task."""

_CARLA_FRAME = (48, 48, 3)  # red, green, blue; D4RL's flat files hold them as numbers from 0 to 1, or as uint8
_EPISODE_STEPS = {"locomotion": 1000, "carla": 250}  # where no terminal ends it, in files without timeouts
_ROWS_AT_A_TIME = 4096
_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")
_ONE_AXIS = ("rewards", "terminals", "timeouts")
_AGAIN = "Download the file again, or pass repaired arrays to OfflineDataset."


def find_d4rl_file(name: str) -> Path:
    """The file of one of D4RL's datasets in the folder where D4RL keeps them.

    Raises:
        FileNotFoundError: it is not there.
    """
    folder = Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()
    found = [path for path in sorted(folder.glob("*.hdf5")) if d4rl_name(path) == name]
    if not found:
        raise FileNotFoundError(
            f"There is no file of {name} in {folder}. Put D4RL's .hdf5 file there under its own name, set "
            "D4RL_DATASET_DIR to the folder that holds it, or give the path of the file."
        )
    return found[0]


def read_d4rl(path: str | Path, *, goals: bool) -> Recording:
    """Read a D4RL HDF5 file.

    Uses ``observations``, ``actions``, ``rewards``, ``terminals`` and, where present, ``timeouts`` (ends of episodes
    that are not terminal) and ``next_observations`` (only for the observation after an episode's last action). A file
    with one of D4RL's names, such as ``hopper-medium-v2.hdf5``, belongs to a family and has an evaluation environment;
    others are read as they are.

    Args:
        path: an ``.hdf5`` file in the layout of Fu et al. 2020, "D4RL".
        goals: whether to read the goals of a maze, ``infos/goal``, too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not HDF5, a missing array, unequal lengths, sizes that do not go with the file's name, or an array
            that does not lie in the file itself.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Give the path of a D4RL HDF5 file, or a Minari id.")
    name = d4rl_name(path)
    task = D4RL_TASKS[name] if name is not None else ""
    kind = family(task)
    goals = goals and kind in ("maze2d", "antmaze")
    with hdf5.open_file(path, _AGAIN) as file:
        found = _arrays(file, path, ("infos/goal",) if goals else ())
        sizes = found["observations"].shape[1], found["actions"].shape[1]
        if task and sizes != FILE_SIZES[task]:
            raise ValueError(
                f"{path}: observations and actions have {sizes} columns, those of {name} have "
                f"{FILE_SIZES[task]}. If this is not D4RL's file, give it another name."
            )

        def read(key: str) -> np.ndarray:
            dtype = bool if key in ("terminals", "timeouts") else np.float32
            return hdf5.read_array(found[key], dtype, f"{path}: {key!r}", _AGAIN)

        terminals = read("terminals")
        if "timeouts" in found:
            timeouts = read("timeouts")
        elif kind in _EPISODE_STEPS:
            timeouts = _fixed_length(terminals, _EPISODE_STEPS[kind])
        else:
            timeouts = np.zeros_like(terminals)
            if kind in (None, "adroit"):
                warnings.warn(
                    f"{path} has no 'timeouts': only terminals end an episode, so windows may run across resets. If "
                    "the episodes have a known length, build OfflineDataset from arrays with the timeouts filled in.",
                    stacklevel=4,
                )
        # AntMaze is recorded on after the terminals at its goal
        ends = episode_ends(terminals & (kind != "antmaze"), timeouts)
        observed = (lambda key: _carla_frames(found[key], f"{path}: {key!r}")) if kind == "carla" else read
        observations, final = {"observation": observed("observations")}, None
        if goals:
            observations["desired_goal"] = read("infos/goal")
        if "next_observations" in found:
            final = {key: part[ends - 1] for key, part in observations.items()}
            final["observation"] = observed("next_observations")[ends - 1]
        reference = REFERENCE_SCORES.get(name or "")
        return Recording(
            family=kind,
            observations=observations,
            final_observations=final,
            actions=read("actions"),
            rewards=read("rewards"),
            terminals=terminals,
            timeouts=timeouts,
            ends=ends,
            info=DatasetInfo(
                id=name or path.stem,
                provenance="d4rl-file",
                description=f"D4RL file {path.name}.",
                eval_env=file_environment(task),
                reference_scores=None if reference is None else (reference.minimum, reference.maximum),
            ),
            from_file=True,
        )


def _carla_frames(item: Any, where: str) -> np.ndarray:
    """Frames [N, 48, 48, 3] uint8 from rows of uint8, or of their numbers divided by 255, read some at a time."""
    import h5py

    array = h5py.Dataset(item)
    frames = np.empty((len(array), *_CARLA_FRAME), np.uint8)
    for begin in range(0, len(array), _ROWS_AT_A_TIME):
        rows = array[begin : begin + _ROWS_AT_A_TIME]
        if rows.dtype != np.uint8:
            numbers = np.asarray(rows, np.float32)
            if not ((numbers >= 0) & (numbers <= 1)).all():
                raise ValueError(f"{where} has numbers outside of [0, 1], which D4RL's frames are. {_AGAIN}")
            rows = np.rint(255 * numbers)
        frames[begin : begin + len(rows)] = rows.reshape(-1, *_CARLA_FRAME)
    return frames


def _fixed_length(terminals: np.ndarray, steps: int) -> np.ndarray:
    """Timeouts [N] where every episode that no terminal ends has `steps` steps."""
    begins = np.concatenate([[0], np.flatnonzero(terminals) + 1])
    age = np.arange(len(terminals)) - np.repeat(begins, np.diff(np.append(begins, len(terminals))))
    return (age % steps == steps - 1) & ~terminals


def _arrays(file: Any, path: Path, more: tuple[str, ...]) -> dict[str, Any]:
    """The arrays of a file that are used (h5py.h5d.DatasetID), all with the same number of rows, at least one."""
    names = (*_REQUIRED, *more, *_OPTIONAL)
    opened = {name: hdf5.open_array(file, name, 1 if name in _ONE_AXIS else 2, _AGAIN) for name in names}
    found = {name: item for name, item in opened.items() if item is not None}
    missing = [name for name in (*_REQUIRED, *more) if name not in found]
    if missing:
        raise ValueError(
            f"{path} has no {missing[0]!r}. A D4RL file has observations, actions, rewards and terminals (and, to keep "
            "the goals of a maze, infos/goal); pass other layouts as arrays to OfflineDataset."
        )
    n = found["observations"].shape[0]
    for name, item in found.items():
        if item.shape[0] != n:
            raise ValueError(
                f"{path}: observations have {n} rows but {name} have {item.shape[0]}. The file is damaged or not in "
                f"D4RL's layout. {_AGAIN}"
            )
    if n == 0:
        raise ValueError(f"{path} holds no steps. {_AGAIN}")
    return found
