"""D4RL's HDF5 files as data sets."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ld_agents.dataset import DatasetInfo, OfflineDataset

_ROWS_PER_READ = 262_144
_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")


def load_d4rl_file(path: str | Path) -> OfflineDataset:
    """Read a D4RL HDF5 file.

    Uses ``observations``, ``actions``, ``rewards``, ``terminals`` and, where present, ``timeouts`` (ends of episodes
    that are not terminal) and ``next_observations`` (only for the observation after an episode's last action). The
    file names no Gymnasium environment, so the result has no evaluation environment. The action space is [-1, 1] if
    the actions fit, else the range of the data.

    Args:
        path: an ``.hdf5`` file in the layout of Fu et al. 2020, "D4RL".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not HDF5, a missing array, unequal lengths, or an array that does not lie in the file itself.
    """
    import h5py

    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Give the path of a D4RL HDF5 file, or a Minari id.")
    try:
        file = h5py.File(path, "r")
    except OSError:
        raise ValueError(f"{path} is not a readable HDF5 file. It may be cut short: download it again.") from None
    with file:
        names = sorted(file)
        found = {name: _dataset(file, name, path) for name in (*_REQUIRED, *_OPTIONAL) if name in names}
        missing = [name for name in _REQUIRED if name not in found]
        if missing:
            raise ValueError(
                f"{path} has no {missing[0]!r} (it holds {', '.join(names) or 'nothing'}). A D4RL file "
                "has observations, actions, rewards and terminals; pass other layouts as arrays to OfflineDataset."
            )
        n = found["observations"].shape[0]
        for name, array in found.items():
            if array.shape[0] != n:
                raise ValueError(
                    f"{path}: observations have {n} rows but {name} have {array.shape[0]}. The file is damaged or not "
                    "in D4RL's layout: download it again, or pass repaired arrays to OfflineDataset."
                )
        terminals = _read(found["terminals"], np.dtype(bool), path)
        if "timeouts" in found:
            timeouts = _read(found["timeouts"], np.dtype(bool), path)
        else:
            timeouts = np.zeros(n, dtype=bool)
            warnings.warn(
                f"{path} has no 'timeouts': only terminals end an episode, so windows may run across resets. If the "
                "episodes have a known length, build OfflineDataset from arrays with the timeouts filled in.",
                stacklevel=3,
            )
        final = None
        if "next_observations" in found and n > 0:
            ends = terminals | timeouts
            ends[-1] = True
            final = _read(found["next_observations"], np.dtype(np.float32), path, np.flatnonzero(ends))
        floats = {name: _read(found[name], np.dtype(np.float32), path) for name in _REQUIRED[:3]}
    return OfflineDataset(
        floats["observations"],
        floats["actions"],
        floats["rewards"],
        terminals,
        timeouts,
        final_observations=final,
        info=DatasetInfo(id=path.stem, provenance="d4rl-file", description=f"D4RL file {path.name}."),
    )


def _dataset(file: Any, name: str, path: Path) -> Any:
    """An array that lies in this very file as plain numbers; anything that points elsewhere is refused."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(
            f"{path}: {name!r} is a link to another place. Copy the data into one file (h5py) and try again."
        )
    item = file[name]
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"{path}: {name!r} is a group, not an array. This is not D4RL's layout.")
    if item.is_virtual or item.external:
        raise ValueError(
            f"{path}: {name!r} keeps its numbers in other files. Copy the data into one file (h5py) and try again."
        )
    if item.dtype.kind not in "fiub":
        raise ValueError(f"{path}: {name!r} holds {item.dtype} values instead of numbers. It is not read.")
    wanted = 2 if name in ("observations", "actions", "next_observations") else 1
    if item.ndim != wanted:
        raise ValueError(f"{path}: {name!r} has shape {item.shape}, but {wanted} axes are expected. Reshape it.")
    return item


def _read(item: Any, dtype: np.dtype[Any], path: Path, rows: np.ndarray | None = None) -> np.ndarray:
    """The array (or some of its rows) as ``dtype``, read in pieces so that no second copy is held."""
    name = item.name.strip("/")
    try:
        result = np.empty((item.shape[0] if rows is None else len(rows), *item.shape[1:]), dtype=dtype)
        for begin in range(0, item.shape[0], _ROWS_PER_READ):
            end = min(begin + _ROWS_PER_READ, item.shape[0])
            if rows is None:
                result[begin:end] = item[begin:end]
            else:
                first, last = np.searchsorted(rows, (begin, end))
                result[first:last] = item[begin:end][rows[first:last] - begin]
        return result
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: {name!r} cannot be read ({error}). Download the file again.") from None
    except MemoryError:
        raise ValueError(f"{path}: {name!r} has shape {item.shape}, which does not fit into memory.") from None
