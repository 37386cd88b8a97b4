"""Scores as LaTeX tables for a paper: datasets down, agents across, the best cells in bold."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from scipy import stats

from reporting.figures import short
from reporting.intervals import student_interval
from reporting.runs import by_dataset, measures
from reporting.tables import MEASURES, number

HEAD = """% Made by benchmarks/report.py --latex. Needs \\usepackage{booktabs}.
% Mean of the last checkpoint with its 95 % interval by Student's t over seeds, which holds for few seeds too. Bold: the
% best mean of a row, and every mean that Welch's t-test does not tell from it at 5 % (not corrected for the number of
% comparisons). A single seed gives no interval: such a cell is bold only where it is the best.
"""
SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
}


def escaped(text: str) -> str:
    """Text as LaTeX sets it, on one line."""
    return "".join(SPECIAL.get(character, character) for character in " ".join(text.split()))


def best(cells: Mapping[str, pd.Series]) -> set[str]:
    """The agent with the highest mean, and those whose scores over seeds Welch's t-test cannot tell from its."""
    first = max(cells, key=lambda label: cells[label].mean())
    return {label for label, scores in cells.items() if label == first or _alike(scores, cells[first])}


def _alike(scores: pd.Series, others: pd.Series) -> bool:
    if min(len(scores), len(others)) < 2:
        return False
    if scores.nunique() == others.nunique() == 1:  # no spread, so no test
        return bool(scores.iloc[0] == others.iloc[0])
    return bool(stats.ttest_ind(scores, others, equal_var=False).pvalue >= 0.05)


def latex(runs: pd.DataFrame) -> str:
    """A `tabular` for each measure: the environment's return, first contact, success."""
    datasets = list(by_dataset(runs))
    parts = []
    for measure, (name, _) in MEASURES.items():
        rows = {
            dataset: {label: cell[measure] for label, cell in members.items() if measure in measures(cell)}
            for dataset, members in datasets
        }
        rows = {dataset: cells for dataset, cells in rows.items() if cells}
        if rows:
            parts.append(f"\n% {name.replace('%', 'in %')}\n{_tabular(rows)}")
    return HEAD + "".join(parts)


def _tabular(rows: Mapping[str, Mapping[str, pd.Series]]) -> str:
    agents = list(dict.fromkeys(label for cells in rows.values() for label in cells))
    lines = [
        f"\\begin{{tabular}}{{l{'r' * len(agents)}}}",
        "\\toprule",
        " & ".join(["dataset", *map(escaped, agents)]) + " \\\\",
        "\\midrule",
    ]
    for dataset, cells in rows.items():
        bold = best(cells)
        texts = [_cell(cells[label], label in bold) if label in cells else "--" for label in agents]
        lines.append(" & ".join([escaped(short(dataset)), *texts]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _cell(scores: pd.Series, bold: bool) -> str:
    mean, (low, high) = scores.mean(), student_interval(scores.to_numpy(dtype=float))
    text = f"\\textbf{{{number(mean)}}}" if bold else number(mean)
    return text if math.isnan(low) else f"{text} {{\\scriptsize [{number(low)}, {number(high)}]}}"
