"""Observations that are images: frames [height, width, channels] uint8, of which only batches become floats."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ld_agents.data.storage import whole

LARGEST_IN_MEMORY = 4 << 30  # bytes; more frames stay on disk, mapped into memory
_CACHE = ".ld-agents-frames"


def is_frame_space(space: Any) -> bool:
    """Whether a space is that of frames."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8


def are_frames(observations: Any) -> bool:
    """Whether observations [N, ...], an array or a tensor, are frames."""
    return getattr(observations, "ndim", 0) == 4 and str(observations.dtype).removeprefix("torch.") == "uint8"


def frame_rows(frames: Any, final: Any, episodes: int) -> torch.Tensor:
    """Frames [N, h, w, C] and, if not None, the [E, h, w, C] after each episode's last action, as one tensor.

    Nothing is copied where the second stand behind the first in one array.

    Raises:
        ValueError: no frames, or not as many of the same size as there are episodes.
    """
    rows = _array(frames)
    if final is not None:
        if not are_frames(final) or tuple(final.shape) != (episodes, *rows.shape[1:]):
            raise ValueError(
                f"final_observations are {getattr(final, 'dtype', type(final))} of shape {np.shape(final)}, but the "
                f"arrays hold {episodes} episodes of frames {rows.shape[1:]}. Give one uint8 frame per episode, or "
                "None where some are not known."
            )
        after = _array(final)
        address = lambda array: array.__array_interface__["data"][0]  # noqa: E731
        if rows.base is not None and rows.base is after.base and address(rows) + rows.nbytes == address(after):
            shape = (len(rows) + len(after), *rows.shape[1:])
            rows = np.lib.stride_tricks.as_strided(rows, shape, writeable=False)
        else:
            rows = np.concatenate([rows, after])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")  # nothing ever writes to it
        return torch.from_numpy(rows)


def _array(frames: Any) -> np.ndarray:
    return np.ascontiguousarray(frames.numpy() if isinstance(frames, torch.Tensor) else frames)


def checked_frame_space(space: spaces.Space[Any] | None, rows: torch.Tensor) -> spaces.Box:
    """The Box of frames [N, h, w, C]; None: all of uint8.

    Raises:
        ValueError: another space, or the channels are first.
    """
    shape = tuple(rows.shape[1:])
    if shape[0] < min(shape[1:]):
        raise ValueError(
            f"Frames have shape {shape}, with {shape[2]} channels in the last axis. Channels come last: transpose "
            "observations and final_observations with (0, 2, 3, 1)."
        )
    if space is None:
        return spaces.Box(0, 255, shape, np.uint8)
    if not is_frame_space(space) or space.shape != shape:
        raise ValueError(f"The observation space is {space}, but observations are frames {shape} of uint8.")
    assert isinstance(space, spaces.Box)
    return space


def stored_frames(
    folder: Path, stamp: str, episodes: Iterable[np.ndarray], ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """All frames of a dataset, from one file in its folder that the first call writes.

    Args:
        folder: of the dataset.
        stamp: a name for the data that the frames are read from.
        episodes: observations of each, all [T + 1, h, w, C] or all [T, h, w, C]; read where there is no such file yet.
        ends: exclusive end row of each episode, [E].

    Returns:
        [N, h, w, C], and the [E, h, w, C] after each episode's last action, where they are known. In memory, or mapped
        into it where they are more than `LARGEST_IN_MEMORY`.
    """
    file = folder / f"{_CACHE}-{stamp[:16]}.npy"
    frames = _opened(file)
    if frames is None:
        try:
            for old in folder.glob(f"{_CACHE}-*.npy"):
                old.unlink()
            with whole(file) as unfinished:
                _gather(episodes, ends, lambda shape: np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape))
            frames = _opened(file)
        except OSError:  # a read-only folder: the next load visits every episode again
            frames = None
    if frames is None:
        frames = _gather(episodes, ends, lambda shape: np.empty(shape, np.uint8))
    elif frames.nbytes <= LARGEST_IN_MEMORY:
        frames = np.array(frames)
    n = int(ends[-1])
    return frames[:n], frames[n:] if len(frames) > n else None


def _opened(file: Path) -> np.ndarray | None:
    with contextlib.suppress(OSError, ValueError):
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    return None


def _gather(
    episodes: Iterable[np.ndarray], ends: np.ndarray, make: Callable[[tuple[int, ...]], np.ndarray]
) -> np.ndarray:
    """Frames of all episodes, then those after their last actions, in the array that `make` makes of a shape."""
    n, rows = int(ends[-1]), None
    for episode, (end, frames) in enumerate(zip(ends.tolist(), episodes, strict=True)):
        begin = int(ends[episode - 1]) if episode else 0
        extra = len(frames) - (end - begin)
        if rows is None:
            rows = make((n + extra * len(ends), *frames.shape[1:]))
            final = extra
        if extra != final or extra not in (0, 1):
            raise ValueError(
                f"Episode {episode} has {len(frames)} frames for {end - begin} steps. Give T frames for T steps in all "
                "episodes, or T + 1 in all."
            )
        rows[begin:end] = frames[: end - begin]
        if extra:
            rows[n + episode] = frames[-1]
    assert rows is not None
    return rows
