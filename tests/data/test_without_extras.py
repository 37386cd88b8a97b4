"""A fresh installation without extras, as far as one with them can show it; `tox run -e bare` makes a true one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import minari
import numpy as np
import pytest
from without_extras import write_set

SCRIPT = Path(__file__).with_name("without_extras.py")


@pytest.mark.skipif(
    any(text.startswith("matplotlib") and "extra" not in text for text in requires("stable-baselines3") or []),
    reason="this stable-baselines3 needs matplotlib and pandas itself",
)
def test_bc_learns_from_a_minari_set_without_the_extras() -> None:
    path = os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(SCRIPT), "--hide"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "200 steps read" in done.stdout
    assert "of extras: []" in done.stdout


def test_the_set_of_that_test_is_one_that_minari_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_set(tmp_path, "me/line-v0")
    stored = minari.load_dataset("me/line-v0")
    assert (stored.total_episodes, stored.total_steps) == (20, 200)
    first = stored[0]
    np.testing.assert_allclose(first.observations[1:], first.observations[:-1] + first.actions, atol=1e-6)
