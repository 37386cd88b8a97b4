"""Situations of public bug reports around environments: another environment than the one that is meant, in silence."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction, TimeLimit

from ld_agents.evaluation import environments
from ld_agents.evaluation.eval_env import EvalEnvSpec, check_env
from ld_agents.evaluation.rollouts import evaluate


class Zero:
    """Acts with zeros, as many as there are observations."""

    def predict(self, observation: Any, **_: Any) -> tuple[Any, None]:
        return np.zeros((len(observation), 1), np.float32), None


# stable-baselines3 #1151: one environment behind every call of the factory


@pytest.mark.parametrize(
    "wrap",
    [lambda env: env, lambda env: TimeLimit(env, 150), lambda env: RescaleAction(env, -1, 1)],
    ids=["itself", "a fresh TimeLimit", "a fresh RescaleAction"],
)
def test_one_environment_for_all_is_refused(wrap: Any) -> None:
    env = gym.make("Pendulum-v1")
    with pytest.raises(ValueError, match="returned the same environment more than once, but 5 run side by side"):
        evaluate(Zero(), lambda: wrap(env), 5, seed=0)
    assert len(evaluate(Zero(), lambda: wrap(env), 2, seed=0, n_envs=1).lengths) == 2  # one alone disturbs no other


def test_two_environments_for_three_are_refused() -> None:
    envs = [gym.make("Pendulum-v1"), gym.make("Pendulum-v1")]
    turns = iter([0, 1, 0])
    with pytest.raises(ValueError, match="Make a new one at each call"):
        evaluate(Zero(), lambda: envs[next(turns)], 3, seed=0)


def test_an_id_and_an_environment_are_taken() -> None:
    expected = evaluate(Zero(), lambda: gym.make("Pendulum-v1"), 3, seed=5)
    assert expected.lengths == [200, 200, 200]
    env = gym.make("Pendulum-v1")
    assert evaluate(Zero(), env, 3, seed=5).returns == expected.returns
    env.reset(seed=0)  # it is still open, and still the caller's
    assert evaluate(Zero(), "Pendulum-v1", 3, seed=5).returns == expected.returns
    for wrong in (gym.make_vec("Pendulum-v1", 2), 7, None):
        with pytest.raises(TypeError, match="Pass a function that makes an environment"):
            evaluate(Zero(), wrong, 3, seed=5)  # type: ignore[arg-type]


# rsl_rl #33: a reward that is no number


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32("nan")])
def test_a_reward_that_is_no_number_ends_the_evaluation_in_its_step(value: float) -> None:
    class Broken(gym.RewardWrapper[Any, Any]):
        count = 0

        def reward(self, reward: Any) -> Any:
            self.count += 1
            return value if self.count == 13 else reward

    with pytest.raises(ValueError, match=r"returned the reward -?(nan|inf) in step 13 of the episode with reset seed"):
        evaluate(Zero(), lambda: Broken(gym.make("Pendulum-v1")), 2, seed=0)


# Minari #302: the wrappers of the recording


def recorded(env: gym.Env[Any, Any]) -> EvalEnvSpec:
    assert env.spec is not None
    spec = EvalEnvSpec.from_json(env.spec.to_json())
    assert spec is not None
    return spec


def test_wrappers_of_the_recording_are_built() -> None:
    pendulum = gym.make("Pendulum-v1")
    env = recorded(gym.wrappers.TimeAwareObservation(RescaleAction(pendulum, -1.0, 1.0))).make()
    assert env.action_space == spaces.Box(-1, 1, (1,), np.float32)
    assert env.observation_space.shape == (4,)
    env.reset(seed=0)
    plain = gym.make("Pendulum-v1")
    plain.reset(seed=0)
    for _ in range(3):
        seen, expected = env.step(np.array([0.5], np.float32)), plain.step(np.array([1.0], np.float32))
        np.testing.assert_array_equal(seen[0][:3], expected[0])
        assert seen[1] == expected[1]


class Louder(gym.RewardWrapper[Any, Any], gym.utils.RecordConstructorArgs):
    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.RewardWrapper.__init__(self, env)

    def reward(self, reward: Any) -> Any:
        return 2 * reward


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (Louder, r"test_reported_environments:Louder"),
        (gym.wrappers.NormalizeObservation, "NormalizeObservation"),  # its statistics are not in the metadata
        (gym.wrappers.NormalizeReward, "NormalizeReward"),
    ],
)
def test_other_wrappers_are_refused_by_name(wrap: Any, named: str) -> None:
    spec = recorded(wrap(gym.make("Pendulum-v1")))
    with pytest.raises(ValueError, match=rf"may not name the wrapper .*{named}, and without it this is another task"):
        spec.make()


def test_columns_are_stored_and_refused_where_there_are_none() -> None:
    spec = EvalEnvSpec("Pendulum-v1", max_episode_steps=200, observation_columns=(2, 0))
    env = spec.make()
    assert recorded(env) == spec
    plain = gym.make("Pendulum-v1")
    assert env.reset(seed=0)[0].tolist() == plain.reset(seed=0)[0][[2, 0]].tolist()
    with pytest.raises(ValueError, match="IndexError"):
        EvalEnvSpec("Pendulum-v1", observation_columns=(3,)).make()
    with pytest.raises(ValueError, match="has no columns to keep"):
        EvalEnvSpec("FrozenLake-v1", observation_columns=(0,)).make()


def test_spaces_are_compared_in_one_place() -> None:
    env = gym.make("Pendulum-v1")
    seen, torques = env.observation_space, env.action_space
    check_env(env, seen, torques, given=True)
    with pytest.raises(ValueError, match=r"takes actions in Box\(-2.*the data have Box\(-1.*pass the environment's"):
        check_env(env, seen, spaces.Box(-1, 1, (1,), np.float32), given=True)
    with pytest.warns(UserWarning, match="otherwise scores mean nothing"):  # perhaps only read off the actions
        check_env(env, seen, spaces.Box(-1, 1, (1,), np.float32))
    with pytest.raises(ValueError, match="the data have Box"):
        check_env(env, seen, spaces.Box(-2, 2, (2,), np.float32))
    with pytest.raises(ValueError, match="of which 3 numbers are used; the data have 4"):
        check_env(env, spaces.Box(-1, 1, (4,)), torques)


# gymnasium-robotics announces that later versions repair Adroit's reward


@pytest.mark.parametrize("task", ["Hammer", "Door", "Relocate"])
def test_adroit_pays_as_d4rl_whatever_the_simulator_pays(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def rewards() -> list[float]:
        env = environments.make(f"ld_agents/Adroit{task}-v0")
        env.reset(seed=3)
        env.action_space.seed(0)
        return [float(env.step(env.action_space.sample())[1]) for _ in range(5)]

    environments.register()
    expected, simulator = rewards(), type(environments.make(f"AdroitHand{task}-v1").unwrapped)
    step = simulator.step

    def repaired(self: Any, action: Any) -> Any:
        observation, reward, *rest = step(self, action)
        offset = observation[33:36] - observation[36:39]
        offset = {"Hammer": offset, "Door": observation[35:38], "Relocate": observation[30:33]}[task]
        return observation, reward - factor * np.linalg.norm(offset), *rest

    monkeypatch.setattr(simulator, "step", repaired)
    factor = 0.2
    np.testing.assert_allclose(rewards(), expected, rtol=0, atol=1e-12)
    factor = 0.4
    with pytest.raises(RuntimeError, match=rf"AdroitHand{task}-v1 pays -0.3 per meter"):
        rewards()


@pytest.mark.parametrize("kitchen", ["ld_agents/Kitchen-complete-v0", "ld_agents/Kitchen-mixed-v0", "FrankaKitchen-v1"])
def test_kitchens_do_not_ask_for_the_type_of_a_joint(kitchen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from mujoco 3.12 on, where gymnasium-robotics' own question raises an AssertionError."""
    environments.register()
    environments.register_robotics()
    from gymnasium_robotics.utils import mujoco_utils

    def fail(*_: Any) -> None:
        raise AssertionError

    for name in ("get_joint_qpos", "get_joint_qvel"):
        monkeypatch.setattr(mujoco_utils, name, fail)
    env = EvalEnvSpec(kitchen).make()
    robot: Any = env.unwrapped
    robot = getattr(robot, "simulator", robot).robot_env
    robot.robot_noise_ratio = 0.0
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(robot._get_obs(), np.concatenate([robot.data.qpos[:9], robot.data.qvel[:9]]))
    following, *_ = env.step(np.ones(9, np.float32))
    first, then = (o["observation"] if isinstance(o, dict) else o for o in (observation, following))
    assert (np.abs(then - first)[:7] > 1e-3).all()  # the arm moves
    env.close()
