"""The first screen of the README: interquartile means of every family, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ld_agents.evaluation.scores import family
from reporting import figures
from reporting.aggregates import Aggregates, metric_text, score_matrices, shown
from reporting.intervals import Estimate
from reporting.runs import ENV, by_dataset
from reporting.tables import markdown, number, outdated

FAMILIES = {
    "maze2d": "Point mazes",
    "antmaze": "AntMaze",
    "locomotion": "Locomotion",
    "adroit": "Adroit",
    "kitchen": "Kitchen",
}
PLANNERS = ("LDCQ", "LatentDiffuser")
MAZE = "ld-agents/pointmaze/large-v0"
HEAD = """Interquartile mean (IQM) of D4RL scores with its 95 % bootstrap interval, or the range of fewer than 5 \
seeds. 0 is random actions, 100 D4RL's reference policy. Fast presets, last checkpoint. Each column compares agents on \
the same datasets: the largest block of agents and datasets without a hole, of those with both LDCQ and LatentDiffuser \
where there are any; – marks an agent that has not run on all of them. Seeds of one cell have the same settings and \
data.

"""


def by_family(runs: pd.DataFrame) -> dict[str, Aggregates]:
    """Aggregates of the environment's return for each family that has D4RL scores."""
    families = runs["name"].map(family)
    groups = {name: score_matrices(runs[families == key], ENV, PLANNERS) for key, name in FAMILIES.items()}
    return {name: group for name, group in groups.items() if group is not None}


def _labels(runs: pd.DataFrame) -> list[str]:
    return [label for label in figures.LOOKS if label in set(runs["label"])]


def _iqm(group: Aggregates, label: str) -> Estimate | None:
    """IQM, with its interval where there is one; None for an agent that is left out."""
    return shown(group.metrics[label]["IQM"], group.matrices[label]) if label in group.metrics else None


def _seeds(group: Aggregates) -> str:
    counts = sorted({len(matrix) for matrix in group.matrices.values()})
    return " to ".join(map(str, [counts[0], counts[-1]][: len(counts)])) + f" seed{'s' * (counts != [1])}"


def table(runs: pd.DataFrame, groups: Mapping[str, Aggregates]) -> str:
    """The block of the README."""
    columns = {
        name: [metric_text(group, label, "IQM") if label in group.metrics else "–" for label in _labels(runs)]
        + [", ".join(map(figures.short, group.datasets)), _seeds(group)]
        for name, group in groups.items()
    }
    agents = [*(f"`{label}`" for label in _labels(runs)), "*data*", "*runs*"]
    left_out = [
        f"{name}: {'; '.join(map(figures.short, group.left_out))}" for name, group in groups.items() if group.left_out
    ]
    feet = [f"Left out, so that each column compares agents on the same data: {'. '.join(left_out)}."] * bool(left_out)
    there = {(label, name.split()[0]) for g in groups.values() for label in g.metrics for name in g.datasets}
    older: dict[str, list[str]] = {}
    for dataset, members in by_dataset(runs):
        for label, cell in members.items():
            if (label, dataset) in there and outdated(cell):
                older.setdefault(label, []).append(figures.short(dataset))
    cells = "; ".join(f"`{label}` on {', '.join(datasets)}" for label, datasets in sorted(older.items()))
    feet += [f"Of older presets (the tables of the suites name what differs): {cells}."] * bool(older)
    return HEAD + markdown(pd.DataFrame({"agent": agents, **columns})) + "".join(f"\n{foot}\n" for foot in feet)


def figure(runs: pd.DataFrame, groups: Mapping[str, Aggregates]) -> Figure:
    """Plans of both planners over a maze on the left, IQM bars of every family on the right."""
    drawn = pyplot.figure(figsize=(14, 6))
    left, right = drawn.subfigures(1, 2, squeeze=False, width_ratios=[1, 2.1], wspace=0.03)[0]
    in_maze = runs[runs["dataset"] == MAZE]
    found = {label: figures.first_plans(in_maze[in_maze["label"] == label]) for label in PLANNERS}
    plans = {label: plan for label, plan in found.items() if plan is not None}
    if plans:
        _draw_plans(left.subplots(len(plans), 1, squeeze=False)[:, 0], plans)
    left.supxlabel("dark to bright: candidates by value;\nblack: the chosen one; grey: further draws", fontsize=9)
    labels = _labels(runs)
    axes = right.subplots(1, len(groups), sharex=True, squeeze=False)[0]
    for axis, (name, group) in zip(axes, groups.items(), strict=True):
        _draw_bars(axis, labels, group)
        several = f"{len(group.datasets)} datasets"
        data = several if len(group.datasets) > 1 else group.datasets[0].split("/")[-1].rstrip(")").replace(" (", ", ")
        axis.set_title(name, fontsize=12, pad=26)
        below = {"transform": axis.transAxes, "fontsize": 8, "ha": "center", "color": "#555555"}
        axis.text(0.5, 1.01, f"{data}\n{_seeds(group)}", **below)
    figures.agent_axis(axes[0], [label.replace("[", "\n[") for label in labels])
    ends = [end for group in groups.values() for values in group.metrics.values() for end in values["IQM"]]
    axes[0].set_xlim(min(0, *ends) - 8, max(100, *ends) + 22)  # room for the numbers; the axes share it
    right.supxlabel(
        "IQM of D4RL scores; lines: 95 % intervals; ticks: each of few seeds; dotted: reference policy; –: not run",
        fontsize=9,
    )
    return drawn


def _draw_plans(axes: Sequence[Axes], plans: Mapping[str, figures.Plans]) -> None:
    """The maze around what happens from the first start state, the same part for every agent."""
    points = []
    for axis, (label, plan) in zip(axes, plans.items(), strict=True):
        start = plan["starts"][0]
        figures.draw_maze(axis, plan)
        considered = plan.get("considered")
        figures.draw_candidates(axis, start, considered, width=2.6)
        axis.plot(*np.array(start["route"]).T, color=figures.look(label)[0], linewidth=2.4, zorder=3)
        name = MAZE.split("/")[-1].removesuffix("-v0")
        drawn = f"{considered} candidates" if considered else f"{len(start['paths'])} of its candidates"
        axis.set_title(f"{label}: {drawn} and its trajectory, {name} maze", fontsize=9)
        points += [np.array(path) for path in (*start["paths"], start["route"], [plan["goal"]])]
    low, high = np.concatenate(points).min(0), np.concatenate(points).max(0)
    for axis, plan in zip(axes, plans.values(), strict=True):
        margin = 0.7 * plan["cell_size"]
        figures.zoom(axis, low - margin, high + margin)


def _draw_bars(axis: Axes, labels: Sequence[str], group: Aggregates) -> None:
    for y, label in enumerate(labels):
        estimate = _iqm(group, label)
        if estimate is None:
            axis.text(2, y, "–", color="#999999", va="center")
            continue
        value, low, high = estimate
        axis.barh(y, value, height=0.62, color=figures.look(label)[0])
        if np.isfinite(low):
            axis.plot([low, high], [y, y], color="white", linewidth=3.2, solid_capstyle="butt")
            axis.plot([low, high], [y, y], color="black", linewidth=1.4, solid_capstyle="butt")
        elif group.matrices[label].shape[1] == 1 and len(group.matrices[label]) > 1:
            seeds = 100 * group.matrices[label][:, 0]
            axis.plot(seeds, [y] * len(seeds), "|", color="black", markersize=8, markeredgewidth=1.4)
            high = seeds.max()
        axis.text(np.nanmax([value, high, 0]) + 3, y, number(value), fontsize=9, va="center")
    figures.agent_axis(axis, [""] * len(labels))
    axis.set_xticks([0, 50, 100])
    axis.axvline(0, color="#555555", linewidth=0.8)
    axis.axvline(100, color="#555555", linewidth=0.8, linestyle=":")
