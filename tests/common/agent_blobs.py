"""Saved agents in memory, taken apart and put together again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
from torch import Tensor

from conftest import AGENTS
from ld_agents.common.offline_algorithm import OfflineAlgorithm

OBSERVATIONS = np.random.default_rng(0).normal([0, 0, 100], 0.5, (6, 3)).astype(np.float32)


def load(name: str, blob: bytes, **kwargs: Any) -> OfflineAlgorithm:
    return AGENTS[name][0].load(io.BytesIO(blob), **kwargs)


def members(blob: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The file of these members, with checksums that fit: what one could make who means harm."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        description = json.loads(contents["agent.json"])
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items() if name != "agent.json"}
        if description["sha256"] != sums:
            contents = {**contents, "agent.json": json.dumps({**description, "sha256": sums}).encode()}
    return zipped(contents, compression)


def zipped(contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return stream.getvalue()


def with_description(blob: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    contents = members(blob)
    description = json.loads(contents["agent.json"])
    change(description)
    return packed({**contents, "agent.json": json.dumps(description).encode()})


def with_tensors(blob: bytes, member: str, change: Callable[[dict[str, Tensor]], Any]) -> bytes:
    contents = members(blob)
    tensors = safetensors.torch.load(contents[member])
    change(tensors)
    return packed({**contents, member: safetensors.torch.save(tensors)})
