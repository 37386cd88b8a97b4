"""Files that appear whole or not at all, and places in the local Minari folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to. It becomes `path` when the block ends, and is removed if it fails.

    What is there after a crash or power cut is the old file or the new one: the disk has the content before the name.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
        if os.name == "posix":
            _to_disk(path.parent)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        # the error of a write names no file
        what = f"{error.strerror}; nothing is lost that was there before. Make room or choose another folder for it"
        raise OSError(error.errno, what, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def with_default_suffix(path: str | Path, suffix: str) -> Path:
    """The path, with the suffix where it has none."""
    path = Path(path)
    return path if path.suffix else path.with_suffix(suffix)


def check_writable(path: Path) -> None:
    """Makes the folder of a file that is to be written later, and writes there.

    Raises:
        OSError: `whole` would fail; the message says what to do.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "This is a folder. Name a file in it", str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        what = f"{error.strerror}; no file can be written there. Choose another folder for it"
        raise OSError(error.errno, what, str(path)) from None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
