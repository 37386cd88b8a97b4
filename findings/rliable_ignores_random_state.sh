#!/usr/bin/env bash
# rliable's get_interval_estimates documents random_state and ignores it.
#
# Expected: the same scores and the same RandomState give the same confidence interval, as the docstring promises.
# Seen:     two calls with RandomState(0) differ in the second digit. The resampling draws from NumPy's global generator,
#           and only numpy.random.seed makes the interval repeat.
# Matters:  the intervals of a results table cannot be rebuilt from the raw scores although the script looks seeded, and a
#           test that compares tables fails at random.
# Versions: rliable 1.2.0, arch 7.2.0, numpy 2.4.6, pandas 2.3.3
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "rliable==1.2.0" "arch==7.2.0" "pandas==2.3.3" "numpy==2.4.6" "scipy==1.17.1"

"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
from importlib.metadata import version

import numpy as np
from rliable import library, metrics

scores = {"agent": np.random.default_rng(0).normal(size=(5, 3))}


def interval():
    estimates = library.get_interval_estimates(
        scores, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000, random_state=np.random.RandomState(0))
    return estimates[1]["agent"].ravel()


print(*(f"{name} {version(name)}" for name in ("rliable", "arch", "numpy", "pandas")))
first, second = interval(), interval()
print("random_state=RandomState(0), twice:", first.round(4), second.round(4))
repeats = []
for _ in range(2):
    np.random.seed(0)
    repeats.append(interval())
print("numpy.random.seed(0) before, twice:", repeats[0].round(4), repeats[1].round(4))
assert np.array_equal(*repeats), "behavior changed: the global generator does not decide any more"
assert not np.array_equal(first, second), "behavior changed: random_state is honored"
PYTHON
