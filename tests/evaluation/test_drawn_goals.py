"""Mazes whose episodes have starts and goals of their own: where they lie, and what ends an episode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ld_agents.evaluation import environments
from ld_agents.evaluation.drawn_goals import OGBENCH_TASKS, DrawnGoals, cell_pairs
from ld_agents.evaluation.eval_env import DRAWN_GOALS, EvalEnvSpec, environment_of, evaluation_spec
from ld_agents.evaluation.mazes import MAZES, cell_center, free_cells

POINT = "ld-agents/pointmaze/medium-v0"
ANT = "ld-agents/antmaze/medium-diverse-v1"


def made(dataset_id: str, drawn_from: str) -> Any:
    spec = environment_of(f"{dataset_id}{DRAWN_GOALS}{drawn_from}")
    assert spec is not None
    return spec.make()


def center(dataset_id: str, cell: tuple[int, int]) -> tuple[float, float]:
    return cell_center("medium", cell) if dataset_id == POINT else environments.cell_position(cell)


def nearest(dataset_id: str, position: Any) -> tuple[tuple[int, int], float]:
    """The free cell around a position, and how far its center is on the farther axis, in cells."""
    size = 1.0 if dataset_id == POINT else environments.CELL_SIZE
    off = {cell: max(np.abs(np.subtract(center(dataset_id, cell), position))) / size for cell in free_cells("medium")}
    cell = min(off, key=lambda c: off[c])
    return cell, off[cell]


def test_cells_that_episodes_draw_from() -> None:
    for maze in MAZES:
        free = free_cells(maze)
        pairs = cell_pairs(maze, "cells")
        assert len(pairs) == len(set(pairs)) == len(free) * (len(free) - 1)
        assert all(start != goal for start, goal in pairs)
    for maze, tasks in OGBENCH_TASKS.items():
        assert cell_pairs(maze, "ogbench") == list(tasks)
        assert len(tasks) == 5
        assert {cell for task in tasks for cell in task} <= set(free_cells(maze)), "none is a wall"
    with pytest.raises(ValueError, match="OGBench has no tasks for the maze umaze"):
        cell_pairs("umaze", "ogbench")


@pytest.mark.parametrize("dataset_id", [POINT, ANT])
@pytest.mark.parametrize("drawn_from", ["cells", "ogbench"])
def test_starts_and_goals_of_episodes(dataset_id: str, drawn_from: Any) -> None:
    env, pairs = made(dataset_id, drawn_from), set()
    for seed in range(40):
        observation, info = env.reset(seed=seed)
        assert env.observation_space.contains(observation)
        assert not info["success"]
        start, start_off = nearest(dataset_id, observation["achieved_goal"])
        goal, goal_off = nearest(dataset_id, observation["desired_goal"])
        assert max(start_off, goal_off) < 0.3  # the ant's own start is noisy, too
        assert (start, goal) in cell_pairs("medium", drawn_from)
        pairs.add((start, goal))
        np.testing.assert_allclose(observation["observation"][:2], observation["achieved_goal"], atol=1e-6)
    assert len(pairs) == 5 if drawn_from == "ogbench" else len(pairs) > 30
    again = env.reset(seed=39)[0]
    for key, value in observation.items():
        np.testing.assert_array_equal(again[key], value)
    first, second = (env.reset()[0]["desired_goal"] for _ in range(2))
    assert not np.array_equal(first, second), "without a seed the next one is drawn"
    env.close()


@pytest.mark.parametrize("dataset_id", [POINT, ANT])
def test_an_episode_ends_at_its_goal(dataset_id: str) -> None:
    env = made(dataset_id, "cells")
    observation, _ = env.reset(seed=0, options={"cells": ((1, 1), (1, 2))})
    assert nearest(dataset_id, observation["achieved_goal"])[0] == (1, 1)
    assert nearest(dataset_id, observation["desired_goal"])[0] == (1, 2)
    goal, inner = observation["desired_goal"], env.unwrapped
    step = env.step(np.zeros(env.action_space.shape, np.float32))
    assert step[1:4] == (0.0, False, False)
    simulation = inner.point_env if dataset_id == POINT else inner.simulator
    pose = simulation.data.qpos.copy()
    pose[:2] = goal + 0.1
    simulation.set_state(pose, np.zeros_like(simulation.data.qvel))
    observation, reward, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
    assert math.dist(observation["achieved_goal"], goal) < 0.3
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    env.close()


def test_limits_stay_and_what_is_no_maze_is_refused() -> None:
    spec = evaluation_spec("umaze").with_drawn_goals("cells")
    assert spec.max_episode_steps == MAZES["umaze"].episode_steps
    assert spec.goal is None
    with pytest.raises(TypeError, match="no maze of gymnasium-robotics"):
        DrawnGoals(EvalEnvSpec("Pendulum-v1").make(), "cells")
    with pytest.raises(ValueError, match="OGBench has no tasks"):
        evaluation_spec("umaze").with_drawn_goals("ogbench").make()
