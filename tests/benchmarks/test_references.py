"""What stands beside an agent's scores in the tables: measured policies and published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_files import LARGE, PEN, UMAZE, a_run, rows_of, score, three_agents, write_runs

import report
from ld_agents.evaluation.scores import MeasuredScore
from reporting import references, tables
from reporting.runs import frame


def markdown(runs: list[dict[str, Any]]) -> str:
    return tables.table_markdown(tables.score_tables(frame(runs))[1], frame(runs))


def test_measured_policies_stand_beside_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {
        "pen": {
            "expert": MeasuredScore(3076.8331017826877, 5.0, 0.7, 100, "e", {"mujoco": "3.9.0"}),
            "random": MeasuredScore(96.262799, 1.0, 0.0, 50, "e", {"mujoco": "3.11.0"}),
        }
    }
    monkeypatch.setattr(references, "MEASURED_SCORES", measured)
    stored_none = {"controller": None}
    report.build(write_runs(tmp_path, [a_run(on=PEN, dataset=stored_none)]), with_figures=False)
    rows = {(row["agent"], row["protocol"]): row for row in rows_of(tmp_path / "tables" / "table.csv")}
    assert [rows[name, "env"]["mean"] for name in ("expert", "random")] == ["100.000", "0.000"]
    assert [rows[name, "success"]["mean"] for name in ("expert", "random")] == ["70.000", "0.000"]
    assert [rows[name, "env"]["episodes"] for name in ("expert", "random")] == ["100", "50"]
    text = (tmp_path / "tables" / "table.md").read_text()
    assert "| *expert* | – | – | – | 100 | 100.0 | 70.0 |" in text
    assert f"- {PEN}: reference policies measured under mujoco 3.9.0\n" in text
    # Data that carry their own measurements show those alone, and data that are not ours show none.
    own = references.policies(frame([a_run(on=PEN)]))
    assert [name for name, _, _ in own] == ["controller", "random"]
    assert references.policies(frame([a_run(on="D4RL/pen/human-v2", dataset=stored_none)])) == []


def test_published_numbers_have_their_own_columns(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, [*three_agents(), a_run("my_module:BC"), a_run("BC[steps=1]")])
    report.build(folder, with_figures=False)
    rows = rows_of(tmp_path / "tables" / "table.csv")
    with_published = [row for row in rows if row["published_score"]]
    assert [(row["agent"], row["protocol"], row["published_score"]) for row in with_published] == [
        ("BC", "env", "0.36")
    ]
    assert with_published[0]["published_source"] == "github corl-team/CORL README.md"
    assert float(with_published[0]["mean"]) == pytest.approx(score(35), abs=1e-3)
    text = (tmp_path / "tables" / "table.md").read_text()
    assert "0.36 ± 8.69 | CORL, last checkpoint (maze2d-umaze-v1)" in text


def test_the_papers_own_numbers_stand_beside_ours() -> None:
    large = "ld-agents/antmaze/large-diverse-v0"
    text = markdown([a_run(on=large)])
    assert "| 57.7 ± 1.8 | the paper, second-hand (antmaze-large-diverse-v2) |" in text
    file = a_run("BC", "maze2d-umaze-v1", dataset={"provenance": "d4rl-file"})
    assert "0.36 ± 8.69 | CORL" in markdown([file])
    stand_in = a_run(on=large, dataset={"provenance": "stand-in"})
    assert "57.7" not in markdown([stand_in])


def test_what_is_published_on_other_data_is_in_texts_alone() -> None:
    """Where goals are drawn, OGBench's scores on the maze of the same map; it has no umaze."""
    antmaze = "ld-agents/antmaze/medium-diverse-v1"
    drawn = [
        a_run("LDGC", f"{name}[eval_goals=cells]", dataset={"name": f"{name} with drawn goals: cells"})
        for name in (UMAZE, LARGE, antmaze)
    ]
    made = frame([*drawn, a_run(on=LARGE), a_run(on=antmaze)])
    numbers, texts = tables.score_tables(made)
    lines = [line for line in tables.table_markdown(texts, made).splitlines() if "HIQL" in line]
    assert [line.split(" | ")[0] for line in lines] == [f"| {name}[eval_goals=cells]" for name in (antmaze, LARGE)]
    assert lines[0].endswith("| 96 ± 1 % successes | OGBench, second-hand (antmaze-medium-navigate-v0) |")
    assert lines[1].endswith("| 58 ± 5 % successes | OGBench, second-hand (pointmaze-large-navigate-v0) |")
    assert "; OGBench's are of agents that did not run here" in tables.table_markdown(texts, made)
    assert "OGBench" not in markdown([a_run(on=LARGE)])
    assert not numbers["agent"].str.contains("HIQL").any()
    assert "HIQL" not in tables.table_terminal(texts, made)


def test_runs_on_another_recording_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "RECORDS", tmp_path)
    references._recorded.cache_clear()
    try:
        (tmp_path / "pen.json").write_text(json.dumps({"id": PEN, "sha256": "ab" * 32}))
        runs = [a_run("BC", PEN), a_run("IQL", PEN, dataset={"hash": "cd" * 32}), a_run("BC", UMAZE)]
        (line,) = (line for line in tables.notes(frame(runs)) if "recording" in line)
    finally:
        references._recorded.cache_clear()
    assert line == f"{PEN}: IQL: learned from another recording than the one in results/datasets.md"
