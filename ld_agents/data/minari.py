"""Minari data sets as flat arrays, and evaluation environments that run no code named by the data."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from ld_agents.data import families, hdf5
from ld_agents.data.dataset import DatasetInfo, OfflineDataset, Provenance
from ld_agents.data.storage import is_local
from ld_agents.evaluation.eval_env import EvalEnvSpec, FixedGoal, hub_environment
from ld_agents.evaluation.scores import REFERENCE_SCORES

_CACHE_NAME = ".ld-agents-arrays.npz"
_CACHE_FORMAT = 2
_GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
_LARGEST_SPACE = 1_000_000  # numbers
_GOAL_SEEDS = (0, 1, 2, 3)


def load_minari(
    dataset_id: str, *, goal: Literal["relabel", "keep"] = "relabel", download: bool = True
) -> OfflineDataset:
    """Load a Minari data set: the local copy if there is one, else from the hub.

    The arrays are kept in a flat cache beside the data, so that later loads do not visit every episode again.
    Episodes may store T or T+1 observations for T actions; with T, the observation after a truncated episode's last
    action is unknown and no window ends there.

    Args:
        dataset_id: for instance ``"D4RL/pointmaze/umaze-v2"``.
        goal: see :func:`ld_agents.load_dataset`.
        download: whether the hub may be asked.

    Raises:
        FileNotFoundError: not here, and not to be had from the hub.
        ValueError: a malformed id or malformed data; the message names the episode.
        ImportError: the evaluation environment needs a package that is not installed.
    """
    from minari.dataset.minari_dataset import DATASET_ID_RE
    from minari.storage.datasets_root_dir import get_dataset_path

    match = DATASET_ID_RE.fullmatch(dataset_id)
    if match is None or match.group("version") is None:
        raise ValueError(
            f"{dataset_id!r} is not a Minari id. Ids look like D4RL/pointmaze/umaze-v2: letters, digits, - and _, and "
            "a version at the end. For a D4RL file give a path that ends in .hdf5."
        )
    if not is_local(dataset_id):
        _download(dataset_id, download)
    data = Path(get_dataset_path(dataset_id)) / "data"
    metadata = _read_metadata(dataset_id, data)
    ours = metadata.get("ld_agents")
    observation_space, action_space = _checked_spaces(dataset_id, metadata)
    eval_env = EvalEnvSpec.from_json(metadata.get("eval_env_spec") or metadata.get("env_spec"))
    if not isinstance(ours, dict):
        eval_env = hub_environment(dataset_id, eval_env)
    arrays = _flat_arrays(dataset_id, data, metadata, observation_space, action_space)

    rewards, terminals, ends = arrays["rewards"], arrays["terminals"], arrays["ends"]
    keys: tuple[str, ...] | None = None
    space: spaces.Space[Any] = observation_space
    observations, final = arrays["observation"], arrays["final_observation"]
    if isinstance(observation_space, spaces.Dict):
        keys = families.rules(dataset_id).observation
        if _holds_tasks(observation_space):
            # Kitchen: the goal is a dictionary of tasks, the same in every episode.
            if goal == "keep":
                raise ValueError(
                    f'The goals of {dataset_id} are dictionaries and cannot be appended. Use goal="relabel".'
                )
            if _counts_tasks(metadata):
                last_rows = np.isin(np.arange(len(rewards)), ends - 1)
                rewards, terminals = families.newly_done(rewards, last_rows | terminals, before_action=False)
        elif goal == "keep":
            keys = (*keys, "desired_goal")
        else:
            eval_env, rewards, terminals = _relabel(dataset_id, eval_env, arrays["next_achieved_goal"], terminals)
        observations = np.concatenate([arrays[key] for key in keys], axis=1)
        final = np.concatenate([arrays[f"final_{key}"] for key in keys], axis=1)
        if goal == "relabel":
            boxes = [observation_space[key] for key in keys]
            low, high = (np.concatenate([getattr(box, end) for box in boxes]) for end in ("low", "high"))
            space = spaces.Box(low, high, dtype=low.dtype.type)
    timeouts = np.zeros(len(rewards), dtype=bool)
    timeouts[ends - 1] = True
    final = _final_after_splits(observations, final, ends, np.flatnonzero(terminals | timeouts) + 1)
    return OfflineDataset(
        observations,
        arrays["actions"],
        rewards,
        terminals,
        timeouts,
        space,
        action_space,
        final_observations=final,
        observation_keys=keys,
        info=_info(dataset_id, metadata, eval_env),
    )


def _info(dataset_id: str, metadata: dict[str, Any], eval_env: EvalEnvSpec | None) -> DatasetInfo:
    """What the metadata tell about the data; values of the wrong kind count as missing."""
    ours = metadata.get("ld_agents")
    ours = ours if isinstance(ours, dict) else {}
    check, controller = ours.get("replay_check"), ours.get("controller")
    made: dict[str, Provenance] = {"regenerated": "regenerated", "stand-in": "stand-in", "recorded": "recorded"}
    stored = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    numbers = [float(x) for x in stored if isinstance(x, int | float) and math.isfinite(x)]
    reference = (numbers[0], numbers[1]) if len(numbers) == 2 else None
    if reference is None and not ours and dataset_id in REFERENCE_SCORES:
        reference = REFERENCE_SCORES[dataset_id].minimum, REFERENCE_SCORES[dataset_id].maximum
    return DatasetInfo(
        id=dataset_id,
        provenance=made.get(str(ours.get("provenance")), "hub"),
        description=str(metadata.get("description", "")),
        eval_env=eval_env,
        reference_scores=reference,
        replay_check=check if isinstance(check, dict) else None,
        controller=controller if isinstance(controller, dict) else None,
    )


def _holds_tasks(space: spaces.Dict) -> bool:
    return isinstance(space.spaces["desired_goal"], spaces.Dict)


def _counts_tasks(metadata: dict[str, Any]) -> bool:
    """Whether a recording of Kitchen was paid in every step for each task that is done."""
    recorded = EvalEnvSpec.from_json(metadata.get("env_spec"))
    return recorded is not None and recorded.kwargs.get("remove_task_when_completed") is False


# -- finding the data ----------------------------------------------------------------------------------------------


def _download(dataset_id: str, allowed: bool) -> None:
    from minari.storage.datasets_root_dir import get_dataset_path

    folder = get_dataset_path()
    if dataset_id.startswith("ld-agents/"):
        raise FileNotFoundError(
            f"The data set {dataset_id} is not in {folder}. Make it: python benchmarks/make_datasets.py {dataset_id}"
        )
    get_it = (
        f"Run `minari download {dataset_id}` on a machine that reaches the hub and copy the folder, or set "
        f"MINARI_DATASETS_PATH to the folder that holds it."
    )
    if not allowed:
        raise FileNotFoundError(
            f"The data set {dataset_id} is not in {folder}, and download=False. Call with download=True, or: {get_it}"
        )
    import minari

    # The hub's client retries for half a minute and logs every try; one message at the end is enough.
    with contextlib.suppress(ImportError):
        importlib.import_module("huggingface_hub.utils.logging")
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        minari.download_dataset(dataset_id)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise FileNotFoundError(
            f"The data set {dataset_id} is not in {folder}, and Minari's hub did not deliver it "
            f"({type(error).__name__}: {reason}). Check the id with `minari list remote`. {get_it}"
        ) from None
    finally:
        logger.setLevel(level)
    if not is_local(dataset_id):
        raise FileNotFoundError(f"Minari reported no error, but {dataset_id} is still not in {folder}. {get_it}")


def _read_metadata(dataset_id: str, data: Path) -> dict[str, Any]:
    # Minari's own reader builds the environment that the file names when a space is missing; this one never does.
    again = f"Delete {data.parent} and fetch {dataset_id} again."
    try:
        metadata = json.loads((data / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{data / 'metadata.json'} is not JSON ({error}). {again}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{data / 'metadata.json'} is not a JSON object. {again}")
    return metadata


def _checked_spaces(dataset_id: str, metadata: dict[str, Any]) -> tuple[spaces.Box | spaces.Dict, spaces.Box]:
    from minari.serialization import deserialize_space

    found: list[spaces.Space[Any]] = []
    for name in ("observation_space", "action_space"):
        if name not in metadata:
            raise ValueError(
                f"The metadata of {dataset_id} hold no {name}. Store the data set again with Minari 0.5, which "
                "writes it."
            )
        try:
            description = metadata[name]
            description = json.loads(description) if isinstance(description, str) else description
            if _size_of_space(description) > _LARGEST_SPACE:
                raise ValueError(f"it claims more than {_LARGEST_SPACE:,} numbers")
            found.append(deserialize_space(description))
        except (Exception, RecursionError) as error:
            raise ValueError(
                f"The {name} in the metadata of {dataset_id} cannot be read ({type(error).__name__}: {error}). Store "
                "the data set again with Minari 0.5."
            ) from None
    observation_space, action_space = found
    if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
        raise TypeError(
            f"{dataset_id} has actions in {action_space}. Only flat continuous ones (Box) are supported. Choose "
            "a data set with such actions."
        )
    if isinstance(observation_space, spaces.Dict):
        missing = [key for key in _GOAL_KEYS if key not in observation_space.spaces]
        if missing:
            raise ValueError(
                f"{dataset_id} has dictionary observations with keys {tuple(observation_space.spaces)}, but no "
                f"{missing[0]!r}. Only goal dictionaries (observation, achieved_goal, desired_goal) are read. Take the "
                "parts you need with Minari and pass them to OfflineDataset(observations, actions, ...)."
            )
        boxes = [observation_space.spaces[key] for key in _read_keys(observation_space)]
    else:
        boxes = [observation_space]
    for box in boxes:
        if not isinstance(box, spaces.Box) or len(box.shape) != 1:
            raise TypeError(
                f"{dataset_id} has observations in {box}. Only flat vectors (Box with one axis) are read. Flatten them "
                "yourself and pass them to OfflineDataset(observations, actions, ...)."
            )
    assert isinstance(observation_space, (spaces.Box, spaces.Dict))
    return observation_space, action_space


def _size_of_space(description: Any) -> int:
    """Numbers that a space of the metadata would hold in memory, from the shapes that it names."""
    if isinstance(description, list):
        return sum(_size_of_space(part) for part in description)
    if not isinstance(description, dict):
        return 0
    shape = description.get("shape", [])
    return math.prod(shape) + sum(_size_of_space(part) for name, part in description.items() if name != "shape")


def _read_keys(space: spaces.Dict) -> tuple[str, ...]:
    """The parts of a goal dictionary that are read; goals that are dictionaries themselves are not."""
    return ("observation",) if _holds_tasks(space) else _GOAL_KEYS


# -- reading -------------------------------------------------------------------------------------------------------


def _flat_arrays(
    dataset_id: str,
    data: Path,
    metadata: dict[str, Any],
    observation_space: spaces.Box | spaces.Dict,
    action_space: spaces.Box,
) -> dict[str, np.ndarray]:
    """All episodes as flat arrays, from the cache where it fits the files."""
    stamp = hashlib.sha256(f"format {_CACHE_FORMAT}\n".encode())
    for file in sorted(data.rglob("*")):
        try:
            status = file.stat()
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({error}). Delete {data.parent} and fetch it again.") from None
        stamp.update(f"{file.relative_to(data)} {status.st_size} {status.st_mtime_ns}\n".encode())
    key = np.frombuffer(stamp.digest(), dtype=np.uint8)
    cache = data.parent / _CACHE_NAME
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if np.array_equal(stored["key"], key):
                return dict(stored)
    except Exception:
        pass  # no cache, or one that is damaged in whatever way: it is written again below
    episodes = _hdf5_episodes if metadata.get("data_format") == "hdf5" else _minari_episodes
    arrays = _assemble(
        dataset_id,
        episodes(dataset_id, data, observation_space),
        observation_space,
        action_space,
        metadata.get("total_episodes"),
    )
    # A read-only folder only means that the next load visits every episode again.
    with contextlib.suppress(OSError):
        partial = cache.with_name(f"{_CACHE_NAME}.{os.getpid()}.partial")
        try:
            with open(partial, "wb") as out:
                np.savez(out, allow_pickle=False, key=key, **arrays)
            os.replace(partial, cache)
        finally:
            partial.unlink(missing_ok=True)
    return arrays


def _hdf5_episodes(
    dataset_id: str, data: Path, observation_space: spaces.Box | spaces.Dict
) -> Iterator[dict[str, np.ndarray]]:
    """Episodes of main_data.hdf5 in order, only the arrays that are needed, through h5py's low-level calls."""
    from h5py import h5s

    # name -> number of axes and type
    wanted = {"actions": (2, "<f4"), "rewards": (1, "<f4"), "terminations": (1, "?")}
    if isinstance(observation_space, spaces.Dict):
        for key in _read_keys(observation_space):
            wanted[f"observations/{key}"] = (2, "<f8" if key == "achieved_goal" else "<f4")
    else:
        wanted["observations"] = (2, "<f4")
    again = f"Delete {data.parent} and fetch or make {dataset_id} again."
    with hdf5.open_file(data / "main_data.hdf5", again) as file:
        try:
            episodes = len(file)
        except Exception as error:
            raise ValueError(f"The episodes of {dataset_id} cannot be listed ({error}). {again}") from None
        for index in range(episodes):
            episode = {}
            for name, (axes, dtype) in wanted.items():
                item = hdf5.open_array(file, f"episode_{index}/{name}", axes, again)
                if item is None:
                    raise ValueError(f"Episode {index} of {dataset_id} has no {name}. {again}")
                try:
                    kind = item.dtype
                    array: np.ndarray = np.empty(
                        item.shape, bool if kind.kind == "b" else kind if dtype == "?" else dtype
                    )
                    item.read(h5s.ALL, h5s.ALL, array)
                except Exception as error:
                    raise ValueError(
                        f"Episode {index} of {dataset_id}: {name} cannot be read ({error}). {again}"
                    ) from None
                episode[name.rpartition("/")[2]] = array
            yield episode


def _minari_episodes(
    dataset_id: str, data: Path, observation_space: spaces.Box | spaces.Dict
) -> Iterator[dict[str, np.ndarray]]:
    """Episodes through Minari's own reader, for its other storage formats."""
    from minari.dataset.minari_storage import MinariStorage

    try:
        storage = MinariStorage.read(data)
        for episode in storage.get_episodes(range(storage.total_episodes)):
            found = {name: np.asarray(episode[name]) for name in ("actions", "rewards", "terminations")}
            if isinstance(observation_space, spaces.Dict):
                found |= {key: np.asarray(episode["observations"][key]) for key in _read_keys(observation_space)}
            else:
                found["observations"] = np.asarray(episode["observations"])
            yield found
    except Exception as error:
        raise ValueError(
            f"{dataset_id} cannot be read ({type(error).__name__}: {error}). Delete {data.parent} and fetch or make it "
            "again."
        ) from None


def _assemble(
    dataset_id: str,
    episodes: Iterable[dict[str, np.ndarray]],
    observation_space: spaces.Box | spaces.Dict,
    action_space: spaces.Box,
    expected: Any,
) -> dict[str, np.ndarray]:
    """Check every episode and join them."""
    if isinstance(observation_space, spaces.Dict):
        sizes = {key: observation_space[key].shape for key in _read_keys(observation_space)}
    else:
        sizes = {"observations": observation_space.shape}
    row_shapes: dict[str, Any] = {**sizes, "actions": action_space.shape, "rewards": (), "terminations": ()}
    rows: dict[str, list[np.ndarray]] = {}
    lengths: list[int] = []

    def put(name: str, array: np.ndarray) -> None:
        rows.setdefault(name, []).append(array)

    for index, episode in enumerate(episodes):
        steps = len(episode["rewards"])
        if steps == 0:
            raise ValueError(
                f"Episode {index} of {dataset_id} is empty (0 steps). Leave it out: "
                "dataset.filter_episodes(lambda e: len(e.rewards) > 0), and store the rest under a new id."
            )
        for name, array in episode.items():
            if array.shape[1:] != tuple(row_shapes[name]):
                raise ValueError(
                    f"Episode {index} of {dataset_id}: {name} have rows of shape {array.shape[1:]}, the space says "
                    f"{tuple(row_shapes[name])}. Store the data set again with the right spaces."
                )
            allowed = (steps, steps + 1) if name in sizes else (steps,)
            if len(array) not in allowed:
                raise ValueError(
                    f"Episode {index} of {dataset_id} has {steps} rewards but {len(array)} {name}; expected "
                    f"{' or '.join(map(str, allowed))}. Repair or leave out the episode and store the data set again."
                )
        lengths.append(steps)
        put("actions", episode["actions"])
        put("rewards", episode["rewards"])
        flags = episode["terminations"]
        if not ((flags == 0) | (flags == 1)).all():
            raise ValueError(
                f"Episode {index} of {dataset_id} has terminations other than 0 and 1. Repair or leave out the episode "
                "and store the data set again."
            )
        put("terminals", flags != 0)
        for name in sizes:
            array = episode[name]
            has_final = len(array) > steps
            last = array[steps:] if has_final else np.full_like(array[:1], np.nan, dtype=np.float64)
            if has_final and not np.isfinite(last).all():
                raise ValueError(
                    f"Episode {index} of {dataset_id}: the observation after step {steps - 1}, the last, is not "
                    "finite. Leave out the episode and store the data set again."
                )
            key = "observation" if name == "observations" else name
            put(key, array[:steps])
            put(f"final_{key}", last)
            if name == "achieved_goal":
                if not np.isfinite(array).all():
                    raise ValueError(
                        f"Episode {index} of {dataset_id} has achieved goals that are not finite. Leave out the "
                        "episode and store the data set again."
                    )
                # Without a final observation the last one stands in: no window reads that reward unless it is terminal.
                put("next_achieved_goal", array[1:] if has_final else np.concatenate([array[1:], array[-1:]]))
    if len(lengths) != expected or not lengths:
        raise ValueError(
            f"{dataset_id} holds {len(lengths)} episodes, its metadata say {expected}. Delete its folder and fetch or "
            "make it again."
        )
    types = {"terminals": bool, "next_achieved_goal": np.float64}
    arrays = {
        name: np.concatenate(parts).astype(types.get(name, np.float32), copy=False) for name, parts in rows.items()
    }
    arrays["ends"] = np.cumsum(lengths, dtype=np.int64)
    return arrays


def _final_after_splits(
    observations: np.ndarray, final: np.ndarray, ends: np.ndarray, new_ends: np.ndarray
) -> np.ndarray:
    """Final observations [E', S] after terminals inside episodes cut them into more, shorter ones."""
    if len(new_ends) == len(ends):
        return final
    result: np.ndarray = observations[np.minimum(new_ends, len(observations) - 1)]
    result[np.searchsorted(new_ends, ends)] = final
    return result


# -- goals ---------------------------------------------------------------------------------------------------------


def _relabel(
    dataset_id: str, eval_env: EvalEnvSpec | None, next_achieved: np.ndarray, terminals: np.ndarray
) -> tuple[EvalEnvSpec, np.ndarray, np.ndarray]:
    """Rewards (and terminals, if the task ends at its goal) for the evaluation environment's one goal."""
    if eval_env is None:
        raise ValueError(f'{dataset_id} names no evaluation environment to take the goal from. Use goal="keep".')
    env = eval_env.make()
    try:
        unwrapped: Any = env.unwrapped
        goal = _fixed_goal(dataset_id, env)
        try:
            rewards = np.asarray(unwrapped.compute_reward(next_achieved, goal, {}), dtype=np.float32)
        except Exception as error:
            raise ValueError(
                f"The evaluation environment of {dataset_id} ({eval_env.id}) cannot compute rewards for its goals "
                f'({type(error).__name__}: {error}). Use goal="keep".'
            ) from None
        if rewards.shape != (len(next_achieved),):
            raise ValueError(
                f"The evaluation environment of {dataset_id} ({eval_env.id}) cannot compute the rewards of "
                'many steps at once. Use goal="keep".'
            )
        if not getattr(unwrapped, "continuing_task", True):
            if getattr(unwrapped, "reward_type", "sparse") != "sparse":
                raise ValueError(
                    f"The evaluation environment of {dataset_id} ends at its goal and pays a dense reward, which "
                    'cannot be relabelled. Use goal="keep".'
                )
            terminals = rewards > 0
        if hasattr(unwrapped, "maze"):
            eval_env = replace(eval_env, goal=tuple(goal.tolist()))
        return eval_env, rewards, terminals
    finally:
        env.close()


def _fixed_goal(dataset_id: str, env: gym.Env[Any, Any]) -> np.ndarray:
    if isinstance(env, FixedGoal):
        return np.array(env.goal, dtype=np.float64)
    # A maze with one goal cell puts the goal there, jittered by up to a quarter of a cell. D4RL's goal is the centre.
    maze = getattr(env.unwrapped, "maze", None)
    cells: list[Any] = getattr(maze, "unique_goal_locations", [])
    if len(cells) == 1:
        return np.asarray(cells[0], dtype=np.float64)
    try:
        goals = [np.asarray(env.reset(seed=seed)[0]["desired_goal"], dtype=np.float64) for seed in _GOAL_SEEDS]
    except Exception as error:
        raise ValueError(
            f'The evaluation environment of {dataset_id} names no goal ({type(error).__name__}). Use goal="keep".'
        ) from None
    if not all(np.array_equal(goals[0], other) for other in goals):
        raise ValueError(
            f"The evaluation environment of {dataset_id} draws a new goal in every episode, so rewards cannot be "
            'relabelled for one goal. Use goal="keep".'
        )
    return goals[0]
