#!/usr/bin/env bash
# FrankaKitchen's list of open tasks comes in another order in each process.
#
# Expected: info["tasks_to_complete"] is a list, so its order is the one that was asked for, and a seeded reset repeats it.
# Seen:     the tasks are kept as a set of strings, so the order follows Python's hash seed: six processes with the same
#           seed return several orders. The goals in the observation keep the order asked for.
# Matters:  a recording does not repeat byte for byte although all seeds are fixed, and code that takes the first entry
#           for the next subtask, or encodes the list by position, gets another meaning in every worker.
# Versions: gymnasium-robotics 1.4.2, gymnasium 1.4.0, mujoco 3.4.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "gymnasium-robotics==1.4.2" "gymnasium==1.4.0" "mujoco==3.4.0" "numpy==2.4.6"

"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import os
import subprocess
import sys

import gymnasium
import gymnasium_robotics
import mujoco

print("gymnasium-robotics", gymnasium_robotics.__version__, "gymnasium", gymnasium.__version__, "mujoco", mujoco.__version__)
asked = ["microwave", "kettle", "light switch", "slide cabinet"]
program = f"""
import gymnasium, gymnasium_robotics
gymnasium.register_envs(gymnasium_robotics)
observation, info = gymnasium.make("FrankaKitchen-v1", tasks_to_complete={asked}).reset(seed=0)
print(",".join(info["tasks_to_complete"]), ",".join(observation["achieved_goal"]), sep=";")
"""
orders = set()
for hash_seed in range(6):
    line = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)}).stdout.strip().splitlines()[-1]
    tasks, goals = (part.split(",") for part in line.split(";"))
    print(f"hash seed {hash_seed}: tasks_to_complete {tasks}")
    assert goals == asked and sorted(tasks) == sorted(asked)
    orders.add(tuple(tasks))
assert len(orders) > 1, "behavior changed: the order is the same in every process"
PYTHON
