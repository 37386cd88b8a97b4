"""The scripted demonstrator of the kitchen: what it draws, its kinematics, and that it does its tasks."""

from __future__ import annotations

import collections
import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from packaging.version import Version

from ld_agents.evaluation import environments
from ld_agents.evaluation.environments import KITCHEN_TASKS, Kitchen
from recording.kitchen_script import SKILLS, Arm, KitchenScript
from recording.recipes import recipes

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("gymnasium_robotics")


@pytest.fixture(scope="module")
def kitchen() -> Kitchen:
    return Kitchen(list(SKILLS))


def draws(script: KitchenScript, n: int) -> list[tuple[str, ...]]:
    rng = np.random.default_rng(0)
    return [script.begin(rng)["order"] for _ in range(n)]


def test_orders_follow_the_rules() -> None:
    # Of 7 * 6 * 5 * 4 orders, those remain that have the hinge cabinet nowhere (6 * 5 * 4 * 3) or last (6 * 5 * 4).
    script = KitchenScript(9)
    assert len(script.orders) == len(set(script.orders)) == 360 + 120
    drawn = draws(script, 600)
    assert all(len(set(order)) == 4 and "hinge cabinet" not in order[:3] for order in drawn)
    assert len(set(drawn)) > 300
    counts = collections.Counter(task for order in drawn for task in order)
    assert set(counts) == set(SKILLS)
    assert counts["hinge cabinet"] == pytest.approx(600 / 4, abs=50)
    assert counts["kettle"] == pytest.approx(600 * (360 * 4 / 6 + 120 * 3 / 6) / 480, abs=60)


def test_orders_of_the_recipes() -> None:
    known = recipes()
    mixed, partial = (known[f"ld-agents/kitchen/{name}-v0"].parts[0] for name in ("mixed", "partial"))
    assert isinstance(mixed, KitchenScript)
    assert isinstance(partial, KitchenScript)
    # The four tasks of mixed in any order would have been 24 of the 480.
    assert len(mixed.orders) == 456
    assert not any(set(KITCHEN_TASKS["mixed"]) <= set(order) for order in draws(mixed, 600))
    # An even draw would show D4RL's order in one of 480 episodes.
    shown = draws(partial, 3_000).count(KITCHEN_TASKS["partial"])
    assert shown == pytest.approx(3_000 * (19 / 621 + 1 / 480), abs=40)


def test_kinematics_are_those_of_the_simulator(kitchen: Kitchen) -> None:
    arm = Arm()
    observation, _ = kitchen.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(8):
        observation, *_ = kitchen.step(rng.uniform(-1.0, 1.0, 9))
    arm.observe(np.concatenate([kitchen.data.qpos[:9], np.zeros(9), kitchen.data.qpos[9:], np.zeros(20)]))
    kitchen.simulator.robot_env.set_state(kitchen.data.qpos.copy(), kitchen.data.qvel.copy())
    truth = kitchen.data.site("end_effector").xpos
    np.testing.assert_allclose(arm.gripper(), truth, atol=1e-9)
    # The observed joints are off by 1 mrad at most, and the gripper by what 0.7 m make of that.
    arm.observe(observation)
    assert 0 < np.linalg.norm(arm.gripper() - truth) < 3e-3
    # The sliding door's handle moves as far as its joint does.
    shut, moved = arm.grip(SKILLS["slide cabinet"], 0.0), arm.grip(SKILLS["slide cabinet"], 0.2)
    np.testing.assert_allclose(moved - shut, [0.2, 0.0, 0.0], atol=1e-6)


def test_steps_go_where_they_should(kitchen: Kitchen) -> None:
    observation, _ = kitchen.reset(seed=0)
    arm, skill = Arm(), SKILLS["light switch"]
    observation[:7] = skill.ready
    arm.observe(observation)
    before = arm.gripper()
    observation[:7] += arm.step_to(np.array([0.01, 0.02, -0.01]), skill)
    arm.observe(observation)
    np.testing.assert_allclose(arm.gripper() - before, [0.01, 0.02, -0.01], atol=2e-3)
    assert np.all(observation[:7] > arm.model.jnt_range[:7, 0])
    assert np.all(observation[:7] < arm.model.jnt_range[:7, 1])


def test_the_arm_holds_still_against_its_weight(kitchen: Kitchen) -> None:
    def sag(weightless: bool) -> float:
        observation, _ = kitchen.reset(seed=0)
        for _ in range(10):  # out of the start, where a joint is beyond its limit
            arm.observe(observation)
            observation, *_ = kitchen.step(arm.action(0.5 * (np.array(skill.ready) - observation[:7]), opened=False))
        begin = kitchen.data.qpos[:7].copy()
        for _ in range(20):
            arm.observe(observation)
            action = arm.action(np.zeros(7), opened=False)
            observation, *_ = kitchen.step(np.zeros(9) if weightless else action)
        return float(np.abs(kitchen.data.qpos[:7] - begin).max())

    arm, skill = Arm(), SKILLS["light switch"]
    assert sag(weightless=False) < 0.02
    assert sag(weightless=True) > 0.1


@pytest.mark.skipif(
    Version(mujoco.__version__) < Version("3.11"), reason="the script is made for MuJoCo 3.11: results/stack.md"
)
@pytest.mark.parametrize(
    ("order", "seed"),  # a skill is tried again where it fails, as under mujoco 4.0.0 the hinge cabinet of seed 0
    [
        (("microwave", "kettle", "light switch", "slide cabinet"), 0),
        (("top burner", "bottom burner", "kettle", "hinge cabinet"), 2),
    ],
)
def test_an_episode_does_its_tasks(kitchen: Kitchen, order: tuple[str, ...], seed: int) -> None:
    script, rng = KitchenScript(9, 0.05), np.random.default_rng(seed)
    episode: dict[str, Any] = script.begin(rng) | {"order": order}
    observation, _ = kitchen.reset(seed=seed)
    done, steps = 0.0, 0
    while not script.finished(episode) and steps < 450:
        action = script.act(observation[None], [rng], [episode])[0]
        assert np.abs(action).max() <= 1.0
        observation, reward, *_ = kitchen.step(action)
        done, steps = done + reward, steps + 1
    assert done == 4
    assert 150 < steps < 400
    assert set(kitchen.simulator.episode_task_completions) == set(order)


def test_actions_do_not_depend_on_neighbors(kitchen: Kitchen) -> None:
    script, rng = KitchenScript(9, 0.05), np.random.default_rng(1)
    observations = np.stack([kitchen.reset(seed=seed)[0] for seed in range(3)])
    episodes = [script.begin(rng) for _ in range(3)]
    alone = copy.deepcopy(episodes)
    for step in range(4):
        shifted = observations + 0.02 * step
        together = script.act(shifted, [np.random.default_rng(i) for i in range(3)], episodes)
        for i in range(3):
            action = script.act(shifted[i : i + 1], [np.random.default_rng(i)], [alone[i]])
            np.testing.assert_array_equal(action[0], together[i])
    assert episodes == alone
    assert all(episode["steps"] or episode["phase"] for episode in episodes)


def test_kitchens_pay_what_the_recipes_say() -> None:
    environments.register()
    for name in ("partial", "mixed"):
        recipe = recipes()[f"ld-agents/kitchen/{name}-v0"]
        assert recipe.env_id == f"ld_agents/Kitchen-{name}-v0"
        assert recipe.env_kwargs == (("max_episode_steps", 450),)
        assert gym.spec(recipe.env_id).max_episode_steps == 280
        assert "stands in" in recipe.description
