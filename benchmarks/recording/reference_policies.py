"""Measure what reference policies return in the evaluation environments: ld_agents/measured_scores.json.

    python benchmarks/reference_policies.py --policies FOLDER

For each task of AntMaze, locomotion, Adroit and Kitchen: uniformly random actions, and the policy that records the best
data of the task (`recipes.py`), 100 episodes each. FOLDER holds the behaviour policies. What is in the file is not
measured again; delete an entry to have it measured anew. `ld_agents.evaluation.scores` reads the file, and reports
show it beside the agents.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from files import write_json
from ld_agents.evaluation import scores
from recording import recorder
from recording.behaviours import Behaviour
from recording.recipes import reference_policies

EPISODES = 100


def measure(task: str, name: str, env_id: str, behaviour: Behaviour, n_episodes: int) -> dict[str, Any]:
    """Returns and successes of a policy, as they stand in the file."""
    entropy = (zlib.crc32(task.encode()), zlib.crc32(name.encode()))
    episodes = recorder.play(env_id, behaviour, n_episodes, entropy)
    returns = [float(episode.rewards.sum()) for episode in episodes]
    successes = [episode.success for episode in episodes if episode.success is not None]
    return {
        "environment": env_id,
        "policy": behaviour.describe(),
        "episodes": n_episodes,
        "mean_return": float(np.mean(returns)),
        "std_return": float(np.std(returns)),
        "success_rate": float(np.mean(successes)) if successes else None,
        "versions": recorder.versions(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the file lacks; it is brought up to date after every policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--policies", type=Path, required=True, metavar="DIR", help="folder with the behaviour policies"
    )
    parser.add_argument("--tasks", nargs="+", help="for instance hopper antmaze-umaze; default: all")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=scores.MEASURED_FILE)
    options = parser.parse_args(arguments)
    known = reference_policies(options.policies)
    unknown = sorted(set(options.tasks or ()) - set(known))
    if unknown:
        parser.error(f"there is no task {unknown[0]!r}; choose from {', '.join(known)}")
    found: dict[str, dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    jobs = []
    for task in options.tasks or known:
        env_id, best, behaviour = known[task]
        for name, policy in (("random", Behaviour(behaviour.action_size)), (best, behaviour)):
            if name not in found.get(task, {}):
                jobs.append((task, name, env_id, policy, options.episodes))
    with recorder.worker_pool(options.processes) as pool:
        entries = pool.map(measure, *zip(*jobs, strict=True)) if jobs else ()
        for (task, name, *_), entry in zip(tqdm(jobs, unit="policy"), entries, strict=True):
            found.setdefault(task, {})[name] = entry
            write_json(options.out, dict(sorted(found.items())))


if __name__ == "__main__":
    main()
