"""D4RL's AntMaze, Adroit and Kitchen tasks on today's simulators, as Gymnasium environments with flat observations.

`register` puts them into Gymnasium's registry:

* ``ld_agents/AntMaze-umaze-v0``, ``-medium-v0``, ``-large-v0``;
* ``ld_agents/AdroitPen-v0``, ``AdroitHammer-v0``, ``AdroitDoor-v0``, ``AdroitRelocate-v0``;
* ``ld_agents/Kitchen-complete-v0``, ``-partial-v0``, ``-mixed-v0``;
* ``ld_agents/CarRacing-v0`` (`car_racing.py`), which is not of D4RL: its observations are images.

Source of the rules: Fu et al. 2020, "D4RL", and its environments. Where a class departs from them, it says so.
"""

from __future__ import annotations

import math
import re
import tempfile
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ld_agents.evaluation.car_racing import CAR_RACING_STEPS, CarRacing
from ld_agents.evaluation.mazes import maze_map

Start = tuple[NDArray[np.float64], dict[str, Any]]  # what `reset` returns
Step = tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]  # what `step` returns

ANTMAZE_GOALS = {"umaze": (3, 1), "medium": (6, 6), "large": (7, 9)}
CELL_SIZE = 4.0  # meters
GOAL_RADIUS = 0.5  # meters
_ANTMAZE_STEPS = {"umaze": 700, "medium": 1000, "large": 1000}
_START_CELL = (1, 1)

ADROIT_STEPS = {"Pen": 100, "Hammer": 200, "Door": 200, "Relocate": 200}
_PEN_DROPPED = 0.075  # height of a pen that fell, meters

KITCHEN_TASKS = {
    "complete": ("microwave", "kettle", "light switch", "slide cabinet"),
    "partial": ("microwave", "kettle", "light switch", "slide cabinet"),
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}


def register() -> None:
    """Put the environments of this file into Gymnasium's registry; simulators are only imported when one is made."""
    entries: list[tuple[str, type, dict[str, Any], int]] = [
        *((f"AntMaze-{maze}", AntMaze, {"maze": maze}, steps) for maze, steps in _ANTMAZE_STEPS.items()),
        *((f"Adroit{task}", Adroit, {"task": task}, steps) for task, steps in ADROIT_STEPS.items()),
        *((f"Kitchen-{name}", Kitchen, {"tasks": list(tasks)}, 280) for name, tasks in KITCHEN_TASKS.items()),
        ("CarRacing", CarRacing, {}, CAR_RACING_STEPS),
    ]
    for name, cls, kwargs, steps in entries:
        env_id, entry_point = f"ld_agents/{name}-v0", f"{cls.__module__}:{cls.__name__}"
        if env_id not in gym.registry:
            gym.register(env_id, entry_point, max_episode_steps=steps, kwargs=kwargs)


def register_robotics() -> None:
    """Put gymnasium-robotics' environments into Gymnasium's registry.

    Raises:
        ImportError: gymnasium-robotics is not installed.
    """
    try:
        import gymnasium_robotics
    except ImportError as error:
        raise ImportError(
            "gymnasium-robotics and mujoco, which most environments of the benchmark need, are not installed. Install "
            'them with: pip install "ld_agents[bench]"'
        ) from error
    gym.register_envs(gymnasium_robotics)


def find(env_id: str) -> gym.envs.registration.EnvSpec:
    """The entry of Gymnasium's registry for an environment, also of this file or of gymnasium-robotics.

    Raises:
        ValueError: there is none.
        ImportError: there is none, but gymnasium-robotics, where it may come from, is not installed.
    """
    register()
    if env_id not in gym.registry:
        register_robotics()
    if env_id not in gym.registry:
        raise ValueError(
            f"The environment {env_id!r} is not in Gymnasium's registry. Import the package that registers it first "
            "(make_datasets.py takes module:id), or make the environment yourself."
        )
    return gym.registry[env_id]


def make(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """`gymnasium.make` without its advice to take the newest version: D4RL's numbers belong to an older one."""
    if env_id.startswith("FrankaKitchen"):
        from gymnasium_robotics.envs.franka_kitchen import franka_env

        franka_env.robot_get_obs = _robot_state  # its own raises an AssertionError from MuJoCo 3.12 on
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is out of date", DeprecationWarning)
        return gym.make(env_id, **kwargs)


def _robot_state(model: Any, data: Any, joint_names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions and velocities of the kitchen robot's joints, each [9]."""
    joints = [data.joint(name) for name in joint_names if name.startswith("robot")]
    return np.concatenate([joint.qpos for joint in joints]), np.concatenate([joint.qvel for joint in joints])


def has_new_contacts(mujoco: str) -> bool:
    """Whether a version of MuJoCo has the contacts of 3.5.0. Scores and data made on either side are not comparable:

    the same actions from the same state lead elsewhere by more than 0.01 within one step of the first contact.
    """
    return tuple(int(part) for part in re.findall(r"\d+", mujoco)[:2]) >= (3, 5)


class _Simulation(gym.Env[NDArray[np.float64], NDArray[Any]]):
    """What the environments of this file share: a simulator inside, and flat observations."""

    def __init__(self, simulator: Any, observation_size: int, render_mode: str | None) -> None:
        self.simulator = simulator
        self.metadata = simulator.metadata
        self.render_mode = render_mode
        self.action_space = simulator.action_space
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (observation_size,), np.float64)

    @property
    def model(self) -> Any:
        """MuJoCo's model."""
        return self.simulator.model

    @property
    def data(self) -> Any:
        """MuJoCo's state."""
        return self.simulator.data

    def render(self) -> Any:
        return self.simulator.render()

    def close(self) -> None:
        self.simulator.close()


class AntMaze(_Simulation):
    """D4RL's AntMaze -v2: a four-legged robot in a maze, from one fixed start to a goal cell.

    Observations [29]: position x, y in meters, the 13 other numbers of the pose, 14 velocities; D4RL's order and D4RL's
    frame (the start cell is the origin, x grows with the column and y with the row of the map). Actions [8]: torques in
    [-1, 1]. Reward 1 within 0.5 m of the goal, which ends the episode; ``info["success"]`` says the same.

    The ant is Gymnasium's, with D4RL's physics: time step 0.02 s (five of them per action), gear 30, and contacts with
    ``solimp=".8 .8 .01"``. As in D4RL's -v2, every episode draws its goal anew, up to 1.5 m beyond the center of the
    goal cell on either axis (`draw_goal`). The observation does not hold it, and the rewards of D4RL's data are those
    of one such goal.

    ``reset(options={"start": [x, y], "goal": [x, y]})`` starts elsewhere, and has its goal there if no other is fixed.

    Args:
        maze: ``"umaze"``, ``"medium"`` or ``"large"``; others raise a ValueError.
        goal: position [2] of the goal in all episodes, in meters; None: drawn.
        render_mode: see Gymnasium.
    """

    def __init__(self, maze: str, goal: Sequence[float] | None = None, render_mode: str | None = None) -> None:
        from gymnasium.envs.mujoco.ant_v5 import AntEnv

        if maze not in ANTMAZE_GOALS:
            raise ValueError(f"Unknown maze {maze!r}. Choose one of {tuple(ANTMAZE_GOALS)}.")
        with tempfile.TemporaryDirectory() as folder:  # MuJoCo only reads models from files
            model = Path(folder) / "ant.xml"
            _antmaze_model(maze).write(model)
            ant = AntEnv(
                str(model),
                frame_skip=5,
                exclude_current_positions_from_observation=False,
                include_cfrc_ext_in_observation=False,
                render_mode=render_mode,
            )
        super().__init__(ant, 29, render_mode)
        self.walls = maze_map(maze)
        self._goal_cell = ANTMAZE_GOALS[maze]
        self._fixed_goal = goal
        self.goal = np.array(typical_goal(self._goal_cell) if goal is None else goal, dtype=np.float64)

    def _observation(self) -> NDArray[np.float64]:
        return np.concatenate([self.data.qpos, self.data.qvel])

    def _reached(self) -> bool:
        return math.dist(self.data.qpos[:2], self.goal) <= GOAL_RADIUS

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        super().reset(seed=seed)
        self.simulator.reset(seed=seed)
        options = options or {}
        if "start" in options:
            pose = self.data.qpos.copy()
            pose[:2] += options["start"]
            self.simulator.set_state(pose, self.data.qvel.copy())
        if self._fixed_goal is None:
            goal = options["goal"] if "goal" in options else draw_goal(self._goal_cell, self.np_random)
            self.goal = np.array(goal, dtype=np.float64)
        return self._observation(), {"success": self._reached()}

    def step(self, action: NDArray[Any]) -> Step:
        self.simulator.do_simulation(np.clip(action, -1.0, 1.0), self.simulator.frame_skip)
        reached = self._reached()
        if self.render_mode == "human":
            self.render()
        return self._observation(), float(reached), reached, False, {"success": reached}


def cell_position(cell: tuple[int, int]) -> tuple[float, float]:
    """Position (x, y) in meters of the center of a cell (row, column) of an AntMaze, in D4RL's frame."""
    return CELL_SIZE * (cell[1] - _START_CELL[1]), CELL_SIZE * (cell[0] - _START_CELL[0])


def draw_goal(cell: tuple[int, int], rng: np.random.Generator) -> tuple[float, float]:
    """A goal of D4RL's in a cell: (x, y) in meters, each the center's plus U(0, 1) plus U(0, 0.5)."""
    x, y = cell_position(cell)
    dx, dy = rng.uniform(0.0, 1.0, 2) + rng.uniform(0.0, 0.5, 2)
    return x + float(dx), y + float(dy)


def typical_goal(cell: tuple[int, int]) -> tuple[float, float]:
    """The mean of `draw_goal`."""
    x, y = cell_position(cell)
    return x + 0.75, y + 0.75


def _antmaze_model(maze: str) -> ElementTree.ElementTree[Any]:
    """Gymnasium's ant with D4RL's physics, between the walls of a maze."""
    import gymnasium.envs.mujoco as mujoco_environments

    tree = ElementTree.parse(Path(mujoco_environments.__path__[0]) / "assets" / "ant.xml")
    edits = {
        "option": {"timestep": "0.02"},
        "default/geom": {"solref": ".02 1", "solimp": ".8 .8 .01"},
        **{f"actuator/motor[{i}]": {"gear": "30"} for i in range(1, 9)},
    }
    for place, attributes in edits.items():
        element = tree.find(place)
        if element is None:
            raise RuntimeError(f"Gymnasium's ant.xml has no {place}. Install gymnasium 1.0 to 1.4.")
        element.attrib.update(attributes)
    world = tree.find("worldbody")
    assert world is not None
    height = CELL_SIZE / 4
    for i, row in enumerate(maze_map(maze)):
        for j, wall in enumerate(row):
            if wall:
                x, y = cell_position((i, j))
                box = {"type": "box", "pos": f"{x} {y} {height}", "size": f"{CELL_SIZE / 2} {CELL_SIZE / 2} {height}"}
                touch = {"contype": "1", "conaffinity": "1", "rgba": "0.7 0.5 0.3 1"}
                ElementTree.SubElement(world, "geom", box | touch, name=f"wall_{i}_{j}")
    return tree


class Adroit(_Simulation):
    """D4RL's Adroit tasks: a hand that turns a pen, hammers a nail, opens a door or moves a ball.

    The simulator is gymnasium-robotics' ``AdroitHand*-v1``, from which this class corrects:

    * the sign of the reward's first term in hammer, door and relocate: D4RL pays -0.1 times the distance between palm
      and object, gymnasium-robotics 1.4.2 +0.1 times (what the installed version pays is measured at construction);
    * pen ends when the pen is dropped, and after 100 steps (gymnasium-robotics: never, and after 200);
    * ``info["success"]`` follows the rule of D4RL's authors: more than 25 steps at the goal so far (pen: 20).
      ``info["goal_achieved"]`` is gymnasium-robotics' flag of the single step.

    Observations [45], [46], [39], [39] for pen, hammer, door and relocate; actions [24], [26], [28], [30] in [-1, 1].
    ``reset(options={"initial_state_dict": ...})`` starts from a given state, see gymnasium-robotics.

    Args:
        task: ``"Pen"``, ``"Hammer"``, ``"Door"`` or ``"Relocate"``; others raise a ValueError.
        render_mode: see Gymnasium.

    Raises:
        ImportError: gymnasium-robotics is not installed.
    """

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        if task not in ADROIT_STEPS:
            raise ValueError(f"Unknown task {task!r}. Choose one of {tuple(ADROIT_STEPS)}.")
        register_robotics()
        simulator: Any = make(f"AdroitHand{task}-v1", render_mode=render_mode, disable_env_checker=True).unwrapped
        super().__init__(simulator, simulator.observation_space.shape[0], render_mode)
        self.task = task
        self._steps_at_goal = 0
        self._correction = 0.0 if task == "Pen" else -0.1 - self._paid_per_meter()

    def _paid_per_meter(self) -> float:
        """What the simulator pays per meter between palm and object: its reward with the palm moved and nothing else.

        Raises:
            RuntimeError: neither +0.1 nor -0.1, so that the reward is another than the one that is corrected here.
        """
        simulator, rewards, distances = self.simulator, [], []
        site = simulator.grasp_site_id if self.task == "Door" else simulator.S_grasp_site_id
        palm = simulator.data.site_xpos[site]
        before = palm.copy()
        simulator.do_simulation = lambda *_: None  # a step that only looks
        try:
            for away in (1.0, 2.0):
                palm[:] = before + away
                observation, reward, *_ = simulator.step(np.zeros(simulator.action_space.shape, np.float32))
                rewards.append(float(np.squeeze(reward)))
                distances.append(self._distance(observation))
        finally:
            del simulator.do_simulation
            palm[:] = before
        paid = round((rewards[1] - rewards[0]) / (distances[1] - distances[0]), 6)
        if paid not in (0.1, -0.1):
            raise RuntimeError(
                f"AdroitHand{self.task}-v1 pays {paid} per meter between palm and object, neither its own rule nor "
                'D4RL\'s. Install the version that ld_agents knows: pip install "ld_agents[bench]"'
            )
        return paid

    def _distance(self, observation: NDArray[Any]) -> float:
        """From the palm to the object, in meters."""
        columns = {"Door": slice(35, 38), "Relocate": slice(30, 33)}
        offset = observation[33:36] - observation[36:39] if self.task == "Hammer" else observation[columns[self.task]]
        return float(np.linalg.norm(offset))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        super().reset(seed=seed)
        self._steps_at_goal = 0
        observation, _ = self.simulator.reset(seed=seed, options=options)
        return observation, {"success": False, "goal_achieved": False}

    def step(self, action: NDArray[Any]) -> Step:
        observation, reward, _, _, info = self.simulator.step(action)
        reward = float(reward)
        if self._correction:
            reward += self._correction * self._distance(observation)
        dropped = self.task == "Pen" and bool(observation[26] < _PEN_DROPPED)
        achieved = bool(info["success"])
        self._steps_at_goal += achieved
        success = self._steps_at_goal > (20 if self.task == "Pen" else 25)
        return observation, reward, dropped, False, {"success": success, "goal_achieved": achieved}


class Kitchen(_Simulation):
    """D4RL's Kitchen tasks: a robot arm that has to bring four things of a kitchen into their wanted state.

    The simulator is gymnasium-robotics' ``FrankaKitchen-v1``. Of its observation only the flat part is kept ([59]: nine
    joints, their velocities, positions and velocities of the objects); D4RL's 60 numbers end in the goal instead of the
    velocities of the objects. Actions [9] in [-1, 1]. The reward is the number of tasks newly done in the step, so the
    return lies between 0 and 4; when all are done the episode ends and ``info["success"]`` is true.

    Args:
        tasks: names of the tasks, see gymnasium-robotics.
        render_mode: see Gymnasium.

    Raises:
        ImportError: gymnasium-robotics is not installed.
    """

    def __init__(self, tasks: Sequence[str], render_mode: str | None = None) -> None:
        register_robotics()
        simulator = make(
            "FrankaKitchen-v1", tasks_to_complete=list(tasks), render_mode=render_mode, disable_env_checker=True
        ).unwrapped
        super().__init__(simulator, 59, render_mode)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        super().reset(seed=seed)
        observation, _ = self.simulator.reset(seed=seed)
        return observation["observation"], {"success": False}

    def step(self, action: NDArray[Any]) -> Step:
        observation, reward, done, _, _ = self.simulator.step(action)
        return observation["observation"], float(reward), bool(done), False, {"success": bool(done)}
