#!/usr/bin/env bash
# A Minari set gives back a dictionary space with its keys sorted, so that flattened columns trade places with those of the
# environment.
#
# Expected: `dataset.observation_space` equals the space of the environment that was recorded, also in the order of its keys,
#           which is the order of the columns of `flatten`. Or `recover_environment` and the set agree at least.
# Seen:     Gymnasium keeps the order of keyword arguments and sorts the keys of a plain dictionary. Minari writes the keys in
#           order and rebuilds the space from a plain dictionary: ("position", "goal") comes back as ("goal", "position"), the
#           two spaces compare equal, and both flatten to Box(4,). The flattened set has (goal, position) where
#           FlattenObservation around the recovered environment has (position, goal).
# Matters:  a goal-conditioned agent that is trained on flattened rows steers from the goal to where it is. Shapes, bounds and
#           `==` of the spaces show nothing.
# Versions: minari 0.5.4, gymnasium 1.4.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "minari==0.5.4" "gymnasium==1.4.0" "numpy==2.4.6" "h5py==3.16.0" "pillow==13.0.0"

cd "$work"
cat > reach.py <<'PYTHON'
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict


class Reach(gymnasium.Env):
    """A point that has to go from (1, 1) to (5, 5)."""

    observation_space = Dict(position=Box(-9, 9, (2,)), goal=Box(-9, 9, (2,)))
    action_space = Box(-1, 1, (2,))

    def observe(self):
        return {"position": self.position, "goal": np.full(2, 5, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = np.ones(2, np.float32)
        return self.observe(), {}

    def step(self, action):
        self.position = self.position + action
        return self.observe(), 0.0, False, False, {}


gymnasium.register("Reach-v0", "reach:Reach", max_episode_steps=3)
PYTHON
"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import os
import sys

os.environ["MINARI_DATASETS_PATH"] = sys.argv[1]

import gymnasium
import minari
import numpy as np
import reach
from gymnasium.spaces.utils import flatten
from gymnasium.wrappers import FlattenObservation
from minari.data_collector import EpisodeBuffer

env, steps = gymnasium.make("Reach-v0"), 3
first, _ = env.reset(seed=0)
action = np.zeros(2, np.float32)
rows = [first] + [env.step(action)[0] for _ in range(steps)]
minari.create_dataset_from_buffers("demo/reach-v0", env=env, buffer=[EpisodeBuffer(
    observations={key: np.stack([row[key] for row in rows]) for key in first}, actions=np.stack([action] * steps),
    rewards=[0.0] * steps, terminations=[False] * steps, truncations=[False, False, True], infos={})])
dataset = minari.load_dataset("demo/reach-v0")
stored = flatten(dataset.observation_space, {key: values[0] for key, values in dataset[0].observations.items()})
recovered = dataset.recover_environment()
acting, _ = FlattenObservation(recovered).reset(seed=0)

print("minari", minari.__version__, "gymnasium", gymnasium.__version__)
print("keys of the environment", list(recovered.observation_space), "of the set", list(dataset.observation_space))
print("spaces compare equal:", dataset.observation_space == recovered.observation_space)
print("first observation, flattened: from the set", stored, "from the recovered environment", acting)
assert dataset.observation_space == recovered.observation_space and stored.shape == acting.shape
assert list(recovered.observation_space) == ["position", "goal"] and acting.tolist() == [1, 1, 5, 5]
assert stored.tolist() == [5, 5, 1, 1], f"behavior changed: the set flattens to {stored}"
PYTHON
