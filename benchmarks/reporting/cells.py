"""Run files as cells of the table: read and checked, scored under both protocols, grouped, with intervals."""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ld_agents.evaluation.scores import (
    MEASURED_SCORES,
    REFERENCE_SCORES,
    TASKS,
    family,
    first_contact_return,
    why_not_normalised,
)
from reporting import intervals
from reporting.intervals import Estimate

PUBLISHED = Path(__file__).resolve().parent / "published_scores.csv"
SCHEMA = 1

ENV = "env"
FIRST_CONTACT = "first contact"
PROTOCOLS = (ENV, FIRST_CONTACT)

# D4RL data sets whose recipe and evaluation ours follow: their published scores may stand beside ours.
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
# Papers of published_scores.csv whose protocol on these data sets is known: short name and protocol. LDCQ's has no row
# for maze2d, where its protocol would not be D4RL's; LatentDiffuser's has none for these versions of the data.
PUBLISHED_PROTOCOLS = {
    "CORL (re-implementation, last scores)": ("CORL, last checkpoint", ENV),
    "LDCQ (Venkatraman et al., arXiv 2309.06599, ICLR 2024)": ("the paper, second-hand", ENV),
}

RunFile = dict[str, Any]


# Reading


def read_runs(folder: Path) -> tuple[list[RunFile], list[str]]:
    """All valid runs of a folder in the order of their file names, and a line for each file that was skipped."""
    runs, skipped = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            run = json.loads(path.read_text())
            _check_run(run)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            skipped.append(f"{path.name}: {reason}")
        else:
            runs.append(run)
    return runs, skipped


def _check_run(run: RunFile) -> None:
    if run.get("schema") != SCHEMA:
        raise ValueError(f"schema {run.get('schema')!r}, this report reads schema {SCHEMA}")
    for key in ("commit", "plans", "versions", "hardware"):
        run[key]
    names = {"agent": run["agent"], "preset": run["preset"]}
    names |= {f"dataset.{key}": run["dataset"][key] for key in ("id", "hash", "provenance")}
    for key, name in names.items():
        if not isinstance(name, str):
            raise ValueError(f"{key!r} is no text")
    int(run["seed"]), float(run["budget_share"]), int(run["gradient_steps"])
    float(run["seconds"]["total"]), float(run["predict_ms"]["per_action"])
    episodes = run["protocol"]["episodes"]
    for key in ("returns", "lengths", "first_contact", "successes"):
        if len(run[key]) != episodes:
            raise ValueError(f"{key!r} has {len(run[key])} entries for {episodes} episodes")
    if not all(math.isfinite(value) for value in run["returns"]):
        raise ValueError("'returns' has an entry that is not finite")
    for point in run["curve"]:
        point["gradient_steps"], point["seconds"], point["returns"], point["first_contact"]
    for start in run["plans"]["starts"] if run["plans"] else ():
        start["position"], start["paths"], start["scores"], start["chosen"], start["route"]


# Scoring


def why_raw(run: RunFile) -> str | None:
    """Why the run's returns may not be turned into D4RL scores; None if they may."""
    data = run["dataset"]
    return why_not_normalised(base_id(run), data["replay_check"], data.get("reference_scores"))


def reference_scores(run: RunFile) -> tuple[float, float] | None:
    """Returns that count as 0 and 100, or None where D4RL's scale may not be used."""
    if why_raw(run) is not None:
        return None
    name = base_id(run)
    if name in REFERENCE_SCORES:
        return REFERENCE_SCORES[name].minimum, REFERENCE_SCORES[name].maximum
    stored = run["dataset"]["reference_scores"]
    return float(stored[0]), float(stored[1])


def known_defects(run: RunFile) -> tuple[str, ...]:
    """What is known to be wrong with the reference scores that the run's returns are normalised with."""
    normalised = reference_scores(run) is not None
    return REFERENCE_SCORES[base_id(run)].known_defects if normalised and base_id(run) in REFERENCE_SCORES else ()


def changed_simulator(run: RunFile) -> tuple[str, str] | None:
    """MuJoCo's versions of the replay check and of the evaluation where they are known and differ."""
    check = run["dataset"]["replay_check"] or {}
    made, ran = check.get("versions", {}).get("mujoco"), run["versions"]["mujoco"]
    return None if made in (None, ran) else (made, ran)


def base_id(run: RunFile) -> str:
    """The data set's own id, without settings in brackets, or D4RL's name of a file that was given by its path."""
    data = run["dataset"]
    return str(data.get("name", data["id"])).partition("[")[0]


def has_goal(run: RunFile) -> bool:
    """Whether the first-contact protocol makes sense: point mazes, where a positive reward means being at the goal."""
    return family(base_id(run)) == "maze2d" and all(
        success is not None and success == (contact is not None)
        for success, contact in zip(run["successes"], run["first_contact"], strict=True)
    )


def on_scale(run: RunFile, returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns as D4RL scores (x100), or as they are where D4RL's scale may not be used."""
    ends = reference_scores(run)
    return returns if ends is None else 100 * (returns - ends[0]) / (ends[1] - ends[0])


def scores(run: RunFile, protocol: str, outcome: dict[str, Any] | None = None) -> NDArray[np.float64]:
    """Scores [episodes] of the run, or of a point of its curve (`outcome`)."""
    outcome = outcome or run
    if protocol == ENV:
        return on_scale(run, np.array(outcome["returns"], dtype=np.float64))
    return on_scale(run, first_contact_return(outcome["first_contact"], int(run["protocol"]["episode_steps"])))


# Cells of the table


@dataclass(frozen=True)
class Cell:
    """All runs of one agent (with one preset and budget) on one data set, in the order of their seeds."""

    dataset: str
    agent: str
    label: str
    runs: tuple[RunFile, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run["seed"] for run in self.runs)

    @property
    def normalised(self) -> bool:
        return reference_scores(self.runs[0]) is not None

    @property
    def protocols(self) -> tuple[str, ...]:
        return PROTOCOLS if all(has_goal(run) for run in self.runs) else (ENV,)

    def run_scores(self, protocol: str) -> NDArray[np.float64]:
        """Mean scores [seeds] of the runs."""
        return np.array([scores(run, protocol).mean() for run in self.runs])

    @functools.cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Mean over runs with its interval, by protocol."""
        return {protocol: intervals.mean_interval(self.run_scores(protocol)) for protocol in self.protocols}

    def mean(self, value: Callable[[RunFile], float]) -> float:
        return float(np.mean([value(run) for run in self.runs]))

    @functools.cached_property
    def success(self) -> Estimate | None:
        """Share of successful episodes in percent with its interval; None in point mazes (see first contact) and where
        the environment knows no success."""
        if FIRST_CONTACT in self.protocols or any(None in run["successes"] for run in self.runs):
            return None
        return intervals.mean_interval(np.array([100 * np.mean(run["successes"]) for run in self.runs]))

    @property
    def made_by(self) -> str:
        """How the data were made, as in `DatasetInfo.provenance`."""
        return str(self.runs[0]["dataset"]["provenance"])

    @property
    def ms_per_action(self) -> float:
        return self.mean(lambda run: run["predict_ms"]["per_action"])

    @property
    def minutes(self) -> float:
        return self.mean(lambda run: run["seconds"]["total"] / 60)


def unit(cell: Cell) -> str:
    return "D4RL score" if cell.normalised else "raw return"


def make_cells(runs: Sequence[RunFile]) -> list[Cell]:
    """Group runs into cells: data sets in alphabetical order, in each the best agent first."""
    groups: dict[tuple[str, str, str, float], list[RunFile]] = {}
    for run in runs:
        key = (run["dataset"]["id"], run["agent"], run["preset"], float(run["budget_share"]))
        groups.setdefault(key, []).append(run)
    settings: dict[str, set[tuple[str, float]]] = {}
    for _, agent, preset, budget in groups:
        settings.setdefault(agent, set()).add((preset, budget))
    cells = []
    for (dataset, agent, preset, budget), members in groups.items():
        several = len(settings[agent]) > 1
        label = f"{agent} ({preset}, {100 * budget:g} %)" if several else agent
        cells.append(Cell(dataset, agent, label, tuple(sorted(members, key=lambda run: int(run["seed"])))))
    return sorted(cells, key=lambda cell: (cell.dataset, -cell.estimates[ENV][0], cell.label))


def published(cell: Cell) -> list[dict[str, str]]:
    """Rows of published_scores.csv for the same algorithm on the same D4RL data set, or the one whose recipe ours
    follows."""
    if cell.made_by == "stand-in" or not cell.normalised:
        return []
    name = base_id(cell.runs[0])
    dataset = PUBLISHED_DATASETS.get(name, name)
    algorithm = PUBLISHED_AGENTS.get(cell.agent, cell.agent)
    return [
        row
        for row in _published_rows()
        if row["dataset"] == dataset and row["algorithm"] == algorithm and row["paper"] in PUBLISHED_PROTOCOLS
    ]


@functools.cache
def _published_rows() -> tuple[dict[str, str], ...]:
    with PUBLISHED.open(newline="") as file:
        return tuple(csv.DictReader(file))


@dataclass(frozen=True)
class Reference:
    """A reference policy that was measured, `success` in percent; it is no agent and takes no part in aggregates."""

    dataset: str
    name: str
    scores: dict[str, float]
    episodes: int
    success: float | None = None


def references(cells: Sequence[Cell]) -> list[Reference]:
    """The reference policies of each data set.

    Point mazes store them with the data (`NAME_return`, `NAME_first_contact_return`, `episodes`); those of our other
    data sets are in `ld_agents.evaluation.scores.MEASURED_SCORES`.
    """
    found = {}
    for cell in cells:
        run = cell.runs[0]
        measured = run["dataset"]["controller"] or {}
        for key in measured:
            name = key.removesuffix("_return")
            if name == key or name.endswith("_first_contact"):
                continue
            keys = {ENV: key, FIRST_CONTACT: f"{name}_first_contact_return"}
            means = {
                protocol: float(on_scale(run, np.array(float(measured[keys[protocol]]))))
                for protocol in cell.protocols
                if keys[protocol] in measured
            }
            found[cell.dataset, name] = Reference(cell.dataset, name, means, int(measured["episodes"]))
        if measured or not cell.dataset.startswith("ld-agents/"):
            continue
        for name, score in sorted(MEASURED_SCORES.get(TASKS.get(base_id(run), ""), {}).items()):
            mean = float(on_scale(run, np.array(score.mean_return)))
            success = None if score.success is None else 100 * score.success
            found[cell.dataset, name] = Reference(cell.dataset, name, {ENV: mean}, score.episodes, success)
    return list(found.values())
