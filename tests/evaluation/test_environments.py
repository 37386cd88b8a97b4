"""D4RL's tasks on today's simulators: physics, maps, rewards and ends of episodes against D4RL's rules."""

import json
import math
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from ld_agents.evaluation import environments
from ld_agents.evaluation.environments import AntMaze, Kitchen

pytest.importorskip("gymnasium_robotics")

STEPS = {
    "ld_agents/AntMaze-umaze-v0": 700,
    "ld_agents/AntMaze-medium-v0": 1000,
    "ld_agents/AntMaze-large-v0": 1000,
    "ld_agents/AdroitPen-v0": 100,
    "ld_agents/AdroitHammer-v0": 200,
    "ld_agents/AdroitDoor-v0": 200,
    "ld_agents/AdroitRelocate-v0": 200,
    "ld_agents/Kitchen-complete-v0": 280,
    "ld_agents/Kitchen-partial-v0": 280,
    "ld_agents/Kitchen-mixed-v0": 280,
    "ld_agents/CarRacing-v0": 1000,
}


@pytest.fixture(autouse=True)
def registered() -> None:
    environments.register()


def test_registering_twice_changes_nothing_and_imports_no_simulator() -> None:
    code = (
        "import json, sys, warnings, gymnasium, stable_baselines3; warnings.simplefilter('error', UserWarning);"
        "from ld_agents.evaluation import environments as e; e.register(); e.register();"
        "assert not {'mujoco', 'gymnasium_robotics'} & set(sys.modules);"
        "print(json.dumps({k: s.max_episode_steps for k, s in gymnasium.registry.items() if 'ld_agents/' in k}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == STEPS


@pytest.mark.parametrize(
    ("name", "observations", "actions"),
    [("AntMaze-umaze", 29, 8), ("AdroitPen", 45, 24), ("AdroitHammer", 46, 26), ("AdroitDoor", 39, 28),
     ("AdroitRelocate", 39, 30), ("Kitchen-mixed", 59, 9)],
)  # fmt: skip
def test_sizes_seeds_and_specs(name: str, observations: int, actions: int) -> None:
    env = gym.make(f"ld_agents/{name}-v0")  # with Gymnasium's passive checker
    assert env.observation_space.shape == (observations,)
    assert env.action_space.shape == (actions,)
    assert env.action_space.low.tolist() == [-1] * actions  # type: ignore[attr-defined]
    action = np.full(actions, 0.3, np.float32)
    runs = []
    for seed in (5, 5, 6):
        first, _ = env.reset(seed=seed)
        runs.append(np.stack([first, *(env.step(action)[0] for _ in range(3))]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-6
    assert env.observation_space.contains(runs[0][0])
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    np.testing.assert_array_equal(again.reset(seed=5)[0], runs[0][0])
    env.close()
    again.close()


# -- AntMaze -------------------------------------------------------------------------------------------------------


def test_the_ant_has_the_physics_of_d4rl() -> None:
    env = AntMaze("umaze")
    assert env.model.opt.timestep == 0.02
    assert env.simulator.frame_skip == 5
    assert env.model.actuator_gear[:, 0].tolist() == [30] * 8
    ant = [i for i in range(env.model.ngeom) if not env.model.geom(i).name.startswith("wall")]
    np.testing.assert_allclose(env.model.geom_solimp[ant, :3], [[0.8, 0.8, 0.01]] * len(ant))
    observation, _ = env.reset(seed=1)
    np.testing.assert_array_equal(observation, np.concatenate([env.data.qpos, env.data.qvel]))
    # D4RL starts within 0.1 of the rest pose in every coordinate, at the origin.
    assert np.abs(observation[:2]).max() <= 0.1
    assert 0.65 <= observation[2] <= 0.85
    env.close()


@pytest.mark.parametrize(
    ("maze", "rows", "columns", "goal"),
    [("umaze", 5, 5, (0, 8)), ("medium", 8, 8, (20, 20)), ("large", 9, 12, (32, 24))],
)
def test_walls_and_goals_are_where_d4rl_has_them(maze: str, rows: int, columns: int, goal: tuple[float, float]) -> None:
    env = AntMaze(maze)
    goals = np.array([(env.reset(seed=seed), env.goal)[1] for seed in range(400)]) - goal
    # The center of the cell plus U(0, 1) plus U(0, 0.5), on either axis: mean 0.75, variance (1 + 0.25) / 12.
    assert goals.min() >= 0
    assert goals.max() <= 1.5
    np.testing.assert_allclose(goals.mean(0), 0.75, atol=0.06)
    np.testing.assert_allclose(goals.std(0), math.sqrt(1.25 / 12), atol=0.04)
    assert abs(np.corrcoef(goals.T)[0, 1]) < 0.2
    walls = {
        tuple(env.model.geom(i).pos): tuple(env.model.geom(i).size)
        for i in range(env.model.ngeom)
        if env.model.geom(i).name.startswith("wall")
    }
    assert set(walls.values()) == {(2.0, 2.0, 1.0)}
    centers = {(x, y) for x, y, _ in walls}
    # The start cell is (1, 1), so the frame's corner is 4 m before the origin; the outer wall is closed.
    border = {(4 * j - 4.0, 4 * i - 4.0) for i in range(rows) for j in range(columns) if i in (0, rows - 1)}
    border |= {(4 * j - 4.0, 4 * i - 4.0) for i in range(rows) for j in range(columns) if j in (0, columns - 1)}
    assert border <= centers
    assert (0.0, 0.0) not in centers
    assert tuple(map(float, goal)) not in centers
    if maze == "umaze":
        assert centers - border == {(0.0, 4.0), (4.0, 4.0)}
    env.close()


def test_reward_and_end_within_half_a_meter_of_the_goal() -> None:
    env = gym.make("ld_agents/AntMaze-umaze-v0", goal=(0, 8))
    ant: Any = env.unwrapped
    outcomes = {}
    for offset in (0.3, 0.45, 0.55, 0.8):
        env.reset(seed=0)
        pose = ant.data.qpos.copy()
        pose[:2] = [offset, 8.0]
        ant.simulator.set_state(pose, np.zeros(14))
        observation, reward, terminated, truncated, info = env.step(np.zeros(8, np.float32))
        inside = math.dist(observation[:2], (0, 8)) <= 0.5
        assert (reward, terminated, truncated, info["success"]) == (float(inside), inside, False, inside)
        outcomes[offset] = inside
    assert outcomes[0.3] is True
    assert outcomes[0.8] is False
    env.close()


def test_a_wall_stops_the_ant_and_starts_can_be_chosen() -> None:
    env = AntMaze("umaze")
    moved, _ = env.reset(seed=3, options={"start": (8.0, 4.0)})
    still, _ = env.reset(seed=3)
    np.testing.assert_allclose(moved[:2] - still[:2], [8, 4])
    np.testing.assert_array_equal(moved[2:], still[2:])
    # Thrown at the wall between the corridors (y from 2 to 6 at x = 0), the ant stays on its side.
    velocity = np.zeros(14)
    velocity[1] = 15.0
    env.simulator.set_state(env.data.qpos.copy(), velocity)
    highest = max(env.step(np.zeros(8, np.float32))[0][1] for _ in range(20))
    assert 0.4 < highest < 2.0
    goal = AntMaze("umaze", goal=(1.5, 0.0))
    assert goal.goal.tolist() == [1.5, 0.0]
    goal.reset(seed=0, options={"goal": (3.0, 3.0)})
    assert goal.goal.tolist() == [1.5, 0.0]
    env.reset(seed=0, options={"goal": (3.0, 3.0)})
    assert env.goal.tolist() == [3.0, 3.0]
    for made in (env, goal):
        made.close()


def test_wrong_names() -> None:
    with pytest.raises(ValueError, match=r"Unknown maze 'tiny'.*'umaze', 'medium', 'large'"):
        AntMaze("tiny")
    with pytest.raises(ValueError, match=r"Unknown task 'pen'.*'Pen'"):
        environments.Adroit("pen")


# -- Adroit --------------------------------------------------------------------------------------------------------


def d4rl_reward(task: str, env: Any) -> float:
    """D4RL's reward, written down from its formulas, from the state of the simulator."""
    data, model = env.data, env.model

    def site(name: str) -> Any:
        return data.site(name).xpos

    def distance(a: Any, b: Any) -> float:
        return float(np.linalg.norm(a - b))

    body = data.body("Object").xpos if task != "Door" else None
    if task == "Pen":
        similarity = float(
            np.dot(
                (site("object_top") - site("object_bottom")) / env.simulator.pen_length,
                (site("target_top") - site("target_bottom")) / env.simulator.tar_length,
            )
        )
        away = distance(body, site("eps_ball"))
        bonus = 10 * (away < 0.075 and similarity > 0.9) + 50 * (away < 0.075 and similarity > 0.95)
        return similarity - away + bonus - 5 * (body[2] < 0.075)
    if task == "Hammer":
        nail, goal, tool = site("S_target"), site("nail_goal"), site("tool")
        reward = -0.1 * distance(site("S_grasp"), body) - distance(tool, nail) - 10 * distance(nail, goal)
        reward -= 1e-2 * float(np.linalg.norm(data.qvel))
        reward += 2 * (body[2] > 0.04 and tool[2] > 0.04)
        return reward + 25 * (distance(nail, goal) < 0.02) + 75 * (distance(nail, goal) < 0.01)
    if task == "Door":
        hinge = float(data.qpos[model.joint("door_hinge").qposadr[0]])
        reward = -0.1 * distance(site("S_grasp"), site("S_handle")) - 0.1 * (hinge - 1.57) ** 2
        reward -= 1e-5 * float(np.sum(data.qvel**2))
        return reward + 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
    palm, target = site("S_grasp"), site("target")
    reward = -0.1 * distance(palm, body)
    if body[2] > 0.04:
        reward += 1 - 0.5 * distance(palm, target) - 0.5 * distance(body, target)
    return reward + 10 * (distance(body, target) < 0.1) + 20 * (distance(body, target) < 0.05)


@pytest.mark.parametrize("task", ["Pen", "Hammer", "Door", "Relocate"])
def test_rewards_are_those_of_d4rl(task: str) -> None:
    env = gym.make(f"ld_agents/Adroit{task}-v0")
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    adroit: Any = env.unwrapped
    for t in range(40):
        if task == "Door" and t in (10, 20, 30):  # open the door, so that the bonuses are seen
            state = adroit.simulator.get_env_state()
            state["qpos"][adroit.model.joint("door_hinge").qposadr[0]] = {10: 0.5, 20: 1.2, 30: 1.5}[t]
            adroit.simulator.set_env_state(state)
        action = rng.uniform(-1, 1, env.action_space.shape or ()).astype(np.float32)
        _, reward, terminated, _, _ = env.step(action)
        assert float(reward) == pytest.approx(d4rl_reward(task, adroit), abs=1e-9)
        if terminated:
            break
    env.close()


def test_a_dropped_pen_ends_the_episode() -> None:
    env = gym.make("ld_agents/AdroitPen-v0")
    env.reset(seed=0)
    simulator: Any = env.unwrapped
    simulator = simulator.simulator
    pose = simulator.data.qpos.copy()
    pose[-5] += 0.2  # the pen beside the hand
    simulator.set_state(pose, simulator.data.qvel.copy())
    steps = 0
    while True:
        observation, reward, terminated, truncated, _ = env.step(np.zeros(24, np.float32))
        steps += 1
        assert terminated == (observation[26] < 0.075)
        if terminated or truncated:
            break
    assert terminated
    assert float(reward) < -4
    assert 10 < steps < 30  # 0.17 m in free fall take 19
    env.close()


@pytest.mark.parametrize(("task", "needed"), [("Pen", 20), ("Door", 25)])
def test_success_takes_more_steps_at_the_goal_than_needed(
    task: str, needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environments.Adroit(task)
    observation, _ = env.reset(seed=0)
    achieved = {"success": np.True_}
    monkeypatch.setattr(env.simulator, "step", lambda action: (observation, 1.0, False, False, achieved))
    infos = [env.step(np.zeros(1))[4] for _ in range(needed + 1)]
    assert [info["success"] for info in infos] == [False] * needed + [True]
    achieved["success"] = np.False_
    assert env.step(np.zeros(1))[4] == {"success": True, "goal_achieved": False}
    env.reset(seed=0)
    assert env.step(np.zeros(1))[4]["success"] is False
    env.close()


# -- Kitchen -------------------------------------------------------------------------------------------------------


def test_a_task_pays_once_and_four_end_the_episode() -> None:
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import OBS_ELEMENT_GOALS, OBS_ELEMENT_INDICES

    env = gym.make("ld_agents/Kitchen-complete-v0")
    kitchen: Any = env.unwrapped
    observation, info = env.reset(seed=0)
    assert info == {"success": False}
    # The joints' positions carry noise of the sensors, which is small.
    np.testing.assert_allclose(observation[18:39], kitchen.data.qpos[9:], atol=1e-4)
    np.testing.assert_allclose(observation[:9], kitchen.data.qpos[:9], atol=2e-3)
    rewards, still = [], np.zeros(9)
    for task in ("slide cabinet", None, "light switch", "kettle", "microwave"):
        if task is not None:
            pose = kitchen.data.qpos.copy()
            pose[OBS_ELEMENT_INDICES[task]] = OBS_ELEMENT_GOALS[task]
            kitchen.simulator.robot_env.set_state(pose, np.zeros(29))
        _, reward, terminated, _, info = env.step(still)
        rewards.append(reward)
        assert terminated == info["success"] == (task == "microwave")
    assert rewards == [1, 0, 1, 1, 1]
    env.close()


def test_tasks_of_the_kitchens() -> None:
    env = Kitchen(["microwave"])
    assert set(env.simulator.goal) == {"microwave"}
    env.close()
    environments.register()
    tasks = {name: gym.spec(f"ld_agents/Kitchen-{name}-v0").kwargs["tasks"] for name in ("partial", "mixed")}
    assert tasks["partial"] == ["microwave", "kettle", "light switch", "slide cabinet"]
    assert tasks["mixed"] == ["microwave", "kettle", "bottom burner", "light switch"]
