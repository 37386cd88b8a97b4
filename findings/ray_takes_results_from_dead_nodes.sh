#!/usr/bin/env bash
# Ray declares a node dead and still takes the result of the task that goes on running there.
#
# Expected: a task on a node that `ray.nodes()` reports as not alive is over: its worker ends, and `ray.get` raises or, with
#           retries, runs it elsewhere.
# Seen:     the raylet alone is gone, as where the kernel's memory killer picks it. Some seconds later the node is no longer
#           alive, while its worker keeps computing; `ray.get` waits for it and returns what it computed.
# Matters:  what watches `ray.nodes()` to start lost work again does it twice, with two writers of the same files; and a
#           script that kills a raylet to test its recovery tests nothing unless it kills the worker, too.
# Versions: ray 2.60.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "ray==2.60.0"

cd "$work"
RAY_worker_niceness=0 timeout 240 "$work/venv/bin/python" -W ignore - >"$work/log" 2>&1 <<'PYTHON' || { tail -n 20 "$work/log"; exit 1; }
import os
import signal
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

started, report = Path("started"), Path("report").open("w")  # Ray prints much itself
size = 80 << 20
cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": size})
cluster.add_node(num_cpus=1, object_store_memory=size)
ray.init(address=cluster.address, log_to_driver=False)


@ray.remote(num_cpus=1, max_retries=0)
def work(path, seconds):
    Path(path).write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(seconds)
    return os.getpid()


result = work.remote(str(started.resolve()), 60)
while not (started.exists() and len(started.read_text().split()) == 2):
    time.sleep(0.1)
worker, raylet = map(int, started.read_text().split())
begin = time.monotonic()
os.kill(raylet, signal.SIGKILL)
while all(node["Alive"] for node in ray.nodes()):
    time.sleep(0.1)
dead = time.monotonic() - begin
finished, _ = ray.wait([result], timeout=0)
print(f"ray {ray.__version__}: node dead after {dead:.0f} s, task finished: {bool(finished)}", file=report, flush=True)
assert not finished, "the task ended before the node was declared dead"
assert Path(f"/proc/{worker}").exists(), "behavior changed: the worker ends with its raylet"
answer = ray.get(result, timeout=120)
told = f"process {answer}, the one that ran on that node: {answer == worker}"
print(f"ray.get after {time.monotonic() - begin:.0f} s: {told}", file=report, flush=True)
assert answer == worker, "behavior changed: the result comes from another process"
ray.shutdown()
cluster.shutdown()
PYTHON
cat "$work/report"
