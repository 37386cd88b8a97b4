"""Seeded, vectorized rollouts of an agent: raw returns, first contacts with the goal, milliseconds per action.

Reported numbers come from here and not from Stable-Baselines3's `evaluate_policy`, which does not seed the resets and
keeps `episode_start` set for an environment that has met its quota, so that a planner would plan again at every step
there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ld_agents.evaluation.eval_env import EvalEnvSpec, check_env

Observation = NDArray[Any] | dict[str, Any]
State = tuple[NDArray[Any], ...]


class Agent(Protocol):
    """Whatever has Stable-Baselines3's `predict`."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `evaluate`; every list has one entry per episode, in the order of the episodes' seeds.

    `returns`: undiscounted sums of the environment's rewards. `lengths`: steps. `first_contact`: the 1-based step that
    earned the first positive reward, or None. `successes`: whether any step reported `info["success"]` (or
    `"is_success"`), None where the environment reports neither. `predict_ms`: `median` and `p95` of one call of
    `predict` for all running environments, and `per_action`, the time of all calls over the number of actions;
    milliseconds. `seconds`: wall-clock of the whole evaluation.
    """

    returns: list[float]
    lengths: list[int]
    first_contact: list[int | None]
    successes: list[bool | None]
    predict_ms: dict[str, float]
    seconds: float

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the mean return, from 10,000 resamples of the episodes."""
        draws = np.random.default_rng(0).integers(len(self.returns), size=(10_000, len(self.returns)))
        low, high = np.percentile(np.array(self.returns)[draws].mean(1), [2.5, 97.5])
        return float(low), float(high)

    def __str__(self) -> str:
        """Mean return with its interval, share of successes and mean length, in one line."""
        n, (low, high) = len(self.returns), self.interval()
        told = [success for success in self.successes if success is not None]
        success = f", success {100 * np.mean(told):.0f} %" if told else ""
        interval = f" [{low:.4g}, {high:.4g}] (95 % interval of {n} episodes)" if n > 1 else " (1 episode)"
        return f"mean return {np.mean(self.returns):.4g}{interval}{success}, mean length {np.mean(self.lengths):.4g}"


def episode_seed(seed: int, episode: int) -> int:
    """The seed of the reset of episode number `episode` (from 0): at least 2**31, so it is never a training seed."""
    return int(np.random.SeedSequence((seed, episode)).generate_state(1)[0]) | 2**31


def evaluate(
    agent: Agent,
    make_env: Callable[[], gym.Env[Any, Any]] | gym.Env[Any, Any] | str,
    n_episodes: int = 100,
    *,
    seed: int,
    n_envs: int = 25,
    deterministic: bool = True,
) -> Evaluation:
    """Roll `agent` out for `n_episodes` episodes in environments made by `make_env`.

    Episode j starts from a reset with a seed derived from (`seed`, j), so results do not depend on `n_envs` as long as
    an agent's action for one environment does not depend on the others. That holds with `deterministic=True`; otherwise
    every episode is a fresh draw. An environment that has finished takes the next episode; when none is left it is
    dropped, and its rows of the batch and of the agent's state with it.

    Args:
        agent: anything with Stable-Baselines3's `predict`. It receives observations with a leading axis of n running
            environments (dictionaries of such arrays for Dict spaces), its own state (a tuple of arrays with that
            leading axis, or None) and `episode_start` [n] bool.
        make_env: makes one environment whose episodes end (wrap it in `TimeLimit` where it does not end by itself), a
            new one at each call; or an id of Gymnasium's registry; or an environment, which then runs alone and is left
            open.
        n_episodes: number of episodes.
        seed: evaluation seed. The episodes' seeds are never below 2**31, so they differ from training seeds below that.
        n_envs: number of environments that run side by side.
        deterministic: passed to `predict`.

    Returns:
        an `Evaluation` with raw numbers; normalize them with `ld_agents.evaluation.scores`.

    Raises:
        ValueError: when `n_episodes` or `n_envs` is below one, `predict` returns a wrong number of actions, `make_env`
            returns one environment twice, actions or rewards are not finite, or the agent's spaces are not the
            environment's.
        TypeError: `make_env` is nothing that makes an environment.
    """
    if n_episodes < 1 or n_envs < 1:
        raise ValueError(f"n_episodes and n_envs must be at least 1, got {n_episodes} and {n_envs}")
    started = time.perf_counter()
    returns = np.zeros(n_episodes)
    lengths = np.zeros(n_episodes, dtype=np.int64)
    first_contact: list[int | None] = [None] * n_episodes
    successes: list[bool | None] = [None] * n_episodes
    call_seconds: list[float] = []

    envs = _environments(make_env, min(n_envs, n_episodes))
    try:
        has = [getattr(agent, name, None) for name in ("observation_space", "action_space", "observation_keys")]
        if not isinstance(has[0], spaces.Dict) or has[2]:  # other libraries' agents take dictionaries as they are
            check_env(envs[0], *has)
        episodes = list(range(len(envs)))  # the episode that each running environment is in
        next_episode = len(envs)
        running = list(envs)
        observations = [env.reset(seed=episode_seed(seed, j))[0] for env, j in zip(running, episodes, strict=True)]
        episode_start = np.ones(len(running), dtype=bool)
        state: State | None = None
        while running:
            called = time.perf_counter()
            actions, state = agent.predict(
                _stack(observations), state=state, episode_start=episode_start, deterministic=deterministic
            )
            call_seconds.append(time.perf_counter() - called)
            if len(actions) != len(running):
                raise ValueError(
                    f"predict returned {len(actions)} actions for {len(running)} environments; it must return one row "
                    "for each row of the observation"
                )
            if not np.isfinite(actions).all():
                raise ValueError("predict returned an action that is not finite: nothing is scored.")
            episode_start = np.zeros(len(running), dtype=bool)
            kept = []
            for i, (env, j) in enumerate(zip(running, episodes, strict=True)):
                observation, reward, terminated, truncated, info = env.step(actions[i])
                if not math.isfinite(reward):
                    raise ValueError(
                        f"The environment returned the reward {reward} in step {lengths[j] + 1} of the episode with "
                        f"reset seed {episode_seed(seed, j)}, for the action {actions[i]}. Repair the environment: "
                        "no return can be reported."
                    )
                returns[j] += float(reward)
                lengths[j] += 1
                if first_contact[j] is None and float(reward) > 0:
                    first_contact[j] = int(lengths[j])
                success = info.get("success", info.get("is_success"))
                if success is not None:
                    successes[j] = bool(successes[j]) or bool(success)
                if terminated or truncated:
                    if next_episode == n_episodes:
                        continue
                    episodes[i] = next_episode
                    observation = env.reset(seed=episode_seed(seed, next_episode))[0]
                    episode_start[i] = True
                    next_episode += 1
                observations[i] = observation
                kept.append(i)
            if len(kept) < len(running):
                running = [running[i] for i in kept]
                episodes = [episodes[i] for i in kept]
                observations = [observations[i] for i in kept]
                episode_start = episode_start[kept]
                state = None if state is None else tuple(part[kept] for part in state)
    finally:
        for env in envs:
            if env is not make_env:
                env.close()

    milliseconds = 1000 * np.array(call_seconds)
    return Evaluation(
        returns=returns.tolist(),
        lengths=lengths.tolist(),
        first_contact=first_contact,
        successes=successes,
        predict_ms={
            "median": float(np.median(milliseconds)),
            "p95": float(np.percentile(milliseconds, 95)),
            "per_action": float(milliseconds.sum() / lengths.sum()),
        },
        seconds=time.perf_counter() - started,
    )


def _environments(make_env: Any, n: int) -> list[gym.Env[Any, Any]]:
    if isinstance(make_env, gym.Env):
        return [make_env]
    if isinstance(make_env, str):
        return [EvalEnvSpec(make_env).make() for _ in range(n)]
    if not callable(make_env):
        raise TypeError(
            f"make_env is {make_env!r:.100}. Pass a function that makes an environment, an id of Gymnasium's registry, "
            "or one gymnasium.Env; of a vector environment, pass the function that makes its single ones."
        )
    envs = [make_env() for _ in range(n)]
    if len({id(env.unwrapped) for env in envs}) < n:
        raise ValueError(
            f"make_env returned the same environment more than once, but {n} run side by side. Make a new one at each "
            "call, for example lambda: gymnasium.make(...), or pass the environment itself."
        )
    return envs


def _stack(observations: Sequence[Any]) -> Observation:
    if isinstance(observations[0], dict):
        return {key: _stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)
