#!/usr/bin/env bash
# d3rlpy takes float actions that happen to be whole numbers, such as -1 and 1, for a discrete action space.
#
# Expected: a float32 array of shape [N, 1] is a continuous action, or the choice is asked for.
# Seen:     MDPDataset looks at the values. With actions of -1 and 1 it says DISCRETE with 2 actions, with -0.5 and 1
#           CONTINUOUS with one dimension; a line of the log at level info is all that tells. `action_space=` overrides it.
# Matters:  policies that saturate (bang-bang, clipped to the box) and data of a few rows with zero actions are recorded with
#           whole numbers. -1 is then no valid index, and two parts of one task become data sets of different kinds.
# Versions: d3rlpy 2.8.1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "d3rlpy==2.8.1" "torch==2.13.0" "numpy==2.4.6"

"$work/venv/bin/python" -W ignore - <<'PYTHON' | grep -v "info  "
import d3rlpy
import numpy as np

ROWS = 10


def kind(low, **settings):
    actions = np.where(np.arange(ROWS) % 2, 1.0, low).astype(np.float32)[:, None]
    info = d3rlpy.dataset.MDPDataset(
        observations=np.arange(ROWS, dtype=np.float32)[:, None], actions=actions, rewards=np.ones(ROWS, np.float32),
        terminals=np.eye(ROWS, dtype=np.float32)[-1], **settings).dataset_info
    print(f"actions {low} and 1.0, {settings or 'nothing said'}: {info.action_space.name}, size {info.action_size}")
    return info.action_space.name, info.action_size


print("d3rlpy", d3rlpy.__version__)
assert kind(-0.5) == ("CONTINUOUS", 1)
assert kind(-1.0) == ("DISCRETE", 2), "behavior changed"
assert kind(-1.0, action_space=d3rlpy.ActionSpace.CONTINUOUS) == ("CONTINUOUS", 1)
PYTHON
