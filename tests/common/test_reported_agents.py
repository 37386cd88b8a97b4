"""Situations of public bug reports around agents: lost trainings, refused files, silence."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
)
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from conftest import BOX, Drift, Trained, make_agent, saved, seen_by, weights
from ld_agents import BC, LDCQ, OfflineDataset

# gym #3107, stable-baselines3 #898: every space that is accepted loads again


def noise(n: int = 200, observation_space: Any = None, action_space: Any = None, **changes: Any) -> OfflineDataset:
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.integers(0, 9, (n, 4)),
        "actions": rng.integers(-1, 2, (n, 1)),
        "rewards": rng.normal(size=n),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(n) % 50 == 49,
        "observation_space": observation_space,
        "action_space": action_space,
    }
    return OfflineDataset(**arrays | changes)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int16, np.float16, np.float64])
def test_every_space_that_is_accepted_loads_again(dtype: Any) -> None:
    spaces_of_data = spaces.Box(0, 200, (4,), dtype), spaces.Box(0, 100, (1,), dtype)
    actions = np.arange(200)[:, None] / 2
    data = noise(observation_space=spaces_of_data[0], action_space=spaces_of_data[1], actions=actions)
    agent = BC("MlpPolicy", data, seed=0, device="cpu", preset="fast", hidden=(8,)).learn(5)
    loaded = BC.load(io.BytesIO(saved(agent)))
    assert (loaded.observation_space, loaded.action_space) == spaces_of_data
    observations = data.observations.numpy().astype(dtype)
    actions = agent.predict(observations, deterministic=True)[0]
    assert actions.dtype == dtype
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], actions)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_integer_actions_are_rounded(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(action_space=spaces.Box(0, 10, (1,), dtype), actions=np.arange(200)[:, None] % 11)
    agent = BC("MlpPolicy", data, seed=0, device="cpu", preset="fast", hidden=(8,))
    wanted = torch.tensor([[0.4], [0.6], [2.9], [9.7]])
    monkeypatch.setattr(agent.policy, "act", lambda *_: (wanted / 5 - 1, None))
    assert agent.predict(np.zeros((4, 4)))[0].ravel().tolist() == [0, 1, 3, 10]


def test_kinds_that_are_not_learned_from_are_left_out_of_the_saved_space() -> None:
    space = spaces.Dict(pos=spaces.Box(-1, 1, (4,)), mode=spaces.Discrete(4), seen=spaces.Box(0, 255, (2, 2), np.uint8))
    data = noise(observation_space=space, observation_keys=("pos",))
    agent = BC("MultiInputPolicy", data, seed=0, device="cpu", preset="fast", hidden=(8,)).learn(2)
    loaded = BC.load(io.BytesIO(saved(agent)))
    observation = {"pos": np.ones(4, np.float32), "mode": 3, "seen": np.zeros((2, 2), np.uint8)}
    np.testing.assert_array_equal(loaded.predict(observation)[0], agent.predict(observation)[0])


# stable-baselines3 #1109: names with dots


@pytest.mark.parametrize("prefix", ["bc.v1", "a.b.c", "v1.0", "plain"])
def test_checkpoints_are_found_by_the_name_without_zip(prefix: str, trained: Trained, tmp_path: Path) -> None:
    agent = trained("BC")
    agent.learn(10, callback=CheckpointCallback(10, str(tmp_path), name_prefix=prefix))
    loaded = BC.load(tmp_path / f"{prefix}_10_steps")
    assert loaded.num_timesteps == 10
    (tmp_path / prefix).mkdir()  # a folder of that name is no saved agent
    agent.save(tmp_path / f"{prefix}.zip")
    assert BC.load(str(tmp_path / prefix)).num_timesteps == 10


# deep-rl-class #33: advice that works


def test_the_advice_for_an_agent_without_data_works(trained: Trained, dataset: OfflineDataset) -> None:
    blob = saved(trained("BC"))
    with pytest.raises(ValueError, match=r"Load it with one: BC.load\(path, dataset=data\).*user arrays") as error:
        BC.load(io.BytesIO(blob)).learn(1)
    assert "dataset='" not in str(error.value)
    BC.load(io.BytesIO(blob), dataset=dataset).learn(1)


# VecNormalize and the options of callbacks


def normalized(**options: bool) -> VecNormalize:
    return VecNormalize(DummyVecEnv([Drift]), **options)


@pytest.mark.parametrize(
    "make",
    [
        normalized,
        lambda: normalized(norm_obs=False),
        lambda: VecMonitor(normalized()),
        lambda: gym.wrappers.NormalizeObservation(Drift()),
        lambda: DummyVecEnv([lambda: gym.wrappers.NormalizeReward(Drift())]),
    ],
)
def test_environments_that_normalize_are_refused(make: Any, trained: Trained) -> None:
    agent = trained("BC")
    with pytest.raises(ValueError, match=r"Normalize\w* is around the environment, but the agent learned from"):
        agent.set_env(make())
    if isinstance(env := make(), gym.Env):
        env = DummyVecEnv([lambda: make()])
    inner = EvalCallback(env, eval_freq=5, n_eval_episodes=1, verbose=0, warn=False)
    for callback in (inner, [inner], CallbackList([EveryNTimesteps(5, inner)])):
        with pytest.raises(ValueError, match="Leave it out"):
            agent.learn(5, callback=callback)
    agent.set_env(DummyVecEnv([Drift]))
    agent.learn(5, callback=EvalCallback(DummyVecEnv([Drift]), eval_freq=5, n_eval_episodes=1, verbose=0, warn=False))


@pytest.mark.parametrize("option", ["save_vecnormalize", "save_replay_buffer"])
def test_what_a_callback_cannot_save_is_said(option: str, trained: Trained, tmp_path: Path) -> None:
    callback = CheckpointCallback(5, str(tmp_path), **{option: True})
    for given in (callback, [callback]):
        with pytest.warns(UserWarning, match=rf"CheckpointCallback\({option}=True\) saves nothing"):
            trained("BC").learn(5, callback=given)


def test_a_bounded_environment_is_refused_with_advice(trained: Trained) -> None:
    class Bounded(Drift):
        observation_space = spaces.Box(-500, 500, (3,), np.float32)

    with pytest.raises(ValueError, match="pass its observation_space and action_space to OfflineDataset"):
        trained("BC").set_env(Bounded())


# stable-baselines3 #2137: torch.compile


@pytest.mark.parametrize("part", ["policy", "actor", "both"])
def test_a_compiled_agent_is_saved_as_if_it_were_not(part: str, trained: Trained) -> None:
    agent, expected = trained("BC"), weights(trained("BC"))
    if part != "policy":
        agent.policy.actor = torch.compile(agent.policy.actor, backend="eager")  # type: ignore[attr-defined]
    if part != "actor":
        agent.policy = torch.compile(agent.policy, backend="eager")  # type: ignore[assignment]
    loaded = BC.load(io.BytesIO(saved(agent)))
    assert weights(loaded).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights(loaded).items())


# clients of SB3's interface


def test_the_policy_is_a_module_that_can_be_called_and_traced(trained: Trained) -> None:
    agent = trained("BC")
    observations = seen_by(agent, 5)
    actions = agent.predict(observations, deterministic=True)[0]
    given = torch.from_numpy(observations)
    np.testing.assert_allclose(agent.policy(given, deterministic=True).detach(), actions, atol=1e-6)
    traced = torch.jit.trace(agent.policy.eval(), given[:2], check_trace=False)
    np.testing.assert_allclose(traced(given).detach(), actions, atol=1e-6)


def test_forward_of_every_agent_gives_actions(name: str, trained: Trained) -> None:
    agent = trained(name)
    with torch.no_grad():
        actions = agent.policy(torch.from_numpy(seen_by(agent, 3)))
    assert all(BOX.contains(action) for action in actions.numpy())


def test_load_takes_a_seed(trained: Trained) -> None:
    blob = saved(trained("LDCQ"))
    observations = seen_by(trained("LDCQ"), 4)
    one, same, other = (LDCQ.load(io.BytesIO(blob), seed=seed) for seed in (1, np.int64(1), 2))
    actions = one.predict(observations)[0]
    np.testing.assert_array_equal(same.predict(observations)[0], actions)
    assert not np.array_equal(other.predict(observations)[0], actions)


def test_log_every_n_timesteps(dataset: OfflineDataset) -> None:
    class Kept(KVWriter):
        lines: list[tuple[int, set[str]]]

        def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
            self.lines.append((step, set(key_values)))

        def close(self) -> None:
            pass

    kept = Kept()
    kept.lines = []
    agent = make_agent("BC", dataset)
    agent.set_logger(Logger(folder=None, output_formats=[kept]))
    agent.learn(20, callback=LogEveryNTimesteps(5), log_interval=None)
    assert [step for step, _ in kept.lines] == [5, 10, 15, 20]
    assert all("train/loss" in names for _, names in kept.lines)


@pytest.mark.parametrize("number", [np.int64(3), np.int32(3), np.uint8(3)])
def test_numbers_of_numpy_are_numbers(number: Any, dataset: OfflineDataset) -> None:
    agent = make_agent("BC", dataset, seed=number, steps=number, learning_rate=np.float64(1e-3))
    assert (
        BC.load(io.BytesIO(saved(agent))).config()
        == make_agent("BC", dataset, seed=3, steps=3, learning_rate=1e-3).config()
    )
