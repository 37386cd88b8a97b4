"""What stands beside an agent's scores: published numbers, reference policies, and what is known to be wrong."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ld_agents.evaluation.eval_env import DRAWN_GOALS
from ld_agents.evaluation.scores import MEASURED_SCORES, REFERENCE_SCORES, TASKS
from reporting.runs import ENV, FIRST_CONTACT, SUCCESS, RunFile, base_id, measures, on_scale, reference_scores

RECORDS = Path(__file__).resolve().parents[2] / "results" / "datasets"
PUBLISHED = Path(__file__).resolve().parent / "published_scores.csv"

# Our datasets whose recipe and evaluation follow D4RL's: its published scores may stand beside ours.
PUBLISHED_DATASETS = {
    r"ld-agents/pointmaze/(umaze|medium|large)-v0": r"maze2d-\1-v1",
    r"ld-agents/antmaze/(umaze|medium-diverse|large-diverse)-v[01]": r"antmaze-\1-v2",
    r"ld-agents/locomotion/((halfcheetah|hopper|walker2d)-medium(-replay)?)-v1": r"\1-v2",
    r"ld-agents/adroit/((pen|hammer|door|relocate)-(human|cloned|expert))-v0": r"\1-v1",
}
PUBLISHED_AGENTS = {"TD3BC": "TD3+BC", "BC[best_fraction=0.1]": "10% BC"}
# Papers of published_scores.csv whose protocol on these datasets is known, and is the environment's return. LDCQ's has
# no row for maze2d, where its protocol would not be D4RL's; LatentDiffuser's has none for these versions of the data.
PUBLISHED_PAPERS = {
    "CORL (re-implementation, last scores)": "CORL, last checkpoint",
    "LDCQ (Venkatraman et al., arXiv 2309.06599, ICLR 2024)": "the paper, second-hand",
}
# OGBench's mazes are D4RL's. Its data are others, and its agents are told where to go, as where goals are drawn here.
OGBENCH = "OGBench (Park et al., arXiv 2410.20092, ICLR 2025)"
OGBENCH_DATASETS = {r"ld-agents/(pointmaze|antmaze)/(medium|large)(-diverse)?-v[01]": r"\1-\2-navigate-v0"}

HIERARCHICAL = ("LatentDiffuser", "LDGC", "HD", "HDMI", "HiGoC", "HIQL", "IRIS")  # planners and policies with subgoals


@functools.cache
def _rows_of_papers() -> pd.DataFrame:
    rows = pd.read_csv(PUBLISHED, dtype=str, keep_default_na=False)
    spread = rows["spread"].replace("not found", "")
    return rows.assign(text=rows["score"] + spread.map(lambda spread: f" ± {spread}" if spread else ""))


@functools.cache
def _published() -> pd.DataFrame:
    rows = _rows_of_papers()
    rows = rows[rows["paper"].isin(list(PUBLISHED_PAPERS))]
    return rows.assign(
        protocol=ENV,
        paper=rows["paper"].map(PUBLISHED_PAPERS) + " (" + rows["dataset"] + ")",
    )


def published(run: pd.Series) -> dict[str, str]:
    """Published scores of the same algorithm on the same D4RL dataset, or the one whose recipe ours follows.

    Texts for the columns of both tables, from a row of the frame of runs; several sources are joined.
    """
    rows = _published()
    followed = (m.expand(d4rl) for ours, d4rl in PUBLISHED_DATASETS.items() if (m := re.fullmatch(ours, run["name"])))
    if run["provenance"] == "stand-in" or run["raw_because"] is not None:
        rows = rows[:0]
    rows = rows[rows["dataset"] == next(followed, run["name"])]
    rows = rows[rows["algorithm"] == PUBLISHED_AGENTS.get(run["agent"], run["agent"])]
    columns = {f"published_{name}": name for name in ("score", "spread", "protocol", "source", "confidence")}
    columns |= {"published, env": "text", "source": "paper"}
    return {column: "; ".join(rows[name]) for column, name in columns.items()}


def on_other_data(run: pd.Series) -> list[dict[str, str]]:
    """Texts for rows of agents that did not run here: published rates of success in OGBench's maze of the same map.

    Where goals are drawn, from a row of the frame of runs.
    """
    name, drawn, _ = run["name"].partition(DRAWN_GOALS)
    if not drawn:
        return []
    rows = _rows_of_papers()
    theirs = (m.expand(other) for ours, other in OGBENCH_DATASETS.items() if (m := re.fullmatch(ours, name)))
    rows = rows[(rows["paper"] == OGBENCH) & (rows["dataset"] == next(theirs, None))]
    return [
        {
            "agent": f"{row['algorithm']} (published)",
            "published, env": f"{row['text']} % successes",
            "source": f"OGBench, {row['confidence']} ({row['dataset']})",
        }
        for row in rows.to_dict("records")
    ]


def hierarchical() -> pd.DataFrame:
    """Texts: what was published of LatentDiffuser, LDGC and hierarchical or goal-conditioned methods on AntMaze."""
    rows = _rows_of_papers()
    rows = rows[rows["dataset"].str.startswith("antmaze") | rows["suite"].eq("antmaze")]
    rows = rows[rows["algorithm"].isin(HIERARCHICAL)].sort_values(["dataset", "algorithm"], kind="stable")
    source = rows["paper"] + ", " + rows["table"]
    columns = {"dataset": rows["dataset"], "method": rows["algorithm"], "published": rows["text"]}
    return pd.DataFrame(columns | {"confidence": rows["confidence"], "source": source})


def policies(cell: pd.DataFrame) -> list[tuple[str, int, dict[str, float]]]:
    """Name, number of episodes and means by measure of the policies that were measured on the cell's dataset.

    Point mazes store them with the data (`NAME_return`, `NAME_first_contact_return`, `episodes`); those of our other
    datasets are in `ld_agents.evaluation.scores.MEASURED_SCORES`. They are no agents and take no part in aggregates.
    """
    run: RunFile = cell["file"].iloc[0]
    stored = run["dataset"]["controller"] or {}
    found = []
    for name in (key.removesuffix("_return") for key in stored if key.endswith("_return")):
        if not name.endswith("_first_contact"):
            keys = {ENV: f"{name}_return", FIRST_CONTACT: f"{name}_first_contact_return"}
            returns = {measure: stored[keys[measure]] for measure in measures(cell) if keys.get(measure) in stored}
            found.append((name, int(stored["episodes"]), {m: _on_scale(run, value) for m, value in returns.items()}))
    if not stored and run["dataset"]["id"].startswith("ld-agents/"):
        for name, score in sorted(MEASURED_SCORES.get(TASKS.get(base_id(run), ""), {}).items()):
            solved = {} if score.success is None else {SUCCESS: 100 * score.success}
            found.append((name, score.episodes, {ENV: _on_scale(run, score.mean_return)} | solved))
    return found


def other_simulator(run: RunFile) -> str | None:
    """The MuJoCo that the reference policies beside the run were measured with, where it ran with another version."""
    stored, ran = run["dataset"]["controller"], run["versions"]["mujoco"]
    measured = MEASURED_SCORES.get(TASKS.get(base_id(run), ""), {})
    if stored or ran is None or not run["dataset"]["id"].startswith("ld-agents/"):
        return None
    others = sorted({score.versions["mujoco"] for score in measured.values()} - {ran})
    return ", ".join(others) or None


@functools.cache
def _recorded() -> dict[str, str]:
    """The hash of each dataset that has a record."""
    records = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json")))
    return {record["id"]: record["sha256"] for record in records}


def is_of_another_recording(run: RunFile) -> bool:
    """Whether the run's data have the id of a dataset of `results/datasets.md`, and another hash."""
    return run["dataset"]["hash"] != _recorded().get(base_id(run), run["dataset"]["hash"])


def _on_scale(run: RunFile, value: float) -> float:
    return float(on_scale(run, np.array(float(value))))


def known_defects(run: RunFile) -> tuple[str, ...]:
    """What is known to be wrong with the reference scores that the run's returns are normalized with."""
    normalized = reference_scores(run) is not None
    return REFERENCE_SCORES[base_id(run)].known_defects if normalized and base_id(run) in REFERENCE_SCORES else ()


def changed_simulator(run: RunFile) -> tuple[str, str] | None:
    """MuJoCo's versions of the replay check and of the evaluation where they are known and differ."""
    check = run["dataset"]["replay_check"] or {}
    made, ran = check.get("versions", {}).get("mujoco"), run["versions"]["mujoco"]
    return None if made in (None, ran) else (made, ran)
