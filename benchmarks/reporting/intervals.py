"""95 % stratified bootstrap intervals, aggregates and performance profiles through rliable, made repeatable.

Scores are fractions: rliable's optimality gap takes 1 as solved. Matrices are [runs, tasks].
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rliable import library, metrics
from scipy import stats

REPS = 2000
FEWER_REPS = 500  # of pairs of agents and of profiles, of which there are many
SEED = 0
FEW = 5  # runs of one task below which a bootstrap interval is hardly more than their range, which is shown instead
COVERAGE = Path(__file__).resolve().parent / "coverage.csv"  # see coverage.py
MEAN, IQM, STUDENT = "bootstrap of the mean", "bootstrap of the IQM", "Student's t"
NORMAL = "normal"

Matrix = NDArray[np.float64]
Estimate = tuple[float, float, float]
"""A value, and the lower and upper end of its 95 % interval."""


def _iqm(matrix: Matrix) -> float:
    """As `rliable.metrics.aggregate_iqm`, whose checks of each resample take most of a report's time."""
    cut = matrix.size // 4
    return float(np.sort(matrix, axis=None)[cut : matrix.size - cut].mean())


def _improvement(first: Matrix, second: Matrix) -> float:
    """As `rliable.metrics.probability_of_improvement`, whose statistical test per task is fifty times slower."""
    difference = first[:, None] - second[None]  # [runs, runs, tasks]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


METRICS: dict[str, Callable[[Matrix], float]] = {
    "IQM": _iqm,
    "median": metrics.aggregate_median,
    "mean": metrics.aggregate_mean,
    "optimality gap": metrics.aggregate_optimality_gap,
}


@contextlib.contextmanager
def _seeded(*matrices: Matrix) -> Iterator[None]:
    """rliable draws from numpy's global generator whatever `random_state` it is given, so that one is seeded."""
    if not all(np.isfinite(matrix).all() for matrix in matrices):
        raise ValueError("a cell of the score matrix is missing; every agent needs all its seeds on all tasks")
    state = np.random.get_state()
    np.random.seed(SEED)
    try:
        yield
    finally:
        np.random.set_state(state)


def _estimates(matrices: tuple[Matrix, ...], values: Callable[..., Matrix], reps: int) -> list[Estimate]:
    with _seeded(*matrices):
        points, ends = library.get_interval_estimates({"": matrices}, values, reps=reps)
    return [(float(point), float(low), float(high)) for point, low, high in zip(points[""], *ends[""], strict=True)]


def mean_interval(scores: Matrix) -> Estimate:
    """Mean of the scores [runs] of one task with its interval; the interval of a single run is not a number."""
    if len(scores) == 1:
        return float(scores[0]), float("nan"), float("nan")
    return _estimates((scores[:, None],), lambda sample: np.array([sample.mean()]), REPS)[0]


def student_interval(scores: Matrix) -> tuple[float, float]:
    """95 % interval of the mean of scores [runs]: mean ± t(n - 1) s / sqrt(n). Not a number for a single run."""
    if len(scores) < 2:
        return np.nan, np.nan
    half = float(stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / np.sqrt(len(scores)))
    return float(scores.mean()) - half, float(scores.mean()) + half


def aggregates(matrix: Matrix) -> dict[str, Estimate]:
    """IQM, median, mean and optimality gap over runs and tasks."""

    def values(sample: Matrix) -> Matrix:
        return np.array([metric(sample) for metric in METRICS.values()])

    return dict(zip(METRICS, _estimates((matrix,), values, REPS), strict=True))


def improvements(matrices: Mapping[str, Matrix]) -> dict[tuple[str, str], Estimate]:
    """Probability that a run of the first agent beats one of the second on a random task, for each pair once."""

    def values(first: Matrix, second: Matrix) -> Matrix:
        return np.array([_improvement(first, second)])

    pairs = itertools.combinations(matrices, 2)
    return {pair: _estimates((matrices[pair[0]], matrices[pair[1]]), values, FEWER_REPS)[0] for pair in pairs}


def profiles(matrices: Mapping[str, Matrix], thresholds: Matrix) -> dict[str, tuple[Matrix, Matrix, Matrix]]:
    """Share of runs above each threshold [T], and the lower and upper ends of its interval, by agent."""
    result = {}
    for agent, matrix in matrices.items():
        with _seeded(matrix):
            shares, ends = library.create_performance_profile({agent: matrix}, thresholds, reps=FEWER_REPS)
        result[agent] = (shares[agent], ends[agent][0], ends[agent][1])
    return result


@functools.cache
def measured() -> pd.DataFrame:
    return pd.read_csv(COVERAGE)


def covers(interval: str, n_seeds: int, n_tasks: int = 1) -> str:
    """`76 %`: the coverage with normal scores, of the nearest numbers that were measured from below."""
    rows = measured().query("interval == @interval and scores == @NORMAL and seeds <= @n_seeds and tasks <= @n_tasks")
    return f"{100 * rows.sort_values(['tasks', 'seeds'])['coverage'].iloc[-1]:.0f} %"
