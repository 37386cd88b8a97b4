"""Data that other tools hold in memory: dictionaries and tables of arrays, lists of episodes, replay buffers.

Their parts are found by name, `NAMES`: those of Gymnasium, Minari, d3rlpy, D4RL and imitation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.rewards import episode_ends

Array = NDArray[Any]

NAMES = {
    "observations": ("observations", "observation", "obs"),
    "actions": ("actions", "action", "acts"),
    "rewards": ("rewards", "reward", "rews"),
    "terminals": ("terminals", "terminations", "terminated", "terminal"),
    "timeouts": ("timeouts", "truncations", "truncated"),
}


def from_arrays(arrays: Mapping[str, Any], env: Any = None) -> OfflineDataset:
    """Arrays of all steps by name; `next_observations`, if there, tells what follows the end of each episode.

    Observations with one row more than actions, or in a dictionary, are those of one episode.

    Raises:
        ValueError: an array is missing.
    """
    found: dict[str, Any] = {name: _part(arrays, name) for name in NAMES}
    rows, actions = found["observations"], found["actions"]
    if isinstance(rows, Mapping) or (rows is not None and actions is not None and len(rows) == len(actions) + 1):
        return from_episodes([arrays], env)
    if missing := [name for name, array in found.items() if array is None]:
        raise ValueError(
            f"The dictionary has no {missing[0]!r}. It needs {', '.join(NAMES)}; without timeouts, as just-d4rl "
            "returns it, nothing tells where an episode ends: load D4RL's own file instead."
        )
    final = arrays.get("next_observations")
    if final is not None:
        flags = [np.asarray(found[name]).astype(bool) for name in ("terminals", "timeouts")]
        final = np.asarray(final)[episode_ends(*flags) - 1]
    return OfflineDataset(**found, final_observations=final, env=env)


def from_episodes(episodes: Iterable[Any], env: Any = None) -> OfflineDataset:
    """Episodes of T steps: objects with attributes (Minari, d3rlpy, imitation) or dictionaries.

    Each has observations [T, S] or, with what follows the last step, [T + 1, S] (or a dictionary of such arrays),
    actions [T, A], rewards [T] or [T, 1], and terminals: [T], or one flag of its end. The end is a timeout otherwise.

    Raises:
        ValueError: a part is missing or has another length; the message names the episode.
    """
    columns: dict[str, list[Array]] = {name: [] for name in (*NAMES, "after")}
    keys: tuple[str, ...] | None = None
    space: spaces.Dict | None = None
    for i, episode in enumerate(episodes):
        parts = {name: _part(episode, name) for name in NAMES}
        if missing := [name for name in NAMES if parts[name] is None and name != "timeouts"]:
            raise ValueError(
                f"Episode {i} has no {missing[0]}. Give each episode {', '.join(list(NAMES)[:-1])} as attributes or "
                "keys of a dictionary; one boolean is enough for terminals."
            )
        observations = parts["observations"]
        if isinstance(observations, Mapping):
            keys = keys or tuple(observations)
            vectors = {key: np.asarray(observations[key], np.float32) for key in keys}
            space = spaces.Dict({k: spaces.Box(-np.inf, np.inf, v.shape[1:], np.float32) for k, v in vectors.items()})
            observations = np.concatenate(list(vectors.values()), axis=1)
        observations, actions = np.asarray(observations), np.asarray(parts["actions"])
        rewards, n = np.asarray(parts["rewards"]).reshape(-1), len(actions)
        terminals = np.asarray(parts["terminals"]).astype(bool).reshape(-1)
        if len(terminals) == 1:
            terminals = np.append(np.zeros(max(0, n - 1), bool), terminals)
        if not n or len(observations) not in (n, n + 1) or {len(rewards), len(terminals)} != {n}:
            raise ValueError(
                f"Episode {i} has {len(observations)} observations, {n} actions, {len(rewards)} rewards and "
                f"{len(terminals)} terminals. T steps need T of each, and T or T + 1 observations."
            )
        unknown = np.full((n + 1 - len(observations), *observations.shape[1:]), np.nan)
        ends = np.arange(n) == n - 1
        columns["observations"].append(observations[:n])
        columns["after"].append(np.concatenate([observations[1:], unknown]) if len(unknown) else observations[1:])
        columns["actions"].append(actions if actions.ndim > 1 else actions[:, None])
        columns["rewards"].append(rewards)
        columns["terminals"].append(terminals)
        columns["timeouts"].append(ends & ~terminals)
    if not columns["actions"]:
        raise ValueError("The list holds no episodes. Give at least one.")
    joined: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
    final = joined.pop("after")[episode_ends(joined["terminals"], joined["timeouts"]) - 1]
    recordings = np.cumsum([len(rewards) for rewards in columns["rewards"]])
    known = {"observation_space": None if env is not None else space, "observation_keys": keys, "env": env}
    return OfflineDataset(**joined, final_observations=final, recording_ends=recordings, **known)


def from_frame(frame: Any, env: Any = None) -> OfflineDataset:
    """A table with a row per step (pandas): a column per part, whose cells are arrays or numbers, or numbered ones.

    `observation_0`, `observation_1`, ... are the numbers of an observation, and so for actions. Episodes end where
    terminals or timeouts are set, and where the column `episode`, if there is one, changes.
    """
    columns = [str(column) for column in frame.columns]
    found: dict[str, Array] = {}
    for name, aliases in NAMES.items():
        for alias in aliases:
            numbered = sorted((c for c in columns if re.fullmatch(rf"{alias}_?\d+", c)), key=lambda c: _number(c))
            if alias in columns:
                cells = frame[alias].to_numpy()
                found[name] = np.stack(list(cells)) if cells.dtype == object else cells
            elif numbered:
                found[name] = frame[numbered].to_numpy()
            if name in found:
                break
    for name in {"observations", "actions"} & set(found):
        found[name] = found[name].reshape(len(frame), -1)
    if "episode" in columns and "terminals" in found:
        numbers = frame["episode"].to_numpy()
        changes = np.append(numbers[1:] != numbers[:-1], True)
        ends = found.get("timeouts", np.zeros(len(frame))).astype(bool) | changes
        found["timeouts"] = ends & ~found["terminals"].astype(bool)
    return from_arrays(found, env)


def from_replay_buffer(buffer: Any, env: Any = None) -> OfflineDataset:
    """Stable-Baselines3's `ReplayBuffer`: its flags of done include the timeouts, and environments stand side by side.

    Raises:
        ValueError: the buffer is empty, or holds dictionaries, or no next observations.
    """
    size = buffer.buffer_size if buffer.full else buffer.pos
    whole = isinstance(buffer.observations, np.ndarray) and getattr(buffer, "next_observations", None) is not None
    if not size or not whole or getattr(buffer, "optimize_memory_usage", False):
        raise ValueError(
            "This replay buffer is empty, holds dictionaries, or was made with optimize_memory_usage=True. Pass its "
            "arrays to OfflineDataset, one episode after the other."
        )
    order = (np.arange(size) + (buffer.pos if buffer.full else 0)) % buffer.buffer_size

    def column(array: Array) -> Array:
        """[size, n, ...] -> [n * size, ...]: one environment after the other."""
        flat = array[order].swapaxes(0, 1)
        return flat.reshape(-1, *flat.shape[2:])

    timeouts = column(buffer.timeouts).astype(bool)
    terminals = column(buffer.dones).astype(bool) & ~timeouts
    timeouts |= (np.arange(len(timeouts)) % size == size - 1) & ~terminals
    found = {
        name: column(getattr(buffer, name)) for name in ("observations", "actions", "rewards", "next_observations")
    }
    found["observations"], found["next_observations"] = (
        found[name].reshape(len(timeouts), -1) for name in ("observations", "next_observations")
    )
    return from_arrays({**found, "terminals": terminals, "timeouts": timeouts}, env)


def _part(episode: Any, name: str) -> Any:
    get = episode.get if isinstance(episode, Mapping) else lambda alias: getattr(episode, alias, None)
    return next((value for alias in NAMES[name] if (value := get(alias)) is not None), None)


def _number(column: str) -> int:
    return int(re.findall(r"\d+", column)[-1])
