"""What reference policies return in the evaluation environments, 100 episodes each; of CarRacing so far 10.

`measure_missing`: for each task of AntMaze, locomotion, Adroit, Kitchen and CarRacing, uniformly random actions and the
policy that records the best data of the task (`recipes.py`), in ld_agents/evaluation/measured_scores.json.
`ld_agents.evaluation.scores` reads the file, and reports show it beside the agents.

`measure_simulator`: the best policies, and PointMaze's controller, on the version of MuJoCo that is installed, in
results/simulators.json, from which `reporting/simulators.py` makes a page.

What is in a file is not measured again; delete an entry to have it measured anew.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from files import write_json
from ld_agents.data.pointmaze import play_reference
from ld_agents.data.recording import versions, worker_pool
from ld_agents.evaluation import scores
from ld_agents.evaluation.mazes import MAZES
from recording import recorder
from recording.behaviors import Behavior
from recording.recipes import reference_policies

EPISODES = 100
SIMULATORS = Path(__file__).resolve().parents[2] / "results" / "simulators.json"


def measure(task: str, name: str, env_id: str, behavior: Behavior, n_episodes: int) -> dict[str, Any]:
    """Returns and successes of a policy, as they stand in the file."""
    entropy = (zlib.crc32(task.encode()), zlib.crc32(name.encode()))
    episodes = recorder.play(env_id, behavior, n_episodes, entropy)
    returns = [float(episode.rewards.sum()) for episode in episodes]
    successes = [episode.success for episode in episodes if episode.success is not None]
    return {
        "environment": env_id,
        "policy": behavior.describe(),
        "episodes": n_episodes,
        "mean_return": float(np.mean(returns)),
        "std_return": float(np.std(returns)),
        "success_rate": float(np.mean(successes)) if successes else None,
        "versions": versions(),
    }


def measure_missing(
    policies: Path,
    tasks: Sequence[str] = (),
    processes: int = 1,
    n_episodes: int = EPISODES,
    out: Path = scores.MEASURED_FILE,
) -> None:
    """Measure what the file `out` lacks of the tasks, such as "hopper" or "antmaze-umaze"; none: of all.

    It is brought up to date after every policy.

    Raises:
        ValueError: an unknown task.
    """
    known = reference_policies(policies)
    unknown = sorted(set(tasks) - set(known))
    if unknown:
        raise ValueError(f"There is no task {unknown[0]!r}. Choose from: {', '.join(known)}.")
    found: dict[str, dict[str, Any]] = json.loads(out.read_text()) if out.exists() else {}
    jobs = []
    for task in tasks or known:
        env_id, best, behavior = known[task]
        for name, policy in (("random", Behavior(behavior.action_size)), (best, behavior)):
            if name not in found.get(task, {}):
                jobs.append((task, name, env_id, policy, n_episodes))
    with worker_pool(processes) as run:
        entries = run(measure, *zip(*jobs, strict=True)) if jobs else ()
        for (task, name, *_), entry in zip(tqdm(jobs, unit="policy"), entries, strict=True):
            found.setdefault(task, {})[name] = entry
            write_json(out, dict(sorted(found.items())))


def measure_simulator(
    policies: Path, tasks: Sequence[str] = (), n_episodes: int = EPISODES, out: Path = SIMULATORS
) -> None:
    """Measure what the file `out` lacks of the tasks on the installed version of MuJoCo; none: of all.

    What measured_scores.json holds of this version is taken from there.

    Raises:
        ValueError: an unknown task.
    """
    known = {task: found for task, found in reference_policies(policies).items() if task != "carracing"}  # in Box2D
    mazes = {f"maze2d-{maze}": maze for maze in MAZES}
    unknown = sorted(set(tasks) - {*known, *mazes})
    if unknown:
        raise ValueError(f"There is no task {unknown[0]!r}. Choose from: {', '.join([*mazes, *known])}.")
    found: dict[str, dict[str, Any]] = json.loads(out.read_text()) if out.exists() else {}
    here = found.setdefault(versions()["mujoco"], {})
    measured = json.loads(scores.MEASURED_FILE.read_text())
    for task, (_, name, _) in known.items():
        entry = measured.get(task, {}).get(name)
        if entry and (entry["versions"]["mujoco"], entry["episodes"]) == (versions()["mujoco"], n_episodes):
            here.setdefault(task, entry)
    for task in tqdm([task for task in tasks or [*mazes, *known] if task not in here], unit="policy"):
        if task in mazes:
            returns, _ = play_reference(mazes[task], 0, "controller", n_episodes)
            here[task] = {
                "environment": MAZES[mazes[task]].env_id,
                "policy": {"behaviour": "D4RL's way-point controller, without noise"},
                "episodes": n_episodes,
                "mean_return": float(returns.mean()),
                "std_return": float(returns.std()),
                "success_rate": float((returns > 0).mean()),
                "versions": versions(),
            }
        else:
            env_id, name, behavior = known[task]
            here[task] = measure(task, name, env_id, behavior, n_episodes)
        write_json(out, found)
