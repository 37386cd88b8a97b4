"""report.html: one self-contained page of a suite that opens without a network, sorts its tables and fits a phone."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot

from reporting import figures, intervals, tables
from reporting.aggregates import Aggregates, counted, metric_text, shown
from reporting.figures import Drawing, Plans
from reporting.intervals import Estimate
from reporting.runs import PROTOCOLS, RunFile, by_dataset

# Text stays text: it is smaller than outlines, can be searched, and takes the page's font and color.
SVG_STYLE: Any = figures.STYLE | {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}
MAX_TEXT = 300  # characters of a value of a run file's settings
LEADING = ["agent", "dataset", "env", "first contact", "success %"]  # columns of the table of scores that come first
# What is too dark or too light for one of the page's two backgrounds is a variable of page.css.
THEMED = re.compile("#(000000|333333|3a3a3a|555555|0072b2|7f1d1d|e4e4e4|ffffff)", re.IGNORECASE)
POINT_EVERY = 2  # of the points of a candidate's path, which are most of the page's size


class Cell(NamedTuple):
    """A cell of a table. `key` is what a column of numbers is sorted by, `bar` an interval to draw in percent."""

    text: str
    key: float | None = None
    color: str | None = None
    bar: tuple[float, ...] | None = None


class Table(NamedTuple):
    columns: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[Cell]]


def suite_page(
    title: str,
    runs: pd.DataFrame,
    numbers: pd.DataFrame,
    texts: pd.DataFrame,
    groups: Sequence[Aggregates],
    failures: Sequence[Mapping[str, str]] = (),
    lost: pd.DataFrame | None = None,
    why: Sequence[str] = (),
) -> str:
    """The page of a suite. Whatever text run files hold, it is escaped; the policy of the page runs no other script."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).resolve().parent
    options: Any = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(here), **options)
    script = (here / "page.js").read_text(encoding="utf-8")
    measured = runs[~runs["added"]]
    return environment.get_template("page.html").render(
        title=title,
        description=tables.describe(runs),
        style=(here / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        labels=dict.fromkeys(label for _, members in by_dataset(runs) for label in members),
        paint=lambda label: themed(figures.look(label)[0]),
        aggregates=[_aggregate(group) for group in groups],
        reps=intervals.REPS,
        scores=table(_scores(texts)),
        figures=list(_score_figures(runs, numbers)),
        curves=list(_curves(runs)),
        plans=list(_plans(runs)),
        settings=list(_settings(measured)),
        lost=None if lost is None or lost.empty else table(_scores(lost)),
        why=[_with_code(line) for line in why],
        runs=table(_run_rows(measured)),
        notes=[*tables.coverage(runs), *tables.notes(runs), *tables.reasons(failures), tables.origin(measured)],
    )


def _with_code(text: str) -> str:
    """Text with what stands between backticks set as code, as the same text is on the Markdown page."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def table(texts: pd.DataFrame) -> Table:
    """Texts as cells: columns of numbers get keys to sort by, agents their color."""
    keys = {name: [_leading_number(str(text)) for text in texts[name]] for name in texts}
    blank = {name: [text in ("", "–", "failed") for text in texts[name]] for name in texts}
    numeric = {
        name: not all(blank[name]) and all(key is not None or b for key, b in zip(keys[name], blank[name], strict=True))
        for name in texts
    }
    rows = []
    for position, row in enumerate(texts.itertuples(index=False)):
        cells = []
        for name, text in zip(texts, row, strict=True):
            key = keys[name][position] if numeric[name] else None
            is_agent = name == "agent" and not str(text).startswith("*")
            cells.append(Cell(str(text).strip("*"), key, themed(figures.look(str(text))[0]) if is_agent else None))
        rows.append(cells)
    return Table(list(texts), [numeric[name] for name in texts], rows)


def _scores(texts: pd.DataFrame) -> pd.DataFrame:
    """The table of scores with the columns first that a narrow screen has room for."""
    leading = [name for name in LEADING if name in texts]
    texts = texts[leading + [name for name in texts if name not in leading]]
    return texts.assign(dataset=[figures.short(name) for name in texts["dataset"]])


def _leading_number(text: str) -> float | None:
    """`12.5` of `12.5 [10.0, 14.0]`; None for other text."""
    found = re.match(r"(-?[\d,]+(?:\.\d+)?)(?: |$)", text)
    return float(found[1].replace(",", "")) if found else None


# Aggregates


def _aggregate(group: Aggregates) -> dict[str, Any]:
    """An aggregate's table with its IQMs as bars, its profiles, and who beats whom."""
    return {
        "name": figures.PROTOCOL_NAMES[group.protocol],
        "datasets": [figures.short(name) for name in group.datasets],
        "left_out": [text.replace("ld-agents/", "") for text in group.left_out],
        "metrics": _metrics(group),
        "profiles": svg(lambda: figures.performance_profiles([group]), f"profiles {group.protocol}"),
        "improvements": _improvements(group),
    }


def _metrics(group: Aggregates) -> Table:
    iqms = [estimates["IQM"] for estimates in group.metrics.values()]
    low, high = min(0.0, *(end for iqm in iqms for end in iqm)), max(100.0, *(end for iqm in iqms for end in iqm))

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    rows = []
    for label, estimates in group.metrics.items():
        color = themed(figures.look(label)[0])
        iqm = shown(estimates["IQM"], group.matrices[label])
        ends = (iqm[0], iqm[0]) if math.isnan(iqm[1]) else iqm[1:]
        values = [Cell(metric_text(group, label, name), estimate[0]) for name, estimate in estimates.items()]
        values += [Cell(tables.number(rank), rank) for rank in group.ranks.loc[label]]
        bar = Cell("", iqm[0], color, tuple(map(place, (iqm[0], *ends, 0, 100))))
        seeds = len(group.matrices[label])
        rows.append([Cell(label, None, color), values[0], bar, *values[1:], Cell(str(seeds), seeds)])
    first, *others = intervals.METRICS
    columns = ["agent", first, "95 % interval", *others, *group.ranks, "seeds"]
    return Table(columns, [False] + [True] * (len(columns) - 1), rows)


def _improvements(group: Aggregates) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """For each agent, against each agent: the probability that a run of the first beats one of the second."""
    labels = list(group.metrics)

    def cell(first: str, second: str) -> dict[str, Any] | None:
        if first == second:
            return None
        ours, theirs = group.matrices[first], group.matrices[second]
        if (first, second) in group.improvements:
            estimate: Estimate = shown(group.improvements[first, second], ours, theirs)
        else:
            value, low, high = shown(group.improvements[second, first], ours, theirs)
            estimate = 1 - value, 1 - high, 1 - low
        none = math.isnan(estimate[1])
        text = counted(ours, theirs, estimate[0]) if none else f"{estimate[1]:.2f}–{estimate[2]:.2f}"
        return {"value": f"{estimate[0]:.2f}", "interval": text, "tint": round(abs(estimate[0] - 0.5) * 100)} | {
            "side": "more" if estimate[0] >= 0.5 else "less"
        }

    return [(first, [cell(first, second) for second in labels]) for first in labels]


# Figures


def svg(draw: Drawing, name: str) -> str:
    """A figure as an `<svg>` element; `name` says what it shows and keeps its ids apart from other figures' ids.

    Matplotlib escapes the text. The colors of axes and text are left to the page.
    """
    from markupsafe import Markup, escape

    stream = io.StringIO()
    with mpl.rc_context(SVG_STYLE | {"svg.hashsalt": name}):
        figure = draw()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    text = stream.getvalue()
    text = re.sub(r" *<metadata>.*?</metadata>\n", "", text[text.index("<svg") :], count=1, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # no one refers to them, and every figure has the same
    text = re.sub(r"(?<=\d\.\d)\d+", "", text)  # a tenth of a point is enough
    text = re.sub(r" *\nL ", " ", text)  # pairs after the first are lines to there
    text = re.sub(r'style="[^"]*"', lambda style: themed(style[0]), text)
    label = escape(name)
    return Markup(re.sub(r"<svg ", f'<svg role="img" aria-label="{label}" ', text, count=1))


def themed(style: str) -> str:
    """A color, or a style with colors, that follows the page's background."""
    return THEMED.sub(lambda color: f"var(--c{color[1].lower()})", style)


def _score_figures(runs: pd.DataFrame, numbers: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for dataset, _ in by_dataset(runs):
        members = runs[runs["dataset"] == dataset]
        for protocol in PROTOCOLS:
            if members[protocol].notna().any():
                name = f"{figures.short(dataset)}, {figures.PROTOCOL_NAMES[protocol]}"
                yield name, svg(_bound(figures.scores_by_dataset, members, numbers, [protocol]), f"scores: {name}")


def _curves(runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
    drawn = runs[runs["file"].map(lambda run: bool(run["curve"]))]
    for dataset, _ in by_dataset(drawn):
        for protocol in PROTOCOLS:
            members = drawn[(drawn["dataset"] == dataset) & drawn[protocol].notna()]
            if not members.empty:
                name = f"{figures.short(dataset)}, {figures.PROTOCOL_NAMES[protocol]}"
                yield name, svg(_bound(figures.learning_curves, members, protocol), f"learning curves: {name}")


def _plans(runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for dataset, members in by_dataset(runs):
        found = {label: plan for label, cell in sorted(members.items()) if (plan := figures.first_plans(cell))}
        if found:
            name, thinned = figures.short(dataset), {label: _thinned(plan) for label, plan in found.items()}
            yield name, svg(_bound(figures.plans, name, thinned, "bold"), f"plans: {name}")


def _thinned(plan: Plans) -> Plans:
    """The plans with fewer points per path, the last one included."""
    paths = ([path[:-1:POINT_EVERY] + path[-1:] for path in start["paths"]] for start in plan["starts"])
    return {**plan, "starts": [{**start, "paths": kept} for start, kept in zip(plan["starts"], paths, strict=True)]}


def _bound(function: Any, *arguments: Any) -> Drawing:
    return lambda: function(*arguments)


# Runs


def _run_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per run: scores, costs, and what it ran on."""
    rows = []
    for _, run in runs.iterrows():
        file: RunFile = run["file"]
        row = {"agent": run["label"], "dataset": figures.short(run["dataset"]), "seed": str(run["seed"])}
        row |= {protocol: tables.number(run[protocol]) for protocol in PROTOCOLS if runs[protocol].notna().any()}
        row |= {"minutes": tables.number(run["minutes"]), "ms/action": f"{run['ms_per_action']:.2f}"}
        row |= {"memory, MB": "–" if math.isnan(run["peak_memory_mb"]) else f"{run['peak_memory_mb']:.0f}"}
        row |= {"hardware": run["hardware"], "torch": str(file["versions"]["torch"]), "simulator": run["simulator"]}
        rows.append(row | {"commit": run["commit"], "finished": str(file.get("finished", "–"))[:MAX_TEXT]})
    return pd.DataFrame(rows, dtype=object)


def _settings(runs: pd.DataFrame) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """Agent, datasets, and its settings there with what decided each: preset, family or user."""
    seen: dict[tuple[str, str], list[str]] = {}
    for _, run in runs.iterrows():
        file = run["file"]
        found = [file.get(key) if isinstance(file.get(key), dict) else {} for key in ("settings", "settings_origin")]
        datasets = seen.setdefault((run["label"], json.dumps(found)), [])
        datasets += [figures.short(run["dataset"])] * (figures.short(run["dataset"]) not in datasets)
    for (label, content), datasets in seen.items():
        settings, origins = json.loads(content)
        rows = [
            (name, json.dumps(value, ensure_ascii=False)[:MAX_TEXT], str(origins.get(name, "preset"))[:MAX_TEXT])
            for name, value in settings.items()
        ]
        if rows:
            yield label, ", ".join(datasets), rows
