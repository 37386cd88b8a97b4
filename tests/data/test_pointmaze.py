from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest

from ld_agents.data import pointmaze
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.load import load_dataset
from ld_agents.data.storage import digest
from ld_agents.evaluation.mazes import MAZES, cell_center, maze_map

robotics = pytest.importorskip("gymnasium_robotics")

ROOT = Path(__file__).resolve().parents[2]
SMALL = "ld-agents/pointmaze/umaze-10k-v0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(path))
        load_dataset(SMALL)
        yield path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def data(folder: Path) -> OfflineDataset:
    return load_dataset(SMALL)


def raw(dataset_id: str = SMALL) -> list[Any]:
    return list(minari.load_dataset(dataset_id).iterate_episodes())


def states_of(episode: Any) -> np.ndarray:
    return np.asarray(episode.observations["observation"])


def generate_in_background(folder: Path, dataset_id: str, n_steps: int, processes: int) -> subprocess.Popen[str]:
    script = f"""
from ld_agents.data import pointmaze
pointmaze.CHUNK_STEPS = 2_000
pointmaze.generate("umaze", {dataset_id!r}, {n_steps}, evaluation_episodes=1, processes={processes})
"""
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_maps_and_goals_are_d4rls(maze: str) -> None:
    gym.register_envs(robotics)
    task = MAZES[maze]
    env: Any = gym.make(task.env_id).unwrapped
    assert env.maze.maze_map == maze_map(maze)
    rows = task.d4rl_map.split("/")
    assert [(i, row.index("G")) for i, row in enumerate(rows) if "G" in row] == [task.goal_cell]
    assert cell_center(maze, task.goal_cell) == tuple(env.maze.cell_rowcol_to_xy(np.array(task.goal_cell)))
    assert gym.spec(task.env_id).max_episode_steps == task.episode_steps
    env.close()


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_the_controller_reaches_every_cell_along_a_shortest_path(maze: str) -> None:
    controller = pointmaze._Controller(maze)
    for start in controller.free:
        x, y = cell_center(maze, start)
        assert controller.cell(x + 0.3, y - 0.3) == start
        for goal in controller.free:
            controller.aim(x, y, goal, cell_center(maze, goal), lambda: 0.0)
            points = [(x, y), *controller._path]
            steps = [np.abs(np.subtract(a, b)).sum() for a, b in itertools.pairwise(points)]
            assert steps == ([0.0] if start == goal else [1.0] * len(steps))


def test_the_stored_set(folder: Path, data: OfflineDataset) -> None:
    stored = minari.load_dataset(SMALL)
    assert stored.total_steps == 10_000
    episodes = raw()
    assert [len(e.rewards) for e in episodes] == [1000] * 10
    # The trajectory is never reset: an episode's last observation is the next one's first.
    for one, two in itertools.pairwise(episodes):
        assert states_of(one)[-1].tolist() == states_of(two)[0].tolist()
    spans = []
    for e in episodes:
        assert len(states_of(e)) == len(e.rewards) + 1
        assert e.truncations.tolist() == [False] * (len(e.rewards) - 1) + [True]
        assert not e.terminations.any()
        goal, position = e.observations["desired_goal"], states_of(e)[:, :2]
        distance = np.linalg.norm(position[1:] - goal[:-1], axis=1)
        assert e.rewards.tolist() == (distance <= 0.45).astype(float).tolist()
        # The goal changes where it was reached (the point moves less than 0.1 in the step of the change), or after 300.
        changes = np.flatnonzero((goal[1:] != goal[:-1]).any(axis=1))
        spans += np.diff(changes).tolist()
        reached = np.linalg.norm(position[changes] - goal[changes], axis=1)
        assert all(d < 0.2 or n == 300 for d, n in zip(reached[1:], np.diff(changes), strict=True))
    assert 60 < np.mean(spans) < 130
    assert max(spans) <= 300
    np.testing.assert_array_equal(data.observations, np.concatenate([states_of(e)[:-1] for e in episodes]).astype("f4"))
    np.testing.assert_array_equal(data.actions, np.concatenate([e.actions for e in episodes]))
    assert not data.terminals.any()
    assert data.n_episodes == len(episodes)


def test_noise_is_added_to_the_clipped_action(data: OfflineDataset) -> None:
    actions = data.actions.numpy()
    assert np.abs(actions).max() == 1
    # A saturated controller plus N(0, 0.5) noise stays at the bound half of the time.
    saturated = (np.abs(actions) == 1).mean()
    assert 0.2 < saturated < 0.5


def test_information(data: OfflineDataset) -> None:
    info = data.info
    assert info.provenance == "regenerated"
    assert info.reference_scores == (23.85, 161.86)
    assert "D4RL's maze2d recipe" in info.description
    assert info.eval_env is not None
    assert info.eval_env.id == "PointMaze_UMaze-v3"
    assert info.eval_env.max_episode_steps == 300
    assert info.eval_env.goal == (-1.0, 1.0)
    check = info.replay_check
    assert check is not None
    assert check["passed"]
    assert check["max_next_state_error"] <= check["tolerance"] == 1e-6
    assert check["max_reward_error"] == check["terminal_mismatches"] == 0
    assert check["steps"] == 10_000
    assert data.rewards.sum() > 0
    reference = info.controller
    assert reference is not None
    assert reference["episodes"] == 20
    # Told the goal and staying there, the first contact decides the return.
    assert 180 < reference["controller_return"] == reference["controller_first_contact_return"] < 280
    assert 0 <= reference["random_return"] <= reference["random_first_contact_return"] < 100


def test_stored_actions_replay_in_the_evaluation_environment(data: OfflineDataset) -> None:
    env = data.make_eval_env()
    env.reset(seed=0)
    maze: Any = env.unwrapped
    rewards = []
    episodes = raw()[:4]
    for e in episodes:
        states = states_of(e)
        maze.point_env.set_state(states[0, :2], states[0, 2:])
        for t, action in enumerate(e.actions):
            observation, reward, terminated, _, _ = maze.step(action)
            np.testing.assert_allclose(observation["observation"], states[t + 1], atol=1e-6)
            assert not terminated
            rewards.append(reward)
    assert data.rewards[: len(rewards)].tolist() == rewards
    assert sum(rewards) > 0
    env.close()


def test_relabeled_rewards_are_the_environments(data: OfflineDataset) -> None:
    env = data.make_eval_env()
    env.reset(seed=0)
    after = np.concatenate([states_of(e)[1:, :2] for e in raw()])
    maze: Any = env.unwrapped
    expected = [float(maze.compute_reward(position, maze.goal, {})) for position in after]
    assert data.rewards.tolist() == expected
    assert expected == (np.linalg.norm(after - [-1, 1], axis=1) <= 0.45).astype(float).tolist()
    env.close()


def test_the_evaluation_environment(data: OfflineDataset) -> None:
    env = data.make_eval_env()
    starts = set()
    for seed in range(30):
        observation, info = env.reset(seed=seed)
        assert observation["desired_goal"].tolist() == [-1.0, 1.0]
        assert not info["success"]
        starts.add(env.unwrapped.maze.cell_xy_to_rowcol(observation["achieved_goal"]).tobytes())  # type: ignore[attr-defined]
    assert len(starts) == 6
    point: Any = env.unwrapped
    point.point_env.set_state(np.array([-1.0, 1.0]), np.zeros(2))
    steps = total = 0
    while True:
        observation, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        steps, total = steps + 1, total + float(reward)
        assert observation["desired_goal"].tolist() == [-1.0, 1.0]
        assert info["success"]
        assert not terminated
        if truncated:
            break
    assert (steps, total) == (300, 300.0)
    env.close()


def test_minari_itself_can_use_the_set(data: OfflineDataset) -> None:
    stored = minari.load_dataset(SMALL)
    env = stored.recover_environment(eval_env=True)
    observation, _ = env.reset(seed=3)
    assert observation["desired_goal"].tolist() == [-1.0, 1.0]
    assert env.spec is not None
    assert env.spec.max_episode_steps == 300
    assert minari.get_normalized_score(stored, np.array([161.86])).tolist() == [1.0]
    assert SMALL in minari.list_local_datasets()
    assert "ld-agents/pointmaze" in minari.namespace.list_local_namespaces()
    env.close()


@pytest.mark.parametrize("room", ["sources.pointmaze", "data.pointmaze", "evaluation.eval_env"])
def test_goals_that_earlier_versions_stored_are_read(
    data: OfflineDataset, folder: Path, empty: Path, room: str
) -> None:
    shutil.copytree(folder / SMALL, empty / SMALL)
    file = empty / SMALL / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    spec = json.loads(metadata["eval_env_spec"])
    (wrapper,) = spec["additional_wrappers"]
    assert wrapper["entry_point"] == "ld_agents.evaluation.eval_env:FixedGoal"
    wrapper["entry_point"] = f"ld_agents.{room}:FixedGoal"
    wrapper["kwargs"]["goal"] = [-1.0, 1.25]
    file.write_text(json.dumps({**metadata, "eval_env_spec": json.dumps(spec)}))
    moved = load_dataset(SMALL)
    observation, _ = moved.make_eval_env().reset(seed=0)
    assert observation["desired_goal"].tolist() == [-1.0, 1.25]
    assert moved.rewards.sum() != data.rewards.sum()


def test_minari_show(folder: Path, data: OfflineDataset) -> None:
    from minari.cli import app
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["show", SMALL])
    assert result.exit_code == 0, result.output
    assert "10000" in result.output
    assert "PointMaze_UMaze-v3" in result.output


def test_data_do_not_depend_on_the_number_of_processes(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointmaze, "CHUNK_STEPS", 500)
    common = {"n_steps": 1200, "evaluation_episodes": 1, "show_progress": False}
    pointmaze.generate("umaze", "test/one-v0", processes=1, **common)
    pointmaze.generate("umaze", "test/two-v0", processes=2, **common)
    pointmaze.generate("umaze", "test/other-v0", processes=1, seed=1, **common)
    one, two, other = (load_dataset(f"test/{name}-v0") for name in ("one", "two", "other"))
    assert one.n_steps == 1200
    assert one.content_hash == two.content_hash != other.content_hash
    assert one.info.controller == two.info.controller
    # Chunks are trajectories of their own: the point jumps between them.
    first = raw("test/one-v0")
    jump = [k for k in range(len(first) - 1) if (states_of(first[k])[-1] != states_of(first[k + 1])[0]).any()]
    assert len(jump) == 2


def test_a_killed_recording_resumes(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointmaze, "CHUNK_STEPS", 500)
    common = {"n_steps": 1200, "evaluation_episodes": 1, "show_progress": False, "processes": 1}
    pointmaze.generate("umaze", "test/whole-v0", **common)
    drive, driven = pointmaze._drive, []

    def killed_in_chunk_1(maze: str, seed: int, chunk: int, n_steps: int) -> dict[str, np.ndarray]:
        driven.append(chunk)
        if driven == [0, 1]:
            raise KeyboardInterrupt
        return drive(maze, seed, chunk, n_steps)

    monkeypatch.setattr(pointmaze, "_drive", killed_in_chunk_1)
    with pytest.raises(KeyboardInterrupt):
        pointmaze.generate("umaze", "test/killed-v0", **common)
    pointmaze.generate("umaze", "test/killed-v0", **common)
    assert driven == [0, 1, 1, 2]
    assert load_dataset("test/killed-v0").content_hash == load_dataset("test/whole-v0").content_hash


def test_workers_do_not_run_the_users_script(empty: Path) -> None:
    (empty / "script.py").write_text(
        "print('script runs', flush=True)\n"
        "import os\n"
        "from ld_agents.data import pointmaze\n"
        "pointmaze.CHUNK_STEPS = 500\n"
        "pointmaze.generate('umaze', 'test/script-v0', 1000, evaluation_episodes=1, processes=2)\n"
        "assert 'OMP_NUM_THREADS' not in os.environ\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MINARI_DATASETS_PATH": str(empty)}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, str(empty / "script.py")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("script runs") == 1
    assert load_dataset("test/script-v0").n_steps == 1000


def test_other_mazes(empty: Path) -> None:
    pointmaze.generate("large", "test/large-v0", 1000, evaluation_episodes=1, show_progress=False)
    data = load_dataset("test/large-v0")
    assert data.info.eval_env is not None
    assert data.info.eval_env.goal == (3.5, -3.0)
    assert data.info.eval_env.max_episode_steps == 800
    assert data.info.reference_scores == (6.7, 273.99)


def test_wrong_arguments(empty: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown maze 'tiny'.*'umaze', 'medium', 'large'"):
        pointmaze.generate("tiny", "test/tiny-v0")
    with pytest.raises(ValueError, match="at least 1"):
        pointmaze.generate("umaze", "test/none-v0", 0)
    with pytest.raises(ValueError, match=r"'../none-v0' is not a Minari id"):
        pointmaze.generate("umaze", "../none-v0", 10)


def test_a_folder_in_the_way_is_reported(empty: Path) -> None:
    (empty / "test" / "half-v0" / "data").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"holds no dataset\. Delete that folder"):
        pointmaze.generate("umaze", "test/half-v0", 10)


def test_a_failed_worker_is_reported_and_leaves_nothing(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointmaze, "CHUNK_STEPS", 500)
    monkeypatch.syspath_prepend(empty / "broken")  # the workers import from where this process does
    (empty / "broken").mkdir()
    (empty / "broken" / "gymnasium_robotics.py").write_text("raise RuntimeError('no physics today')")
    with pytest.raises(RuntimeError, match="no physics today"):
        pointmaze.generate("umaze", "test/failed-v0", 1000, processes=2, show_progress=False)
    assert minari.list_local_datasets() == {}
    assert [p for p in empty.glob(".ld-agents-recording-*/**/*") if p.is_file() and "dataset" not in p.parts] == []


def test_steps_that_do_not_replay_are_not_kept(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = pointmaze._drive

    def shifted(*arguments: Any) -> dict[str, np.ndarray]:
        chunk = make(*arguments)
        chunk["states"][:, 2] *= 1.001
        return chunk

    monkeypatch.setattr(pointmaze, "_drive", shifted)
    with pytest.raises(RuntimeError, match="do not replay"):
        pointmaze.generate("umaze", "test/shifted-v0", 500, evaluation_episodes=1, show_progress=False)
    assert [p.suffix for p in empty.iterdir()] in ([], [".lock"])
    monkeypatch.setattr(pointmaze, "_drive", make)
    pointmaze.generate("umaze", "test/shifted-v0", 500, evaluation_episodes=1, show_progress=False)
    assert load_dataset("test/shifted-v0").info.replay_check["passed"]  # type: ignore[index]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_half_way_leaves_nothing_that_loads(empty: Path) -> None:
    child = generate_in_background(empty, "test/killed-v0", 1_000_000, 2)
    assert child.stderr is not None
    deadline = time.monotonic() + 60
    while not list(empty.glob(".ld-agents-recording-*/chunks/0.npz")):
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    pids = [int(pid) for pid in workers.read_text().split()] if workers.exists() else []
    child.kill()
    child.wait()
    child.stderr.close()
    assert minari.list_local_datasets() == {}
    with pytest.raises(FileNotFoundError):
        load_dataset("test/killed-v0", download=False)
    pointmaze.generate("umaze", "test/killed-v0", 500, evaluation_episodes=1, show_progress=False)
    assert load_dataset("test/killed-v0").n_steps == 500
    assert [p.name for p in empty.iterdir()] == ["test"]
    # The workers notice that nobody listens any more.
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/stat").exists() and not is_zombie(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_two_at_once_share_one_result(empty: Path) -> None:
    children = [generate_in_background(empty, "test/shared-v0", 3000, 1) for _ in range(2)]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
    assert load_dataset("test/shared-v0").n_steps == 3000
    metadata = json.loads((empty / "test" / "shared-v0" / "data" / "metadata.json").read_text())
    assert metadata["total_steps"] == 3000


def test_import_needs_no_simulator(empty: Path) -> None:
    script = """
import sys
sys.modules["mujoco"] = sys.modules["gymnasium_robotics"] = None
from ld_agents import load_dataset
assert not {"h5py", "minari"} & set(sys.modules)
try:
    load_dataset("ld-agents/pointmaze/umaze-10k-v0")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 'pip install "ld_agents[bench]"' in done.stdout
    assert not any(empty.glob("ld-agents*"))


def test_the_path_that_datasets_of_version_0_1_name_still_imports() -> None:
    from ld_agents.evaluation.eval_env import FixedGoal
    from ld_agents.sources import pointmaze

    assert pointmaze.FixedGoal is FixedGoal


def test_recorded_episodes_have_a_checksum(folder: Path, data: OfflineDataset) -> None:
    data_folder = folder / SMALL / "data"
    metadata = json.loads((data_folder / "metadata.json").read_text())
    assert metadata["episodes_bytes"] == (data_folder / "main_data.hdf5").stat().st_size
    assert metadata["episodes_sha256"] == digest(data_folder / "main_data.hdf5")
