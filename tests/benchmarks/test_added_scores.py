"""Scores from a CSV file beside a suite's, in tables, aggregates and LaTeX; what is refused, and with which words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from run_files import LARGE, UMAZE, a_run, rows_of, score, three_agents, write_runs

import report
from reporting import figures, intervals, latex, tables
from reporting.added_scores import MAX_ROWS, with_added
from reporting.runs import frame

HEAD = "agent,dataset,seed,score\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "REPS", 50)
    monkeypatch.setattr(figures, "save", lambda *_: None)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_runs(tmp_path / "suite", three_agents((UMAZE, LARGE), seeds=2))


def scores_file(folder: Path, text: str, head: str = HEAD) -> Path:
    path = folder / "mine.csv"
    path.write_text(head + text)
    return path


def test_runs_that_failed_are_told_of_wherever_the_report_goes(suite: Path, tmp_path: Path) -> None:
    failed = {"agent": "CQL", "dataset": UMAZE, "seed": 0, "preset": "fast", "reason": "DivergedError: loss is nan"}
    (suite / "failures").mkdir()
    (suite / "failures" / "cql.json").write_text(json.dumps(failed))
    out = tmp_path / "out"
    assert report.main([str(suite), "--out", str(out)]) == 0
    for page in (out / "tables" / "table.md", out / "report.html"):
        assert "DivergedError: loss is nan" in page.read_text()


def test_own_scores_stand_in_every_table(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in suite.rglob("*") if path.is_file()}
    rows = [
        f"Mine, {data}, {seed}, {level}" for data in ("pointmaze/umaze-v0", LARGE) for seed, level in ((0, 60), (1, 70))
    ]
    path, out = scores_file(tmp_path, "\n".join(rows)), tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "of_my_own.png").touch()
    assert report.main([str(suite), "--add", str(path), "--out", str(out), "--latex"]) == 0
    assert (out / "figures" / "of_my_own.png").exists(), "a folder that is given is not tidied up"
    assert "Mine" in capsys.readouterr().out
    mine = [row for row in rows_of(out / "tables" / "table.csv") if row["agent"] == "Mine"]
    assert [(row["dataset"], row["protocol"], float(row["mean"]), row["seeds"]) for row in mine] == [
        (LARGE, "env", 65.0, "0 1"),
        (UMAZE, "env", 65.0, "0 1"),
    ]
    assert {row["ms_per_action"] for row in mine} == {""}
    iqm = [
        row for row in rows_of(out / "tables" / "aggregates.csv") if (row["agent"], row["metric"]) == ("Mine", "IQM")
    ]
    assert [float(row["value"]) for row in iqm] == [65.0]
    text = (out / "tables" / "table.md").read_text()
    assert "Mine: scores that were added, not measured here" in text
    assert "rows mix" not in text, "what is not known of added scores is no mixture"
    beats = {(row["agent"], row["other_agent"]): row["value"] for row in rows_of(out / "tables" / "aggregates.csv")}
    assert float(beats["Mine", "BC"]) == 1.0
    assert (out / "report.html").read_text().count("Mine") > 5
    assert "Mine" in (out / "table.tex").read_text()
    assert {path: path.read_bytes() for path in suite.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A,nowhere-v0,0,1\n", "row 1: the suite has no dataset 'nowhere-v0'; write one of ld-agents/pointmaze/large"),
        ("LDCQ,pointmaze/umaze-v0,0,1\n", "agent 'LDCQ' is in the suite already; give yours another name"),
        ("A,pointmaze/umaze-v0,-1,1\n", "seed '-1'; write a whole number"),
        ("A,pointmaze/umaze-v0,1.0,1\n", r"seed '1\.0'; write a whole number"),
        ("A,pointmaze/umaze-v0,²,1\n", "seed '²'; write a whole number"),
        ("A,pointmaze/umaze-v0,0,nan\n", "score 'nan'; write a number"),
        ("A,pointmaze/umaze-v0,0,1e400\n", "score '1e400'; write a number"),
        ("A,pointmaze/umaze-v0,0,high\n", "score 'high'; write a number"),
        ("A,pointmaze/umaze-v0,0,\n", "score ''; write a number"),
        (",pointmaze/umaze-v0,0,1\n", "write a name of 1 to 100 printable characters"),
        ("A" * 101 + ",pointmaze/umaze-v0,0,1\n", "write a name of 1 to 100 printable characters"),
        ("A\x1b[31m,pointmaze/umaze-v0,0,1\n", "write a name of 1 to 100 printable characters"),
        (
            "A,pointmaze/umaze-v0,0,1\nA,ld-agents/pointmaze/umaze-v0,0,2\n",
            "A on ld-agents/.* has seed 0 twice; keep one",
        ),
        ("A,pointmaze/umaze-v0,0,1,5\n", "row 1: 5 cells; write agent,dataset,seed,score"),
        ("", f"0 rows; write 1 to {MAX_ROWS:,}"),
        ("A,pointmaze/umaze-v0,0,1\n" * (MAX_ROWS + 1), f"write 1 to {MAX_ROWS:,}"),
        ("A" * (1 << 20), "larger than 1 MiB"),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    runs = frame([a_run(), a_run(on=LARGE)])
    with pytest.raises(ValueError, match=message):
        with_added(runs, scores_file(tmp_path, text))


def test_files_that_are_none(suite: Path, tmp_path: Path) -> None:
    runs = frame([a_run()])
    with pytest.raises(ValueError, match="is no file; write one with the columns agent,dataset,seed,score"):
        with_added(runs, tmp_path / "none.csv")
    with pytest.raises(ValueError, match="has the columns name, score; write agent,dataset,seed,score"):
        with_added(runs, scores_file(tmp_path, "A,1\n", "name,score\n"))
    path = tmp_path / "binary.csv"
    for content in (b"\xff\xfe\x00", b"", b'agent,"dataset\n'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no CSV file of UTF-8 text"):
            with_added(runs, path)
    with pytest.raises(SystemExit, match="--add needs one suite and --out"):
        report.main(["--add", str(path)])
    with pytest.raises(SystemExit, match="--add needs one suite and --out"):
        report.main([str(suite), "--add", str(path)])
    with pytest.raises(SystemExit, match="--latex needs a suite"):
        report.main(["--latex"])
    with pytest.raises(SystemExit, match="is no CSV file"):
        report.main([str(suite), "--add", str(path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_nothing_of_a_run_is_told_of_added_scores(tmp_path: Path) -> None:
    runs = frame([a_run(seconds={"learn": 3600.0, "learn_cpu": 1200.0})])
    file = tmp_path / "mine.csv"
    file.write_text(f"agent,dataset,seed,score\nMine,{UMAZE},0,65.0\n")
    told = [line for line in tables.notes(with_added(runs, file)) if "processor time" in line]
    assert [line.partition(" ")[0] for line in told] == ["LDCQ"]


# LaTeX


def test_bold_is_what_a_test_cannot_tell_from_the_best() -> None:
    cells = {
        "best": pd.Series([100.0, 120.0, 110.0]),
        "close": pd.Series([95.0, 125.0, 105.0]),
        "unsure": pd.Series([88.0, 92.0, 90.0]),  # p = .07, though no score reaches the best's lowest
        "far": pd.Series([80.0, 84.0, 82.0]),  # p = .035
        "low": pd.Series([10.0, 12.0, 11.0]),
        "single": pd.Series([109.0]),
    }
    assert latex.best(cells) == {"best", "close", "unsure"}
    assert latex.best({"single": pd.Series([5.0]), "many": pd.Series([1.0, 2.0])}) == {"single"}
    assert latex.best({"one": pd.Series([3.0, 3.0]), "two": pd.Series([3.0, 3.0])}) == {"one", "two"}


def test_a_table_in_latex() -> None:
    runs = [a_run("A_1", UMAZE, seed, 150 + seed) for seed in (0, 1)] + [
        a_run("B%$", UMAZE, seed, 30) for seed in (0, 1)
    ]
    text = latex.latex(frame([*runs, a_run("B%$", LARGE, 0, 30)]))
    env, contact = text.split("\\end{tabular}")[:2]
    assert "\\begin{tabular}{lrr}" in env
    assert "Welch's t-test" in env
    row = next(line for line in env.splitlines() if line.startswith("pointmaze/umaze-v0"))
    half = 12.706 * 0.5  # t(1), and the standard error of 150 and 151
    mean, low, high = score(150.5), score(150.5 - half), score(150.5 + half)
    assert row == (
        f"pointmaze/umaze-v0 & {score(30):.1f} {{\\scriptsize [{score(30):.1f}, {score(30):.1f}]}} & "
        f"\\textbf{{{mean:.1f}}} {{\\scriptsize [{low:.1f}, {high:.1f}]}} \\\\"
    )
    assert re.search(r"^pointmaze/large-v0 & \\textbf\{-?[\d.]+\} & -- \\\\$", env, re.MULTILINE)
    assert "% first contact" in contact
    assert text.count("dataset & B\\%\\$ & A\\_1 \\\\") == 2


def test_latex_escapes_everything() -> None:
    assert latex.escaped("a\\input{/etc/passwd}\n%$#_&~^<>") == (
        r"a\textbackslash{}input\{/etc/passwd\} \%\$\#\_\&\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
    )
