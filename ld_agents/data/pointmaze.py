"""PointMaze data made on the spot with D4RL's maze2d recipe.

A way-point controller drives a point through the maze towards one random target after the other and is never reset.
Action = clip(clip(10 * (way-point - position) - velocity) + N(0, 0.5)); the way-points are the centers of the cells on
a shortest path, jittered by up to 0.1; the last one is the target, in any cell but the present one. Within 0.1 of the
target, or after 300/600/800 steps, the next target is drawn. Source: Fu et al. 2020, "D4RL", section on Maze2D, and its
generation script; the simulator is gymnasium-robotics' PointMaze.

D4RL sets a timeout where the target changes. Here an episode is 1,000 steps of the trajectory, as the environment
itself has it (`reset_target=True` draws a new goal within an episode): the motion continues across a change of
target, and a planner has to see what it looks like to arrive and turn around. LDCQ's released code ignores those
timeouts too.

The steps are recorded in chunks of 100,000. Every chunk is a trajectory of its own with its own random stream, so that
the data do not depend on the number of processes.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np

from ld_agents.data import recording
from ld_agents.data.recording import Check, Episode
from ld_agents.data.storage import is_local
from ld_agents.evaluation.disturbances import DISTURBED, Disturbance, Push, executed
from ld_agents.evaluation.environments import register_robotics
from ld_agents.evaluation.eval_env import evaluation_spec
from ld_agents.evaluation.mazes import MAZES, cell_center, free_cells, maze_map, next_cells
from ld_agents.evaluation.scores import REFERENCE_SCORES

CHUNK_STEPS = 100_000
EPISODE_STEPS = 1_000
SEGMENTS_CHECKED = 60
SEGMENT_STEPS = 200  # replayed open loop
REPLAY_TOLERANCE = 1e-6
_WAYPOINT_RADIUS = 0.1
_JITTER = 0.1

# id -> (maze, steps, evaluation episodes of the reference policies)
BUILT_IN: dict[str, tuple[str, int, int]] = {
    **{f"ld-agents/pointmaze/{maze}-v0": (maze, 1_000_000, 100) for maze in MAZES},
    "ld-agents/pointmaze/umaze-10k-v0": ("umaze", 10_000, 20),
    "ld-agents/pointmaze/umaze-100k-v0": ("umaze", 100_000, 20),
    "ld-agents/pointmaze/large-100k-v0": ("large", 100_000, 100),
    "ld-agents/pointmaze/large-300k-v0": ("large", 300_000, 100),
    **{f"ld-agents/pointmaze/{name}-v0": ("large", 1_000_000, 100) for name in DISTURBED},
}


class _Controller:
    """D4RL's way-point controller on cell centers."""

    def __init__(self, maze: str) -> None:
        grid = maze_map(maze)
        self._rows, self._columns = len(grid), len(grid[0])
        self.free = free_cells(maze)
        self._maze = maze
        self._path: deque[tuple[float, float]] = deque()

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """The free cell at (x, y), or the nearest one where the point touches a wall."""
        at = math.floor(self._rows / 2 - y), math.floor(x + self._columns / 2)
        if at in self.free:
            return at
        return min(self.free, key=lambda c: math.dist(cell_center(self._maze, c), (x, y)))

    def aim(
        self, x: float, y: float, cell: tuple[int, int], target: tuple[float, float], jitter: Callable[[], float]
    ) -> None:
        """Plan from (x, y) to ``target``, a point in ``cell``."""
        step, at = next_cells(self._maze)[cell], self.cell(x, y)
        self._path.clear()
        while at != cell:
            at = step[at]
            if at != cell:
                cx, cy = cell_center(self._maze, at)
                self._path.append((cx + jitter(), cy + jitter()))
        self._path.append(target)

    def act(self, x: float, y: float, vx: float, vy: float) -> tuple[float, float, bool]:
        """Action in [-1, 1] and whether the target is reached (it was within 0.1 of the point)."""
        wx, wy = self._path[0]
        near = math.hypot(wx - x, wy - y) < _WAYPOINT_RADIUS
        if near and len(self._path) > 1:
            self._path.popleft()
            wx, wy = self._path[0]
            near = False
        return _clipped(10.0 * (wx - x) - vx), _clipped(10.0 * (wy - y) - vy), near


def _clipped(action: float) -> float:
    return min(1.0, max(-1.0, action))


def _stream(maze: str, seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, list(MAZES).index(maze)], spawn_key=path))


def _drive(
    maze: str, seed: int, chunk: int, n_steps: int, disturbance: Disturbance | None = None
) -> dict[str, np.ndarray]:
    """One never-reset trajectory: states [n + 1, 4], actions [n, 2], and the goal in force at each state [n + 1, 2].

    With a disturbance also its `pushes`, [n, 2, 2].
    """
    env = evaluation_spec(maze).make()
    env.reset(seed=0)
    maze_env: Any = env.unwrapped
    point = maze_env.point_env
    controller = _Controller(maze)
    noise = _stream(maze, seed, chunk, 0).normal(0.0, 0.5, (n_steps, 2))
    rng = _stream(maze, seed, chunk, 1)

    def jitter() -> float:
        return float(rng.uniform(-_JITTER, _JITTER))

    def jittered(cell: tuple[int, int]) -> tuple[float, float]:
        x, y = cell_center(maze, cell)
        return x + jitter(), y + jitter()

    start = controller.free[int(rng.integers(len(controller.free)))]
    point.set_state(np.array(jittered(start)), rng.normal(0.0, 0.1, 2))
    states = np.empty((n_steps + 1, 4))
    actions = np.empty((n_steps, 2), dtype=np.float32)
    states[0] = np.concatenate([point.data.qpos, point.data.qvel])
    goals = np.empty((n_steps + 1, 2))
    drive: dict[str, np.ndarray] = {"states": states, "actions": actions, "goals": goals}
    if disturbance:
        drive["pushes"] = np.array(list(islice(disturbance.pushes(_stream(maze, seed, chunk, 2)), n_steps)))
    x, y, vx, vy = states[0].tolist()
    reached, left = True, 0
    for t in range(n_steps):
        if reached or not left:
            here = controller.cell(x, y)
            others = [cell for cell in controller.free if cell != here]
            goal_cell = others[int(rng.integers(len(others)))]
            goal = jittered(goal_cell)
            controller.aim(x, y, goal_cell, goal, jitter)
            left = MAZES[maze].episode_steps
        goals[t] = goals[t + 1] = goal
        ax, ay, reached = controller.act(x, y, vx, vy)
        actions[t] = _clipped(ax + noise[t, 0]), _clipped(ay + noise[t, 1])
        action = executed(point, actions[t], Push(*drive["pushes"][t])) if disturbance else actions[t]
        states[t + 1] = point.step(action)[0]
        x, y, vx, vy = states[t + 1].tolist()
        left -= 1
    env.close()
    return drive


def play_reference(
    maze: str, seed: int, policy: str, episodes: int, disturbance: Disturbance | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns [episodes] by both protocols, environment and first contact, of a policy in the evaluation environment.

    `policy`: "controller", without noise, or "random", uniform actions.
    """
    env = replace(evaluation_spec(maze), disturbance=disturbance).make()
    task = MAZES[maze]
    controller = _Controller(maze)
    goal = cell_center(maze, task.goal_cell)
    returns, contacts = np.zeros(episodes), np.zeros(episodes)
    rng = _stream(maze, seed, 1_000_000, 0)
    for episode in range(episodes):
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        x, y, vx, vy = observation["observation"].tolist()
        controller.aim(x, y, task.goal_cell, goal, lambda: 0.0)
        done, step = False, 0
        while not done:
            action = controller.act(x, y, vx, vy)[:2] if policy == "controller" else rng.uniform(-1, 1, 2)
            observation, reward, terminated, truncated, _ = env.step(np.array(action, dtype=np.float32))
            x, y, vx, vy = observation["observation"].tolist()
            done, step = terminated or truncated, step + 1
            returns[episode] += float(reward)
            if float(reward) > 0 and contacts[episode] == 0:
                contacts[episode] = step
    env.close()
    return returns, np.where(contacts > 0, task.episode_steps - contacts + 1, 0)


@dataclass(frozen=True)
class _Drives:
    """`steps` steps in a maze, in chunks of `chunk_steps`; see `recording.Part`."""

    maze: str
    steps: int
    chunk_steps: int
    disturbance: Disturbance | None = None

    @property
    def chunks(self) -> int:
        return math.ceil(self.steps / self.chunk_steps)

    def record(self, entropy: tuple[int, ...]) -> tuple[list[Episode], Check]:
        """Episodes whose observations are states and goals [T + 1, 6]; segments of them are replayed in evaluation."""
        seed, chunk = entropy
        disturbed = [self.disturbance] if self.disturbance else []
        n_steps = min(self.chunk_steps, self.steps - chunk * self.chunk_steps)
        drive = _drive(self.maze, seed, chunk, n_steps, *disturbed)
        states, actions, goals = drive["states"], drive["actions"], drive["goals"]
        env = replace(evaluation_spec(self.maze), disturbance=self.disturbance).make()
        maze: Any = env.unwrapped

        def pieces(observations: np.ndarray, length: int, goals: np.ndarray) -> list[Episode]:
            rewards, terminals = maze.compute_reward(states[1:, :2], goals, {}), np.zeros(len(actions), dtype=bool)
            slices = [slice(t, t + length) for t in range(0, len(actions), length)]
            return [
                Episode(observations[rows.start : rows.stop + 1], actions[rows], rewards[rows], terminals[rows])
                for rows in slices
            ]

        def begin(env: gym.Env[Any, Any], segment: Episode) -> np.ndarray:
            env.reset(seed=0)
            start: np.ndarray = segment.observations[0]
            maze.point_env.set_state(start[:2], start[2:])
            if self.disturbance:  # what happened in the recording
                rows = drive["pushes"][SEGMENT_STEPS * next(places) :]
                env.get_wrapper_attr("repeat")(Push(*push) for push in rows)
            return start

        segments = pieces(states, SEGMENT_STEPS, np.array(evaluation_spec(self.maze).goal))
        count = min(math.ceil(SEGMENTS_CHECKED / self.chunks), len(segments))
        chosen = np.linspace(0, len(segments) - 1, count).astype(int)
        places = iter(chosen)
        flat = gym.wrappers.TransformObservation(env, lambda seen: seen["observation"], None)
        check = recording.replay(flat, [segments[index] for index in chosen], begin)
        env.close()
        return pieces(np.concatenate([states, goals], axis=1), EPISODE_STEPS, goals[:-1]), check


def generate(
    maze: str,
    dataset_id: str,
    n_steps: int = 1_000_000,
    seed: int = 0,
    *,
    evaluation_episodes: int = 100,
    processes: int | None = None,
    show_progress: bool = True,
) -> None:
    """Record a PointMaze dataset into the local Minari folder, whole or not at all, unless it is there already.

    A second process that asks for it waits for the first. A call that was killed resumes with the next one.

    Args:
        maze: ``"umaze"``, ``"medium"`` or ``"large"``.
        dataset_id: Minari id under which it is stored, for instance ``"ld-agents/pointmaze/umaze-v0"``.
        n_steps: number of steps.
        seed: the data are a function of maze, n_steps and seed, whatever the number of processes.
        evaluation_episodes: episodes over which the reference policies (controller, uniform) are measured.
        processes: worker processes; None: one per core.
        show_progress: show a progress bar.

    Raises:
        ValueError: unknown maze or a malformed id.
        FileExistsError: a folder of that name is there, but it holds no dataset.
        ImportError: gymnasium-robotics is not installed.
        RuntimeError: a worker process failed, or the stored steps do not replay in the simulator.
    """
    from tqdm import tqdm

    if maze not in MAZES:
        raise ValueError(f"Unknown maze {maze!r}. Choose one of {tuple(MAZES)}.")
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}. It must be at least 1.")
    register_robotics()
    disturbance = Disturbance.of(dataset_id)
    part = _Drives(maze, n_steps, CHUNK_STEPS, disturbance)
    if processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # A process takes seconds to start: a small dataset is recorded in this one.
        processes = min(cores, part.chunks + 2) if part.chunks > 1 else 1
    made_with = {"part": repr(part), "seed": seed, "versions": recording.versions()}
    with (
        recording.work_folder(dataset_id, made_with) as work,
        recording.worker_pool(processes) as run,
        tqdm(total=n_steps, unit="step", unit_scale=True, desc=f"pointmaze {maze}", disable=not show_progress) as bar,
    ):
        if is_local(dataset_id):
            return
        task, spec = MAZES[maze], replace(evaluation_spec(maze), disturbance=disturbance)
        checks: list[Check] = []
        env: Any = gym.make(task.env_id, max_episode_steps=1_000_000, continuing_task=True, reset_target=True)
        if env.unwrapped.maze.maze_map != maze_map(maze):
            raise RuntimeError(f"The map of {task.env_id} differs from D4RL's. Install gymnasium-robotics 1.4.")
        policies = ("controller", "random")
        how = [maze] * 2, [seed] * 2, policies, [evaluation_episodes] * 2, [disturbance] * 2
        played = run(play_reference, *how)

        def episodes() -> Iterator[Episode]:
            for recorded, check, _ in recording.recorded_chunks(part, (seed,), work / "chunks", run):
                checks.append(check)
                for episode in recorded:
                    rows = episode.observations
                    bar.update(len(episode.actions))
                    parts = {"observation": rows[:, :4], "achieved_goal": rows[:, :2], "desired_goal": rows[:, 4:]}
                    yield replace(episode, observations=parts)

        def metadata() -> dict[str, Any]:
            check = recording.merge_checks(checks, REPLAY_TOLERANCE)
            if not check["passed"]:
                shutil.rmtree(work)
                raise RuntimeError(
                    f"The stored steps do not replay in the simulator: {check}. The dataset was not kept."
                )
            controller: dict[str, float] = {"episodes": evaluation_episodes}
            for policy, (returns, first_contact) in zip(policies, played, strict=True):
                controller[f"{policy}_return"] = float(returns.mean())
                controller[f"{policy}_first_contact_return"] = float(first_contact.mean())
            reference, evaluated = REFERENCE_SCORES[f"ld-agents/pointmaze/{maze}-v0"], spec.make().spec
            assert evaluated is not None
            return {
                "algorithm_name": "D4RL way-point controller",
                "code_permalink": "ld_agents/data/pointmaze.py",
                "description": (
                    f"Regenerated with D4RL's maze2d recipe on {task.env_id} ({n_steps:,} steps, seed {seed}); these "
                    "are not D4RL's own files. A way-point controller with Gaussian action noise (standard deviation "
                    "0.5) drives the point along shortest paths to one random target after the other. The point is "
                    f"never reset within {CHUNK_STEPS:,} steps. The next target is drawn within 0.1 of the present one "
                    f"or after {task.episode_steps} steps; unlike in D4RL's files this is no timeout: an episode is "
                    f"{EPISODE_STEPS:,} steps long and its goal changes on the way. The evaluation environment has "
                    f"D4RL's goal, cell {task.goal_cell}, and pays 1 for every step within 0.45 of it. Reference "
                    f"scores are D4RL's{f', of the undisturbed maze. {disturbance}' if disturbance else ''}."
                ),
                "eval_env_spec": evaluated.to_json(),
                "ref_min_score": reference.minimum,
                "ref_max_score": reference.maximum,
                "num_episodes_average_score": 100,
                "requirements": ["gymnasium-robotics>=1.4", "mujoco>=3.3"],
                "ld_agents": {
                    "provenance": "recorded" if disturbance else "regenerated",
                    "seed": seed,
                    "evaluation_goal": spec.goal,
                    "replay_check": check,
                    "controller": controller,
                    "versions": recording.versions(),
                },
            }

        recording.store(dataset_id, env, episodes(), metadata, work)
