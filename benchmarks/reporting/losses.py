"""Where our agents lose: every dataset on which LDCQ or LatentDiffuser is not first, who is ahead, and why."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reporting.aggregates import pair_text
from reporting.intervals import improvements
from reporting.runs import FIRST_CONTACT, PROTOCOLS, SUCCESS, by_dataset, measures
from reporting.tables import digits_of, escaped, markdown, number

OURS = ("LDCQ", "LatentDiffuser", "LDGC")
LABELS = {SUCCESS: "success %"}
UNKNOWN = "Not known yet."
HEAD = """# Where our agents lose

Every dataset on which LDCQ, LatentDiffuser or LDGC does not have the highest mean, or the highest rate of success \
where that is something else. The last column: how often a run of the agent that is ahead beats a run of ours.

"""


def losses(runs: pd.DataFrame) -> pd.DataFrame:
    """A row of texts for each dataset, agent of ours and measure under which another agent's mean is higher.

    A rate of success counts where another agent is ahead in it than in the environment's return.
    """
    rows = []
    for dataset, members in by_dataset(runs):
        of_data = runs[runs["dataset"] == dataset]
        leaders: dict[str, str] = {}
        for measure in (*PROTOCOLS, SUCCESS):
            cells = {label: cell[measure].to_numpy() for label, cell in members.items() if cell[measure].notna().all()}
            means = {label: float(values.mean()) for label, values in cells.items()}
            for ours in (label for label in cells if members[label]["agent"].iloc[0] in OURS):
                ahead = max(means, key=lambda label: means[label])
                if measure == SUCCESS and (leaders.get(ours) == ahead or FIRST_CONTACT in measures(members[ours])):
                    continue  # it says what a row above says
                if means[ahead] > means[ours]:
                    leaders.setdefault(ours, ahead)
                    values = means[ours], means[ahead], means[ahead] - means[ours]
                    score, its_score, behind = (number(value, digits_of(of_data, measure)) for value in values)
                    shown, beats = LABELS.get(measure, measure), _beats(cells[ahead], cells[ours])
                    rows.append((dataset, ours, shown, score, ahead, its_score, behind, beats))
    columns = ["dataset", "agent", "protocol", "score", "ahead", "its score", "behind by", "beats ours"]
    return pd.DataFrame(rows, columns=columns)


def _beats(ahead: NDArray[np.float64], ours: NDArray[np.float64]) -> str:
    """How often runs [seeds] of the one beat runs of the other, as a text."""
    if len(ahead) == len(ours) == 1:
        return "1 seed each"
    first, second = ahead[:, None], ours[:, None]
    (estimate,) = improvements({"ahead": first, "ours": second}).values()
    return pair_text(first, second, estimate)


def read_reasons(folder: Path) -> dict[tuple[str, str], str]:
    """Texts under the headings `## AGENT on DATASET` of a suite's reasons.md, by agent and dataset."""
    path = folder / "reasons.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.findall(r"^## (\S+) on (\S+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return {(agent, dataset): " ".join(reason.split()) for agent, dataset, reason in found}


def stale(found: pd.DataFrame, reasons: dict[tuple[str, str], str]) -> list[str]:
    """A line for each reason whose loss is no longer there."""
    there = set(zip(found["agent"].map(_plain), found["dataset"], strict=True))
    return [f"{agent} on {dataset}: no longer loses; delete its reason" for agent, dataset in reasons.keys() - there]


def explained(found: pd.DataFrame, reasons: dict[tuple[str, str], str]) -> list[str]:
    """A line for each loss: agent, dataset, reason."""
    pairs = dict.fromkeys(zip(found["agent"], found["dataset"], strict=True))
    return [f"{agent} on {dataset}: {reasons.get((_plain(agent), dataset), UNKNOWN)}" for agent, dataset in pairs]


def _plain(label: str) -> str:
    """The agent of a label, which names preset and budget where there are several."""
    return label.partition(" (")[0]


def page(found: pd.DataFrame, reasons: dict[tuple[str, str], str]) -> str:
    """tables/where_we_lose.md."""
    if found.empty:
        return HEAD + "There is none.\n"
    return HEAD + markdown(found) + "\nWhy:\n\n" + "".join(f"- {escaped(line)}\n" for line in explained(found, reasons))
