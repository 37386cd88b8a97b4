"""PointMaze data made on the spot with D4RL's maze2d recipe.

A way-point controller drives a point through the maze towards one random target after the other and is never reset.
Action = clip(clip(10 * (way-point - position) - velocity) + N(0, 0.5)); the way-points are the centres of the cells on
a shortest path, jittered by up to 0.1; the last one is the target, in any cell but the present one. Within 0.1 of the
target, or after 300/600/800 steps, the next target is drawn. Source: Fu et al. 2020, "D4RL", section on Maze2D, and its
generation script; the simulator is gymnasium-robotics' PointMaze.

D4RL sets a timeout where the target changes. Here an episode is 1,000 steps of the trajectory, as the environment
itself has it (`reset_target=True` draws a new goal within an episode): the motion goes on across a change of target,
and a planner has to see what it looks like to arrive and turn round. LDCQ's released code ignores those timeouts too.

The steps are cut in chunks of 100,000. Every chunk is a trajectory of its own with its own random stream, so that the
data do not depend on the number of processes. This file also runs as a script: that is how the worker processes start,
which needs no guard in the user's main module.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from ld_agents.data.storage import move_in
from ld_agents.evaluation.environments import register_robotics
from ld_agents.evaluation.eval_env import evaluation_spec
from ld_agents.evaluation.mazes import MAZES, cell_centre, maze_map

CHUNK_STEPS = 100_000
EPISODE_STEPS = 1_000
SEGMENTS_CHECKED = 60
SEGMENT_STEPS = 200  # replayed open loop
REPLAY_TOLERANCE = 1e-6
_REPORT_EVERY = 1_000
_WAYPOINT_RADIUS = 0.1
_JITTER = 0.1


# id -> (maze, steps, evaluation episodes of the reference policies)
BUILT_IN: dict[str, tuple[str, int, int]] = {
    "ld-agents/pointmaze/umaze-v0": ("umaze", 1_000_000, 100),
    "ld-agents/pointmaze/medium-v0": ("medium", 1_000_000, 100),
    "ld-agents/pointmaze/large-v0": ("large", 1_000_000, 100),
    "ld-agents/pointmaze/umaze-10k-v0": ("umaze", 10_000, 20),
}


class _Controller:
    """D4RL's way-point controller on cell centres."""

    def __init__(self, maze: str) -> None:
        self._grid = maze_map(maze)
        self._rows, self._columns = len(self._grid), len(self._grid[0])
        self.free = [(i, j) for i in range(self._rows) for j in range(self._columns) if not self._grid[i][j]]
        self._maze = maze
        self._next_cell = {goal: self._towards(goal) for goal in self.free}
        self._path: deque[tuple[float, float]] = deque()

    def _towards(self, goal: tuple[int, int]) -> dict[tuple[int, int], tuple[int, int]]:
        step, frontier = {goal: goal}, deque([goal])
        while frontier:
            i, j = frontier.popleft()
            for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if not self._grid[cell[0]][cell[1]] and cell not in step:
                    step[cell] = (i, j)
                    frontier.append(cell)
        return step

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """The free cell at (x, y), or the nearest one where the point touches a wall."""
        i, j = math.floor(self._rows / 2 - y), math.floor(x + self._columns / 2)
        if 0 <= i < self._rows and 0 <= j < self._columns and not self._grid[i][j]:
            return i, j
        return min(self.free, key=lambda c: math.dist(cell_centre(self._maze, c), (x, y)))

    def aim(
        self, x: float, y: float, cell: tuple[int, int], target: tuple[float, float], jitter: Callable[[], float]
    ) -> None:
        """Plan from (x, y) to ``target``, a point in ``cell``."""
        step, at = self._next_cell[cell], self.cell(x, y)
        self._path.clear()
        while at != cell:
            at = step[at]
            if at != cell:
                cx, cy = cell_centre(self._maze, at)
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
        ax = min(1.0, max(-1.0, 10.0 * (wx - x) - vx))
        ay = min(1.0, max(-1.0, 10.0 * (wy - y) - vy))
        return ax, ay, near


def _stream(maze: str, seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, list(MAZES).index(maze)], spawn_key=path))


def _make_chunk(
    maze: str, seed: int, chunk: int, n_steps: int, progress: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """One never-reset trajectory: states [n + 1, 4], actions [n, 2], and the goal in force at each state [n + 1, 2]."""
    env = evaluation_spec(maze).make()
    env.reset(seed=0)
    maze_env: Any = env.unwrapped
    point = maze_env.point_env
    limit = MAZES[maze].episode_steps
    controller = _Controller(maze)
    noise = _stream(maze, seed, chunk, 0).normal(0.0, 0.5, (n_steps, 2))
    rng = _stream(maze, seed, chunk, 1)

    def jitter() -> float:
        return float(rng.uniform(-_JITTER, _JITTER))

    def jittered(cell: tuple[int, int]) -> tuple[float, float]:
        x, y = cell_centre(maze, cell)
        return x + jitter(), y + jitter()

    start = controller.free[int(rng.integers(len(controller.free)))]
    point.set_state(np.array(jittered(start)), rng.normal(0.0, 0.1, 2))
    states = np.empty((n_steps + 1, 4))
    actions = np.empty((n_steps, 2), dtype=np.float32)
    states[0] = np.concatenate([point.data.qpos, point.data.qvel])
    goals = np.empty((n_steps + 1, 2))
    x, y, vx, vy = states[0].tolist()
    begin = -1
    for t in range(n_steps):
        if begin < 0:
            here = controller.cell(x, y)
            others = [cell for cell in controller.free if cell != here]
            goal_cell = others[int(rng.integers(len(others)))]
            goal = jittered(goal_cell)
            controller.aim(x, y, goal_cell, goal, jitter)
            begin = t
        goals[t] = goals[t + 1] = goal
        ax, ay, reached = controller.act(x, y, vx, vy)
        action = actions[t]
        action[0] = min(1.0, max(-1.0, ax + noise[t, 0]))
        action[1] = min(1.0, max(-1.0, ay + noise[t, 1]))
        state = point.step(action)[0]
        states[t + 1] = state
        x, y, vx, vy = state.tolist()
        if reached or t + 1 - begin >= limit:
            begin = -1
        if (t + 1) % _REPORT_EVERY == 0:
            progress(_REPORT_EVERY)
    env.close()
    return {"states": states, "actions": actions, "goals": goals}


def _play_reference(
    maze: str, seed: int, policy: str, episodes: int, progress: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """Returns and first contacts [episodes] of the noise-free controller, or of uniform actions, in evaluation."""
    env = evaluation_spec(maze).make()
    task = MAZES[maze]
    controller = _Controller(maze)
    goal = cell_centre(maze, task.goal_cell)
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
        progress(step)
    env.close()
    return {"returns": returns, "first_contact": contacts}


def _worker(job: dict[str, Any], progress: Callable[[int], None]) -> None:
    """Do the tasks of one process and leave each result as an .npz file."""
    for task in job["tasks"]:
        if task["kind"] == "chunk":
            result = _make_chunk(job["maze"], job["seed"], task["index"], task["steps"], progress)
        else:
            result = _play_reference(job["maze"], job["seed"], task["kind"], task["episodes"], progress)
        np.savez(task["file"], allow_pickle=False, **result)


def _run_tasks(maze: str, seed: int, tasks: list[dict[str, Any]], processes: int, show_progress: bool) -> None:
    from tqdm import tqdm

    total = sum(t["steps"] if t["kind"] == "chunk" else t["episodes"] * MAZES[maze].episode_steps for t in tasks)
    lock = threading.Lock()
    children: list[subprocess.Popen[str]] = []
    last_words: list[str] = [""] * processes
    with tqdm(total=total, unit="step", unit_scale=True, desc=f"pointmaze {maze}", disable=not show_progress) as bar:

        def advance(steps: int) -> None:
            with lock:
                bar.update(steps)

        def follow(index: int, child: subprocess.Popen[str]) -> None:
            assert child.stdout is not None
            for line in child.stdout:
                # Libraries print on import, and an exception ends with its reason; only our own lines are numbers.
                if line.strip().isdigit():
                    advance(int(line))
                elif line.strip():
                    last_words[index] = line.strip()

        if processes <= 1:
            _worker({"maze": maze, "seed": seed, "tasks": tasks}, advance)
            return
        root = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        }
        try:
            followers = []
            for index in range(processes):
                job = json.dumps({"maze": maze, "seed": seed, "tasks": tasks[index::processes]})
                # -P keeps this folder, where minari.py lies, off the import path.
                command = [sys.executable, "-P", str(Path(__file__).resolve()), job]
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=environment,
                )
                children.append(child)
                followers.append(threading.Thread(target=follow, args=(index, child), daemon=True))
                followers[-1].start()
            for index, (child, follower) in enumerate(zip(children, followers, strict=True)):
                child.wait()
                follower.join()
                if child.returncode:
                    reason = last_words[index] or f"exit status {child.returncode}"
                    raise RuntimeError(f"A process that simulates PointMaze {maze} failed: {reason}. Try again.")
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()


def _replay_check(maze: str, chunks: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Replay stored actions in the evaluation environment, step by step from each stored state, and compare."""
    env = evaluation_spec(maze).make()
    env.reset(seed=0)
    maze_env: Any = env.unwrapped
    goal = np.array(evaluation_spec(maze).goal)
    segments = [
        (chunk, begin, min(begin + SEGMENT_STEPS, len(chunk["actions"])))
        for chunk in chunks
        for begin in range(0, len(chunk["actions"]), SEGMENT_STEPS)
    ]
    chosen = np.linspace(0, len(segments) - 1, min(SEGMENTS_CHECKED, len(segments))).astype(int)
    steps = mismatches = contacts = 0
    one_step = whole = 0.0
    for index in chosen:
        chunk, begin, end = segments[index]
        for each_step in (True, False):
            env.reset(seed=0)
            maze_env.point_env.set_state(chunk["states"][begin, :2], chunk["states"][begin, 2:])
            for t in range(begin, end):
                if each_step:
                    maze_env.point_env.set_state(chunk["states"][t, :2], chunk["states"][t, 2:])
                observation, reward = maze_env.step(chunk["actions"][t])[:2]
                error = float(np.abs(observation["observation"] - chunk["states"][t + 1]).max())
                if each_step:
                    relabelled = float(maze_env.compute_reward(chunk["states"][t + 1, :2], goal, {}))
                    one_step, steps = max(one_step, error), steps + 1
                    mismatches += int(relabelled != reward)
                    contacts += int(relabelled > 0)
                else:
                    whole = max(whole, error)
    env.close()
    return {
        "passed": bool(one_step <= REPLAY_TOLERANCE and mismatches == 0),
        "tolerance": REPLAY_TOLERANCE,
        "max_next_state_error": one_step,
        "max_open_loop_segment_error": whole,
        "reward_mismatches": mismatches,
        "rewarded_steps": contacts,
        "steps": steps,
        "segments": len(chosen),
    }


def _reference_summary(maze: str, played: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    limit = MAZES[maze].episode_steps
    summary: dict[str, Any] = {}
    for policy, result in played.items():
        contact = result["first_contact"]
        summary[f"{policy}_return"] = float(result["returns"].mean())
        summary[f"{policy}_first_contact_return"] = float(np.where(contact > 0, limit - contact + 1, 0).mean())
        summary["episodes"] = len(contact)
    return summary


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
    """Make a PointMaze data set and store it in the local Minari folder, whole or not at all.

    Does nothing when the data set is there already. A second process that asks for it waits for the first.

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
        FileExistsError: a folder of that name is there, but it holds no data set.
        ImportError: gymnasium-robotics is not installed.
        RuntimeError: a worker process failed, or the stored steps do not replay in the simulator.
    """
    from filelock import FileLock
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    if maze not in MAZES:
        raise ValueError(f"Unknown maze {maze!r}. Choose one of {tuple(MAZES)}.")
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}. It must be at least 1.")
    parse_dataset_id(dataset_id)  # raises before the work is done
    register_robotics()
    root, target = Path(get_dataset_path()), Path(get_dataset_path(dataset_id))
    with FileLock(root / ".ld-agents.lock"):
        if (target / "data" / "metadata.json").exists():
            return
        if target.exists():
            raise FileExistsError(f"{target} exists but holds no data set. Delete that folder and try again.")
        for stale in root.glob(".ld-agents-partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=".ld-agents-partial-", dir=root))
        try:
            whole = work / "dataset"
            whole.mkdir()
            _generate_into(
                whole / "data", work, maze, dataset_id, n_steps, seed, evaluation_episodes, processes, show_progress
            )
            move_in(whole, dataset_id)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _generate_into(
    path: Path,
    work: Path,
    maze: str,
    dataset_id: str,
    n_steps: int,
    seed: int,
    evaluation_episodes: int,
    processes: int | None,
    show_progress: bool,
) -> None:
    tasks: list[dict[str, Any]] = []
    for index, begin in enumerate(range(0, n_steps, CHUNK_STEPS)):
        steps = min(CHUNK_STEPS, n_steps - begin)
        tasks.append({"kind": "chunk", "index": index, "steps": steps, "file": str(work / f"chunk{index}.npz")})
    n_chunks = len(tasks)
    for policy in ("controller", "random"):
        tasks.append({"kind": policy, "episodes": evaluation_episodes, "file": str(work / f"{policy}.npz")})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A process takes a second to start: a small data set is made in this one.
    wanted = processes if processes is not None else (cores if n_chunks > 1 else 1)
    _run_tasks(maze, seed, tasks, min(wanted, len(tasks)), show_progress)

    results = []
    for task in tasks:
        with np.load(task["file"], allow_pickle=False) as file:
            results.append(dict(file))
    chunks, played = results[:n_chunks], {"controller": results[-2], "random": results[-1]}
    check = _replay_check(maze, chunks)
    if not check["passed"]:
        raise RuntimeError(f"The stored steps do not replay in the simulator: {check}. The data set was not kept.")
    _store(path, maze, dataset_id, seed, chunks, check, _reference_summary(maze, played))


def _store(
    path: Path,
    maze: str,
    dataset_id: str,
    seed: int,
    chunks: list[dict[str, np.ndarray]],
    check: dict[str, Any],
    controller: dict[str, Any],
) -> None:
    import gymnasium_robotics
    import minari
    import mujoco
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    task = MAZES[maze]
    env = gym.make(task.env_id, max_episode_steps=1_000_000, continuing_task=True, reset_target=True)
    unwrapped: Any = env.unwrapped
    if unwrapped.maze.maze_map != maze_map(maze):
        raise RuntimeError(f"The map of {task.env_id} differs from D4RL's. Install gymnasium-robotics 1.4.")
    eval_env = evaluation_spec(maze).make()
    assert env.spec is not None
    assert eval_env.spec is not None

    def episodes() -> Any:
        for chunk in chunks:
            for begin in range(0, len(chunk["actions"]), EPISODE_STEPS):
                end = min(begin + EPISODE_STEPS, len(chunk["actions"]))
                states, goals = chunk["states"][begin : end + 1], chunk["goals"][begin : end + 1]
                position = states[:, :2]
                truncations = np.zeros(end - begin, dtype=bool)
                truncations[-1] = True
                yield EpisodeBuffer(
                    observations={"observation": states, "achieved_goal": position, "desired_goal": goals},
                    actions=chunk["actions"][begin:end],
                    rewards=unwrapped.compute_reward(position[1:], goals[:-1], {}),
                    terminations=np.zeros(end - begin, dtype=bool),
                    truncations=truncations,
                    infos=None,
                )

    path.mkdir()
    storage = MinariStorage.new(
        path, observation_space=env.observation_space, action_space=env.action_space, env_spec=env.spec
    )
    n_steps = sum(len(chunk["actions"]) for chunk in chunks)
    versions = {
        "gymnasium": gym.__version__,
        "gymnasium-robotics": gymnasium_robotics.__version__,
        "mujoco": mujoco.__version__,
        "minari": minari.__version__,
    }
    storage.update_metadata(
        {
            "dataset_id": dataset_id,
            "minari_version": minari.__version__,
            "algorithm_name": "D4RL way-point controller",
            "author": {"ld_agents"},
            "code_permalink": "ld_agents/data/pointmaze.py",
            "description": (
                f"Regenerated with D4RL's maze2d recipe on {task.env_id} ({n_steps:,} steps, seed {seed}); these are "
                "not D4RL's own files. A way-point controller with Gaussian action noise (standard deviation 0.5) "
                "drives the point along shortest paths to one random target after the other. The point is never "
                f"reset within {CHUNK_STEPS:,} steps. The next target is drawn within 0.1 of the present one or after "
                f"{task.episode_steps} steps; unlike in D4RL's files this is no timeout: an episode is "
                f"{EPISODE_STEPS:,} steps long and its goal changes on the way. The evaluation environment has D4RL's "
                f"goal, cell {task.goal_cell}, and pays 1 for every step within 0.45 of it. Reference scores are "
                "D4RL's."
            ),
            "eval_env_spec": eval_env.spec.to_json(),
            "ref_min_score": task.reference_scores[0],
            "ref_max_score": task.reference_scores[1],
            "num_episodes_average_score": 100,
            "requirements": ["gymnasium-robotics>=1.4", "mujoco>=3.3"],
            "ld_agents": {
                "provenance": "regenerated",
                "seed": seed,
                "evaluation_goal": evaluation_spec(maze).goal,
                "replay_check": check,
                "controller": controller,
                "versions": versions,
            },
        }
    )
    storage.update_episodes(episodes())
    env.close()
    eval_env.close()


def _print_progress(steps: int) -> None:
    print(steps, flush=True)


if __name__ == "__main__":
    _worker(json.loads(sys.argv[1]), _print_progress)
