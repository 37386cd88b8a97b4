"""What a run ran on and with: hardware, memory, versions, commit."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "stable-baselines3", "ld_agents")


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process in MB (1e6 bytes); None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run ran on."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that can change a result; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()} | dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def source_commit() -> str | None:
    """The git commit of the sources, with `+changes` when they differ from it; None outside a repository.

    Sources that a suite sends to other machines have it in the file COMMIT beside them.
    """
    root = Path(__file__).resolve().parent.parent
    if (root / "COMMIT").exists():
        return (root / "COMMIT").read_text() or None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", "ld_agents", "benchmarks")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if changed else commit
