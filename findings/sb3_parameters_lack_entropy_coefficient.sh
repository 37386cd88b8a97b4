#!/usr/bin/env bash
# Parameters that Stable-Baselines3's SAC gives out and takes in again leave the entropy coefficient behind.
#
# Expected: `set_parameters(get_parameters(), exact_match=True)` makes a second agent that goes on as the first one would,
#           as `load` does, or raises.
# Seen:     the parameters have four parts: policy and three optimizers. The learned coefficient is none of them. The second
#           agent keeps its own, 1 in a fresh one, with the moments and step count of the first one's optimizer. So it is
#           with sb3-contrib's TQC. `save` and `load` restore it.
# Matters:  whoever copies an agent for a branch of a training, a population, or a checkpoint of their own, as is cheaper
#           than a zip, continues with an entropy bonus that can be many times too large, and nothing tells.
# Versions: stable-baselines3 2.9.2, sb3-contrib 2.9.2, gymnasium 1.4.0, torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "stable-baselines3==2.9.2" "sb3-contrib==2.9.2" "gymnasium==1.4.0" \
    "torch==2.13.0" "numpy==2.4.6"

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from sb3_contrib import TQC
from stable_baselines3 import SAC

torch.set_num_threads(1)


def coefficient(agent):
    return round(agent.log_ent_coef.exp().item(), 3)


for cls in (SAC, TQC):
    settings = {"learning_rate": 1e-2, "device": "cpu", "policy_kwargs": {"net_arch": [16]}}
    first = cls("MlpPolicy", "Pendulum-v1", seed=0, learning_starts=10, **settings)
    first.learn(150)
    parameters = first.get_parameters()
    second = cls("MlpPolicy", "Pendulum-v1", seed=1, **settings)
    second.set_parameters(parameters, exact_match=True)
    first.save("agent")
    loaded = cls.load("agent")
    moments = second.ent_coef_optimizer.state_dict()["state"][0]
    print(cls.__name__, list(parameters))
    print(f"  learned {coefficient(first)}, set {coefficient(second)}, loaded {coefficient(loaded)}")
    print(f"  steps of the coefficient's optimizer that was set: {int(moments['step'])}")
    assert list(parameters) == ["policy", "actor.optimizer", "critic.optimizer", "ent_coef_optimizer"]
    assert coefficient(loaded) == coefficient(first) < 0.3 and coefficient(second) == 1.0
    assert int(moments["step"]) == 140
PYTHON
