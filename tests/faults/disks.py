"""Disks that are full or cannot be written to: real ones where this process may mount them, limits otherwise."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

SIZE = 4 << 20  # bytes
_CLONE_NEWNS, _MS_RDONLY, _MS_REMOUNT, _MS_REC_PRIVATE, _MNT_DETACH = 0x20000, 1, 32, 0x44000, 2


@contextlib.contextmanager
def small(folder: Path) -> Iterator[bool]:
    """A small file system at a folder, for this process and its children alone; yields False where that is forbidden.

    The process stays in a mount namespace of its own, so tests call this in a child.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        yield False
        return
    libc, place = ctypes.CDLL(None), str(folder).encode()
    real = (
        libc.unshare(_CLONE_NEWNS) == 0
        and libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) == 0
        and libc.mount(b"tmpfs", place, b"tmpfs", 0, f"size={SIZE}".encode()) == 0
    )
    try:
        yield real
    finally:
        libc.umount2(place, _MNT_DETACH)


@contextlib.contextmanager
def full(folder: Path, free: int, real: bool) -> Iterator[None]:
    """A disk with so many bytes left, rounded up to pages; where it is not `real`, files of at most that size."""
    if not real:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as stream:
        with contextlib.suppress(OSError):
            while True:
                stream.write(bytes(65536))
        stream.truncate(max(0, stream.tell() - free))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(folder: Path, real: bool) -> Iterator[None]:
    """A folder that cannot be written to; where it is not `real`, by its modes or, as root ignores them, a limit."""
    if real:
        change: Callable[[int], int] = lambda flag: ctypes.CDLL(None).mount(  # noqa: E731
            b"tmpfs", str(folder).encode(), b"tmpfs", _MS_REMOUNT | flag, f"size={SIZE}".encode()
        )
        assert change(_MS_RDONLY) == 0
        try:
            yield
        finally:
            assert change(0) == 0
        return
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for place in places:
        place.chmod(0o555)
    try:
        with full(folder, 0, False) if os.access(folder, os.W_OK) else contextlib.nullcontext():
            yield
    finally:
        for place in places:
            place.chmod(0o755)
