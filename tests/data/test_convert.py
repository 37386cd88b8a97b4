"""What becomes of a dataset that is stored as one of Minari's and read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces

from ld_agents import BC, DatasetInfo, OfflineDataset, load_dataset
from ld_agents.data.convert import to_minari
from ld_agents.evaluation.eval_env import EvalEnvSpec

pytestmark = [pytest.mark.usefixtures("folder"), pytest.mark.filterwarnings("ignore:.*set to None|env_spec is None")]

N = 200
LAST = np.arange(N) % 50 == 49
ENDS = [50, 100, 150, 200]


def arrays(**changes: Any) -> dict[str, Any]:
    """Four episodes of 50 steps that time out."""
    rng = np.random.default_rng(0)
    made = {
        "observations": rng.normal(size=(N, 3)),
        "actions": rng.uniform(-1, 1, (N, 2)),
        "rewards": rng.normal(size=N),
        "terminals": np.zeros(N, bool),
        "timeouts": LAST,
    }
    return made | changes


def at_goal() -> dict[str, Any]:
    """Like AntMaze: recording i goes on at the goal from its step 40 - 5 i on, and each of those steps is terminal."""
    goal = np.concatenate([np.arange(50) >= 40 - 5 * i for i in range(4)])
    goal[-1] = False
    return arrays(rewards=goal.astype(float), terminals=goal, timeouts=LAST & ~goal)


def converted(data: OfflineDataset, dataset_id: str = "me/converted-v0") -> OfflineDataset:
    to_minari(data, dataset_id)
    return load_dataset(dataset_id)


def best_rows(data: OfflineDataset) -> list[int]:
    agent = BC("MlpPolicy", data, best_fraction=0.25, hidden=(8,), device="cpu", seed=0)
    agent._prepare_data(data)
    return agent.best_rows().tolist()


def test_plain_data_are_the_same() -> None:
    data = OfflineDataset(**arrays())
    again = converted(data)
    assert again.content_hash == data.content_hash
    assert again.info == DatasetInfo(id="me/converted-v0", description="Converted from user arrays.")


@pytest.mark.parametrize("final", ["known", "partly", "unknown"])
def test_recordings_that_go_on_after_terminals_are_kept(final: str) -> None:
    raw = at_goal()
    after = np.append(raw["observations"][1:], [[1.0, 2.0, 3.0]], axis=0)[raw["terminals"] | raw["timeouts"]]
    if final == "partly":
        after[-1] = np.nan
    data = OfflineDataset(**raw, final_observations=None if final == "unknown" else after, recording_ends=ENDS)
    again = converted(data)
    assert minari.load_dataset("me/converted-v0").total_episodes == 4
    assert again.recording_ends.tolist() == ENDS
    assert again.content_hash == data.content_hash
    assert best_rows(again) == best_rows(data)


def test_timeouts_inside_a_recording_are_kept_and_its_end_is_not() -> None:
    data = OfflineDataset(**arrays(), recording_ends=[100, 200])
    with pytest.warns(UserWarning, match="2 timeouts before their ends, which Minari has no place for"):
        again = converted(data)
    assert again.recording_ends.tolist() == ENDS
    assert again.content_hash == data.content_hash


def test_rules_of_files_are_applied_once(tmp_path: Path) -> None:
    """A file of D4RL's AntMaze, whose rules change rewards and terminals at timeouts."""
    raw = arrays(observations=np.random.default_rng(0).normal(size=(N, 29)), actions=np.zeros((N, 8)))
    with h5py.File(tmp_path / "antmaze-umaze-v2.hdf5", "w") as file:
        for name, array in (raw | {"rewards": np.ones(N), "terminals": np.arange(N) % 50 > 40}).items():
            file[name] = array
    data = load_dataset(tmp_path / "antmaze-umaze-v2.hdf5")
    again = converted(data, "me/antmaze-umaze-v2")
    assert again.recording_ends.tolist() == data.recording_ends.tolist() == ENDS
    assert again.content_hash == data.content_hash
    assert again.info.eval_env is not None
    assert again.info == replace(data.info, id="me/antmaze-umaze-v2", eval_env=again.info.eval_env)
    assert (again.info.provenance, again.info.eval_env.id) == ("d4rl-file", "ld_agents/AntMaze-umaze-v0")


def test_what_is_known_of_the_data_is_kept() -> None:
    info = DatasetInfo("mine", "recorded", "Made.", None, (-1.0, 3.0), {"passed": True}, {"return": 2.0}, "3.4.0")
    with pytest.warns(UserWarning, match="contacts changed"):
        assert converted(OfflineDataset(**arrays(), info=info)).info == replace(info, id="me/converted-v0")


def test_frames_are_stored_exactly() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), np.uint8)
    data = OfflineDataset(**arrays(observations=frames), final_observations=frames[:4])
    assert converted(data).content_hash == data.content_hash


def test_parts_of_dictionaries_are_stored_in_their_order() -> None:
    bounds = {"a": (-9, 9), "b": (-8, 8), "left out": (0, 1)}
    space = spaces.Dict({key: spaces.Box(low, high, (i + 1,)) for i, (key, (low, high)) in enumerate(bounds.items())})
    data = OfflineDataset(**arrays(), observation_space=space, observation_keys=("b", "a"))
    again = converted(data)
    assert again.content_hash == data.content_hash
    assert again.observation_space == spaces.Box(np.array([-8, -8, -9]), np.array([8, 8, 9]), dtype=np.float32)
    # so that the evaluation environment may observe the dictionary
    assert again.flatten_observation({"a": [1], "b": [2, 3]}).tolist() == [2, 3, 1]


def in_pendulum(**spec: Any) -> OfflineDataset:
    info = DatasetInfo(eval_env=EvalEnvSpec("Pendulum-v1", max_episode_steps=7, **spec))
    raw = arrays()
    raw |= {"observations": raw["observations"][:, :2], "actions": raw["actions"][:, :1]}
    return OfflineDataset(**raw, info=info, action_space=spaces.Box(-2, 2, (1,)))


def test_columns_of_the_evaluation_environment_are_kept() -> None:
    data = in_pendulum(observation_columns=(2, 0))
    again = converted(data)
    assert again.info.eval_env == data.info.eval_env
    one, two = data.make_eval_env(), again.make_eval_env()
    assert two.observation_space == one.observation_space
    np.testing.assert_array_equal(two.reset(seed=0)[0], one.reset(seed=0)[0])


def test_a_failed_conversion_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minari.dataset.minari_storage import MinariStorage

    data = in_pendulum(observation_columns=(0, 1))

    def fail(*_: Any) -> None:
        assert (folder / "minari/me/converted-v0").exists()
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MinariStorage, "update_metadata", fail)
        with pytest.raises(OSError, match="no space left"):
            to_minari(data, "me/converted-v0")
    assert not (folder / "minari/me/converted-v0").exists()
    assert converted(data).content_hash == data.content_hash
