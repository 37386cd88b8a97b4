"""Processes that do runs: a run is claimed by a lock that dies with its process, and processes die with the suite.

python benchmarks/claims.py PID SCRIPT ...      run a script as long as the process PID lives
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.5


def claim(path: Path) -> int | None:
    """A file descriptor that holds the lock `path`, or None while another process holds it.

    The lock is released when the descriptor and all that processes inherited are closed, as they are when they die.
    Without `fcntl`, on Windows, nothing is locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
    return descriptor


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Holds the lock `path`.

    Raises:
        SystemExit: another process holds it.
    """
    descriptor = claim(path)
    if descriptor is None:
        raise SystemExit(f"another process does this run: it holds {path}; wait for it, or give another --out")
    try:
        yield
    finally:
        os.close(descriptor)


def end_with(parent: int) -> None:
    """When the process `parent` has ended, in whatever way, end this one within a second, with the group that it leads.

    On Linux the kernel is faster (`dying_with_parent`), but it spares the children of a child. Not on Windows.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    if sys.platform != "win32":
        threading.Thread(target=watch, daemon=True).start()


def dying_with_parent() -> Callable[[], None] | None:
    """For `Popen(preexec_fn=...)`: the kernel kills the child when this process ends in whatever way. On Linux."""
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def bind() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)

    return bind


if __name__ == "__main__":
    end_with(int(sys.argv[1]))  # before the script imports what takes seconds
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
