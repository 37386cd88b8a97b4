"""Rebuild every table, figure and README block from run files and dataset records, and from nothing else.

    python benchmarks/report.py                  all of results/ and the README
    python benchmarks/report.py results/quick    the tables and figures of one suite
    python benchmarks/report.py --check          say what differs from its run files, and fail if anything does

Same files in, byte-identical tables out. What is no longer made is deleted. Raw returns are normalized here; published
numbers keep columns of their own.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

import pandas as pd

from reporting import aggregates, datasets_table, figures, overview, tables
from reporting.runs import digest, frame, read_runs
from suites import ALL_AGENTS

ROOT = Path(__file__).resolve().parent.parent
NOT_KEPT = ("quick", "smoke")  # suites whose results are not part of the repository
# Runs that belong to two suites are stored with one; the other's tables show them too.
SHARED_RUNS = {"maze2d": ("guidance", "LatentDiffuser")}
# Checks of pages that are not made from run files: each returns a list of problems.
OTHER_CHECKS: tuple[Callable[[], list[str]], ...] = ()
BLOCK = ("<!-- results: begin -->\n", "<!-- results: end -->\n")


# What the run files say


def suite_runs(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """The runs that a suite's tables show, and a line for each run file that was skipped.

    Raises:
        SystemExit: when the folder holds no valid run.
    """
    runs, skipped = read_runs(folder / "runs")
    if not runs:
        raise SystemExit(
            "\n".join([*skipped, f"no finished run in {folder / 'runs'}; benchmarks/run_suite.py makes them"])
        )
    if folder.name in SHARED_RUNS:
        other, agent = SHARED_RUNS[folder.name]
        runs += [run for run in read_runs(folder.parent / other / "runs")[0] if run["agent"] == agent]
    return frame(runs), [f"skipped {line}" for line in skipped]


def suite_pages(runs: pd.DataFrame) -> tuple[dict[str, str], figures.Drawings, str]:
    """A suite's tables by file name, its figures, and the table for the terminal."""
    numbers, rows = tables.score_tables(runs)
    groups = aggregates.aggregate(runs)
    texts = {
        "table.md": tables.table_markdown(rows, runs),
        "table.csv": tables.table_csv(numbers),
        "aggregates.md": aggregates.aggregates_markdown(groups),
        "aggregates.csv": aggregates.aggregates_csv(groups),
    }
    return texts, figures.drawings(runs, numbers, groups), tables.table_terminal(rows, runs)


def suite_folders(root: Path) -> list[Path]:
    """The folders of results that hold runs, or tables or figures that nothing makes any more."""
    parts = {path.parent for name in ("runs", "tables", "figures") for path in (root / "results").glob(f"*/{name}")}
    return sorted(folder for folder in parts if folder.name not in NOT_KEPT)


def overview_runs(root: Path) -> pd.DataFrame:
    """Runs of all suites with the agents of the suites' grids, all their steps and the preset `fast`."""
    runs = [run for folder in suite_folders(root) for run in read_runs(folder / "runs")[0]]
    return frame(
        [run for run in runs if run["agent"] in ALL_AGENTS and run["preset"] == "fast" and run["budget_share"] == 1]
    )


def with_block(readme: str, block: str) -> str:
    """The README with `block` between its two markers.

    Raises:
        SystemExit: when a marker is missing.
    """
    before, begin, rest = readme.partition(BLOCK[0])
    _, end, after = rest.partition(BLOCK[1])
    if not (begin and end):
        raise SystemExit(f"README.md lacks the lines {BLOCK[0]}{BLOCK[1]}put them where the table shall stand")
    return f"{before}{begin}{block}{end}{after}"


def root_texts(root: Path, runs: pd.DataFrame) -> dict[Path, str]:
    """The pages that are not of one suite."""
    groups = overview.by_family(runs)
    return {
        root / "results" / "datasets.md": datasets_table.page(root / "results" / "datasets"),
        root / "README.md": with_block((root / "README.md").read_text(encoding="utf-8"), overview.table(runs, groups)),
    }


# Writing


def write(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def build(folder: Path, with_figures: bool = True) -> str:
    """Write FOLDER/tables and FOLDER/figures from the run files in FOLDER/runs; returns the table for the terminal.

    Raises:
        SystemExit: when the folder holds no valid run.
    """
    runs, skipped = suite_runs(folder)
    print(*skipped, sep="\n", end="\n" * bool(skipped), file=sys.stderr)
    texts, drawings, terminal = suite_pages(runs)
    for name, text in texts.items():
        write(folder / "tables" / name, text)
    for path in (folder / "tables").iterdir():
        if path.name not in texts:
            path.unlink()
    if with_figures:
        figures.draw_all(drawings, runs, folder / "figures")
    return terminal


def build_all(root: Path) -> None:
    """Write everything that is made from the run files and records of a repository."""
    for folder in suite_folders(root):
        print(f"{folder.relative_to(root)}\n\n{build(folder)}\n")
    runs = overview_runs(root)
    for path, text in root_texts(root, runs).items():
        write(path, text)
    figures.save(
        lambda: overview.figure(runs, overview.by_family(runs)), digest(runs), root / "results" / "overview.png"
    )


# Checking


def check(root: Path) -> Iterator[str]:
    """What in a repository differs from what its run files and records say, a problem at a time.

    Tables and README blocks are compared byte by byte. Figures differ between machines: they are compared by their list
    and by the hash of the run files that they were drawn from.
    """
    for folder in suite_folders(root):
        try:
            runs, skipped = suite_runs(folder)
        except SystemExit as error:
            yield str(error)
            continue
        yield from (f"{folder / 'runs'}: {line}" for line in skipped)
        texts, drawings, _ = suite_pages(runs)
        yield from _leftovers(folder / "tables", texts)
        yield from _leftovers(folder / "figures", drawings)
        for name, text in texts.items():
            yield from _compare(folder / "tables" / name, text)
        source = digest(runs)
        for name in drawings:
            yield from _compare_figure(folder / "figures" / name, source)
    runs = overview_runs(root)
    for path, text in root_texts(root, runs).items():
        yield from _compare(path, text)
    yield from _compare_figure(root / "results" / "overview.png", digest(runs))
    for other in OTHER_CHECKS:
        yield from other()


def _leftovers(folder: Path, made: Container[str]) -> Iterator[str]:
    for path in sorted(folder.glob("*")):
        if path.name not in made:
            yield f"{path}: nothing makes it any more"


def _compare(path: Path, text: str) -> Iterator[str]:
    found = path.read_text(encoding="utf-8") if path.exists() else None
    if found is None:
        yield f"{path}: missing"
    elif found != text:
        lines = difflib.unified_diff(
            found.splitlines(), text.splitlines(), str(path), "from the run files", lineterm="", n=0
        )
        yield "\n".join(list(lines)[:20])


def _compare_figure(path: Path, source: str) -> Iterator[str]:
    if not path.exists():
        yield f"{path}: missing"
    elif figures.drawn_from(path) != source:
        yield f"{path}: drawn from other run files"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with runs/ (default: everything in results/)")
    parser.add_argument("--check", action="store_true", help="write nothing; compare what is there with the run files")
    options = parser.parse_args(arguments)
    if options.check:
        problems = list(check(ROOT))
        print(*problems, sep="\n\n")
        print(
            "\nrun benchmarks/report.py and look at what changes" if problems else "all that is committed is up to date"
        )
        return min(1, len(problems))
    for folder in options.folders:
        print(build(folder))
    if not options.folders:
        build_all(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
