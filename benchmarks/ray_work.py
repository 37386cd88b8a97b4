"""What `ray_cluster.py` has the machines of a cluster do: `work` does a run on one, `Mailbox` receives what it writes.

Both travel there by value, with what they call, and so use nothing else of this project.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LOOK_SECONDS = 0.5
SEND_SECONDS = 2.0  # after which a run learns, at the latest, that it has to stop
STOP_SECONDS = 15.0  # for a run to save its checkpoint: with the above less than the suite waits

Pack = dict[str, bytes]  # files by their paths relative to some folder


def stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file does: the time and the size. None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def pack(folder: Path, names: Iterable[str]) -> Pack:
    """Those of the files that exist."""
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # checkpoints come and go
            found[name] = (folder / name).read_bytes()
    return found


def unpack(folder: Path, files: Pack, to_disk: bool = False) -> None:
    """Write files, each of which appears whole or not at all; with `to_disk`, even when the power fails."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as stream:
            stream.write(content)
            if to_disk:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)


def own_folder() -> Path:
    """Where the runs and datasets of this user lie on this machine.

    Raises:
        PermissionError: somebody else has made a folder of that name.
    """
    base = Path(tempfile.gettempdir()) / f"ld_agents-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        raise PermissionError(f"{base} belongs to another user; remove it, or start Ray there with another TMPDIR")
    return base


@contextlib.contextmanager
def run_folder(base: Path) -> Iterator[Path]:
    """A folder for a run while the block lasts. What killed workers have left of theirs, which nobody locks, goes."""
    from filelock import FileLock, Timeout

    with FileLock(base / "lock"):
        for left in base.glob("run-*"):
            with contextlib.suppress(Timeout), FileLock(left / "lock", timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=base))
        lock = FileLock(folder / "lock")
        lock.acquire()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def fetch(reference: Any) -> Any:
    """What `ray.get` returns, without giving the CPUs of this task to another one while it waits, as that does."""
    return reference.future().result()


def place(base: Path, digests: Mapping[str, str], files: Sequence[Any]) -> Path:
    """The folder of this machine that holds sources or a dataset: sent once, and checked by SHA-256 for each run.

    Args:
        base: `own_folder()`.
        digests: SHA-256 of the files by their paths in that folder; those with absolute paths are not sent.
        files: Ray's reference to the files, in a list so that Ray fetches them only where they are missing.

    Raises:
        FileNotFoundError: a file with an absolute path is not on this machine, or is not the caller's.
    """
    from filelock import FileLock

    key = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:16]
    folder = base / "sent" / key
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(base / "sent" / f"{key}.lock"):
        missing = []
        for name, expected in digests.items():
            path = folder / name  # an absolute name stays what it is
            if path.is_file():
                with path.open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() == expected:
                        continue
            if Path(name).is_absolute():
                raise FileNotFoundError(
                    f"{name} on {socket.gethostname()} is not the file of that name where the suite was started; "
                    "datasets that are given as paths must lie in a folder that all machines share"
                )
            missing.append(name)
        if missing:
            found = fetch(files[0])
            unpack(folder, {name: found[name] for name in missing})
    return folder


def work(
    mailbox: Any,
    run: str,
    command: Sequence[str],
    names: Sequence[str],
    start: Pack,
    sources: tuple[Mapping[str, str], Sequence[Any]],
    dataset: tuple[Mapping[str, str], Sequence[Any]],
    environment: Mapping[str, str],
) -> int:
    """Do a run in a process of its own on this machine; returns its exit code.

    Args:
        mailbox: receives what the run writes.
        run: the run's name.
        command: script in benchmarks/ and its arguments, without the folder for results.
        names: the files that the run may write, relative to that folder; the last one is its log.
        start: what the run finds in that folder.
        sources: digests and files of benchmarks/, ld_agents/ and cwd/, where the run starts; see `place`.
        dataset: digests and files.
        environment: variables of the run beside those of this machine.
    """
    base = own_folder()
    code, data = place(base, *sources), place(base, *dataset)
    paths = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | dict(environment)
    for variable, part in (("MINARI_DATASETS_PATH", "minari"), ("D4RL_DATASET_DIR", "d4rl")):
        if (data / part).exists():
            environment[variable] = str(data / part)
    scripts = code / "benchmarks"
    (code / "cwd").mkdir(exist_ok=True)
    with run_folder(base) as folder:
        out, log = folder / "out", folder / "out" / names[-1]
        unpack(out, start)
        log.parent.mkdir(parents=True, exist_ok=True)
        program = [sys.executable, str(scripts / "claims.py"), str(os.getpid()), str(scripts / command[0])]
        with log.open("wb") as stream:
            # No session of its own: Ray ends the process group of a worker that has died, and `claims.py` the run.
            process = subprocess.Popen(
                [*program, f"--out={out}", *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment,
                cwd=code / "cwd",
            )
        return follow(process, mailbox, run, out, names)


def follow(process: subprocess.Popen[bytes], mailbox: Any, run: str, out: Path, names: Sequence[str]) -> int:
    """Send what a run writes until it has ended, and end it when the mailbox says so; returns its exit code.

    The mailbox is asked because `ray.cancel` interrupts Python code at any point, and where that happens to be a
    callback of Ray's own, nobody notices.
    """
    import ray

    node, sent = ray.get_runtime_context().get_node_id(), dict[str, tuple[int, int] | None]()

    def send() -> bool:
        found = {name: stamp(out / name) for name in names}
        changed = pack(out, (name for name in names if found[name] != sent.get(name)))
        stopped = fetch(mailbox.put.remote(run, node, changed))
        sent.update(found)
        return bool(stopped)

    try:
        stopped = send()  # so that the caller knows where the run is
        told = time.monotonic()
        while process.poll() is None and not stopped:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_SECONDS)
            if time.monotonic() - told > SEND_SECONDS:
                stopped = send()
                told = time.monotonic()
    finally:
        process.terminate()  # it saves its checkpoint; nothing happens where it has ended
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        send()
    return process.returncode


class Mailbox:
    """An actor beside the caller: writes into the suite's folder what the runs send, and knows where they are."""

    def __init__(self, out: str) -> None:
        self.out, self.nodes, self.stopped = Path(out), dict[str, str](), set[str]()

    def put(self, run: str, node: str, files: Pack) -> bool:
        """Take the files; returns whether the run has to stop."""
        self.nodes[run] = node
        unpack(self.out, files, to_disk=True)
        return run in self.stopped

    def stop(self, run: str) -> bool:
        """Have a run stop with its next message; returns whether it has sent one, so that it is at work."""
        self.stopped.add(run)
        return run in self.nodes

    def lose(self, run: str) -> None:
        """A run whose machine was lost waits for another one."""
        self.nodes.pop(run, None)

    def where(self) -> dict[str, str]:
        return self.nodes
