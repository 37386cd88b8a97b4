"""How well does `evaluate_offline` rank policies? Estimates from data alone beside scores in the simulator.

    python benchmarks/rank_policies.py ld-agents/pointmaze/umaze-100k-v0 ld-agents/locomotion/hopper-medium-v1

Trains BC, TD3BC and IQL for a short time, with a tuning seed, and looks at each after some of its gradient steps.
Writes one record per dataset into results/offline_evaluation; `report.py` makes the page. Some minutes of a core each.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

import provenance
from files import write_json
from ld_agents import BC, IQL, TD3BC, evaluate, evaluate_offline, load_dataset
from ld_agents.evaluation.scores import normalise
from specs import slug

OUT = Path(__file__).resolve().parent.parent / "results" / "offline_evaluation"
AGENTS = (BC, TD3BC, IQL)
LOOKED_AT = (200, 1_000, 4_000)  # gradient steps
SEED = 101
EPISODES = 20
ESTIMATE: dict[str, Any] = {"discount": 0.99, "gradient_steps": 3_000, "batch_size": 128, "hidden": [128, 128]}


class Look(BaseCallback):
    """Scores and estimates of a learning agent at some of its gradient steps."""

    model: Any

    def __init__(self, policies: list[dict[str, Any]]) -> None:
        super().__init__()
        self.policies = policies

    def _on_step(self) -> bool:
        if self.model.num_timesteps in LOOKED_AT:
            training, data = self.model.policy.training, self.model.dataset
            outcome = evaluate(self.model, data.make_eval_env, EPISODES, seed=SEED, n_envs=EPISODES)
            scores = normalise(outcome.returns, data.info.id, data.info.replay_check)
            (estimate,) = evaluate_offline([self.model], data, **{**ESTIMATE, "hidden": tuple(ESTIMATE["hidden"])})
            self.model.policy.train(training)
            policy = {"agent": type(self.model).__name__, "gradient_steps": self.model.num_timesteps}
            policy |= {"score": float(scores.mean()), **dataclasses.asdict(estimate)}
            self.policies.append({key: round(v, 4) if isinstance(v, float) else v for key, v in policy.items()})
            print(self.policies[-1], flush=True)
        return True


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="Minari ids or paths of D4RL .hdf5 files")
    torch.set_num_threads(1)
    for name in parser.parse_args(arguments).datasets:
        dataset, policies = load_dataset(name), list[dict[str, Any]]()
        for agent in AGENTS:
            policy = "MultiInputPolicy" if dataset.observation_keys else "MlpPolicy"
            agent(policy, dataset, preset="fast", seed=SEED).learn(LOOKED_AT[-1], Look(policies))
        record = {
            "dataset": name,
            "hash": dataset.content_hash,
            "seed": SEED,
            "episodes": EPISODES,
            "estimate": ESTIMATE,
        }
        record |= {"policies": policies, "commit": provenance.source_commit(), "versions": provenance.versions()}
        write_json(OUT / f"{slug(name)}.json", record)


if __name__ == "__main__":
    main()
