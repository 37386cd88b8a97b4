"""Arrays of npz files that may come from anywhere: nothing is unpickled, and nothing grows when it is unpacked."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ld_agents.data.hdf5 import BEST_COMPRESSION, SMALL


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file, of these names or all.

    Raises:
        ValueError: no whole npz file, or an array that is none, or claims more numbers than are stored.
    """
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise ValueError("it holds an array twice")
            wanted = members if names is None else {name: members[name] for name in names if name in members}
            for name, info in wanted.items():
                if info.file_size > max(SMALL, BEST_COMPRESSION * info.compress_size):
                    raise ValueError(f"{name} claims {info.file_size} bytes, and {info.compress_size} are stored")
            return {name: _array(archive, info) for name, info in wanted.items()}
    except Exception as error:  # zipfile and numpy have many
        raise ValueError(f"{path} is not a readable npz file ({error})") from None


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        read_header: Any = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, _, dtype = read_header[npy.read_magic(stream)](stream)
        if math.prod(shape) * dtype.itemsize != info.file_size - stream.tell():
            raise ValueError(f"{info.filename} has shape {shape}, which is not what is stored")
    with archive.open(info) as stream:
        array: np.ndarray = npy.read_array(stream, allow_pickle=False)
        stream.read()  # its end, where the checksum is compared
    return array
