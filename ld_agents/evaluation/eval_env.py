"""The evaluation environment of a dataset: which one it is, and how it is built without running code of the data."""

from __future__ import annotations

import contextlib
import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from ld_agents.evaluation import environments
from ld_agents.evaluation.disturbances import Disturbance, Disturbed
from ld_agents.evaluation.drawn_goals import DrawnFrom, DrawnGoals
from ld_agents.evaluation.mazes import MAZES, cell_center, from_d4rl_frame, maze_map
from ld_agents.evaluation.scores import D4RL_TASKS, TASKS, d4rl_name, family

GOAL_RADIUS = 0.45  # meters, of gymnasium-robotics' mazes
FIXED_GOAL_ENTRY_POINTS = (
    "ld_agents.evaluation.eval_env:FixedGoal",
    "ld_agents.data.pointmaze:FixedGoal",
    "ld_agents.sources.pointmaze:FixedGoal",
)
"""`FixedGoal` in the metadata of a dataset: as it is stored now, and as earlier versions stored it."""


COLUMNS_ENTRY_POINT = "ld_agents.evaluation.eval_env:ObservationColumns"
DISTURBED_ENTRY_POINT = "ld_agents.evaluation.disturbances:Disturbed"

WRAPPERS = re.findall(
    r"\w+",
    "ClipAction ClipReward DelayObservation DtypeObservation FilterObservation FlattenObservation FrameStackObservation"
    " MaxAndSkipObservation OrderEnforcing PassiveEnvChecker RecordEpisodeStatistics RescaleAction RescaleObservation"
    " ReshapeObservation TimeAwareObservation TimeLimit",
)
"""Gymnasium's wrappers that are built from the metadata of a dataset: all that they do follows from their arguments."""


@dataclass(frozen=True)
class EvalEnvSpec:
    """A registered Gymnasium environment with its arguments, from which `make` builds an evaluation environment.

    Attributes:
        id: id in Gymnasium's registry.
        kwargs: keyword arguments of the environment.
        max_episode_steps: step limit; None: that of the registry.
        goal: position in meters where the goal of a maze is held; None: where the environment puts it.
        observation_columns: columns of a flat observation that are kept; None: all.
        wrappers: Gymnasium's wrappers around the environment, from the inside out: names of classes with arguments.
        start_noise: of the ant in gymnasium-robotics' AntMaze, whose episodes all start in one pose at rest otherwise:
            half-width of uniform noise on the pose, standard deviation of normal noise on the velocities. D4RL: 0.1.
        drawn_goals: what start and goal of each episode in a maze are drawn from, see `DrawnGoals`; None: not drawn.
        disturbance: what makes the dynamics of a point maze random; None: nothing does.
    """

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    goal: tuple[float, ...] | None = None
    observation_columns: tuple[int, ...] | None = None
    wrappers: tuple[tuple[str, dict[str, Any]], ...] = ()
    start_noise: float = 0.0
    drawn_goals: DrawnFrom | None = None
    disturbance: Disturbance | None = None

    def is_plain(self) -> bool:
        """Whether the id alone says everything."""
        registered = gym.registry.get(self.id)
        limit = self.max_episode_steps
        return replace(self, max_episode_steps=None) == EvalEnvSpec(self.id) and (
            limit is None or (registered is not None and registered.max_episode_steps == limit)
        )

    @classmethod
    def from_json(cls, text: Any) -> EvalEnvSpec | None:
        """What Gymnasium's `EnvSpec.to_json` has written, without entry points; None if it cannot be read.

        Wrappers are taken over by name. `make` builds Gymnasium's own (`WRAPPERS`), and refuses to leave others out.
        """
        try:
            spec = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            return None
        if not isinstance(spec, dict) or not isinstance(spec.get("id"), str):
            return None
        kwargs, limit, wrappers = (spec.get(key) for key in ("kwargs", "max_episode_steps", "additional_wrappers"))
        goal, columns, disturbance, kept = None, None, None, []
        for wrapper in wrappers if isinstance(wrappers, list) else ():
            place, arguments = (
                wrapper.get(key) if isinstance(wrapper, dict) else None for key in ("entry_point", "kwargs")
            )
            if place in FIXED_GOAL_ENTRY_POINTS:
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    goal = tuple(float(x) for x in wrapper["kwargs"]["goal"])
                continue
            if place == COLUMNS_ENTRY_POINT:
                with contextlib.suppress(KeyError, OverflowError, TypeError, ValueError):
                    columns = tuple(int(x) for x in wrapper["kwargs"]["columns"])
                continue
            if place == DISTURBED_ENTRY_POINT:
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    disturbance = Disturbance(*(float(wrapper["kwargs"][name]) for name in ("wind", "action_noise")))
                continue
            module, _, name = str(place).partition(":")
            ours = module.startswith("gymnasium.wrappers.") and isinstance(arguments, dict | None)
            kept.append((name if ours else str(place), arguments if isinstance(arguments, dict) else {}))
        return cls(
            spec["id"],
            kwargs if isinstance(kwargs, dict) else {},
            limit if type(limit) is int and limit > 0 else None,
            goal,
            columns,
            wrappers=tuple(kept),
            disturbance=disturbance,
        )

    def make(self, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Build the environment from its registered id, without running anything that the data name.

        Raises:
            ValueError: the id is not in Gymnasium's registry, or names a module; a wrapper is none of `WRAPPERS`; or an
                argument could name a file.
            ImportError: the id belongs to gymnasium-robotics, which is not installed.
        """
        # "module:id" makes Gymnasium import the module, and the compatibility ids load an environment by such a name.
        if ":" in self.id or self.id.startswith(("GymV21Environment", "GymV26Environment")):
            raise ValueError(
                f"The evaluation environment {self.id!r} would load code that the dataset names. It is refused. Make "
                "the environment yourself and hand it to evaluate(agent, make_env=...)."
            )
        environments.find(self.id)
        kwargs = {key: value for key, value in self.kwargs.items() if key != "render_mode"}
        if refused := sorted(key for key, value in kwargs.items() if not _harmless(key, value)):
            raise ValueError(
                f"The evaluation environment {self.id} cannot be built with {', '.join(refused)}: data may give "
                f"numbers, and texts for {', '.join(_TEXTS)}, never names of files. Make the environment yourself and "
                "hand it to evaluate(agent, make_env=...)."
            )
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        try:
            env = environments.make(self.id, max_episode_steps=self.max_episode_steps, **kwargs)
            for name, arguments in self.wrappers:
                if name not in WRAPPERS:
                    raise ValueError(f"a dataset may not name the wrapper {name}, and without it this is another task")
                if refused := sorted(key for key, value in arguments.items() if not _harmless(key, value)):
                    raise ValueError(f"a dataset may not give {name} {', '.join(refused)}")
                env = getattr(gym.wrappers, name)(env, **arguments)
            if self.observation_columns is not None:
                env = ObservationColumns(env, self.observation_columns)
        except Exception as error:
            raise ValueError(
                f"The evaluation environment {self.id} cannot be built with {kwargs}: {type(error).__name__}: {error}. "
                "Make the environment yourself and hand it to evaluate(agent, make_env=...)."
            ) from error
        if self.start_noise:
            maze: Any = env.unwrapped
            maze.ant_env._reset_noise_scale = self.start_noise  # an argument of the ant that AntMaze fixes at 0
        if self.disturbance is not None:
            env = Disturbed(env, self.disturbance.wind, self.disturbance.action_noise)
        if self.drawn_goals is not None:
            return DrawnGoals(env, self.drawn_goals)
        return env if self.goal is None else FixedGoal(env, self.goal)

    def with_drawn_goals(self, drawn_from: DrawnFrom) -> EvalEnvSpec:
        """The same maze with goals that are drawn anew in every episode, which ends at its goal."""
        kwargs = {key: value for key, value in self.kwargs.items() if key not in ("reset_target", "reward_type")}
        if "maze_map" in kwargs:
            kwargs["continuing_task"] = False
        return replace(self, kwargs=kwargs, goal=None, drawn_goals=drawn_from)


# arguments of environments and wrappers that take names of things, not of files
_TEXTS = (
    *("maze", "maze_map", "reward_type", "task", "tasks", "tasks_to_complete"),
    *("filter_keys", "padding_type", "dtype", "dict_time_key", "stats_key"),
)
_COUNTS = ("frame_skip", "stack_size", "delay", "skip")  # each costs time or memory


def _harmless(key: str, value: Any) -> bool:
    """Whether an argument that data name is a number, or up to 10,000 of them, or may be a text and is no path.

    Counts are at most 1,000.
    """
    if key in _COUNTS and not (isinstance(value, int) and value <= 1000):
        return False
    values, found = [value], 0
    while values:
        value, found = values.pop(), found + 1
        if isinstance(value, list | tuple):
            values += value
        elif isinstance(value, str):
            if key not in _TEXTS or len(value) > 100 or not value.replace(" ", "").replace("_", "").isalnum():
                return False
        elif not isinstance(value, bool | int | float | None):
            return False
        if found + len(values) > 10_000:
            return False
    return True


# -- which environment evaluates a task ----------------------------------------------------------------------------

ENVIRONMENTS: dict[str, str] = {
    **{f"antmaze-{maze}": f"ld_agents/AntMaze-{maze}-v0" for maze in environments.ANTMAZE_GOALS},
    # -v4 is -v2, in which D4RL recorded, with today's bindings of MuJoCo; -v5 moves and pays differently. There is none
    # for ant: D4RL's 111 numbers hold contact forces that its simulator left at zero.
    **{robot.lower(): f"{robot}-v4" for robot in ("HalfCheetah", "Hopper", "Walker2d")},
    **{hand.lower(): f"ld_agents/Adroit{hand}-v0" for hand in environments.ADROIT_STEPS},
    **{f"kitchen-{name}": f"ld_agents/Kitchen-{name}-v0" for name in environments.KITCHEN_TASKS},
    "carracing": "ld_agents/CarRacing-v0",
}
"""The environment in which D4RL's data of a task are evaluated and recorded here, by task; the mazes of maze2d have
`evaluation_spec`."""
# D4RL observes the positions of joints and objects, gymnasium-robotics the velocities too (9 + 9 + 21 + 20 numbers).
_KITCHEN_POSITIONS = (*range(9), *range(18, 39))
# Cells (row, column) of start and goal. Minari's umaze is D4RL's upside down.
_MINARI_ANTMAZE = {"umaze": ((3, 1), (1, 1)), "medium": ((1, 1), (6, 6)), "large": ((1, 1), (7, 9))}


DRAWN_GOALS = " with drawn goals: "
"""In the id of a dataset, before what the goals of its evaluation are drawn from."""


def evaluation_spec(maze: str) -> EvalEnvSpec:
    """PointMaze with D4RL's goal, held at the center of its cell; starts in any other cell, continues at the goal."""
    task = MAZES[maze]
    return EvalEnvSpec(
        task.env_id,
        {"maze_map": _marked(maze, g=task.goal_cell), "continuing_task": True, "reset_target": False},
        task.episode_steps,
        cell_center(maze, task.goal_cell),
    )


def _marked(maze: str, **cells: tuple[int, int]) -> list[list[int | str]]:
    """The map for gymnasium-robotics, with a letter in some cells: "r" where the robot starts, "g" at the goal."""
    grid: list[list[int | str]] = [list(row) for row in maze_map(maze)]
    for letter, (i, j) in cells.items():
        grid[i][j] = letter
    return grid


def file_environment(task: str) -> EvalEnvSpec | None:
    """Evaluation environment of the D4RL files of a task; None if there is none."""
    if family(task) == "maze2d":
        maze = task.split("-")[1]
        spec = evaluation_spec(maze)
        kwargs = spec.kwargs | ({"reward_type": "dense"} if task.endswith("-dense") else {})
        goal = np.array([[*MAZES[maze].goal_cell, 0, 0]], dtype=np.float32)  # D4RL's: 0.2 off the center of the cell
        x, y = from_d4rl_frame(maze, goal, goal[:, :2])[0][0, :2].astype(float).round(6).tolist()
        return replace(spec, kwargs=kwargs, goal=(x, y))
    if task not in ENVIRONMENTS:
        return None
    spec = _registered(task)
    return replace(spec, observation_columns=_KITCHEN_POSITIONS) if family(task) == "kitchen" else spec


def _registered(task: str) -> EvalEnvSpec:
    name = ENVIRONMENTS[task]
    return EvalEnvSpec(name, max_episode_steps=environments.find(name).max_episode_steps)


def environment_of(dataset_id: str) -> EvalEnvSpec | None:
    """Evaluation environment of a dataset that ld_agents makes, or of a D4RL file, from its name; None for others."""
    for drawn_from in get_args(DrawnFrom):
        if dataset_id.endswith(suffix := f"{DRAWN_GOALS}{drawn_from}"):
            spec = environment_of(dataset_id.removesuffix(suffix))
            return None if spec is None else spec.with_drawn_goals(drawn_from)
    if dataset_id.startswith("ld-agents/") and dataset_id in TASKS:
        task = TASKS[dataset_id]
        if family(task) != "maze2d":
            return _registered(task)
        return replace(evaluation_spec(task.removeprefix("maze2d-")), disturbance=Disturbance.of(dataset_id))
    name = d4rl_name(dataset_id)
    return None if name is None else file_environment(D4RL_TASKS[name])


def hub_environment(dataset_id: str, named: EvalEnvSpec | None) -> EvalEnvSpec | None:
    """Evaluation environment of a dataset from Minari's hub, with the errors of its metadata corrected.

    Args:
        dataset_id: Minari id.
        named: what the metadata name.
    """
    task = TASKS.get(dataset_id, "")
    # The metadata of Adroit and Kitchen name the environment of the recording: 625 steps for a human's demonstration,
    # and in the kitchen a reward in every step for each task that is done.
    if family(task) in ("adroit", "kitchen"):
        return _registered(task)
    if family(task) == "antmaze" and named is not None:
        # The metadata of umaze name another maze than that of the recording, open on the other side; and in all of them
        # the episode continues at the goal, where D4RL ends it.
        maze = task.removeprefix("antmaze-")
        start, goal = _MINARI_ANTMAZE[maze]
        grid = _marked(maze, r=start, g=goal)
        return replace(named, kwargs=named.kwargs | {"maze_map": grid, "continuing_task": False})
    return named


def check_env(
    env: Any,
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Space[Any] | None,
    observation_keys: Sequence[str] | None = None,
    *,
    given: bool = False,
) -> None:
    """The one comparison of an environment's spaces with those of data or of an agent.

    Args:
        env: anything with `observation_space` and `action_space`.
        observation_space, action_space: of the data or the agent; None, and kinds that are not learned from here: not
            compared.
        observation_keys: the parts of a dictionary that are concatenated.
        given: the bounds of the actions were given with the data; otherwise they may have been read off the actions.

    Warns:
        UserWarning: bounds of actions differ that were not given.

    Raises:
        ValueError: all other differences; the message says what to do.
    """
    found, instead = env.action_space, f"Use the one that the data were recorded in, with its wrappers, and not {env}."
    if isinstance(action_space, spaces.Box):
        if not isinstance(found, spaces.Box) or found.shape != action_space.shape:
            raise ValueError(f"The environment takes actions in {found}, the data have {action_space}. {instead}")
        if not all(np.allclose(getattr(found, end), getattr(action_space, end), atol=1e-5) for end in ("low", "high")):
            problem = (
                f"The environment takes actions in {found}, the data have {action_space}. If the units are the "
                f"same, pass the environment's action_space to OfflineDataset; otherwise scores mean nothing. {instead}"
            )
            if given:
                raise ValueError(problem)
            warnings.warn(problem, stacklevel=3)
    seen, keys = env.observation_space, observation_keys or ()
    if isinstance(observation_space, spaces.Box | spaces.Dict) and isinstance(seen, spaces.Box | spaces.Dict):
        sizes = [
            sum(math.prod(space[key].shape or ()) for key in keys if key in space.spaces)
            if isinstance(space, spaces.Dict)
            else math.prod(space.shape)
            for space in (seen, observation_space)
        ]
        if sizes[0] != sizes[1] or (isinstance(seen, spaces.Dict) and not keys):
            raise ValueError(
                f"The environment observes {seen}, of which {sizes[0]} numbers are used; the data have {sizes[1]} "
                f"numbers. {instead}"
            )


# -- wrappers ------------------------------------------------------------------------------------------------------


class ObservationColumns(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Keep some columns of a flat observation.

    Args:
        env: observes a flat vector [S].
        columns: what is kept, in this order.

    Raises:
        TypeError: the environment observes something else.
        IndexError: a column is not among the S.
    """

    def __init__(self, env: gym.Env[Any, Any], columns: Sequence[int]) -> None:
        self.columns = [int(column) for column in columns]
        gym.utils.RecordConstructorArgs.__init__(self, columns=self.columns)
        gym.ObservationWrapper.__init__(self, env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise TypeError(f"{env} observes {space}, which has no columns to keep. Leave observation_columns out.")
        low, high = space.low[self.columns], space.high[self.columns]
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: Any) -> Any:
        """The columns of an observation [S] that are kept."""
        return observation[self.columns]


class FixedGoal(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Hold the goal of a gymnasium-robotics maze at one place, where the environment alone would jitter it.

    Args:
        env: a maze environment (PointMaze or AntMaze).
        goal: the goal's position [2] in meters.

    Raises:
        TypeError: the environment is not a maze.
    """

    def __init__(self, env: gym.Env[Any, Any], goal: Any) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, goal=[float(g) for g in goal])
        gym.Wrapper.__init__(self, env)
        if not hasattr(env.unwrapped, "update_target_site_pos"):
            raise TypeError(
                f"{env} is not a maze of gymnasium-robotics, so its goal cannot be held fixed. Leave the goal out."
            )
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
