#!/usr/bin/env bash
# Minari's Arrow and Parquet sets return the first 32,767 steps of a longer episode, and its next pieces as other episodes.
#
# Expected: the three storage formats return the episodes that were stored, whatever their length.
# Seen:     of episodes of 100,000, 10 and 20 steps HDF5 returns just these. Arrow and Parquet return three of 32,767 steps:
#           under the numbers of the second and third episode come pieces of the first one. None of them ends with a flag,
#           and the last row of each piece is lost as padding. `total_steps` still says 100,030; item access returns the two
#           short episodes as they are and cuts the first.
# Matters:  continuing tasks are recorded as one episode of up to a million steps. Conversions that iterate lose most of them,
#           mistake pieces for other episodes, and drop those that they stand in for, without an error.
# Versions: minari 0.5.4, pyarrow 26.0.1, gymnasium 1.4.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "minari==0.5.4" "pyarrow==26.0.1" "gymnasium==1.4.0" "numpy==2.4.6" "h5py==3.16.0" "pillow==13.0.0"

"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import os
import sys

os.environ["MINARI_DATASETS_PATH"] = sys.argv[1]

from importlib.metadata import version

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

LENGTHS = (100_000, 10, 20)
SPACE = gymnasium.spaces.Box(-1e9, 1e9, (1,), np.float64)


def episode(number, steps):
    """Every observation and action tells the number of its episode."""
    return EpisodeBuffer(
        observations=np.full((steps + 1, 1), float(number)), actions=np.full((steps, 1), float(number)),
        rewards=[1.0] * steps, terminations=[False] * steps, truncations=[t == steps - 1 for t in range(steps)], infos={})


print(*(f"{name} {version(name)}" for name in ("minari", "pyarrow", "gymnasium")))
for data_format in ("hdf5", "arrow", "parquet"):
    minari.create_dataset_from_buffers(
        f"demo/{data_format}-v0", buffer=[episode(k, steps) for k, steps in enumerate(LENGTHS)],
        observation_space=SPACE, action_space=SPACE, data_format=data_format)
    dataset = minari.load_dataset(f"demo/{data_format}-v0")
    read = list(dataset)
    lengths, content = [len(entry) for entry in read], [sorted({float(x) for x in entry.observations.flat}) for entry in read]
    ends, items = [bool(entry.truncations[-1]) for entry in read], [len(dataset[k]) for k in range(len(LENGTHS))]
    print(f"{data_format}: total_steps {dataset.total_steps}, iterated {lengths}, of episodes {content}, "
          f"flagged ends {ends}, item access {items}")
    assert dataset.total_steps == sum(LENGTHS) and len(read) == len(LENGTHS)
    if data_format == "hdf5":
        assert lengths == items == list(LENGTHS) and content == [[0], [1], [2]] and all(ends)
    else:
        assert content == [[0], [0], [0]] and not any(ends), f"behavior changed: {data_format} reads {lengths}"
        assert max(lengths) < LENGTHS[0] and items[0] < LENGTHS[0] and items[1:] == list(LENGTHS[1:])
PYTHON
