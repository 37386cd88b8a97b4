#!/usr/bin/env bash
# `pip install --upgrade mujoco` from 3.x to 4.0 leaves a package that does not import.
#
# Expected: pip reports success, and the upgraded package imports as it does in a fresh environment.
# Seen:     4.0 moved the compiled files of the folder `mujoco` into a package of its own, mujoco-core. pip installs that
#           dependency first and then uninstalls mujoco 3.11, whose list of files names the same paths, so what was just
#           written is deleted. pip exits with 0 and `pip check` finds nothing; importing mujoco raises an ImportError.
# Matters:  an environment that is upgraded in place differs from a fresh one with the same `pip list`. mujoco's own message
#           names the remedy: install mujoco-core again with --force-reinstall --no-deps.
# Versions: mujoco 3.11.0, 4.0.0; pip 26.3
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --no-compile "pip==26.3"
pip() { "$work/venv/bin/python" -m pip --disable-pip-version-check "$@"; }

imports() { "$work/venv/bin/python" -W ignore -c "import mujoco; print('mujoco', mujoco.__version__, 'imports')"; }

pip --version | cut -d" " -f1,2
pip install --quiet --no-compile "mujoco==3.11.0" "numpy==2.4.6"
imports
pip install --quiet --no-compile --upgrade "mujoco==4.0.0"
pip list | grep -i mujoco
pip check
if imports 2> "$work/error"; then
    echo "behavior changed: the upgraded package imports"
    exit 1
fi
grep -E "^(ImportError|ModuleNotFoundError)" "$work/error" | tail -n 1
pip install --quiet --no-compile --force-reinstall --no-deps "mujoco-core==4.0.0"
imports
