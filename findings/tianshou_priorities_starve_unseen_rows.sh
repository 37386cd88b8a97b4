#!/usr/bin/env bash
# tianshou's prioritized replay over a fixed dataset leaves rows undrawn once errors exceed 1.
#
# Expected: new entries get the highest priority, so that each is drawn at least once early on, as the paper has it.
# Seen:     entries get the highest priority seen so far, which is 1 before the first update, and keep it. In a buffer that
#           is filled first and sampled afterwards every entry is at 1: with errors around 100 about a third of the rows
#           has not been drawn after five passes, and 9 % not after fifteen. With errors around 0.5 all have been.
# Matters:  offline training is just this case, a fixed dataset with errors on the scale of returns, and the rows left out
#           are those the critic never corrected.
# Versions: tianshou 2.0.1, numpy 2.4.6, torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "tianshou==2.0.1" "torch==2.13.0" "numpy==2.4.6"

"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
from importlib.metadata import version

import numpy as np
from tianshou.data import Batch, PrioritizedReplayBuffer

ROWS, BATCH = 2000, 100


def undrawn_after(passes, error_scale):
    """Share of rows never drawn, when every drawn row gets a fresh error of that scale."""
    np.random.seed(0)
    errors = np.random.default_rng(0)
    buffer = PrioritizedReplayBuffer(size=ROWS, alpha=0.6, beta=0.4)
    for row in range(ROWS):
        state = np.array([row], np.float32)
        buffer.add(Batch(obs=state, act=0, rew=0.0, terminated=False, truncated=False, obs_next=state, info={}))
    drawn, shares = np.zeros(ROWS, bool), []
    for step in range(max(passes) * ROWS // BATCH):
        _, indices = buffer.sample(BATCH)
        drawn[indices] = True
        buffer.update_weight(indices, error_scale * np.abs(errors.standard_normal(BATCH)))
        if (step + 1) * BATCH in [count * ROWS for count in passes]:
            shares.append(1 - drawn.mean())
    return np.array(shares)


print(*(f"{name} {version(name)}" for name in ("tianshou", "numpy", "torch")))
undrawn = {scale: undrawn_after((5, 10, 15), scale) for scale in (0.5, 10, 100)}
for scale, shares in undrawn.items():
    print(f"errors around {scale}: undrawn after 5, 10, 15 passes {shares.round(3).tolist()}")
assert undrawn[0.5][-1] == 0
assert undrawn[100][0] > 0.2 and undrawn[100][-1] > 0.03, f"behavior changed: {undrawn[100]}"
PYTHON
