#!/usr/bin/env bash
# Loading a Stable-Baselines3 agent that was made with a seed sets the seeds of Python, NumPy and PyTorch for the process.
#
# Expected: `load` reads an agent. The random state of the program that reads it is its own.
# Seen:     after each `SAC.load` of an agent with seed=0, `random`, `numpy.random` and `torch` go on from seed 0, whatever
#           they were seeded with before. An agent saved without a seed leaves NumPy and Python alone. So what is drawn
#           after one load is drawn again after the next, the actions of a stochastic policy included.
# Matters:  a script that loads the expert anew for each part of a dataset draws the same actions, dropouts and mixtures for
#           every part, and the seeds that it sets itself have no effect. A stochastic policy that is evaluated under seeds 1
#           to 5, with a load after each, shows one stream of action noise five times: the interval is too narrow.
# Versions: stable-baselines3 2.9.2, gymnasium 1.4.0, torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "stable-baselines3==2.9.2" "gymnasium==1.4.0" "torch==2.13.0" "numpy==2.4.6"

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import random
from importlib.metadata import version

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.utils import set_random_seed

torch.set_num_threads(1)
settings = {"policy_kwargs": {"net_arch": [16]}, "buffer_size": 100, "device": "cpu"}
SAC("MlpPolicy", "Pendulum-v1", seed=0, **settings).save("seeded")
SAC("MlpPolicy", "Pendulum-v1", **settings).save("unseeded")


def draws(path, seed):
    """One draw of each generator and one action, after setting all seeds and loading an agent."""
    set_random_seed(seed)
    agent = SAC.load(path, device="cpu")
    numbers = [random.random(), np.random.rand()]
    action, _ = agent.predict(np.array([1, 0, 0], np.float32), deterministic=False)
    return [round(float(number), 4) for number in (*numbers, torch.rand(()), action[0])]


print(*(f"{name} {version(name)}" for name in ("stable-baselines3", "gymnasium", "torch")))
seeded, unseeded = [draws("seeded", seed) for seed in (1, 2, 3)], [draws("unseeded", seed) for seed in (1, 2, 3)]
print("random, numpy, torch, action after seeds 1, 2, 3 and load")
print("of an agent with seed 0: ", *seeded)
print("of an agent without seed:", *unseeded)
assert all(len({row[k] for row in unseeded}) == 3 for k in range(4)), "the seeds should decide here"
assert seeded[0] == seeded[1] == seeded[2], f"behavior changed: {seeded}"
np.random.seed(0)
random.seed(0)
assert seeded[0][:2] == [round(random.random(), 4), round(np.random.rand(), 4)]
PYTHON
