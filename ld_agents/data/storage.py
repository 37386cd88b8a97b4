"""Places in the local Minari folder: whether a dataset is there, and how a new one gets there."""

from __future__ import annotations

import os
from pathlib import Path


def is_local(dataset_id: str) -> bool:
    """Whether the dataset lies in the local Minari folder."""
    from minari.storage.datasets_root_dir import get_dataset_path

    return (Path(get_dataset_path(dataset_id)) / "data" / "metadata.json").is_file()


def move_in(folder: Path, dataset_id: str) -> None:
    """Move a whole new dataset, a folder with ``data/``, to its place in the local Minari folder in one step."""
    import minari
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    namespace, target = parse_dataset_id(dataset_id)[0], Path(get_dataset_path(dataset_id))
    if namespace is not None and namespace not in minari.namespace.list_local_namespaces():
        minari.namespace.create_namespace(namespace)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, target)
