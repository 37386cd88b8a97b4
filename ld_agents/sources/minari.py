"""Minari data sets as flat arrays, and evaluation environments that run no code named by the data."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from ld_agents.dataset import DatasetInfo, OfflineDataset
from ld_agents.sources.pointmaze import FixedGoal, register_robotics

_CACHE_NAME = ".ld-agents-arrays.npz"
_CACHE_FORMAT = 1
_GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
_GOAL_SEEDS = (0, 1, 2, 3)
_FIXED_GOAL = "ld_agents.sources.pointmaze:FixedGoal"


def is_local(dataset_id: str) -> bool:
    """Whether the data set lies in the local Minari folder."""
    from minari.storage.datasets_root_dir import get_dataset_path

    return (Path(get_dataset_path(dataset_id)) / "data" / "metadata.json").is_file()


def load_minari(
    dataset_id: str, *, goal: Literal["relabel", "keep"] = "relabel", download: bool = True
) -> OfflineDataset:
    """Load a Minari data set: the local copy if there is one, else from the hub.

    The arrays are kept in a flat cache beside the data, so that later loads do not visit every episode again.
    Episodes may store T or T+1 observations for T actions; with T, the observation after a truncated episode's last
    action is unknown and no window ends there.

    Args:
        dataset_id: for instance ``"D4RL/pointmaze/umaze-v2"``.
        goal: see :func:`ld_agents.sources.load_dataset`.
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
    observation_space, action_space = _checked_spaces(dataset_id, metadata)
    eval_env = _eval_spec(metadata)
    arrays = _flat_arrays(dataset_id, data, metadata, observation_space, action_space)

    observations, final = arrays["observation"], arrays["final_observation"]
    rewards, terminals, ends = arrays["rewards"], arrays["terminals"], arrays["ends"]
    keys: tuple[str, ...] | None = None
    space: spaces.Space[Any] = observation_space
    if isinstance(observation_space, spaces.Dict):
        if goal == "keep":
            keys = ("observation", "desired_goal")
            observations = np.concatenate([observations, arrays["desired_goal"]], axis=1)
            final = np.concatenate([final, arrays["final_desired_goal"]], axis=1)
        else:
            keys = ("observation",)
            space = observation_space["observation"]
            eval_env, rewards, terminals = _relabel(dataset_id, eval_env, arrays["next_achieved_goal"], terminals)
    timeouts = np.zeros(len(rewards), dtype=bool)
    timeouts[ends - 1] = True
    final = _final_after_splits(observations, final, ends, np.flatnonzero(terminals | timeouts) + 1)

    ours = metadata.get("ld_agents")
    ours = ours if isinstance(ours, dict) else {}
    reference = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    info = DatasetInfo(
        id=dataset_id,
        provenance="regenerated" if ours.get("provenance") == "regenerated" else "hub",
        description=str(metadata.get("description", "")),
        eval_env=eval_env,
        reference_scores=None if None in reference else (float(reference[0]), float(reference[1])),  # type: ignore[arg-type]
        replay_check=ours.get("replay_check"),
        controller=ours.get("controller"),
    )
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
        info=info,
    )


# -- finding the data ----------------------------------------------------------------------------------------------


def _download(dataset_id: str, allowed: bool) -> None:
    from minari.storage.datasets_root_dir import get_dataset_path

    folder = get_dataset_path()
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
        metadata = json.loads((data / "metadata.json").read_text())
    except ValueError as error:
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
            found.append(deserialize_space(metadata[name]))
        except Exception as error:
            raise ValueError(
                f"The {name} in the metadata of {dataset_id} cannot be read ({type(error).__name__}: {error}). Store "
                "the data set again with Minari 0.5."
            ) from None
    observation_space, action_space = found
    if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
        raise TypeError(f"{dataset_id} has actions in {action_space}. Only flat continuous ones (Box) are supported.")
    if isinstance(observation_space, spaces.Dict):
        missing = [key for key in _GOAL_KEYS if key not in observation_space.spaces]
        if missing:
            raise ValueError(
                f"{dataset_id} has dictionary observations with keys {tuple(observation_space.spaces)}, but no "
                f"{missing[0]!r}. Only goal dictionaries (observation, achieved_goal, desired_goal) are read. Take the "
                "parts you need with Minari and pass them to OfflineDataset(observations, actions, ...)."
            )
        boxes = [observation_space.spaces[key] for key in _GOAL_KEYS]
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
        status = file.stat()
        stamp.update(f"{file.relative_to(data)} {status.st_size} {status.st_mtime_ns}\n".encode())
    key = np.frombuffer(stamp.digest(), dtype=np.uint8)
    cache = data.parent / _CACHE_NAME
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if np.array_equal(stored["key"], key):
                return dict(stored)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # no cache, or a damaged one: it is written again below
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
    import h5py

    wanted = {"actions": "<f4", "rewards": "<f4", "terminations": "?"}
    if isinstance(observation_space, spaces.Dict):
        wanted |= {f"observations/{key}": "<f8" if key == "achieved_goal" else "<f4" for key in _GOAL_KEYS}
    else:
        wanted["observations"] = "<f4"
    path = data / "main_data.hdf5"
    try:
        file = h5py.File(path, "r")
    except OSError:
        raise ValueError(
            f"{path} is not a readable HDF5 file. Delete {data.parent} and fetch {dataset_id} again."
        ) from None
    with file:
        for index in range(len(file)):
            episode = {}
            for name, dtype in wanted.items():
                try:
                    item = h5py.h5d.open(file.id, f"episode_{index}/{name}".encode())
                    if item.dtype.kind not in "fiub":
                        raise ValueError(f"{item.dtype} is not a number")
                    if item.dtype.kind == "b":
                        array: np.ndarray = np.empty(item.shape, bool)
                    else:
                        array = np.empty(item.shape, item.dtype if dtype == "?" else dtype)
                    item.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
                except (KeyError, OSError, ValueError, TypeError) as error:
                    raise ValueError(
                        f"Episode {index} of {dataset_id}: {name} cannot be read ({error}). Delete {data.parent} and "
                        "fetch or make the data set again."
                    ) from None
                episode[name.rpartition("/")[2]] = array
            yield episode


def _minari_episodes(
    dataset_id: str, data: Path, observation_space: spaces.Box | spaces.Dict
) -> Iterator[dict[str, np.ndarray]]:
    """Episodes through Minari's own reader, for its other storage formats."""
    from minari.dataset.minari_storage import MinariStorage

    storage = MinariStorage.read(data)
    for episode in storage.get_episodes(range(storage.total_episodes)):
        found = {name: np.asarray(episode[name]) for name in ("actions", "rewards", "terminations")}
        if isinstance(observation_space, spaces.Dict):
            found |= {key: np.asarray(episode["observations"][key]) for key in _GOAL_KEYS}
        else:
            found["observations"] = np.asarray(episode["observations"])
        yield found


def _assemble(
    dataset_id: str,
    episodes: Iterable[dict[str, np.ndarray]],
    observation_space: spaces.Box | spaces.Dict,
    action_space: spaces.Box,
    expected: Any,
) -> dict[str, np.ndarray]:
    """Check every episode and join them."""
    if isinstance(observation_space, spaces.Dict):
        sizes = {key: observation_space[key].shape for key in _GOAL_KEYS}
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
        put("terminals", episode["terminations"] != 0)
        for name in sizes:
            array = episode[name]
            has_final = len(array) > steps
            last = array[steps:] if has_final else np.full_like(array[:1], np.nan, dtype=np.float64)
            if name == "achieved_goal":
                # Without a final observation the last one stands in: no window reads that reward unless it is terminal.
                put("next_achieved_goal", array[1:] if has_final else np.concatenate([array[1:], array[-1:]]))
            elif name == "desired_goal":
                put("desired_goal", array[:steps])
                put("final_desired_goal", last)
            else:
                if has_final and not np.isfinite(last).all():
                    raise ValueError(
                        f"Episode {index} of {dataset_id}: the observation after step {steps - 1}, the last, is not "
                        "finite. Leave out the episode and store the data set again."
                    )
                put("observation", array[:steps])
                put("final_observation", last)
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
    dataset_id: str, eval_env: dict[str, Any] | None, next_achieved: np.ndarray, terminals: np.ndarray
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Rewards (and terminals, if the task ends at its goal) for the evaluation environment's one goal."""
    if eval_env is None:
        raise ValueError(f'{dataset_id} names no evaluation environment to take the goal from. Use goal="keep".')
    env = build_eval_env(eval_env)
    try:
        unwrapped: Any = env.unwrapped
        goal = _fixed_goal(dataset_id, env)
        rewards = np.asarray(unwrapped.compute_reward(next_achieved, goal, {}), dtype=np.float32)
        if rewards.shape != (len(next_achieved),):
            raise ValueError(
                f"The evaluation environment of {dataset_id} ({eval_env['id']}) cannot compute the rewards of "
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
            eval_env = {**eval_env, "goal": goal.tolist()}
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
    goals = [np.asarray(env.reset(seed=seed)[0]["desired_goal"], dtype=np.float64) for seed in _GOAL_SEEDS]
    if not all(np.array_equal(goals[0], other) for other in goals):
        raise ValueError(
            f"The evaluation environment of {dataset_id} draws a new goal in every episode, so rewards cannot be "
            'relabelled for one goal. Use goal="keep".'
        )
    return goals[0]


# -- environments --------------------------------------------------------------------------------------------------


def _eval_spec(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Id, keyword arguments and step limit of the evaluation environment that the metadata name; nothing is built."""
    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if not isinstance(text, str):
        return None
    try:
        spec = json.loads(text)
    except ValueError:
        return None
    if not isinstance(spec, dict) or not isinstance(spec.get("id"), str):
        return None
    kwargs, limit = spec.get("kwargs"), spec.get("max_episode_steps")
    found: dict[str, Any] = {
        "id": spec["id"],
        "kwargs": kwargs if isinstance(kwargs, dict) else {},
        "max_episode_steps": limit if isinstance(limit, int) else None,
    }
    for wrapper in spec.get("additional_wrappers") or ():
        if isinstance(wrapper, dict) and wrapper.get("entry_point") == _FIXED_GOAL:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                found["goal"] = [float(x) for x in wrapper["kwargs"]["goal"]]
    return found


def build_eval_env(spec: dict[str, Any]) -> gym.Env[Any, Any]:
    """Build an evaluation environment from its registered id, without running anything that the data name.

    Args:
        spec: ``{"id", "kwargs", "max_episode_steps"}`` and, for mazes, ``"goal"`` [2], where the goal is held.

    Raises:
        ValueError: the id is not in Gymnasium's registry, or names a module.
        ImportError: the id belongs to gymnasium-robotics, which is not installed.
    """
    name = str(spec["id"])
    # "module:id" makes Gymnasium import the module, and the compatibility ids load an environment by such a name.
    if ":" in name or name.startswith(("GymV21Environment", "GymV26Environment")):
        raise ValueError(
            f"The evaluation environment {name!r} would load code that the data set names. It is refused. Make the "
            "environment yourself and hand it to evaluate(agent, make_env=...)."
        )
    robotics = True
    try:
        register_robotics()
    except ImportError:
        robotics = False
    if name not in gym.registry:
        if not robotics:
            raise ImportError(
                f"The evaluation environment {name} is not registered. If it comes from gymnasium-robotics, install it "
                'with: pip install "ld_agents[bench]"'
            )
        raise ValueError(
            f"The evaluation environment {name!r} is not in Gymnasium's registry. Import the package that registers it "
            "before you load the data set, or make the environment yourself."
        )
    kwargs = {key: value for key, value in spec.get("kwargs", {}).items() if key != "render_mode"}
    try:
        env = gym.make(name, max_episode_steps=spec.get("max_episode_steps"), **kwargs)
    except Exception as error:
        raise ValueError(
            f"The evaluation environment {name} cannot be built with {kwargs}: {type(error).__name__}: {error}. Make "
            "the environment yourself and hand it to evaluate(agent, make_env=...)."
        ) from error
    return FixedGoal(env, spec["goal"]) if spec.get("goal") is not None else env
