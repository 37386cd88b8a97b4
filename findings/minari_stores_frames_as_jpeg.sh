#!/usr/bin/env bash
# Minari compresses image observations as JPEG, which loses values, and cannot store gray or stacked frames at all.
#
# Expected: what is read back from a dataset equals what was stored, and every space that Gymnasium allows can be stored.
# Seen:     with the default settings, uint8 boxes from 0 to 255 of 32 x 32 pixels and more go through JPEG. A map of
#           labels 0 to 3 comes back with labels 4 and 5. Smaller frames come back exactly. Frames of one channel
#           (48, 48, 1) and of four (84, 84, 4), the usual stack of Atari, raise errors of the image library.
#           `jpeg_encoding=False` stores them exactly; minari 0.5.3 compresses as well and has no such switch.
# Matters:  learned codes, replayed renderings and hashes of the observations differ from the recording; masks and label
#           maps are wrong without a message.
# Versions: minari 0.5.4, pillow 13.0.0, gymnasium 1.4.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "minari[hdf5]==0.5.4" "gymnasium==1.4.0" "numpy==2.4.6" "h5py==3.16.0" \
    "pillow==13.0.0"
mkdir "$work/sets"

"$work/venv/bin/python" -W ignore - "$work/sets" <<'PYTHON'
import os
import sys

os.environ["MINARI_DATASETS_PATH"] = sys.argv[1]

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

random = np.random.default_rng(0)


def read_back(name, frames, **options):
    steps = len(frames) - 1
    episode = EpisodeBuffer(
        id=0, observations=list(frames), actions=list(np.zeros((steps, 1), np.float32)), rewards=[0.0] * steps,
        terminations=[False] * steps, truncations=[False] * (steps - 1) + [True], infos={})
    minari.create_dataset_from_buffers(
        f"demo/{name}-v0", buffer=[episode], observation_space=gymnasium.spaces.Box(0, 255, frames.shape[1:], np.uint8),
        action_space=gymnasium.spaces.Box(-1, 1, (1,), np.float32), **options)
    return minari.load_dataset(f"demo/{name}-v0")[0].observations


def label_map(pixels, cell):
    """Six maps of square patches with labels 0 to 3, the same in each of three channels."""
    patches = random.integers(0, 4, (6, pixels // cell, pixels // cell, 1))
    return np.kron(patches, np.ones((1, cell, cell, 3))).astype(np.uint8)


print("minari", minari.__version__)
large, small = label_map(48, 4), label_map(16, 4)
found = read_back("large", large)
print(f"48 x 48 x 3: labels {np.unique(large)} come back as {np.unique(found)}, {(found != large).mean():.0%} of the values changed")
assert set(np.unique(large)) == {0, 1, 2, 3}
assert set(np.unique(found)) > {0, 1, 2, 3}, "behavior changed: labels are kept"
assert np.array_equal(read_back("small", small), small), "behavior changed: small frames"
print("16 x 16 x 3: equal")
assert np.array_equal(read_back("exact", large, jpeg_encoding=False), large)
print("48 x 48 x 3 with jpeg_encoding=False: equal")

refused = []
for shape in ((48, 48, 1), (84, 84, 4)):
    frames = random.integers(0, 256, (6, *shape)).astype(np.uint8)
    try:
        read_back("x".join(map(str, shape)), frames)
        print(f"{shape}: stored")
    except (OSError, TypeError) as error:
        refused.append(shape)
        print(f"{shape}: {type(error).__name__}: {error}")
assert refused == [(48, 48, 1), (84, 84, 4)], f"behavior changed: refused are {refused}"
PYTHON
