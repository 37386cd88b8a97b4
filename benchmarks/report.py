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
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

import timing
from files import write_text
from reporting import aggregates, datasets_table, figures, overview, tables
from reporting.runs import digest, frame, read_runs
from suites import ALL_AGENTS

ROOT = Path(__file__).resolve().parent.parent
NOT_KEPT = ("quick", "smoke")  # suites whose results are not part of the repository
# Runs that belong to two suites are stored with one; the other's tables show them too.
SHARED_RUNS = {"maze2d": ("guidance", "LatentDiffuser")}
# Checks of pages that are not made from run files: each returns a list of problems.
OTHER_CHECKS: tuple[Callable[[], list[str]], ...] = (timing.check_pages,)
BLOCK = ("<!-- results: begin -->\n", "<!-- results: end -->\n")


@dataclass
class Pages:
    """What run files and records say: texts, and figures with the hash of their run files, by path.

    `folders` hold nothing else; `problems` are run files that could not be read.
    """

    texts: dict[Path, str] = field(default_factory=dict)
    drawings: dict[Path, tuple[figures.Drawing, str]] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def leftovers(self) -> list[Path]:
        """Files that nothing makes any more."""
        there = (path for folder in self.folders if folder.exists() for path in folder.iterdir())
        return sorted(path for path in there if path not in self.texts and path not in self.drawings)

    def write(self, with_figures: bool = True) -> None:
        """Write all pages, each of which appears whole or not at all, and delete the leftovers."""
        print(*self.problems, sep="\n", end="\n" * bool(self.problems), file=sys.stderr)
        for path, text in self.texts.items():
            write_text(path, text)
        for path, (draw, source) in self.drawings.items() if with_figures else ():
            figures.save(draw, source, path)
        for path in self.leftovers():
            path.unlink()

    def differences(self) -> Iterator[str]:
        """How the files that are there differ from these pages.

        Texts are compared byte by byte. Figures differ between machines: they are compared by their list and by the
        hash of the run files that they were drawn from.
        """
        yield from self.problems
        yield from (f"{path}: nothing makes it any more" for path in self.leftovers())
        yield from (f"{path}: missing" for path in (*self.texts, *self.drawings) if not path.exists())
        for path, text in self.texts.items():
            if path.exists() and (found := path.read_text(encoding="utf-8")) != text:
                lines = difflib.unified_diff(
                    found.splitlines(), text.splitlines(), str(path), "what its files say", lineterm="", n=0
                )
                yield "\n".join(list(lines)[:20])
        for path, (_, source) in self.drawings.items():
            if path.exists() and figures.drawn_from(path) != source:
                yield f"{path}: drawn from other run files"


def suite_runs(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """The runs that a suite's tables show, and a line for each run file that was skipped.

    Raises:
        SystemExit: when the folder holds no valid run.
    """
    runs, skipped = read_runs(folder / "runs")
    if not runs:
        lines = [*skipped, f"no finished run in {folder / 'runs'}; benchmarks/run_suite.py makes them"]
        raise SystemExit("\n".join(lines))
    if folder.name in SHARED_RUNS:
        other, agent = SHARED_RUNS[folder.name]
        runs += [run for run in read_runs(folder.parent / other / "runs")[0] if run["agent"] == agent]
    return frame(runs), [f"skipped {line}" for line in skipped]


def add_suite(pages: Pages, folder: Path) -> str:
    """Add a suite's tables and figures to the pages; returns its table for the terminal.

    Raises:
        SystemExit: when the folder holds no valid run.
    """
    runs, skipped = suite_runs(folder)
    pages.problems += skipped
    numbers, texts = tables.score_tables(runs)
    groups = aggregates.aggregate(runs)
    made = {
        "table.md": tables.table_markdown(texts, runs),
        "table.csv": tables.table_csv(numbers),
        "aggregates.md": aggregates.aggregates_markdown(groups),
        "aggregates.csv": aggregates.aggregates_csv(groups),
    }
    pages.texts |= {folder / "tables" / name: text for name, text in made.items()}
    source = digest(runs)
    drawings = figures.drawings(runs, numbers, groups)
    pages.drawings |= {folder / "figures" / name: (draw, source) for name, draw in drawings.items()}
    pages.folders += [folder / "tables", folder / "figures"]
    return tables.table_terminal(texts, runs)


def all_pages(root: Path) -> Pages:
    """Everything in a repository that is made from run files and records."""
    pages, overview_runs = Pages(), []
    parts = [path for name in ("runs", "tables", "figures") for path in (root / "results").glob(f"*/{name}")]
    for folder in sorted({path.parent for path in parts if path.parent.name not in NOT_KEPT}):
        try:
            add_suite(pages, folder)
        except SystemExit as error:  # tables without runs
            pages.problems.append(str(error))
        overview_runs += read_runs(folder / "runs")[0]
    # Agents of the suites' grids with all their steps; other settings are studies with tables of their own.
    runs = frame(
        [r for r in overview_runs if r["agent"] in ALL_AGENTS and r["preset"] == "fast" and r["budget_share"] == 1]
    )
    groups = overview.by_family(runs)
    readme = root / "README.md"
    pages.texts[readme] = with_block(readme.read_text(encoding="utf-8"), overview.table(runs, groups))
    pages.texts[root / "results" / "datasets.md"] = datasets_table.page(root / "results" / "datasets")
    pages.drawings[root / "results" / "overview.png"] = (lambda: overview.figure(runs, groups)), digest(runs)
    return pages


def with_block(readme: str, block: str) -> str:
    """The README with `block` between its two markers.

    Raises:
        SystemExit: when a marker is missing.
    """
    found, blocks = re.subn(f"(?<={BLOCK[0]}).*(?={BLOCK[1]})", lambda _: block, readme, flags=re.DOTALL)
    if not blocks:
        raise SystemExit(f"README.md lacks the lines {BLOCK[0]}{BLOCK[1]}put them where the table shall stand")
    return found


def build(folder: Path, with_figures: bool = True) -> str:
    """Write FOLDER/tables and FOLDER/figures from the run files in FOLDER/runs; returns the table for the terminal.

    Raises:
        SystemExit: when the folder holds no valid run.
    """
    pages = Pages()
    table = add_suite(pages, folder)
    pages.write(with_figures)
    return table


def check(root: Path) -> list[str]:
    """What in a repository differs from what its run files and records say, and what other checks say."""
    return [*all_pages(root).differences(), *(problem for other in OTHER_CHECKS for problem in other())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with runs/ (default: everything in results/)")
    parser.add_argument("--check", action="store_true", help="write nothing; compare what is there with the run files")
    options = parser.parse_args(arguments)
    if options.check:
        problems = check(ROOT)
        print(*problems, sep="\n\n")
        print(
            "\nrun benchmarks/report.py and look at what changes" if problems else "all that is committed is up to date"
        )
        return min(1, len(problems))
    for folder in options.folders:
        print(build(folder))
    if not options.folders:
        all_pages(ROOT).write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
