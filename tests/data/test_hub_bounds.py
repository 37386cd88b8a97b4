"""The hub is asked for sizes before anything is fetched, and files are checked before they are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import minari
import numpy as np
import pytest
from good_data import FLAT, episode
from gymnasium import spaces

from ld_agents.data import hub, npz, storage
from ld_agents.data import minari as source
from ld_agents.data.load import load_dataset


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a good local dataset's files."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    minari.create_dataset_from_buffers(
        FLAT,
        [episode(5, False)],
        observation_space=spaces.Box(-np.inf, np.inf, (4,)),
        action_space=spaces.Box(-1, 1, (2,)),
        eval_env="Pendulum-v1",
    )
    return tmp_path / FLAT / "data"


def test_the_size_is_that_of_the_datasets_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"door/human-v2/data/main_data.hdf5": 70, "door/human-v2/data/metadata.json": None, "door/expert-v2/x": 1}
    files = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
    asked = []

    def about(_: object, repository: str, **options: bool) -> SimpleNamespace:
        asked.append((repository, options))
        return SimpleNamespace(siblings=files)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", about)
    assert hub.size("D4RL/door/human-v2") == (2, 70)
    assert asked == [("farama-minari/D4RL", {"files_metadata": True})]
    monkeypatch.setenv("MINARI_REMOTE", "gcp://somewhere")
    assert hub.size("D4RL/door/human-v2") == (0, 0)


@pytest.mark.parametrize(
    ("n_files", "n_bytes", "free"), [(100_001, 1, 1 << 40), (2, (32 << 30) + 1, 1 << 40), (2, 1_000_001, 1_000_000)]
)
def test_what_is_too_large_is_not_fetched(
    n_files: int, n_bytes: int, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(hub, "size", lambda _: (n_files, n_bytes))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(minari, "download_dataset", lambda _: pytest.fail("it was fetched"))
    with pytest.raises(ValueError, match=rf"D4RL/x/y-v0 has {n_files:,} files and .* GB on Minari's hub.*Make room"):
        load_dataset("D4RL/x/y-v0")


def test_metadata_and_files_are_bounded(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_dataset(FLAT).n_steps == 5
    with monkeypatch.context() as patch:
        patch.setattr(hub, "MAX_FILES", 1)
        with pytest.raises(ValueError, match=r"holds more than 1 files\. Delete"):
            load_dataset(FLAT)
    with monkeypatch.context() as patch:
        patch.setattr(source, "_LARGEST_METADATA", 100)
        with pytest.raises(ValueError, match=r"metadata\.json is not JSON \(larger than"):
            load_dataset(FLAT)


def test_links_out_of_the_folder_are_not_followed(stored: Path, tmp_path: Path) -> None:
    main = stored / "main_data.hdf5"
    main.rename(tmp_path / "elsewhere.hdf5")
    main.symlink_to(tmp_path / "elsewhere.hdf5")
    with pytest.raises(ValueError, match=r"main_data\.hdf5 is a link out of its folder, to .*elsewhere\.hdf5. Copy"):
        load_dataset(FLAT)
    main.unlink()
    (tmp_path / "elsewhere.hdf5").rename(main)
    stored.rename(tmp_path / "on another disk")
    stored.symlink_to(tmp_path / "on another disk")  # the folder itself may be a link
    assert load_dataset(FLAT).n_steps == 5


def test_episodes_that_changed_since_they_were_recorded_are_told(stored: Path) -> None:
    file, main = stored / "metadata.json", stored / "main_data.hdf5"
    metadata = json.loads(file.read_text())
    recorded = {"episodes_bytes": main.stat().st_size, "episodes_sha256": storage.digest(main)}
    file.write_text(json.dumps(metadata | recorded))
    assert load_dataset(FLAT).n_steps == 5
    content = bytearray(main.read_bytes())
    place = content.find(episode(5, False).rewards[2].tobytes())
    content[place] ^= 1
    main.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"not what was recorded: its size or checksum differs. Delete .*test/flat-v0 and make it again",
    ):
        load_dataset(FLAT)
    file.write_text(json.dumps(metadata))
    assert load_dataset(FLAT).n_steps == 5


def test_arrays_of_npz_files_do_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, zeros=np.zeros(2_000_000, np.float32), ones=np.ones(3))
    found = npz.read_npz(path, ("ones",))
    assert found["ones"].tolist() == [1, 1, 1]
    assert found["ones"].flags.writeable
    assert npz.read_npz(path)["zeros"].sum() == 0  # what zlib can make of zeros, and no more
    np.savez(path, a=np.array([None]))
    with pytest.raises(ValueError, match=r"x\.npz is not a readable npz file"):
        npz.read_npz(path)
