#!/usr/bin/env bash
# AntMaze of gymnasium-robotics starts every episode with bitwise the same joints and velocities.
#
# Expected: the ant starts with the reset noise of 0.1 that Ant-v5, from which it is built, and D4RL's AntMaze both have.
# Seen:     over eight seeds only x and y vary. Height, orientation, the eight joints and all 14 velocities are identical,
#           while the same eight seeds move every coordinate of Ant-v5.
# Matters:  a policy is evaluated from one body pose only, and an open-loop gait can look reliable. Scores compare neither
#           with D4RL's nor with data that were recorded from noisy starts.
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


def spread_of_starts(env, ant):
    starts = []
    for seed in range(8):
        env.reset(seed=seed)
        starts.append(np.concatenate([ant.data.qpos, ant.data.qvel]))
    return np.ptp(starts, axis=0)


ant = gymnasium.make("Ant-v5")
spread = spread_of_starts(ant, ant.unwrapped)
print("Ant-v5: smallest spread of a coordinate over eight seeds", spread.min().round(3))
assert (spread > 0).all()
for name in ("AntMaze_UMaze-v4", "AntMaze_UMaze-v5", "AntMaze_Large_Diverse_GR-v5"):
    maze = gymnasium.make(name)
    spread = spread_of_starts(maze, maze.unwrapped.ant_env.unwrapped)
    print(f"{name}: spread of x, y {spread[:2].round(2)}, largest spread of the other {len(spread) - 2}: {spread[2:].max()}")
    assert (spread[:2] > 0).all() and (spread[2:] == 0).all(), f"behavior changed: {name} draws more than x and y"
PYTHON
