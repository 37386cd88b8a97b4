"""Mazes in which every episode has a start and a goal of its own, for agents that are told where to go."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np

from ld_agents.evaluation.environments import AntMaze, cell_position
from ld_agents.evaluation.mazes import MAZES, free_cells, maze_map

DrawnFrom = Literal["cells", "ogbench"]
Cell = tuple[int, int]  # row, column

JITTER = 0.25  # of a cell, by which starts and goals are off the centers, as in gymnasium-robotics and OGBench

# Start and goal of the five tasks of each of OGBench's mazes (Park et al. 2025, arXiv 2410.20092). Its medium and large
# mazes are D4RL's; it has no umaze.
OGBENCH_TASKS: dict[str, tuple[tuple[Cell, Cell], ...]] = {
    "medium": (((1, 1), (6, 6)), ((6, 1), (1, 6)), ((5, 3), (4, 2)), ((6, 5), (6, 1)), ((2, 6), (1, 1))),
    "large": (((1, 1), (7, 10)), ((5, 4), (7, 1)), ((7, 4), (1, 10)), ((3, 8), (5, 4)), ((1, 1), (5, 4))),
}


def cell_pairs(maze: str, drawn_from: DrawnFrom) -> list[tuple[Cell, Cell]]:
    """Start and goal cells that episodes draw from: all pairs of two free cells, or OGBench's five tasks.

    Raises:
        ValueError: OGBench does not have this maze.
    """
    if drawn_from == "cells":
        cells = free_cells(maze)
        return [(start, goal) for start in cells for goal in cells if start != goal]
    if maze not in OGBENCH_TASKS:
        raise ValueError(f'OGBench has no tasks for the maze {maze}. Use "cells", or {" or ".join(OGBENCH_TASKS)}.')
    return list(OGBENCH_TASKS[maze])


class DrawnGoals(gym.Wrapper[Any, Any, Any, Any]):
    """Draws start and goal of every episode; an observation is a dictionary that holds the goal, as in `GoalEnv`.

    The episode ends at the goal, with reward 1; so a return is 1 or 0, and a mean of returns a rate of success. Radius
    and step limit are the environment's. In widths of a cell the radius is 0.45 in PointMaze and 0.125 in AntMaze, and
    0.25 and 0.125 in OGBench; the limit is 300 to 800 steps in PointMaze and 700 or 1000 in AntMaze, and 1000 in
    OGBench.

    ``reset(options={"cells": (start, goal)})`` takes two cells (row, column) instead of drawn ones.

    Args:
        env: PointMaze of gymnasium-robotics with `continuing_task=False`, or `AntMaze`, on one of D4RL's maps.
        drawn_from: "cells": any two free cells; "ogbench": one of OGBench's five tasks, each as likely
            (OGBench itself runs equally many episodes of each).

    Raises:
        TypeError: the environment is neither.
        ValueError: its maze is unknown, or OGBench does not have it.
    """

    def __init__(self, env: gym.Env[Any, Any], drawn_from: DrawnFrom) -> None:
        super().__init__(env)
        inner: Any = env.unwrapped
        self._is_ant = isinstance(inner, AntMaze)
        if not self._is_ant and not hasattr(inner, "generate_target_goal"):
            raise TypeError(f"{env} is no maze of gymnasium-robotics and no AntMaze, so no goals can be drawn in it.")
        walls = [[int(cell == 1) for cell in row] for row in (inner.walls if self._is_ant else inner.maze.maze_map)]
        maze = next((name for name in MAZES if maze_map(name) == walls), None)
        if maze is None:
            raise ValueError(f"The map of {env} is none of D4RL's mazes ({', '.join(MAZES)}).")
        self._pairs = cell_pairs(maze, drawn_from)
        if self._is_ant:
            position = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
            parts = {"observation": env.observation_space, "achieved_goal": position, "desired_goal": position}
            self.observation_space = gym.spaces.Dict(parts)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._rng = np.random.default_rng([seed, len(self._pairs)])
        elif not hasattr(self, "_rng"):
            self._rng = np.random.default_rng()
        cells = (options or {}).get("cells")
        start, goal = self._pairs[self._rng.integers(len(self._pairs))] if cells is None else cells
        if not self._is_ant:  # which adds noise of its own
            return self.env.reset(seed=seed, options={"reset_cell": np.array(start), "goal_cell": np.array(goal)})
        size = cell_position((1, 2))[0] - cell_position((1, 1))[0]
        places = np.array([cell_position(start), cell_position(goal)])
        places += self._rng.uniform(-JITTER, JITTER, (2, 2)) * size
        observation, info = self.env.reset(seed=seed, options={"start": places[0], "goal": places[1]})
        return self._with_goal(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_goal(observation) if self._is_ant else observation, reward, terminated, truncated, info

    def _with_goal(self, observation: Any) -> dict[str, Any]:
        goal: Any = self.env.unwrapped
        return {"observation": observation, "achieved_goal": observation[:2].copy(), "desired_goal": goal.goal.copy()}
