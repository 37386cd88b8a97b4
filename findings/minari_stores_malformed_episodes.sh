#!/usr/bin/env bash
# Minari checks neither the length, the bounds nor the end of an episode against the dataset's own contract.
#
# Expected: a format whose contract is T actions between T+1 observations, inside declared spaces, refuses anything else
#           when a dataset is created, or at the latest when it is loaded.
# Seen:     5 steps with 5 or with 7 observations, actions of 7 in a box of [-1, 1], float64 observations in a float32
#           space, a termination in the middle and an episode with no end flag are all written, loaded and counted as
#           5 steps, without an error. The only warnings, about missing metadata, are those that a sound episode gets too.
# Matters:  `observations[t + 1]` is the next state only if there are T+1 of them, and a reader that trusts the action
#           space squashes or clips what it trains on. A loader for offline RL has to make these checks itself.
# Versions: minari 0.5.4, gymnasium 1.4.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "minari==0.5.4" "gymnasium==1.4.0" "numpy==2.4.6" "h5py==3.16.0" "pillow==13.0.0"

"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import os
import sys
import warnings

os.environ["MINARI_DATASETS_PATH"] = sys.argv[1]

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

STEPS = 5
ACTION_SPACE = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
OBSERVATION_SPACE = gymnasium.spaces.Box(-10, 10, (2,), np.float32)


def store_and_load(name, observations=STEPS + 1, dtype=np.float32, action=0.0, terminated_at=None, truncated=True):
    episode = EpisodeBuffer(
        id=0,
        observations=list(np.zeros((observations, 2), dtype)),
        actions=list(np.full((STEPS, 1), action, np.float32)),
        rewards=[1.0] * STEPS,
        terminations=[t == terminated_at for t in range(STEPS)],
        truncations=[truncated and t == STEPS - 1 for t in range(STEPS)],
        infos={},
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        minari.create_dataset_from_buffers(
            f"demo/{name}-v0", buffer=[episode], observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
        stored = minari.load_dataset(f"demo/{name}-v0")[0]
    print(f"{name:12s} {len(stored)} steps, observations {stored.observations.shape} {stored.observations.dtype}, "
          f"largest action {stored.actions.max():.0f}, {len(caught)} warnings")
    return stored, {str(warning.message) for warning in caught}


print("minari", minari.__version__, "gymnasium", gymnasium.__version__)
sound = store_and_load("sound")
short = store_and_load("short", observations=STEPS)
long = store_and_load("long", observations=STEPS + 2)
outside = store_and_load("outside-box", action=7.0)
wide = store_and_load("float64", dtype=np.float64)
middle = store_and_load("ends-midway", terminated_at=2)
endless = store_and_load("never-ends", truncated=False)
malformed = (short, long, outside, wide, middle, endless)
assert all(texts == sound[1] for _, texts in malformed), "behavior changed: malformed episodes get a warning of their own"
assert (len(short[0].observations), len(long[0].observations)) == (5, 7) and len(short[0]) == len(long[0]) == STEPS
assert not ACTION_SPACE.contains(outside[0].actions[0]) and wide[0].observations.dtype == np.float64
assert middle[0].terminations.tolist().index(True) == 2 and not (endless[0].terminations | endless[0].truncations).any()
PYTHON
