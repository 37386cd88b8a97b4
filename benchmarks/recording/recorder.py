"""Parts of a dataset: behaviors that act in environments, and demonstrations that are replayed.

`ld_agents.data.recording` cuts a part in chunks and stores them. In a chunk several environments run side by side, each
with its own random stream; every chunk ends with a replay of episodes from their seeds in a fresh environment.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ld_agents.data.recording import Check, Episode, replay
from ld_agents.evaluation import environments
from recording.behaviors import Behavior, read_arrays, sha256

Array = NDArray[Any]

LANES = 10  # environments side by side in a chunk
CHUNK_STEPS = 20_000
CHECK_STEPS = 600  # steps replayed per chunk: whole episodes until there are that many
_SEEDS = 2**31  # evaluation seeds lie above


@dataclass(frozen=True)
class Recording:
    """A part of a dataset that is recorded: `steps` steps of one behavior in one environment, made with `env_kwargs`.

    `past_terminals`: whether an episode continues after a terminal, until the step limit. `chunk_steps`: steps of a
    chunk, up to the ends of its last episodes.
    """

    env_id: str
    behavior: Behavior
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

    def record(self, entropy: tuple[int, ...]) -> tuple[list[Episode], Check]:
        """The episodes of a chunk, lane after lane, and the result of the replay check."""
        *envs, fresh = _environments(self)
        streams = np.random.SeedSequence(entropy).spawn(LANES)
        lanes = [_Lane(env, self, np.random.default_rng(stream)) for env, stream in zip(envs, streams, strict=True)]
        episodes = _act_in(lanes, lambda lane: lane.steps >= self.lane_steps and not lane.rows)
        return episodes, _checked(fresh, episodes)


@dataclass(frozen=True)
class Demonstrations:
    """A part of a dataset that replays recorded actions, each demonstration from its own start, without step limit.

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

    def record(self, entropy: tuple[int, ...]) -> tuple[list[Episode], Check]:
        """The episode of a demonstration, or none, and the result of the replay check."""
        *_, env, fresh = _environments(self)
        lengths, index = self.arrays["episode_lengths"], entropy[-1]
        begin = int(lengths[:index].sum())
        actions = np.clip(self.arrays["actions"][begin : begin + lengths[index]], -1.0, 1.0).astype(np.float32)
        state = {k.removeprefix("init_"): v[index] for k, v in self.arrays.items() if k.startswith("init_")}
        options = {"initial_state_dict": state} if state else None
        rng, found = np.random.default_rng(entropy), []
        for _ in range(self.attempts):
            episode = _replayed(env, actions, int(rng.integers(_SEEDS)), options)
            if episode.terminals[-1] or self.attempts == 1:
                found = [episode]
                break
        return found, _checked(fresh, found)

    def describe(self) -> dict[str, Any]:
        """What identifies the part, as JSON."""
        name = self.file.name
        return {"demonstrations": name, "attempts": self.attempts, "sha256": {name: sha256(self.file)}}


def make_env(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """An environment of Gymnasium, gymnasium-robotics, this project, or ``module:id``: of a module that registers it.

    Raises:
        ValueError: there is no such environment, or no such module.
    """
    module, _, env_id = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"The module {module!r} of the environment {env_id!r} cannot be imported: {error}") from None
    environments.find(env_id)
    return environments.make(env_id, disable_env_checker=True, **kwargs)


def _replayed(env: gym.Env[Any, Any], actions: Array, seed: int, options: dict[str, Any] | None) -> Episode:
    """The episode of a demonstration's actions, up to its terminal."""
    observations, rewards, terminal, success = [env.reset(seed=seed, options=options)[0]], [], False, False
    for action in actions:
        observation, reward, terminal, _, info = env.step(action)
        observations.append(observation)
        rewards.append(float(reward))
        success |= bool(info["success"])
        if terminal:
            break
    rows, terminals = np.stack(observations).astype(np.float32), np.zeros(len(rewards), dtype=bool)
    terminals[-1] = terminal
    return Episode(rows, actions[: len(rewards)], np.array(rewards), terminals, seed, options, success)


class _Lane:
    """One environment of a chunk with its own random stream and the episodes recorded in it."""

    def __init__(self, env: gym.Env[Any, Any], part: Recording, rng: np.random.Generator) -> None:
        self.env, self.part, self.rng = env, part, rng
        self.episodes: list[Episode] = []
        self.steps = 0
        self.rows: list[tuple[Array, Array, float, bool]] = []  # of the episode under way
        space = env.action_space
        assert isinstance(space, gym.spaces.Box)
        self._low, self._high = space.low, space.high
        self._center, self._half = (space.high + space.low) / 2, (space.high - space.low) / 2
        self.begin()

    def begin(self) -> None:
        self.drawn = self.part.behavior.begin(self.rng)
        self._seed = int(self.rng.integers(_SEEDS))
        self.observation, _ = self.env.reset(seed=self._seed, options=self.drawn or None)
        self.part.behavior.start(self.env, self.drawn)
        self._first, self.rows = _stored(self.observation), []
        self._success: bool | None = None

    def step(self, action: Array) -> None:
        action = np.clip((self._center + self._half * action).astype(np.float32), self._low, self._high)
        self.observation, reward, terminal, timeout, info = self.env.step(action)
        self.rows.append((_stored(self.observation), action, float(reward), bool(terminal)))
        if "success" in info:
            self._success = bool(self._success) or bool(info["success"])
        self.steps += 1
        if timeout or (terminal and not self.part.past_terminals) or self.part.behavior.finished(self.drawn):
            self._close()
            self.begin()

    def _close(self) -> None:
        after, actions, rewards, terminals = (np.array(column) for column in zip(*self.rows, strict=True))
        reached = None
        if "goal" in self.drawn:
            distances = np.linalg.norm(after[:, :2] - self.drawn["goal"], axis=1)
            reached = bool(distances.min() <= environments.GOAL_RADIUS)
        observations = np.concatenate([self._first[None], after])
        self.episodes.append(
            Episode(observations, actions, rewards, terminals, self._seed, self.drawn or None, self._success, reached)
        )


def _stored(observation: Array) -> Array:
    """An observation as it is stored: images as they are, all else as float32."""
    return observation if observation.dtype == np.uint8 else np.asarray(observation, np.float32)


def _act_in(lanes: list[_Lane], finished: Callable[[_Lane], bool]) -> list[Episode]:
    """Let their behavior act in all lanes until each is finished; returns the episodes, lane after lane."""
    running = lanes
    while running:
        observations, rngs = np.stack([lane.observation for lane in running]), [lane.rng for lane in running]
        actions = running[0].part.behavior.act(observations, rngs, [lane.drawn for lane in running])
        for lane, action in zip(running, actions, strict=True):
            lane.step(action)
        running = [lane for lane in running if not finished(lane)]
    return [episode for lane in lanes for episode in lane.episodes]


def play(env_id: str, behavior: Behavior, n_episodes: int, entropy: tuple[int, ...]) -> list[Episode]:
    """Episodes of a behavior in an environment, each until its terminal or the step limit."""
    part = Recording(env_id, behavior, steps=0)
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


def _checked(env: gym.Env[Any, Any], episodes: list[Episode]) -> Check:
    """Replay whole episodes until `CHECK_STEPS` steps are compared."""
    before = itertools.accumulate((len(episode.actions) for episode in episodes), initial=0)
    return replay(env, [e for e, steps in zip(episodes, before, strict=False) if steps < CHECK_STEPS])
