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
from ld_agents.dataset import DatasetInfo
from ld_agents.sources import environments, families
from ld_agents.sources.replay import replay_check

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
    check = replay_check(as_file(tmp_path, f"{robot.lower()}-medium-v2", arrays), n_steps=200)
    assert check is not None
    assert check["passed"]
    # Walker2d thrown about by random actions is often faster than what it observes of its velocities.
    assert 30 < check["steps"] <= 200
    assert check["quantile_0.99_next_state_error"] < 1e-4
    # A reward and an action that are wrong in every fiftieth step.
    for name in ("rewards", "actions"):
        wrong = {**arrays, name: arrays[name].copy()}
        wrong[name][::50] = -wrong[name][::50]
        wrong[name][::50] += 0.5
        folder = tmp_path / name
        folder.mkdir()
        other = replay_check(as_file(folder, f"{robot.lower()}-medium-v2", wrong), n_steps=1_200)
        assert other is not None
        assert not other["passed"]
        assert other["median_reward_error"] < 1e-4


def test_walker2d_v5_is_another_simulator(tmp_path: Path) -> None:
    check = replay_check(as_file(tmp_path, "walker2d-medium-v2", record(gym.make("Walker2d-v5"), 3_000)))
    assert check is not None
    assert not check["passed"]  # more friction, and no pay for unhealthy steps
    assert check["median_next_state_error"] < 1e-5
    assert check["quantile_0.99_next_state_error"] > 0.05


def test_antmaze_files(tmp_path: Path) -> None:
    arrays = record(gym.make("ld_agents/AntMaze-umaze-v0"), 300)
    data = as_file(tmp_path, "antmaze-umaze-v2", arrays)
    check = replay_check(data)
    assert check is not None
    assert check["passed"]
    assert check["steps"] == 299  # what follows the last one is not known
    moved = {**arrays, "observations": arrays["observations"] + np.eye(29)[15] * 0.3}  # all a little faster
    assert replay_check(as_file(tmp_path, "antmaze-umaze-diverse-v2", moved))["passed"] is False  # type: ignore[index]


def test_point_mazes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = load_dataset("ld-agents/pointmaze/umaze-10k-v0")
    check = replay_check(data)
    assert check is not None
    assert check["passed"]
    assert check["steps"] == 500


def test_hidden_states_are_not_checked() -> None:
    for name in ("pen-human-v1", "my-own-data"):
        arrays = (np.zeros((3, 45)), np.zeros((3, 24)), np.zeros(3), [False] * 3, [False, False, True])
        info = DatasetInfo(id=name, eval_env=families.file_environment("pen"))
        assert replay_check(OfflineDataset(*arrays, info=info)) is None
