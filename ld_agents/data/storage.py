"""Files that appear whole or not at all, and places in the local Minari folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to. It becomes `path` when the block ends, and is removed if it fails.

    What is there after a crash or power cut is the old file or the new one: the disk has the content before the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
        if os.name == "posix":
            _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def dataset_folder(dataset_id: str) -> Path:
    """Where Minari keeps a dataset, whether or not it is there.

    Raises:
        ValueError: the id is malformed.
    """
    from minari.dataset.minari_dataset import DATASET_ID_RE
    from minari.storage.datasets_root_dir import get_dataset_path

    match = DATASET_ID_RE.fullmatch(dataset_id)
    if match is None or match.group("version") is None:
        raise ValueError(
            f"{dataset_id!r} is not a Minari id. Ids look like D4RL/pointmaze/umaze-v2: letters, digits, - and _, and "
            "a version at the end. For a D4RL file give a path that ends in .hdf5."
        )
    return Path(get_dataset_path(dataset_id))


def is_minari_id(name: str) -> bool:
    """Whether a name has the form of a Minari id."""
    try:
        dataset_folder(name)
    except ValueError:
        return False
    return True


def local_datasets() -> list[str]:
    """Ids of the datasets in the local Minari folder."""
    from minari.storage.datasets_root_dir import get_dataset_path

    root = Path(get_dataset_path())
    found = (file.parents[1].relative_to(root) for file in root.rglob("data/metadata.json"))
    return sorted(name.as_posix() for name in found if not any(part.startswith(".") for part in name.parts))


def is_local(dataset_id: str) -> bool:
    """Whether the dataset lies in the local Minari folder."""
    return (dataset_folder(dataset_id) / "data" / "metadata.json").is_file()
