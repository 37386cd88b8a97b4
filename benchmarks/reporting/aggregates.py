"""Aggregates over datasets: which datasets and agents they cover, their values, and the tables that show them."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reporting import intervals
from reporting.intervals import Estimate
from reporting.runs import PROTOCOLS
from reporting.tables import bracketed, markdown

HEAD = """D4RL scores with 95 % stratified bootstrap intervals over runs ({reps:,} resamples, rliable). The \
optimality gap is the mean distance below 100. Intervals of one seed have no width. All agents are compared on the \
same datasets: the largest block of agents and datasets without a hole (most agents times datasets; of equal blocks, \
the one with more datasets).

"""
IMPROVEMENT = "probability of improvement"


@dataclass(frozen=True)
class Aggregates:
    """Scores / 100 [runs, tasks] of each agent under one protocol.

    The tasks are `datasets`; `left_out` says which agents, datasets and seeds with scores are not among them.
    """

    protocol: str
    datasets: tuple[str, ...]
    matrices: dict[str, NDArray[np.float64]]
    left_out: tuple[str, ...]

    @functools.cached_property
    def metrics(self) -> dict[str, dict[str, Estimate]]:
        """IQM, median, mean and optimality gap of each agent in D4RL scores, the best IQM first."""
        found = {
            label: {metric: (100 * value, 100 * low, 100 * high) for metric, (value, low, high) in estimates.items()}
            for label, matrix in self.matrices.items()
            if (estimates := intervals.aggregates(matrix))
        }
        return dict(sorted(found.items(), key=lambda item: (-item[1]["IQM"][0], item[0])))

    @functools.cached_property
    def improvements(self) -> dict[tuple[str, str], Estimate]:
        """Probability that a run of the first agent beats a run of the second."""
        return intervals.improvements({label: self.matrices[label] for label in self.metrics})


def aggregate(runs: pd.DataFrame) -> list[Aggregates]:
    """Aggregates of every protocol that has D4RL scores."""
    return [group for protocol in PROTOCOLS if (group := score_matrices(runs, protocol)) is not None]


def score_matrices(runs: pd.DataFrame, protocol: str, together: Collection[str] = ()) -> Aggregates | None:
    """The largest block of agents and datasets without a hole; None where no run has a D4RL score.

    Given `together`, the block with the most of these agents; of several, the one with the most agents at all.
    """
    usable = runs[(runs["unit"] == "D4RL score") & runs[protocol].notna()]
    if usable.empty:
        return None
    data = (usable["dataset"] + " (" + usable["provenance"] + ")").groupby(usable["dataset"]).first()
    table = usable.pivot(index=["label", "seed"], columns="dataset", values=protocol)

    def size(block: list[str]) -> tuple[int, ...]:
        agents = set(table[block].dropna().index.get_level_values("label"))
        wanted = (len(agents & set(together)), len(agents)) if together else (len(block) * len(agents),)
        return *wanted, len(block)

    # The datasets of the largest block are those that some agents share.
    shared: set[frozenset[str]] = set()
    for _, members in usable.groupby("label"):
        own = frozenset(members["dataset"])
        shared |= {own} | {own & other for other in shared}
    block = max(sorted(sorted(datasets) for datasets in shared if datasets), key=size)

    left_out = [data[dataset] for dataset in table if dataset not in block]
    matrices = {}
    for label, scores in table[block].groupby("label"):
        common = scores.dropna()  # the seeds that the agent has on all datasets of the block
        extra = [str(seed) for _, seed in scores.dropna(how="all").index.difference(common.index)]
        if common.empty:
            missing = [dataset for dataset in block if scores[dataset].isna().all()]
            left_out.append(f"{label} ({'no run on ' + ', '.join(missing) if missing else 'no common seed'})")
            continue
        matrices[str(label)] = common.to_numpy() / 100
        if extra:
            left_out.append(f"{label}'s seed{'s' * (len(extra) > 1)} {', '.join(extra)} (not on all of them)")
    return Aggregates(protocol, tuple(data[block]), matrices, tuple(left_out))


def aggregates_csv(groups: Sequence[Aggregates]) -> str:
    """One row per protocol, agent and metric in D4RL scores, and one per protocol and pair of agents."""
    metrics = [
        [group.protocol, label, "", metric, *(f"{value:.3f}" for value in estimate), "; ".join(group.datasets)]
        for group in groups
        for label, values in group.metrics.items()
        for metric, estimate in values.items()
    ]
    pairs = [
        [group.protocol, *pair, IMPROVEMENT, *(f"{value:.4f}" for value in estimate), "; ".join(group.datasets)]
        for group in groups
        for pair, estimate in group.improvements.items()
    ]
    columns = ["protocol", "agent", "other_agent", "metric", "value", "low", "high", "data"]
    return str(pd.DataFrame(metrics + pairs, columns=columns).to_csv(index=False, lineterminator="\n"))


def shown(group: Aggregates, estimate: Estimate, *labels: str) -> Estimate:
    """The estimate without its interval where the agents have one seed each, over which there is nothing to draw."""
    several = any(len(group.matrices[label]) > 1 for label in labels)
    return estimate if several else (estimate[0], math.nan, math.nan)


def aggregates_markdown(groups: Sequence[Aggregates]) -> str:
    """The same for people, with the datasets that the aggregates cover, and what is left out."""
    if not groups:
        return "No aggregates: no dataset has D4RL scores.\n"
    text = HEAD.format(reps=intervals.REPS)
    for group in groups:
        text += f"- `{group.protocol}`: over {', '.join(group.datasets)}"
        text += f". Left out: {'; '.join(group.left_out)}.\n" if group.left_out else "; nothing is left out.\n"
    metrics = [
        {"protocol": group.protocol, "agent": label, "seeds": len(group.matrices[label])}
        | {metric: bracketed(shown(group, estimate, label)) for metric, estimate in values.items()}
        for group in groups
        for label, values in group.metrics.items()
    ]
    pairs = [
        {
            "protocol": group.protocol,
            "pair": " > ".join(pair),
            "probability": "{:.2f} [{:.2f}, {:.2f}]".format(*shown(group, estimate, *pair)).removesuffix(" [nan, nan]"),
        }
        for group in groups
        for pair, estimate in group.improvements.items()
    ]
    text += f"\n{markdown(pd.DataFrame(metrics))}"
    if pairs:
        text += "\nProbability that a run of the first agent beats a run of the second:\n\n"
        text += markdown(pd.DataFrame(pairs))
    return text
