#!/usr/bin/env bash
# A deep copy of a MuJoCo environment in mid-episode steps on from the initial state, in silence.
#
# Expected: copy.deepcopy of an environment continues where the original stands, as it does for Pendulum, or raises.
# Seen:     the copy is a new environment made from the constructor's arguments. It was never reset, yet wrappers accept
#           step(), because copied wrappers carry the flag that says it was. After 20 steps the simulated time of the copy
#           of Hopper, of the Adroit door and of FrankaKitchen is zero.
# Matters:  copying to look ahead, to check a model's rollout or to branch an episode yields plausible numbers of another
#           state. The simulator's state has to be carried over by hand.
# Versions: gymnasium 1.4.0, gymnasium-robotics 1.4.2, mujoco 3.4.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "gymnasium-robotics==1.4.2" "gymnasium==1.4.0" "mujoco==3.4.0" "numpy==2.4.6"

"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import copy

import gymnasium
import gymnasium_robotics
import mujoco
import numpy as np

gymnasium.register_envs(gymnasium_robotics)
print("gymnasium", gymnasium.__version__, "gymnasium-robotics", gymnasium_robotics.__version__, "mujoco", mujoco.__version__)


def next_observations(name):
    """What the environment and its copy observe one step after the copy was taken, flattened."""
    env = gymnasium.make(name)
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (21, *env.action_space.shape)).astype(np.float32)
    for action in actions[:-1]:
        env.step(action)
    twin = copy.deepcopy(env)
    times = [one.unwrapped.data.time for one in (env, twin) if hasattr(one.unwrapped, "data")]
    seen = [gymnasium.spaces.flatten(env.observation_space, one.step(actions[-1])[0]) for one in (env, twin)]
    gap = np.abs(seen[0] - seen[1]).max()
    print(f"{name}: simulated time of original and copy {np.round(times, 3).tolist()}, "
          f"next observations differ by up to {gap:.2g}")
    return times, gap


assert next_observations("Pendulum-v1")[1] == 0
for name in ("Hopper-v5", "AdroitHandDoor-v1", "FrankaKitchen-v1"):
    times, gap = next_observations(name)
    assert times[0] > 0 and times[1] == 0 and gap > 0.01, f"behavior changed: the copy of {name} keeps its state"
PYTHON
