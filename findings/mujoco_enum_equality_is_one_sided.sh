#!/usr/bin/env bash
# From MuJoCo 3.12 on, an enum of its bindings equals a NumPy integer only if it stands on the right.
#
# Expected: `a == b` and `b == a` agree, so `joint_type in (mjJNT_HINGE, mjJNT_SLIDE)` finds what `==` finds.
# Seen:     model.jnt_type holds numpy.int32. `jnt_type[0] == mjJNT_HINGE` is True, `mjJNT_HINGE == jnt_type[0]` is False
#           (True up to 3.11), and `in`, which compares its elements with the value in this order, is False. A Python int is
#           equal from both sides.
# Matters:  code that asks for a joint's type by `in`, `list.index` or a dictionary takes the other branch, while the same
#           question by `==` is answered as before. gymnasium-robotics' FrankaKitchen-v1 fails on it with a bare
#           AssertionError.
# Versions: mujoco 3.11.0, 3.12.0, 4.0.0; numpy 2.4.6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for version in 3.11.0 3.12.0 4.0.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet --no-compile "mujoco==$version" "numpy==2.4.6"
    "$work/$version/bin/python" -W ignore - <<'PYTHON'
import mujoco

HINGE, SLIDE = mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><body><joint type='hinge'/><geom size='.1'/></body></worldbody></mujoco>")
kind = model.jnt_type[0]
found = {"kind == HINGE": kind == HINGE, "HINGE == kind": HINGE == kind, "kind in (HINGE, SLIDE)": kind in (HINGE, SLIDE),
         "HINGE == int(kind)": HINGE == int(kind)}
print("mujoco", mujoco.__version__, type(kind).__name__, {text: bool(value) for text, value in found.items()})
old = tuple(map(int, mujoco.__version__.split(".")[:2])) < (3, 12)
assert [bool(value) for value in found.values()] == [True, old, old, True], "behavior changed"
PYTHON
done
