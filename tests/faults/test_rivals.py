"""Suites that share a folder, and suites that are killed: every run is done once, and no process is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import claims
import run_suite
import specs

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RUN_SUITE = Path(run_suite.__file__)
SLOW = "goal_seeker:GoalSeeker[pause=0.02,steps=30]"
DATASET = "ld-agents/pointmaze/umaze-10k-v0"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks and parents' deaths are POSIX here")


@pytest.fixture(scope="module", autouse=True)
def minari_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        specs.load_dataset(DATASET)
        yield


WITHOUT_PRCTL = f"""
import sys
sys.path.insert(0, {str(RUN_SUITE.parent)!r})
import claims, run_suite
claims.dying_with_parent = lambda: None
sys.exit(run_suite.main())
"""


def suite(
    out: Path, *arguments: str, agent: str = SLOW, seeds: str = "0 1", prctl: bool = True
) -> subprocess.Popen[str]:
    given = ["--agents", agent, "--datasets", DATASET, "--seeds", *seeds.split(), "--budget", "1", "--episodes", "2"]
    program = [str(RUN_SUITE)] if prctl else ["-c", WITHOUT_PRCTL]
    return subprocess.Popen(
        [sys.executable, *program, "--suite", "smoke", "--jobs", "2", "--out", str(out), *given, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=BENCHMARKS,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def runs_in(out: Path) -> list[int]:
    """Processes that do runs of this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"--out={out}".encode() in words:
            found.append(int(path.parent.name))
    return found


def test_a_lock_dies_with_its_process_and_passes_to_a_child(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "a.lock"
    first = claims.claim(lock)
    assert first is not None
    assert claims.claim(lock) is None
    with pytest.raises(SystemExit, match=f"another process does this run: it holds {lock}"), claims.claimed(lock):
        pass
    child = subprocess.Popen(["sleep", "60"], pass_fds=[first])
    os.close(first)
    assert claims.claim(lock) is None, "the child holds it"
    child.kill()
    child.wait()
    with claims.claimed(lock):
        assert claims.claim(lock) is None
    second = claims.claim(lock)
    assert second is not None
    os.close(second)


def test_a_failure_elsewhere_counts_if_it_is_new(tmp_path: Path) -> None:
    run = specs.Run("A", "x/y-v0", 0, "fast", 1.0, 3)
    assert run_suite.done_elsewhere(run, tmp_path, 0.0) is False
    run_suite.keep_failure(run, tmp_path, "out of luck")
    assert run_suite.done_elsewhere(run, tmp_path, time.time() - 60) == "out of luck"
    assert run_suite.done_elsewhere(run, tmp_path, time.time() + 60) is False
    path = specs.Files(tmp_path, run.name).result
    path.parent.mkdir()
    path.write_text("{}")
    assert run_suite.done_elsewhere(run, tmp_path, 0.0) is None
    assert run_suite.start(run, tmp_path) is None, "its result is there"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import subprocess, time, claims\n"
        "print(subprocess.Popen(['sleep', '60'], start_new_session=True,"
        " preexec_fn=claims.dying_with_parent()).pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=RUN_SUITE.parent)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.communicate()
    assert ends(child)


def test_a_child_and_its_children_die_with_their_parent_anywhere(tmp_path: Path) -> None:
    """Without the help of Linux: a thread looks for the parent, and kills the group."""
    child = (
        "import os, subprocess, sys, time, claims\n"
        "claims.end_with(int(sys.argv[1]))\n"
        "print(os.getpid(), subprocess.Popen(['sleep', '60']).pid, flush=True)\n"
        "time.sleep(60)"
    )
    code = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())], start_new_session=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, child], stdout=subprocess.PIPE, text=True, cwd=RUN_SUITE.parent
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(0.6)
    assert not any(ends(pid, 0.1) for pid in pids), "the parent lives"
    parent.kill()
    parent.wait()
    assert all(ends(pid) for pid in pids)


def ends(pid: int, seconds: float = 2.0) -> bool:
    """Whether a process ends in time; one that nobody has waited for yet counts as ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_two_suites_do_each_run_once(tmp_path: Path) -> None:
    suites = [suite(tmp_path, seeds="0 1 2") for _ in range(2)]
    texts = [process.communicate(timeout=900)[0] for process in suites]
    assert [process.returncode for process in suites] == [0, 0], texts
    assert len(list((tmp_path / "runs").iterdir())) == 3
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs").iterdir()]
    assert Counter(result["seed"] for result in results) == {0: 1, 1: 1, 2: 1}
    assert all((result["resumes"], result["gradient_steps"]) == (0, 60) for result in results)
    logs = [path.read_text() for path in (tmp_path / "logs").iterdir()]
    assert all(log.count("learning, 0 of 60") == 1 for log in logs), "a second process would have said so again"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc and prctl")
@pytest.mark.parametrize("prctl", [True, False])
def test_a_killed_suite_leaves_no_process(tmp_path: Path, prctl: bool) -> None:
    process = suite(tmp_path, agent="goal_seeker:GoalSeeker[pause=0.2,steps=200]", prctl=prctl)
    deadline = time.monotonic() + 300  # of a busy machine
    while len(children := runs_in(tmp_path)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert all(ends(child) for child in children)
    assert runs_in(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc and prctl")
def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    """In a gradient step that takes a minute: the first interrupt has to wait for it, the second does not."""
    process = suite(tmp_path, agent="goal_seeker:GoalSeeker[pause=60]", seeds="0")
    log = tmp_path / "logs"
    deadline = time.monotonic() + 300  # of a busy machine
    while not any("learning, 0 of" in path.read_text() for path in log.glob("*.log")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    children = runs_in(tmp_path)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=10)
    assert time.monotonic() - began < 3
    assert process.returncode == 130
    assert "Ctrl-C again ends them at once" in text
    assert len(children) == 1
    assert ends(children[0])


def test_a_suite_that_begins_beside_another_finds_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both try whether the folder takes a file, and the other one has already removed it."""
    monkeypatch.setattr(run_suite, "write_json", lambda path, _: None)
    run_suite.check_place(tmp_path, 1)
