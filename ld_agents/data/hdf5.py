"""Arrays of HDF5 files that may come from anywhere: only plain numbers that lie in the file itself are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

# What gzip makes of a long run of equal numbers. An array that claims more is damaged, or made to fill the memory.
BEST_COMPRESSION = 1100
SMALL = 1_000_000  # bytes
_COPY = "Copy the data into one file (h5py) and try again."


def open_file(path: Path, again: str) -> Any:
    """An h5py.File to read from.

    Args:
        path: the file.
        again: what to do when it is damaged, a sentence; so in the functions below.

    Raises:
        ValueError: not a readable HDF5 file.
    """
    import h5py

    try:
        return h5py.File(path, "r")
    except Exception:
        raise ValueError(f"{path} is not a readable HDF5 file. It may be cut short. {again}") from None


def open_array(file: Any, name: str, axes: int, again: str) -> Any:
    """An array of an open file as h5py.h5d.DatasetID; None where nothing has that name.

    Args:
        file: h5py.File.
        name: path within the file, its parts separated by ``/``.
        axes: number of axes that the array must have.
        again: see `open_file`.

    Raises:
        ValueError: a link, a group, an array that keeps its numbers in other files, holds anything but numbers, or
            claims more of them than are stored.
    """
    from h5py import h5g, h5l, h5o

    item, linked = file.id, False
    try:
        for part in name.encode().split(b"/"):
            if not isinstance(item, h5g.GroupID) or not item.links.exists(part):
                return None
            linked = item.links.get_info(part).type != h5l.TYPE_HARD
            if linked:
                break
            item = h5o.open(item, part)
        problem = f"is a link to another place. {_COPY}" if linked else _problem(item, axes, again)
    except Exception as error:
        problem = f"cannot be read ({error}). {again}"
    if problem:
        raise ValueError(f"{file.filename}: {name!r} {problem}")
    return item


def _problem(item: Any, axes: int, again: str) -> str:
    """Why an object of a file is not read; empty where it is."""
    from h5py import h5d

    if not isinstance(item, h5d.DatasetID):
        return f"is a group, not an array. {again}"
    layout, shape, stored = item.get_create_plist(), item.shape, item.get_storage_size()
    if layout.get_layout() == h5d.VIRTUAL or layout.get_external_count() > 0:
        return f"keeps its numbers in other files. {_COPY}"
    if item.dtype.kind not in "fiub":
        return f"holds {item.dtype} values instead of numbers. It is not read. {again}"
    if len(shape) != axes:
        return f"has shape {shape}, but {axes} axes are expected. {again}"
    chunk = layout.get_chunk() if layout.get_layout() == h5d.CHUNKED else (0,)
    if item.dtype.itemsize * max(math.prod(shape), math.prod(chunk)) > max(SMALL, BEST_COMPRESSION * stored):
        return f"has shape {shape}, but only {stored} bytes of it are stored. {again}"
    return ""


def read_array(item: Any, dtype: Any, where: str, again: str) -> np.ndarray:
    """All numbers of an array, converted while they are read, so that no second copy is held.

    Args:
        item: from `open_array`.
        dtype: type of the result; bool is for flags.
        where: how messages name the array.
        again: see `open_file`.

    Raises:
        ValueError: it cannot be read, does not fit into memory, or flags are not 0 and 1.
    """
    from h5py import h5s

    try:
        array: np.ndarray = np.empty(item.shape, item.dtype if item.dtype.kind == "b" or dtype is bool else dtype)
        item.read(h5s.ALL, h5s.ALL, array)
    except MemoryError:
        raise ValueError(f"{where} has shape {item.shape}, which does not fit into memory. {again}") from None
    except Exception as error:
        raise ValueError(f"{where} cannot be read ({error}). {again}") from None
    return as_flags(array, where, again) if dtype is bool else array.astype(dtype, copy=False)


def as_flags(array: np.ndarray, where: str, again: str) -> np.ndarray:
    """0 and 1 as booleans.

    Raises:
        ValueError: other values.
    """
    if not ((array == 0) | (array == 1)).all():
        raise ValueError(f"{where} has values other than 0 and 1. {again}")
    return array != 0
