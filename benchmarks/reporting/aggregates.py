"""Aggregates over datasets: which datasets and agents they cover, their values, and the tables that show them."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ld_agents.evaluation.scores import family
from reporting import intervals
from reporting.intervals import FEW, IQM, METRICS, Estimate, covers
from reporting.runs import PROTOCOLS
from reporting.tables import bracketed, markdown, number, ranged

HEAD = """D4RL scores with 95 % stratified bootstrap intervals over runs ({reps:,} resamples, {fewer:,} for \
probabilities of improvement and profiles, rliable). The \
optimality gap is the mean distance below 100. (a to b) is the range of fewer than {few} seeds on one dataset. Ranks \
are by mean on each dataset, 1 is best. All agents are compared on the same datasets: \
the largest block of agents and datasets without a hole (most agents times datasets; of equal blocks, \
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

    @functools.cached_property
    def ranks(self) -> pd.DataFrame:
        """Mean rank of each agent (rows) over the datasets, and over those of each family where there are several."""
        means = pd.DataFrame({label: matrix.mean(0) for label, matrix in self.matrices.items()})
        ranks = means.rank(axis=1, ascending=False)
        families = ranks.groupby([family(name) or "other" for name in self.datasets]).mean()
        columns = {"mean rank": ranks.mean()} | {f"rank, {name}": row for name, row in families.iterrows()}
        return pd.DataFrame(columns).iloc[:, : None if len(families) > 1 else 1]


def aggregate(runs: pd.DataFrame) -> list[Aggregates]:
    """Aggregates of every protocol that has D4RL scores."""
    return [group for protocol in PROTOCOLS if (group := score_matrices(runs, protocol)) is not None]


def score_matrices(runs: pd.DataFrame, protocol: str, together: Collection[str] = ()) -> Aggregates | None:
    """The largest block of agents and datasets without a hole; None where no run has a D4RL score.

    Given `together`, the largest of the blocks with the most of these agents.
    """
    usable = runs[(runs["unit"] == "D4RL score") & runs[protocol].notna()]
    if usable.empty:
        return None
    data = (usable["dataset"] + " (" + usable["provenance"] + ")").groupby(usable["dataset"]).first()
    table = usable.pivot(index=["label", "seed"], columns="dataset", values=protocol)

    def size(block: list[str]) -> tuple[int, ...]:
        agents = set(table[block].dropna().index.get_level_values("label"))
        return len(agents & set(together)), len(block) * len(agents), len(block)

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
    ranks = [
        [group.protocol, label, "", column, f"{group.ranks.loc[label, column]:.3f}", "", "", "; ".join(group.datasets)]
        for group in groups
        for label in group.metrics
        for column in group.ranks
    ]
    pairs = [
        [group.protocol, *pair, IMPROVEMENT, *(f"{value:.4f}" for value in estimate), "; ".join(group.datasets)]
        for group in groups
        for pair, estimate in group.improvements.items()
    ]
    columns = ["protocol", "agent", "other_agent", "metric", "value", "low", "high", "data"]
    return str(pd.DataFrame(metrics + ranks + pairs, columns=columns).to_csv(index=False, lineterminator="\n"))


def shown(estimate: Estimate, *matrices: NDArray[np.float64]) -> Estimate:
    """The estimate without its interval where that has no width, or comes from few runs of one task."""
    needed = FEW if matrices[0].shape[1] == 1 else 2
    trusted = min(map(len, matrices)) >= needed and estimate[1] < estimate[2]
    return estimate if trusted else (estimate[0], math.nan, math.nan)


def metric_text(group: Aggregates, label: str, metric: str) -> str:
    """A metric with its interval, or with the range of few runs of one task."""
    estimate, matrix = group.metrics[label][metric], group.matrices[label]
    if 1 < len(matrix) < FEW and matrix.shape[1] == 1:
        return ranged(estimate[0], [100 * METRICS[metric](run[None]) for run in matrix])
    return bracketed(shown(estimate, matrix))


def counted(first: NDArray[np.float64], second: NDArray[np.float64], probability: float) -> str:
    """`6 of 9`: the pairs of runs of one task that the first agent wins; draws count half."""
    pairs = len(first) * len(second) * first.shape[1]
    return f"{round(2 * probability * pairs) / 2:g} of {pairs}"


def pair_text(first: NDArray[np.float64], second: NDArray[np.float64], estimate: Estimate) -> str:
    """A probability of improvement with its interval, or with the pairs that it was counted from."""
    value, low, high = shown(estimate, first, second)
    return (
        f"{value:.2f}, {counted(first, second, value)} pairs"
        if math.isnan(low)
        else f"{value:.2f} [{low:.2f}, {high:.2f}]"
    )


def coverage(group: Aggregates) -> str:
    """How often the bootstrap intervals of the IQM contain the truth, by simulation."""
    tasks = len(group.datasets)
    counts = sorted({len(m) for m in group.matrices.values() if len(m) >= (FEW if tasks == 1 else 2)})
    cases = ", ".join(f"with {n} seeds on {tasks} dataset{'s' * (tasks > 1)} {covers(IQM, n, tasks)}" for n in counts)
    return cases and f" Intervals of the IQM contain the truth in this share of cases (results/coverage.md): {cases}."


def aggregates_markdown(groups: Sequence[Aggregates], failures: Sequence[Mapping[str, str]] = ()) -> str:
    """The same for people, with the datasets that the aggregates cover, and what is left out or has failed."""
    if not groups:
        return "No aggregates: no dataset has D4RL scores.\n"
    text = HEAD.format(reps=intervals.REPS, fewer=intervals.FEWER_REPS, few=FEW)
    for group in groups:
        text += f"- `{group.protocol}`: over {', '.join(group.datasets)}"
        text += f". Left out: {'; '.join(group.left_out)}." if group.left_out else "; nothing is left out."
        text += coverage(group) + "\n"
    failed = Counter(f"{run['agent']} on {run['dataset']}" for run in failures)
    if failed:
        text += f"- Failed runs count nowhere: {', '.join(f'{n} of {run}' for run, n in sorted(failed.items()))}.\n"
    metrics = [
        {"protocol": group.protocol, "agent": label, "seeds": len(group.matrices[label])}
        | {metric: metric_text(group, label, metric) for metric in values}
        | {column: number(rank) for column, rank in group.ranks.loc[label].items()}
        for group in groups
        for label, values in group.metrics.items()
    ]
    pairs = [
        {
            "protocol": group.protocol,
            "pair": " > ".join(pair),
            "probability": pair_text(group.matrices[pair[0]], group.matrices[pair[1]], estimate),
        }
        for group in groups
        for pair, estimate in group.improvements.items()
    ]
    text += f"\n{markdown(pd.DataFrame(metrics).fillna('–'))}"
    if pairs:
        text += "\nProbability that a run of the first agent beats a run of the second:\n\n"
        text += markdown(pd.DataFrame(pairs))
    return text
