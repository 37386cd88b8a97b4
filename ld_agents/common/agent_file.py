"""The file of a saved agent: a zip of one JSON and two safetensors members, all stored uncompressed. No pickle.

`agent.json` describes the agent, `weights.safetensors` holds its networks, `training.safetensors` what `learn` needs to
resume; the first has the SHA-256 of the others. Reading executes nothing from the file, and needs no more memory than
the file's own size, or twice that where matrices are stored in half precision.
"""

import hashlib
import io
import json
import math
import pathlib
import platform
import zipfile
from typing import Any

import numpy as np
import safetensors.torch
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from stable_baselines3 import __version__ as SB3_VERSION
from torch import Tensor

from ld_agents.data.storage import whole, with_default_suffix

SUFFIX = ".zip"  # of a path without one
_FORMAT = 1
_MEMBERS = {"agent.json", "weights.safetensors", "training.safetensors"}
_NO_TENSORS = safetensors.torch.save({})
_MAX_JSON_BYTES = 1 << 20
_MAX_FRAME = 1_000_000  # numbers


def write(
    path: str | pathlib.Path | io.BufferedIOBase,
    description: dict[str, Any],
    weights: dict[str, Tensor],
    training: dict[str, Tensor],
    *,
    half: bool = False,
) -> None:
    """Writes the three members to a file, atomically, or to a stream. A path without suffix gets ".zip".

    With `half`, matrices are stored in float16, and read as float32 again; vectors cost little and stay as they are.
    """
    if half:
        weights = {name: value.half() if _is_matrix(value) else value for name, value in weights.items()}
        description = {**description, "half": True}
    tensors = {
        "weights.safetensors": safetensors.torch.save(weights),
        "training.safetensors": safetensors.torch.save(training),
    }
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in tensors.items()}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "stable_baselines3": SB3_VERSION}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(
            "agent.json", json.dumps({"format": _FORMAT, **description, "versions": versions, "sha256": sums}, indent=1)
        )
        for name, content in tensors.items():
            archive.writestr(name, content)
    if not isinstance(path, str | pathlib.Path):
        path.write(buffer.getvalue())
        return
    with whole(with_default_suffix(path, SUFFIX)) as unfinished:
        unfinished.write_bytes(buffer.getvalue())  # Python 3.12.1 crashes when it collects a view of the buffer


def find(path: str | pathlib.Path) -> pathlib.Path | None:
    """The file at a path, which may lack ".zip"; None if there is none."""
    path = pathlib.Path(path)
    candidates = path, path.with_name(f"{path.name}.zip")  # also of bc.v1, as in SB3
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def read(path: Any) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Returns the three members of a saved agent, checked before they are unpacked."""
    if isinstance(path, str | pathlib.Path):
        found = find(path)
        if found is None:
            raise FileNotFoundError(f"There is no saved agent at {with_default_suffix(path, SUFFIX)}.")
        path = found
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if unknown := set(members) - _MEMBERS:
                raise ValueError(
                    f"{source_name(path)} is not an ld_agents file: it holds {sorted(unknown)}. Files saved by "
                    "Stable-Baselines3 contain pickles and are not read here."
                )
            if missing := {"agent.json", "weights.safetensors"} - set(members):
                raise ValueError(f"{source_name(path)} is not an ld_agents file: it lacks {sorted(missing)}.")
            if len(members) < len(archive.infolist()):
                raise ValueError(f"{source_name(path)} holds a member twice, which save never does. Not read.")
            for info in members.values():
                # members are stored as they are, so nothing can grow when it is read
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise ValueError(
                        f"{source_name(path)}: {info.filename} is compressed, which save never does. Not read."
                    )
            if members["agent.json"].file_size > _MAX_JSON_BYTES:
                raise ValueError(f"{source_name(path)}: agent.json is larger than {_MAX_JSON_BYTES} bytes. Not read.")
            description = json.loads(archive.read("agent.json"))
            contents = {name: archive.read(name) for name in members if name != "agent.json"}
            weights = safetensors.torch.load(contents["weights.safetensors"])
            training = safetensors.torch.load(contents.get("training.safetensors", _NO_TENSORS))
    except RecursionError as error:
        raise ValueError(f"{source_name(path)}: agent.json is nested too deeply.") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, RuntimeError) as error:
        # RuntimeError: an encrypted member
        raise ValueError(f"{source_name(path)} is not a complete zip file ({error}). Copy or save it again.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{source_name(path)}: agent.json is not valid JSON ({error}).") from error
    except SafetensorError as error:
        raise ValueError(f"{source_name(path)}: the weights are damaged ({error}).") from error
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise ValueError(f"{source_name(path)} is not of format {_FORMAT}, the one this version of ld_agents reads.")
    # earlier versions wrote no sums; those of the zip itself do not tell that a member is of another agent
    sums = description.get("sha256", {})
    for name, content in contents.items():
        if sums and (not isinstance(sums, dict) or hashlib.sha256(content).hexdigest() != sums.get(name)):
            raise ValueError(f"{source_name(path)}: {name} is not what agent.json belongs to. Copy or save it again.")
    if description.get("half") is True:
        weights = {name: value.float() if value.dtype == torch.float16 else value for name, value in weights.items()}
    return description, weights, training


def _is_matrix(value: Tensor) -> bool:
    return value.ndim > 1 and value.dtype == torch.float32


def check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], path: Any) -> None:
    if set(found) != set(expected):
        different = sorted(set(found) ^ set(expected))
        raise ValueError(f"{source_name(path)}: weights and settings do not fit together: {different[:5]}.")
    for name, value in expected.items():
        if found[name].shape != value.shape or found[name].dtype != value.dtype:
            raise ValueError(
                f"{source_name(path)}: {name} has shape {tuple(found[name].shape)} and type {found[name].dtype}, "
                f"expected {tuple(value.shape)} and {value.dtype}."
            )


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Dict):
        return {"dict": {key: space_to_json(value) for key, value in space.spaces.items()}}
    if not isinstance(space, spaces.Box):
        raise ValueError(f"Only Box and Dict spaces can be saved, not {space}.")
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    if len(space.shape) == 3 and (low == low[0]).all() and (high == high[0]).all():  # frames, of very many numbers
        return {"low": low[0].item(), "high": high[0].item(), "dtype": str(space.dtype), "shape": list(space.shape)}
    return {"low": space.low.tolist(), "high": space.high.tolist(), "dtype": str(space.dtype)}


def space_from_json(data: dict[str, Any]) -> spaces.Space:
    if "dict" in data:
        return spaces.Dict({str(key): space_from_json(value) for key, value in data["dict"].items()})
    if np.dtype(data["dtype"]).kind not in "fiu":
        raise TypeError(f"a space of type {data['dtype']!r}")
    dtype = np.dtype(data["dtype"])
    if "shape" in data:
        shape = tuple(int(size) for size in data["shape"])
        if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > _MAX_FRAME:
            raise ValueError(f"a frame of shape {shape}")
        return spaces.Box(data["low"], data["high"], shape, dtype.type)
    return spaces.Box(np.array(data["low"], dtype), np.array(data["high"], dtype), dtype=dtype.type)


def source_name(path: Any) -> str:
    return str(path) if isinstance(path, str | pathlib.Path) else "The stream"
