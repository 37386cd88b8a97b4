"""Files of other libraries, read as they are: OGBench's npz (or one's own), robomimic's HDF5, d3rlpy's MDPDataset."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ld_agents.data import hdf5
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.data.in_memory import ALIASES, from_arrays
from ld_agents.data.npz import read_npz
from ld_agents.data.rewards import episode_ends

Array = NDArray[Any]
_AGAIN = "Write the file again, or pass repaired arrays to OfflineDataset."


def read_ogbench(path: Path, env: Any = None) -> OfflineDataset:
    """An npz file of OGBench: as it is served, compact (with `valids`), or regular (with `next_observations`).

    OGBench's files have no timeouts. One that has them holds arrays of someone's own, and is read as a dictionary is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an npz file, or a missing array.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Give the path of one of OGBench's npz files.")
    try:
        found = read_npz(path, {"valids", "masks"}.union(*ALIASES.values()))
    except ValueError as error:
        raise ValueError(f"{error}. {_AGAIN}") from None
    if not found.keys().isdisjoint(ALIASES["timeouts"]):
        data = from_arrays(found, env)
        data.info = replace(data.info, id=path.stem, description=f"Arrays of {path.name}.")
        return data
    if "rewards" in found and found.keys().isdisjoint({"valids", "masks", "next_observations"}):
        raise ValueError(
            f"{path} holds rewards and no 'timeouts'. To arrays of your own, add 'timeouts': true in the last row of "
            "each episode that no terminal ends. OGBench's files with rewards have 'masks', too."
        )
    if missing := [name for name in ("observations", "actions", "terminals") if name not in found]:
        raise ValueError(f"{path} has no {missing[0]!r}, which OGBench's files have. {_AGAIN}")
    if len({len(array) for array in found.values()}) > 1 or not len(found["terminals"]):
        raise ValueError(f"{path} is empty or holds arrays of different lengths. {_AGAIN}")
    observations, marks = found["observations"], found["terminals"] != 0
    if "next_observations" in found:  # every row is a transition
        kept, ends, after = np.ones_like(marks), marks, found["next_observations"]
    else:  # the last row of an episode holds its last state alone
        kept = found["valids"] != 0 if "valids" in found else ~marks
        ends, after = np.append(~kept[1:], True), np.append(observations[1:], observations[-1:], axis=0)
        if kept[-1]:  # the file stops within an episode, whose last state is not told
            after = after.astype(np.float64)
            after[-1] = np.nan
    if "rewards" not in found:
        warnings.warn(
            f"{path} has no rewards (OGBench's goals are set by its environments), so all are 0 here. To learn from "
            "rewards, compute them for your goal and pass the arrays to OfflineDataset.",
            stacklevel=4,
        )
    rewards = found.get("rewards", np.zeros(len(marks), np.float32))[kept]
    terminals = (found["masks"] == 0 if "masks" in found else np.zeros_like(marks))[kept]
    ends = ends[kept]
    final = after[kept][episode_ends(terminals, ends) - 1]
    info = DatasetInfo(id=path.stem, description=f"OGBench file {path.name}.")
    recordings = episode_ends(np.zeros_like(ends), ends)
    parts = observations[kept], found["actions"][kept], rewards, terminals, ends & ~terminals
    return OfflineDataset(*parts, final_observations=final, recording_ends=recordings, env=env, info=info)


def read_hdf5(path: Path, env: Any = None) -> OfflineDataset | None:
    """A file of robomimic or d3rlpy; None where it is of neither.

    Raises:
        ValueError: not HDF5, or an array that is missing or not of numbers.
    """
    with hdf5.open_file(path, _AGAIN) as file:
        try:
            names = set(file)
            if "data" in names and "demo_0" in _open(file, path, "data"):
                return _robomimic(file, path, env)
            if {"columns", "num_episodes"} <= names:
                return _mdp_dataset(file, path, env)
            if "episode_terminals" in names:
                return _first_mdp_dataset(file, path, env)
        except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}). {_AGAIN}") from None
        if "episode_0" in names:
            raise ValueError(f"{path} is a part of a Minari dataset. Give the id of the dataset instead of the file.")
    return None


def _open(file: Any, path: Path, name: str) -> Any:
    """A group or array of the file itself: links are not followed."""
    from h5py import HardLink

    for part in name.split("/"):
        if not isinstance(file.get(part, getlink=True), HardLink):
            raise ValueError(f"{path} has no {name!r}, or a link in its place. {_AGAIN}")
        file = file[part]
    return file


def _read(file: Any, path: Path, name: str, axes: int, dtype: Any = np.float32) -> Array:
    item = hdf5.open_array(file, name, axes, _AGAIN)
    if item is None:
        raise ValueError(f"{path} has no {name!r}. {_AGAIN}")
    return hdf5.read_array(item, dtype, f"{path}: {name!r}", _AGAIN)


def _number(file: Any, path: Path, name: str, dtype: Any) -> Array:
    _open(file, path, name)
    return _read(file, path, name, 0, dtype)


def _robomimic(file: Any, path: Path, env: Any) -> OfflineDataset:
    """Each demo is an episode; the vectors of `obs` are concatenated in alphabetical order."""
    demos = sorted(_open(file, path, "data"), key=lambda name: int(name.rpartition("_")[2]))
    obs = f"data/{demos[0]}/obs"
    shapes = {key: _open(file, path, f"{obs}/{key}").shape for key in sorted(_open(file, path, obs))}
    keys = tuple(key for key, shape in shapes.items() if len(shape) == 2)
    if others := sorted(set(shapes) - set(keys)):
        warnings.warn(f"{path}: {', '.join(others)} are no vectors and are left out.", stacklevel=5)
    columns: dict[str, list[Array]] = {name: [] for name in ("actions", "rewards", "dones", "obs", "next_obs")}
    for demo in demos:
        columns["actions"].append(_read(file, path, f"data/{demo}/actions", 2))
        for name in ("rewards", "dones"):
            columns[name].append(_read(file, path, f"data/{demo}/{name}", 1))
        for name in ("obs", "next_obs"):
            if name in _open(file, path, f"data/{demo}"):
                parts = [_read(file, path, f"data/{demo}/{name}/{key}", 2) for key in keys]
                columns[name].append(np.concatenate(parts, axis=1))
    lengths = [len(rewards) for rewards in columns["rewards"]]
    joined = {name: np.concatenate(pieces) for name, pieces in columns.items() if pieces}
    ends = np.cumsum(lengths)
    timeouts = np.isin(np.arange(ends[-1]), ends - 1)
    terminals = joined["dones"] != 0
    if not np.isin(joined["rewards"], (0, 1)).all():
        if terminals.any():
            warnings.warn(
                f"{path}: with rewards other than 0 and 1, its dones may mark ends that are no terminals, so none is "
                "taken for one. If they are, pass the arrays to OfflineDataset.",
                stacklevel=5,
            )
        terminals[:] = False
    terminals &= joined["rewards"] > 0
    final = None
    if len(columns["next_obs"]) == len(demos):
        last = episode_ends(terminals, timeouts) - 1
        final = joined["next_obs"][last].astype(np.float64)
        final[(final == joined["obs"][last]).all(axis=1)] = np.nan  # a repeated observation stands for an unknown one
    box: dict[str, spaces.Space[Any]] = {
        key: spaces.Box(-np.inf, np.inf, (shapes[key][1],), np.float32) for key in keys
    }
    arrays = joined["obs"], joined["actions"], joined["rewards"], terminals, timeouts & ~terminals
    info = DatasetInfo(id=path.stem, description=f"robomimic file {path.name}.")
    return OfflineDataset(
        *arrays,
        spaces.Dict(box),
        final_observations=final,
        observation_keys=keys,
        recording_ends=ends,
        env=env,
        info=info,
    )


def _mdp_dataset(file: Any, path: Path, env: Any) -> OfflineDataset:
    """d3rlpy 2: arrays `NAME_i` of each episode i. What follows an episode's last row is unknown."""
    if "observations_0_0" in file:
        raise ValueError(f"{path} holds tuples of observations. Pass the part that you need to OfflineDataset.")
    columns: dict[str, list[Array]] = {"observations": [], "actions": [], "rewards": []}
    terminated = []
    for i in range(int(_number(file, path, "num_episodes", np.int64))):
        for name, pieces in columns.items():
            pieces.append(_read(file, path, f"{name}_{i}", 2))
        terminated.append(bool(_number(file, path, f"terminated_{i}", bool)))
    lengths = [len(rewards) for rewards in columns["rewards"]]
    return _from_mdp(path, {name: np.concatenate(pieces) for name, pieces in columns.items()}, lengths, terminated, env)


def _first_mdp_dataset(file: Any, path: Path, env: Any) -> OfflineDataset:
    """d3rlpy 1: flat arrays, `episode_terminals` mark every end and `terminals` the true ones."""
    arrays = {name: _read(file, path, name, 2) for name in ("observations", "actions")}
    columns = [
        _read(file, path, name, len(_open(file, path, name).shape)).reshape(-1)  # [N] or [N, 1]
        for name in ("rewards", "terminals", "episode_terminals")
    ]
    arrays["rewards"], flags = columns[0], [column != 0 for column in columns[1:]]
    ends = episode_ends(*flags)
    return _from_mdp(path, arrays, np.diff(ends, prepend=0).tolist(), flags[0][ends - 1].tolist(), env)


def _from_mdp(
    path: Path, arrays: dict[str, Array], lengths: list[int], terminated: list[bool], env: Any
) -> OfflineDataset:
    last = np.cumsum(lengths) - 1
    terminals, timeouts = np.zeros((2, last[-1] + 1), bool)
    terminals[last], timeouts[last] = terminated, np.logical_not(terminated)
    info = DatasetInfo(id=path.stem, description=f"MDPDataset of d3rlpy, file {path.name}.")
    rewards = arrays["rewards"].reshape(-1)
    return OfflineDataset(arrays["observations"], arrays["actions"], rewards, terminals, timeouts, env=env, info=info)
