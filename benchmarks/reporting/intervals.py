"""95 % stratified bootstrap intervals, aggregates and performance profiles through rliable, made repeatable.

Scores are fractions: rliable's optimality gap takes 1 as solved. Matrices are [runs, tasks].
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from rliable import library, metrics

REPS = 2000
SEED = 0

Matrix = NDArray[np.float64]
Estimate = tuple[float, float, float]
"""A value, and the lower and upper end of its 95 % interval."""

METRICS = ("IQM", "median", "mean", "optimality gap")


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """rliable draws from numpy's global generator whatever `random_state` it is given, so that one is seeded."""
    state = np.random.get_state()
    np.random.seed(SEED)
    try:
        yield
    finally:
        np.random.set_state(state)


def mean_interval(scores: Matrix) -> Estimate:
    """Mean of the scores [runs] of one task with its interval; the interval of a single run is not a number."""
    mean = float(scores.mean())
    if len(scores) == 1:
        return mean, float("nan"), float("nan")
    with _seeded():
        _, ends = library.get_interval_estimates(
            {"": scores[:, None]}, lambda sample: np.array([sample.mean()]), reps=REPS
        )
    return mean, float(ends[""][0, 0]), float(ends[""][1, 0])


def aggregates(matrix: Matrix) -> dict[str, Estimate]:
    """IQM, median, mean and optimality gap over runs and tasks."""
    _check(matrix)

    def values(sample: Matrix) -> Matrix:
        return np.array(
            [
                _iqm(sample),
                metrics.aggregate_median(sample),
                metrics.aggregate_mean(sample),
                metrics.aggregate_optimality_gap(sample),
            ]
        )

    with _seeded():
        points, ends = library.get_interval_estimates({"": matrix}, values, reps=REPS)
    return {
        name: (float(points[""][i]), float(ends[""][0, i]), float(ends[""][1, i])) for i, name in enumerate(METRICS)
    }


def improvements(matrices: Mapping[str, Matrix]) -> dict[tuple[str, str], Estimate]:
    """Probability that a run of the first agent beats one of the second on a random task, for each pair once."""
    for matrix in matrices.values():
        _check(matrix)
    pairs = {pair: (matrices[pair[0]], matrices[pair[1]]) for pair in itertools.combinations(matrices, 2)}
    result = {}
    for pair, (first, second) in pairs.items():
        with _seeded():
            points, ends = library.get_interval_estimates({"": (first, second)}, _improvement, reps=REPS // 4)
        result[pair] = (float(points[""]), float(ends[""][0, 0]), float(ends[""][1, 0]))
    return result


def _iqm(matrix: Matrix) -> float:
    """As `rliable.metrics.aggregate_iqm`, whose checks of each resample take most of a report's time."""
    cut = matrix.size // 4
    return float(np.sort(matrix, axis=None)[cut : matrix.size - cut].mean())


def _improvement(first: Matrix, second: Matrix) -> float:
    """As `rliable.metrics.probability_of_improvement`, whose statistical test per task is fifty times slower."""
    difference = first[:, None] - second[None]  # [runs, runs, tasks]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def profiles(matrices: Mapping[str, Matrix], thresholds: Matrix) -> dict[str, tuple[Matrix, Matrix, Matrix]]:
    """Share of runs above each threshold [T], and the lower and upper ends of its interval, by agent."""
    result = {}
    for agent, matrix in matrices.items():
        _check(matrix)
        with _seeded():
            shares, ends = library.create_performance_profile({agent: matrix}, thresholds, reps=REPS // 4)
        result[agent] = (shares[agent], ends[agent][0], ends[agent][1])
    return result


def _check(matrix: Matrix) -> None:
    if not np.isfinite(matrix).all():
        raise ValueError(
            "a cell of the score matrix [runs, tasks] is missing; every agent needs all its seeds on all tasks"
        )
