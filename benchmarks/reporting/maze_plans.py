"""Paths of an agent's candidates in a point maze, rolled out in the simulator itself; `report.py` draws them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ld_agents.evaluation.rollouts import episode_seed

N_STARTS = 3
N_CANDIDATES = 48
ROUTE_EVERY = 5

Act = Callable[[NDArray[Any], int], NDArray[Any]]  # action [A] from state [2 D] and step


def plan_paths(
    agent: Any, make_env: Callable[[], gym.Env[Any, Any]], *, seed: int, n_starts: int = N_STARTS
) -> dict[str, Any] | None:
    """Follow each candidate for the agent's horizon from the seeded start states of the evaluation environment.

    LDCQ's candidates are latents, each held while the decoder answers with actions; LatentDiffuser's are plans, whose
    actions are executed one after the other.

    Args:
        agent: has `predict`, `settings.horizon`, `dataset`, and either `policy.propose` and `policy.decode_action`, as
            LDCQ has, or `policy.propose_plans`, as LatentDiffuser has.
        make_env: makes the evaluation environment.
        seed: start states are those of the first `n_starts` evaluation episodes with this seed.
        n_starts: number of start states.

    Returns:
        a JSON-able dictionary, positions in meters rounded to the millimeter: `maze_map` (rows of 0 and 1),
        `cell_size`, `goal` [2], `horizon` and `starts`, each with `position` [2], `paths` [candidates, horizon + 1, 2],
        `scores` [candidates], `chosen`, the index of the path that is taken, and `route` [points, 2], where the agent
        then went until it was at the goal or out of time, every fifth step. None where the environment is no point
        maze or the agent has no candidates.
    """
    if not (hasattr(agent.policy, "propose_plans") or hasattr(agent.policy, "propose")):
        return None
    with contextlib.closing(make_env()) as env:
        maze: Any = env.unwrapped
        if not hasattr(maze, "point_env"):
            return None
        starts = [_from_start(agent, env, maze, episode_seed(seed, episode)) for episode in range(n_starts)]
        return {
            "maze_map": [[int(cell == 1) for cell in row] for row in maze.maze.maze_map],
            "cell_size": float(maze.maze.maze_size_scaling),
            "goal": _rounded(maze.goal),
            "horizon": int(agent.settings.horizon),
            "starts": starts,
        }


def _from_start(agent: Any, env: gym.Env[Any, Any], maze: Any, seed: int) -> dict[str, Any]:
    route = _route(agent, env, seed)
    observation, _ = env.reset(seed=seed)
    start = np.concatenate([maze.data.qpos, maze.data.qvel])
    with torch.no_grad():
        candidates, scores, chosen = _candidates(agent, observation)
        paths = [_path(maze, start, act, agent.settings.horizon) for act in candidates]
    return {
        "position": _rounded(start[:2]),
        "paths": _rounded(np.array(paths)),
        "scores": [float(f"{score:.5g}") for score in scores.tolist()],
        "chosen": int(chosen),
        "route": _rounded(route),
    }


def _route(agent: Any, env: gym.Env[Any, Any], seed: int) -> NDArray[Any]:
    """Positions [points, 2] of an episode up to its first reward."""
    observation, _ = env.reset(seed=seed)
    positions, state, started, over = [observation["achieved_goal"]], None, True, False
    while not over:
        batch = {key: value[None] for key, value in observation.items()}
        actions, state = agent.predict(batch, state=state, episode_start=np.array([started]), deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(actions[0])
        started, over = False, terminated or truncated or float(reward) > 0
        positions.append(observation["achieved_goal"])
    return np.stack([*positions[:-1:ROUTE_EVERY], positions[-1]])


def _candidates(agent: Any, observation: Any) -> tuple[Sequence[Act], Tensor, Tensor]:
    """How each candidate acts, the scores of all [candidates], and the index of the one that is taken."""

    def states(seen: Any) -> Tensor:
        """The observation as the agent's networks take it [1, S]."""
        flat = agent.dataset.flatten_observation(seen)
        return torch.as_tensor(flat[None], dtype=torch.float32, device=agent.device)

    if hasattr(agent.policy, "propose_plans"):
        plans = agent.policy.propose_plans(states(observation), N_CANDIDATES)
        actions, scores = plans.actions[0].cpu().numpy(), plans.returns[0]  # [K, T, A], [K]
        acts = [functools.partial(_planned, plan) for plan in actions]
        return acts, scores, scores[: agent.settings.n_candidates].argmax()

    def decode(latent: Tensor, state: NDArray[Any], step: int) -> NDArray[Any]:
        seen = {**observation, "observation": state, "achieved_goal": state[:2]}
        return np.asarray(agent.policy.decode_action(states(seen), latent[None])[0].cpu())

    latents, scores = agent.policy.propose(states(observation))
    # An even sample of the candidates by rank keeps the best one and shows the whole spread of scores.
    order = torch.argsort(scores[0], descending=True)  # [K]
    kept = order[np.unique(np.linspace(0, len(order) - 1, min(N_CANDIDATES, len(order))).round().astype(int))]
    held = [functools.partial(decode, latent) for latent in latents[0, kept]]
    return held, scores[0, kept], torch.argmax(scores[0, kept])


def _planned(plan: NDArray[Any], state: NDArray[Any], step: int) -> NDArray[Any]:
    return plan[step]


def _path(maze: Any, start: NDArray[Any], act: Act, steps: int) -> NDArray[Any]:
    """Positions [steps + 1, 2] of the point from `start` (positions, velocities); `act` takes state and step."""
    half = len(start) // 2
    maze.point_env.set_state(start[:half].copy(), start[half:].copy())
    states = [start]
    for step in range(steps):
        states.append(maze.point_env.step(act(states[-1], step))[0].copy())
    return np.array(states)[:, :2]


def _rounded(positions: NDArray[Any]) -> Any:
    return np.round(positions, 3).tolist()
