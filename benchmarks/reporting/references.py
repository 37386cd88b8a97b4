"""What stands beside an agent's scores: published numbers, reference policies, and what is known to be wrong."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ld_agents.evaluation.scores import MEASURED_SCORES, REFERENCE_SCORES, TASKS
from reporting.runs import ENV, FIRST_CONTACT, SUCCESS, RunFile, base_id, measures, on_scale, reference_scores

PUBLISHED = Path(__file__).resolve().parent / "published_scores.csv"

# D4RL datasets whose recipe and evaluation ours follow: their published scores may stand beside ours.
PUBLISHED_DATASETS = {
    **{f"ld-agents/pointmaze/{maze}-v0": f"maze2d-{maze}-v1" for maze in ("umaze", "medium", "large")},
    **{f"ld-agents/antmaze/{name}-v0": f"antmaze-{name}-v2" for name in ("umaze", "medium-diverse", "large-diverse")},
    **{
        f"ld-agents/adroit/{task}-{level}-v0": f"{task}-{level}-v1"
        for task in ("pen", "hammer", "door", "relocate")
        for level in ("human", "cloned", "expert")
    },
}
PUBLISHED_AGENTS = {"TD3BC": "TD3+BC", "BC[best_fraction=0.1]": "10% BC"}
# Papers of published_scores.csv whose protocol on these datasets is known, and is the environment's return. LDCQ's has
# no row for maze2d, where its protocol would not be D4RL's; LatentDiffuser's has none for these versions of the data.
PUBLISHED_PAPERS = {
    "CORL (re-implementation, last scores)": "CORL, last checkpoint",
    "LDCQ (Venkatraman et al., arXiv 2309.06599, ICLR 2024)": "the paper, second-hand",
}


@functools.cache
def _published() -> pd.DataFrame:
    rows = pd.read_csv(PUBLISHED, dtype=str, keep_default_na=False)
    return rows[rows["paper"].isin(list(PUBLISHED_PAPERS))]


def published(run: pd.Series) -> dict[str, str]:
    """Published scores of the same algorithm on the same D4RL dataset, or the one whose recipe ours follows.

    Args:
        run: a row of the frame of runs.
    """
    if run["provenance"] == "stand-in" or run["raw_because"] is not None:
        return {}
    rows = _published()
    dataset = PUBLISHED_DATASETS.get(run["name"], run["name"])
    algorithm = PUBLISHED_AGENTS.get(run["agent"], run["agent"])
    rows = rows[(rows["dataset"] == dataset) & (rows["algorithm"] == algorithm)]
    columns = {
        "published": rows["score"] + rows["spread"].map(lambda spread: f" ± {spread}" if spread else ""),
        "source": rows["paper"].map(PUBLISHED_PAPERS) + " (" + rows["dataset"] + ")",
        "published_score": rows["score"],
        "published_spread": rows["spread"],
        "published_protocol": pd.Series([ENV] * len(rows)),
        "published_source": rows["source"],
        "published_confidence": rows["confidence"],
    }
    return {name: "; ".join(values) for name, values in columns.items()}


def policies(cell: pd.DataFrame) -> list[dict[str, Any]]:
    """Means of the reference policies that were measured on the cell's dataset, one row per policy and measure.

    Point mazes store them with the data (`NAME_return`, `NAME_first_contact_return`, `episodes`); those of our other
    datasets are in `ld_agents.evaluation.scores.MEASURED_SCORES`. They are no agents and take no part in aggregates.
    """
    run: RunFile = cell["file"].iloc[0]
    unit = cell["unit"].iloc[0]
    stored = run["dataset"]["controller"] or {}
    found: list[dict[str, Any]] = []

    def add(name: str, episodes: int, protocol: str, mean: float, unit: str = unit) -> None:
        row = {"agent": name, "label": name, "is_policy": True, "episodes": episodes, "protocol": protocol}
        found.append({**row, "mean": mean, "unit": unit})

    for key in stored:
        name = key.removesuffix("_return")
        if name == key or name.endswith("_first_contact"):
            continue
        for protocol, stored_key in ((ENV, key), (FIRST_CONTACT, f"{name}_first_contact_return")):
            if protocol in measures(cell) and stored_key in stored:
                mean = float(on_scale(run, np.array(float(stored[stored_key]))))
                add(name, int(stored["episodes"]), protocol, mean)
    if not stored and run["dataset"]["id"].startswith("ld-agents/"):
        for name, score in sorted(MEASURED_SCORES.get(TASKS.get(base_id(run), ""), {}).items()):
            add(name, score.episodes, ENV, float(on_scale(run, np.array(score.mean_return))))
            if score.success is not None:
                add(name, score.episodes, SUCCESS, 100 * score.success, "%")
    return found


def known_defects(run: RunFile) -> tuple[str, ...]:
    """What is known to be wrong with the reference scores that the run's returns are normalized with."""
    normalized = reference_scores(run) is not None
    return REFERENCE_SCORES[base_id(run)].known_defects if normalized and base_id(run) in REFERENCE_SCORES else ()


def changed_simulator(run: RunFile) -> tuple[str, str] | None:
    """MuJoCo's versions of the replay check and of the evaluation where they are known and differ."""
    check = run["dataset"]["replay_check"] or {}
    made, ran = check.get("versions", {}).get("mujoco"), run["versions"]["mujoco"]
    return None if made in (None, ran) else (made, ran)
