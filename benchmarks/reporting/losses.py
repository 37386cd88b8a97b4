"""Where our agents lose: every dataset on which LDCQ or LatentDiffuser is not first, who is ahead, and why."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from reporting.aggregates import pair_text
from reporting.intervals import improvements
from reporting.runs import PROTOCOLS, by_dataset
from reporting.tables import escaped, markdown, number

OURS = ("LDCQ", "LatentDiffuser")
UNKNOWN = "Not known yet."
HEAD = """# Where our agents lose

Every dataset on which LDCQ or LatentDiffuser does not have the highest mean. The last column: how often a run of the \
agent that is ahead beats a run of ours.

"""


def losses(runs: pd.DataFrame) -> pd.DataFrame:
    """A row of texts for each dataset, agent of ours and protocol under which another agent's mean is higher."""
    rows = []
    for dataset, members in by_dataset(runs):
        for protocol in PROTOCOLS:
            cells = {
                label: cell[protocol].to_numpy() for label, cell in members.items() if cell[protocol].notna().all()
            }
            for ours in (label for label in OURS if label in cells):
                ahead = max(cells, key=lambda label: cells[label].mean())
                behind = cells[ahead].mean() - cells[ours].mean()
                if behind > 0:
                    first, second = cells[ahead][:, None], cells[ours][:, None]
                    (estimate,) = improvements({ahead: first, ours: second}).values()
                    row = {"dataset": dataset, "agent": ours, "protocol": protocol}
                    row |= {
                        "score": number(cells[ours].mean()),
                        "ahead": ahead,
                        "its score": number(cells[ahead].mean()),
                    }
                    rows.append(row | {"behind by": number(behind), "beats ours": pair_text(first, second, estimate)})
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
    there = set(zip(found["agent"], found["dataset"], strict=True))
    return [f"{agent} on {dataset}: no longer loses; delete its reason" for agent, dataset in reasons.keys() - there]


def explained(found: pd.DataFrame, reasons: dict[tuple[str, str], str]) -> list[str]:
    """A line for each loss: agent, dataset, reason."""
    pairs = dict.fromkeys(zip(found["agent"], found["dataset"], strict=True))
    return [f"{agent} on {dataset}: {reasons.get((agent, dataset), UNKNOWN)}" for agent, dataset in pairs]


def page(found: pd.DataFrame, reasons: dict[tuple[str, str], str]) -> str:
    """tables/where_we_lose.md."""
    if found.empty:
        return HEAD + "There is none.\n"
    return HEAD + markdown(found) + "\nWhy:\n\n" + "".join(f"- {escaped(line)}\n" for line in explained(found, reasons))
