"""The figures of a report, drawn from its cells: intervals, performance profiles, learning curves, plans."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects, pyplot
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from reporting import intervals
from reporting.cells import ENV, PROTOCOLS, Cell, scores, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from report import Aggregates

mpl.use("Agg")

# Okabe and Ito's colours, told apart by colour-blind readers; yellow is left out because it is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "savefig.dpi": 150,
}
PROTOCOL_NAMES = {ENV: "environment's return", "first contact": "first contact"}


def draw_all(cells: Sequence[Cell], groups: Sequence[Aggregates], folder: Path) -> None:
    """Write every figure for which there is something to show."""
    folder.mkdir(parents=True, exist_ok=True)
    look = looks(cells)
    with mpl.rc_context(STYLE):
        save(scores_by_dataset(cells, look), folder / "scores.png")
        for protocol in PROTOCOLS:
            drawn = [cell for cell in cells if protocol in cell.protocols and any(run["curve"] for run in cell.runs)]
            if drawn:
                save(learning_curves(drawn, protocol, look), folder / f"curves_{protocol.replace(' ', '_')}.png")
        if groups:
            save(aggregate_intervals(groups, look), folder / "intervals.png")
            save(performance_profiles(groups, look), folder / "profiles.png")
        for dataset in sorted({cell.dataset for cell in cells}):
            drawn = [cell for cell in cells if cell.dataset == dataset and _with_plans(cell)]
            if drawn:
                name = re.sub(r"[^A-Za-z0-9]+", "-", dataset).strip("-")
                save(plans(drawn, look), folder / f"plans_{name}.png")


def looks(cells: Sequence[Cell]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each agent; the same in every figure of a report."""
    labels = sorted({cell.label for cell in cells})
    return {label: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def scores_by_dataset(cells: Sequence[Cell], look: Mapping[str, tuple[str, str]]) -> Figure:
    """Means with intervals and the single runs, a panel per data set and protocol."""
    datasets = sorted({cell.dataset for cell in cells})
    protocols = [protocol for protocol in PROTOCOLS if any(protocol in cell.protocols for cell in cells)]
    rows = max(sum(cell.dataset == dataset for cell in cells) for dataset in datasets)
    size = (1.2 + 4.2 * len(protocols), 0.9 + len(datasets) * (0.75 + 0.42 * rows))
    figure, axes = pyplot.subplots(len(datasets), len(protocols), figsize=size, squeeze=False)
    for row, dataset in enumerate(datasets):
        members = [cell for cell in cells if cell.dataset == dataset]
        for axis, protocol in zip(axes[row], protocols, strict=True):
            for y, cell in enumerate(members):
                if protocol in cell.protocols:
                    _mean_with_interval(axis, y, cell.estimates[protocol], look[cell.label])
                    runs = cell.run_scores(protocol)
                    axis.plot(runs, np.full(len(runs), y), "|", color="#333333", markersize=7, alpha=0.6, zorder=3)
            _agent_axis(axis, [cell.label for cell in members])
            axis.set_title(f"{_short(dataset)}, {PROTOCOL_NAMES[protocol]}")
            axis.set_xlabel(unit(members[0]))
        for axis in axes[row, 1:]:
            axis.set_yticklabels([])
    figure.supxlabel("bars: 95 % interval of the mean; ticks: single seeds", fontsize=10)
    return figure


def aggregate_intervals(groups: Sequence[Aggregates], look: Mapping[str, tuple[str, str]]) -> Figure:
    """IQM, median, mean and optimality gap over all data sets, a row of panels per protocol."""
    labels = sorted(look)
    size = (12, 0.6 + len(groups) * (0.8 + 0.42 * len(labels)))
    figure, axes = pyplot.subplots(len(groups), len(intervals.METRICS), figsize=size, squeeze=False)
    for row, group in enumerate(groups):
        agents = list(group.metrics)
        for axis, metric in zip(axes[row], intervals.METRICS, strict=True):
            for y, agent in enumerate(agents):
                value, low, high = (100 * end for end in group.metrics[agent][metric])
                _mean_with_interval(axis, y, (value, low, high), look[agent])
            _agent_axis(axis, agents)
            axis.set_title(metric + (" (less is better)" if metric == "optimality gap" else ""), fontsize=10)
            axis.set_xlabel("D4RL score")
        axes[row, 0].set_ylabel(PROTOCOL_NAMES[group.protocol])
        for axis in axes[row, 1:]:
            axis.set_yticklabels([])
    return figure


def _mean_with_interval(axis: Axes, y: float, estimate: intervals.Estimate, look: tuple[str, str]) -> None:
    value, low, high = estimate
    colour, marker = look
    if np.isfinite(low):
        axis.barh(y, high - low, left=low, height=0.55, color=colour, alpha=0.35, linewidth=0)
    axis.plot([value], [y], marker, color=colour, markersize=7, zorder=4)


def _agent_axis(axis: Axes, agents: Sequence[str]) -> None:
    axis.set_yticks(range(len(agents)), agents)
    axis.set_ylim(len(agents) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    axis.use_sticky_edges = False  # room beside the bars
    axis.margins(x=0.06)


def performance_profiles(groups: Sequence[Aggregates], look: Mapping[str, tuple[str, str]]) -> Figure:
    """Share of runs whose score lies above a threshold, a panel per protocol."""
    figure, axes = pyplot.subplots(1, len(groups), figsize=(1 + 4.8 * len(groups), 4.2), squeeze=False, sharey=True)
    for axis, group in zip(axes[0], groups, strict=True):
        values = np.concatenate([matrix.ravel() for matrix in group.matrices.values()])
        margin = 0.05 * max(np.ptp(values), 0.1)
        thresholds = np.linspace(values.min() - margin, values.max() + margin, 61)
        for agent, (share, low, high) in intervals.profiles(group.matrices, thresholds).items():
            colour, _ = look[agent]
            axis.plot(100 * thresholds, share, color=colour, linewidth=2, label=agent)
            axis.fill_between(100 * thresholds, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.set_xlabel("D4RL score τ")
        axis.set_title(PROTOCOL_NAMES[group.protocol])
        axis.set_ylim(-0.03, 1.03)
    axes[0, 0].set_ylabel("share of runs with a score above τ")
    _legend_below(figure, axes[0, 0])
    return figure


def learning_curves(cells: Sequence[Cell], protocol: str, look: Mapping[str, tuple[str, str]]) -> Figure:
    """Score against gradient steps and minutes of learning: thin lines are seeds, the thick one is their mean."""
    datasets = sorted({cell.dataset for cell in cells})
    size = (1 + 4.2 * len(datasets), 6.4)
    figure, axes = pyplot.subplots(2, len(datasets), figsize=size, squeeze=False, sharey="col")
    for column, dataset in enumerate(datasets):
        members = [cell for cell in cells if cell.dataset == dataset]
        for cell in members:
            colour, marker = look[cell.label]
            for axis, key, divisor in ((axes[0, column], "gradient_steps", 1000), (axes[1, column], "seconds", 60)):
                curves = [
                    (
                        np.array([point[key] / divisor for point in run["curve"]]),
                        np.array([scores(run, protocol, point).mean() for point in run["curve"]]),
                    )
                    for run in cell.runs
                    if run["curve"]
                ]
                for x, y in curves:
                    axis.plot(x, y, color=colour, linewidth=0.8, alpha=0.4)
                whole = [curve for curve in curves if len(curve[0]) == max(len(x) for x, _ in curves)]
                if whole:
                    x, y = np.mean(whole, axis=0)
                    axis.plot(x, y, color=colour, linewidth=2.2, marker=marker, markersize=5, label=cell.label)
        axes[0, column].set_title(_short(dataset))
        axes[0, column].set_xlabel("thousand gradient steps, all stages")
        axes[1, column].set_xlabel("minutes of learning, one thread" if _one_thread(members) else "minutes of learning")
        for axis in axes[:, column]:
            axis.set_ylabel(f"{unit(members[0])}, {PROTOCOL_NAMES[protocol]}")
            axis.set_xlim(left=0)
    _legend_below(figure, max(axes[0], key=lambda axis: len(axis.get_legend_handles_labels()[0])))
    return figure


def _legend_below(figure: Figure, axis: Axes) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))


def _one_thread(cells: Sequence[Cell]) -> bool:
    return all(run["hardware"]["threads"] == 1 and not run["hardware"]["gpu"] for cell in cells for run in cell.runs)


def _with_plans(cell: Cell) -> dict[str, Any] | None:
    """The plans of the cell's first run that has some."""
    return next((run["plans"] for run in cell.runs if run["plans"]), None)


def plans(cells: Sequence[Cell], look: Mapping[str, tuple[str, str]]) -> Figure:
    """What agents choose from. A row per start state: the maze with the ways that the agents went, then, for each
    agent, the simulated paths of its candidates around the start, coloured by their value, the chosen one in bold.
    """
    found = [(cell, plan) for cell in cells if (plan := _with_plans(cell))]
    first = found[0][1]
    found = [(cell, plan) for cell, plan in found if _positions(plan) == _positions(first)]  # the same start states
    height, width = np.array(first["maze_map"]).shape
    n_rows, n_columns = len(first["starts"]), 1 + len(found)
    ratios = [max(0.6, width / height)] + [1.0] * len(found)
    figure, axes = pyplot.subplots(
        n_rows,
        n_columns,
        figsize=(1.0 + 3.1 * sum(ratios), 0.9 + 3.1 * n_rows),
        squeeze=False,
        gridspec_kw={"width_ratios": ratios},
    )
    lines = None
    for row, start in enumerate(first["starts"]):
        starts = [plan["starts"][row] for _, plan in found]
        points = np.concatenate([np.array(other["paths"]).reshape(-1, 2) for other in starts])
        centre = (points.max(0) + points.min(0)) / 2
        reach = 1.15 * max(np.ptp(points, 0).max() / 2, 0.3 * first["cell_size"])
        overview = axes[row, 0]
        _draw_maze(overview, first)
        for (cell, _), other in zip(found, starts, strict=True):
            overview.plot(*np.array(other["route"]).T, color=look[cell.label][0], linewidth=1.8, label=cell.label)
        overview.add_patch(Rectangle(centre - reach, 2 * reach, 2 * reach, fill=False, linewidth=1, zorder=6))
        overview.plot(*start["position"], "o", color="black", markersize=6, markeredgecolor="white", zorder=5)
        for axis, (cell, plan), other in zip(axes[row, 1:], found, starts, strict=True):
            _draw_maze(axis, plan)
            lines = _draw_candidates(axis, other)
            axis.set_xlim(centre[0] - reach, centre[0] + reach)
            axis.set_ylim(centre[1] - reach, centre[1] + reach)
            values = other["scores"]
            name = cell.label.replace("[", "\n[") + "\n" if row == 0 else ""
            axis.set_title(f"{name}value from {min(values):.3g} to {max(values):.3g}", fontsize=10)
        overview.set_title(f"start {row + 1} (dot), goal (star)", fontsize=10)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, [f"the way of {name}" for name in names], loc="outside lower left", ncols=len(names))
    if lines is not None:
        bar = figure.colorbar(lines, ax=axes, shrink=0.5, pad=0.01, ticks=[0, 1])
        bar.ax.set_yticklabels(["lowest value", "highest value"])
    horizons = " or ".join(map(str, sorted({plan["horizon"] for _, plan in found})))
    title = f"{_short(cells[0].dataset)}: simulated paths of candidates, {horizons} steps"
    figure.suptitle(f"{title}; black: the chosen one", fontsize=12)
    return figure


def _positions(plan: Mapping[str, Any]) -> list[Any]:
    return [start["position"] for start in plan["starts"]]


def _draw_maze(axis: Axes, plan: Mapping[str, Any]) -> None:
    """Walls and goal; the maze's centre is the origin, row 0 of the map is at the top."""
    maze, cell = np.array(plan["maze_map"]), plan["cell_size"]
    height, width = (extent * cell / 2 for extent in maze.shape)
    for i, j in np.argwhere(maze == 1):
        corner = (j * cell - width, height - (i + 1) * cell)
        axis.add_patch(Rectangle(corner, cell, cell, facecolor="#b9bec4", edgecolor="#b9bec4", linewidth=0.5))
    axis.plot(*plan["goal"], "*", color="#CC0000", markersize=14, markeredgecolor="white", zorder=5)
    axis.set_xlim(-width, width)
    axis.set_ylim(-height, height)
    axis.set_aspect("equal")
    axis.grid(visible=False)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(True)


def _draw_candidates(axis: Axes, start: Mapping[str, Any]) -> LineCollection:
    paths, values = np.array(start["paths"]), np.array(start["scores"])
    scaled = (values - values.min()) / max(np.ptp(values), 1e-12)
    order = np.argsort(scaled)
    lines = LineCollection(list(paths[order]), cmap="viridis", linewidths=1.5, alpha=0.9, zorder=2)
    lines.set_array(scaled[order])
    lines.set_clim(0, 1)
    axis.add_collection(lines)
    outline = [patheffects.Stroke(linewidth=6.5, foreground="white"), patheffects.Normal()]
    chosen = paths[start["chosen"]]
    axis.plot(*chosen.T, color="black", linewidth=3.2, zorder=4, path_effects=outline, solid_capstyle="round")
    axis.plot(*start["position"], "o", color="black", markersize=7, markeredgecolor="white", zorder=5)
    return lines


def _short(dataset: str) -> str:
    return dataset.removeprefix("ld-agents/")
