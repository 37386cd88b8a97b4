"""Situations of public bug reports around data: what is read is what was meant, or it is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from test_minari import BOX, edit_metadata, episode, store

from ld_agents import BC, DatasetInfo, OfflineDataset, load_dataset
from ld_agents.data import hub
from ld_agents.data.minari import read_minari
from ld_agents.evaluation.environments import has_new_contacts
from ld_agents.evaluation.eval_env import EvalEnvSpec

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def minari_folder(folder: Path) -> Path:
    return folder / "minari"


def arrays(n: int = 200, size: int = 3, **changes: Any) -> dict[str, Any]:
    """Noise, with a timeout every 50 rows."""
    rng = np.random.default_rng(0)
    made = {
        "observations": rng.normal(size=(n, size)),
        "actions": rng.uniform(-1, 1, (n, 1)),
        "rewards": rng.normal(size=n),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(n) % 50 == 49,
    }
    return made | changes


def with_value(name: str, value: float, row: int = 70) -> dict[str, Any]:
    changed = arrays()
    changed[name][row] = value
    return changed


# -- Minari #302: the evaluation environment is that of the recording ----------------------------------------------


def recorded_under(wrap: Any, dataset_id: str) -> str:
    env = wrap(gym.make("Pendulum-v1"))
    made = dataclasses.replace(episode(3), observations=np.zeros((4, *env.observation_space.shape)))
    spaces_of_env = {"observation_space": env.observation_space, "action_space": env.action_space}
    return store([made], dataset_id, env=env, **spaces_of_env)


def test_wrappers_of_the_recording_are_around_the_evaluation() -> None:
    data = load_dataset(recorded_under(lambda env: gym.wrappers.RescaleAction(env, -1.0, 1.0), "me/rescaled-v0"))
    env = data.make_eval_env()
    assert env.action_space == data.action_space == spaces.Box(-1, 1, (1,), np.float32)
    data = load_dataset(recorded_under(gym.wrappers.TimeAwareObservation, "me/timed-v0"))
    assert data.make_eval_env().observation_space.shape == (4,)


@pytest.mark.parametrize(
    "changes",
    [
        {"action_space": spaces.Box(-1, 1, (1,), np.float32)},  # the environment takes -2 to 2
        {"observations": np.zeros((200, 4))},
        {"actions": np.zeros((200, 2))},
    ],
)
def test_an_environment_with_other_spaces_is_refused(changes: dict[str, Any]) -> None:
    info = DatasetInfo(eval_env=EvalEnvSpec("Pendulum-v1"))
    with pytest.raises(ValueError, match="Use the one that the data were recorded in"):
        OfflineDataset(**arrays(**changes), info=info).make_eval_env()
    assert OfflineDataset(**arrays(), action_space=spaces.Box(-2, 2, (1,)), info=info).make_eval_env() is not None


# -- D4RL #199: recordings that go on at the goal ------------------------------------------------------------------


def at_the_goal_from(steps: list[int]) -> dict[str, np.ndarray]:
    """Recordings of 200 rows that reach the goal at these steps and stay there, or wait outside now and then."""
    inside = np.concatenate([np.arange(200) >= step for step in steps])
    inside[150::200] = False
    n = len(inside)
    timeouts = np.arange(n) % 200 == 199
    return {
        "observations": np.random.default_rng(0).normal(size=(n, 29)),
        "actions": np.zeros((n, 8)),
        "rewards": inside.astype(np.float32),
        "terminals": inside & ~timeouts,
        "timeouts": timeouts,
    }


def best_rows(data: OfflineDataset, fraction: float) -> list[int]:
    agent = BC("MlpPolicy", data, best_fraction=fraction, device="cpu", seed=0, preset="fast")
    agent._prepare_data(data)
    return agent.best_rows().tolist()


def test_the_best_tenth_are_recordings() -> None:
    known, steps = at_the_goal_from([120, 110, 101, 90, 130, 105, 99, 103, 140, 100]), 200
    with h5py.File("antmaze-umaze-v2.hdf5", "w") as file:
        for name, array in known.items():
            file[name] = array
    data = load_dataset("antmaze-umaze-v2.hdf5")
    assert data.n_episodes > 700
    assert data.recording_ends.tolist() == list(range(steps, 2001, steps))
    assert best_rows(data, 0.1) == list(range(600, 800))  # 90 steps to the goal
    assert best_rows(data, 0.2) == [*range(600, 800), *range(1200, 1400)]
    same = OfflineDataset(**known, recording_ends=np.arange(200, 2001, 200))
    assert best_rows(same, 0.1) == list(range(600, 800))
    for wrong in ([200, 1900], [50, 2000], [130]):
        with pytest.raises(ValueError, match="recording_ends must be the ends of episodes"):
            OfflineDataset(**known, recording_ends=wrong)


def test_a_minari_episode_that_goes_on_after_terminals_is_one_recording() -> None:
    episodes = [episode(20, first=100 * i) for i in range(10)]
    for i, each in enumerate(episodes):
        each.rewards[:] = 0  # type: ignore[index]
        each.rewards[10 + i :] = 1  # type: ignore[index]
        each.terminations[10 + i :] = True  # type: ignore[index]
    data = load_dataset(store(episodes))
    assert data.recording_ends.tolist() == list(range(20, 201, 20))
    assert best_rows(data, 0.1) == list(range(20))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- d3rlpy #255: numbers that overflow ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["observations", "rewards"])
@pytest.mark.parametrize("value", [1e30, -1e20, 3e15])
def test_numbers_that_nothing_is_learned_from_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} hold -?[\d.e+]+ in episode 1, step 20 .* beyond 1e\+15"):
        OfflineDataset(**with_value(name, value))
    final = np.zeros((4, 3))
    final[2, 1] = value
    with pytest.raises(ValueError, match=r"final observation of episode 2 is infinite or beyond 1e\+15"):
        OfflineDataset(**arrays(), final_observations=final)


@pytest.mark.parametrize("column", [1.7e9 + np.arange(300_000), 1e6 + np.arange(300_000) % 7, 1e14 * np.ones(300_000)])
def test_statistics_are_summed_in_float64(column: np.ndarray) -> None:
    made = arrays(300_000)
    made["observations"][:, 1] = column
    data = OfflineDataset(**made)
    policy = BC("MlpPolicy", data, normalize_observations=True, device="cpu", seed=0, preset="fast").policy
    rows = data.observations.numpy().astype(np.float64)
    np.testing.assert_allclose(policy.observation_mean.numpy(), rows.mean(0), rtol=1e-7, atol=1e-4)
    np.testing.assert_allclose(policy.observation_std.numpy(), rows.std(0).clip(1e-3), rtol=1e-4)


def test_the_largest_numbers_that_are_taken_give_finite_actions() -> None:
    agent = BC("MlpPolicy", OfflineDataset(**with_value("observations", 9e14)), device="cpu", seed=0, preset="fast")
    agent.learn(20)
    assert np.isfinite(agent.predict(arrays()["observations"], deterministic=True)[0]).all()


# -- stable-baselines3 #934: flags of done that include timeouts ---------------------------------------------------


@pytest.mark.parametrize(("rows", "text"), [([49], "1 rows"), ([49, 99, 149, 199], "4 rows"), ([199], "1 rows")])
def test_rows_with_both_flags_are_named(rows: list[int], text: str) -> None:
    made = arrays()
    made["terminals"][rows] = True
    with pytest.warns(UserWarning, match=rf"{text} have both.* first is row {rows[0]}\..*terminals & ~timeouts"):
        data = OfflineDataset(**made)
    assert data.terminals.nonzero().ravel().tolist() == rows
    with h5py.File("own.hdf5", "w") as file:
        for name, array in made.items():
            file[name] = array
    with pytest.warns(UserWarning, match="have both flags"):
        load_dataset("own.hdf5")


@pytest.mark.filterwarnings("error")
def test_the_last_row_of_a_minari_episode_has_one_flag() -> None:
    assert load_dataset(store([episode(3), episode(4, terminal=True)])).terminals.tolist() == [False] * 6 + [True]


# -- Minari #57: parts of the observation that are left out --------------------------------------------------------


@pytest.mark.parametrize("others", [("joint_torques",), ("a", "image"), ("time", "x", "y")])
def test_parts_that_are_left_out_are_listed(others: tuple[str, ...]) -> None:
    keys = ("observation", "achieved_goal", "desired_goal", *others)
    space = spaces.Dict(dict.fromkeys(keys, BOX))
    rows = np.zeros((4, 2))
    made = EpisodeBuffer(
        observations=dict.fromkeys(keys, rows),  # type: ignore[arg-type]
        actions=np.zeros((3, 1), np.float32),  # type: ignore[arg-type]
        rewards=np.zeros(3),  # type: ignore[arg-type]
        terminations=np.zeros(3, bool),  # type: ignore[arg-type]
        truncations=np.arange(3) == 2,  # type: ignore[arg-type]
        infos=None,
    )
    name = store([made], observation_space=space)
    with pytest.warns(UserWarning, match=f"hold {', '.join(map(repr, others))} too, which are left out"):
        recording = read_minari(name)
    assert set(recording.observations) == {"observation", "achieved_goal", "desired_goal"}


# -- spaces that are learned from ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        spaces.Discrete(4),
        spaces.MultiBinary(4),
        spaces.MultiDiscrete([2, 2]),
        spaces.Box(0, 1, ()),
        spaces.Box(0, 1, (2, 2)),
    ],
)
def test_other_parts_are_refused_by_name_when_the_data_are_made(part: spaces.Space[Any]) -> None:
    space = spaces.Dict(mode=part, pos=spaces.Box(-1, 1, (3,)))
    with pytest.raises(TypeError, match=r"at key 'mode' is .* Flatten it, numbers of a class one-hot"):
        OfflineDataset(**arrays(size=7), observation_space=space, observation_keys=("pos", "mode"))
    with pytest.raises(TypeError, match=r"The observation space is .*Only vectors"):
        OfflineDataset(**arrays(size=4), observation_space=part)
    OfflineDataset(**arrays(), observation_space=space, observation_keys=("pos",))


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["door-cloned-v1", "hopper-medium-v2", "antmaze-umaze-v2", "door-cloned-v7"])
def test_a_local_set_with_a_name_of_d4rl_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"Put D4RL's .hdf5 file there|D4RL has no v7 of door-cloned"):
        load_dataset(name)
    store([episode(3)], name)
    assert load_dataset(name).n_steps == 3


@pytest.mark.parametrize("name", ["hopper-medium-v3", "maze2d-umaze-v0", "pen-human-v2"])
def test_versions_that_d4rl_does_not_have_are_not_sought_on_the_hub(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"D4RL has no v\d of .*Choose one of {name[:-3]}-v\d"):
        load_dataset(name)


# -- packages that are missing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["PIL", "pyarrow"])
def test_a_missing_package_is_named_and_nothing_is_to_be_deleted(
    package: str, minari_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minari.dataset import minari_storage

    name = store([episode(3)])
    edit_metadata(minari_folder, name, data_format="arrow")

    def fail(*_: Any) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}")

    monkeypatch.setattr(minari_storage.MinariStorage, "read", fail)
    with pytest.raises(ImportError, match=rf"No module named '{package}'.*the data are whole.*pip install") as error:
        load_dataset(name)
    assert "elete" not in str(error.value)


def test_a_hub_client_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ImportError("No module named 'huggingface_hub'")

    monkeypatch.setattr(hub, "size", lambda _: (2, 1000))
    monkeypatch.setattr(minari, "download_dataset", fail)
    with pytest.raises(ImportError, match=r"huggingface_hub.*pip install"):
        load_dataset("me/absent-v0")


# -- what is given instead of a dataset ----------------------------------------------------------------------------


def test_minaris_own_object_is_taken_whole() -> None:
    name = store([episode(3), episode(4)])
    assert load_dataset(minari.load_dataset(name)).n_steps == 7
    part = minari.load_dataset(name).filter_episodes(bool_of)
    with pytest.raises(ValueError, match=r"a part of the episodes of test/flat-v0.*list\(part.iterate_episodes\(\)\)"):
        load_dataset(part)
    assert load_dataset(list(part.iterate_episodes())).n_episodes == part.total_episodes
    for wrong in (gym.make("Pendulum-v1"), 7, None, torch.zeros(3)):
        with pytest.raises(TypeError, match=r"is no dataset\. Agents learn from recorded data"):
            BC("MlpPolicy", wrong)


def bool_of(each: Any) -> bool:
    return len(each.rewards) == 3


# -- MuJoCo 3.5 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"requirements": ["mujoco==3.2.3", "gymnasium>=1.0.0"]}, True),
        ({"requirements": ["mujoco==3.5.0"]}, False),
        ({"requirements": ["mujoco>=3.1"]}, False),  # tells nothing
        ({"requirements": 7}, False),
        ({"ld_agents": {"versions": {"mujoco": "3.4.0"}}}, True),
        ({"ld_agents": {"versions": {"mujoco": "3.10.2"}}}, False),
    ],
)
def test_data_of_the_other_simulator_are_told(
    changes: dict[str, Any], warned: bool, minari_folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    name = store([episode(3)])
    edit_metadata(minari_folder, name, **changes)
    load_dataset(name)
    told = [str(warning.message) for warning in recwarn if "contacts changed in 3.5.0" in str(warning.message)]
    assert len(told) == warned
    assert [has_new_contacts(version) for version in ("2.3.7", "3.4.0", "3.5.0", "3.10", "4.0.0")] == [0, 0, 1, 1, 1]
