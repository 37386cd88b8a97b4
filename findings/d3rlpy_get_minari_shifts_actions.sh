#!/usr/bin/env bash
# d3rlpy.datasets.get_minari pairs the actions of episode k with observations that are k rows too early.
#
# Expected: the converter for the field's standard format returns (s_t, a_t) as recorded.
# Seen:     Minari stores T+1 observations for T actions. All arrays are concatenated over episodes as they are, so each
#           episode moves the observations one row further behind the actions. Episode 0 is right, episode 1 begins with
#           the final state of episode 0, and episode 3 is off by three rows. No error, no warning.
# Matters:  a dataset of a thousand episodes trains on nearly unrelated pairs of state and action, and reports a score.
# Versions: d3rlpy 2.8.1, minari 0.5.4
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "d3rlpy==2.8.1" "minari==0.5.4" "torch==2.13.0" "numpy==2.4.6" "h5py==3.16.0" "pillow==13.0.0"

"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import os
import sys

os.environ["MINARI_DATASETS_PATH"] = sys.argv[1]

import d3rlpy
import gymnasium
import minari
import numpy as np
from d3rlpy.datasets import get_minari
from minari.data_collector import EpisodeBuffer

STEPS = 5


def episode(k):
    """Observation and action of step t both spell 100 k + t, so that a pair shows where its halves come from."""
    return EpisodeBuffer(
        id=k,
        observations=[np.array([100 * k + t, 0, 0], np.float32) for t in range(STEPS + 1)],
        actions=[np.array([100 * k + t], np.float32) for t in range(STEPS)],
        rewards=[0.0] * STEPS,
        terminations=[False] * STEPS,
        truncations=[t == STEPS - 1 for t in range(STEPS)],
        infos={},
    )


minari.create_dataset_from_buffers(
    "demo/count-v0", buffer=[episode(k) for k in range(4)], env="Pendulum-v1",
    observation_space=gymnasium.spaces.Box(0, 1e3, (3,), np.float32),
    action_space=gymnasium.spaces.Box(0, 1e3, (1,), np.float32))
dataset, _ = get_minari("demo/count-v0")

print("d3rlpy", d3rlpy.__version__, "minari", minari.__version__)
for k, loaded in enumerate(dataset.episodes):
    states, actions = loaded.observations[:, 0].astype(int), loaded.actions[:, 0].astype(int)
    print(f"episode {k}: states {states.tolist()} actions {actions.tolist()}")
    assert actions.tolist() == [100 * k + t for t in range(STEPS)]
    recorded = [100 * j + t for j in range(4) for t in range(STEPS + 1)]
    late = recorded.index(100 * k) - recorded.index(states[0])
    assert late == k, f"behavior changed: episode {k} is {late} rows off, was {k}"
PYTHON
