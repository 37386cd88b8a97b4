"""Minari data, good and bad, and that nothing they name is run."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset._storages.hdf5_storage import HDF5Storage
from minari.dataset.minari_storage import MinariStorage

from ld_agents.data import hub
from ld_agents.data import minari as source
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.data.load import load_dataset
from ld_agents.evaluation.eval_env import EvalEnvSpec

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float64)
ACTIONS = spaces.Box(-1, 1, (1,), np.float32)


@pytest.fixture(autouse=True)
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def episode(steps: int, first: int = 0, extra: int = 1, terminal: bool = False) -> EpisodeBuffer:
    rows = np.arange(first, first + steps + extra, dtype=np.float64)
    terminations, truncations = np.zeros(steps, bool), np.zeros(steps, bool)
    if steps:
        terminations[-1], truncations[-1] = terminal, not terminal
    return EpisodeBuffer(
        observations=np.stack([rows, -rows], axis=1),  # type: ignore[arg-type]
        actions=np.full((steps, 1), 0.5, np.float32),  # type: ignore[arg-type]
        rewards=rows[:steps] * 10,  # type: ignore[arg-type]
        terminations=terminations,  # type: ignore[arg-type]
        truncations=truncations,  # type: ignore[arg-type]
        infos=None,
    )


def store(episodes: list[EpisodeBuffer], dataset_id: str = "test/flat-v0", **settings: Any) -> str:
    settings = {"observation_space": BOX, "action_space": ACTIONS, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(dataset_id, episodes, **settings)
    return dataset_id


def edit_metadata(folder: Path, dataset_id: str, **changes: Any) -> None:
    file = folder / dataset_id / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata.update(changes)
    file.write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))


# -- Minari --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_minari_box_data(cached: bool) -> None:
    name = store([episode(3), episode(2, 10, terminal=True), episode(4, 20, extra=0)], eval_env="Pendulum-v1")
    if cached:
        load_dataset(name)
    data = load_dataset(name)
    assert data.observations[:, 0].tolist() == [0, 1, 2, 10, 11, 20, 21, 22, 23]
    assert data.episode_ends.tolist() == [3, 5, 9]
    assert data.rewards.tolist() == [0, 10, 20, 100, 110, 200, 210, 220, 230]
    assert data.terminals.tolist() == [False] * 4 + [True] + [False] * 4
    # Episodes 0 and 1 store T+1 observations, episode 2 only T: no window may end at its last row.
    starts = data.window_starts(2)
    assert starts.tolist() == [0, 1, 3, 5, 6]
    after = data.observation_rows[data.next_rows(starts, 2), 0]
    assert after.tolist() == [2, 3, 12, 22, 23]
    assert data.observation_space == BOX
    assert data.action_space == ACTIONS
    assert data.observation_keys is None
    assert data.info.id == name
    assert data.info.provenance == "hub"
    assert data.info.eval_env == EvalEnvSpec("Pendulum-v1", {}, 200)


def test_minaris_own_reader_gives_the_same_data(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [episode(3), episode(2, 10, terminal=True), episode(4, 20, extra=0)]
    one, two, maze_one, maze_two = store(parts), store(parts, "test/b-v0"), maze_set(), maze_set("test/maze-b-v0")
    expected = load_dataset(one), load_dataset(maze_one), load_dataset(maze_one, goal="keep")
    monkeypatch.setattr(source, "_hdf5_episodes", source._minari_episodes)
    found = load_dataset(two), load_dataset(maze_two), load_dataset(maze_two, goal="keep")
    assert [d.content_hash for d in found] == [d.content_hash for d in expected]


def test_episodes_that_minari_cuts_are_not_taken_for_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(self: MinariStorage, indices: Any) -> Any:
        for found in whole(self, indices):
            rows = {name: found[name][:5] for name in ("actions", "rewards", "terminations")}
            yield found | rows | {"observations": found["observations"][:6]}

    whole = HDF5Storage.get_episodes
    monkeypatch.setattr(source, "_hdf5_episodes", source._minari_episodes)
    assert load_dataset(store([episode(4), episode(5)])).n_steps == 9
    monkeypatch.setattr(HDF5Storage, "get_episodes", cut)
    with pytest.raises(ValueError, match=r"holds 11 steps, of which Minari reads 9: .*Store the dataset with"):
        load_dataset(store([episode(4), episode(7)], "test/long-v0"))


def test_arrow_storage() -> None:
    pytest.importorskip("pyarrow")
    parts = [episode(3), episode(2, 10, terminal=True)]
    one, two = store(parts), store(parts, "test/flat-arrow-v0", data_format="arrow")
    assert load_dataset(one).content_hash == load_dataset(two).content_hash


def test_a_terminal_inside_an_episode_splits_it() -> None:
    buffer = episode(4)
    buffer.terminations[1] = True
    data = load_dataset(store([buffer, episode(2, 10)]))
    assert data.episode_ends.tolist() == [2, 4, 6]
    starts = data.window_starts(2)
    assert starts.tolist() == [0, 2, 4]
    assert data.observation_rows[data.next_rows(starts, 2), 0].tolist() == [2, 4, 12]


def test_reference_scores_are_read() -> None:
    name = store([episode(3)], eval_env="Pendulum-v1", ref_min_score=-5.0, ref_max_score=7.0)
    assert load_dataset(name).info.reference_scores == (-5.0, 7.0)
    assert load_dataset(store([episode(3)], "test/none-v0")).info.reference_scores is None


def test_the_cache_follows_the_data(minari_folder: Path) -> None:
    name = store([episode(3)])
    assert load_dataset(name).n_steps == 3
    cache = minari_folder / name / ".ld-agents-arrays.npz"
    assert cache.exists()
    minari.load_dataset(name).update_dataset_from_buffer([episode(2)])
    assert load_dataset(name).n_steps == 5
    whole = cache.read_bytes()
    cache.write_bytes(whole[: len(whole) // 2])
    assert load_dataset(name).n_steps == 5
    assert cache.stat().st_size == len(whole)


def test_the_cache_is_used_and_never_unpickled(minari_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = store([episode(3)])
    load_dataset(name)

    def fail(*_: Any) -> Any:
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(source, "_hdf5_episodes", fail)
    assert load_dataset(name).n_steps == 3
    cache = minari_folder / name / ".ld-agents-arrays.npz"
    with np.load(cache) as stored:
        members = dict(stored)

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(minari_folder / "ran"),)

    np.savez(cache, **{**members, "rewards": np.array([Bomb()], dtype=object)})
    with pytest.raises(AssertionError, match="not used"):
        load_dataset(name)
    assert not (minari_folder / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"observations": np.zeros((5, 2))},
            "Episode 1 of test/flat-v0 has 3 rewards but 5 observations; expected 3 or 4",
        ),
        (
            {"actions": np.zeros((2, 1), np.float32)},
            "Episode 1 of test/flat-v0 has 3 rewards but 2 actions; expected 3",
        ),
        ({"terminations": np.zeros(4, bool)}, "Episode 1 of test/flat-v0 has 3 rewards but 4 terminations"),
        (
            {"observations": np.zeros((4, 3))},
            r"Episode 1 .*observations have rows of shape \(3,\), the space says \(2,\)",
        ),
        ({"observations": np.full((4, 2), np.nan)}, "Episode 1 .*after step 2, the last, is not finite"),
        ({"rewards": np.array([0, np.nan, 0])}, "rewards hold nan in episode 1, step 1"),
        ({"actions": np.full((3, 1), 3, np.float32)}, "Action 3 in episode 1, step 0 .*Clip the actions"),
    ],
)
def test_bad_episodes_are_named(change: dict[str, Any], message: str) -> None:
    good = episode(3)
    name = store([good, EpisodeBuffer(**{**good.__dict__, **change}), episode(2)])
    with pytest.raises(ValueError, match=message):
        load_dataset(name)


def test_an_empty_episode_is_named(minari_folder: Path) -> None:
    name = store([episode(3), episode(2)])
    with h5py.File(minari_folder / name / "data" / "main_data.hdf5", "a") as file:
        for key in list(file["episode_1"]):
            old = file["episode_1"][key][:0]
            del file["episode_1"][key]
            file["episode_1"][key] = old
    with pytest.raises(ValueError, match=r"Episode 1 of test/flat-v0 is empty \(0 steps\)"):
        load_dataset(name)


def test_damaged_files(minari_folder: Path) -> None:
    name = store([episode(3), episode(2)])
    main = minari_folder / name / "data" / "main_data.hdf5"
    with h5py.File(main, "a") as file:
        del file["episode_1"]["actions"]
    with pytest.raises(ValueError, match="Episode 1 of test/flat-v0 has no actions"):
        load_dataset(name)
    with h5py.File(main, "a") as file:
        del file["episode_1"]
    with pytest.raises(ValueError, match="holds 1 episodes, its metadata say 2"):
        load_dataset(name)
    main.write_bytes(main.read_bytes()[:500])
    with pytest.raises(ValueError, match="not a readable HDF5 file"):
        load_dataset(name)
    (main.parent / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_dataset(name)


def test_spaces_that_are_not_supported() -> None:
    buffer = EpisodeBuffer(**{**episode(3).__dict__, "actions": np.zeros(3, np.int64)})
    with pytest.raises(TypeError, match="Only flat continuous ones"):
        load_dataset(store([buffer], action_space=spaces.Discrete(3)))
    rows = {"camera": np.zeros((4, 2))}
    buffer = EpisodeBuffer(**{**episode(3).__dict__, "observations": rows})
    with pytest.raises(ValueError, match=r"keys \('camera',\), but no 'observation'"):
        load_dataset(store([buffer], "test/dict-v0", observation_space=spaces.Dict({"camera": BOX})))


def test_ids() -> None:
    for bad in ("test/flat", "../flat-v0", "/etc/passwd", "a b-v0", "hf://x/y-v0"):
        with pytest.raises(ValueError, match="is not a Minari id"):
            load_dataset(bad)
    with pytest.raises(ValueError, match='Choose "relabel" or "keep"'):
        load_dataset("test/flat-v0", goal="both")  # type: ignore[arg-type]


def test_missing_data_give_one_message(monkeypatch: pytest.MonkeyPatch, minari_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"download=False.*minari download test/gone-v0.*MINARI_DATASETS_PATH"):
        load_dataset("test/gone-v0", download=False)
    levels = []

    def unreachable(dataset_id: str) -> None:
        levels.append(logging.getLogger("huggingface_hub.utils._http").getEffectiveLevel())
        raise ConnectionError("name or service not known\nTraceback ...")

    monkeypatch.setattr(hub, "size", lambda _: (2, 1000))
    monkeypatch.setattr(minari, "download_dataset", unreachable)
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("test/gone-v0")
    message = str(caught.value)
    assert "ConnectionError: name or service not known)" in message
    assert "minari download test/gone-v0" in message
    assert str(minari_folder) in message
    assert "Traceback" not in message
    assert caught.value.__suppress_context__
    assert levels == [logging.CRITICAL]
    assert logging.getLogger("huggingface_hub").level != logging.CRITICAL


def test_a_download_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "size", lambda _: (2, 1000))
    monkeypatch.setattr(minari, "download_dataset", lambda name: store([episode(3)], name))
    assert load_dataset("test/late-v0").n_steps == 3


# -- goals ---------------------------------------------------------------------------------------------------------


def goal_episode(positions: np.ndarray, goal: tuple[float, float], extra: int = 1) -> EpisodeBuffer:
    steps = len(positions) - extra
    return EpisodeBuffer(
        observations={
            "observation": np.concatenate([positions, positions * 0], axis=1),
            "achieved_goal": positions,
            "desired_goal": np.tile(goal, (len(positions), 1)),
        },
        actions=np.zeros((steps, 2), np.float32),  # type: ignore[arg-type]
        rewards=np.full(steps, 7.0),  # type: ignore[arg-type]
        terminations=np.zeros(steps, bool),  # type: ignore[arg-type]
        truncations=np.arange(steps) == steps - 1,  # type: ignore[arg-type]
        infos=None,
    )


def maze_set(dataset_id: str = "test/maze-v0", *, goal_cells: int = 1, **kwargs: Any) -> str:
    """As Minari's own PointMaze sets: the evaluation goal is one cell, which the environment jitters."""
    robotics = pytest.importorskip("gymnasium_robotics")
    gym.register_envs(robotics)
    grid: list[list[Any]] = [[1, 1, 1, 1, 1], [1, "g", 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    if goal_cells == 2:
        grid[3][1] = "g"
    arguments = {"maze_map": grid, "continuing_task": True, "reset_target": False, **kwargs}
    env = gym.make("PointMaze_UMaze-v3", max_episode_steps=300, **arguments)
    near = np.array([[0.0, 1.0], [-0.5, 1.0], [-0.56, 1.0], [-0.9, 1.0], [-1.0, 0.4]])
    return store(
        [goal_episode(near, (1, 1)), goal_episode(near[:3], (0, 1), extra=0)],
        dataset_id,
        observation_space=env.observation_space,
        action_space=env.action_space,
        eval_env=env,
    )


def test_the_reader_returns_what_is_stored() -> None:
    recording = source.read_minari(maze_set())
    assert recording.family is None
    assert recording.rewards.tolist() == [7] * 7
    assert not recording.terminals.any()
    assert recording.ends.tolist() == [4, 7]
    assert np.flatnonzero(recording.timeouts).tolist() == [3, 6]
    # Rewards are computed from achieved goals, which therefore keep their precision.
    achieved, final = (p["achieved_goal"] for p in (recording.observations, recording.final_observations or {}))
    assert (achieved.dtype, achieved[2].tolist()) == (np.float64, [-0.56, 1.0])
    assert final[0].tolist() == [-1.0, 0.4]
    assert np.isnan(final[1]).all()
    assert recording.observations["desired_goal"].tolist() == [[1, 1]] * 4 + [[0, 1]] * 3
    assert recording.info.eval_env is not None
    assert recording.info.eval_env.goal is None


def test_relabel_uses_the_evaluation_goal() -> None:
    data = load_dataset(maze_set())
    # Distances after each step to (-1, 1): 0.5, 0.44, 0.1, 0.6 | 0.5, 0.44, and the last one is unknown.
    assert data.rewards.tolist() == [0, 1, 1, 0, 0, 1, 1]
    assert data.observation_dim == 4
    assert data.observation_keys == ("observation",)
    assert data.observation_space == spaces.Box(-np.inf, np.inf, (4,), np.float64)
    assert data.window_starts(2).tolist() == [0, 1, 2, 4]
    assert data.info.eval_env is not None
    assert data.info.eval_env.goal == (-1.0, 1.0)
    env = data.make_eval_env()
    for seed in range(3):
        observation, info = env.reset(seed=seed)
        assert observation["desired_goal"].tolist() == [-1.0, 1.0]
        assert not info["success"]
    assert data.flatten_observation(observation).shape == (4,)
    env.close()


def test_keep_appends_the_goal() -> None:
    data = load_dataset(maze_set(), goal="keep")
    assert data.rewards.tolist() == [7] * 7
    assert data.observation_keys == ("observation", "desired_goal")
    assert data.observations[:, 4:].tolist() == [[1, 1]] * 4 + [[0, 1]] * 3
    assert data.observation_rows[7].tolist() == pytest.approx([-1.0, 0.4, 0, 0, 1, 1])
    assert isinstance(data.observation_space, spaces.Dict)
    env = data.make_eval_env()
    observation, _ = env.reset(seed=0)
    assert data.flatten_observation(observation).shape == (6,)
    env.close()


def test_relabel_with_a_task_that_ends_at_the_goal() -> None:
    data = load_dataset(maze_set(continuing_task=False))
    assert data.rewards.tolist() == [0, 1, 1, 0, 0, 1, 1]
    assert data.terminals.tolist() == [False, True, True, False, False, True, True]
    assert data.episode_ends.tolist() == [2, 3, 4, 6, 7]
    rows = data.observation_rows[data.next_rows(data.window_starts(1), 1)]
    np.testing.assert_allclose(rows[:, 0], [-0.5, -0.56, -0.9, -1.0, -0.5, -0.56, -0.56])


def test_relabel_dense_rewards() -> None:
    data = load_dataset(maze_set(reward_type="dense"))
    np.testing.assert_allclose(data.rewards[:4], np.exp([-0.5, -0.44, -0.1, -0.6]), rtol=1e-6)


def test_relabel_needs_one_goal() -> None:
    name = maze_set(goal_cells=2)
    with pytest.raises(ValueError, match=r'draws a new goal in every episode.*Use goal="keep"'):
        load_dataset(name)
    assert load_dataset(name, goal="keep").n_steps == 7


def test_relabel_needs_an_evaluation_environment(minari_folder: Path) -> None:
    name = maze_set()
    edit_metadata(minari_folder, name, eval_env_spec=None, env_spec=None)
    with pytest.raises(ValueError, match=r'names no evaluation environment.*Use goal="keep"'):
        load_dataset(name)


# -- safety --------------------------------------------------------------------------------------------------------


def spec_json(folder: Path, **changes: Any) -> str:
    spec = {
        "id": "Pendulum-v1",
        "entry_point": "os:system",
        "kwargs": {},
        "max_episode_steps": 5,
        "additional_wrappers": [{"name": "Evil", "entry_point": "os:mkdir", "kwargs": {"path": str(folder / "ran")}}],
        "vector_entry_point": "os:system",
    }
    return json.dumps({**spec, **changes})


def test_entry_points_of_the_data_are_ignored_and_their_wrappers_refused(minari_folder: Path) -> None:
    name = store([episode(3)])
    edit_metadata(minari_folder, name, eval_env_spec=spec_json(minari_folder, additional_wrappers=[]))
    spec = load_dataset(name).info.eval_env
    assert spec is not None
    assert type(spec.make().unwrapped).__name__ == "PendulumEnv"
    edit_metadata(minari_folder, name, eval_env_spec=spec_json(minari_folder))
    with pytest.raises(ValueError, match="may not name the wrapper os:mkdir, and without it this is another task"):
        load_dataset(name).make_eval_env()
    assert not (minari_folder / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "evil_module:Pendulum-v1"}, "would load code that the dataset names"),
        ({"id": "GymV26Environment-v0", "kwargs": {"env_id": "evil_module:X-v0"}}, "would load code"),
        ({"id": "Evil-v0"}, "not in Gymnasium's registry"),
        ({"kwargs": {"nonsense": 1}}, "cannot be built"),
        ({"kwargs": {"id": "CartPole-v1"}}, "cannot be built"),
    ],
)
def test_other_environments_are_refused(minari_folder: Path, changes: dict[str, Any], message: str) -> None:
    (minari_folder / "evil_module.py").write_text(f"import os\nos.mkdir({str(minari_folder / 'ran')!r})\n")
    name = store([episode(3)])
    edit_metadata(minari_folder, name, eval_env_spec=spec_json(minari_folder, **changes))
    data = load_dataset(name)
    sys.path.insert(0, str(minari_folder))
    try:
        with pytest.raises(ValueError, match=message):
            data.make_eval_env()
    finally:
        sys.path.remove(str(minari_folder))
    assert not (minari_folder / "ran").exists()


def test_missing_spaces_do_not_build_the_environment(minari_folder: Path) -> None:
    name = store([episode(3)])
    edit_metadata(minari_folder, name, env_spec=spec_json(minari_folder), observation_space=None)
    with pytest.raises(ValueError, match="hold no observation_space"):
        load_dataset(name)
    assert not (minari_folder / "ran").exists()


def test_a_fixed_goal_on_another_environment_is_refused() -> None:
    info = DatasetInfo(eval_env=EvalEnvSpec("Pendulum-v1", max_episode_steps=5, goal=(0, 0)))
    data = OfflineDataset(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(2), np.zeros(2), np.zeros(2), info=info)
    with pytest.raises(TypeError, match="not a maze"):
        data.make_eval_env()
