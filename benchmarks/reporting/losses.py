"""Where our agents lose: every dataset on which LDCQ or LatentDiffuser is not first, who is ahead, and why."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from reporting.aggregates import pair_text
from reporting.intervals import improvements
from reporting.runs import FIRST_CONTACT, PROTOCOLS, SUCCESS, by_dataset, measures
from reporting.tables import digits_of, escaped, markdown, number

OURS = ("LDCQ", "LatentDiffuser", "LDGC")
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
        leaders: dict[str, str] = {}
        for measure in (*PROTOCOLS, SUCCESS):
            cells = {label: cell[measure].to_numpy() for label, cell in members.items() if cell[measure].notna().all()}
            raw = measure != SUCCESS and next(iter(members.values()))["unit"].iloc[0] == "raw return"
            digits = digits_of([values.mean() for values in cells.values()]) if raw else 1
            for ours in (label for label in cells if members[label]["agent"].iloc[0] in OURS):
                ahead = max(cells, key=lambda label: cells[label].mean())
                behind = cells[ahead].mean() - cells[ours].mean()
                known = measure == SUCCESS and leaders.get(ours) == ahead
                if behind <= 0 or known or (measure == SUCCESS and FIRST_CONTACT in measures(members[ours])):
                    continue
                leaders.setdefault(ours, ahead)
                first, second = cells[ahead][:, None], cells[ours][:, None]
                (estimate,) = improvements({ahead: first, ours: second}).values()
                single = len(first) == len(second) == 1
                row = {"dataset": dataset, "agent": ours, "protocol": "success %" if measure == SUCCESS else measure}
                row |= {
                    "score": number(cells[ours].mean(), digits),
                    "ahead": ahead,
                    "its score": number(cells[ahead].mean(), digits),
                    "behind by": number(behind, digits),
                    "beats ours": "1 seed each" if single else pair_text(first, second, estimate),
                }
                rows.append(row)
    columns = ["dataset", "agent", "protocol", "score", "ahead", "its score", "behind by", "beats ours"]
    return pd.DataFrame(rows, columns=columns)


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
