"""From an `OfflineDataset` to a Minari dataset."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.storage import dataset_folder


def to_minari(dataset: OfflineDataset, dataset_id: str) -> None:
    """Store a dataset in the local Minari folder, so that `load_dataset(dataset_id)` gives the same content.

    Each recording becomes an episode of Minari, with the terminals that lie in it; what follows such a terminal is then
    the recording's next observation. Dictionaries are not built again: observations are stored flat, as agents learn
    from them, with the keys that were concatenated.

    Args:
        dataset: what to store.
        dataset_id: such as "me/hopper-medium-v0".

    Warns:
        UserWarning: a recording holds timeouts before its end, which Minari has no place for: it is stored in parts.

    Raises:
        FileExistsError: there is a dataset of that id.
        ValueError: the id is malformed, or belongs to this package; or the evaluation environment cannot be made.
    """
    import minari
    from minari.data_collector import EpisodeBuffer

    if dataset_id.startswith("ld-agents/"):
        raise ValueError(
            f"ld-agents/ is the namespace of the recipes of this project. Choose another id than {dataset_id}."
        )
    folder = dataset_folder(dataset_id)
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Choose another id, or delete it.")
    buffers, begin = [], 0
    for episode in _stored_episodes(dataset):
        end, after = int(dataset.episode_ends[episode]), dataset.n_steps + episode
        final = dataset.observation_rows[after : after + int(dataset._final_known[episode])]
        terminals = dataset.terminals[begin:end].numpy()
        truncations = np.zeros_like(terminals)
        truncations[-1] = not terminals[-1]
        buffers.append(
            EpisodeBuffer(
                observations=torch.cat([dataset.observations[begin:end], final]).numpy(),
                actions=dataset.actions[begin:end].numpy(),
                rewards=dataset.rewards[begin:end].numpy(),
                terminations=terminals,
                truncations=truncations,
            )
        )
        begin = end
    info = dataset.info
    about = {
        "provenance": info.provenance,
        "replay_check": info.replay_check,
        "controller": info.controller,
        "versions": {"mujoco": info.mujoco},
        "final_observations": bool(dataset._final_known.any()),
        "observation_keys": dataset.observation_keys,
    }
    metadata: dict[str, Any] = {"ld_agents": about}
    if info.reference_scores is not None:
        metadata["ref_min_score"], metadata["ref_max_score"] = info.reference_scores
    exactly: dict[str, Any] = {"jpeg_encoding": False} if dataset.has_frames else {}  # its default loses details
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(contextlib.closing(dataset.make_eval_env())) if info.eval_env is not None else None
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module="minari")  # of authors and links that there is nobody to name
        try:
            stored = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                eval_env=env,
                observation_space=_flat_space(dataset),
                action_space=dataset.action_space,
                description=info.description or f"Converted from {info.id}.",
                **exactly,
            )
            stored.storage.update_metadata(metadata)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # half a dataset would be in the way of the next try
            raise


def _stored_episodes(dataset: OfflineDataset) -> list[int]:
    """The numbers of the episodes that end an episode of Minari: of the last one of each recording, and of timeouts."""
    ends = dataset.episode_ends
    of_recordings = torch.isin(ends, dataset.recording_ends)
    inside = ~dataset.terminals[ends - 1] & ~of_recordings
    if inside.any():
        warnings.warn(
            f"Recordings hold {int(inside.sum())} timeouts before their ends, which Minari has no place for: what "
            "follows them is stored as a recording of its own.",
            stacklevel=3,
        )
    found: list[int] = torch.nonzero(of_recordings | inside).flatten().tolist()
    return found


def _flat_space(dataset: OfflineDataset) -> spaces.Box:
    space, keys = dataset.observation_space, dataset.observation_keys or ()
    if isinstance(space, spaces.Box):
        return space
    low, high = (np.concatenate([getattr(space[key], end) for key in keys]) for end in ("low", "high"))
    return spaces.Box(low, high, dtype=low.dtype.type)
