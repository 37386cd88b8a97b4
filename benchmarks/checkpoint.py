"""The checkpoint of a run: one file with everything that resumes it, under one checksum. The last two are kept."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

from ld_agents.data.storage import whole

_HEAD = b"ld_agents checkpoint 1\n"


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is."""
    return path.with_suffix(".previous")


def write(path: Path, run: str, agent: Any, record: dict[str, Any]) -> None:
    """Save an agent (weights, optimizers, generators, budgets, hash of its data, versions) and its run's record."""
    stream = io.BytesIO()
    agent.save(stream)
    body = json.dumps({"run": run, **record}, allow_nan=False).encode() + b"\n" + stream.getvalue()
    with whole(path) as unfinished:
        unfinished.write_bytes(_HEAD + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        if path.exists():
            os.replace(path, previous(path))


def read(path: Path, run: str) -> tuple[dict[str, Any], io.BytesIO]:
    """The record of a run and the file of its agent.

    Raises:
        ValueError: a bit has changed, a part is missing, or it belongs to another run.
    """
    content = path.read_bytes()
    digest, body = content[len(_HEAD) : len(_HEAD) + 64], content[len(_HEAD) + 65 :]
    if content != _HEAD + hashlib.sha256(body).hexdigest().encode() + b"\n" + body:
        what = "damaged" if content.startswith(_HEAD[:9]) else "not a checkpoint of this version"
        raise ValueError(
            f"{path} is {what} (checksum {digest[:12]!r}). Delete it, or copy it anew from where it is whole."
        )
    record = json.loads(body[: (end := body.index(b"\n"))])
    if (found := record.pop("run")) != run:
        raise ValueError(f"{path} belongs to the run {found}, not to {run}. Give it its own name, or delete it.")
    return record, io.BytesIO(body[end + 1 :])


def remove(path: Path) -> None:
    """Delete both checkpoints of a run, and what killed processes left of others."""
    for left in (path, previous(path), *path.parent.glob(f".{path.name}.*.tmp")):
        left.unlink(missing_ok=True)
