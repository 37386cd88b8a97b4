"""Measure what Ray adds to a run, in half an hour of which most is slept, for the page results/ray.md.

    python benchmarks/measure_ray.py    writes results/ray.json, which report.py shows

The runs are stand-ins: the suite starts them as it does any, here or in a cluster, with the same files to send, but
they sleep for a set time instead of learning. What is measured is thus the suite and Ray alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

RUNS = 20
MEASURED = ((10.0, 5), (60.0, 5), (60.0, 2))  # seconds of a run, runs side by side
DATASET = "ld-agents/pointmaze/umaze-10k-v0"
CHECKPOINT_BYTES, MODEL_BYTES = 4 << 20, 2 << 20
RECORD = Path(__file__).resolve().parent.parent / "results" / "ray.json"


def sleep(out: Path, name: str, seconds: float) -> None:
    """What stands in for a run: a checkpoint half way and at SIGTERM, 20 lines of progress, then model and result."""

    def write(folder: str, suffix: str, content: bytes) -> None:
        path = out / folder / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def stop(signum: int, frame: FrameType | None) -> None:
        write("checkpoints", ".ckpt", b"stopped")
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
    for percent in range(5, 101, 5):
        time.sleep(seconds / 20)
        print(f"learning, {percent} % of 100 gradient steps, 1 steps/s, 0:00:00 left", flush=True)
        if percent == 50:
            write("checkpoints", ".ckpt", os.urandom(CHECKPOINT_BYTES))
    write("models", ".zip", os.urandom(MODEL_BYTES))
    write("runs", ".json", b"{}")


def timed(cluster: Any, seconds: list[float]) -> Any:
    """The cluster, which from now on adds to `seconds` how long it takes to give a run to Ray."""
    start = cluster.start

    def timed_start(*arguments: Any) -> Any:
        began = time.perf_counter()
        remote = start(*arguments)
        seconds.append(time.perf_counter() - began)
        return remote

    cluster.start = timed_start
    return cluster


def measure() -> dict[str, Any]:
    """What results/ray.json holds."""
    # before Ray is imported, which looks for the mode then
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    import ray
    import torch
    from ray.cluster_utils import Cluster

    import provenance
    import ray_cluster
    import run_suite
    from specs import Files, Run

    run_suite.RUN_ONE = Path(__file__)
    run_suite.make_datasets([DATASET])
    found = sorted(RECORD.parent.glob("*/runs/*.json"))
    measured, submitted = [], list[float]()
    cpus = math.lcm(*(places for _, places in MEASURED))
    machine = Cluster(True, head_node_args={"num_cpus": cpus, "include_dashboard": False})
    for seconds, places in MEASURED:
        ends = {}
        for name in ("ray", "here"):
            with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
                out, cluster = Path(temporary), None
                if name == "ray":
                    joined = ray_cluster.joined(machine.address, out, cpus / places, 0, 0)
                    cluster = timed(stack.enter_context(joined), submitted)
                runs = [Run(f"Sleeper[seconds={seconds:g}]", DATASET, seed, "fast", 1.0, 1) for seed in range(RUNS)]
                began = time.time()
                failures = run_suite.do_runs(runs, out, sys.maxsize if cluster else places, -1, (), cluster)
                if failures:
                    raise SystemExit(f"some runs failed: {failures}")
                results = (Files(out, run.name).result for run in runs)
                ends[name] = sorted(round(result.stat().st_mtime - began, 2) for result in results)
        load = round(os.getloadavg()[0], 1)
        measured.append({"seconds": seconds, "runs": RUNS, "places": places, **ends, "load": load})
        print(measured[-1], flush=True)
    machine.shutdown()
    return {
        "commit": provenance.source_commit(),
        "ray": ray.__version__,
        "hardware": provenance.hardware(torch.device("cpu")),
        "checkpoint_bytes": CHECKPOINT_BYTES,
        "model_bytes": MODEL_BYTES,
        "measured": measured,
        "submit_seconds": round(statistics.median(submitted), 4),
        "durations": sorted(json.loads(file.read_text())["seconds"]["total"] for file in found),
    }


if __name__ == "__main__":
    if "--claimed" in sys.argv:  # as a run, which has to start at once: without imports that take seconds
        seconds = float(re.search(r"seconds=([\d.]+)", " ".join(sys.argv))[1])  # type: ignore[index]
        log = Path(os.readlink("/proc/self/fd/1"))
        sleep(log.parents[1], log.stem, seconds)
    else:
        from files import write_json

        write_json(RECORD, measure())
