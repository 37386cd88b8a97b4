"""Datasets from Minari's hub: asked for their size before they are fetched."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
from pathlib import Path

from ld_agents.data.storage import is_local

MAX_BYTES = 32 << 30
MAX_FILES = 100_000


def download(dataset_id: str, allowed: bool) -> None:
    """Fetch a dataset into the local Minari folder.

    Raises:
        FileNotFoundError: it may not be fetched, or the hub does not deliver it.
        ValueError: it is larger than any dataset of vectors, or than the room on the disk.
    """
    import minari
    from minari.storage.datasets_root_dir import get_dataset_path

    missing = f"The dataset {dataset_id} is not in {get_dataset_path()}"
    if dataset_id.startswith("ld-agents/"):
        raise FileNotFoundError(f"{missing}. Make it: python benchmarks/make_datasets.py {dataset_id}")
    get_it = (
        f"Run `minari download {dataset_id}` on a machine that reaches the hub and copy the folder, or set "
        f"MINARI_DATASETS_PATH to the folder that holds it."
    )
    if not allowed:
        raise FileNotFoundError(f"{missing}, and download=False. Call with download=True, or: {get_it}")
    # The hub's client retries for half a minute and logs every try; one message at the end is enough.
    with contextlib.suppress(ImportError):
        importlib.import_module("huggingface_hub.utils.logging")
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        n_files, n_bytes = size(dataset_id)
        free = shutil.disk_usage(_existing(Path(get_dataset_path()))).free
        if n_files > MAX_FILES or n_bytes > min(MAX_BYTES, free):
            raise _TooLargeError(
                f"{dataset_id} has {n_files:,} files and {n_bytes / 1e9:,.1f} GB on Minari's hub. At most "
                f"{MAX_FILES:,} files and {MAX_BYTES / 1e9:.0f} GB are fetched, and {get_dataset_path()} has "
                f"{free / 1e9:,.1f} GB free. Make room; if the dataset is to be trusted, run `minari download "
                f"{dataset_id}` yourself."
            )
        minari.download_dataset(dataset_id)
    except ImportError as error:
        raise ImportError(needs_package(dataset_id, error)) from error
    except _TooLargeError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise FileNotFoundError(
            f"{missing}, and Minari's hub did not deliver it ({type(error).__name__}: {reason}). Check the id with "
            f"`minari list remote`. {get_it}"
        ) from None
    finally:
        logger.setLevel(level)
    if not is_local(dataset_id):
        raise FileNotFoundError(f"{missing}, although Minari reported no error. {get_it}")


class _TooLargeError(ValueError):
    pass


def size(dataset_id: str) -> tuple[int, int]:
    """Number of files and of bytes of a dataset on the hub; zeros where the hub does not tell."""
    from minari.storage.remotes import DEFAULT_REMOTE

    kind, _, owner = os.environ.get("MINARI_REMOTE", DEFAULT_REMOTE).partition("://")
    if kind != "hf":
        return 0, 0
    from huggingface_hub import HfApi

    repository, _, folder = dataset_id.partition("/")
    about = HfApi().dataset_info(f"{owner}/{repository}", files_metadata=True)
    files = [file for file in about.siblings or () if file.rfilename.startswith(f"{folder}/" if folder else "")]
    return len(files), sum(file.size or 0 for file in files)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def needs_package(dataset_id: str, error: ImportError) -> str:
    """What to install where Minari misses a package."""
    return (
        f"Reading {dataset_id} needs a package that is not installed ({error}); the data are whole. Minari's formats "
        'and its hub need: pip install "minari[arrow,hdf5,hf]" Pillow'
    )
