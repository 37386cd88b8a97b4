"""Files of other libraries against arrays that are known beforehand, written in the layouts of those libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ld_agents import BC, OfflineDataset
from ld_agents.data.load import load_dataset

# Two episodes: s0 .. s3 with three actions, s10 .. s12 with two.
STATES = np.array([[0, 0], [1, -1], [2, -2], [3, -3], [10, -10], [11, -11], [12, -12]], np.float32)
LAST = np.array([0, 0, 0, 1, 0, 0, 1], np.float32)
ACTIONS = np.array([0.0, 0.1, 0.2, 0.9, 0.5, 0.6, -0.9], np.float32)[:, None]
TAKEN = [0, 1, 2, 4, 5]


def check(data: OfflineDataset) -> None:
    assert data.observations.tolist() == STATES[TAKEN].tolist()
    assert data.actions.tolist() == ACTIONS[TAKEN].tolist()
    assert data.episode_ends.tolist() == data.recording_ends.tolist() == [3, 5]
    assert data.observation_rows[5:].tolist() == [[3, -3], [12, -12]]
    assert data.window_starts(1).tolist() == [0, 1, 2, 3, 4]
    assert not data.terminals.any()


# -- OGBench -------------------------------------------------------------------------------------------------------


def ogbench(folder: Path, **arrays: Any) -> Path:
    path = folder / "pointmaze-medium-navigate-v0.npz"
    arrays = {"observations": STATES, "actions": ACTIONS, "terminals": LAST, "qpos": STATES, **arrays}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize("kind", ["served", "compact", "regular"])
def test_ogbench(kind: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {}
    if kind == "compact":
        more = {"terminals": np.array([0, 0, 1, 1, 0, 1, 1]), "valids": 1 - LAST}
    elif kind == "regular":
        more = {"observations": STATES[TAKEN], "actions": ACTIONS[TAKEN], "terminals": np.array([0, 0, 1, 0, 1])}
        more |= {"next_observations": STATES[[1, 2, 3, 5, 6]], "qpos": None}
    with pytest.warns(UserWarning, match="has no rewards .*so all are 0 here"):
        data = load_dataset(ogbench(tmp_path, **more))
    check(data)
    assert data.rewards.tolist() == [0] * 5
    assert data.info.id == "pointmaze-medium-navigate-v0"


def test_ogbench_with_rewards_and_masks(tmp_path: Path) -> None:
    rewards, masks = np.array([-1, -1, 0, 9, -1, -1, 9]), np.array([1, 1, 0, 1, 1, 1, 1])
    data = load_dataset(str(ogbench(tmp_path, rewards=rewards, masks=masks)))
    assert data.rewards.tolist() == [-1, -1, 0, -1, -1]
    assert data.terminals.tolist() == [False, False, True, False, False]
    assert data.window_starts(2).tolist() == [0, 1, 3]


@pytest.mark.filterwarnings("ignore:.*has no rewards")
def test_ogbench_that_stops_within_an_episode(tmp_path: Path) -> None:
    data = load_dataset(ogbench(tmp_path, terminals=np.array([0, 0, 0, 1, 0, 0, 0])))
    assert data.episode_ends.tolist() == [3, 6]
    assert data.window_starts(1).tolist() == [0, 1, 2, 3, 4]  # what follows the last action is unknown


def test_an_npz_file_with_timeouts_holds_arrays_of_ones_own(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"observations": STATES[TAKEN], "actions": ACTIONS[TAKEN], "rewards": np.arange(5)}
    arrays |= {"terminals": np.array([0, 0, 1, 0, 0]), "timeouts": np.array([0, 0, 0, 0, 1])}
    np.savez(tmp_path / "mine.npz", **arrays)
    data = load_dataset(tmp_path / "mine.npz")
    assert data.content_hash == load_dataset(arrays).content_hash
    assert data.info.id == "mine"
    assert data.terminals.tolist() == [False, False, True, False, False]
    assert data.rewards.tolist() == [0, 1, 2, 3, 4]
    after = {"next_obs": STATES[[1, 2, 3, 5, 6]], "truncated": arrays.pop("timeouts")}
    np.savez(tmp_path / "mine.npz", **arrays, **after)
    assert load_dataset(tmp_path / "mine.npz").observation_rows[5:].tolist() == [[3, -3], [12, -12]]
    del arrays["rewards"]
    np.savez(tmp_path / "mine.npz", **arrays, **after)
    with pytest.raises(ValueError, match=r"mine\.npz: There is no 'rewards' among the arrays\. Give observations, act"):
        load_dataset(tmp_path / "mine.npz")
    np.savez(tmp_path / "mine.npz", **arrays, **after, rewards=np.zeros(4))
    with pytest.raises(ValueError, match=r"There are 5 observations, 5 actions, 4 rewards.*Give one row per step"):
        load_dataset(tmp_path / "mine.npz")


def test_an_npz_file_with_rewards_and_no_timeouts_is_not_guessed_at(tmp_path: Path) -> None:
    """Read as OGBench's, every row of a terminal would be dropped, and with it what it pays."""
    arrays = {"observations": STATES, "actions": ACTIONS, "rewards": np.arange(len(STATES))}
    terminals = np.arange(len(STATES)) % 3 == 2
    np.savez(tmp_path / "goal.npz", **arrays, terminals=terminals)
    with pytest.raises(ValueError, match=r"goal\.npz holds rewards and no 'timeouts'. To arrays of your own, add"):
        load_dataset(tmp_path / "goal.npz")
    np.savez(tmp_path / "goal.npz", **arrays, terminals=terminals, masks=1 - terminals)
    assert load_dataset(tmp_path / "goal.npz").n_steps == (~terminals).sum()


def test_bad_npz_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_dataset(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="has no 'actions', which OGBench's files have"):
        load_dataset(ogbench(tmp_path, actions=None))
    with pytest.raises(ValueError, match="arrays of different lengths"):
        load_dataset(ogbench(tmp_path, terminals=LAST[:-1]))
    path = ogbench(tmp_path, actions=np.array([None] * 7))  # a pickle
    with pytest.raises(ValueError, match="is not a readable npz file"):
        load_dataset(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a readable npz file"):
        load_dataset(path)


# -- robomimic -----------------------------------------------------------------------------------------------------


def robomimic(folder: Path, dones: list[list[int]], rewards: list[list[float]], repeat: bool = False) -> Path:
    path = folder / "low_dim.hdf5"
    with h5py.File(path, "w") as file:
        file.create_group("data")
        for i, (rows, after) in enumerate((([0, 1, 2], [1, 2, 3]), ([4, 5], [5, 6]))):
            demo = file["data"].create_group(f"demo_{i}")
            demo.attrs["num_samples"] = len(rows)
            if repeat:
                after = [*after[:-1], rows[-1]]
            for name, chosen in (("obs", rows), ("next_obs", after)):
                demo[f"{name}/object"], demo[f"{name}/robot0_eef_pos"] = STATES[chosen, :1], STATES[chosen, 1:]
                demo[f"{name}/image"] = np.zeros((len(chosen), 4, 4, 3), np.uint8)
            demo["actions"], demo["rewards"], demo["dones"] = ACTIONS[rows].astype(np.float64), rewards[i], dones[i]
    return path


@pytest.mark.filterwarnings("ignore:.*image are no vectors and are left out")
def test_robomimic(tmp_path: Path) -> None:
    data = load_dataset(robomimic(tmp_path, [[0, 0, 1], [0, 1]], [[0, 0, 0], [0, 0]]))  # mode 1, both failed
    check(data)
    assert data.observation_keys == ("object", "robot0_eef_pos")
    assert data.flatten_observation({"robot0_eef_pos": [5.0], "object": [4.0]}).tolist() == [4, 5]
    data = load_dataset(robomimic(tmp_path, [[0, 1, 1], [0, 0]], [[0, 1, 1], [0, 0]]))  # mode 0, success is held
    assert data.terminals.tolist() == [False, True, True, False, False]
    assert data.episode_ends.tolist() == [2, 3, 5]
    assert data.recording_ends.tolist() == [3, 5]
    assert data.rewards.tolist() == [0, 1, 1, 0, 0]
    assert data.observation_rows[5:].tolist() == [[2, -2], [3, -3], [12, -12]]


@pytest.mark.filterwarnings("ignore:.*image are no vectors and are left out")
def test_robomimic_with_dense_rewards_and_a_repeated_observation(tmp_path: Path) -> None:
    path = robomimic(tmp_path, [[0, 0, 1], [0, 1]], [[0.5, 0.5, 2], [0.5, 3]], repeat=True)
    with pytest.warns(UserWarning, match="may mark ends that are no terminals"):
        data = load_dataset(path)
    assert not data.terminals.any()
    assert data.window_starts(1).tolist() == [0, 1, 3]
    with h5py.File(path, "a") as file:
        del file["data/demo_1/rewards"]
    with pytest.raises(ValueError, match="has no 'data/demo_1/rewards'"):
        load_dataset(path)


def test_more_than_ten_demos_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "many.hdf5", "w") as file:
        for i in range(12):
            demo = file.create_group(f"data/demo_{i}")
            demo["obs/x"], demo["actions"] = np.full((2, 1), float(i)), np.zeros((2, 1))
            demo["rewards"], demo["dones"] = np.zeros(2), np.array([0, 1])
    data = load_dataset(tmp_path / "many.hdf5")
    assert data.observations[::2, 0].tolist() == list(range(12))
    assert data.window_starts(1).tolist() == list(range(0, 24, 2))  # without next_obs the last step has no successor


@pytest.mark.parametrize("where", ["data", "data/demo_0", "data/demo_0/obs", "data/demo_0/obs/object", "num_episodes"])
def test_files_that_point_elsewhere_are_refused(where: str, tmp_path: Path) -> None:
    path = robomimic(tmp_path, [[0, 0, 1], [0, 1]], [[0, 0, 0], [0, 0]])
    (tmp_path / "other.hdf5").write_bytes(path.read_bytes())
    with h5py.File(path, "a") as file:
        if where == "num_episodes":
            del file["data"]
            file["columns"] = ["observations"]
        else:
            del file[where]
        file[where] = h5py.ExternalLink("other.hdf5", where)
    with pytest.raises(ValueError, match="or a link in its place"):
        load_dataset(path)


# -- d3rlpy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_mdp_dataset(version: int, tmp_path: Path) -> None:
    path, rewards = tmp_path / "dataset.h5", np.arange(5, dtype=np.float32)[:, None]
    with h5py.File(path, "w") as file:
        if version == 2:
            file["columns"] = ["observations", "actions", "rewards", "terminated"]
            file["num_episodes"], file["version"] = 2, "2.1"
            for i, rows in enumerate((slice(0, 3), slice(3, 5))):
                file[f"observations_{i}"], file[f"actions_{i}"] = STATES[TAKEN][rows], ACTIONS[TAKEN][rows]
                file[f"rewards_{i}"], file[f"terminated_{i}"] = rewards[rows], i == 1
        else:
            file["observations"], file["actions"], file["rewards"] = STATES[TAKEN], ACTIONS[TAKEN], rewards
            file["terminals"], file["episode_terminals"] = np.eye(5)[4], np.eye(5)[4] + np.eye(5)[2]
            file["discrete_action"], file["version"] = False, "1.0"
    data = load_dataset(path)
    assert data.observations.tolist() == STATES[TAKEN].tolist()
    assert data.actions.tolist() == ACTIONS[TAKEN].tolist()
    assert data.rewards.tolist() == [0, 1, 2, 3, 4]
    assert data.terminals.tolist() == [False] * 4 + [True]
    assert data.episode_ends.tolist() == [3, 5]
    assert data.window_starts(1).tolist() == [0, 1, 3, 4]  # at the timeout the last row has no successor


# -- dictionaries --------------------------------------------------------------------------------------------------


def test_a_dictionary_of_arrays_is_taken() -> None:
    arrays = {
        "observations": STATES[TAKEN],
        "actions": ACTIONS[TAKEN],
        "rewards": np.zeros(5),
        "terminals": np.zeros(5, bool),
        "timeouts": np.array([0, 0, 1, 0, 1], bool),
        "next_observations": STATES[[1, 2, 3, 5, 6]],
        "infos/goal": np.zeros((5, 2)),
    }
    check(load_dataset(arrays))
    agent = BC("MlpPolicy", arrays, seed=np.int64(3), steps=np.int32(2), device="cpu")
    assert (agent.seed, agent.settings.steps) == (3, 2)
    assert type(agent.seed) is int
    del arrays["timeouts"]  # as just-d4rl returns it
    with pytest.raises(
        ValueError, match=r"no 'timeouts' among the arrays.*as just-d4rl returns them, nothing tells where"
    ):
        load_dataset(arrays)


# -- files that the libraries wrote themselves ---------------------------------------------------------------------

FILES = Path(__file__).parent / "files"  # by ogbench 1.2.2 (its PointMaze and `load_dataset`) and d3rlpy 2.8.1


@pytest.mark.filterwarnings("ignore:.*has no rewards")
@pytest.mark.parametrize("kind", ["served", "compact", "regular", "singletask"])
def test_files_of_ogbench_itself(kind: str) -> None:
    """Three episodes of five states. Action t of episode i is (0.25 (i + 1), 0.125 t) and moves the point by a fifth.

    In the task of "singletask" the last episode is at the goal.
    """
    data = load_dataset(FILES / f"ogbench_{kind}.npz")
    actions = np.array([[0.25 * (i + 1), 0.125 * t] for i in range(3) for t in range(4)], np.float32)
    np.testing.assert_array_equal(data.actions, actions)
    assert data.recording_ends.tolist() == [4, 8, 12]
    at_goal = kind == "singletask"
    assert data.episode_ends.tolist() == ([4, 8, 9, 10, 11, 12] if at_goal else [4, 8, 12])
    assert data.terminals.tolist() == [False] * 8 + [at_goal] * 4
    assert data.rewards.tolist() == [-1.0 if at_goal else 0.0] * 8 + [0.0] * 4
    starts, moved = data.observations[[0, 4, 8]].numpy(), 0.2 * actions.reshape(3, 4, 2).cumsum(axis=1)
    reached = np.concatenate([data.observations.numpy().reshape(3, 4, 2)[:, 1:], last_states(data)[:, None]], axis=1)
    np.testing.assert_allclose(reached, starts[:, None] + moved, rtol=0, atol=1e-5)


def last_states(data: OfflineDataset) -> np.ndarray:
    """The state after the last action of each recording, [E, 2]."""
    final = data.observation_rows[data.n_steps :].numpy()
    return final[[list(data.episode_ends).index(end) for end in data.recording_ends]]


def test_a_file_of_d3rlpy_itself() -> None:
    data = load_dataset(FILES / "d3rlpy.h5")
    assert data.observations.tolist() == np.arange(14).reshape(7, 2).tolist()
    np.testing.assert_array_equal(data.actions[:, 0], np.linspace(-0.9, 0.9, 7, dtype=np.float32))
    assert data.rewards.tolist() == list(range(7))
    assert data.terminals.tolist() == [row == 3 for row in range(7)]
    assert data.episode_ends.tolist() == [4, 7]
    assert data.window_starts(1).tolist() == [0, 1, 2, 3, 4, 5]  # at the timeout the last row has no successor
