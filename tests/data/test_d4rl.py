"""D4RL's files, read as they are; the rules of the families are in test_rewards.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ld_agents.data.load import load_dataset


def d4rl_arrays() -> dict[str, np.ndarray]:
    n = 6
    return {
        "observations": np.arange(2 * n, dtype=np.float64).reshape(n, 2),
        "actions": np.linspace(-1, 1, n, dtype=np.float32)[:, None],
        "rewards": np.arange(n, dtype=np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0], dtype=bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0], dtype=bool),
        "next_observations": np.arange(2 * n, dtype=np.float32).reshape(n, 2) + 0.5,
    }


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "maze2d.hdf5"
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in {**d4rl_arrays(), **changes}.items():
            if array is not None:
                file.create_dataset(name, data=array, compression="gzip" if np.ndim(array) else None)
        file["infos/goal"] = np.zeros(3)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
def test_d4rl_file(tmp_path: Path, dtype: type) -> None:
    data = load_dataset(write(tmp_path, rewards=d4rl_arrays()["rewards"].astype(dtype)))
    assert data.observations.tolist() == d4rl_arrays()["observations"].tolist()
    assert data.rewards.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.terminals.tolist() == [False, False, True, False, False, False]
    assert data.episode_ends.tolist() == [3, 5, 6]
    assert data.observation_rows[6:].tolist() == [[4.5, 5.5], [8.5, 9.5], [10.5, 11.5]]
    assert data.window_starts(2).tolist() == [0, 1, 3]
    assert data.info.provenance == "d4rl-file"
    assert data.info.id == "maze2d"
    assert load_dataset(str(tmp_path / "maze2d.hdf5")).content_hash == data.content_hash


def test_d4rl_file_without_next_observations_or_timeouts(tmp_path: Path) -> None:
    data = load_dataset(write(tmp_path, next_observations=None))
    assert data.window_starts(2).tolist() == [0, 1]
    with pytest.warns(UserWarning, match="no 'timeouts'.*windows may run across resets"):
        data = load_dataset(write(tmp_path, timeouts=None))
    assert data.episode_ends.tolist() == [3, 6]


def test_bad_d4rl_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_dataset(tmp_path / "none.hdf5")
    with pytest.raises(ValueError, match="has no 'actions'"):
        load_dataset(write(tmp_path, actions=None))
    with pytest.raises(ValueError, match="observations have 6 rows but rewards have 5"):
        load_dataset(write(tmp_path, rewards=np.zeros(5)))
    with pytest.raises(ValueError, match=r"'rewards' has shape \(6, 1\), but 1 axes"):
        load_dataset(write(tmp_path, rewards=np.zeros((6, 1))))
    with pytest.raises(ValueError, match="'rewards' holds object values"):
        load_dataset(write(tmp_path, rewards=np.array(["a"] * 6, dtype=h5py.string_dtype())))
    with pytest.raises(ValueError, match="observations hold nan in episode 1, step 1"):
        load_dataset(write(tmp_path, observations=np.where(np.arange(6)[:, None] == 4, np.nan, np.zeros((6, 2)))))
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match="not a readable HDF5 file"):
        load_dataset(path)
    path = write(tmp_path, rewards=None)
    with h5py.File(path, "a") as file:
        file.create_group("rewards")
    with pytest.raises(ValueError, match="'rewards' is a group"):
        load_dataset(path)


def test_d4rl_files_that_point_elsewhere(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["rewards"] = np.zeros(6)
    (tmp_path / "raw.bin").write_bytes(bytes(48))
    layout = h5py.VirtualLayout((6,), np.float64)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "rewards", (6,))
    for kind in ("external", "dangling", "soft", "virtual", "storage"):
        path = write(tmp_path, rewards=None)
        with h5py.File(path, "a") as file:
            if kind == "external":
                file["rewards"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/rewards")
            elif kind == "dangling":
                file["rewards"] = h5py.ExternalLink(str(tmp_path / "gone.h5"), "/rewards")
            elif kind == "soft":
                file["real"] = np.zeros(6)
                file["rewards"] = h5py.SoftLink("/real")
            elif kind == "virtual":
                file.create_virtual_dataset("rewards", layout)
            else:
                file.create_dataset("rewards", (6,), np.float64, external=[(str(tmp_path / "raw.bin"), 0, 48)])
        with pytest.raises(ValueError, match=r"a link to another place|in other files"):
            load_dataset(path)
