"""The figures of a suite: scores, curves, aggregates, profiles, plans over a maze; and what each agent looks like."""

from __future__ import annotations

import colorsys
import functools
import re
import textwrap
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import colors, patheffects, pyplot
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as MplPath
from PIL import Image

from ld_agents.data.storage import whole
from reporting import aggregates, intervals
from reporting.aggregates import Aggregates
from reporting.runs import ENV, FIRST_CONTACT, PROTOCOLS, RunFile, by_dataset, scores

mpl.use("Agg")

# Color and marker of each agent, the same in every figure; most colors are Okabe and Ito's, told apart by color-blind
# readers. Further agents and settings get a look that depends on their name alone.
LOOKS = {
    "LDCQ": ("#0072B2", "o"),
    "LDCQ[prior=gaussian]": ("#86BFE0", "P"),
    "LDGC": ("#00A0A0", "o"),
    "LDGC[goals=commanded]": ("#9B59D0", "s"),
    "LatentDiffuser": ("#D55E00", "s"),
    "LatentDiffuser[guidance=none]": ("#A59C94", "o"),
    "LatentDiffuser[guidance=mse]": ("#7B3294", "^"),
    "LatentDiffuser[guidance=posterior-mean]": ("#7F1D1D", "D"),
    "LatentDiffuser[inverse_temperature=1.0]": ("#F4B070", "v"),
    "LatentDiffuser[inverse_temperature=10.0]": ("#E0559A", "P"),
    "LatentDiffuser[n_candidates=8]": ("#6B6B00", "X"),
    "IQL": ("#009E73", "^"),
    "ReBRAC": ("#CC79A7", "D"),
    "TD3BC": ("#E69F00", "v"),
    "CQL": ("#8C6D46", "p"),
    "BC": ("#3A3A3A", "X"),
    "GCBC": ("#5B8C3E", "X"),
    "GCBC[goals=commanded]": ("#B0C030", "d"),
    "BC[best_fraction=0.1]": ("#9A9A9A", "d"),
}
MARKERS = "os^DvPXpd"
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
    "text.parse_math": False,  # names come from run files, and a dollar sign in one is no formula
}
PROTOCOL_NAMES = {ENV: "environment's return", FIRST_CONTACT: "first contact"}
UNKNOWN = (np.nan,) * 3  # estimate of an agent without runs

Drawing = Callable[[], Figure]
Plans = Mapping[str, Any]
"""`plans` of a run file, as `maze_plans.plan_paths` makes them."""


def look(label: str) -> tuple[str, str]:
    """Color and marker of an agent; settings that are not in `LOOKS` get a tint of their agent's color."""
    if label in LOOKS:
        return LOOKS[label]
    number = zlib.crc32(label.encode())
    share = number % 101 / 100
    base = LOOKS.get(re.split(r"[\[ ]", label)[0])
    rgb = np.array(colors.to_rgb(base[0]) if base else colorsys.hsv_to_rgb(share, 0.6, 0.7))
    rgb = rgb + (1 - rgb) * (0.2 + 0.4 * share) * bool(base)
    return colors.to_hex(tuple(rgb)), MARKERS[number // 101 % len(MARKERS)]


# Files


def drawings(runs: pd.DataFrame, table: pd.DataFrame, groups: Sequence[Aggregates]) -> dict[str, Drawing]:
    """File name and drawing of every figure for which there is something to show."""
    found: dict[str, Drawing] = {"scores.png": lambda: scores_by_dataset(runs, table)}
    for protocol in PROTOCOLS:
        drawn = runs[runs[protocol].notna() & runs["file"].map(lambda run: bool(run["curve"]))]
        if not drawn.empty:
            found[f"curves_{protocol.replace(' ', '_')}.png"] = functools.partial(learning_curves, drawn, protocol)
    if groups:
        found["intervals.png"] = lambda: aggregate_intervals(groups)
        found["profiles.png"] = lambda: performance_profiles(groups)
    for dataset, members in by_dataset(runs):
        plans_of = {label: plan for label, cell in sorted(members.items()) if (plan := first_plans(cell))}
        if plans_of:
            name = re.sub(r"[^A-Za-z0-9]+", "-", dataset).strip("-")
            found[f"plans_{name}.png"] = functools.partial(plans, short(dataset), plans_of)
    return found


def save(draw: Drawing, source: str, path: Path) -> None:
    """Draw a figure into a PNG file that remembers `source`, the hash of its run files."""
    with mpl.rc_context(STYLE), whole(path) as temporary:
        figure = draw()
        figure.savefig(temporary, format="png", metadata={"Software": None, "Source": source})
    pyplot.close(figure)


def drawn_from(path: Path) -> str | None:
    """The hash of the run files that a figure was drawn from."""
    with Image.open(path) as image:
        return image.info.get("Source")


# Scores


def scores_by_dataset(runs: pd.DataFrame, table: pd.DataFrame, protocols: Sequence[str] = PROTOCOLS) -> Figure:
    """Means with intervals and the single runs, a panel per dataset and protocol that it has."""
    panels = [
        (dataset, protocol, members)
        for dataset, members in by_dataset(runs)
        for protocol in protocols
        if runs.loc[runs["dataset"] == dataset, protocol].notna().any()
    ]
    columns = min(3, len(panels))
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    heights = [1.0 + 0.42 * max(len(members) for *_, members in row) for row in rows]
    size = (6.0 * columns, 0.9 + sum(heights))
    figure, axes = pyplot.subplots(len(rows), columns, figsize=size, squeeze=False, height_ratios=heights)
    agents = table[~table["is_policy"]].set_index(["dataset", "protocol", "label"])[["mean", "low", "high"]]
    estimates = dict(zip(agents.index, agents.to_numpy(), strict=True))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (dataset, protocol, members) in zip(axes.flat, panels, strict=False):
        shown = {label: estimates.get((dataset, protocol, label), UNKNOWN) for label in members}
        for label, cell in members.items():
            if len(cell) < intervals.FEW:  # the ticks show the range
                shown[label] = (shown[label][0], np.nan, np.nan)
        draw_estimates(axis, shown, named=True)
        for y, (label, cell) in enumerate(members.items()):
            if np.isfinite(shown[label][0]):
                ticks = {"color": "#333333", "markersize": 9, "alpha": 0.6, "zorder": 3}
                axis.plot(cell[protocol], [y] * len(cell), "|", **ticks)
        axis.set_title(f"{textwrap.fill(short(dataset), 44)}\n{PROTOCOL_NAMES[protocol]}", fontsize=10)
        axis.set_xlabel(next(iter(members.values()))["unit"].iloc[0])
    figure.supxlabel(f"ticks: single seeds; bars: 95 % interval of the mean of {intervals.FEW} and more", fontsize=10)
    return figure


def aggregate_intervals(groups: Sequence[Aggregates]) -> Figure:
    """IQM, median, mean and optimality gap over the datasets, a row of panels per protocol."""
    rows = max(len(group.matrices) for group in groups)
    size = (13, 0.6 + len(groups) * (0.8 + 0.42 * rows))
    figure, axes = pyplot.subplots(len(groups), len(intervals.METRICS), figsize=size, squeeze=False)
    for row, group in zip(axes, groups, strict=True):
        for axis, metric in zip(row, intervals.METRICS, strict=True):
            shown = {
                agent: aggregates.shown(values[metric], group.matrices[agent])
                for agent, values in group.metrics.items()
            }
            draw_estimates(axis, shown, named=axis is row[0])
            axis.set_title(metric + (" (less is better)" if metric == "optimality gap" else ""), fontsize=10)
            axis.set_xlabel("D4RL score")
        row[0].set_ylabel(PROTOCOL_NAMES[group.protocol])
    wrapped_title(figure, f"over {_datasets(groups)}")
    return figure


def performance_profiles(groups: Sequence[Aggregates]) -> Figure:
    """Share of runs whose score lies above a threshold, a panel per protocol."""
    figure, axes = pyplot.subplots(1, len(groups), figsize=(2 + 4.8 * len(groups), 4.4), squeeze=False, sharey=True)
    for axis, group in zip(axes[0], groups, strict=True):
        values = np.concatenate([matrix.ravel() for matrix in group.matrices.values()])
        margin = 0.05 * max(np.ptp(values), 0.1)
        thresholds = np.linspace(values.min() - margin, values.max() + margin, 61)
        for agent, (share, low, high) in intervals.profiles(group.matrices, thresholds).items():
            color, marker = look(agent)
            axis.plot(100 * thresholds, share, color=color, linewidth=2, marker=marker, markevery=10, label=agent)
            axis.fill_between(100 * thresholds, low, high, color=color, alpha=0.18, linewidth=0)
        axis.set_xlabel("D4RL score τ")
        axis.set_title(PROTOCOL_NAMES[group.protocol])
        axis.set_ylim(-0.03, 1.03)
    axes[0, 0].set_ylabel("share of runs with a score above τ")
    wrapped_title(figure, f"over {_datasets(groups)}")
    legend_below(figure)
    return figure


def learning_curves(runs: pd.DataFrame, protocol: str) -> Figure:
    """Score against gradient steps and, below, minutes of learning: thin lines are seeds.

    The thick line is their mean after equal steps; after equal minutes there is none, as seeds differ in speed.
    """
    datasets = list(by_dataset(runs))
    columns = min(4, len(datasets))
    bands = -(-len(datasets) // columns)
    figure, grid = pyplot.subplots(
        2 * bands, columns, figsize=(max(6.0, 1 + 4.2 * columns), 6.8 * bands), squeeze=False
    )
    pairs = [grid[2 * band : 2 * band + 2, column] for band in range(bands) for column in range(columns)]
    for axis in (axis for pair in pairs[len(datasets) :] for axis in pair):
        axis.set_visible(False)
    one_thread = all(run["hardware"]["threads"] == 1 and not run["hardware"]["gpu"] for run in runs["file"])
    x_labels = "thousand gradient steps, all stages", "minutes of learning" + ", one thread" * one_thread
    for column, (dataset, members) in zip(pairs, datasets, strict=False):
        column[1].sharey(column[0])
        column[0].set_title(short(dataset))
        units = ("gradient_steps", 1000), ("seconds", 60)
        for axis, (key, divisor), x_label in zip(column, units, x_labels, strict=True):
            for label, cell in sorted(members.items()):
                curves = [_curve(run, protocol, key, divisor) for run in cell["file"]]
                _draw_curves(axis, label, curves, with_mean=axis is column[0])
            axis.set_xlabel(x_label)
            axis.set_ylabel(f"{cell['unit'].iloc[0]}, {PROTOCOL_NAMES[protocol]}")
            axis.set_xlim(left=0)
    legend_below(figure)
    return figure


def _curve(run: RunFile, protocol: str, key: str, divisor: int) -> Any:
    """Positions and scores [2, points] of a learning curve."""
    return np.array([(point[key] / divisor, scores(run, protocol, point).mean()) for point in run["curve"]]).T


def _draw_curves(axis: Axes, label: str, curves: Sequence[Any], with_mean: bool) -> None:
    color, marker = look(label)
    for x, y in curves:
        axis.plot(x, y, color=color, linewidth=0.8 if with_mean else 1.4, alpha=0.4 if with_mean else 0.8)
        if not with_mean:
            axis.plot(x[-1:], y[-1:], color=color, marker=marker, markersize=5)
    if with_mean:
        longest = max(curve.shape[1] for curve in curves)
        mean = np.mean([curve for curve in curves if curve.shape[1] == longest], axis=0)
        axis.plot(*mean, color=color, linewidth=2.2, marker=marker, markersize=5, label=label)


# Plans


def first_plans(cell: pd.DataFrame) -> Plans | None:
    """The plans of the cell's first run that has some, and of how many of them it chose one (`considered`)."""
    for run in cell["file"]:
        if run["plans"]:
            # LatentDiffuser's runs store more plans than it chooses from
            return {**run["plans"], "considered": run.get("settings", {}).get("n_candidates")}
    return None


def plans(title: str, plans_of: Mapping[str, Plans], chosen: str = "black") -> Figure:
    """A row per start state: the maze with the agents' trajectories, then, for each agent, the simulated paths of its
    candidates around the start, colored by their value, the chosen one in bold, which the title calls `chosen`.
    """
    first = next(iter(plans_of.values()))
    shown = {label: plan for label, plan in plans_of.items() if _positions(plan) == _positions(first)}
    height, width = np.array(first["maze_map"]).shape
    ratios = [max(0.6, width / height)] + [1.0] * len(shown)
    rows, size = len(first["starts"]), (1.0 + 3.1 * sum(ratios), 0.9 + 3.1 * len(first["starts"]))
    figure, axes = pyplot.subplots(rows, len(ratios), figsize=size, squeeze=False, width_ratios=ratios)
    for row, (overview, *agent_axes) in enumerate(axes):
        starts = {label: plan["starts"][row] for label, plan in shown.items()}
        points = np.concatenate([np.array(start["paths"]).reshape(-1, 2) for start in starts.values()])
        center = (points.max(0) + points.min(0)) / 2
        reach = 1.15 * max(np.ptp(points, 0).max() / 2, 0.3 * first["cell_size"])
        draw_maze(overview, first)
        overview.add_patch(Rectangle(center - reach, 2 * reach, 2 * reach, fill=False, linewidth=1, zorder=6))
        overview.set_title(f"start {row + 1} (dot), goal (star)", fontsize=10)
        for axis, (label, start) in zip(agent_axes, starts.items(), strict=True):
            overview.plot(*np.array(start["route"]).T, color=look(label)[0], linewidth=1.8, label=label)
            draw_maze(axis, first)
            considered = shown[label].get("considered")
            lines = draw_candidates(axis, start, considered)
            zoom(axis, center - reach, center + reach)
            name = label.replace("[", "\n[") + "\n" if row == 0 else ""
            name += f"chosen from {considered}, " if considered else ""
            axis.set_title(f"{name}value from {min(start['scores']):.3g} to {max(start['scores']):.3g}", fontsize=10)
        overview.plot(*first["starts"][row]["position"], "o", color="black", markersize=6, mec="white", zorder=5)
    handles, names = axes[0, 0].get_legend_handles_labels()
    columns = int(size[0] / (1.3 + 0.085 * max(map(len, names))))
    names = [f"trajectory of {name}" for name in names]
    figure.legend(handles, names, loc="outside lower left", ncols=max(1, columns))
    bar = figure.colorbar(lines, ax=axes, shrink=0.5, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels(["lowest value", "highest value"])
    horizons = " or ".join(map(str, sorted({plan["horizon"] for plan in shown.values()})))
    wrapped_title(figure, f"{title}: simulated paths of candidates, {horizons} steps; {chosen}: the chosen one")
    return figure


def _positions(plan: Plans) -> list[Any]:
    return [start["position"] for start in plan["starts"]]


def draw_maze(axis: Axes, plan: Plans) -> None:
    """Walls and goal; the maze's center is the origin, row 0 of the map is at the top."""
    maze, cell = np.array(plan["maze_map"]), plan["cell_size"]
    height, width = (extent * cell / 2 for extent in maze.shape)
    squares = [
        [(x, y), (x + cell, y), (x + cell, y + cell), (x, y + cell), (x, y)]
        for x, y in ((j * cell - width, height - (i + 1) * cell) for i, j in np.argwhere(maze == 1))
    ]
    walls = MplPath.make_compound_path(*(MplPath(square, closed=True) for square in squares))
    axis.add_patch(PathPatch(walls, facecolor="#b9bec4", edgecolor="#b9bec4", linewidth=0.5))
    axis.plot(*plan["goal"], "*", color="#CC0000", markersize=14, markeredgecolor="white", zorder=5)
    zoom(axis, (-width, -height), (width, height))
    axis.set(aspect="equal", xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.spines[:].set_visible(True)


def draw_candidates(
    axis: Axes, start: Mapping[str, Any], considered: int | None = None, width: float = 3.2
) -> LineCollection:
    """Candidates in the order of their values, the chosen one above them and `width` points wide.

    Further draws of the agent, those after the first `considered`, are grey.
    """
    draws = np.array(start["paths"])
    axis.add_collection(LineCollection(list(draws[considered:] if considered else ()), colors="#b0b0b0", zorder=1.5))
    paths, values = draws[:considered], np.array(start["scores"])[:considered]
    scaled = (values - values.min()) / max(np.ptp(values), 1e-12)
    order = np.argsort(scaled)
    lines = LineCollection(list(paths[order]), cmap="viridis", linewidths=width / 2, alpha=0.9, zorder=2)
    lines.set_array(scaled[order])
    lines.set_clim(0, 1)
    axis.add_collection(lines)
    outline = [patheffects.Stroke(linewidth=2 * width, foreground="white"), patheffects.Normal()]
    chosen = paths[start["chosen"]]
    axis.plot(*chosen.T, color="black", linewidth=width, zorder=4, path_effects=outline, solid_capstyle="round")
    axis.plot(*start["position"], "o", color="black", markersize=7, markeredgecolor="white", zorder=5)
    return lines


def zoom(axis: Axes, low: Sequence[float], high: Sequence[float]) -> None:
    """The part of a maze between two corners."""
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))


# Parts


def draw_estimates(axis: Axes, estimates: Mapping[str, Sequence[float]], named: bool) -> None:
    """A row per agent: its value, and a bar for the interval where there is one."""
    for y, (label, (value, low, high)) in enumerate(estimates.items()):
        color, marker = look(label)
        if np.isfinite(low):
            axis.barh(y, high - low, left=low, height=0.55, color=color, alpha=0.35, linewidth=0)
        axis.plot([value], [y], marker, color=color, markersize=7, zorder=4)
    agent_axis(axis, list(estimates) if named else [""] * len(estimates))


def agent_axis(axis: Axes, agents: Sequence[str]) -> None:
    axis.set_yticks(range(len(agents)), agents)
    axis.set_ylim(len(agents) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    axis.use_sticky_edges = False  # room beside the bars
    axis.margins(x=0.06)


def wrapped_title(figure: Figure, text: str) -> None:
    figure.suptitle(textwrap.fill(text, int(10 * figure.get_figwidth())), fontsize=11)


def legend_below(figure: Figure) -> None:
    """One legend for all panels, in as many columns as the figure is wide enough for."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        handles, names = axis.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    names = sorted(entries)
    columns = int(figure.get_figwidth() / (0.6 + 0.085 * max(map(len, names))))
    figure.legend([entries[name] for name in names], names, loc="outside lower center", ncols=max(1, columns))


def _datasets(groups: Sequence[Aggregates]) -> str:
    return "; ".join(dict.fromkeys(", ".join(map(short, group.datasets)) for group in groups))


def short(dataset: str) -> str:
    return dataset.removeprefix("ld-agents/")
