"""Why pyproject.toml keeps newer versions out, or this project works around them. Each test fails once the reason is
gone: then the pin, or the workaround that the test names, can go.
"""

from __future__ import annotations

import importlib
from importlib.metadata import requires, version
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from ld_agents.evaluation import environments

pytest.importorskip("gymnasium_robotics")


def test_pandas_below_3_rliable_needs_an_arch_that_does_not_import_with_it() -> None:
    arch = [found for text in requires("rliable") or [] if (found := Requirement(text)).name == "arch"]
    assert not any(found.specifier.contains("8.0") for found in arch), "rliable takes arch 8: try pandas 3"


@pytest.mark.parametrize("task", ["Hammer", "Door", "Relocate"])
def test_gymnasium_robotics_below_1_4_3_pays_adroit_with_the_wrong_sign(task: str) -> None:
    environments.register()
    env: Any = environments.make(f"ld_agents/Adroit{task}-v0").unwrapped
    assert env._correction == pytest.approx(-0.2), "the simulator pays as D4RL does: take the newer version"
    env.close()


def test_kitchen_reads_its_joints_itself_because_gymnasium_robotics_cannot_from_mujoco_3_12_on() -> None:
    environments.register()
    kitchen: Any = environments.make("ld_agents/Kitchen-complete-v0").unwrapped
    robot = kitchen.simulator.robot_env
    state = robot.model, robot.data, robot.model_names.joint_names
    utils = importlib.import_module("gymnasium_robotics.utils.mujoco_utils")
    if tuple(map(int, version("mujoco").split(".")[:2])) >= (3, 12):
        with pytest.raises(AssertionError):  # where it does not, environments._robot_state can go
            utils.robot_get_obs(*state)
    else:
        for ours, theirs in zip(environments._robot_state(*state), utils.robot_get_obs(*state), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.shape == (9,)
    kitchen.close()
