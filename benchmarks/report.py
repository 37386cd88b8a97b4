"""Rebuild every table and figure from the JSON files of finished runs, and from nothing else.

    python benchmarks/report.py --runs results/maze2d/runs --out results/maze2d --readme README.md

Same files in, byte-identical tables out. Raw returns are normalised here; published numbers keep columns of their own.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reporting import figures, intervals
from reporting.cells import (
    FIRST_CONTACT,
    PROTOCOLS,
    PUBLISHED_PROTOCOLS,
    Cell,
    Reference,
    RunFile,
    changed_simulator,
    known_defects,
    make_cells,
    published,
    read_runs,
    references,
    unit,
    why_raw,
)
from reporting.intervals import Estimate

ROOT = Path(__file__).resolve().parent.parent


# Text


def number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}".replace("-0.0", "0.0")


def bracketed(estimate: Estimate | None) -> str:
    """`12.3 [10.0, 14.5]`, without the brackets where there is no interval, a dash where there is nothing."""
    if estimate is None:
        return "–"
    value, low, high = estimate
    return number(value) if math.isnan(low) else f"{number(value)} [{number(low)}, {number(high)}]"


def ranges(seeds: Iterable[int]) -> str:
    return ", ".join(str(seed) for seed in sorted(seeds))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(field).replace("|", "\\|") for field in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table for a terminal: aligned columns, numbers to the right."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = []
    for row in table:
        fields = [
            field.ljust(width) if i < 2 else field.rjust(width)
            for i, (field, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(fields).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def describe(cells: Sequence[Cell]) -> str:
    """What the numbers of a table are: seeds, episodes, scale."""
    seeds = sorted({len(cell.runs) for cell in cells})
    episodes = sorted({run["protocol"]["episodes"] for cell in cells for run in cell.runs})
    units = sorted({unit(cell) for cell in cells})
    return (
        f"Mean {' or '.join(units)} of the last checkpoint with a 95 % stratified bootstrap interval over seeds; "
        f"{' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])}, "
        f"{' or '.join(map(str, episodes))} evaluation episodes per seed."
    )


def table_markdown(cells: Sequence[Cell]) -> str:
    """The main table with its head and notes."""
    protocols, with_success = _measures(cells)
    columns = ["data set", "made by", "agent", "preset", "budget", "seeds", "episodes"]
    columns += [*protocols, *["success %"] * with_success, "ms per action", "minutes", "published, env", "source"]
    rows = []
    for dataset, members, reference_rows in _by_dataset(cells):
        for cell in members:
            run = cell.runs[0]
            rows.append(
                [
                    dataset,
                    cell.made_by,
                    cell.agent,
                    run["preset"],
                    f"{100 * run['budget_share']:g} % = {run['gradient_steps']:,} steps",
                    str(len(cell.runs)),
                    str(run["protocol"]["episodes"]),
                    *(bracketed(cell.estimates.get(protocol)) for protocol in protocols),
                    *[bracketed(cell.success)] * with_success,
                    f"{cell.ms_per_action:.2f}",
                    f"{cell.minutes:.1f}",
                    *_published_fields(cell),
                ]
            )
        for reference in reference_rows:
            means = [number(reference.scores[p]) if p in reference.scores else "–" for p in protocols]
            means += ["–" if reference.success is None else number(reference.success)] * with_success
            row = [dataset, members[0].made_by, f"*{reference.name}*", "–", "–", "–"]
            rows.append([*row, str(reference.episodes), *means, "–", "–", "", ""])
    text = describe(cells) + "\n\n`env` is the environment's return"
    if FIRST_CONTACT in protocols:
        text += "; `first contact` credits every step from the first one at the goal, from the same rollouts"
    if with_success:
        text += "; `success %` is the share of episodes in which the task was solved"
    text += ". D4RL scores: 0 and 100 are D4RL's constants for random actions and for its reference policy. Rows in "
    text += "italics are reference policies measured here. Published numbers are other people's, on D4RL's own data. "
    text += "Data that are `regenerated` follow D4RL's recipe, a `stand-in` does not.\n\n"
    return text + markdown(columns, rows) + _list([*notes(cells), origin(cells)])


def _measures(cells: Sequence[Cell]) -> tuple[list[str], bool]:
    """The protocols of a table, and whether it shows rates of success."""
    protocols = [protocol for protocol in PROTOCOLS if any(protocol in cell.protocols for cell in cells)]
    return protocols, any(cell.success is not None for cell in cells)


def _by_dataset(cells: Sequence[Cell]) -> list[tuple[str, list[Cell], list[Reference]]]:
    known = references(cells)
    datasets = sorted({cell.dataset for cell in cells})
    return [
        (
            dataset,
            [cell for cell in cells if cell.dataset == dataset],
            [reference for reference in known if reference.dataset == dataset],
        )
        for dataset in datasets
    ]


def _published_fields(cell: Cell) -> tuple[str, str]:
    rows = published(cell)
    scores_ = "; ".join(row["score"] + (f" ± {row['spread']}" if row["spread"] else "") for row in rows)
    return scores_, "; ".join(f"{PUBLISHED_PROTOCOLS[row['paper']][0]} ({row['dataset']})" for row in rows)


def _list(lines: Sequence[str]) -> str:
    return "\nNotes:\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def table_csv(cells: Sequence[Cell]) -> str:
    """The main table for machines: one row per cell and protocol, reference policies included."""
    columns = ["dataset", "dataset_hash", "provenance", "agent", "preset", "budget_share", "gradient_steps", "seeds"]
    columns += ["episodes", "protocol", "unit", "mean", "low", "high", "ms_per_action", "minutes", "peak_memory_mb"]
    columns += ["published_score", "published_spread", "published_protocol", "published_source", "published_confidence"]
    rows: list[list[Any]] = []
    for dataset, members, reference_rows in _by_dataset(cells):
        for cell in members:
            run = cell.runs[0]
            memory = max((run.get("peak_memory_mb") or 0) for run in cell.runs)
            measures = {protocol: (estimate, unit(cell)) for protocol, estimate in cell.estimates.items()}
            if cell.success is not None:
                measures["success"] = cell.success, "%"
            for protocol, (estimate, unit_) in measures.items():
                row = [dataset, run["dataset"]["hash"], cell.made_by, cell.agent, run["preset"]]
                row += [f"{run['budget_share']:g}", run["gradient_steps"], " ".join(map(str, cell.seeds))]
                row += [run["protocol"]["episodes"], protocol, unit_]
                row += ["" if math.isnan(value) else f"{value:.3f}" for value in estimate]
                row += [f"{cell.ms_per_action:.4f}", f"{cell.minutes:.3f}", f"{memory:.0f}" if memory else ""]
                matching = [row for row in published(cell) if PUBLISHED_PROTOCOLS[row["paper"]][1] == protocol]
                for key in ("score", "spread", "protocol", "source", "confidence"):
                    values = (protocol if key == "protocol" else source[key] for source in matching)
                    row.append("; ".join(values))
                rows.append(row)
        for reference in reference_rows:
            data = members[0].runs[0]["dataset"]
            means = [(protocol, unit(members[0]), mean) for protocol, mean in reference.scores.items()]
            if reference.success is not None:
                means.append(("success", "%", reference.success))
            for protocol, unit_, mean in means:
                row = [dataset, data["hash"], data["provenance"], reference.name, "", "", "", "", reference.episodes]
                rows.append([*row, protocol, unit_, f"{mean:.3f}", *[""] * 10])
    return csv_text(columns, rows)


def table_terminal(cells: Sequence[Cell], width: int = 120) -> str:
    """The main table for a terminal of that width; names that are too long lose their beginning."""
    protocols, with_success = _measures(cells)
    rows = []
    for dataset, members, reference_rows in _by_dataset(cells):
        name, made_by = _short(dataset.removeprefix("ld-agents/"), 28), members[0].made_by
        for cell in members:
            values = [bracketed(cell.estimates.get(protocol)) for protocol in protocols]
            values += [bracketed(cell.success)] * with_success
            rows.append([name, cell.label, made_by, *values, f"{cell.ms_per_action:.2f}", f"{cell.minutes:.1f}"])
        for reference in reference_rows:
            means = [number(reference.scores[p]) if p in reference.scores else "–" for p in protocols]
            means += ["" if reference.success is None else number(reference.success)] * with_success
            rows.append([name, f"({reference.name})", made_by, *means, "", ""])
    header = ["data set", "agent", "made by", *protocols, *["success %"] * with_success, "ms/action", "min"]
    others = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header)) if i != 1]
    agent_width = max(12, width - sum(others) - 2 * len(others))
    rows = [[row[0], _short(row[1], agent_width), *row[2:]] for row in rows]
    foot = "\n".join(
        textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False)
        for line in [*notes(cells), origin(cells)]
    )
    return "\n\n".join([textwrap.fill(describe(cells), width), plain(header, rows), foot])


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[-(width - 1) :]


def notes(cells: Sequence[Cell]) -> list[str]:
    """What a reader must know before comparing rows: mixtures, missing intervals, missing scales and their defects."""
    lines = []
    defects: dict[str, list[str]] = {}
    for dataset, members, _ in _by_dataset(cells):
        runs = [run for cell in members for run in cell.runs]
        reason = why_raw(members[0].runs[0])
        if reason is not None:
            lines.append(f"{dataset}: raw returns, because {reason}")
        for defect in known_defects(members[0].runs[0]):
            defects.setdefault(defect, []).append(dataset)
        for what, key in _MIXTURES.items():
            values = sorted({str(key(run)) for run in runs})
            if len(values) > 1:
                lines.append(f"{dataset}: rows mix {what}: {', '.join(values)}")
        for made, ran in sorted({versions for run in runs if (versions := changed_simulator(run)) is not None}):
            lines.append(f"{dataset}: replayed under mujoco {made}, evaluated under {ran}")
    single = [f"{cell.label} on {cell.dataset}" for cell in cells if len(cell.runs) == 1]
    if single:
        which = "all rows" if len(single) == len(cells) else "; ".join(single)
        lines.append(f"1 seed, so there is no interval: {which}")
    return lines + [f"D4RL's scale on {', '.join(datasets)}: {defect}" for defect, datasets in defects.items()]


def origin(cells: Sequence[Cell]) -> str:
    """Where all the runs came from: hardware, versions, commits."""
    runs = [run for cell in cells for run in cell.runs]
    machines = sorted({_MIXTURES["hardware"](run) for run in runs})
    commits = sorted({str(_MIXTURES["commits"](run)) for run in runs})
    versions = []
    for package in ("python", "torch", "stable-baselines3", "gymnasium-robotics", "mujoco"):
        found = sorted({str(run["versions"][package]) for run in runs})
        versions.append(f"{package} {' and '.join(found)}")
    return f"Ran on {' and '.join(machines)}; {', '.join(versions)}; commit {' and '.join(commits)}."


_MIXTURES: dict[str, Callable[[RunFile], Any]] = {
    "data (hash)": lambda run: run["dataset"]["hash"][:12],
    "simulators": lambda run: "mujoco {mujoco}, gymnasium-robotics {gymnasium-robotics}".format_map(run["versions"]),
    "commits": lambda run: str(run["commit"])[:12] + "+changes" * str(run["commit"]).endswith("+changes"),
    "budgets": lambda run: f"{100 * run['budget_share']:g} %",
    "presets": lambda run: run["preset"],
    "numbers of evaluation episodes": lambda run: run["protocol"]["episodes"],
    "hardware": lambda run: (
        f"{run['hardware']['gpu'] or run['hardware']['cpu']}, {run['hardware']['threads']} thread(s)"
    ),
}


# Aggregates over data sets


def score_matrices(cells: Sequence[Cell], protocol: str) -> dict[str, NDArray[np.float64]]:
    """Scores / 100 [runs, tasks] of each agent; tasks are the data sets with D4RL scores and this protocol.

    Raises:
        ValueError: when an agent lacks a seed on one of the data sets, naming what is missing.
    """
    usable = [cell for cell in cells if cell.normalised and protocol in cell.protocols]
    by_key = {(cell.label, cell.dataset): cell for cell in usable}
    datasets = sorted({cell.dataset for cell in usable})
    matrices = {}
    missing = []
    for label in sorted({cell.label for cell in usable}):
        seeds = sorted({seed for cell in usable if cell.label == label for seed in cell.seeds})
        for dataset in datasets:
            there = by_key[label, dataset].seeds if (label, dataset) in by_key else ()
            lacking = [seed for seed in seeds if seed not in there]
            if lacking:
                missing.append(f"{label} on {dataset}, seeds {ranges(lacking)}")
        if not missing:
            matrices[label] = (
                np.stack([by_key[label, dataset].run_scores(protocol) for dataset in datasets], axis=1) / 100
            )
    if missing:
        raise ValueError("no aggregates, because these runs are missing: " + "; ".join(missing))
    return matrices


@dataclass(frozen=True)
class Aggregates:
    """Aggregates of one protocol over all data sets, by agent."""

    protocol: str
    matrices: dict[str, NDArray[np.float64]]
    metrics: dict[str, dict[str, Estimate]]
    improvements: dict[tuple[str, str], Estimate]


def aggregate(cells: Sequence[Cell]) -> list[Aggregates]:
    """Aggregates of every protocol that has data.

    Raises:
        ValueError: when runs are missing.
    """
    result = []
    for protocol in PROTOCOLS:
        matrices = score_matrices(cells, protocol)
        if matrices:
            metrics = {label: intervals.aggregates(matrix) for label, matrix in matrices.items()}
            ordered = sorted(matrices, key=lambda label: (-metrics[label]["IQM"][0], label))
            matrices = {label: matrices[label] for label in ordered}
            metrics = {label: metrics[label] for label in ordered}
            result.append(Aggregates(protocol, matrices, metrics, intervals.improvements(matrices)))
    return result


def aggregates_markdown(groups: Sequence[Aggregates], datasets: Sequence[str]) -> str:
    if not groups:
        return "No aggregates: no data set has D4RL scores.\n"
    text = f"Over {', '.join(datasets)}; D4RL scores with 95 % stratified bootstrap intervals over runs "
    text += f"({intervals.REPS:,} resamples, rliable). The optimality gap is the mean distance below 100. "
    text += "Intervals of one seed have no width.\n\n"
    rows = [
        [group.protocol, label, str(len(group.matrices[label]))]
        + [bracketed(_hundredfold(values[name])) for name in intervals.METRICS]
        for group in groups
        for label, values in group.metrics.items()
    ]
    text += markdown(["protocol", "agent", "seeds", *intervals.METRICS], rows)
    pairs = [
        [group.protocol, f"{first} > {second}", "{:.2f} [{:.2f}, {:.2f}]".format(*estimate)]
        for group in groups
        for (first, second), estimate in group.improvements.items()
    ]
    if pairs:
        text += "\nProbability that a run of the first agent beats a run of the second:\n\n"
        text += markdown(["protocol", "pair", "probability"], pairs)
    return text


def aggregates_csv(groups: Sequence[Aggregates], datasets: Sequence[str]) -> str:
    data = "; ".join(datasets)
    rows = [
        [group.protocol, label, "", name, *(f"{value:.3f}" for value in _hundredfold(estimate)), data]
        for group in groups
        for label, values in group.metrics.items()
        for name, estimate in values.items()
    ]
    rows += [
        [group.protocol, first, second, "probability of improvement", *(f"{value:.4f}" for value in estimate), data]
        for group in groups
        for (first, second), estimate in group.improvements.items()
    ]
    return csv_text(["protocol", "agent", "other_agent", "metric", "value", "low", "high", "data"], rows)


def _hundredfold(estimate: Estimate) -> Estimate:
    return 100 * estimate[0], 100 * estimate[1], 100 * estimate[2]


# Writing


def write(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def readme_markers(out: Path) -> tuple[str, str]:
    """The lines between which a README holds the table of a results folder."""
    return f"<!-- results of {out.name}: begin -->", f"<!-- results of {out.name}: end -->"


def paste(readme: Path, markers: tuple[str, str], table: str) -> None:
    """Replace what stands between the two markers of the README by `table`."""
    text = readme.read_text(encoding="utf-8")
    begin, end = markers
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise SystemExit(f"{readme} lacks the two lines {begin} and {end}; put them where the table shall stand")
    write(readme, f"{before}{begin}\n{table.strip()}\n{end}{after}")


def build(runs_folder: Path, out: Path, readme: Path | None = None, with_figures: bool = True) -> str:
    """Write OUT/tables and OUT/figures from the run files; returns the table for the terminal.

    Raises:
        SystemExit: when the folder holds no valid run.
    """
    runs, skipped = read_runs(runs_folder)
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    if not runs:
        raise SystemExit(f"no finished run in {runs_folder}; benchmarks/run_suite.py makes them")
    cells = make_cells(runs)
    table = table_markdown(cells)
    write(out / "tables" / "table.md", table)
    write(out / "tables" / "table.csv", table_csv(cells))
    groups: list[Aggregates] = []
    datasets = sorted({f"{cell.dataset} ({cell.made_by})" for cell in cells if cell.normalised})
    try:
        groups = aggregate(cells)
        text = aggregates_markdown(groups, datasets)
    except ValueError as error:
        print(error, file=sys.stderr)
        text = f"{error}\n"
    write(out / "tables" / "aggregates.md", text)
    write(out / "tables" / "aggregates.csv", aggregates_csv(groups, datasets))
    if with_figures:
        figures.draw_all(cells, groups, out / "figures")
    if readme is not None:
        paste(readme, readme_markers(out), table)
    return table_terminal(cells)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "results" / "maze2d" / "runs", help="folder with the run files"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "maze2d", help="receives tables/ and figures/")
    parser.add_argument("--readme", type=Path, help="file in which the table of OUT is replaced")
    options = parser.parse_args(arguments)
    print(build(options.runs, options.out, options.readme))


if __name__ == "__main__":
    main()
