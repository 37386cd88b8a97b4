"""Rebuild every table, figure and README block from run files and dataset records, and from nothing else.

    python benchmarks/report.py                  all of results/ and the README
    python benchmarks/report.py results/quick    the tables and figures of one suite
    python benchmarks/report.py --check          say what differs from its run files, and fail if anything does
    python benchmarks/report.py results/maze2d --add my_scores.csv --out my_report    your scores beside the suite's
    python benchmarks/report.py results/maze2d --latex                                table.tex as well

Each suite gets tables, figures and a report.html. Same files in, byte-identical tables out. What is no longer made is
deleted. Raw returns are normalized here; published numbers keep columns of their own.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

import timing
from files import write_text
from reporting import (
    aggregates,
    coverage,
    datasets_table,
    figures,
    latex,
    losses,
    overview,
    ranking_table,
    schedule,
    simulators,
    studies,
    tables,
)
from reporting.added_scores import with_added
from reporting.page import suite_page
from reporting.runs import alike, digest, frame, read_failures, read_runs
from suites import ALL_AGENTS, SUITES, grid

ROOT = Path(__file__).resolve().parent.parent
NOT_KEPT = ("first", "quick", "smoke")  # suites whose results are not part of the repository
# Checks of pages that are not made from run files: each returns a list of problems.
OTHER_CHECKS: tuple[Callable[[], list[str]], ...] = (timing.check_pages,)
BLOCK = ("<!-- results: begin -->\n", "<!-- results: end -->\n")


@dataclass
class Pages:
    """What run files and records say, by path: texts, and figures with the hash of their run files.

    `folders` hold nothing else; `problems` are run files that could not be read. `uncommitted` are files that the
    repository does not keep, which are therefore not compared.
    """

    made: dict[Path, str | tuple[figures.Drawing, str]] = field(default_factory=dict)
    uncommitted: dict[Path, Callable[[], str]] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def leftovers(self) -> list[Path]:
        """Files that nothing makes any more."""
        there = (path for folder in self.folders if folder.exists() for path in folder.iterdir())
        return sorted(set(there) - self.made.keys())

    def write(self, with_figures: bool = True, strict: bool = False) -> None:
        """Write all pages, each of which appears whole or not at all, and delete the leftovers.

        Raises:
            SystemExit: `strict`, and a file could not be read.
        """
        if strict and self.problems:
            raise SystemExit("\n".join([*self.problems, "nothing is written; correct or remove these files"]))
        print(*self.problems, sep="\n", end="\n" * bool(self.problems), file=sys.stderr)
        for path, page in self.made.items():
            if isinstance(page, str):
                write_text(path, page)
            elif with_figures:
                figures.save(*page, path)
        for path, text in self.uncommitted.items():
            if with_figures:
                write_text(path, text())
        for path in self.leftovers():
            path.unlink()

    def differences(self) -> Iterator[str]:
        """How the files that are there differ from these pages.

        Texts are compared byte by byte. Figures differ between machines: they are compared by their list and by the
        hash of the run files that they were drawn from.
        """
        yield from self.problems
        yield from (f"{path}: nothing makes it any more" for path in self.leftovers())
        for path, page in self.made.items():
            if not path.exists():
                yield f"{path}: missing"
            elif not isinstance(page, str):
                if figures.drawn_from(path) != page[1]:
                    yield f"{path}: drawn from other run files"
            elif (found := path.read_text(encoding="utf-8")) != page:
                lines = found.splitlines(), page.splitlines()
                diff = difflib.unified_diff(*lines, str(path), "what its files say", lineterm="", n=0)
                yield "\n".join(itertools.islice(diff, 20))


def suite_runs(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """The runs that a suite's tables show, and a line for each run file that was skipped.

    Raises:
        SystemExit: when the folder holds no valid run.
    """
    runs, skipped = read_runs(folder / "runs")
    if not runs:
        lines = [*skipped, f"no finished run in {folder / 'runs'}; benchmarks/run_suite.py makes them"]
        raise SystemExit("\n".join(lines))
    return frame(runs), [f"skipped {line}" for line in skipped]


def missing(title: str, runs: pd.DataFrame) -> list[str]:
    """A line about the agents of the suite's grid that have no run yet on a dataset, if there are any."""
    if title not in SUITES or title in NOT_KEPT:
        return []
    there = set(zip(runs["agent"], runs["dataset"], strict=True))
    lacking: dict[str, list[str]] = {}
    for agent, dataset in dict.fromkeys((run.agent, run.dataset) for run in grid(SUITES[title])):
        if (agent, dataset) not in there:
            lacking.setdefault(dataset, []).append(agent)
    everybody = set(SUITES[title].agents)
    cells = [
        f"{dataset} (all agents)" if set(agents) == everybody else f"{dataset} ({', '.join(agents)})"
        for dataset, agents in lacking.items()
    ]
    return [f"no run yet on {'; '.join(cells)}"] if cells else []


def add_suite(
    pages: Pages, folder: Path, out: Path | None = None, added: Path | None = None, with_latex: bool = False
) -> str:
    """Add a suite's tables, figures and page to the pages; returns its table for the terminal.

    Args:
        pages: what is added to.
        folder: has the suite's run files in `runs/`.
        out: where tables, figures and page go; the folder itself by default, where what no run makes is deleted.
        added: a CSV file of scores that did not run here; see `added_scores.with_added`.
        with_latex: whether the page has a LaTeX table beside it.

    Raises:
        SystemExit: when the folder holds no valid run, or the scores cannot be taken.
    """
    runs, skipped = suite_runs(folder)
    pages.problems += skipped
    title, failures = folder.resolve().name, read_failures(folder)
    if out is None:
        pages.folders += [folder / "tables", folder / "figures"]
    if title == studies.FOLDER:
        return add_studies(pages, folder, runs, failures)
    found, why = losses.losses(runs), losses.read_reasons(folder)
    pages.problems += [f"{folder / 'reasons.md'}: {line}" for line in losses.stale(found, why)]
    folder = out or folder
    if added is not None:
        try:
            runs = with_added(runs, added)
        except ValueError as error:
            raise SystemExit(str(error)) from None
    numbers, texts = tables.score_tables(runs)
    texts = tables.with_failures(texts, failures)
    if added is not None:
        found = losses.losses(runs)
    groups, source = aggregates.aggregate(runs), digest(runs)
    pages.made |= {
        folder / "tables" / "table.md": tables.table_markdown(texts, runs, failures, missing(title, runs)),
        folder / "tables" / "table.csv": tables.table_csv(numbers),
        folder / "tables" / "aggregates.md": aggregates.aggregates_markdown(groups, failures),
        folder / "tables" / "where_we_lose.md": losses.page(found, why),
        folder / "tables" / "aggregates.csv": aggregates.aggregates_csv(groups),
    }
    for name, draw in figures.drawings(runs, numbers, groups).items():
        pages.made[folder / "figures" / name] = draw, source
    pages.uncommitted[folder / "report.html"] = lambda: suite_page(
        title, runs, numbers, texts, groups, failures, found, losses.explained(found, why)
    )
    if with_latex:
        pages.uncommitted[folder / "table.tex"] = lambda: latex.latex(runs)
    return tables.table_terminal(texts, runs)


def add_studies(pages: Pages, folder: Path, runs: pd.DataFrame, failures: Sequence[Mapping[str, str]]) -> str:
    """Add the studies' tables, figures and page to the pages; returns the table of all runs for the terminal."""
    numbers, texts = tables.score_tables(runs)
    made, problems = studies.pages(folder, runs, texts)
    pages.made |= made
    pages.problems += problems
    texts = tables.with_failures(texts, failures)
    pages.uncommitted[folder / "report.html"] = lambda: suite_page(
        folder.resolve().name, runs, numbers, texts, aggregates.aggregate(runs), failures
    )
    return tables.table_terminal(texts, runs)


def all_pages(root: Path) -> Pages:
    """Everything in a repository that is made from run files and records."""
    pages, found = Pages(), []
    parts = [path for name in ("runs", "tables", "figures") for path in (root / "results").glob(f"*/{name}")]
    for folder in sorted({path.parent for path in parts if path.parent.name not in NOT_KEPT}):
        try:
            add_suite(pages, folder)
        except SystemExit as error:  # tables without runs
            pages.problems.append(str(error))
        found += read_runs(folder / "runs")[0] if folder.name != studies.FOLDER else []
    if (folder := root / "results" / studies.FOLDER).exists() and not (folder / "runs").exists():
        pages.made |= studies.pages(folder, None, None)[0]
    # Agents of the suites' grids with all their steps; other settings are studies with tables of their own. Of a run
    # that several suites have, `frame` takes the first: the newest.
    full = [r for r in found if r["agent"] in ALL_AGENTS and r["preset"] == "fast" and r["budget_share"] == 1]
    runs = frame(alike(full))
    groups, readme = overview.by_family(runs), root / "README.md"
    pages.made |= {
        readme: with_block(readme.read_text(encoding="utf-8"), overview.table(runs, groups)),
        root / "results" / "datasets.md": datasets_table.page(root / "results" / "datasets"),
        root / "results" / "coverage.md": coverage.page(),
        root / "results" / "simulators.md": simulators.page(root / "results" / "simulators.json"),
        root / "results" / "ray.md": schedule.page(root / "results" / "ray.json"),
        root / "results" / "offline_evaluation.md": ranking_table.page(root / "results" / "offline_evaluation"),
        root / "results" / "overview.png": ((lambda: overview.figure(runs, groups)), digest(runs)),
    }
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


def build(
    folder: Path,
    with_figures: bool = True,
    strict: bool = False,
    out: Path | None = None,
    added: Path | None = None,
    with_latex: bool = False,
) -> str:
    """Write tables, figures and page of the run files in FOLDER/runs; returns the table for the terminal.

    `out`, `added` and `with_latex` as in `add_suite`.

    Raises:
        SystemExit: when the folder holds no valid run, or the scores cannot be taken.
    """
    pages = Pages()
    table = add_suite(pages, folder, out, added, with_latex)
    pages.write(with_figures, strict)
    return table


def check(root: Path) -> list[str]:
    """What in a repository differs from what its run files and records say, and what other checks say."""
    return [*all_pages(root).differences(), *(problem for other in OTHER_CHECKS for problem in other())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with runs/ (default: everything in results/)")
    parser.add_argument("--check", action="store_true", help="write nothing; compare what is there with the run files")
    parser.add_argument("--strict", action="store_true", help="stop where a run file cannot be read, and write nothing")
    parser.add_argument("--add", type=Path, metavar="CSV", help="scores of your own: agent,dataset,seed,score")
    parser.add_argument("--out", type=Path, help="where the tables of one suite go (default: its folder)")
    parser.add_argument("--latex", action="store_true", help="write table.tex, too, with the best cells in bold")
    options = parser.parse_args(arguments)
    if (options.add or options.out) and (len(options.folders) != 1 or not options.out):
        raise SystemExit("--add needs one suite and --out: report.py results/maze2d --add my_scores.csv --out mine")
    if options.latex and not options.folders:
        raise SystemExit("--latex needs a suite: report.py results/maze2d --latex")
    if options.check:
        problems = check(ROOT)
        print(*problems, sep="\n\n")
        print(
            "\nrun benchmarks/report.py and review the diff"
            if problems
            else "results are up to date with their run files"
        )
        return min(1, len(problems))
    for folder in options.folders:
        print(build(folder, True, options.strict, options.out, options.add, options.latex))
    if not options.folders:
        all_pages(ROOT).write(strict=options.strict)
    return 0


if __name__ == "__main__":
    sys.exit(main())
