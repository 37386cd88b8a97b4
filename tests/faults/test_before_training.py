"""What can be known before training is told before training, for all runs at once."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import run_suite
import specs
from conftest import AGENTS


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The datasets that a suite asks for; it gets none, and starts no process."""
    asked: list[str] = []

    def load(spec: str) -> None:
        asked.append(spec)
        raise FileNotFoundError(spec)

    monkeypatch.setattr(run_suite, "load_dataset", load)
    monkeypatch.setattr(run_suite, "start", lambda *_: pytest.fail("a run was started"))
    previous = signal.getsignal(signal.SIGTERM)
    yield asked
    signal.signal(signal.SIGTERM, previous)


def suite(out: Path, *agents: str) -> int:
    return run_suite.main(["--agents", *agents, "--datasets", "a/b-v0", "--seeds", "0", "1", "--out", str(out)])


def test_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_is_loaded: list[str]) -> None:
    needed = 4 * run_suite.RUN_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(SystemExit, match=r"has 127 MiB free, 4 runs may need 128 .*; make room, give another --out"):
        suite(tmp_path, "BC", "IQL")
    assert nothing_is_loaded == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert suite(tmp_path, "BC", "IQL") == 1
    assert nothing_is_loaded == ["a/b-v0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a file limit is POSIX")
def test_a_folder_that_cannot_be_written(tmp_path: Path, nothing_is_loaded: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"cannot write to .*file/results: .*Not a directory.*; give another --out"):
        suite(tmp_path / "file" / "results", "BC")
    assert nothing_is_loaded == []


def test_agents_that_cannot_start_are_told_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_is_loaded: list[str]
) -> None:
    (tmp_path / "breaks.py").write_text("raise RuntimeError('half an agent')")
    agents = {
        "Nonesuch": "ValueError: ld_agents has no agent 'Nonesuch'",
        "no_such_module:A": "ModuleNotFoundError: No module named 'no_such_module'",
        "BC[hiden=[8]]": "TypeError: BC has no setting hiden",
        "BC[learning_rate=1000.0]": "ValueError: learning_rate: Input should be less than or equal to 1, got 1000.0",
    }
    assert suite(tmp_path / "out", *agents) == 1
    text = capsys.readouterr().out
    for agent, reason in agents.items():
        for seed in (0, 1):
            assert f"FAILED: {agent} on a/b-v0, seed {seed}: {reason}" in text
    assert nothing_is_loaded == [], "no run is left that needs the data"
    assert not (tmp_path / "out" / "failures").exists(), "a typo must not stay in the tables for ever"


@pytest.mark.parametrize("name", sorted({cls.__name__ for cls, _ in AGENTS.values()}))
def test_a_learning_rate_of_1000_is_refused_by_every_agent(name: str) -> None:
    settings = specs.agent_class(name).presets()["fast"]
    rate = next(key for key in vars(settings) if "learning_rate" in key and key != "learning_rates")
    run = specs.Run(f"{name}[{rate}=1000.0]", "a/b-v0", 0, "fast", 1.0, 3)
    sound = specs.Run(name, "a/b-v0", 0, "fast", 1.0, 3)
    assert run_suite.check_agents([run, sound]) == {
        run: f"ValueError: {rate}: Input should be less than or equal to 1, got 1000.0."
    }


def test_every_run_of_every_suite_passes() -> None:
    for suite in run_suite.SUITES.values():
        assert run_suite.check_agents(run_suite.grid(suite)) == {}


def test_data_without_an_environment_or_with_nan_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from ld_agents import OfflineDataset

    def load(spec: str) -> OfflineDataset:
        rows = np.zeros((4, 2), np.float32)
        rows[2, 1] = np.nan if spec == "nan" else 0.0
        return OfflineDataset(rows, np.zeros((4, 1)), np.zeros(4), np.zeros(4), np.zeros(4))

    monkeypatch.setattr(run_suite, "load_dataset", load)
    failures = run_suite.make_datasets(["nan", "no env"])
    assert "observations hold nan in episode 0, step 2 (row 2), column 1" in failures["nan"]
    assert "names no evaluation environment" in failures["no env"]
