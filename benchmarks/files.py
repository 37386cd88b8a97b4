"""Text and JSON files that appear whole or not at all, so that whoever reads one never sees a part of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ld_agents.data.storage import whole


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, with the line ends that `text` has."""
    with whole(path) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file. Raises ValueError for NaN and infinity, which JSON does not have."""
    text = json.dumps(content, indent=1, allow_nan=False)
    # A list of numbers on one line keeps the files readable and small; no JSON string has a bare line break in it.
    text = re.sub(
        r"\[\n[^\[\]{}\"]*\]",
        lambda numbers: re.sub(r"\s+", " ", numbers[0]).replace("[ ", "[").replace(" ]", "]"),
        text,
    )
    write_text(path, text + "\n")
