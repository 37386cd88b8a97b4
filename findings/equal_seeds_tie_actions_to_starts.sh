#!/usr/bin/env bash
# Random actions are a function of the initial state when the environment and its action space get the same seed.
#
# Expected: `env.reset(seed=s)` and `env.action_space.seed(s)`, the usual pair of lines for a reproducible episode, draw
#           starts and actions independently of each other.
# Seen:     both make the same generator from the same number, so that the action space draws again what the reset noise
#           was drawn from. Over 100 seeds the first action of Pendulum is 2 / pi times the initial angle and the second
#           one twice the initial speed; the first four actions of Hopper and the first three of Walker2d are linear in
#           the initial state, with an R2 of 1.00. With other seeds for the actions it is 0.00 to 0.2, as chance has it.
# Matters:  whoever seeds every episode so that it can be recorded again collects "random" data in which the behavior
#           depends on the state: propensities are not uniform, a cloned random policy looks predictable, and the start
#           is confounded with what is done there. No statistic of the actions alone shows it.
# Versions: gymnasium 1.4.0, mujoco 3.4.0, numpy 2.4.6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "gymnasium[mujoco]==1.4.0" "mujoco==3.4.0" "numpy==2.4.6"

"$work/venv/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import version

import gymnasium
import numpy as np

EPISODES, ACTIONS = 100, 5


def starts_and_actions(name, offset):
    env, starts, actions = gymnasium.make(name), [], []
    for seed in range(EPISODES):
        env.reset(seed=seed)
        env.action_space.seed(seed + offset)
        bare = env.unwrapped
        starts.append(np.concatenate([bare.data.qpos, bare.data.qvel]) if hasattr(bare, "data") else bare.state)
        actions.append([env.action_space.sample() for _ in range(ACTIONS)])
    return np.array(starts), np.array(actions, float)


def explained(name, offset):
    """R2 of a linear regression on the initial state, the mean over the coordinates of each action."""
    starts, actions = starts_and_actions(name, offset)
    inputs = np.column_stack([starts, np.ones(EPISODES)])
    outputs = actions.reshape(EPISODES, -1)
    rest = outputs - inputs @ np.linalg.lstsq(inputs, outputs, rcond=None)[0]
    return (1 - rest.var(0) / outputs.var(0)).reshape(ACTIONS, -1).mean(1)


print(*(f"{name} {version(name)}" for name in ("gymnasium", "mujoco", "numpy")))
starts, actions = starts_and_actions("Pendulum-v1", 0)
gaps = [np.abs(actions[:, 0, 0] - starts[:, 0] * 2 / np.pi).max(), np.abs(actions[:, 1, 0] - starts[:, 1] * 2).max()]
print(f"Pendulum-v1: largest |a0 - 2 angle / pi| {gaps[0]:.0e}, largest |a1 - 2 speed| {gaps[1]:.0e}")
for name, tied in (("Pendulum-v1", 2), ("Hopper-v5", 4), ("Walker2d-v5", 3)):
    equal, other = explained(name, 0), explained(name, 1000)
    print(f"{name}: R2 of actions 1 to {ACTIONS}, equal seeds {equal.round(2)}, other seeds {other.round(2)}")
    assert (equal[:tied] > 0.999).all(), f"behavior changed: {equal}"
    assert (equal[tied:] < 0.5).all() and (other < 0.5).all()
assert max(gaps) < 1e-6
PYTHON
