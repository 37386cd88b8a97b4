"""Room for what a training stage keeps beside the dataset: in memory, or in a file where it would not fit."""

import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def free_memory(device: torch.device) -> float:
    """Bytes that a device can still give; infinite where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return math.inf


def half_precision(*shape: int, device: torch.device) -> Tensor:
    """An empty float16 tensor on the device; if it would take more than half of what is free, in a temporary file.

    The file has no name and ends with the tensor.
    """
    if 2 * math.prod(shape) <= free_memory(device) / 2:
        return torch.empty(shape, dtype=torch.float16, device=device)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float16, "w+", shape=shape))


def half_precision_bytes(*shape: int, device: torch.device) -> int:
    """How much memory `half_precision` takes: none if it goes to a file.

    Raises:
        ValueError: the disk has no room either.
    """
    needed = 2 * math.prod(shape)
    if needed <= free_memory(device) / 2:
        return needed
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"Latents of shape {shape} take {needed / 1e9:.1f} GB, more than half of the free memory and than the "
            f"{free / 1e9:.1f} GB free in {folder}. Keep fewer (q_windows, candidates_stored; support_states, "
            "support_size), or set TMPDIR to a folder with room."
        )
    return 0
