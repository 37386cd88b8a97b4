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
from ld_agents.data.frames import are_frames
from ld_agents.data.rewards import episode_ends
from ld_agents.data.space_rules import ACTION_TOLERANCE

Array = NDArray[Any]

NAMES = {
    "observations": ("observations", "observation", "obs"),
    "actions": ("actions", "action", "acts"),
    "rewards": ("rewards", "reward", "rews"),
    "terminals": ("terminals", "terminations", "terminated", "terminal"),
    "timeouts": ("timeouts", "truncations", "truncated"),
}
ALIASES = NAMES | {"next_observations": ("next_observations", "next_observation", "next_obs")}


def from_arrays(
    arrays: Mapping[str, Any],
    env: Any = None,
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Box | None = None,
) -> OfflineDataset:
    """Arrays of all steps by name; `next_observations`, if there, tells what follows the end of each episode.

    Observations in a dictionary, or with one row more than actions (what follows the last of them), do without timeouts
    if they are those of one episode. The row after a terminal or a timeout is taken for the first after a reset.

    Raises:
        ValueError: an array is missing, or has another length than the others.
    """
    found: dict[str, Any] = {name: _part(arrays, name) for name in NAMES}
    rows, actions = found["observations"], found["actions"]
    if isinstance(rows, Mapping) or (
        rows is not None and actions is not None and _length(rows) == _length(actions) + 1
    ):
        return from_episodes([arrays], env, goes_on=False)
    if missing := [name for name, array in found.items() if array is None]:
        raise ValueError(
            f"There is no {missing[0]!r} among the arrays. Give {', '.join(NAMES)}; without timeouts, as just-d4rl "
            "returns them, nothing tells where an episode ends. Add them: true in the last row of each episode that no "
            "terminal ends; or load D4RL's own file."
        )
    final = _part(arrays, "next_observations")
    if final is not None:
        lengths = {name: _length(array) for name, array in {**found, "next_observations": final}.items()}
        if len(set(lengths.values())) > 1 or not lengths["actions"]:
            told = ", ".join(f"{length} {name}" for name, length in lengths.items())
            raise ValueError(f"There are {told}. Give one row per step to each.")
        flags = [_flags(found[name], lengths[name]) for name in ("terminals", "timeouts")]
        final = np.asarray(final)[episode_ends(*flags) - 1]
    known: dict[str, Any] = {"observation_space": observation_space, "action_space": action_space, "env": env}
    return OfflineDataset(**found, final_observations=final, **known)


def from_episodes(episodes: Iterable[Any], env: Any = None, *, goes_on: bool = True) -> OfflineDataset:
    """Episodes of T steps: objects with attributes (Minari, d3rlpy, imitation) or dictionaries.

    Each has observations [T, S] or, with what follows the last step, [T + 1, S] (or a dictionary of such arrays),
    actions [T, A], rewards [T] or [T, 1], and terminals: [T], or one flag of its end. The end is a timeout otherwise.
    It may have timeouts, likewise, and next_observations [T, S]. A timeout before the last step divides an episode, and
    what followed that step is unknown without next_observations: the next row is the first after a reset. After a
    terminal before the last step recording goes on, unless `goes_on` is false: then a reset follows here, too.

    Raises:
        ValueError: a part is missing or has another length or shape; the message names the episode.
    """
    columns: dict[str, list[Array]] = {}
    keys: tuple[str, ...] | None = None
    space: spaces.Dict | None = None
    for i, episode in enumerate(episodes):
        which = f"Episode {i}"
        parts = {name: _part(episode, name) for name in ALIASES}
        if missing := [name for name in NAMES if parts[name] is None and name != "timeouts"]:
            raise ValueError(
                f"{which} has no {missing[0]}. Give each episode {', '.join(list(NAMES)[:-1])} as attributes or "
                "keys of a dictionary; one boolean is enough for terminals."
            )
        if not i and isinstance(parts["observations"], Mapping):
            keys = tuple(parts["observations"])
        if keys is not None:
            for name in ("observations", "next_observations"):
                if parts[name] is not None:
                    parts[name], space = _vectors(parts[name], keys, f"{which}: {name}")
        for name, rows in _checked(parts, which, goes_on).items():
            pieces = columns.setdefault(name, [])
            if pieces and rows.shape[1:] != pieces[0].shape[1:]:
                raise ValueError(
                    f"{which}: each of the {name} has shape {rows.shape[1:]}, those of episode 0 have "
                    f"{pieces[0].shape[1:]}. Give all episodes the same parts."
                )
            pieces.append(rows)
    if not columns:
        raise ValueError("The list holds no episodes. Give at least one.")
    joined: dict[str, Any] = {name: np.concatenate(pieces) for name, pieces in columns.items()}
    final, known, recordings = joined.pop("final"), joined.pop("known"), np.flatnonzero(joined.pop("stops")) + 1
    if not are_frames(final):
        final = np.where(known.reshape(-1, *[1] * (final.ndim - 1)), final, np.nan)
    elif not known.all():  # a frame cannot say that it is unknown
        final = None
    options = {"observation_space": None if env is not None else space, "observation_keys": keys, "env": env}
    return OfflineDataset(**joined, final_observations=final, recording_ends=recordings, **options)


def _checked(parts: dict[str, Any], which: str, goes_on: bool) -> dict[str, Array]:
    """The five arrays of an episode that messages call `which`, and what is known of its ends.

    Returns:
        `NAMES`, [T, ...] each; `stops` [T]: whether recording stops after a step; of the E ends that terminals and
        timeouts mark, `final` [E, ...], the observation after it, and `known` [E], whether it is one.
    """
    observations, actions, rewards = (_array(parts[name], f"{which}: {name}") for name in list(NAMES)[:3])
    rewards, n = rewards.reshape(-1), len(actions)
    terminals, timeouts = _flags(parts["terminals"], n), _flags(parts["timeouts"], n)
    if not n or len(observations) not in (n, n + 1) or {len(rewards), len(terminals), len(timeouts)} != {n}:
        raise ValueError(
            f"{which} has {len(observations)} observations, {n} actions, {len(rewards)} rewards and "
            f"{len(terminals)} terminals{f', {len(timeouts)} timeouts' if len(timeouts) != n else ''}. T steps need T "
            "of each, and T or T + 1 observations."
        )
    timeouts[-1] = True
    timeouts &= ~terminals
    ends = np.flatnonzero(terminals | timeouts)
    stops = timeouts | (terminals & (not goes_on))
    stops[-1] = True
    if parts["next_observations"] is None:
        final = observations[np.minimum(ends + 1, len(observations) - 1)]
        known = ~stops[ends]  # the row after a stop is the first after a reset
        known[-1] = len(observations) > n
    else:
        after = _array(parts["next_observations"], f"{which}: next_observations")
        if after.shape != (n, *observations.shape[1:]):
            raise ValueError(
                f"{which}: next_observations have shape {after.shape} instead of {(n, *observations.shape[1:])}. Give "
                "one row per step, shaped like the observations, or leave them out."
            )
        final, known = after[ends], np.ones(len(ends), bool)
    return {
        "observations": observations[:n],
        "actions": actions if actions.ndim > 1 else actions[:, None],
        "rewards": rewards,
        "terminals": terminals,
        "timeouts": timeouts,
        "stops": stops,
        "final": final,
        "known": known,
    }


def from_frame(frame: Any, env: Any = None) -> OfflineDataset:
    """A table with a row per step (pandas): a column per part, whose cells are arrays or numbers, or numbered ones.

    `observation_0`, `observation_1`, ... are the numbers of an observation, and so for actions and next observations.
    Cells that are frames, [h, w, C] uint8, stay frames. Episodes end where terminals or timeouts are set, and where the
    column `episode`, if there is one, changes.

    Raises:
        ValueError: a column is missing, or its cells have different shapes.
    """
    columns = [str(column) for column in frame.columns]
    found: dict[str, Array] = {}
    for name, aliases in ALIASES.items():
        for alias in aliases:
            numbered = sorted((c for c in columns if re.fullmatch(rf"{alias}_?\d+", c)), key=lambda c: _number(c))
            if alias in columns:
                cells = frame[alias].to_numpy()
                found[name] = _array(list(cells), f"The cells of column {alias!r}") if cells.dtype == object else cells
            elif numbered:
                found[name] = frame[numbered].to_numpy()
            if name in found:
                break
    for name in {"observations", "actions", "next_observations"} & set(found):
        if found[name].ndim == 1:
            found[name] = found[name][:, None]
    if "episode" in columns and "terminals" in found:
        numbers = frame["episode"].to_numpy()
        changes = np.append(numbers[1:] != numbers[:-1], True)
        ends = found.get("timeouts", np.zeros(len(frame))).astype(bool) | changes
        found["timeouts"] = ends & ~found["terminals"].astype(bool)
    if missing := [name for name in NAMES if name not in found]:
        raise ValueError(
            f"The frame has no {missing[0]!r}. Rename or add columns: it needs {', '.join(NAMES)}, or numbered ones "
            "(observation_0, observation_1, ...). A column episode, with the number of each row's episode, may stand "
            "in place of timeouts."
        )
    return from_arrays(found, env)


def from_replay_buffer(buffer: Any, env: Any = None) -> OfflineDataset:
    """Stable-Baselines3's `ReplayBuffer`: its flags of done include the timeouts, and environments stand side by side.

    SAC, TD3 and DDPG store actions scaled from the bounds of the action space to [-1, 1]; here they are in the
    environment's units again. Actions beyond [-1, 1] show that a buffer was filled by hand with raw ones, and all stay
    as they are. Raw actions that happen to lie within [-1, 1] cannot be told from scaled ones: pass their arrays to
    `OfflineDataset`. Images become frames with the channels last. Without `env` the spaces are those of the buffer.

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

    def states(array: Array) -> Array:
        rows = column(array)
        if are_frames(rows) and rows.shape[1] < min(rows.shape[2:]):  # channels first, as SB3's agents turn them
            return np.moveaxis(rows, 1, -1)
        return rows[:, None] if rows.ndim == 1 else rows

    timeouts = column(buffer.timeouts).astype(bool)
    terminals = column(buffer.dones).astype(bool) & ~timeouts
    timeouts |= (np.arange(len(timeouts)) % size == size - 1) & ~terminals
    actions, space = column(buffer.actions), getattr(buffer, "action_space", None)
    if space is not None and not isinstance(space, spaces.Box):
        raise TypeError(f"The buffer's actions are in {space}. Only continuous actions (spaces.Box) are supported.")
    known: dict[str, Any] = {}
    if isinstance(space, spaces.Box) and space.is_bounded():
        box = spaces.Box(space.low.reshape(-1), space.high.reshape(-1), dtype=space.dtype)
        if np.abs(actions).max() <= 1 + ACTION_TOLERANCE:  # scaled
            actions = np.clip(box.low + (actions + 1) / 2 * (box.high - box.low), box.low, box.high)
        known["action_space"] = box
    if isinstance(vectors := getattr(buffer, "observation_space", None), spaces.Box) and len(vectors.shape) == 1:
        known["observation_space"] = vectors
    arrays = {
        "observations": states(buffer.observations),
        "actions": actions,
        "rewards": column(buffer.rewards),
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": states(buffer.next_observations),
    }
    return from_arrays(arrays, env, **({} if env is not None else known))


def _part(episode: Any, name: str) -> Any:
    get = episode.get if isinstance(episode, Mapping) else lambda alias: getattr(episode, alias, None)
    return next((value for alias in ALIASES[name] if (value := get(alias)) is not None), None)


def _length(array: Any) -> int:
    """Rows of an array or a list; 0 for a single number."""
    return len(array) if getattr(array, "ndim", 1) else 0


def _array(rows: Any, what: str) -> Array:
    """Rows [T, ...] that messages call `what`."""
    try:
        of_arrays = isinstance(rows, list) and rows and isinstance(rows[0], np.ndarray)
        array = np.stack(rows) if of_arrays else np.asarray(rows)  # the first is much faster for images
    except ValueError:  # numpy's message does not tell where
        raise ValueError(f"{what} are rows of different shapes. Give rows of one shape.") from None
    if not array.ndim or array.dtype.kind not in "fiub":
        raise ValueError(f"{what} hold {array.dtype} values of shape {array.shape}. Give an array with a row per step.")
    return array


def _vectors(observations: Any, keys: tuple[str, ...], what: str) -> tuple[Array, spaces.Dict]:
    """Observations in a dictionary, which messages call `what`, concatenated to [T, S] float32, and their space."""
    if not isinstance(observations, Mapping) or not keys or set(observations) != set(keys):
        given = tuple(observations) if isinstance(observations, Mapping) else "an array"
        raise ValueError(f"{what} are {given} instead of a dictionary of {keys}. Give all episodes the same keys.")
    vectors = {key: _array(observations[key], f"{what}[{key!r}]") for key in keys}
    for key, rows in vectors.items():
        if rows.ndim != 2:
            todo = "Reshape them to [T, 1]" if rows.ndim == 1 else "Flatten them or leave them out"
            raise ValueError(f"{what}[{key!r}] have shape {rows.shape}, and only vectors [T, size] are read. {todo}.")
    if len({len(rows) for rows in vectors.values()}) > 1:
        lengths = ", ".join(f"{len(rows)} of {key!r}" for key, rows in vectors.items())
        raise ValueError(f"{what} have {lengths}. Give the same number of rows, T or T + 1, to all keys.")
    boxes: dict[str, spaces.Space[Any]] = {
        key: spaces.Box(-np.inf, np.inf, rows.shape[1:], np.float32) for key, rows in vectors.items()
    }
    return np.concatenate([rows.astype(np.float32) for rows in vectors.values()], axis=1), spaces.Dict(boxes)


def _flags(given: Any, n: int) -> NDArray[np.bool_]:
    """Flags of n steps, [n], of an array of them, of one for the last step, or of None."""
    flags = np.array(False if given is None else given).astype(bool).reshape(-1)
    return np.append(np.zeros(max(0, n - 1), bool), flags) if len(flags) == 1 else flags


def _number(column: str) -> int:
    return int(re.findall(r"\d+", column)[-1])
