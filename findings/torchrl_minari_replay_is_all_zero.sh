#!/usr/bin/env bash
# torchrl's MinariExperienceReplay returns a local dataset with the right keys and shapes, and zeros for every value.
#
# Expected: load_from_local_minari=True gives the recorded transitions, or an error.
# Seen:     15 steps, all keys, right dtypes; every observation, action, reward and end flag is zero, and the episode
#           number as well. The file on disk is intact: Minari reads the recorded values from it.
# Matters:  a loss on zeros goes down without trouble. A conversion through this class has to be compared with the source.
# Versions: torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0, minari 0.5.4
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "torchrl==0.14.1" "tensordict==0.14.3" "torch==2.13.0" "minari==0.5.4" "gymnasium==1.4.0" "numpy==2.4.6" "h5py==3.16.0" "pillow==13.0.0"

"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import os
import sys

os.environ["MINARI_DATASETS_PATH"] = os.path.join(sys.argv[1], "minari")

import gymnasium
import minari
import numpy as np
import tensordict
import torch
import torchrl
from minari.data_collector import EpisodeBuffer
from torchrl.data.datasets import MinariExperienceReplay

STEPS = 5
episodes = [
    EpisodeBuffer(
        id=k,
        observations=list(np.ones((STEPS + 1, 3), np.float32)),
        actions=list(np.ones((STEPS, 1), np.float32)),
        rewards=[1.0] * STEPS,
        terminations=[False] * STEPS,
        truncations=[t == STEPS - 1 for t in range(STEPS)],
        infos={},
    )
    for k in range(3)
]
minari.create_dataset_from_buffers("demo/ones-v0", buffer=episodes, env="Pendulum-v1")
stored = minari.load_dataset("demo/ones-v0")
replay = MinariExperienceReplay(
    "demo/ones-v0", batch_size=4, root=os.path.join(sys.argv[1], "torchrl"), load_from_local_minari=True, download=False)

print("torchrl", torchrl.__version__, "tensordict", tensordict.__version__, "torch", torch.__version__,
      "minari", minari.__version__)
print("minari reads: actions", stored[0].actions.ravel().tolist(), "rewards", stored[0].rewards.tolist())
loaded = replay[:]
sums = {str(key): loaded[key].double().abs().sum().item() for key in loaded.keys(True, True)}
print("torchrl reads", len(loaded), "steps, sums of absolute values:", sums)
assert (stored[0].observations == 1).all() and (stored[0].actions == 1).all() and (stored[0].rewards == 1).all()
assert len(loaded) == 15 and "action" in sums and not any(sums.values()), f"behavior changed: {sums}"
PYTHON
