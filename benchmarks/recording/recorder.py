"""Recording: behaviours act in environments, and what happens becomes a local Minari data set.

A part of a data set (so many steps of one behaviour) is recorded in chunks. A chunk is a function of the data set's id,
the seed, the part and the chunk's number, whatever process records it and whatever else runs. Finished chunks lie in a
hidden folder of Minari's root until the data set is whole, so a killed run goes on where it was.

Every chunk ends with a replay check: episodes are reset from their seeds in a fresh environment, the stored actions are
replayed open loop, and every next observation and reward is compared with what was stored.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ld_agents.data.storage import move_in
from ld_agents.evaluation import environments
from recording.behaviours import Behaviour, read_arrays, sha256

Array = NDArray[Any]

LANES = 10  # environments side by side in a chunk
CHUNK_STEPS = 20_000
CHECK_STEPS = 600  # steps replayed per chunk: whole episodes until there are that many
TOLERANCE = 1e-5  # of the replay, absolute; observations are stored as float32
_SEEDS = 2**31  # evaluation seeds lie above


@dataclass
class Episode:
    """One recorded episode of T steps.

    observations [T + 1, S] and actions [T, A] float32, rewards [T] float64, terminals [T] bool. `success`: whether any
    step reported success, None where the environment reports none. `reached`: whether the behaviour came to its own
    target, None where it has none. `options`: what the reset was given.
    """

    observations: Array
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


@dataclass(frozen=True)
class Recording:
    """A part of a data set that is recorded: `steps` steps of one behaviour in one environment.

    `env_kwargs`: what the environment of the recording is made with, names and values. `past_terminals`: whether an
    episode goes on after a terminal, until the step limit. `chunk_steps`: steps of a chunk, up to the ends of its last
    episodes.
    """

    env_id: str
    behaviour: Behaviour
    steps: int
    env_kwargs: tuple[tuple[str, Any], ...] = ()
    past_terminals: bool = False
    chunk_steps: int = CHUNK_STEPS

    @property
    def lane_steps(self) -> int:
        """Steps after which an environment of a chunk finishes its episode and stops."""
        return math.ceil(min(self.chunk_steps, self.steps) / LANES)

    @property
    def chunks(self) -> int:
        """Chunks that are enough in any case; long last episodes may make some of them unnecessary."""
        return math.ceil(self.steps / (LANES * self.lane_steps))

    def make_env(self) -> gym.Env[Any, Any]:
        """An environment as it is recorded from."""
        return make_env(self.env_id, **dict(self.env_kwargs))

    def record(self, entropy: tuple[int, ...]) -> tuple[list[Episode], dict[str, float]]:
        """The episodes of a chunk, lane after lane, and the result of the replay check."""
        *envs, fresh = _environments(self)
        streams = np.random.SeedSequence(entropy).spawn(LANES)
        lanes = [_Lane(env, self, np.random.default_rng(stream)) for env, stream in zip(envs, streams, strict=True)]
        episodes = _act_in(lanes, lambda lane: lane.steps >= self.lane_steps and lane.between_episodes)
        return episodes, replay(fresh, episodes)

    def describe(self) -> dict[str, Any]:
        """What identifies the behaviour, as JSON."""
        return self.behaviour.describe()


@dataclass(frozen=True)
class Demonstrations:
    """A part of a data set that replays recorded actions, each demonstration from its own start, without step limit.

    The file holds `actions`, `episode_lengths` and, where a start has to be restored, `init_*` arrays with one row per
    demonstration for the environment's option "initial_state_dict". A demonstration is tried with new seeds (noise of
    the sensors) up to `attempts` times until the environment ends it; with more than one attempt, a demonstration that
    it never ends is left out. One chunk is one demonstration.
    """

    env_id: str
    file: Path
    attempts: int = 1

    @cached_property
    def arrays(self) -> dict[str, Array]:
        return read_arrays(self.file)

    @property
    def chunks(self) -> int:
        return len(self.arrays["episode_lengths"])

    @property
    def steps(self) -> int:
        return int(self.arrays["episode_lengths"].sum())

    def make_env(self) -> gym.Env[Any, Any]:
        """An environment as it is recorded from."""
        return make_env(self.env_id, max_episode_steps=-1)

    def record(self, entropy: tuple[int, ...]) -> tuple[list[Episode], dict[str, float]]:
        """The episode of a demonstration, or none, and the result of the replay check."""
        *_, env, fresh = _environments(self)
        lengths, index = self.arrays["episode_lengths"], entropy[-1]
        begin = int(lengths[:index].sum())
        actions = np.clip(self.arrays["actions"][begin : begin + lengths[index]], -1.0, 1.0).astype(np.float32)
        state = {k.removeprefix("init_"): v[index] for k, v in self.arrays.items() if k.startswith("init_")}
        options = {"initial_state_dict": state} if state else None
        rng = np.random.default_rng(entropy)
        for _ in range(self.attempts):
            episode = self._attempt(env, actions, int(rng.integers(_SEEDS)), options)
            if episode.terminals[-1] or self.attempts == 1:
                return [episode], replay(fresh, [episode])
        return [], replay(fresh, [])

    def _attempt(self, env: gym.Env[Any, Any], actions: Array, seed: int, options: dict[str, Any] | None) -> Episode:
        observations, rewards, terminals, success = [env.reset(seed=seed, options=options)[0]], [], [], False
        for action in actions:
            observation, reward, terminal, _, info = env.step(action)
            observations.append(observation)
            rewards.append(float(reward))
            terminals.append(bool(terminal))
            success |= bool(info["success"])
            if terminal:
                break
        rows = np.stack(observations).astype(np.float32)
        return Episode(
            rows, actions[: len(rewards)], np.array(rewards), np.array(terminals), seed, options, success=success
        )

    def describe(self) -> dict[str, Any]:
        """What identifies the part, as JSON."""
        return {
            "demonstrations": self.file.name,
            "attempts": self.attempts,
            "sha256": {self.file.name: sha256(self.file)},
        }


def make_env(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """An environment of Gymnasium, gymnasium-robotics, this project, or ``module:id``: of a module that registers it.

    Raises:
        ValueError: there is no such environment, or no such module.
    """
    module, _, env_id = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"The module {module!r} of the environment {env_id!r} cannot be imported: {error}"
            ) from None
    environments.register()
    if env_id not in gym.registry:
        environments.register_robotics()
    if env_id not in gym.registry:
        raise ValueError(f"Gymnasium knows no environment {env_id!r}. Write module:id to import the module first.")
    return environments.make(env_id, disable_env_checker=True, **kwargs)


# -- one chunk -----------------------------------------------------------------------------------------------------


class _Lane:
    """One environment of a chunk with its own random stream and the episodes recorded in it."""

    def __init__(self, env: gym.Env[Any, Any], part: Recording, rng: np.random.Generator) -> None:
        self.env, self.part, self.rng = env, part, rng
        self.episodes: list[Episode] = []
        self.steps = 0
        space = env.action_space
        assert isinstance(space, gym.spaces.Box)
        self._low, self._high = space.low, space.high
        self._centre, self._half = (space.high + space.low) / 2, (space.high - space.low) / 2
        self.begin()

    @property
    def between_episodes(self) -> bool:
        return not self._actions

    def begin(self) -> None:
        self.drawn = self.part.behaviour.begin(self.rng)
        self._seed = int(self.rng.integers(_SEEDS))
        self.observation, _ = self.env.reset(seed=self._seed, options=self.drawn or None)
        self._observations: list[Array] = [np.asarray(self.observation, np.float32)]
        self._actions: list[Array] = []
        self._rewards: list[float] = []
        self._terminals: list[bool] = []
        self._success: bool | None = None

    def step(self, action: Array) -> None:
        action = np.clip((self._centre + self._half * action).astype(np.float32), self._low, self._high)
        self.observation, reward, terminal, timeout, info = self.env.step(action)
        self._observations.append(np.asarray(self.observation, np.float32))
        self._actions.append(action)
        self._rewards.append(float(reward))
        self._terminals.append(bool(terminal))
        if "success" in info:
            self._success = bool(self._success) or bool(info["success"])
        self.steps += 1
        if timeout or (terminal and not self.part.past_terminals) or self.part.behaviour.finished(self.drawn):
            self._close()
            self.begin()

    def _close(self) -> None:
        observations = np.stack(self._observations)
        reached = None
        if "goal" in self.drawn:
            distances = np.linalg.norm(observations[1:, :2] - self.drawn["goal"], axis=1)
            reached = bool(distances.min() <= environments.GOAL_RADIUS)
        self.episodes.append(
            Episode(
                observations,
                np.stack(self._actions),
                np.array(self._rewards),
                np.array(self._terminals),
                self._seed,
                self.drawn or None,
                self._success,
                reached,
            )
        )


def _act_in(lanes: list[_Lane], finished: Callable[[_Lane], bool]) -> list[Episode]:
    """Let their behaviour act in all lanes until each is finished; returns the episodes, lane after lane."""
    running = lanes
    while running:
        actions = running[0].part.behaviour.act(
            np.stack([lane.observation for lane in running]),
            [lane.rng for lane in running],
            [lane.drawn for lane in running],
        )
        for lane, action in zip(running, actions, strict=True):
            lane.step(action)
        running = [lane for lane in running if not finished(lane)]
    return [episode for lane in lanes for episode in lane.episodes]


def play(env_id: str, behaviour: Behaviour, n_episodes: int, entropy: tuple[int, ...]) -> list[Episode]:
    """So many episodes of a behaviour in an environment, each until its terminal or the step limit."""
    part = Recording(env_id, behaviour, steps=0)
    streams = np.random.SeedSequence(entropy).spawn(n_episodes)
    envs = _environments(part)
    episodes: list[Episode] = []
    for begin in range(0, n_episodes, len(envs)):
        lanes = [_Lane(env, part, np.random.default_rng(s)) for env, s in zip(envs, streams[begin:], strict=False)]
        episodes += _act_in(lanes, lambda lane: bool(lane.episodes))
    return episodes


@lru_cache(maxsize=1)
def _environments(part: Recording | Demonstrations) -> list[gym.Env[Any, Any]]:
    # Making an environment can take a second; every episode resets it with a seed, so it may serve many chunks.
    return [part.make_env() for _ in range((LANES if isinstance(part, Recording) else 1) + 1)]


def replay(env: gym.Env[Any, Any], episodes: list[Episode]) -> dict[str, float]:
    """Replay the actions of the first episodes from their seeds and compare what comes of them."""
    check = {"max_next_state_error": 0.0, "max_reward_error": 0.0, "terminal_mismatches": 0, "steps": 0, "episodes": 0}
    for episode in episodes:
        if check["steps"] >= CHECK_STEPS:
            break
        after = [env.reset(seed=episode.seed, options=episode.options)[0]]
        rewards = []
        for action, terminal in zip(episode.actions, episode.terminals, strict=True):
            observation, reward, terminated, _, _ = env.step(action)
            after.append(observation)
            rewards.append(float(reward))
            check["terminal_mismatches"] += bool(terminated) != bool(terminal)
        # np.maximum keeps a NaN, which then fails.
        for name, errors in (
            ("max_next_state_error", np.stack(after) - episode.observations),
            ("max_reward_error", np.array(rewards) - episode.rewards),
        ):
            check[name] = float(np.maximum(check[name], np.abs(errors).max()))
        check["steps"] += len(rewards)
        check["episodes"] += 1
    return check


def merge_checks(checks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One replay check out of several: the largest errors, the sums of the counts, and whether it is passed."""
    largest = {
        name: float(np.max([check[name] for check in checks])) for name in ("max_next_state_error", "max_reward_error")
    }
    sums = {name: int(sum(check[name] for check in checks)) for name in ("terminal_mismatches", "steps", "episodes")}
    passed = all(error <= TOLERANCE for error in largest.values()) and sums["terminal_mismatches"] == 0 < sums["steps"]
    return {"passed": passed, "tolerance": TOLERANCE, **largest, **sums}


# -- chunk files ---------------------------------------------------------------------------------------------------


def record_chunk(part: Recording | Demonstrations, entropy: tuple[int, ...], file: Path) -> None:
    """Record a chunk into an .npz file that appears whole or not at all."""
    started = time.perf_counter()
    episodes, check = part.record(entropy)
    rows = {name: [getattr(e, name) for e in episodes] for name in ("observations", "actions", "rewards", "terminals")}
    about = [{"steps": len(e.actions), "seed": e.seed, "success": e.success, "reached": e.reached} for e in episodes]
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with open(temporary, "wb") as out:
        np.savez(
            out,
            allow_pickle=False,
            about=json.dumps(about),
            check=json.dumps(check),
            seconds=time.perf_counter() - started,
            **{name: np.concatenate(arrays) for name, arrays in rows.items() if arrays},
        )
    os.replace(temporary, file)


def chunk_steps(file: Path) -> int:
    """Number of steps in a chunk file."""
    with np.load(file, allow_pickle=False) as stored:
        return sum(int(episode["steps"]) for episode in json.loads(str(stored["about"])))


def read_chunk(file: Path) -> tuple[list[Episode], dict[str, float], float]:
    """Episodes, replay check and seconds of a chunk file."""
    with np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    episodes, row = [], 0
    for index, about in enumerate(json.loads(str(arrays["about"]))):
        steps = about.pop("steps")
        rows = slice(row, row + steps)
        observations = arrays["observations"][row + index : row + index + steps + 1]
        parts = (arrays[name][rows] for name in ("actions", "rewards", "terminals"))
        episodes.append(Episode(observations, *parts, **about))
        row += steps
    return episodes, json.loads(str(arrays["check"])), float(arrays["seconds"])


def record_part(
    part: Recording | Demonstrations, entropy: tuple[int, ...], folder: Path, executor: Executor, bar: tqdm[Any]
) -> list[Path]:
    """Record the chunks of a part that are missing in `folder`; return the files that make up its steps."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"chunk{index}.npz" for index in range(part.chunks)]
    waiting: dict[int, Future[None]] = {}
    recorded = begun = 0
    try:
        for index, file in enumerate(files):
            # The chunks after this one are recorded ahead, as many as there are processes.
            while begun < min(len(files), index + _processes(executor)):
                if not files[begun].exists():
                    waiting[begun] = executor.submit(record_chunk, part, (*entropy, begun), files[begun])
                begun += 1
            if index in waiting:
                waiting.pop(index).result()
            steps = chunk_steps(file)
            bar.update(min(steps, part.steps - recorded))
            recorded += steps
            if recorded >= part.steps:
                break
    finally:
        for future in waiting.values():
            future.cancel()
    return files[: index + 1]


def _processes(executor: Executor) -> int:
    return int(getattr(executor, "_max_workers", 1))


class _ThisProcess(Executor):
    """Does what it is given at once."""

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        return map(fn, *iterables)

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **keywords))
        return future


def worker_pool(processes: int) -> Executor:
    """Processes with one thread each that record chunks; this process alone where one is enough."""
    if processes == 1:
        return _ThisProcess()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    # Ctrl-C reaches them too, but it is the parent's to say what happens: chunks that are begun are finished.
    ignore_interrupts = signal.SIGINT, signal.SIG_IGN
    return ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, ignore_interrupts)


# -- the data set --------------------------------------------------------------------------------------------------


def work_folder(dataset_id: str, description: dict[str, Any]) -> Path:
    """The hidden folder in Minari's root where a data set grows; another description means another folder."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]
    folder = _root() / f"{_work_name(dataset_id)}{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove_work_folders(dataset_id: str) -> None:
    """Remove what recordings of a data set have left."""
    for path in _root().glob(f"{_work_name(dataset_id)}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _root() -> Path:
    from minari.storage.datasets_root_dir import get_dataset_path

    return Path(get_dataset_path())


def _work_name(dataset_id: str) -> str:
    return f".ld-agents-recording-{dataset_id.replace('/', '-')}-"


def target_folder(dataset_id: str) -> Path:
    """Where Minari keeps the data set.

    Raises:
        ValueError: the id is malformed.
        FileExistsError: a folder of that name is there, but it holds no data set.
    """
    from minari.dataset.minari_dataset import DATASET_ID_RE

    match = DATASET_ID_RE.fullmatch(dataset_id)
    if match is None or match.group("version") is None:
        raise ValueError(f"{dataset_id!r} is not a Minari id. Ids look like me/hopper/medium-v0.")
    folder = _root() / dataset_id
    if folder.exists() and not (folder / "data" / "metadata.json").exists():
        raise FileExistsError(f"{folder} exists but holds no data set. Delete that folder and try again.")
    return folder


def versions() -> dict[str, str]:
    """Versions of the libraries that a recording depends on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("gymnasium", "gymnasium-robotics", "mujoco", "minari", "numpy")}


class Statistics:
    """What the behaviour achieved, over whole episodes."""

    def __init__(self) -> None:
        self.returns: list[float] = []
        self.successes: list[bool] = []
        self.reached: list[bool] = []
        self.flags: list[dict[str, bool | None]] = []
        self.steps = 0

    def watch(self, episodes: Iterable[Episode]) -> Iterator[Episode]:
        """Pass episodes on and count them."""
        for episode in episodes:
            self.steps += len(episode.actions)
            self.flags.append({name: getattr(episode, name) for name in ("success", "reached", "whole")})
            if episode.whole:
                # An agent's episode would have ended at its first terminal.
                ends = np.flatnonzero(episode.terminals)
                self.returns.append(float(episode.rewards[: ends[0] + 1 if len(ends) else None].sum()))
                if episode.success is not None:
                    self.successes.append(episode.success)
                if episode.reached is not None:
                    self.reached.append(episode.reached)
            yield episode

    def summary(self) -> dict[str, Any]:
        def mean(values: list[Any]) -> float | None:
            return float(np.mean(values)) if values else None

        found = {
            "mean_return": mean(self.returns),
            "std_return": float(np.std(self.returns)) if self.returns else None,
            "success_rate": mean(self.successes) if len(self.successes) == len(self.returns) else None,
            "episodes": len(self.returns),
        }
        return found | ({"own_target_rate": mean(self.reached)} if self.reached else {})


def store(
    dataset_id: str,
    env: gym.Env[Any, Any],
    episodes: Iterable[Episode],
    metadata: Callable[[], dict[str, Any]],
    work: Path,
) -> None:
    """Write a data set into the local Minari folder; it appears whole or not at all.

    Args:
        dataset_id: Minari id.
        env: the evaluation environment; its spaces become the data set's.
        episodes: read once.
        metadata: makes further metadata; it is called after all episodes were read.
        work: a folder on the same file system for the unfinished data set.
    """
    import minari
    from minari.data_collector import EpisodeBuffer
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
    whole = work / "dataset"
    shutil.rmtree(whole, ignore_errors=True)
    (whole / "data").mkdir(parents=True)
    storage = MinariStorage.new(
        whole / "data", observation_space=env.observation_space, action_space=env.action_space, env_spec=env.spec
    )
    storage.update_episodes(buffers())
    storage.update_metadata(
        {
            "dataset_id": dataset_id,
            "minari_version": minari.__version__,
            "author": {"ld_agents"},
            "code_permalink": "benchmarks/make_datasets.py",
            "eval_env_spec": eval_env_spec,
            **metadata(),
        }
    )
    target_folder(dataset_id)  # raises where something else has appeared there
    move_in(whole, dataset_id)
