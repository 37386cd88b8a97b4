"""All that a repository holds of reports: written, shared between suites, pasted into the README, and checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_files import UMAZE, a_run, rows_of, score, three_agents, write_runs

import report
from reporting import figures, intervals


def returned(mean: float, std: float, policy: str = "x.npz") -> dict[str, Any]:
    return {"policy": {"behaviour": "P", "file": policy}, "episodes": 101, "mean_return": mean, "std_return": std}


# D4RL's points are 1 wide for AntMaze (in hundredths) and 29.37 for door.
TWO_SIMULATORS = {
    "4.0.0": {"door": returned(2937.0, 100.0), "antmaze-umaze": returned(0.8, 0.4)},
    "3.4.0": {"door": returned(2937.0 - 293.71, 100.0), "antmaze-umaze": returned(0.75, 0.43), "pen": returned(3, 1)},
    "3.11.0": {"door": returned(2937.0, 0.0)},
    "3.3.7": {"door": returned(0.0, 0.0)},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A README, two suites, and a record, with everything that is made from them."""
    tmp_path = tmp_path_factory.mktemp("repository")
    begin, end = report.BLOCK
    (tmp_path / "README.md").write_text(f"before\n\n{begin}old\n{end}\nafter\n")
    plain = a_run("LatentDiffuser", UMAZE, 0, 50, finished="2026-01-01T00:00:00+00:00")
    approximate = a_run("LatentDiffuser[guidance=mse]", UMAZE, 0, 50)
    write_runs(tmp_path / "results" / "maze2d", [*three_agents(seeds=2), plain])
    older = a_run("LatentDiffuser", UMAZE, 0, 20, finished="2020-01-01T00:00:00+00:00")
    write_runs(tmp_path / "results" / "guidance", [older, approximate])
    record = {
        "id": "ld-agents/adroit/door-human-v0",
        "behaviour": {"mean_return": 1000.0, "std_return": 5.0, "success_rate": 0.5},
        "replay_check": {"passed": True, "max_next_state_error": 1e-7, "max_reward_error": 0.0, "steps": 600},
        "demonstrations": "real",
        "provenance": "regenerated",
        "description": "A door. 1,000 steps",
        "steps": 1000,
        "original_steps": 6729,
        "episodes": 25,
        "seconds": 4.0,
        "sha256": "ab" * 32,
        "versions": {"mujoco": "3.11.0"},
    }
    (tmp_path / "results" / "datasets").mkdir()
    (tmp_path / "results" / "datasets" / "door.json").write_text(json.dumps(record))
    (tmp_path / "results" / "simulators.json").write_text(json.dumps(TWO_SIMULATORS))
    shutil.copy(report.ROOT / "results" / "ray.json", tmp_path / "results")
    write_runs(tmp_path / "results" / "quick", [a_run()])  # not part of the repository
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "REPS", 20)
        patch.setitem(figures.STYLE, "savefig.dpi", 30)
        report.all_pages(tmp_path).write()
    return tmp_path


@pytest.fixture
def repository(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(intervals, "REPS", 20)
    monkeypatch.setitem(figures.STYLE, "savefig.dpi", 30)
    return Path(shutil.copytree(built, tmp_path / "repository"))


def test_a_suite_shows_its_own_runs(repository: Path) -> None:
    agents = {row["agent"] for row in rows_of(repository / "results" / "maze2d" / "tables" / "table.csv")}
    assert agents == {"LDCQ", "LDCQ[prior=gaussian]", "BC", "LatentDiffuser", "controller", "random"}


def test_the_page_of_simulators(repository: Path) -> None:
    text = (repository / "results" / "simulators.md").read_text()
    head, _, door, antmaze, pen = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    )
    assert head == ["task", "policy", *(f"mujoco {v}" for v in ("3.3.7", "3.4.0", "3.11.0", "4.0.0")), "rise at 3.5.0"]
    assert door[2:6] == ["0.00 [0.00, 0.00]", "2,643 [2,624, 2,663]", "2,937 [2,937, 2,937]", "2,937 [2,917, 2,957]"]
    assert door[6] == "**+10.0 [+9.3, +10.7]**"  # 1.96 * 100 / sqrt(100) / 29.37 = 0.67
    assert antmaze[:2] == ["antmaze-umaze", "x.npz"]
    assert antmaze[2:] == ["–", "0.75 [0.67, 0.83]", "–", "0.80 [0.72, 0.88]", "–"]  # 3.11.0 was not measured
    assert pen[0] == "pen"
    assert "of 101 episodes" in text
    assert "Here 1 of 3 rows are bold" in text


def test_readme_block(repository: Path) -> None:
    readme = (repository / "README.md").read_text()
    begin, end = report.BLOCK
    assert readme.startswith(f"before\n\n{begin}Interquartile mean")
    assert readme.endswith(f"{end}\nafter\n")
    assert "old" not in readme
    row = next(line for line in readme.splitlines() if line.startswith("| `LDCQ` |"))
    assert row.startswith(f"| `LDCQ` | {(score(150) + score(155)) / 2:.1f} ({score(150):.1f} to {score(155):.1f}) |")
    # one seed, no interval; the suite that is read first has an older run of it, whose score is 20
    assert f"| `LatentDiffuser` | {score(50):.1f} |" in readme
    assert "guidance=mse" not in readme
    (repository / "README.md").write_text("no markers")
    with pytest.raises(SystemExit, match="lacks the lines"):
        report.check(repository)


def test_check_passes_and_finds_every_change(repository: Path) -> None:
    assert report.check(repository) == []
    suite = repository / "results" / "maze2d"
    table, run, readme = suite / "tables" / "table.md", suite / "runs" / "000.json", repository / "README.md"

    def problems_after(path: Path, text: str | None) -> str:
        """What the check says while `path` holds `text`, or is missing."""
        before = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        problems = report.check(repository)
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)
        assert problems
        return "\n".join(problems)

    level = f"{(score(150) + score(155)) / 2:.1f}"
    changed = problems_after(table, table.read_text().replace(level, "99.9"))
    assert f"--- {table}" in changed
    assert "99.9" in next(line for line in changed.splitlines() if line.startswith("-|"))
    assert level in next(line for line in changed.splitlines() if line.startswith("+|"))
    assert f"--- {readme}" in problems_after(readme, readme.read_text().replace(level, "99.9"))
    assert "--- " in problems_after(repository / "results" / "datasets.md", "by hand")
    assert "--- " in problems_after(repository / "results" / "ray.md", "by hand")
    for name in ("simulators.md", "simulators.json"):
        page = (repository / "results" / name).read_text()
        assert "--- " in problems_after(
            repository / "results" / name, page.replace("2937", "2938").replace("2,937", "2,938")
        )
    for of_run in (run.read_text().replace("140.0", "141.0"), None):
        changed = problems_after(run, of_run)
        for name in ("tables/table.md", "tables/table.csv", "tables/aggregates.md", "tables/aggregates.csv"):
            assert f"--- {suite / name}" in changed
        assert f"--- {readme}" in changed
        assert f"{suite / 'figures' / 'scores.png'}: drawn from other run files" in changed
        assert f"{repository / 'results' / 'overview.png'}: drawn from other run files" in changed
    assert "skipped 000.json: " in problems_after(run, "{")
    assert f"{table}: missing" in problems_after(table, None)
    figure = suite / "figures" / "profiles.png"
    assert problems_after(figure, None) == f"{figure}: missing"
    for leftover in (suite / "tables" / "old.md", suite / "figures" / "old.png"):
        assert problems_after(leftover, "") == f"{leftover}: nothing makes it any more"
    assert report.check(repository) == []
    (suite / "figures" / "old.png").touch()
    report.build(suite)
    assert report.check(repository) == []


def test_check_finds_what_has_no_runs_and_asks_others(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "OTHER_CHECKS", (lambda: ["speed.md: measured with other settings"],))
    monkeypatch.setattr(report, "ROOT", repository)
    (repository / "results" / "gone" / "tables").mkdir(parents=True)
    first, second = report.check(repository)
    assert first.startswith(f"no finished run in {repository / 'results' / 'gone' / 'runs'}")
    assert second == "speed.md: measured with other settings"
    assert report.main(["--check"]) == 1
