"""Full and read-only disks: told early and clearly, nothing finished is lost, and a run goes on when there is room."""

from __future__ import annotations

import errno
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import campaign
import disks
import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

import run_one
import run_suite
import specs
from conftest import differing, make_agent, weights
from files import write_json
from ld_agents import OfflineDataset

RUN = campaign.RUN
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes and limits of Linux")


def outcome(act: Callable[[Path, bool], str]) -> str:
    """What a function returns in a process and on a small disk of its own."""

    def campaign_of_one(tell: campaign.Tell) -> None:
        with tempfile.TemporaryDirectory() as name, disks.small(Path(name)) as real:
            tell(act(Path(name), real))

    (found,) = campaign.Child(campaign_of_one).verdicts()
    return found


def raised(act: Callable[[], Any]) -> str:
    try:
        act()
    except (OSError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_a_read_only_folder_is_told_before_anything_is_trained() -> None:
    def act(folder: Path, real: bool) -> str:
        (folder / "results").mkdir()
        with disks.read_only(folder, real):
            return raised(lambda: run_suite.check_place(folder / "results", 1))

    assert "SystemExit: cannot write to " in (found := outcome(act))
    assert "; give another --out or make room" in found


def test_a_full_disk_is_told_before_anything_is_trained() -> None:
    def act(folder: Path, real: bool) -> str:
        if not real:
            return "SystemExit: 1 runs may need 32"  # a limit of files does not show
        with disks.full(folder, 200_000, real):
            return raised(lambda: run_suite.check_place(folder, 1))

    assert "1 runs may need 32" in outcome(act)


@pytest.mark.parametrize("spoiled", ["full", "read_only"])
def test_a_file_that_cannot_be_written_is_named(spoiled: str) -> None:
    def act(folder: Path, real: bool) -> str:
        write_json(folder / "a.json", {"a": 1})
        place = disks.full(folder, 0, real) if spoiled == "full" else disks.read_only(folder, real)
        with place:
            found = raised(lambda: write_json(folder / "a.json", {"a": list(range(9999))}))
        return f"{found} {(folder / 'a.json').read_text()} {len(list(folder.iterdir()))}"

    found = outcome(act)
    assert "nothing is lost that was there before. Make room or choose another folder" in found
    assert "a.json" in found
    assert found.endswith('{\n "a": 1\n}\n 1')


class _Fill(BaseCallback):
    """Fills the disk at a step, until it is left."""

    def __init__(self, folder: Path, step: int, free: int, real: bool) -> None:
        super().__init__()
        self.step, self.disk = step, disks.full(folder, free, real)

    def _on_step(self) -> bool:
        if self.num_timesteps == self.step:
            self.disk.__enter__()
        return True


def test_a_run_goes_on_when_there_is_room_again(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_one, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(run_one.Progress, "_add_curve_point", lambda self, _: self.record["curve"].append(0))
    undisturbed = weights(make_agent("BC", dataset, **campaign.OPTIONS).learn())

    def act(folder: Path, real: bool) -> str:
        agent, record = run_one.start_or_resume(RUN, folder, dataset)
        fill = _Fill(folder, 12, 0 if real else 8192, real)
        progress = run_one.Progress(specs.Files(folder, RUN.name), record, dataset.make_eval_env, RUN)
        found = raised(lambda: agent.learn(30, CallbackList([fill, progress])))
        fill.disk.__exit__(None, None, None)
        again, record = run_one.start_or_resume(RUN, folder, dataset)
        done = again.num_timesteps
        again.learn(reset_num_timesteps=False)
        return f"{found} | {done} {record['resumes']} {differing(undisturbed, weights(again))}"

    found = outcome(act)
    assert found.startswith("OSError: "), found
    assert f"checkpoints/{RUN.name}" in found
    assert found.endswith("| 11 1 []"), found


def test_a_run_that_cannot_write_says_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(number: int) -> Callable[..., None]:
        def run_and_write(*_: Any) -> None:
            raise OSError(number, "no room", "x.json")

        return run_and_write

    arguments = ["--agent", "BC", "--dataset", "a/b-v0", "--out", str(tmp_path)]
    monkeypatch.setattr(run_one, "run_and_write", fails(errno.ENOSPC))
    with pytest.raises(SystemExit, match=r"stopped: .*no room: 'x\.json'. The same command goes on from the last ch"):
        run_one.main(arguments)
    monkeypatch.setattr(run_one, "run_and_write", fails(errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        run_one.main(arguments)


def test_the_suite_tells_of_a_full_disk_that_took_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = specs.Files(tmp_path, RUN.name)
    files.log.parent.mkdir()
    files.log.write_text("")
    assert run_suite.why_failed(1, files) == "ended with exit code 1 and no output"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    assert "is full: make room and run the same command again" in str(run_suite.why_failed(1, files))


def test_the_suite_survives_a_folder_that_has_become_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "x.log")

    monkeypatch.setattr(run_suite, "start", fails)
    monkeypatch.setattr(run_suite, "write_json", fails)
    failures = run_suite.do_runs([RUN], tmp_path, 1, 0)
    assert failures == {RUN: "cannot be started: [Errno 30] Read-only file system: 'x.log'"}
    run_suite.keep_failure(RUN, tmp_path, "why")
