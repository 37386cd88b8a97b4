"""How often a 95 % interval contains the truth, by simulation, for few seeds and tasks; the page that shows it.

Scores of a run are normal, all of one width, or one run in five fails, five standard deviations lower. With the second,
the truth of the mean is -1, and no interval can tell it from runs that all went well.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reporting.intervals import IQM, MEAN, NORMAL, STUDENT, measured, student_interval
from reporting.tables import markdown

SEEDS, TASKS = range(2, 11), (1, 2, 3, 5, 10, 12)
DRAWS, RESAMPLES = 1000, 200
ON_ONE_TASK = 4000, 2000  # with fewer resamples, the range of 3 seeds would often be missed
FAILING = "one in five fails"

HEAD = """How often a 95 % interval contains the truth, by simulation: {0:,} tables with {1:,} resamples each on one \
task, {2:,} with {3:,} on several (standard errors are below 1 and 1.6 points). Runs have normal scores, alike on \
every task, or one in five fails, 5 standard deviations lower. `benchmarks/measure_coverage.py` makes the numbers; \
the tables of the suites quote them.

"""
FOOT = """
A bootstrap of few seeds is too narrow, since it knows no run beyond those that it resamples. Student's t interval, \
mean ± t(n - 1) s / √n over the seeds, holds for normal scores; where trainings fail now and then, none does.
"""


def measure(interval: str, scores: str, n_seeds: int, n_tasks: int, draws: int, resamples: int) -> float:
    """Share of simulated tables [seeds, tasks] whose interval contains the truth; the same on every machine."""
    rng = np.random.default_rng([n_seeds, n_tasks])
    tables = rng.standard_normal((draws, n_seeds, n_tasks))
    truth = 0.0
    if scores == FAILING:
        tables -= 5 * (rng.random(tables.shape) < 0.2)
        truth = -1.0
    ends = np.array([_ends(interval, table, rng, resamples) for table in tables])
    return float(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])))


def _ends(interval: str, table: NDArray[np.float64], rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    if interval == STUDENT:
        return student_interval(table[:, 0])
    n_seeds, n_tasks = table.shape
    rows = rng.integers(n_seeds, size=(resamples, n_seeds, n_tasks))
    drawn = table[rows, np.arange(n_tasks)].reshape(resamples, -1)
    cut = drawn.shape[1] // 4 * (interval == IQM)
    means = np.sort(drawn, 1)[:, cut : drawn.shape[1] - cut].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return low, high


def measure_all() -> pd.DataFrame:
    """A row for each interval, kind of scores, and number of seeds and tasks."""
    cells = [(kind, scores, n, 1) for kind in (MEAN, STUDENT) for scores in (NORMAL, FAILING) for n in SEEDS]
    cells += [(IQM, NORMAL, n, tasks) for n in SEEDS for tasks in TASKS]
    sizes = {1: ON_ONE_TASK}
    rows = [(*cell, measure(*cell, *sizes.get(cell[-1], (DRAWS, RESAMPLES)))) for cell in cells]
    return pd.DataFrame(rows, columns=["interval", "scores", "seeds", "tasks", "coverage"])


def page() -> str:
    """results/coverage.md."""
    rows = measured()
    percent = rows.assign(coverage=[f"{100 * share:.0f} %" for share in rows["coverage"]])
    percent["tasks"] = rows["tasks"].astype(str)
    percent["interval"] += ", " + percent["scores"]
    table = percent.pivot(index=["interval", "tasks"], columns="seeds", values="coverage")
    order = list(dict.fromkeys(zip(percent["interval"], percent["tasks"], strict=True)))
    table = table.loc[order].reset_index().rename(columns={n: f"{n} seeds" for n in SEEDS})
    return HEAD.format(*ON_ONE_TASK, DRAWS, RESAMPLES) + markdown(table) + FOOT
