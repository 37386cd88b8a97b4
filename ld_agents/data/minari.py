"""Minari datasets, read as they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from gymnasium import spaces

from ld_agents.data import hdf5, hub
from ld_agents.data.dataset_info import DatasetInfo, Provenance
from ld_agents.data.frames import is_frame_space, stored_frames
from ld_agents.data.npz import read_npz
from ld_agents.data.rewards import Recording
from ld_agents.data.storage import dataset_folder, digest, is_local, whole
from ld_agents.evaluation.eval_env import EvalEnvSpec, hub_environment
from ld_agents.evaluation.scores import REFERENCE_SCORES, family

Arrays = dict[str, np.ndarray]

_CACHE_NAME = ".ld-agents-arrays.npz"
_CACHE_FORMAT = 3
_GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
_LARGEST_SPACE = 1_000_000  # numbers
_LARGEST_METADATA = 64 << 20  # bytes


def read_minari(dataset_id: str, *, download: bool = True) -> Recording:
    """Read a Minari dataset: the local copy if there is one, else from the hub.

    The arrays are kept in a flat cache beside the data, so that later loads do not visit every episode again.
    Episodes may store T or T+1 observations for T actions; with T, the observation after a truncated episode's last
    action is unknown and no window ends there.

    Args:
        dataset_id: for instance ``"D4RL/pointmaze/umaze-v2"``.
        download: whether the hub may be asked.

    Raises:
        FileNotFoundError: not here, and not available from the hub.
        ValueError: a malformed id or malformed data; the message names the episode.
        TypeError: observations or actions that are no flat vectors of numbers.
    """
    if not is_local(dataset_id):
        hub.download(dataset_id, download)
    data = dataset_folder(dataset_id) / "data"
    files = _checked_files(data)
    metadata = _read_metadata(dataset_id, data)
    observation_space, action_space = _checked_spaces(dataset_id, metadata)
    stamp, parts = _stamp(data, files), {} if is_frame_space(observation_space) else _parts(observation_space)
    arrays = _cached(data, stamp, lambda: _assemble(dataset_id, data, metadata, parts, action_space))
    timeouts = np.zeros(len(arrays["rewards"]), dtype=bool)
    timeouts[arrays["ends"] - 1] = True
    keys = [key for key in _GOAL_KEYS if key in arrays]
    observations = {key: arrays[key] for key in keys}
    final: Arrays | None = {key: arrays[f"final_{key}"] for key in keys}
    ours = metadata.get("ld_agents")
    converted = ours if isinstance(ours, dict) and isinstance(observation_space, spaces.Box) else {}
    if converted.get("final_observations") is False:
        final = None  # after terminals inside of an episode, too
    concatenated = converted.get("observation_keys")
    if not parts:
        frames = _frames(dataset_id, data, metadata, observation_space)
        observations["observation"], after = stored_frames(data.parent, stamp.hex(), frames, arrays["ends"])
        final = None if after is None else {"observation": after}
    return Recording(
        family=family(dataset_id),
        observations=observations,
        final_observations=final,
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        terminals=arrays["terminals"],
        timeouts=timeouts,
        ends=arrays["ends"],
        info=_info(dataset_id, metadata),
        observation_space=observation_space,
        action_space=action_space,
        env=EvalEnvSpec.from_json(metadata.get("env_spec")),
        observation_keys=tuple(map(str, concatenated)) if isinstance(concatenated, list) and concatenated else None,
    )


def local_info(dataset_id: str) -> DatasetInfo | None:
    """What the metadata of a local dataset tell about it; None if it is not on this machine."""
    if not is_local(dataset_id):
        return None
    return _info(dataset_id, _read_metadata(dataset_id, dataset_folder(dataset_id) / "data"))


def _info(dataset_id: str, metadata: dict[str, Any]) -> DatasetInfo:
    """What the metadata tell about the data; values of the wrong kind count as missing."""
    ours = metadata.get("ld_agents")
    eval_env = EvalEnvSpec.from_json(metadata.get("eval_env_spec") or metadata.get("env_spec"))
    if not isinstance(ours, dict):
        ours, eval_env = {}, hub_environment(dataset_id, eval_env)
    check, controller, made = (ours.get(key) for key in ("replay_check", "controller", "provenance"))
    stored = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    numbers = [float(x) for x in stored if isinstance(x, int | float) and math.isfinite(x)]
    reference = (numbers[0], numbers[1]) if len(numbers) == 2 else None
    if reference is None and not ours and dataset_id in REFERENCE_SCORES:
        reference = REFERENCE_SCORES[dataset_id].minimum, REFERENCE_SCORES[dataset_id].maximum
    return DatasetInfo(
        id=dataset_id,
        provenance=cast(Provenance, made) if made in get_args(Provenance) else "hub",
        description=str(metadata.get("description", "")),
        eval_env=eval_env,
        reference_scores=reference,
        replay_check=check if isinstance(check, dict) else None,
        controller=controller if isinstance(controller, dict) else None,
        mujoco=_mujoco(metadata, ours),
    )


def _mujoco(metadata: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """The version that recorded: as we store it, or pinned among the requirements, as Minari's authors do."""
    stored = ours.get("versions")
    if isinstance(stored, dict) and isinstance(stored.get("mujoco"), str):
        return str(stored["mujoco"])
    required = metadata.get("requirements")
    texts = map(str, required) if isinstance(required, list) else ()
    pins = [re.fullmatch(r"\s*mujoco\s*==\s*([\d.]+)\s*", text) for text in texts]
    return next((pin[1] for pin in pins if pin), None)


# -- finding the data ----------------------------------------------------------------------------------------------


def _read_metadata(dataset_id: str, data: Path) -> dict[str, Any]:
    # Minari's own reader builds the environment that the file names when a space is missing; this one never does.
    file, again = data / "metadata.json", f"Delete {data.parent} and fetch {dataset_id} again."
    try:
        if file.stat().st_size > _LARGEST_METADATA:
            raise ValueError(f"larger than {_LARGEST_METADATA >> 20} MiB")
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}). {again}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{file} is not a JSON object. {again}")
    return metadata


def _checked_spaces(dataset_id: str, metadata: dict[str, Any]) -> tuple[spaces.Box | spaces.Dict, spaces.Box]:
    from minari.serialization import deserialize_space

    found: list[spaces.Space[Any]] = []
    for name in ("observation_space", "action_space"):
        again = f"Store the dataset again with Minari 0.5, which writes the {name}."
        if name not in metadata:
            raise ValueError(f"The metadata of {dataset_id} hold no {name}. {again}")
        try:
            description = metadata[name]
            description = json.loads(description) if isinstance(description, str) else description
            if _size_of_space(description) > _LARGEST_SPACE:
                raise ValueError(f"it claims more than {_LARGEST_SPACE:,} numbers")
            found.append(deserialize_space(description))
        except ImportError as error:
            raise ImportError(hub.needs_package(dataset_id, error)) from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"The {name} of {dataset_id} cannot be read ({reason}). {again}") from None
    observation_space, action_space = found
    if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
        raise TypeError(
            f"{dataset_id} has actions in {action_space}. Only flat continuous ones (Box) are supported. Choose "
            "a dataset with such actions."
        )
    instead = "pass them to OfflineDataset(observations, actions, ...)."
    if isinstance(observation_space, spaces.Dict):
        missing = [key for key in _GOAL_KEYS if key not in observation_space.spaces]
        if missing:
            raise ValueError(
                f"{dataset_id} has dictionary observations with keys {tuple(observation_space.spaces)}, but no "
                f"{missing[0]!r}. Only goal dictionaries (observation, achieved_goal, desired_goal) are read. Take the "
                f"parts you need with Minari and {instead}"
            )
        if others := [key for key in observation_space.spaces if key not in _GOAL_KEYS]:
            warnings.warn(
                f"The observations of {dataset_id} hold {', '.join(map(repr, others))} too, which are left out: only "
                f"{', '.join(_GOAL_KEYS)} are read. If you need them, take them with Minari and {instead}",
                stacklevel=5,
            )
    for box in _parts(observation_space).values():
        if (not isinstance(box, spaces.Box) or len(box.shape) != 1) and not is_frame_space(observation_space):
            raise TypeError(
                f"{dataset_id} has observations in {box}. Only flat vectors (Box with one axis) and frames (uint8 Box "
                f"of height, width and channels) are read. Flatten others yourself and {instead}"
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


def _parts(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """The parts of the observations that are read, by their place in an episode of the file.

    Of goals that are dictionaries themselves (Kitchen) none is read.
    """
    if not isinstance(space, spaces.Dict):
        return {"observations": space}
    keys = ("observation",) if isinstance(space.spaces["desired_goal"], spaces.Dict) else _GOAL_KEYS
    return {f"observations/{key}": space.spaces[key] for key in keys}


# -- reading -------------------------------------------------------------------------------------------------------


def _checked_files(data: Path) -> dict[Path, os.stat_result]:
    """All that lies in a dataset's folder: files and folders of it alone, and not too many to be read."""
    found, again = {}, f"Delete {data.parent} and fetch it again."
    for file in data.rglob("*"):
        try:
            status, place = file.stat(), file.resolve()
        except (OSError, RuntimeError) as error:  # in Python 3.11 a loop of links is a RuntimeError
            raise ValueError(f"{file} cannot be read ({error}). {again}") from None
        if not place.is_relative_to(data.resolve()):
            raise ValueError(f"{file} is a link out of its folder, to {place}. Copy what is to be read into {data}.")
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{file} is neither a file nor a folder. {again}")
        found[file] = status
        if len(found) > hub.MAX_FILES:
            raise ValueError(f"{data} holds more than {hub.MAX_FILES:,} files. {again}")
    return found


def _stamp(data: Path, files: dict[Path, os.stat_result]) -> bytes:
    """What changes with the files of a dataset."""
    stamp = hashlib.sha256(f"format {_CACHE_FORMAT}\n".encode())
    for file, status in sorted(files.items()):
        stamp.update(f"{file.relative_to(data)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return stamp.digest()


def _cached(data: Path, stamp: bytes, read: Callable[[], Arrays]) -> Arrays:
    """All episodes as flat arrays, from the cache where it fits the files."""
    key = np.frombuffer(stamp, dtype=np.uint8)
    cache = data.parent / _CACHE_NAME
    # No cache, or one that is damaged in whatever way, is written again below.
    with contextlib.suppress(ValueError, KeyError):
        stored = read_npz(cache)
        if np.array_equal(stored.pop("key"), key):
            return stored
    arrays = read()
    # A read-only folder only means that the next load visits every episode again.
    with contextlib.suppress(OSError), whole(cache) as unfinished, open(unfinished, "wb") as out:
        np.savez(out, allow_pickle=False, key=key, **arrays)
    return arrays


def _frames(dataset_id: str, data: Path, metadata: dict[str, Any], space: spaces.Space[Any]) -> Iterator[np.ndarray]:
    """The frames of each episode."""
    from minari.dataset.minari_storage import is_image_space

    # Minari stores images of 32 pixels and more as JPEG, unless it is told not to.
    plain = metadata.get("jpeg_encoding") is False or not is_image_space(space)
    read = _hdf5_episodes if plain and metadata.get("data_format") == "hdf5" else _minari_episodes
    for index, episode in enumerate(read(dataset_id, data, {"observations": (4, np.uint8)})):
        frames: np.ndarray = episode["observations"]
        if frames.dtype != np.uint8 or frames.shape[1:] != space.shape:
            raise ValueError(
                f"Episode {index} of {dataset_id} has {frames.dtype} frames {frames.shape[1:]}, the space says "
                f"{space.shape}. Store the dataset again with the right spaces."
            )
        yield frames


def _hdf5_episodes(dataset_id: str, data: Path, wanted: dict[str, tuple[int, Any]]) -> Iterator[Arrays]:
    """Episodes of main_data.hdf5 in order, only the arrays that are needed, through h5py's low-level calls."""
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
                episode[name] = hdf5.read_array(item, dtype, f"Episode {index} of {dataset_id}: {name}", again)
            yield episode


def _minari_episodes(dataset_id: str, data: Path, wanted: dict[str, tuple[int, Any]]) -> Iterator[Arrays]:
    """Episodes through Minari's own reader, for its other storage formats."""
    from minari.dataset.minari_storage import MinariStorage

    try:
        storage, steps = MinariStorage.read(data), 0
        for episode in storage.get_episodes(range(storage.total_episodes)):
            steps += len(episode["rewards"])
            found = {}
            for name in wanted:
                part, _, key = name.partition("/")
                found[name] = np.asarray(episode[part][key] if key else episode[part])
            yield found
    except ImportError as error:
        raise ImportError(hub.needs_package(dataset_id, error)) from error
    except Exception as error:
        raise ValueError(
            f"{dataset_id} cannot be read ({type(error).__name__}: {error}). Delete {data.parent} and fetch or make it "
            "again."
        ) from None
    if steps != storage.total_steps:
        raise ValueError(
            f"{dataset_id} holds {storage.total_steps} steps, of which Minari reads {steps}: in other formats than "
            'HDF5 it cuts episodes of more than 32,767 steps. Store the dataset with data_format="hdf5".'
        )


def _assemble(
    dataset_id: str, data: Path, metadata: dict[str, Any], parts: dict[str, Any], action_space: spaces.Box
) -> Arrays:
    """Check every episode and join them.

    Returns:
        ``actions``, ``rewards``, ``terminals`` and the parts of the observation, with N rows each; ``final_`` and a
        part's name, [E, .], NaN where unknown; ``ends`` [E]. Achieved goals are float64, as rewards are computed from
        them.
    """
    main, recorded = data / "main_data.hdf5", [metadata.get(f"episodes_{name}") for name in ("bytes", "sha256")]
    if any(recorded) and main.is_file() and (main.stat().st_size != recorded[0] or digest(main) != recorded[1]):
        raise ValueError(
            f"{main} is not what was recorded: its size or checksum differs. Delete {data.parent} and make it "
            'again, or, if it was changed on purpose, delete "episodes_bytes" and "episodes_sha256" from metadata.json.'
        )
    repair = "Repair or leave out the episode (dataset.filter_episodes) and store the dataset again."
    # name -> number of axes and type
    wanted: dict[str, tuple[int, Any]] = {"actions": (2, np.float32), "rewards": (1, np.float32)}
    wanted["terminations"] = 1, bool
    wanted |= {part: (2, np.float64 if part.endswith("/achieved_goal") else np.float32) for part in parts}
    row_shapes = {name: box.shape for name, box in parts.items()}
    row_shapes |= {"actions": action_space.shape, "rewards": (), "terminations": ()}
    read = _hdf5_episodes if metadata.get("data_format") == "hdf5" else _minari_episodes
    rows: dict[str, list[np.ndarray]] = {}
    lengths: list[int] = []
    for index, episode in enumerate(read(dataset_id, data, wanted)):
        where, steps = f"Episode {index} of {dataset_id}", len(episode["rewards"])
        if steps == 0:
            raise ValueError(f"{where} is empty (0 steps). {repair}")
        for place, array in episode.items():
            name = place.rpartition("/")[2]
            if array.shape[1:] != tuple(row_shapes[place]):
                raise ValueError(
                    f"{where}: {name} have rows of shape {array.shape[1:]}, the space says "
                    f"{tuple(row_shapes[place])}. Store the dataset again with the right spaces."
                )
            allowed = (steps, steps + 1) if place in parts else (steps,)
            if len(array) not in allowed:
                expected = " or ".join(map(str, allowed))
                raise ValueError(f"{where} has {steps} rewards but {len(array)} {name}; expected {expected}. {repair}")
            if place == "terminations":
                name, array = "terminals", hdf5.as_flags(array, f"{where}: {name}", repair)
            elif place in parts:
                last = array[steps:] if len(array) > steps else np.full_like(array[:1], np.nan, dtype=np.float64)
                if len(array) > steps and not np.isfinite(last).all():
                    raise ValueError(
                        f"{where}: the observation after step {steps - 1}, the last, is not finite. {repair}"
                    )
                if name == "achieved_goal" and not np.isfinite(array).all():
                    raise ValueError(f"{where} has achieved goals that are not finite. {repair}")
                name = "observation" if name == "observations" else name
                rows.setdefault(f"final_{name}", []).append(last)
                array = array[:steps]
            rows.setdefault(name, []).append(array)
        lengths.append(steps)
    if len(lengths) != metadata.get("total_episodes") or not lengths:
        raise ValueError(
            f"{dataset_id} holds {len(lengths)} episodes, its metadata say {metadata.get('total_episodes')}. Delete "
            "its folder and fetch or make it again."
        )
    types = {"terminals": bool, "achieved_goal": np.float64, "final_achieved_goal": np.float64}
    arrays = {
        name: np.concatenate(pieces).astype(types.get(name, np.float32), copy=False) for name, pieces in rows.items()
    }
    arrays["ends"] = np.cumsum(lengths, dtype=np.int64)
    return arrays
