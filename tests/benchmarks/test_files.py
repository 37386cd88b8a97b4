"""Files of the benchmark appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from files import write_text
from ld_agents.data.storage import whole


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "page.md"
    write_text(path, "first ±\n")
    assert path.read_bytes() == "first ±\n".encode()

    def fail() -> None:
        with whole(path) as temporary:
            temporary.write_text("half of the sec")
            assert path.read_text(encoding="utf-8") == "first ±\n"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text(encoding="utf-8") == "first ±\n"
    assert [file.name for file in path.parent.iterdir()] == ["page.md"]
    with whole(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".tmp"  # no pattern for results matches it
        temporary.write_text("second")
    assert path.read_text() == "second"
