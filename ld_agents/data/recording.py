"""Recording: episodes in chunks that survive a killed process, and the local Minari dataset that they become.

What is recorded is a `Part`: a number of steps, divided into chunks. A chunk is a function of the part, a seed sequence
and its own number, independent of the process that records it. Finished chunks stay in a hidden folder of
Minari's root until the dataset is whole, so a killed recording resumes. A chunk comes with a replay check: stored
actions are replayed open loop, and every next observation, reward and terminal is compared with what was stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from unittest.mock import patch

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ld_agents.data.frames import is_frame_space
from ld_agents.data.storage import dataset_folder, digest, is_local, whole

Array = NDArray[Any]

_COLUMNS = ("observations", "actions", "rewards", "terminals")
TOLERANCE = 1e-5  # of the replay, absolute; most observations are stored as float32


@dataclass
class Episode:
    """One recorded episode of T steps.

    observations [T + 1, S] or frames [T + 1, h, w, C] uint8 (or a dictionary of such arrays), actions [T, A], rewards
    [T] float64, terminals [T] bool.
    `success`: whether any step reported success, None where the environment reports none. `reached`: whether the
    behavior reached its own target, None where it has none. `options`: what the reset was given.
    """

    observations: Any
    actions: Array
    rewards: Array
    terminals: Array
    seed: int | None = None
    options: dict[str, Any] | None = None
    success: bool | None = None
    reached: bool | None = None
    whole: bool = True

    def cut(self, steps: int) -> Episode:
        """The first `steps` steps."""
        if steps >= len(self.actions):
            return self
        rows = {name: getattr(self, name)[:steps] for name in ("actions", "rewards", "terminals")}
        return replace(self, observations=self.observations[: steps + 1], whole=False, **rows)


Check = dict[str, Any]
Map = Callable[..., Iterator[Any]]


class Part(Protocol):
    """What is recorded. `chunks` are enough for `steps` in any case; long last episodes may make some unnecessary."""

    @property
    def steps(self) -> int: ...

    @property
    def chunks(self) -> int: ...

    def record(self, entropy: tuple[int, ...]) -> tuple[list[Episode], Check]:
        """The episodes of a chunk, whose number ends `entropy`, and the result of the replay check."""
        ...


# -- replay --------------------------------------------------------------------------------------------------------


def replay(
    env: gym.Env[Any, Any],
    episodes: Iterable[Episode],
    begin: Callable[[gym.Env[Any, Any], Episode], Any] | None = None,
) -> Check:
    """Replay the actions of episodes open loop and compare what follows.

    Args:
        env: a fresh environment.
        episodes: with observations [T + 1, S].
        begin: brings the environment to an episode's start and returns its first observation; None: reset with the
            episode's seed and options.
    """
    check = {"max_next_state_error": 0.0, "max_reward_error": 0.0, "terminal_mismatches": 0, "steps": 0, "episodes": 0}
    for episode in episodes:
        start = begin(env, episode) if begin else env.reset(seed=episode.seed, options=episode.options)[0]
        after, rewards = [start], []
        for action, terminal in zip(episode.actions, episode.terminals, strict=True):
            observation, reward, terminated, _, _ = env.step(action)
            after.append(observation)
            rewards.append(float(reward))
            check["terminal_mismatches"] += bool(terminated) != bool(terminal)
        errors = {
            "max_next_state_error": np.subtract(np.stack(after), episode.observations, dtype=np.float64),
            "max_reward_error": np.array(rewards) - episode.rewards,
        }
        for name, found in errors.items():  # np.maximum keeps a NaN, which then fails
            check[name] = float(np.maximum(check[name], np.abs(found).max()))
        check["steps"] += len(rewards)
        check["episodes"] += 1
    return check


def merge_checks(checks: Sequence[Check], tolerance: float = TOLERANCE) -> Check:
    """One replay check from several: the largest errors, the sums of the counts, and whether it is passed."""
    largest = {
        name: float(np.max([check[name] for check in checks])) for name in ("max_next_state_error", "max_reward_error")
    }
    sums = {name: int(sum(check[name] for check in checks)) for name in ("terminal_mismatches", "steps", "episodes")}
    passed = all(error <= tolerance for error in largest.values()) and sums["terminal_mismatches"] == 0 < sums["steps"]
    return {"passed": passed, "tolerance": tolerance, **largest, **sums}


# -- chunks --------------------------------------------------------------------------------------------------------


def record_chunk(part: Part, entropy: tuple[int, ...], file: Path) -> None:
    """Record a chunk into an .npz file that appears whole or not at all."""
    started = time.perf_counter()
    episodes, check = part.record(entropy)
    flags = [{name: getattr(episode, name) for name in ("seed", "success", "reached")} for episode in episodes]
    about = {"episodes": flags, "check": check, "seconds": time.perf_counter() - started}
    arrays = {f"{i}/{name}": getattr(episode, name) for i, episode in enumerate(episodes) for name in _COLUMNS}
    with whole(file) as unfinished, open(unfinished, "wb") as out:
        np.savez(out, allow_pickle=False, about=json.dumps(about), **arrays)


def _recorded(part: Part, entropy: tuple[int, ...], file: Path) -> Path:
    if not file.exists():
        record_chunk(part, entropy, file)
    return file


def recorded_chunks(
    part: Part, entropy: tuple[int, ...], folder: Path, run: Map
) -> Iterator[tuple[list[Episode], Check, float]]:
    """The chunks of a part in order, until they hold its steps; `run` records those that are missing in `folder`.

    Of each chunk: its episodes, the result of the replay check, and the seconds of one core that were spent on it.
    """
    numbers, left = range(part.chunks), part.steps
    files = [folder / f"{number}.npz" for number in numbers]
    # When this function ends, the iterator is closed, which cancels the chunks that have not begun.
    for file in run(_recorded, [part] * len(files), [(*entropy, number) for number in numbers], files):
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            columns = [[stored[f"{i}/{name}"] for name in _COLUMNS] for i in range(len(about["episodes"]))]
        episodes = [Episode(*rows, **flags) for rows, flags in zip(columns, about["episodes"], strict=True)]
        yield episodes, about["check"], about["seconds"]
        left -= sum(len(episode.actions) for episode in episodes)
        if left <= 0:
            break


class _Workers(ProcessPoolExecutor):
    """Processes with one thread each that do not run the user's main module again, which may have no guard."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            with patch.dict(os.environ, threads):
                return super().submit(fn, *args, **kwargs)  # which starts the processes
        finally:
            sys.modules["__main__"] = main


def _begin_worker() -> None:
    # Ctrl-C reaches the workers too, but the parent decides what happens: chunks under way are finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def worker_pool(processes: int) -> Iterator[Map]:
    """A `map` over worker processes, Python's own where one is enough. Calls not begun at the end are dropped."""
    if processes == 1:
        yield map
        return
    pool = _Workers(processes, get_context("spawn"), _begin_worker)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


# -- the dataset ---------------------------------------------------------------------------------------------------


def read_metadata(dataset_id: str) -> dict[str, Any]:
    """The metadata of a local dataset."""
    found: dict[str, Any] = json.loads((dataset_folder(dataset_id) / "data" / "metadata.json").read_text())
    return found


@contextmanager
def work_folder(dataset_id: str, description: dict[str, Any]) -> Iterator[Path]:
    """A hidden folder in Minari's root where a dataset grows, for one process at a time.

    Another description means another folder. Leftovers of its recordings are removed once the dataset is local.

    Raises:
        ValueError: the id is malformed.
        FileExistsError: a folder of that name is there, but it holds no dataset.
    """
    from filelock import FileLock
    from minari.storage.datasets_root_dir import get_dataset_path

    target = dataset_folder(dataset_id)
    if target.exists() and not is_local(dataset_id):
        raise FileExistsError(f"{target} exists but holds no dataset. Delete that folder and try again.")
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]
    root, name = Path(get_dataset_path()), f".ld-agents-recording-{dataset_id.replace('/', '-')}"
    folder = root / f"{name}-{digest}"
    try:
        with FileLock(folder.with_suffix(".lock")):
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
    finally:
        for path in root.glob(f"{name}-*") if is_local(dataset_id) else ():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of the libraries that a recording depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {name: version(name) for name in ("gymnasium", "gymnasium-robotics", "mujoco", "minari", "numpy")}
    with suppress(PackageNotFoundError):  # only CarRacing needs it
        found["box2d"] = version("box2d")
    return found


def store(
    dataset_id: str,
    env: gym.Env[Any, Any],
    episodes: Iterable[Episode],
    metadata: Callable[[], dict[str, Any]],
    work: Path,
) -> None:
    """Write a dataset into the local Minari folder; it appears whole or not at all.

    Args:
        dataset_id: Minari id.
        env: its spaces become the dataset's; it is the evaluation environment, unless the metadata name another.
        episodes: read once.
        metadata: makes further metadata; it is called after all episodes were read.
        work: a folder on the same file system for the unfinished dataset.

    Raises:
        OSError: something else has appeared in the dataset's place.
    """
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.dataset.minari_storage import MinariStorage

    def buffers() -> Iterator[Any]:
        for episode in episodes:
            truncations = np.zeros(len(episode.actions), dtype=bool)
            truncations[-1] = not episode.terminals[-1]
            yield EpisodeBuffer(
                seed=episode.seed,
                observations=episode.observations,
                actions=episode.actions,
                rewards=episode.rewards,
                terminations=episode.terminals,
                truncations=truncations,
            )

    assert env.spec is not None
    eval_env_spec = env.spec.to_json()  # before the work, because not every environment can be written down
    unfinished = work / "dataset"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    exactly = {"jpeg_encoding": False} if is_frame_space(env.observation_space) else {}  # its default loses details
    storage = MinariStorage.new(unfinished / "data", env.observation_space, env.action_space, env.spec, **exactly)
    storage.update_episodes(buffers())
    about: dict[str, Any] = {"dataset_id": dataset_id, "minari_version": minari.__version__, "author": {"ld_agents"}}
    main = unfinished / "data" / "main_data.hdf5"
    about |= {"episodes_bytes": main.stat().st_size, "episodes_sha256": digest(main)}  # HDF5 notices no damage itself
    storage.update_metadata(about | {"eval_env_spec": eval_env_spec} | metadata())
    namespace, target = parse_dataset_id(dataset_id)[0], dataset_folder(dataset_id)
    if namespace is not None and namespace not in minari.namespace.list_local_namespaces():
        minari.namespace.create_namespace(namespace)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(unfinished, target)
