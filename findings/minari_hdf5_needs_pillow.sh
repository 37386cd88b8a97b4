#!/usr/bin/env bash
# A Minari dataset in its default format, HDF5, can be neither written nor read with `pip install "minari[hdf5]"` alone.
#
# Expected: the extra `hdf5` brings all that HDF5 datasets need, at least those without images.
# Seen:     storing five steps of numbers raises "No module named 'PIL'", and so does loading them once they are stored.
#           No extra of minari 0.5.4 names Pillow; it used to come along with matplotlib and stable-baselines3.
# Matters:  a small installation that only reads data fails on a machine other than the author's, and the message names an
#           image library for data that hold no image.
# Versions: minari 0.5.4, gymnasium 1.4.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "minari[hdf5]==0.5.4" "gymnasium==1.4.0" "numpy==2.4.6" "h5py==3.16.0"

cat > "$work/store.py" <<'PYTHON'
import os
import sys

os.environ["MINARI_DATASETS_PATH"] = sys.argv[1]

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

if sys.argv[2] == "store":
    episode = EpisodeBuffer(
        id=0, observations=list(np.zeros((6, 2), np.float32)), actions=list(np.zeros((5, 1), np.float32)), rewards=[1.0] * 5,
        terminations=[False] * 5, truncations=[False] * 4 + [True], infos={})
    minari.create_dataset_from_buffers(
        "demo/numbers-v0", buffer=[episode], observation_space=gymnasium.spaces.Box(-1, 1, (2,), np.float32),
        action_space=gymnasium.spaces.Box(-1, 1, (1,), np.float32))
print("minari", minari.__version__, "steps", minari.load_dataset("demo/numbers-v0").total_steps,
      "first reward", minari.load_dataset("demo/numbers-v0")[0].rewards[0])
PYTHON
fails() {
    if "$work/venv/bin/python" -W ignore "$work/store.py" "$work/sets" "$1" > "$work/out" 2>&1; then
        echo "behavior changed: $1 works without Pillow"
        exit 1
    fi
    echo "$1 without Pillow: $(tail -n 1 "$work/out")"
    grep -q "PIL\|illow" "$work/out"
}

mkdir "$work/sets"
fails store
rm -rf "$work/sets" && mkdir "$work/sets"
"$work/venv/bin/pip" install --quiet --no-compile "pillow==13.0.0"
"$work/venv/bin/python" -W ignore "$work/store.py" "$work/sets" store
"$work/venv/bin/pip" uninstall --quiet --yes pillow
fails load
