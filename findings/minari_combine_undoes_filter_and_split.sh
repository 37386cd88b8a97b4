#!/usr/bin/env bash
# minari.combine_datasets takes every episode of the set behind a filtered or split one.
#
# Expected: combining the sets that filter_episodes and split_dataset return joins the episodes that they hold.
# Seen:     a filter keeps two of three episodes; the combination of it has three again. A split into 2 and 1 episodes comes
#           back as six, each twice. No warning, and `total_episodes` and `total_steps` agree with the wrong content.
# Matters:  "successes of A with successes of B" trains on the failures, too. Training halves of two sets bring their held-out
#           episodes along, so that a validation loss is measured on training data.
# Versions: minari 0.5.4, gymnasium 1.4.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "minari==0.5.4" "gymnasium==1.4.0" "numpy==2.4.6" "h5py==3.16.0" "pillow==13.0.0"

"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import os
import sys

os.environ["MINARI_DATASETS_PATH"] = sys.argv[1]

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

SPACE = gymnasium.spaces.Box(-1, 1, (1,), np.float32)


def episode(steps, success):
    return EpisodeBuffer(
        observations=np.zeros((steps + 1, 1), np.float32), actions=np.zeros((steps, 1), np.float32),
        rewards=[0.0] * (steps - 1) + [float(success)], terminations=[False] * (steps - 1) + [success],
        truncations=[False] * (steps - 1) + [not success], infos={})


def told(dataset):
    return f"{dataset.total_episodes} episodes, {dataset.total_steps} steps, lengths {[len(entry) for entry in dataset]}"


stored = minari.create_dataset_from_buffers(
    "demo/all-v0", buffer=[episode(3, False), episode(4, True), episode(5, True)],
    observation_space=SPACE, action_space=SPACE)
successes = stored.filter_episodes(lambda entry: entry.terminations[-1])
joined = minari.combine_datasets([successes], "demo/successes-v0")
train, held_out = minari.split_dataset(stored, [2, 1], seed=0)
whole = minari.combine_datasets([train, held_out], "demo/whole-v0")
alone = minari.combine_datasets([train], "demo/train-v0")

print("minari", minari.__version__, "gymnasium", gymnasium.__version__)
print("successes:", told(successes))
print("combined: ", told(joined))
print("split:    ", told(train), "and", told(held_out))
print("combined: ", told(whole))
assert [len(entry) for entry in successes] == [4, 5] and train.total_episodes == 2 and held_out.total_episodes == 1
assert [len(entry) for entry in joined] == [3, 4, 5], f"behavior changed: {told(joined)}"
assert whole.total_episodes == 6 and alone.total_episodes == 3, f"behavior changed: {told(whole)}"
PYTHON
