"""Run files as one pandas frame, checked and scored: every table and figure starts from it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ld_agents.evaluation.eval_env import DRAWN_GOALS
from ld_agents.evaluation.scores import REFERENCE_SCORES, family, first_contact_return, why_not_normalised
from specs import SCHEMA, differing

ENV = "env"
FIRST_CONTACT = "first contact"
SUCCESS = "success"
PROTOCOLS = (ENV, FIRST_CONTACT)
# columns of numbers that only a run that was measured here has, beside its score
MEASURED = (FIRST_CONTACT, SUCCESS, "ms_per_action", "minutes", "learn_minutes", "learn_cpu_minutes", "peak_memory_mb")

MAX_BYTES = 32 << 20  # of a run file
MAX_FILES = 20_000  # of a suite

RunFile = dict[str, Any]


def read_json(path: Path) -> Any:
    """The content of a JSON file of bounded size.

    Raises:
        ValueError: the file is too large or no JSON.
    """
    if not path.is_file():
        raise ValueError("no regular file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MiB, which no run file is")
    return json.loads(path.read_text(encoding="utf-8"))


def read_runs(folder: Path) -> tuple[list[RunFile], list[str]]:
    """All valid runs of a folder in the order of their file names, and a line for each file that was skipped."""
    runs, skipped = [], []
    paths = sorted(itertools.islice(folder.glob("*.json"), MAX_FILES + 1))
    if len(paths) > MAX_FILES:
        raise SystemExit(f"{folder} holds more than {MAX_FILES} run files; split them into suites")
    for path in paths:
        try:
            run = read_json(path)
            _check_run(run)
            _check_row(_row(run))
            json.dumps(run, allow_nan=False)  # reading takes NaN and infinity, which are in no sound file
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            skipped.append(f"{path.name}: {reason}")
        else:
            runs.append(run)
    return runs, skipped


def read_failures(folder: Path) -> list[RunFile]:
    """Runs of a suite that failed and have no result: `Run`'s fields and the reason. Unreadable files count as none."""
    failures = []
    for path in sorted((folder / "failures").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            run = read_json(path)
            names = {key: str(run[key])[:300] for key in ("agent", "dataset", "seed", "preset", "reason")}
            if not (folder / "runs" / path.name).exists():
                failures.append(names)
    return failures


def _check_run(run: RunFile) -> None:
    if run.get("schema") != SCHEMA:
        raise ValueError(f"schema {run.get('schema')!r}, this report reads schema {SCHEMA}")
    for key in ("commit", "plans", "versions", "hardware"):
        run[key]
    measured = run["dataset"]["controller"] or {}
    for key in measured:
        if key == "episodes" or key.endswith("_return"):
            float(measured[key]), int(measured["episodes"])
    versions = (run["dataset"]["replay_check"] or {}).get("versions", {})
    hash(versions.get("mujoco"))  # it is compared, and stands in sets
    if not isinstance(run["versions"]["mujoco"], str | None):
        raise ValueError("'versions.mujoco' is not a string")
    names = {"agent": run["agent"], "preset": run["preset"]}
    names |= {f"dataset.{key}": run["dataset"][key] for key in ("id", "hash", "provenance")}
    for key, name in names.items():
        if not isinstance(name, str):
            raise ValueError(f"{key!r} is not a string")
    if not all(0 <= run[key] < 1 << 63 for key in ("seed", "gradient_steps")):
        raise ValueError("'seed' and 'gradient_steps' are no counts")
    {**run.get("settings", {})}
    for points in run.get("losses", {}).values():
        [float(loss) for _, loss in points]
    for part in run.get("learned_before", ()):
        part["commit"]
    float(run["budget_share"])
    float(run["seconds"]["total"]), float(run["predict_ms"]["per_action"])
    episodes = run["protocol"]["episodes"]
    for key in ("returns", "lengths", "first_contact", "successes"):
        if len(run[key]) != episodes:
            raise ValueError(f"{key!r} has {len(run[key])} entries for {episodes} episodes")
    if not all(math.isfinite(value) for value in run["returns"]):
        raise ValueError("'returns' has an entry that is not finite")
    for point in run["curve"]:
        point["gradient_steps"], point["seconds"], point["returns"], point["first_contact"]
    measured = run.get("measured") or {}
    for draw in measured.get("draws", {}).values():
        draw.items()
    if "latent_map" in measured:
        for key in ("places", "tsne", "variance", "tasks", "names"):
            measured["latent_map"][key]
    for start in run["plans"]["starts"] if run["plans"] else ():
        start["position"], start["paths"], start["scores"], start["chosen"], start["route"]


def _check_row(row: Mapping[str, Any]) -> None:
    """Finite numbers can still be too large to be added up."""
    if math.isnan(row[ENV]):
        raise ValueError("its mean score is not a number")
    for key in (ENV, *MEASURED, "budget_share"):
        if not (math.isnan(row[key]) or abs(row[key]) < 1e12):
            raise ValueError(f"{key!r} is {row[key]:.3g}, beyond all that can be measured")
    for package in ("python", "torch", "stable-baselines3"):
        row["file"]["versions"][package]


def frame(runs: Sequence[RunFile]) -> pd.DataFrame:
    """One row per run, sorted by dataset, agent and seed; a run that is given twice counts once, the first time.

    `env` and `first contact` are the run's mean scores, `success` the percentage of solved episodes, NaN where they
    are undefined. `label` names the agent in tables and figures, with preset and budget where an agent has several.
    `file` is the run file itself, which curves and plans are drawn from. `added` is false: no run here is someone
    else's score (`added_scores.py`).
    """
    table = pd.DataFrame([_row(run) for run in runs])
    table = table.drop_duplicates(["dataset", "agent", "preset", "budget_share", "seed"], ignore_index=True)
    setting = table["preset"] + ", " + table["budget"]
    several = setting.groupby(table["agent"]).transform("nunique") > 1
    table["label"] = table["agent"].where(~several, table["agent"] + " (" + setting + ")")
    return table.assign(added=False).sort_values(["dataset", "label", "seed"], ignore_index=True, kind="stable")


def _row(run: RunFile) -> dict[str, Any]:
    hardware, versions, raw_because = run["hardware"], run["versions"], why_raw(run)
    cpu = None if hardware["gpu"] else run["seconds"].get("learn_cpu")  # files of older runs do not tell
    before = [part["commit"] for part in run.get("learned_before", ())]
    solved = [math.nan if success is None else float(success) for success in run["successes"]]
    return {
        "dataset": run["dataset"]["id"],
        "name": base_id(run),
        "hash": run["dataset"]["hash"],
        "provenance": run["dataset"]["provenance"],
        "agent": run["agent"],
        "preset": run["preset"],
        "budget_share": float(run["budget_share"]),
        "budget": f"{100 * run['budget_share']:g} %",
        "gradient_steps": int(run["gradient_steps"]),
        "seed": int(run["seed"]),
        "episodes": run["protocol"]["episodes"],
        "unit": "D4RL score" if raw_because is None else "raw return",
        "raw_because": raw_because,
        ENV: scores(run, ENV).mean(),
        FIRST_CONTACT: scores(run, FIRST_CONTACT).mean() if has_goal(run) else math.nan,
        SUCCESS: 100 * np.mean(solved),
        "ms_per_action": run["predict_ms"]["per_action"],
        "minutes": run["seconds"]["total"] / 60,
        "learn_minutes": run["seconds"].get("learn", math.nan) / 60,
        "learn_cpu_minutes": math.nan if cpu is None else cpu / 60,
        "peak_memory_mb": run.get("peak_memory_mb") or math.nan,
        "data": run["dataset"]["hash"][:12],
        "simulator": f"mujoco {versions['mujoco']}, gymnasium-robotics {versions['gymnasium-robotics']}",
        "commit": " and ".join(dict.fromkeys(map(_short_commit, [*before, run["commit"]]))),
        "hardware": f"{hardware['gpu'] or hardware['cpu']}, {hardware['threads']} thread(s)",
        "file": run,
    }


def _short_commit(commit: Any) -> str:
    return str(commit)[:12] + "+changes" * str(commit).endswith("+changes")


def alike(runs: Sequence[RunFile]) -> list[RunFile]:
    """The runs that may be seeds of one score: the newest of each cell, and those with its settings and its data.

    Newest first; what one of two runs does not tell of its settings is no difference.
    """
    newest_first = sorted(runs, key=lambda run: str(run.get("finished", "")), reverse=True)
    newest: dict[Any, RunFile] = {}
    kept = []
    for run in newest_first:
        cell = tuple(map(str, (run["agent"], run["dataset"]["id"], run["preset"], run["budget_share"])))
        first = newest.setdefault(cell, run)
        same_data = run["dataset"]["hash"] == first["dataset"]["hash"]
        if same_data and not differing(first.get("settings", {}), run.get("settings", {})):
            kept.append(run)
    return kept


def by_dataset(runs: pd.DataFrame) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Datasets in alphabetical order, each with its cells: the runs of each label, the best agent first."""
    for dataset, members in runs.groupby("dataset"):
        best_first = members.groupby("label")[ENV].mean().sort_values(ascending=False, kind="stable").index
        yield str(dataset), {label: members[members["label"] == label] for label in best_first}


def measures(cell: pd.DataFrame) -> list[str]:
    """What a cell can show: the protocols, and rates of success where there is no first contact to say the same."""
    shown = [protocol for protocol in PROTOCOLS if cell[protocol].notna().all()]
    return shown + [SUCCESS] * (FIRST_CONTACT not in shown and bool(cell[SUCCESS].notna().all()))


def digest(runs: pd.DataFrame) -> str:
    """A hash of the run files' content, which tells whether a figure was drawn from them."""
    contents = sorted(json.dumps(run, sort_keys=True) for run in runs["file"])
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()[:16]


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


def base_id(run: RunFile) -> str:
    """The dataset's own id, without settings in brackets, or D4RL's name of a file that was given by its path."""
    data = run["dataset"]
    return str(data.get("name", data["id"])).partition("[")[0]


def has_goal(run: RunFile) -> bool:
    """Whether the first-contact protocol is defined: point mazes, where a positive reward means being at the goal.

    Not with drawn goals, where episodes end at the first contact and the return is the rate of success.
    """
    return (
        family(base_id(run)) == "maze2d"
        and DRAWN_GOALS not in base_id(run)
        and all(
            success is not None and success == (contact is not None)
            for success, contact in zip(run["successes"], run["first_contact"], strict=True)
        )
    )


def on_scale(run: RunFile, returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns as D4RL scores (x100), or as they are where D4RL's scale may not be used."""
    ends = reference_scores(run)
    return returns if ends is None else 100 * (returns - ends[0]) / (ends[1] - ends[0])


def scores(run: RunFile, protocol: str, outcome: Mapping[str, Any] | None = None) -> NDArray[np.float64]:
    """Scores [episodes] of the run, or of a point of its curve (`outcome`)."""
    outcome = outcome or run
    if protocol == ENV:
        return on_scale(run, np.array(outcome["returns"], dtype=np.float64))
    return on_scale(run, first_contact_return(outcome["first_contact"], int(run["protocol"]["episode_steps"])))
