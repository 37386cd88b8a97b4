"""Run files that are made up, so that every number in a report is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

UMAZE = "ld-agents/pointmaze/umaze-v0"
LARGE = "ld-agents/pointmaze/large-v0"
ANTMAZE = "ld-agents/antmaze/umaze-v0"
PEN = "ld-agents/adroit/pen-human-v0"
HOPPER = "ld-agents/locomotion/hopper-medium-v0"
MINIMUM, MAXIMUM = 23.85, 161.86


def a_run(agent: str = "LDCQ", on: str = UMAZE, seed: int = 0, level: float = 100.0, **changes: Any) -> dict[str, Any]:
    """A run file whose mean return is `level`; on each episode first contact is at step 101 of 300."""
    returns = [level - 10, level, level + 10, level]
    curve = [
        {"gradient_steps": 100 * k, "seconds": 6.0 * k, "returns": [level * k / 5] * 2, "first_contact": [101, 101]}
        for k in range(1, 6)
    ]
    run: dict[str, Any] = {
        "schema": 1,
        "agent": agent,
        "preset": "fast",
        "dataset": {
            "id": on,
            "hash": "ab" * 32,
            "provenance": "regenerated",
            "replay_check": {"passed": True},
            "reference_scores": [0.0, 1.0],
            "controller": {
                "controller_return": MAXIMUM,
                "controller_first_contact_return": MAXIMUM,
                "random_return": MINIMUM,
                "random_first_contact_return": MINIMUM,
                "episodes": 100,
            },
        },
        "seed": seed,
        "budget_share": 1.0,
        "gradient_steps": 500,
        "protocol": {"episodes": 4, "episode_steps": 300},
        "returns": returns,
        "lengths": [300] * 4,
        "first_contact": [101] * 4,
        "successes": [True] * 4,
        "curve": curve,
        "seconds": {"total": 90.0},
        "predict_ms": {"per_action": 0.25},
        "peak_memory_mb": 700.0,
        "plans": None,
        "hardware": {"cpu": "a cpu", "threads": 1, "gpu": None},
        "versions": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "stable-baselines3": "2.9.2",
            "gymnasium-robotics": "1.4.2",
            "mujoco": "3.11.0",
        },
        "commit": "0123456789abcdef",
    }
    for key, value in changes.items():
        run[key] = {**run[key], **value} if isinstance(value, dict) and run.get(key) else value
    return run


def a_plan(horizon: int = 20) -> dict[str, Any]:
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    paths = [[[0.5 + 0.02 * t * np.cos(a), 0.02 * t * np.sin(a)] for t in range(horizon + 1)] for a in angles]
    start = {"position": [0.5, 0.0], "paths": paths, "scores": list(np.cos(angles)), "chosen": 0}
    maze = [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    route = [[0.5, 0.0], [-0.5, 0.0]]
    return {
        "maze_map": maze,
        "cell_size": 1.0,
        "goal": [-0.5, 0.0],
        "horizon": horizon,
        "starts": [{**start, "route": route}],
    }


def write_runs(folder: Path, runs: list[dict[str, Any]]) -> Path:
    """The folder of a suite with these runs."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(runs):
        (folder / "runs" / f"{number:03d}.json").write_text(json.dumps(run))
    return folder


def three_agents(datasets: tuple[str, ...] = (UMAZE,), seeds: int = 3) -> list[dict[str, Any]]:
    levels = {"LDCQ": 150.0, "LDCQ[prior=gaussian]": 120.0, "BC": 30.0}
    return [
        a_run(agent, dataset, seed, level + 5 * seed)
        for agent, level in levels.items()
        for dataset in datasets
        for seed in range(seeds)
    ]


def score(value: float) -> float:
    return 100 * (value - MINIMUM) / (MAXIMUM - MINIMUM)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
