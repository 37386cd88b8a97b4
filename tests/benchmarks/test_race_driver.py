"""CarRacing in small frames, and the scripted driver that its data are recorded with."""

from __future__ import annotations

from importlib.util import find_spec

import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ld_agents import evaluate, load_dataset
from ld_agents.evaluation.car_racing import half_size
from ld_agents.evaluation.eval_env import EvalEnvSpec
from recording.making import make
from recording.race_driver import RaceDriver
from recording.recipes import Recipe
from recording.recorder import make_env

needs_box2d = pytest.mark.skipif(find_spec("Box2D") is None, reason="the extra box2d is not installed")


def test_frames_are_halved_by_means_of_four_pixels() -> None:
    frame = np.array([[0, 1, 255, 255], [1, 0, 255, 254], [9, 9, 0, 0], [9, 10, 0, 1]], np.uint8)[..., None]
    assert half_size(frame)[..., 0].tolist() == [[1, 255], [9, 0]]  # 0.5 is rounded up, 254.75 and 9.25 are not half
    assert half_size(frame).dtype == np.uint8


def drive(driver: RaceDriver, steps: int, seed: int = 100) -> tuple[float, np.ndarray, np.ndarray]:
    """Return, actions and the last frame of the first steps of an episode."""
    env, rng, total, actions = make_env("ld_agents/CarRacing-v0"), np.random.default_rng(seed), 0.0, []
    episode = driver.begin(rng)
    frame, _ = env.reset(seed=seed)
    driver.start(env, episode)
    for _ in range(steps):
        action = driver.act(frame[None], [rng], [episode])[0]
        actions.append(action)
        frame, reward, *_ = env.step(np.array([action[0], *(action[1:] + 1) / 2], np.float32))
        total += float(reward)
    env.close()
    return total, np.array(actions), frame


@needs_box2d
def test_the_driver_stays_on_the_road_and_its_noise_is_that_of_the_episode() -> None:
    fast, actions, frame = drive(RaceDriver(), 200)
    assert fast > 150  # a tile pays about 3.5, a step costs 0.1
    assert (np.abs(actions) <= 1).all()
    assert frame.shape == (48, 48, 3)
    again, same, _ = drive(RaceDriver(), 200)
    assert (again, same.tolist()) == (fast, actions.tolist())
    slow, slower_actions, _ = drive(RaceDriver(slowest=20.0, fastest=20.0), 200)
    assert slow < 0.6 * fast
    assert slower_actions[:, 1].mean() < actions[:, 1].mean()  # less gas
    noise = RaceDriver(noise=0.2).begin(np.random.default_rng(0))["noise"]
    assert 0 < noise < 0.2


@needs_box2d
def test_recorded_frames_replay_and_the_evaluation_environment_shows_the_same(folder: object) -> None:
    recipe = Recipe(
        "ld_agents/CarRacing-v0",
        "recorded",
        "A driver.",
        [RaceDriver(noise=0.2, slowest=30.0, fastest=65.0)],
        steps=100,
        env_kwargs=(("max_episode_steps", 10),),
    )
    make("test/carracing-v0", recipe, show_progress=False)
    data = load_dataset("test/carracing-v0")
    assert data.info.replay_check is not None
    assert data.info.replay_check["passed"]
    assert data.info.replay_check["max_next_state_error"] == 0
    assert (data.n_steps, data.n_episodes) == (100, 10)
    assert data.observation_rows.dtype == torch.uint8
    assert data.observation_space == spaces.Box(0, 255, (48, 48, 3), np.uint8)
    stored = minari.load_dataset("test/carracing-v0")
    np.testing.assert_array_equal(stored[0].observations[:10], data.observations[:10].numpy())  # not as lossy JPEG
    (about,) = stored.storage.get_episode_metadata([0])
    env = data.make_eval_env()
    assert env.observation_space == data.observation_space
    np.testing.assert_array_equal(env.reset(seed=int(about["seed"]))[0], data.observations[0].numpy())
    env.close()


@needs_box2d
def test_an_agent_of_frames_acts_in_the_environment() -> None:
    class Gas:
        def predict(self, observation: np.ndarray, **_: object) -> tuple[np.ndarray, None]:
            assert observation.shape[1:] == (48, 48, 3)
            assert observation.dtype == np.uint8
            return np.tile(np.array([0, 0.1, 0], np.float32), (len(observation), 1)), None

    spec = EvalEnvSpec("ld_agents/CarRacing-v0", max_episode_steps=20)
    outcome = evaluate(Gas(), spec.make, 2, seed=0)
    assert outcome.lengths == [20, 20]
    assert outcome.successes == [False, False]
    assert min(outcome.returns) > 0
