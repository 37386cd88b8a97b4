"""The evaluation loop against environments whose returns can be worked out by hand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from ld_agents.evaluation.rollouts import episode_seed, evaluate
from ld_agents.evaluation.scores import first_contact_return

LENGTH = 10
GOAL = 4


class Corridor(gym.Env[np.ndarray, np.ndarray]):
    """A walk on the integers for LENGTH steps; 1 for each step that ends at GOAL or beyond. Observes place and time."""

    observation_space = spaces.Box(-100, 100, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, random_start: bool = False, random_length: bool = False) -> None:
        self.random_start = random_start
        self.random_length = random_length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(-3, 3)) if self.random_start else 0
        self.length = int(self.np_random.integers(3, 15)) if self.random_length else LENGTH
        self.time = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place += int(np.sign(action[0]))
        self.time += 1
        at_goal = self.place >= GOAL
        return self._observation(), float(at_goal), False, self.time >= self.length, {"success": at_goal}

    def _observation(self) -> np.ndarray:
        return np.array([self.place, self.time], dtype=np.float32)


class DictCorridor(gym.ObservationWrapper):
    """The corridor with the observation in a dictionary, and a goal that is a dictionary too, as Kitchen's."""

    def __init__(self) -> None:
        super().__init__(Corridor(random_start=True))
        goals = spaces.Dict({"place": spaces.Box(-100, 100, (1,))})
        self.observation_space = spaces.Dict({"observation": Corridor.observation_space, "desired_goal": goals})

    def observation(self, observation: np.ndarray) -> dict[str, Any]:
        return {"observation": observation, "desired_goal": {"place": np.array([GOAL], np.float32)}}


class Walker:
    """Walks to the right; with `turn_back`, away from the goal once it was there. Counts steps in its state."""

    def __init__(self, turn_back: bool = False) -> None:
        self.turn_back = turn_back
        self.batches: list[int] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        rows = observation["observation"] if isinstance(observation, dict) else observation
        if isinstance(observation, dict):
            assert observation["desired_goal"]["place"].shape == (len(rows), 1)
        self.batches.append(len(rows))
        assert deterministic
        steps = np.zeros(len(rows), dtype=int) if state is None else state[0].copy()
        steps[episode_start] = 0
        np.testing.assert_array_equal(steps, rows[:, 1], "a row of the state belongs to another environment")
        been_there = np.zeros(len(rows), dtype=bool) if state is None else state[1].copy()
        been_there[episode_start] = False
        been_there |= rows[:, 0] >= GOAL
        direction = np.where(self.turn_back & been_there, -1.0, 1.0)
        return direction[:, None], (steps + 1, been_there)


def test_returns_under_both_protocols() -> None:
    staying = evaluate(Walker(), Corridor, 5, seed=0, n_envs=2)
    # It is at the goal from step 4 to step 10.
    assert staying.returns == [7.0] * 5
    assert staying.lengths == [LENGTH] * 5
    assert staying.first_contact == [GOAL] * 5
    assert staying.successes == [True] * 5
    assert first_contact_return(staying.first_contact, LENGTH).tolist() == [7.0] * 5

    leaving = evaluate(Walker(turn_back=True), Corridor, 5, seed=0, n_envs=2)
    assert leaving.returns == [1.0] * 5
    assert first_contact_return(leaving.first_contact, LENGTH).tolist() == [7.0] * 5


def test_no_contact() -> None:
    class Leftward:
        def predict(self, observation: Any, **_: Any) -> Any:
            return -np.ones((len(observation), 1)), None

    outcome = evaluate(Leftward(), Corridor, 3, seed=0)
    assert outcome.returns == [0.0] * 3
    assert outcome.first_contact == [None] * 3
    assert outcome.successes == [False] * 3


@pytest.mark.parametrize("n_envs", [2, 8, 100])
def test_results_do_not_depend_on_the_number_of_environments(n_envs: int) -> None:
    def make_env() -> Corridor:
        return Corridor(random_start=True, random_length=True)

    alone = evaluate(Walker(), make_env, 30, seed=3, n_envs=1)
    together = evaluate(Walker(), make_env, 30, seed=3, n_envs=n_envs)
    assert len(set(alone.lengths)) > 3
    assert len(set(alone.returns)) > 3
    assert (together.returns, together.lengths) == (alone.returns, alone.lengths)
    assert (together.first_contact, together.successes) == (alone.first_contact, alone.successes)
    other_seed = evaluate(Walker(), make_env, 30, seed=4, n_envs=n_envs)
    assert other_seed.lengths != alone.lengths


def test_finished_environments_are_dropped() -> None:
    agent = Walker()
    outcome = evaluate(agent, lambda: Corridor(random_length=True), 8, seed=0, n_envs=8)
    assert agent.batches == [sum(length > step for length in outcome.lengths) for step in range(max(outcome.lengths))]
    assert sum(agent.batches) == sum(outcome.lengths)


def test_dictionary_observations() -> None:
    outcome = evaluate(Walker(), DictCorridor, 6, seed=1, n_envs=3)
    flat = evaluate(Walker(), lambda: Corridor(random_start=True), 6, seed=1, n_envs=3)
    assert outcome.returns == flat.returns


def test_environments_without_success() -> None:
    class Silent(Corridor):
        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            return (*super().step(action)[:4], {})

    assert evaluate(Walker(), Silent, 2, seed=0).successes == [None, None]


def test_timing() -> None:
    outcome = evaluate(Walker(), Corridor, 4, seed=0, n_envs=2)
    assert 0 < outcome.predict_ms["median"] <= outcome.predict_ms["p95"]
    # Two environments share each call.
    assert outcome.predict_ms["per_action"] < outcome.predict_ms["p95"]
    assert 0 < outcome.seconds < 10


def test_episode_seeds() -> None:
    seeds = {episode_seed(seed, episode) for seed in range(20) for episode in range(100)}
    assert len(seeds) == 2000
    assert min(seeds) >= 2**31
    assert episode_seed(0, 1) != episode_seed(1, 0)


def test_environments_are_closed() -> None:
    closed = []

    class Closing(Corridor):
        def close(self) -> None:
            closed.append(self)

    class Failing:
        def predict(self, observation: Any, **_: Any) -> Any:
            raise RuntimeError("broken agent")

    with pytest.raises(RuntimeError, match="broken agent"):
        evaluate(Failing(), Closing, 3, seed=0)
    assert len(closed) == 3


def test_wrong_number_of_actions() -> None:
    class Single:
        def predict(self, observation: Any, **_: Any) -> Any:
            return np.ones((1, 1)), None

    with pytest.raises(ValueError, match="1 actions for 3 environments"):
        evaluate(Single(), Corridor, 3, seed=0)


@pytest.mark.parametrize(("n_episodes", "n_envs"), [(0, 1), (1, 0)])
def test_wrong_arguments(n_episodes: int, n_envs: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(Walker(), Corridor, n_episodes, seed=0, n_envs=n_envs)
