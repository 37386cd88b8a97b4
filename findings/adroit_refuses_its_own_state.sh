#!/usr/bin/env bash
# Adroit's Hammer and Relocate refuse the state they hand out, and Relocate restores a moved ball in the wrong place.
#
# Expected: set_env_state(get_env_state()) puts the scene back, as it does for Door and Pen.
# Seen:     Hammer and Relocate raise, because the dictionary has keys that the state space does not know. With those keys
#           removed, Relocate takes the ball's world position for its starting position and adds the joint displacement
#           again: the ball lands at twice its way.
# Matters:  restoring recorded states is how datasets are replayed, relabelled and verified. D4RL's Adroit files hold
#           these very dictionaries.
# Versions: gymnasium-robotics 1.4.2, gymnasium 1.4.0, mujoco 3.4.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "gymnasium-robotics==1.4.2" "gymnasium==1.4.0" "mujoco==3.4.0" "numpy==2.4.6"

"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import gymnasium
import gymnasium_robotics
import mujoco
import numpy as np

gymnasium.register_envs(gymnasium_robotics)
print("gymnasium-robotics", gymnasium_robotics.__version__, "gymnasium", gymnasium.__version__, "mujoco", mujoco.__version__)
accepted, hands = {}, {}
for name in ("Door", "Pen", "Hammer", "Relocate"):
    hands[name] = gymnasium.make(f"AdroitHand{name}-v1").unwrapped
    hands[name].reset(seed=0)
    state = hands[name].get_env_state()
    unknown = sorted(set(state) - set(hands[name]._state_space.spaces))
    try:
        hands[name].set_env_state(state)
        accepted[name] = True
    except AssertionError:
        accepted[name] = False
    print(f"{name}: own state {'accepted' if accepted[name] else 'refused'}, keys outside the state space {unknown}")
assert accepted == dict(Door=True, Pen=True, Hammer=False, Relocate=False), f"behavior changed: {accepted}"

relocate = hands["Relocate"]
start = relocate.get_env_state()["obj_pos"]
way = np.array([0.05, 0.05, 0.20])
qpos, qvel = relocate.data.qpos.copy(), relocate.data.qvel.copy()
qpos[30:33] = way
relocate.set_state(qpos, qvel)
state = relocate.get_env_state()
relocate.set_env_state({key: state[key] for key in relocate._state_space.spaces})
restored = relocate.get_env_state()["obj_pos"]
print("ball at the start", start.round(3), "moved to", state["obj_pos"].round(3), "restored at", restored.round(3))
assert np.allclose(state["obj_pos"] - start, way)
assert np.allclose(restored - start, 2 * way), f"behavior changed: the ball is restored at {restored}"
PYTHON
