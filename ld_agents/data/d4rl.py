"""D4RL's HDF5 files as data sets."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ld_agents.data import families, hdf5
from ld_agents.data.dataset import DatasetInfo, OfflineDataset
from ld_agents.evaluation.eval_env import file_environment
from ld_agents.evaluation.scores import D4RL_TASKS, REFERENCE_SCORES, d4rl_name, family

_ROWS_PER_READ = 262_144
_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")
_ONE_AXIS = ("rewards", "terminals", "timeouts")
_FLAGS = ("terminals", "timeouts")
_AGAIN = "Download the file again, or pass repaired arrays to OfflineDataset."


def find_d4rl_file(name: str | Path) -> Path:
    """The file of one of D4RL's data sets in the folder where D4RL keeps them.

    Raises:
        FileNotFoundError: it is not there.
    """
    folder = Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()
    found = [path for path in sorted(folder.glob("*.hdf5")) if d4rl_name(path) == str(name)]
    if not found:
        raise FileNotFoundError(
            f"There is no file of {name} in {folder}. Put D4RL's .hdf5 file there under its own name, set "
            "D4RL_DATASET_DIR to the folder that holds it, or give the path of the file."
        )
    return found[0]


def load_d4rl_file(path: str | Path, *, goal: Literal["relabel", "keep"] = "relabel") -> OfflineDataset:
    """Read a D4RL HDF5 file.

    Uses ``observations``, ``actions``, ``rewards``, ``terminals`` and, where present, ``timeouts`` (ends of episodes
    that are not terminal) and ``next_observations`` (only for the observation after an episode's last action). A file
    with one of D4RL's names, such as ``hopper-medium-v2.hdf5``, is read by the rules of its family
    (`ld_agents.data.families`) and gets its evaluation environment; others are read as they are. The action space
    is [-1, 1] if the actions fit, else the range of the data.

    Args:
        path: an ``.hdf5`` file in the layout of Fu et al. 2020, "D4RL".
        goal: ``"relabel"``: the goal, the same in every evaluation, is no part of the observation, and Kitchen's
            rewards pay for each task once. ``"keep"``: the goal is part of the observation (mazes: ``infos/goal``,
            Kitchen: the last 30 of 60 numbers), rewards are as stored, and there is no evaluation environment.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not HDF5, a missing array, unequal lengths, sizes that do not go with the file's name, or an array
            that does not lie in the file itself.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Give the path of a D4RL HDF5 file, or a Minari id.")
    name = d4rl_name(path)
    task = D4RL_TASKS[name] if name is not None else None
    rules = families.rules(task or "")
    keep_goals = goal == "keep" and family(task or "") in ("maze2d", "antmaze")
    with hdf5.open_file(path, _AGAIN) as file:
        found = _arrays(file, path, ("infos/goal",) if keep_goals else ())
        sizes = found["observations"].shape[1], found["actions"].shape[1]
        if task is not None and sizes != families.FILE_SIZES[task]:
            raise ValueError(
                f"{path}: observations and actions have {sizes} columns, those of {name} have "
                f"{families.FILE_SIZES[task]}. If this is not D4RL's file, give it another name."
            )
        stored, terminals = _read(found["rewards"], "rewards", path), _read(found["terminals"], "terminals", path)
        if "timeouts" in found:
            timeouts = _read(found["timeouts"], "timeouts", path)
        elif rules.episode_steps is not None:
            timeouts = families.fixed_length(terminals, rules.episode_steps)
        else:
            timeouts = np.zeros_like(terminals)
            if rules.terminals == "as stored":
                warnings.warn(
                    f"{path} has no 'timeouts': only terminals end an episode, so windows may run across resets. If "
                    "the episodes have a known length, build OfflineDataset from arrays with the timeouts filled in.",
                    stacklevel=3,
                )
        rewards, terminals, timeouts = families.split(rules, stored, terminals, timeouts)
        last = np.flatnonzero(np.append((terminals | timeouts)[:-1], True))
        observations, actions = (
            _read(found["observations"], "observations", path),
            _read(found["actions"], "actions", path),
        )
        final = (
            _read(found["next_observations"], "next_observations", path, last) if "next_observations" in found else None
        )
        goals = _read(found["infos/goal"], "infos/goal", path) if keep_goals else None

    eval_env = None
    if goals is not None:
        observations = np.concatenate([observations, goals], axis=1)
        final = None if final is None else np.concatenate([final, goals[last]], axis=1)
    elif task is not None and goal == "relabel":
        eval_env = file_environment(task)
        if final is not None:
            final, _ = families.file_arrays(task, final, actions[last])
        observations, actions = families.file_arrays(task, observations, actions)
    reference = REFERENCE_SCORES[name] if name is not None else None
    return OfflineDataset(
        observations,
        actions,
        stored if goal == "keep" else rewards,
        terminals,
        timeouts,
        final_observations=final,
        # The mazes of gymnasium-robotics observe dictionaries.
        observation_keys=("observation",) if eval_env is not None and eval_env.goal is not None else None,
        info=DatasetInfo(
            id=name or path.stem,
            provenance="d4rl-file",
            description=f"D4RL file {path.name}.",
            eval_env=eval_env,
            reference_scores=None if reference is None else (reference.minimum, reference.maximum),
        ),
    )


def _arrays(file: Any, path: Path, more: tuple[str, ...]) -> dict[str, Any]:
    """The arrays of a file that are used (h5py.h5d.DatasetID), all with the same number of rows, at least one."""
    found = {}
    for name in (*_REQUIRED, *more, *_OPTIONAL):
        item = hdf5.open_array(file, name, 1 if name in _ONE_AXIS else 2, _AGAIN)
        if item is not None:
            found[name] = item
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


def _read(item: Any, name: str, path: Path, rows: np.ndarray | None = None) -> np.ndarray:
    """The array (or some of its rows) as float32 or bool, read in pieces so that no second copy is held."""
    import h5py

    flags = name in _FLAGS
    try:
        array = h5py.Dataset(item)
        shape = (len(array) if rows is None else len(rows), *array.shape[1:])
        result: np.ndarray = np.empty(shape, dtype=bool if flags else np.float32)
        for begin in range(0, len(array), _ROWS_PER_READ):
            end = min(begin + _ROWS_PER_READ, len(array))
            piece = array[begin:end]
            if flags and not ((piece == 0) | (piece == 1)).all():
                break
            if rows is None:
                result[begin:end] = piece
            else:
                first, last = np.searchsorted(rows, (begin, end))
                result[first:last] = piece[rows[first:last] - begin]
        else:
            return result
    except MemoryError:
        raise ValueError(f"{path}: {name!r} has shape {item.shape}, which does not fit into memory.") from None
    except Exception as error:
        raise ValueError(f"{path}: {name!r} cannot be read ({error}). {_AGAIN}") from None
    raise ValueError(f"{path}: {name!r} holds values other than 0 and 1. {_AGAIN}")
