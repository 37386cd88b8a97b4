#!/usr/bin/env bash
# The spec of Gymnasium's vector environments cannot make one of the environments in it.
#
# Expected: `make_vec(id, n).spec` tells, as the spec of one environment does, how each of them is made.
# Seen:     its `kwargs` also hold num_envs and vectorization_mode, arguments of make_vec and not of the environment.
#           `gymnasium.make(spec)`, and a spec that went through to_json and from_json, raise a TypeError.
# Matters:  a recorder or a logger that stores the spec of the environments it ran in, as Minari does for one, writes down
#           something from which no evaluation environment is built. It works until somebody records in parallel.
# Versions: gymnasium 1.4.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "gymnasium==1.4.0" "numpy==2.4.6"

"$work/venv/bin/python" -W ignore - <<'PYTHON'
import gymnasium
from gymnasium.envs.registration import EnvSpec

print("gymnasium", gymnasium.__version__)
one, two = gymnasium.make("Pendulum-v1"), gymnasium.make_vec("Pendulum-v1", 2, vectorization_mode="sync")
print("kwargs of one:", one.spec.kwargs, "of two:", two.spec.kwargs)
assert one.spec.kwargs == {} and set(two.spec.kwargs) == {"num_envs", "vectorization_mode"}, "behavior changed"
gymnasium.make(EnvSpec.from_json(one.spec.to_json())).reset(seed=0)
for name, spec in (("the spec itself", two.spec), ("through JSON", EnvSpec.from_json(two.spec.to_json()))):
    try:
        gymnasium.make(spec)
    except TypeError as error:
        print(f"{name}: {str(error).partition(' was raised')[0]}")
    else:
        raise SystemExit("behavior changed: the spec of two environments makes one")
PYTHON
