"""The evaluation environment of a dataset, built from its description without running code that the data name."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from ld_agents.evaluation import environments
from ld_agents.evaluation.mazes import MAZES, cell_centre, maze_map

GOAL_RADIUS = 0.45  # metres, of gymnasium-robotics' mazes
FIXED_GOAL_ENTRY_POINTS = (
    "ld_agents.evaluation.eval_env:FixedGoal",
    "ld_agents.data.pointmaze:FixedGoal",
    "ld_agents.sources.pointmaze:FixedGoal",
)
"""`FixedGoal` in the metadata of a dataset: as it is stored now, and as earlier versions stored it."""


def evaluation_spec(maze: str) -> dict[str, Any]:
    """Evaluation environment: D4RL's fixed goal, start in any other cell, no termination at the goal."""
    task = MAZES[maze]
    grid: list[list[int | str]] = [list(row) for row in maze_map(maze)]
    grid[task.goal_cell[0]][task.goal_cell[1]] = "g"
    return {
        "id": task.env_id,
        "kwargs": {"maze_map": grid, "continuing_task": True, "reset_target": False},
        "max_episode_steps": task.episode_steps,
        "goal": list(cell_centre(maze, task.goal_cell)),
    }


def build_eval_env(spec: dict[str, Any]) -> gym.Env[Any, Any]:
    """Build an evaluation environment from its registered id, without running anything that the data name.

    Args:
        spec: ``{"id", "kwargs", "max_episode_steps"}`` and, for mazes, ``"goal"`` [2], where the goal is held, and
            ``"observation_columns"``, the columns of a flat observation that are kept.

    Raises:
        ValueError: the id is not in Gymnasium's registry, or names a module.
        ImportError: the id belongs to gymnasium-robotics, which is not installed.
    """
    name = str(spec["id"])
    # "module:id" makes Gymnasium import the module, and the compatibility ids load an environment by such a name.
    if ":" in name or name.startswith(("GymV21Environment", "GymV26Environment")):
        raise ValueError(
            f"The evaluation environment {name!r} would load code that the data set names. It is refused. Make the "
            "environment yourself and hand it to evaluate(agent, make_env=...)."
        )
    environments.register()
    robotics = True
    try:
        environments.register_robotics()
    except ImportError:
        robotics = False
    if name not in gym.registry:
        if not robotics:
            raise ImportError(
                f"The evaluation environment {name} is not registered. If it comes from gymnasium-robotics, install it "
                'with: pip install "ld_agents[bench]"'
            )
        raise ValueError(
            f"The evaluation environment {name!r} is not in Gymnasium's registry. Import the package that registers it "
            "before you load the data set, or make the environment yourself."
        )
    kwargs = {key: value for key, value in spec.get("kwargs", {}).items() if key != "render_mode"}
    try:
        env = environments.make(name, max_episode_steps=spec.get("max_episode_steps"), **kwargs)
    except Exception as error:
        raise ValueError(
            f"The evaluation environment {name} cannot be built with {kwargs}: {type(error).__name__}: {error}. Make "
            "the environment yourself and hand it to evaluate(agent, make_env=...)."
        ) from error
    if spec.get("observation_columns") is not None:
        env = _Columns(env, spec["observation_columns"])
    return FixedGoal(env, spec["goal"]) if spec.get("goal") is not None else env


class FixedGoal(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Hold the goal of a gymnasium-robotics maze at one place, where the environment alone would jitter it.

    Args:
        env: a maze environment (PointMaze or AntMaze).
        goal: the goal's position [2] in metres.

    Raises:
        TypeError: the environment is not a maze.
    """

    def __init__(self, env: gym.Env[Any, Any], goal: Any) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, goal=[float(g) for g in goal])
        gym.Wrapper.__init__(self, env)
        if not hasattr(env.unwrapped, "update_target_site_pos"):
            raise TypeError(f"{env} is not a maze of gymnasium-robotics, so its goal cannot be held fixed.")
        self.goal = np.asarray(goal, dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and put the goal back in its place."""
        observation, info = self.env.reset(seed=seed, options=options)
        maze: Any = self.env.unwrapped
        maze.goal = self.goal.copy()
        maze.update_target_site_pos()
        observation["desired_goal"] = self.goal.copy()
        if "success" in info:
            info["success"] = bool(np.linalg.norm(observation["achieved_goal"] - self.goal) <= GOAL_RADIUS)
        return observation, info


class _Columns(gym.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """Some columns of a flat observation."""

    def __init__(self, env: gym.Env[Any, Any], columns: list[int]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, spaces.Box)
        self.columns = columns
        self.observation_space = spaces.Box(space.low[columns], space.high[columns], dtype=space.dtype.type)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[self.columns]
