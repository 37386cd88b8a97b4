"""The rules of each family, on files of three episodes whose numbers can be worked out by hand."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from ld_agents.data.d4rl import FILE_SIZES
from ld_agents.data.load import load_dataset
from ld_agents.evaluation.eval_env import EvalEnvSpec, file_environment
from ld_agents.evaluation.mazes import MAZES, cell_center, from_d4rl_frame, maze_map
from ld_agents.evaluation.scores import FAMILIES, TASKS, family

pytest.importorskip("gymnasium_robotics")


@pytest.fixture(autouse=True)
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def flags(n: int, *rows: int) -> np.ndarray:
    return np.isin(np.arange(n), rows)


def write(folder: Path, name: str, n: int, **arrays: Any) -> Path:
    """A D4RL file of n rows, as compressed as D4RL's; its observations count up."""
    width, actions = FILE_SIZES[TASKS[name]]
    everything = {
        "observations": np.arange(n * width, dtype=np.float32).reshape(n, width),
        "actions": np.linspace(-1, 1, n * actions, dtype=np.float32).reshape(n, actions),
        "rewards": np.arange(n, dtype=np.float32),
        "terminals": np.zeros(n, bool),
        **arrays,
    }
    path = folder / f"{name}.hdf5"
    with h5py.File(path, "w") as file:
        for key, array in everything.items():
            file.create_dataset(key, data=array, compression="gzip")
    return path


# -- D4RL files ----------------------------------------------------------------------------------------------------


def test_maze2d_files_end_episodes_where_the_target_changes(tmp_path: Path) -> None:
    data = load_dataset(write(tmp_path, "maze2d-umaze-v1", 10, timeouts=flags(10, 3, 6)))
    assert data.episode_ends.tolist() == [4, 7, 10]
    assert not data.terminals.any()
    assert data.rewards.tolist() == list(range(10))
    assert data.window_starts(2).tolist() == [0, 1, 4, 7]  # nothing is known of the row after a timeout
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the older files say so with terminals, and have no timeouts
        data = load_dataset(write(tmp_path, "maze2d-large-v1", 10, terminals=flags(10, 3, 6)))
    assert data.episode_ends.tolist() == [4, 7, 10]
    assert not data.terminals.any()


@pytest.mark.parametrize("maze", list(MAZES))
def test_maze2d_files_are_turned_into_the_frame_of_the_simulator(maze: str) -> None:
    cells = np.argwhere(np.array(maze_map(maze)) == 0)
    positions = np.concatenate([cells - 0.2, np.tile([3.0, -2.0], (len(cells), 1))], axis=1).astype(np.float32)
    turned, actions = from_d4rl_frame(maze, positions, np.tile([[0.25, -1.0]], (len(cells), 1)))
    np.testing.assert_allclose(turned[:, :2], [cell_center(maze, (i, j)) for i, j in cells], atol=1e-6)
    # Down the rows is D4RL's x and minus the simulator's y; along the columns is D4RL's y and the simulator's x.
    assert turned[0, 2:].tolist() == [-2.0, -3.0]
    assert actions[0].tolist() == [-1.0, -0.25]


def test_maze2d_files_are_evaluated_at_d4rl_s_goal(tmp_path: Path) -> None:
    goals = np.tile(np.array([[1.0, 1.0]], np.float32), (3, 1))
    start = np.array([[0.8, 0.8, 0, 0], [0.8, 1.8, 1, 0], [2.8, 2.8, 0, 1]], np.float32)  # cells (1, 1), (1, 2), (3, 3)
    path = write(tmp_path, "maze2d-umaze-v1", 3, observations=start, timeouts=flags(3, 0, 1, 2))
    with h5py.File(path, "a") as file:
        file["infos/goal"] = goals
    data = load_dataset(path)
    assert data.observations.tolist() == pytest.approx(np.array([[-1, 1, 0, 0], [0, 1, 0, -1], [1, -1, 1, 0]]))
    env = data.make_eval_env()
    observation, _ = env.reset(seed=0)
    assert observation["desired_goal"].tolist() == [-0.8, 0.8]  # 0.2 off the cell's center, towards the middle
    assert data.flatten_observation(observation).shape == (4,)
    assert data.info.eval_env is not None
    assert data.info.eval_env.max_episode_steps == 300
    # What D4RL pays for, the simulator pays for: the point at rest in the goal's cell.
    maze: Any = env.unwrapped
    maze.point_env.set_state(data.observations[0, :2].numpy().astype(float), np.zeros(2))
    assert env.step(np.zeros(2, np.float32))[1] == 1.0
    env.close()
    kept = load_dataset(path, goal="keep")
    assert kept.observations.tolist() == np.concatenate([start, goals], axis=1).tolist()
    assert kept.info.eval_env is None
    dense = load_dataset(write(tmp_path, "maze2d-medium-dense-v1", 3, timeouts=flags(3)))
    env = dense.make_eval_env()
    assert env.unwrapped.reward_type == "dense"  # type: ignore[attr-defined]
    env.close()


def test_antmaze_files(tmp_path: Path) -> None:
    n = 9
    path = write(
        tmp_path,
        "antmaze-medium-diverse-v2",
        n,
        rewards=flags(n, 1, 2, 5).astype(np.float32),
        terminals=flags(n, 1, 2, 5).astype(np.float32),
        timeouts=flags(n, 2, 5, 8),
    )
    data = load_dataset(path)
    # At a timeout D4RL has looked at the first row of the next episode: neither reward nor terminal count there.
    assert data.terminals.tolist() == flags(n, 1).tolist()
    assert data.rewards.tolist() == flags(n, 1).tolist()
    assert data.episode_ends.tolist() == [2, 3, 6, 9]
    assert data.window_starts(2).tolist() == [0, 3, 6]
    env = data.make_eval_env()
    observation, _ = env.reset(seed=0)
    assert data.flatten_observation(observation).shape == (29,)
    assert np.abs(observation[:2]).max() < 0.2  # D4RL's frame: the start is the origin
    assert env.spec is not None
    assert env.spec.max_episode_steps == 1000
    env.close()
    with pytest.raises(ValueError, match="has no 'infos/goal'"):
        load_dataset(path, goal="keep")
    with h5py.File(path, "a") as file:
        file["infos/goal"] = np.ones((n, 2))
    assert load_dataset(path, goal="keep").observation_dim == 31


def test_antmaze_files_under_the_names_of_d4rl_s_server(tmp_path: Path) -> None:
    path = write(tmp_path, "antmaze-large-play-v2", 3, timeouts=flags(3))
    path = path.rename(tmp_path / "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5")
    info = load_dataset(path).info
    assert info.id == "antmaze-large-play-v2"
    assert info.reference_scores == (0.0, 1.0)
    assert info.eval_env is not None
    assert info.eval_env.id == "ld_agents/AntMaze-large-v0"


def test_locomotion_files(tmp_path: Path) -> None:
    n = 9
    after = np.full((n, 11), 0.5, np.float32) + np.arange(n)[:, None]
    path = write(
        tmp_path,
        "hopper-medium-replay-v2",
        n,
        terminals=flags(n, 2),
        timeouts=flags(n, 6),
        next_observations=after,
    )
    data = load_dataset(path)
    assert data.episode_ends.tolist() == [3, 7, 9]
    assert data.terminals.tolist() == flags(n, 2).tolist()
    assert data.observation_rows[n:, 0].tolist() == [2.5, 6.5, 8.5]
    assert data.window_starts(3).tolist() == [0, 3, 4]
    env = data.make_eval_env()
    assert env.unwrapped.spec is not None
    assert env.unwrapped.spec.id == "Hopper-v4"
    assert env.observation_space.shape == (11,)
    env.close()


def test_locomotion_files_without_timeouts_have_episodes_of_1000_steps(tmp_path: Path) -> None:
    path = write(tmp_path, "walker2d-medium-v0", 2700, terminals=flags(2700, 499, 2699))
    path = path.rename(tmp_path / "walker2d_medium.hdf5")
    data = load_dataset(path)
    assert data.episode_ends.tolist() == [500, 1500, 2500, 2700]
    assert data.terminals.nonzero().flatten().tolist() == [499, 2699]
    assert data.info.id == "walker2d-medium-v0"


def test_d4rl_files_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    write(tmp_path, "hopper-medium-v2", 3, timeouts=flags(3)).rename(tmp_path / "hopper_medium-v2.hdf5")
    write(tmp_path, "hopper-medium-replay-v2", 4, timeouts=flags(4))
    assert load_dataset("hopper-medium-v2").n_steps == 3
    assert load_dataset("hopper-medium-v2").info.id == "hopper-medium-v2"
    assert load_dataset("hopper-medium-replay-v2").n_steps == 4
    with pytest.raises(FileNotFoundError, match=r"no file of walker2d-medium-v2 in .*D4RL_DATASET_DIR"):
        load_dataset("walker2d-medium-v2")


def test_ant_files_have_no_environment(tmp_path: Path) -> None:
    assert load_dataset(write(tmp_path, "ant-medium-v2", 3, timeouts=flags(3))).info.eval_env is None


@pytest.mark.parametrize(("hand", "steps"), [("pen", 100), ("door", 200)])
def test_adroit_files(tmp_path: Path, hand: str, steps: int) -> None:
    data = load_dataset(write(tmp_path, f"{hand}-human-v1", 9, terminals=flags(9, 5), timeouts=flags(9, 2, 8)))
    assert data.episode_ends.tolist() == [3, 6, 9]
    assert data.terminals.tolist() == flags(9, 5).tolist()  # a dropped pen
    assert data.info.eval_env == EvalEnvSpec(f"ld_agents/Adroit{hand.title()}-v0", {}, steps)
    env = data.make_eval_env()
    assert env.reset(seed=0)[0].shape == (data.observation_dim,)
    env.close()


def test_kitchen_files(tmp_path: Path) -> None:
    # Counts belong to the observation before the action, and the file ends every demonstration with a terminal.
    counts = [0, 1, 0, 2, 2, 0, 1, 3, 4, 4, 1, 1]
    ends = flags(12, 4, 9, 11).astype(np.float32)
    path = write(tmp_path, "kitchen-mixed-v0", 12, rewards=np.float32(counts), terminals=ends, infos=np.zeros(12))
    data = load_dataset(path)
    # A task that is undone and done again pays once; a count in the first row is nobody's doing.
    assert data.rewards.tolist() == [1, 0, 1, 0, 0, 1, 2, 1, 0, 0, 0, 0]
    assert data.terminals.nonzero().flatten().tolist() == [7]  # the action that got the fourth task done
    assert data.episode_ends.tolist() == [5, 8, 10, 12]
    assert data.observation_dim == 30
    env = data.make_eval_env()
    observation, _ = env.reset(seed=0)
    whole = env.unwrapped.simulator.unwrapped  # type: ignore[attr-defined]
    assert observation.shape == env.observation_space.shape == (30,)
    # Nine joints, then the objects; their velocities lie between and after.
    np.testing.assert_allclose(observation, np.concatenate([whole.data.qpos[:9], whole.data.qpos[9:30]]), atol=0.05)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 280
    env.close()
    kept = load_dataset(path, goal="keep")
    assert kept.rewards.tolist() == counts
    assert kept.observation_dim == 60
    assert kept.info.eval_env is None


def test_a_name_that_does_not_fit_the_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "pen-human-v1", 3, timeouts=flags(3)).rename(tmp_path / "door-human-v1.hdf5")
    with pytest.raises(ValueError, match=r"\(45, 24\) columns, those of door-human-v1 have \(39, 28\).*another name"):
        load_dataset(path)
    # Other names promise nothing: such a file is read as it is.
    plain = load_dataset(path.rename(tmp_path / "my-door.hdf5"))
    assert (plain.info.eval_env, plain.info.reference_scores, plain.info.id) == (None, None, "my-door")


def test_every_task_has_sizes_and_its_family_a_row() -> None:
    assert set(FILE_SIZES) == set(TASKS.values()) - {"carracing"}  # not of D4RL
    assert {family(name) for name in TASKS} == set(FAMILIES)
    without = {task for task in TASKS.values() if file_environment(task) is None}
    assert without == {"ant", "carla-lane"}


# -- Minari --------------------------------------------------------------------------------------------------------


def episode(observations: Any, rewards: list[float], actions: int, truncated: bool = True) -> EpisodeBuffer:
    steps = len(rewards)
    return EpisodeBuffer(
        observations=observations,
        actions=np.zeros((steps, actions), np.float32),  # type: ignore[arg-type]
        rewards=np.array(rewards, np.float64),  # type: ignore[arg-type]
        terminations=np.zeros(steps, bool),  # type: ignore[arg-type]
        truncations=flags(steps, steps - 1) & truncated,  # type: ignore[arg-type]
        infos=None,
    )


def store(dataset_id: str, parts: list[EpisodeBuffer], space: spaces.Space[Any], **metadata: Any) -> str:
    """A Minari set with more metadata; specs of environments are given as dictionaries."""
    actions = spaces.Box(-1, 1, (np.shape(parts[0].actions)[1],), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = minari.create_dataset_from_buffers(dataset_id, parts, observation_space=space, action_space=actions)
    file = Path(made.storage.data_path) / "metadata.json"
    specs = {key: json.dumps(value) for key, value in metadata.items() if key.endswith("spec")}
    file.write_text(json.dumps({**json.loads(file.read_text()), **metadata, **specs}))
    return dataset_id


def box(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float64)


def antmaze_set(dataset_id: str) -> str:
    walls = [[1, 1, 1, 1, 1], [1, 0, 0, "r", 1], [1, 0, 1, 1, 1], [1, 0, 0, "g", 1], [1, 1, 1, 1, 1]]
    parts = []
    # The goal of the evaluation is the center of the cell at (-4, 4).
    for places in ([[4, 4], [-3.4, 4], [-3.7, 4], [0, 4]], [[0, 0], [0, 1]], [[4, 0], [4, 1], [4, 2]]):
        position = np.array(places, np.float64)
        parts.append(
            episode(
                {
                    "achieved_goal": position,
                    "desired_goal": np.full_like(position, 7.0),
                    "observation": np.tile(np.arange(27.0), (len(position), 1)),
                },
                [5.0] * (len(position) - 1),
                8,
            )
        )
    goals = spaces.Dict({"achieved_goal": box(2), "desired_goal": box(2), "observation": box(27)})
    kwargs = {"maze_map": walls, "continuing_task": True, "reset_target": False}
    spec = {"id": "AntMaze_UMaze-v4", "kwargs": kwargs, "max_episode_steps": 700}
    return store(dataset_id, parts, goals, env_spec=spec, eval_env_spec=spec)


def test_antmaze_of_minari() -> None:
    data = load_dataset(antmaze_set("D4RL/antmaze/umaze-v1"))
    assert data.observation_keys == ("achieved_goal", "observation")
    assert data.observations[0].tolist() == [4, 4, *range(27)]
    assert data.rewards.tolist() == [0, 1, 0, 0, 0, 0]
    assert data.terminals.tolist() == [False, True, False, False, False, False]
    assert data.episode_ends.tolist() == [2, 3, 4, 6]
    env = data.make_eval_env()
    observation, _ = env.reset(seed=0)
    assert data.flatten_observation(observation).shape == (29,)
    assert data.flatten_observation(observation)[:2].tolist() == pytest.approx(observation["achieved_goal"].tolist())
    # The maze of the recording (open on the right), not the one that the metadata name; it ends at the goal.
    maze: Any = env.unwrapped
    assert [[cell == 1 for cell in row] for row in maze.maze.maze_map] == np.array(maze_map("umaze"), bool).tolist()
    assert observation["desired_goal"].tolist() == [-4, 4]
    assert not maze.continuing_task
    env.close()
    kept = load_dataset("D4RL/antmaze/umaze-v1", goal="keep")
    assert kept.observations[0].tolist() == [4, 4, *range(27), 7, 7]
    assert kept.rewards.tolist() == [5.0] * 6


def test_the_start_of_antmaze_of_minari_can_have_the_noise_of_d4rl() -> None:
    """gymnasium-robotics starts every episode in one pose at rest."""
    name = antmaze_set("D4RL/antmaze/umaze-v1")
    for noise, spread in ((0.0, 0.0), (0.1, 0.1 / 3**0.5), (0.5, 0.5 / 3**0.5)):
        env = load_dataset(name, start_noise=noise).make_eval_env()
        starts = np.array([env.reset(seed=seed)[0]["observation"] for seed in range(40)])
        joints, velocities = starts[:, 5:13], starts[:, 13:]  # after height and orientation
        assert joints.std(axis=0).mean() == pytest.approx(spread, rel=0.15)
        assert velocities.std(axis=0).mean() == pytest.approx(noise, rel=0.15)
        again, _ = env.reset(seed=3)
        np.testing.assert_array_equal(again["observation"], starts[3])
        env.close()
    with pytest.raises(ValueError, match=r"start_noise is -1 .*Give a positive number"):
        load_dataset(name, start_noise=-1)
    arrays = dict.fromkeys(("rewards", "terminals", "timeouts"), np.ones(2))
    arrays |= {"observations": np.zeros((2, 3)), "actions": np.zeros((2, 1)), "terminals": np.zeros(2)}
    with pytest.raises(ValueError, match="leave it out elsewhere"):
        load_dataset(arrays, start_noise=0.1)


def test_antmaze_with_goals_drawn_in_the_evaluation() -> None:
    name = antmaze_set("D4RL/antmaze/umaze-v1")
    keys = ("achieved_goal", "observation", "desired_goal")
    for goal, expected in (("relabel", keys[:2]), ("keep", keys)):
        data = load_dataset(name, goal=goal, eval_goals="cells")  # type: ignore[arg-type]
        assert data.info.id == f"{name} with drawn goals: cells"
        assert data.observation_keys == expected
        assert data.info.reference_scores is None
        env = data.make_eval_env()
        goals = {tuple(env.reset(seed=seed)[0]["desired_goal"].tolist()) for seed in range(4)}
        assert len(goals) == 4
        env.close()
    for wrong in ("cell", "ogbench"):  # OGBench has no umaze
        with pytest.raises(ValueError, match=r"eval_goals is 'cell'|OGBench has no tasks"):
            load_dataset(name, eval_goals=wrong)  # type: ignore[arg-type]


def test_drawn_goals_leave_the_dataset_that_was_given_as_it_was() -> None:
    data = load_dataset("ld-agents/pointmaze/umaze-10k-v0")
    before = data.info
    for _ in range(2):
        other = load_dataset(data, eval_goals="cells")
        assert other.info.id == "ld-agents/pointmaze/umaze-10k-v0 with drawn goals: cells"
        assert other.content_hash == data.content_hash
    assert data.info == before


def kitchen_set(dataset_id: str, **metadata: Any) -> str:
    goals = spaces.Dict({"kettle": box(7), "microwave": box(1)})
    space = spaces.Dict({"achieved_goal": goals, "desired_goal": goals, "observation": box(59)})
    parts = []
    for rewards in ([0, 1, 0, 2], [1, 2, 3, 4, 4], [0, 0]):
        rows = len(rewards) + 1
        tasks = {"kettle": np.zeros((rows, 7)), "microwave": np.zeros((rows, 1))}
        observations = {"observation": np.ones((rows, 59)), "achieved_goal": tasks, "desired_goal": tasks}
        parts.append(episode(observations, [float(reward) for reward in rewards], 9))
    return store(dataset_id, parts, space, **metadata)


def test_kitchen_of_minari() -> None:
    spec = {"id": "FrankaKitchen-v1", "kwargs": {"remove_task_when_completed": False}, "max_episode_steps": 450}
    data = load_dataset(kitchen_set("D4RL/kitchen/partial-v2", env_spec=spec))
    assert data.observation_dim == 59
    # Minari's counts belong to the observation after the action.
    assert data.rewards.tolist() == [0, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert data.terminals.nonzero().flatten().tolist() == [7]
    assert data.episode_ends.tolist() == [4, 8, 9, 11]
    assert data.info.eval_env == EvalEnvSpec("ld_agents/Kitchen-partial-v0", {}, 280)
    env = data.make_eval_env()
    assert data.flatten_observation(env.reset(seed=0)[0]).shape == (59,)
    env.close()
    with pytest.raises(ValueError, match=r"are dictionaries and cannot be appended. Use goal=\"relabel\""):
        load_dataset("D4RL/kitchen/partial-v2", goal="keep")


def test_kitchen_recordings_that_pay_for_each_task_once_are_left_alone() -> None:
    spec = {"id": "FrankaKitchen-v1", "kwargs": {}, "max_episode_steps": 450}
    data = load_dataset(kitchen_set("mine/kitchen-v0", env_spec=spec))
    assert data.rewards.tolist() == [0, 1, 0, 2, 1, 2, 3, 4, 4, 0, 0]
    assert not data.terminals.any()
    assert data.info.eval_env == EvalEnvSpec(**spec)


def flat_set(dataset_id: str, size: int, actions: int, **metadata: Any) -> str:
    parts = [episode(np.ones((steps + 1, size)), [1.0] * steps, actions) for steps in (3, 2, 4)]
    return store(dataset_id, parts, box(size), **metadata)


def test_adroit_of_minari_is_evaluated_by_d4rl_s_rules() -> None:
    spec = {"id": "AdroitHandPen-v1", "kwargs": {}, "max_episode_steps": 625}
    info = load_dataset(flat_set("D4RL/pen/human-v2", 45, 24, env_spec=spec)).info
    assert info.eval_env == EvalEnvSpec("ld_agents/AdroitPen-v0", {}, 100)
    assert info.reference_scores == (96.262799, 3076.8331017826877)


def test_locomotion_of_minari() -> None:
    spec = {"id": "Hopper-v5", "kwargs": {}, "max_episode_steps": 1000}
    data = load_dataset(flat_set("mujoco/hopper/medium-v0", 11, 3, env_spec=spec))
    assert data.info.eval_env == EvalEnvSpec(**spec)
    assert data.info.reference_scores == (-20.272305, 3234.3)
    assert data.info.provenance == "hub"
    assert data.n_episodes == 3


@pytest.mark.parametrize("made_by", ["stand-in", "regenerated"])
def test_sets_made_here_are_final(made_by: str) -> None:
    spec = {"id": "ld_agents/AdroitPen-v0", "kwargs": {}, "max_episode_steps": 100}
    block = {"provenance": made_by, "replay_check": {"passed": True, "steps": 9}}
    name = flat_set("ld-agents/adroit/pen-human-v0", 45, 24, eval_env_spec=spec, ld_agents=block)
    info = load_dataset(name).info
    assert (info.provenance, info.replay_check, info.eval_env) == (
        made_by,
        {"passed": True, "steps": 9},
        EvalEnvSpec(**spec),
    )
    # D4RL's scale is for the makers of the data to claim.
    assert info.reference_scores is None
    kitchen = kitchen_set("ld-agents/kitchen/mixed-v0", ld_agents=block, env_spec={**spec, "kwargs": {}})
    assert load_dataset(kitchen).rewards.tolist() == [0, 1, 0, 2, 1, 2, 3, 4, 4, 0, 0]


def test_a_missing_set_of_ours_says_how_to_make_it() -> None:
    with pytest.raises(FileNotFoundError, match=r"Make it: python benchmarks/make_datasets.py ld-agents/antmaze/umaze"):
        load_dataset("ld-agents/antmaze/umaze-v0")
