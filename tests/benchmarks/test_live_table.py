"""The live table: what it reads from logs, and what it shows while runs wait, learn, are evaluated, and end."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from rich.console import Console

import run_one
from live_table import Progress, live_table, read_progress, sparkline
from specs import Files, Run

DATASET = "ld-agents/pointmaze/umaze-10k-v0"
LOG = """learning, 0 of 9,000 gradient steps done
learning, 5 % of 9,000 gradient steps, 1,200 steps/s, 0:00:07 left
curve point 1 of 5: mean return 12.5
learning, 20 % of 9,000 gradient steps, 80 steps/s, 1 day, 0:01:30 left
curve point 2 of 5: mean return -1e+03
curve point 3 of 5: mean return evil
"""
RUNS = [
    Run(agent, "ld-agents/pointmaze/umaze-100k-v0", seed, "minutes", 1.0, 20)
    for agent in ("LDCQ", "BC")
    for seed in (0, 1)
]


def write_log(out: Path, run: Run, text: str) -> Path:
    log = Files(out, run.name).log
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    return log


def shown(out: Path, alive: list[Run], failures: dict[Run, str], height: int = 20) -> list[str]:
    console = Console(file=io.StringIO(), width=100, height=30)
    console.print(live_table(RUNS, out, alive, failures, "0:01:02", height))
    return [line.strip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_log_tells_progress(tmp_path: Path) -> None:
    log = write_log(tmp_path, RUNS[0], LOG)
    assert read_progress(log) == Progress(20, "80", "1 day, 0:01:30", (12.5, -1000.0))
    log.write_text(LOG + "evaluating, 20 episodes\n")
    assert read_progress(log).evaluating
    log.write_text(LOG + "evaluating, 20 episodes\nfinished: mean return 98.4, 20 successful, over 20 episodes\n")
    assert read_progress(log).result == "98.4"
    assert read_progress(tmp_path / "none.log") == Progress()


def test_a_line_of_the_runs_own_is_read(tmp_path: Path) -> None:
    """`run_one` and `live_table` must agree on the lines; the suite's other tests do not run on a terminal."""
    run = Run("goal_seeker:GoalSeeker", DATASET, 0, "fast", 1.0, 2)
    dataset = run_one.load_dataset(DATASET)
    agent, record = run_one.start_or_resume(run, tmp_path, dataset)
    progress = run_one.Progress(Files(tmp_path, run.name), record, dataset.make_eval_env, run)
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        run_one.learn(agent, progress)
    found = read_progress(write_log(tmp_path, run, lines.getvalue()))
    assert found.percent == 100
    assert float(found.speed.replace(",", "")) > 0
    assert found.left == "0:00:00"
    assert len(found.curve) == run_one.CURVE_POINTS


def test_sparklines_have_one_scale() -> None:
    assert sparkline([0, 50, 100], 0, 100) == "▁▅█"
    assert sparkline([100, 200], 0, 700) == "▂▃"
    assert sparkline([], 0, 1) == ""
    assert sparkline([3, 3], 3, 3) == "▁▁"


def test_the_table_fills(tmp_path: Path) -> None:
    first, second, third, _ = RUNS
    write_log(tmp_path, first, LOG + "finished: mean return 98.4, over 20 episodes\n")
    write_log(tmp_path, second, "learning, 5 % of 9,000 gradient steps, 80 steps/s, 0:01:30 left\n")
    lines = shown(tmp_path, [second], {third: "out of memory"})
    assert lines[0].split() == ["agent", "seed", "steps/s", "ETA", "learning", "curve", "return"]
    assert lines[1].startswith("LDCQ")
    assert lines[1].endswith("98.4")
    assert "█▁" in lines[1]
    assert "80" in lines[2]
    assert lines[2].endswith("0:01:30")
    assert "failed" in lines[3]
    assert "waiting" in lines[4]
    assert lines[5] == "2 of 4 runs done, 0:01:02"


def test_a_long_table_shows_what_is_at_work(tmp_path: Path) -> None:
    lines = shown(tmp_path, [RUNS[3]], {}, height=2)
    assert len(lines) == 4
    assert lines[1].split()[:2] == ["BC", "1"]
    assert "0 of 4 runs done" in lines[-1]


def test_the_table_tells_the_machines_of_a_cluster(tmp_path: Path) -> None:
    first, second, third, _ = RUNS
    write_log(tmp_path, first, "learning, 5 % of 9,000 gradient steps, 80 steps/s, 0:01:30 left\n")
    places = {first.name: "node-7", third.name: "node-8"}
    console = Console(file=io.StringIO(), width=100, height=30)
    console.print(live_table(RUNS, tmp_path, [first, second], {third: "out of memory"}, "0:01:02", 20, places))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].split()[:4] == ["agent", "seed", "machine", "steps/s"]
    assert lines[1].split()[:3] == ["LDCQ", "0", "node-7"]
    assert lines[2].split() == ["LDCQ", "1", "waiting"], "it has been given to the cluster, which has no room yet"
    assert lines[3].split() == ["BC", "0", "node-8", "failed"]
