"""The studies: a table and a figure of each that has runs, and a page with all of them and what they have answered."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.figure import Figure

from reporting import tables
from reporting.figures import Drawing, legend_below, look, short, wrapped_title
from reporting.references import hierarchical
from reporting.runs import ENV, RunFile, digest
from reporting.tables import markdown, number, ranged
from studies import STUDIES, Cell, Study

FOLDER = "studies"  # of results/
OPEN = "Not answered yet."
HEAD = """# Studies

Questions that the papers leave open, each answered by letting one setting vary; all else is the fast preset. \
`python benchmarks/run_suite.py --suite studies` does the runs. What is measured beside the score is defined in \
`benchmarks/measuring.py`; the answers are those of `answers.md`.
"""
PUBLISHED = """
## How does LatentDiffuser stand beside hierarchical and goal-conditioned methods on AntMaze?

By published numbers alone, other people's on D4RL's or OGBench's data; ours are in the suites' tables. No number for \
CompILE and GoFAR was found whose source could be read.

"""
LINES = ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v")


class Measure(NamedTuple):
    """How a measure is called in tables and figures; its unit is `factor` times that of the run files."""

    title: str
    factor: float = 1.0
    digits: int = 1


MEASURES = {
    "action_error": Measure("actions unexplained, %", 100),
    "covered": Measure("data's latents covered, %", 100),
    "action_spread": Measure("spread of the draws' actions, %", 100),
    "outside": Measure("outside the data, %", 100),
    "unlikely": Measure("unlikely when decoded, %", 100),
    "same_task": Measure("neighbors before the same task, %", 100),
    "tilt": Measure("tilt of plans, deviations", digits=2),
    "value": Measure("Q at the start"),
    "discounted_return": Measure("discounted return"),
    "overestimation": Measure("overestimation by Q"),
    "plan_ms": Measure("ms per decision", digits=2),
    "plan_mflop": Measure("MFLOP per decision"),
}
OF_DRAWS = ("outside", "unlikely", "covered", "action_spread")


def cells_with_runs(study: Study, runs: pd.DataFrame) -> list[tuple[Cell, pd.DataFrame]]:
    """The cells of a study that have runs, each with those of the largest budget; none while there is one value."""
    found = []
    for cell in study.cells:
        members = runs[(runs["agent"] == cell.agent) & (runs["dataset"] == cell.dataset)]
        if not members.empty:
            found.append((cell, members[members["budget_share"] == members["budget_share"].max()]))
    return found if len({cell.value for cell, _ in found}) > 1 else []


def measured(run: RunFile, name: str, cell: Cell) -> float:
    """A measure of a run in the unit of tables; not a number where it was not measured."""
    found: Any = run.get("measured") or {}
    if cell.draws is not None:
        found = found.get("draws", {}).get(cell.draws, {}) if name in OF_DRAWS else {}
    value = found.get(name)
    return MEASURES[name].factor * value if isinstance(value, int | float) else math.nan


def values(study: Study, cell: Cell, members: pd.DataFrame) -> dict[str, list[float]]:
    """By the title of a panel or column: the numbers of a cell's runs."""
    scores = [math.nan] * len(members) if cell.draws is not None else members[ENV].tolist()
    of_measures = {
        MEASURES[name].title: [measured(run, name, cell) for run in members["file"]] for name in study.measures
    }
    return {"score": scores, **of_measures}


def table(study: Study, found: list[tuple[Cell, pd.DataFrame]], texts: pd.DataFrame) -> pd.DataFrame:
    """A row of texts for each cell. `texts`: of `tables.score_tables`."""
    of_cell = texts.set_index(["dataset", "agent"])
    digits = {MEASURES[name].title: MEASURES[name].digits for name in study.measures}
    rows = []
    for cell, members in found:
        text = of_cell.loc[cell.dataset, members["label"].iloc[0]]
        row = {study.setting: cell.value, "dataset": short(cell.dataset), "agent": f"`{cell.agent}`"}
        row |= {"seeds": str(len(members))}
        row |= {name: "–" if cell.draws else text[name] for name in (ENV, "first contact", "success %") if name in text}
        for title, of_runs in values(study, cell, members).items():
            if title in digits:
                mean = sum(of_runs) / len(of_runs)
                several = len(of_runs) > 1 and not math.isnan(mean)
                row[title] = ranged(mean, of_runs, digits[title]) if several else number(mean, digits[title])
        rows.append(row | {"ms per action": text["ms per action"], "minutes": text["minutes"]})
    return pd.DataFrame(rows).fillna("–").astype(str)


def page(study: Study, rows: pd.DataFrame, runs: pd.DataFrame, answer: str, figure: str) -> str:
    """tables/STUDY.md."""
    notes = [tables.describe(runs), *tables.coverage(runs), *tables.notes(runs), tables.origin(runs)]
    return (
        f"# {study.question}\n\n{answer}\n\n{markdown(rows)}\n![{study.setting}](../figures/{figure})\n\nNotes:\n"
        + "".join(f"- {tables.escaped(line)}\n" for line in notes)
    )


def draw(study: Study, found: list[tuple[Cell, pd.DataFrame]]) -> Figure:
    """Score and measures over the values of the setting: large marks are means, dots single seeds."""
    ticks = list(dict.fromkeys(cell.value for cell, _ in found))
    lines = list(dict.fromkeys(cell.line for cell, _ in found))
    by_cell = [(cell, values(study, cell, members)) for cell, members in found]
    titles = [title for title in by_cell[0][1] if any(_known(of_cell[title]) for _, of_cell in by_cell)]
    figure, axes = pyplot.subplots(1, len(titles), figsize=(1.2 + 3.9 * len(titles), 4.3), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        for i, line in enumerate(lines):
            color, marker = look(line) if found[0][0].agent == line else LINES[i % len(LINES)]
            points = [(ticks.index(cell.value), _known(of[title])) for cell, of in by_cell if cell.line == line]
            points = sorted((x, ys) for x, ys in points if ys)
            means = [sum(ys) / len(ys) for _, ys in points]
            joined = "-" if all(tick[0].isdigit() for tick in ticks) else ""
            axis.plot([x for x, _ in points], means, joined, color=color, marker=marker, linewidth=2, label=short(line))
            for x, ys in points:
                axis.plot([x] * len(ys), ys, ".", color=color, alpha=0.5)
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set_xlim(-0.4, len(ticks) - 0.6)
        if max(map(len, ticks)) > 6:
            axis.tick_params(axis="x", rotation=30)
            pyplot.setp(axis.get_xticklabels(), ha="right")
        axis.set_title(title)
    axes[0, 0].set_xlabel(study.setting)
    wrapped_title(figure, study.question)
    legend_below(figure)
    return figure


def maps(found: list[tuple[Cell, pd.DataFrame]]) -> dict[str, Any]:
    """By value of the setting, the map of latents of the first run that has one."""
    files = {cell.value: [(run.get("measured") or {}).get("latent_map") for run in of["file"]] for cell, of in found}
    return {value: each[0] for value, each in files.items() if each[0]}


def draw_maps(study: Study, of_values: Mapping[str, Any]) -> Figure:
    """Latents in the planes of their principal components and of t-SNE, a column for each value of the setting."""
    figure, axes = pyplot.subplots(2, len(of_values), figsize=(0.6 + 3.9 * len(of_values), 8.6), squeeze=False)
    for (above, below), (value, found) in zip(axes.T, of_values.items(), strict=True):
        tasks = np.array(found["tasks"])
        for axis, places in ((above, np.array(found["places"])), (below, np.array(found["tsne"]))):
            for i, name in enumerate(found["names"]):
                last = i == len(found["names"]) - 1
                color, label = ("#c8c8c8", "no task follows") if last else (f"C{i}", f"before {name}")
                axis.scatter(*places[tasks == i].T, s=7, color=color, label=label, zorder=2)
            axis.set(xticks=[], yticks=[])
        first, second = found["variance"]
        above.set_title(f"{study.setting}: {value}", fontsize=10)
        above.set(xlabel=f"{100 * first:.0f} % of the variance", ylabel=f"{100 * second:.0f} %")
        below.set(xlabel="t-SNE")
    legend_below(figure)
    return figure


def _known(numbers: list[float]) -> list[float]:
    return [value for value in numbers if not math.isnan(value)]


def read_answers(path: Path) -> dict[str, str]:
    """Texts under the headings `## STUDY` of answers.md."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return {name: " ".join(answer.split()) for name, answer in found}


def unfounded(answers: Mapping[str, str], shown: Mapping[str, pd.DataFrame]) -> list[str]:
    """A line for each answer that does not rest on the numbers of its study's table, as they are now."""
    problems = []
    for name, answer in answers.items():
        if name not in shown:
            lacking = "no runs to compare" if name in STUDIES else "no study of that name"
            problems.append(f"{name}: {lacking}; delete its answer")
            continue
        there = set(re.findall(r"-?\d+\.\d+", " ".join(shown[name].to_numpy().ravel())))
        told = re.findall(r"-?\d+\.\d+", answer)
        if not told:
            problems.append(f"{name}: names no number of its table, such as a score")
        problems += [f"{name}: {value} is not in its table" for value in told if value not in there]
    return problems


def pages(
    folder: Path, runs: pd.DataFrame | None, texts: pd.DataFrame | None
) -> tuple[dict[Path, str | tuple[Drawing, str]], list[str]]:
    """Tables, figures and README of the studies in a folder by path, and what is wrong with the answers.

    `runs` and `texts`: of all studies; None without any run.
    """
    answers, made, shown = read_answers(folder / "answers.md"), dict[Path, Any](), dict[str, pd.DataFrame]()
    parts, still_open = [HEAD], []
    for name, study in STUDIES.items():
        found = [] if runs is None else cells_with_runs(study, runs)
        if texts is None or not found:
            still_open.append(f"- `{name}`: {study.question}\n")
            continue
        members = pd.concat([members for _, members in found]).drop_duplicates(["dataset", "label", "seed"])
        shown[name], answer = table(study, found, texts), answers.get(name, OPEN)
        made[folder / "tables" / f"{name}.md"] = page(study, shown[name], members, answer, f"{name}.png")
        made[folder / "figures" / f"{name}.png"] = functools.partial(draw, study, found), digest(members)
        pictures = f"![{study.setting}](figures/{name}.png)\n"
        if of_values := maps(found):
            made[folder / "figures" / f"{name}_map.png"] = (
                functools.partial(draw_maps, study, of_values),
                digest(members),
            )
            pictures += f"\n![Latents: principal components, t-SNE](figures/{name}_map.png)\n"
        lacking = len(study.cells) - len(found)
        missing = f" {lacking} of {len(study.cells)} cells have no run yet." * bool(lacking)
        parts.append(f"\n## {study.question}\n\n{answer} [Table](tables/{name}.md).{missing}\n\n{pictures}")
    parts.append(PUBLISHED + markdown(hierarchical()))
    if still_open:
        parts.append("\n## Open\n\nStudies without runs to compare:\n\n" + "".join(still_open))
    made[folder / "README.md"] = "".join(parts)
    return made, [f"{folder / 'answers.md'}: {line}" for line in unfounded(answers, shown)]
