"""Paths of candidates: rolled out in the simulator, scored and chosen as the agent does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from ld_agents.evaluation.rollouts import episode_seed
from reporting import maze_plans

HORIZON = 6
# A push to the right, one up, and one that turns around half way.
PUSHES = torch.tensor([[[1.0, 0.0]] * 6, [[0.0, 1.0]] * 6, [[-1.0, 0.0]] * 3 + [[1.0, 0.0]] * 3])  # [K, T, A]
SCORES = torch.tensor([[1.0, 3.0, 2.0]])


def make_env() -> gym.Env[Any, Any]:
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    return gym.make("PointMaze_UMaze-v3", max_episode_steps=20)


def an_agent(**policy: Any) -> Any:
    """Flattens observations as datasets do; stands still while it predicts."""
    return SimpleNamespace(
        policy=SimpleNamespace(**policy),
        settings=SimpleNamespace(horizon=HORIZON, n_candidates=1),
        dataset=SimpleNamespace(flatten_observation=lambda seen: seen["observation"]),
        device=torch.device("cpu"),
        predict=lambda batch, **_: (np.zeros((1, 2), np.float32), None),
    )


def pushed(actions: np.ndarray, episode: int) -> np.ndarray:
    """Positions [T + 1, 2] of the point in an episode of the environment itself."""
    env = make_env()
    observation, _ = env.reset(seed=episode_seed(7, episode))
    positions = [observation["achieved_goal"]]
    positions += [env.step(action)[0]["achieved_goal"] for action in actions]
    env.close()
    return np.array(positions)


def planner() -> Any:
    plans = SimpleNamespace(actions=PUSHES[None], returns=SCORES)
    return an_agent(propose_plans=lambda states, n: plans)


def holder() -> Any:
    """Its latents are pushes; where the point moves to the right with more than 0.05 m/s, they turn around."""

    def decode(states: Tensor, latent: Tensor) -> Tensor:
        return torch.where(states[:, 2:3] > 0.05, -latent, latent)

    return an_agent(propose=lambda states: (PUSHES[:, 0][None], SCORES), decode_action=decode)


def test_plans_are_executed_from_each_start() -> None:
    found = maze_plans.plan_paths(planner(), make_env, seed=7, n_starts=2)
    assert found is not None
    assert len(found["starts"]) == 2
    assert found["horizon"] == HORIZON
    for episode, start in enumerate(found["starts"]):
        assert np.array(start["paths"]).shape == (3, HORIZON + 1, 2)
        for path, actions in zip(start["paths"], PUSHES.numpy(), strict=True):
            np.testing.assert_allclose(path, pushed(actions, episode), atol=6e-4)
        assert start["scores"] == [1.0, 3.0, 2.0]
        assert start["chosen"] == 0, "the agent itself draws one candidate, the figure more"
        assert start["position"] == start["paths"][0][0]
        # twenty steps on the spot, every fifth and the last
        np.testing.assert_allclose(start["route"], [start["position"]] * 5, atol=6e-3)


def test_latents_are_held_and_decoded_at_every_state() -> None:
    found = maze_plans.plan_paths(holder(), make_env, seed=7, n_starts=1)
    assert found is not None
    (start,) = found["starts"]
    assert start["scores"] == [3.0, 2.0, 1.0], "by rank"
    assert start["chosen"] == 0
    paths = np.array(start["paths"])
    np.testing.assert_allclose(paths[0], pushed(PUSHES[1].numpy(), 0), atol=6e-4)
    # The last one pushes to the right until it is fast enough, and back from then on.
    steps = np.diff(paths[2, :, 0])
    assert steps[0] > 0
    assert np.ptp(steps) > 0
    assert steps.sum() < np.diff(pushed(PUSHES[0].numpy(), 0)[:, 0]).sum() / 2


@pytest.mark.parametrize("env", ["Pendulum-v1", None])
def test_nothing_to_draw(env: str | None) -> None:
    """No maze, or an agent without candidates."""
    agent = planner() if env else an_agent()
    assert maze_plans.plan_paths(agent, lambda: gym.make(env) if env else make_env(), seed=0) is None
