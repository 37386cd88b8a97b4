"""What a planner chooses from, drawn over its maze: simulated paths of candidates, and where the agent then went."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import patheffects, pyplot
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plans = Mapping[str, Any]
"""`plans` of a run file, as `maze_plans.plan_paths` makes them."""


def first_plans(cell: pd.DataFrame) -> Plans | None:
    """The plans of the cell's first run that has some."""
    return next((run["plans"] for run in cell["file"] if run["plans"]), None)


def plans(title: str, plans_of: Mapping[str, Plans], look: Callable[[str], tuple[str, str]]) -> Figure:
    """A row per start state: the maze with the agents' trajectories, then, for each agent, the simulated paths of its
    candidates around the start, colored by their value, the chosen one in bold.
    """
    first = next(iter(plans_of.values()))
    shown = {label: found for label, found in plans_of.items() if _positions(found) == _positions(first)}
    height, width = np.array(first["maze_map"]).shape
    ratios = [max(0.6, width / height)] + [1.0] * len(shown)
    size = (1.0 + 3.1 * sum(ratios), 0.9 + 3.1 * len(first["starts"]))
    figure, axes = pyplot.subplots(
        len(first["starts"]), len(ratios), figsize=size, squeeze=False, gridspec_kw={"width_ratios": ratios}
    )
    for row, axis_row in enumerate(axes):
        starts = {label: found["starts"][row] for label, found in shown.items()}
        points = np.concatenate([np.array(start["paths"]).reshape(-1, 2) for start in starts.values()])
        center = (points.max(0) + points.min(0)) / 2
        reach = 1.15 * max(np.ptp(points, 0).max() / 2, 0.3 * first["cell_size"])
        overview = axis_row[0]
        draw_maze(overview, first)
        overview.add_patch(Rectangle(center - reach, 2 * reach, 2 * reach, fill=False, linewidth=1, zorder=6))
        overview.set_title(f"start {row + 1} (dot), goal (star)", fontsize=10)
        for axis, (label, start) in zip(axis_row[1:], starts.items(), strict=True):
            overview.plot(*np.array(start["route"]).T, color=look(label)[0], linewidth=1.8, label=label)
            draw_maze(axis, first)
            lines = draw_candidates(axis, start)
            axis.set_xlim(center[0] - reach, center[0] + reach)
            axis.set_ylim(center[1] - reach, center[1] + reach)
            name = label.replace("[", "\n[") + "\n" if row == 0 else ""
            values = start["scores"]
            axis.set_title(f"{name}value from {min(values):.3g} to {max(values):.3g}", fontsize=10)
        overview.plot(*first["starts"][row]["position"], "o", color="black", markersize=6, mec="white", zorder=5)
    handles, names = axes[0, 0].get_legend_handles_labels()
    columns = int(size[0] / (1.3 + 0.085 * max(map(len, names))))
    names = [f"trajectory of {name}" for name in names]
    figure.legend(handles, names, loc="outside lower left", ncols=max(1, columns))
    bar = figure.colorbar(lines, ax=axes, shrink=0.5, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels(["lowest value", "highest value"])
    horizons = " or ".join(map(str, sorted({found["horizon"] for found in shown.values()})))
    wrapped_title(figure, f"{title}: simulated paths of candidates, {horizons} steps; black: the chosen one")
    return figure


def wrapped_title(figure: Figure, text: str) -> None:
    figure.suptitle(textwrap.fill(text, int(10 * figure.get_figwidth())), fontsize=11)


def _positions(found: Plans) -> list[Any]:
    return [start["position"] for start in found["starts"]]


def draw_maze(axis: Axes, found: Plans) -> None:
    """Walls and goal; the maze's center is the origin, row 0 of the map is at the top."""
    maze, cell = np.array(found["maze_map"]), found["cell_size"]
    height, width = (extent * cell / 2 for extent in maze.shape)
    for i, j in np.argwhere(maze == 1):
        corner = (j * cell - width, height - (i + 1) * cell)
        axis.add_patch(Rectangle(corner, cell, cell, facecolor="#b9bec4", edgecolor="#b9bec4", linewidth=0.5))
    axis.plot(*found["goal"], "*", color="#CC0000", markersize=14, markeredgecolor="white", zorder=5)
    axis.set_xlim(-width, width)
    axis.set_ylim(-height, height)
    axis.set_aspect("equal")
    axis.grid(visible=False)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(True)


def draw_candidates(axis: Axes, start: Mapping[str, Any], width: float = 3.2) -> LineCollection:
    """Candidates in the order of their values, the chosen one above them and `width` points wide."""
    paths, values = np.array(start["paths"]), np.array(start["scores"])
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
