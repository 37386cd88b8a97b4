"""A run that is killed at any of its writes leaves, when it is started again, the result of an undisturbed one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from campaign import RUN

import run_one
import specs
from conftest import Drift, record
from ld_agents.data import storage
from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.evaluation.eval_env import EvalEnvSpec

MEASURED = ("seconds", "predict_ms", "peak_memory_mb", "finished", "resumes")


class Killed(BaseException):
    pass


def result(folder: Path) -> dict[str, Any]:
    """What a result says but for times and sizes."""
    found: dict[str, Any] = json.loads(specs.Files(folder, RUN.name).result.read_text())
    for point in found["curve"]:
        del point["seconds"]
    return {key: value for key, value in found.items() if key not in MEASURED}


def test_a_kill_at_each_write_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill is simulated by an end of the world: nothing is cleaned up after it."""
    data, writes, real = record(), [], os.replace
    data.info = DatasetInfo("x/y-v0", eval_env=EvalEnvSpec("Drift-v0", {}, 10), replay_check={"passed": True})
    monkeypatch.setattr(data, "make_eval_env", Drift)
    monkeypatch.setattr(run_one, "load_dataset", lambda _: data)
    monkeypatch.setattr(run_one.provenance, "source_commit", lambda: "0123")

    def replace(source: Path, target: Path) -> None:
        if len(writes) == kill:
            raise Killed
        writes.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    kill = -1
    run_one.run_and_write(RUN, tmp_path / "undisturbed")
    files = specs.Files(tmp_path, RUN.name)
    assert writes[-2:] == [files.model.name, files.result.name]
    assert writes.count(files.checkpoint.name) >= 2
    expected, n = result(tmp_path / "undisturbed"), len(writes)
    for kill in range(n):
        folder = tmp_path / str(kill)
        writes.clear()
        with monkeypatch.context() as patch:
            patch.setattr(storage.Path, "unlink", lambda *_, **__: None)
            with pytest.raises(Killed):
                run_one.run_and_write(RUN, folder)
        assert not specs.Files(folder, RUN.name).result.exists()
        kill = -1
        run_one.run_and_write(RUN, folder)
        assert result(folder) == expected
        assert not list((folder / "checkpoints").iterdir())
