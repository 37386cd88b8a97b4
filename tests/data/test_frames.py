"""Frames in datasets: uint8 in memory or on disk, and the layouts that they are read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.buffers import ReplayBuffer

from ld_agents import OfflineDataset, check_dataset, load_dataset
from ld_agents.data import frames as frames_module
from ld_agents.data.dataset_info import DatasetInfo

pytestmark = pytest.mark.usefixtures("folder")

SHAPE = (4, 6, 3)


def some_frames(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE)).astype(np.uint8)


def arrays(n: int = 10) -> dict[str, Any]:
    ends = np.isin(np.arange(n), (5, n - 1))
    return {
        "observations": some_frames(n),
        "actions": np.linspace(-1, 1, 2 * n).reshape(n, 2),
        "rewards": np.arange(n),
        "terminals": np.zeros(n),
        "timeouts": ends,
    }


def test_frames_stay_uint8_and_are_not_copied() -> None:
    stored = some_frames(12)
    data = OfflineDataset(**{**arrays(), "observations": stored[:10]}, final_observations=stored[10:])
    assert data.observation_rows.dtype == torch.uint8
    assert data.observation_rows.shape == (12, *SHAPE)
    assert data.observation_rows.data_ptr() == stored.ctypes.data
    assert (data.has_frames, data.observation_dim) == (True, 72)
    assert data.observation_space == spaces.Box(0, 255, SHAPE, np.uint8)
    assert data.window_starts(2).tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert data.next_rows(torch.tensor([4, 8]), 2).tolist() == [10, 11]
    np.testing.assert_array_equal(data.observation_rows.numpy(), stored)


def test_frames_that_do_not_lie_behind_each_other_are_joined() -> None:
    data = OfflineDataset(**arrays(), final_observations=some_frames(2, seed=1))
    np.testing.assert_array_equal(data.observation_rows.numpy(), np.concatenate([some_frames(10), some_frames(2, 1)]))
    swapped = some_frames(12)
    data = OfflineDataset(**{**arrays(), "observations": swapped[2:]}, final_observations=swapped[:2])
    np.testing.assert_array_equal(data.observation_rows.numpy(), np.concatenate([swapped[2:], swapped[:2]]))
    unknown = OfflineDataset(**arrays())
    assert unknown.window_starts(2).tolist() == [0, 1, 2, 3, 6, 7]
    assert unknown.content_hash != data.content_hash


def test_other_observations_for_the_same_steps() -> None:
    data = OfflineDataset(**arrays(), final_observations=some_frames(2, seed=1))
    codes = torch.arange(24.0).reshape(12, 2)
    coded = data.with_observations(codes)
    assert (coded.has_frames, coded.observation_dim) == (False, 2)
    assert coded.observations.tolist() == codes[:10].tolist()
    assert coded.window_starts(3).tolist() == data.window_starts(3).tolist()
    assert coded.content_hash != data.content_hash
    assert data.observation_rows.dtype == torch.uint8


def test_what_is_no_frame_is_explained() -> None:
    for wrong, dtype in ((some_frames(10) / 255, "float64"), (some_frames(10).astype(np.int16), "int16")):
        images = rf"Images are uint8 \[steps, height, width, channels\], and these are {dtype}. Reshape .* times 255"
        with pytest.raises(ValueError, match=images):
            OfflineDataset(**{**arrays(), "observations": wrong})
    with pytest.raises(ValueError, match="these are uint8"):
        OfflineDataset(**{**arrays(), "observations": some_frames(10)[..., 0]})
    with pytest.raises(ValueError, match=r"Frames have shape \(3, 4, 6\), with 6 channels.*Channels come last"):
        OfflineDataset(**{**arrays(), "observations": some_frames(10).transpose(0, 3, 1, 2)})
    with pytest.raises(ValueError, match="Give one uint8 frame per episode"):
        OfflineDataset(**arrays(), final_observations=some_frames(3))
    with pytest.raises(ValueError, match=r"observations are frames \(4, 6, 3\) of uint8"):
        OfflineDataset(**arrays(), observation_space=spaces.Box(0, 255, (6, 4, 3), np.uint8))


def test_frames_of_episodes_are_known_after_all_or_none() -> None:
    shown, rest = some_frames(9), {"actions": np.zeros((4, 2)), "rewards": np.zeros(4), "terminals": False}
    more, same = {"observations": shown[:5], **rest}, {"observations": shown[5:], **rest}
    known = load_dataset([more, more])
    np.testing.assert_array_equal(known.observation_rows[8:].numpy(), shown[[4, 4]])
    for episodes in ([same, same], [more, same]):
        data = load_dataset(episodes)
        assert data.observation_rows.dtype == torch.uint8
        np.testing.assert_array_equal(data.observation_rows[4:].numpy(), shown[5:])
        assert data.window_starts(1).tolist() == [0, 1, 2, 4, 5, 6]


def test_frames_of_a_pandas_frame_stay_frames() -> None:
    columns = {"observations": list(some_frames(10)), "actions": list(np.zeros((10, 2))), "reward": 0.0}
    table = pd.DataFrame({**columns, "terminal": False, "episode": np.arange(10) // 5})
    np.testing.assert_array_equal(load_dataset(table).observation_rows.numpy(), some_frames(10))
    table["observations"] = list(some_frames(10) / 255)
    with pytest.raises(ValueError, match=r"Images are uint8 .* and these are float64.*times 255"):
        load_dataset(table)


@pytest.mark.parametrize("first", [True, False])
def test_frames_of_a_replay_buffer_stay_frames_with_the_channels_last(first: bool) -> None:
    shown = some_frames(5)
    stored = shown.transpose(0, 3, 1, 2) if first else shown
    space = spaces.Box(0, 255, stored.shape[1:], np.uint8)
    buffer = ReplayBuffer(4, space, Screen.action_space, device="cpu")
    for t in range(4):
        buffer.add(stored[t : t + 1], stored[t + 1 : t + 2], np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    for env in (None, Screen()):
        data = load_dataset(buffer, env=env)
        np.testing.assert_array_equal(data.observation_rows.numpy(), shown)
        assert data.observation_space == Screen.observation_space


def test_check_dataset_reads_frames() -> None:
    report = check_dataset(OfflineDataset(**arrays(), final_observations=some_frames(2)))
    assert report.facts["observations"] == "frames of 4 x 6 pixels, 3 channels, uint8"
    assert not report.errors


class Screen(gym.Env[Any, Any]):
    observation_space = spaces.Box(0, 255, SHAPE, np.uint8)
    action_space = spaces.Box(-1, 1, (2,), np.float32)


def store(dataset_id: str, lengths: tuple[int, ...] = (6, 4), more: int = 1) -> np.ndarray:
    """A Minari dataset of frames; returns them in the order of its episodes."""
    shown = some_frames(sum(lengths) + more * len(lengths), seed=2)
    parts = np.split(shown, np.cumsum([steps + more for steps in lengths])[:-1])
    episodes = [
        EpisodeBuffer(
            observations=part,
            actions=np.zeros((steps, 2), np.float32),  # type: ignore[arg-type]
            rewards=np.arange(steps, dtype=float),  # type: ignore[arg-type]
            terminations=np.zeros(steps, bool),  # type: ignore[arg-type]
            truncations=np.arange(steps) == steps - 1,  # type: ignore[arg-type]
        )
        for part, steps in zip(parts, lengths, strict=True)
    ]
    space = {"observation_space": Screen.observation_space, "action_space": Screen.action_space}
    minari.create_dataset_from_buffers(dataset_id, episodes, description="frames", **space)
    return shown


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("limit", [1 << 30, 10])
def test_minari_frames_are_in_memory_or_beyond_a_limit_mapped(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(frames_module, "LARGEST_IN_MEMORY", limit)
    shown = store("test/screen-v0")
    for _ in range(2):  # the second load reads the file that the first one wrote
        data = load_dataset("test/screen-v0")
        np.testing.assert_array_equal(data.observations.numpy(), np.concatenate([shown[:6], shown[7:11]]))
        np.testing.assert_array_equal(data.observation_rows[10:].numpy(), shown[[6, 11]])
        maps = Path("/proc/self/maps")
        if maps.is_file():
            mapped = [line for line in maps.read_text().splitlines() if ".ld-agents-frames" in line]
            address = data.observation_rows.data_ptr()
            spans = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in mapped]
            assert any(low <= address < high for low, high in spans) == (limit == 10)
        assert data.episode_ends.tolist() == [6, 10]
        assert data.window_starts(4).tolist() == [0, 1, 2, 6]


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_frames_that_minari_stored_as_jpeg_are_read() -> None:
    rows, columns = np.mgrid[:32, :40]
    shown = np.stack([np.stack([4 * rows + k, 3 * columns, rows + columns], -1) for k in range(4)]).astype(np.uint8)
    episode = EpisodeBuffer(
        observations=shown,
        actions=np.zeros((3, 2), np.float32),  # type: ignore[arg-type]
        rewards=np.zeros(3),  # type: ignore[arg-type]
        terminations=np.zeros(3, bool),  # type: ignore[arg-type]
        truncations=np.arange(3) == 2,  # type: ignore[arg-type]
    )
    space = spaces.Box(0, 255, (32, 40, 3), np.uint8)
    options = {"observation_space": space, "action_space": Screen.action_space}
    minari.create_dataset_from_buffers("test/jpeg-v0", [episode], description="frames", **options)
    data = load_dataset("test/jpeg-v0")
    assert data.observation_rows.shape == (4, 32, 40, 3)
    assert np.abs(data.observation_rows.numpy().astype(int) - shown).mean() < 4


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_minari_frames_change_with_their_files_and_survive_damage(folder: Path) -> None:
    shown = store("test/screen-v0")
    load_dataset("test/screen-v0")
    (cache,) = (folder / "minari" / "test").rglob(".ld-agents-frames-*.npy")
    cache.write_bytes(cache.read_bytes()[:-5])
    np.testing.assert_array_equal(load_dataset("test/screen-v0").observation_rows[10:].numpy(), shown[[6, 11]])
    minari.delete_dataset("test/screen-v0")
    other = store("test/screen-v0", (3, 3), more=0)
    data = load_dataset("test/screen-v0")
    np.testing.assert_array_equal(data.observation_rows.numpy(), other)
    assert data.window_starts(2).tolist() == [0, 3]


def carla_file(folder: Path, name: str = "carla-lane-v0", n: int = 600, **changes: Any) -> tuple[Path, np.ndarray]:
    shown = np.random.default_rng(3).integers(0, 256, (n, 48, 48, 3)).astype(np.uint8)
    everything = {
        "observations": shown.reshape(n, -1).astype(np.float32) / 255,
        "actions": np.random.default_rng(0).uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": np.ones(n, np.float32),
        "terminals": np.arange(n) == 299,
        **changes,
    }
    path = folder / f"{name}.hdf5"
    with h5py.File(path, "w") as file:
        for key, array in everything.items():
            file.create_dataset(key, data=array)
    return path, shown


def test_carla_s_rows_of_numbers_are_frames(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, shown = carla_file(folder)
    data = load_dataset(path)
    assert data.observation_rows.dtype == torch.uint8
    np.testing.assert_array_equal(data.observations.numpy(), shown)
    # without timeouts an episode that no terminal ends has 250 steps
    assert data.episode_ends.tolist() == [250, 300, 550, 600]
    assert data.info == DatasetInfo(
        id="carla-lane-v0",
        provenance="d4rl-file",
        description="D4RL file carla-lane-v0.hdf5.",
        reference_scores=(-0.8503839912088142, 1023.5784385429523),
    )
    path.rename(folder / "carla_lane_follow_flat-v0.hdf5")  # D4RL's name of the file on its server
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    assert load_dataset("carla-lane-v0").content_hash == data.content_hash
    as_they_are, _ = carla_file(folder, observations=shown.reshape(600, -1))
    assert load_dataset(as_they_are).content_hash == data.content_hash
    bad, _ = carla_file(folder, observations=shown.reshape(600, -1).astype(np.float32))
    with pytest.raises(ValueError, match=r"outside of \[0, 1\]"):
        load_dataset(bad)
