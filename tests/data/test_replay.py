"""The replay check of other people's data: passes in the simulator that recorded them, fails in one that moves or pays
differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest

from ld_agents import OfflineDataset, load_dataset
from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.data.replay import replay_check
from ld_agents.evaluation import environments
from ld_agents.evaluation.eval_env import file_environment

pytest.importorskip("gymnasium_robotics")


def record(env: gym.Env[Any, Any], n_steps: int) -> dict[str, np.ndarray]:
    """Random actions in an environment, in D4RL's layout."""
    env.action_space.seed(0)
    rows: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    observation, _ = env.reset(seed=0)
    for _ in range(n_steps):
        action = env.action_space.sample()
        after, reward, terminal, timeout, _ = env.step(action)
        for name, value in zip(rows, (observation, action, reward, terminal, timeout), strict=True):
            rows[name].append(value)
        observation = env.reset()[0] if terminal or timeout else after
    rows["timeouts"][-1] = True
    return {name: np.array(values) for name, values in rows.items()}


def as_file(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> OfflineDataset:
    with h5py.File(folder / f"{name}.hdf5", "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return load_dataset(folder / f"{name}.hdf5")


@pytest.mark.parametrize("robot", ["HalfCheetah", "Hopper", "Walker2d"])
def test_locomotion_files(tmp_path: Path, robot: str) -> None:
    arrays = record(environments.make(f"{robot}-v4"), 1_200)
    check = replay_check(as_file(tmp_path, f"{robot.lower()}-medium-v2", arrays), n_steps=400)
    assert check is not None
    assert check["passed"]
    # Walker2d thrown about by random actions is often faster than what it observes of its velocities.
    assert 50 < check["steps"] <= 400
    assert check["next_state_error"] < 1e-4
    # A reward or an action that is wrong in every fiftieth step.
    for name in ("rewards", "actions"):
        wrong = {**arrays, name: arrays[name].copy()}
        wrong[name][::50] = -wrong[name][::50]
        wrong[name][::50] += 0.5
        wrong["actions"] = wrong["actions"].clip(-1, 1)  # what the environment takes
        folder = tmp_path / name
        folder.mkdir()
        other = replay_check(as_file(folder, f"{robot.lower()}-medium-v2", wrong), n_steps=1_200)
        assert other is not None
        assert not other["passed"]
        assert (other["next_state_error"] < 1e-4) == (name == "rewards")


def test_walker2d_v5_is_another_simulator(tmp_path: Path) -> None:
    check = replay_check(as_file(tmp_path, "walker2d-medium-v2", record(gym.make("Walker2d-v5"), 3_000)), n_steps=1_000)
    assert check is not None
    assert not check["passed"]  # more friction, and no pay for unhealthy steps
    assert check["next_state_error"] > 0.05


def test_antmaze_files(tmp_path: Path) -> None:
    arrays = record(gym.make("ld_agents/AntMaze-umaze-v0"), 300)
    arrays["rewards"][::7] = 1.0  # of a goal that no evaluation knows
    check = replay_check(as_file(tmp_path, "antmaze-umaze-v2", arrays))
    assert check is not None
    assert check["passed"]
    assert "other_reward_error" not in check
    moved = {**arrays, "observations": arrays["observations"] + np.eye(29)[15] * 0.3}  # all a little faster
    other = replay_check(as_file(tmp_path, "antmaze-umaze-diverse-v2", moved))
    assert other is not None
    assert not other["passed"]


@pytest.fixture
def umaze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OfflineDataset:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return load_dataset("ld-agents/pointmaze/umaze-10k-v0")


def with_rewards(data: OfflineDataset, rewards: Any, info: DatasetInfo) -> OfflineDataset:
    ends = data.episode_ends - 1
    timeouts = np.zeros(data.n_steps, bool)
    timeouts[ends] = True
    arrays = (data.observations.numpy(), data.actions.numpy(), rewards, data.terminals.numpy(), timeouts)
    return OfflineDataset(*arrays, observation_keys=data.observation_keys, info=info)


def test_rewards_of_point_mazes(umaze: OfflineDataset) -> None:
    check = replay_check(umaze)
    assert check is not None
    assert check["passed"]
    assert check["steps"] == 500
    rewards = umaze.rewards.numpy()
    assert 0.02 < rewards.mean() < 0.3
    early = np.concatenate([[0], rewards[:-1]])  # of the observation before the action, as D4RL pays
    file = DatasetInfo(id="maze2d-umaze-v1", provenance="d4rl-file", eval_env=umaze.info.eval_env)
    for values, info, passed in (
        (rewards, umaze.info, True),
        (early, umaze.info, False),
        (early, file, True),
        (rewards, file, False),
        (np.roll(rewards, 50), umaze.info, False),
        (0 * rewards, umaze.info, False),
    ):
        other = replay_check(with_rewards(umaze, values, info), n_steps=2_000)
        assert other is not None
        assert other["next_state_error"] < 1e-4
        assert other["passed"] is passed


def test_hidden_states_are_not_checked() -> None:
    for name in ("pen-human-v1", "my-own-data"):
        arrays = (np.zeros((3, 45)), np.zeros((3, 24)), np.zeros(3), [False] * 3, [False, False, True])
        info = DatasetInfo(id=name, eval_env=file_environment("pen"))
        assert replay_check(OfflineDataset(*arrays, info=info)) is None
