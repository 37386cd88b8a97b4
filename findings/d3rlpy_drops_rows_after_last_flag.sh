#!/usr/bin/env bash
# d3rlpy's MDPDataset throws away every row behind the last end flag.
#
# Expected: rows of an unfinished last episode are kept as a truncated episode, or their loss is reported.
# Seen:     of 10 rows with one timeout at row 4, five rows and four transitions remain, without a warning. Only arrays
#           with no flag at all are refused.
# Matters:  replay buffers and files cut at a round number of steps end in mid-episode as a rule. With long episodes, or
#           with terminals as the only flags, that tail can be most of the data, and steps trained on are fewer than told.
# Versions: d3rlpy 2.8.1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "d3rlpy==2.8.1" "torch==2.13.0" "numpy==2.4.6"

"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import d3rlpy
import numpy as np

ROWS = 10


def load(flagged):
    timeouts = np.zeros(ROWS, np.float32)
    timeouts[flagged] = 1
    return d3rlpy.dataset.MDPDataset(
        observations=np.arange(ROWS, dtype=np.float32)[:, None], actions=np.zeros((ROWS, 1), np.float32),
        rewards=np.ones(ROWS, np.float32), terminals=np.zeros(ROWS, np.float32), timeouts=timeouts)


cut, whole = load([4]), load([4, 9])
print("d3rlpy", d3rlpy.__version__)
for name, dataset in (("timeout at row 4", cut), ("timeouts at rows 4 and 9", whole)):
    rows = [episode.observations[:, 0].astype(int).tolist() for episode in dataset.episodes]
    print(f"{name}: episodes {rows}, {dataset.transition_count} transitions")
assert whole.transition_count == 8 and len(whole.episodes) == 2
assert cut.transition_count == 4 and len(cut.episodes) == 1, f"behavior changed: {cut.transition_count} transitions"
try:
    load([])
except AssertionError as error:
    print("no flag at all:", error)
else:
    raise SystemExit("behavior changed: arrays without any flag are accepted")
PYTHON
