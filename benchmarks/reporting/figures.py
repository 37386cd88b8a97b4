"""The figures of a suite: scores, learning curves, aggregates, profiles; and what each agent looks like in all."""

from __future__ import annotations

import colorsys
import functools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import colors, pyplot
from PIL import Image

from ld_agents.data.storage import whole
from reporting import intervals, plan_figures
from reporting.runs import ENV, FIRST_CONTACT, PROTOCOLS, by_dataset, scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reporting.aggregates import Aggregates

mpl.use("Agg")

# Color and marker of each agent, the same in every figure; most colors are Okabe and Ito's, told apart by color-blind
# readers. Further agents and settings get a look that depends on their name alone.
LOOKS = {
    "LDCQ": ("#0072B2", "o"),
    "LDCQ[prior=gaussian]": ("#86BFE0", "P"),
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
}
PROTOCOL_NAMES = {ENV: "environment's return", FIRST_CONTACT: "first contact"}

Drawing = Callable[[], "Figure"]


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
            name = f"curves_{protocol.replace(' ', '_')}.png"
            found[name] = functools.partial(learning_curves, drawn, protocol)
    if groups:
        found["intervals.png"] = lambda: aggregate_intervals(groups)
        found["profiles.png"] = lambda: performance_profiles(groups)
    for dataset, members in by_dataset(runs):
        plans = {label: plan for label, cell in sorted(members.items()) if (plan := plan_figures.first_plans(cell))}
        if plans:
            name = re.sub(r"[^A-Za-z0-9]+", "-", dataset).strip("-")
            found[f"plans_{name}.png"] = functools.partial(plan_figures.plans, short(dataset), plans, look)
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


# Drawings


def scores_by_dataset(runs: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Means with intervals and the single runs, a panel per dataset and protocol."""
    protocols = [protocol for protocol in PROTOCOLS if runs[protocol].notna().any()]
    datasets = list(by_dataset(runs))
    heights = [0.75 + 0.42 * len(members) for _, members in datasets]
    size = (1.8 + 4.2 * len(protocols), 0.9 + sum(heights))
    figure, axes = pyplot.subplots(len(heights), len(protocols), figsize=size, squeeze=False, height_ratios=heights)
    estimates = table[~table["is_policy"]].set_index(["dataset", "label", "protocol"])[["mean", "low", "high"]]
    for row, (dataset, members) in zip(axes, datasets, strict=True):
        for axis, protocol in zip(row, protocols, strict=True):
            for y, (label, cell) in enumerate(members.items()):
                if (dataset, label, protocol) in estimates.index:
                    mean_with_interval(axis, y, tuple(estimates.loc[dataset, label, protocol]), label)
                    values = cell[protocol]
                    axis.plot(values, [y] * len(values), "|", color="#333333", markersize=7, alpha=0.6, zorder=3)
            agent_axis(axis, list(members) if axis is row[0] else [""] * len(members))
            axis.set_title(f"{short(dataset)}, {PROTOCOL_NAMES[protocol]}")
            axis.set_xlabel(next(iter(members.values()))["unit"].iloc[0])
    figure.supxlabel("bars: 95 % interval of the mean; ticks: single seeds", fontsize=10)
    return figure


def aggregate_intervals(groups: Sequence[Aggregates]) -> Figure:
    """IQM, median, mean and optimality gap over the datasets, a row of panels per protocol."""
    rows = max(len(group.matrices) for group in groups)
    size = (13, 0.6 + len(groups) * (0.8 + 0.42 * rows))
    figure, axes = pyplot.subplots(len(groups), len(intervals.METRICS), figsize=size, squeeze=False)
    for row, group in zip(axes, groups, strict=True):
        for axis, metric in zip(row, intervals.METRICS, strict=True):
            for y, (agent, values) in enumerate(group.metrics.items()):
                mean_with_interval(axis, y, values[metric], agent)
            agent_axis(axis, list(group.metrics) if axis is row[0] else [""] * len(group.metrics))
            axis.set_title(metric + (" (less is better)" if metric == "optimality gap" else ""), fontsize=10)
            axis.set_xlabel("D4RL score")
        row[0].set_ylabel(PROTOCOL_NAMES[group.protocol])
    plan_figures.wrapped_title(figure, f"over {_datasets(groups)}")
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
    plan_figures.wrapped_title(figure, f"over {_datasets(groups)}")
    legend_below(figure)
    return figure


def learning_curves(runs: pd.DataFrame, protocol: str) -> Figure:
    """Score against gradient steps and minutes of learning: thin lines are seeds, the thick one is their mean."""
    datasets = list(by_dataset(runs))
    size = (max(6.0, 1 + 4.2 * len(datasets)), 6.8)
    figure, axes = pyplot.subplots(2, len(datasets), figsize=size, squeeze=False, sharey="col")
    one_thread = all(run["hardware"]["threads"] == 1 and not run["hardware"]["gpu"] for run in runs["file"])
    for (steps_axis, time_axis), (dataset, members) in zip(axes.T, datasets, strict=True):
        for label, cell in sorted(members.items()):
            for axis, key, divisor in ((steps_axis, "gradient_steps", 1000), (time_axis, "seconds", 60)):
                _draw_curves(axis, label, [_curve(run, protocol, key, divisor) for run in cell["file"]])
        steps_axis.set_title(short(dataset))
        steps_axis.set_xlabel("thousand gradient steps, all stages")
        time_axis.set_xlabel("minutes of learning" + ", one thread" * one_thread)
        for axis in (steps_axis, time_axis):
            axis.set_ylabel(f"{cell['unit'].iloc[0]}, {PROTOCOL_NAMES[protocol]}")
            axis.set_xlim(left=0)
    legend_below(figure)
    return figure


def _curve(run: Mapping[str, Any], protocol: str, key: str, divisor: int) -> Any:
    """Positions and scores [2, points] of a learning curve."""
    points = run["curve"]
    return np.array([(point[key] / divisor, scores(dict(run), protocol, point).mean()) for point in points]).T


def _draw_curves(axis: Axes, label: str, curves: Sequence[Any]) -> None:
    color, marker = look(label)
    for x, y in curves:
        axis.plot(x, y, color=color, linewidth=0.8, alpha=0.4)
    whole = [curve for curve in curves if curve.shape[1] == max(other.shape[1] for other in curves)]
    axis.plot(*np.mean(whole, axis=0), color=color, linewidth=2.2, marker=marker, markersize=5, label=label)


# Parts


def mean_with_interval(axis: Axes, y: float, estimate: Sequence[float], label: str) -> None:
    value, low, high = estimate
    color, marker = look(label)
    if np.isfinite(low):
        axis.barh(y, high - low, left=low, height=0.55, color=color, alpha=0.35, linewidth=0)
    axis.plot([value], [y], marker, color=color, markersize=7, zorder=4)


def agent_axis(axis: Axes, agents: Sequence[str]) -> None:
    axis.set_yticks(range(len(agents)), agents)
    axis.set_ylim(len(agents) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    axis.use_sticky_edges = False  # room beside the bars
    axis.margins(x=0.06)


def legend_below(figure: Figure) -> None:
    """One legend for all panels, in as many columns as the figure is wide enough for."""
    entries = {
        name: handle for axis in figure.axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    entries = dict(sorted(entries.items()))
    columns = int(figure.get_figwidth() / (0.6 + 0.085 * max(map(len, entries))))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=max(1, columns))


def _datasets(groups: Sequence[Aggregates]) -> str:
    return "; ".join(dict.fromkeys(", ".join(map(short, group.datasets)) for group in groups))


def short(dataset: str) -> str:
    return dataset.removeprefix("ld-agents/")
