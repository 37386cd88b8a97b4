"""Runs of a suite on the machines of a Ray cluster, which need share no folder: `run_suite.py --ray ADDRESS`.

A run is one Ray task that holds the run's CPUs or share of a GPU. On its machine the task starts `run_one.py` as the
suite does here, with the sources, the dataset and the last checkpoint, all of which come from the caller, and sends
what the run writes to an actor beside the caller, which puts it into the suite's folder. So the caller's disk has
everything that is needed to go on when a worker or a machine is lost, and no store of the cluster has to outlive it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import checkpoint
import ld_agents
import provenance
import ray_work
from ld_agents.data.d4rl import find_d4rl_file
from ld_agents.data.storage import dataset_folder, digest, is_local, is_minari_id
from ray_work import pack, stamp
from specs import Files, Run, bases, parse_spec

RETRIES = 3  # lost workers in a row without a new checkpoint
CONNECT_SECONDS = 5.0
START_CLUSTER = (
    "On one machine: `ray get-auth-token --generate`, then `RAY_AUTH_MODE=token ray start --head --port 6379`. Copy "
    "~/.ray/auth_token to the others and there: `RAY_AUTH_MODE=token ray start --address HOST:6379`"
)


def check_address(address: str) -> None:
    """Raises SystemExit when nobody listens at HOST:PORT, which Ray would find out after a long time."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        raise SystemExit(f"--ray {address}: give HOST:PORT of the cluster's head, auto, or local. {START_CLUSTER}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise SystemExit(f"--ray {address}: no cluster answers there ({error}). {START_CLUSTER}") from None


@contextlib.contextmanager
def joined(address: str, out: Path, cpus: float, gpus: float, local_cpus: int) -> Iterator[Cluster]:
    """The cluster at an address while the block lasts; `local` starts one here with `local_cpus` CPUs, and ends it.

    Raises:
        SystemExit: Ray is not installed, no cluster can be joined, or no machine of it has what a run needs.
    """
    if address not in ("local", "auto"):
        check_address(address)
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is imported; whoever connects could run any code
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.setdefault("RAY_worker_niceness", "0")  # the priority that runs have without Ray, which takes 15
        options |= {"num_cpus": local_cpus, "include_dashboard": False}
    try:
        import ray
    except ImportError:
        raise SystemExit('--ray needs Ray: pip install "ld-agents[ray]"') from None
    try:
        ray.init(address, **options)
    except Exception as error:  # no cluster, another version of Python or Ray, a wrong token: Ray raises many kinds
        raise SystemExit(
            f"--ray {address}: cannot join a cluster: {error}\nPython, Ray and the token must be the same on all "
            f"machines, and one of the cluster's must be this. {START_CLUSTER}"
        ) from None
    try:
        yield Cluster(out, cpus, gpus)
    finally:
        ray.shutdown()


def dataset_files(spec: str) -> dict[str, Path]:
    """The files of a dataset by where other machines have them: below `ray_work.place`'s folder, or at the same path.

    Raises:
        FileNotFoundError: it is given by a relative path, or is not here.
    """
    name = parse_spec(spec)[0]
    if name.endswith((".hdf5", ".h5", ".npz")):
        if not Path(name).is_absolute():
            raise FileNotFoundError(
                f"{name} is relative; with --ray give the absolute path of a file in a folder that all machines share"
            )
        return {name: Path(name)}
    if is_minari_id(name) and is_local(name):
        folder = dataset_folder(name)
        files = (path for path in folder.rglob("*") if path.is_file())
        return {f"minari/{name}/{path.relative_to(folder).as_posix()}": path for path in files}
    file = find_d4rl_file(name)
    return {f"d4rl/{file.name}": file}


class Cluster:
    """A Ray cluster that this process has joined, for the runs of a suite whose folder is `out`.

    The sources of ld_agents and benchmarks travel with the runs, as do the Python files of the current folder, where
    agents of one's own are; what they import must be installed on every machine.

    Args:
        out: the suite's folder.
        cpus: CPUs that a run holds.
        gpus: GPUs that a run holds, such as 0.25.

    Raises:
        SystemExit: no machine has so many.
    """

    def __init__(self, out: Path, cpus: float, gpus: float) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.out, self.need = out.resolve(), {"CPU": cpus, "GPU": gpus}
        if not self.room():
            found = [{name: node["Resources"].get(name, 0) for name in self.need} for node in self.nodes()]
            raise SystemExit(
                f"no machine of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for a run; there are {found}. Change "
                "--cpus and --gpus, or start Ray on a machine that has them"
            )
        ray.cloudpickle.register_pickle_by_value(ray_work)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        self.mailbox = ray.remote(**options, scheduling_strategy=here)(ray_work.Mailbox).remote(str(self.out))
        # The suite starts a run anew itself, with the newest checkpoint.
        self.work = ray.remote(max_retries=0, num_cpus=cpus, num_gpus=gpus)(ray_work.work)
        folders = {"ld_agents": Path(ld_agents.__file__).parent, "benchmarks": Path(__file__).parent}
        sources = {
            f"{name}/{path.relative_to(folder).as_posix()}": path.read_bytes()
            for name, folder in folders.items()
            for path in folder.rglob("*")
            if path.suffix in (".py", ".json", ".csv")
        }
        sources |= {f"cwd/{path.name}": path.read_bytes() for path in Path.cwd().glob("*.py")}
        sources["COMMIT"] = (provenance.source_commit() or "").encode()
        self.sources = {name: hashlib.sha256(text).hexdigest() for name, text in sources.items()}, [ray.put(sources)]
        self.datasets: dict[str, tuple[dict[str, str], list[Any]]] = {}

    def nodes(self) -> list[dict[str, Any]]:
        import ray

        return [node for node in ray.nodes() if node["Alive"]]

    def room(self) -> int:
        """How many runs to give to Ray: those that fit, and some that wait, for places that come free or are new."""
        fits = sum(
            min(math.floor(node["Resources"].get(name, 0) / need + 1e-6) for name, need in self.need.items() if need)
            for node in self.nodes()
        )
        return fits + 1 + fits // 10 if fits else 0

    def places(self) -> dict[str, str]:
        """The machine of each run that has one, by the run's name: Ray's name of it, by default its address."""
        import ray

        names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
        return {run: names.get(node, "?") for run, node in ray.get(self.mailbox.where.remote()).items()}

    def dataset(self, spec: str) -> tuple[dict[str, str], list[Any]]:
        """SHA-256 of a dataset's files, and Ray's reference to those that have to be sent."""
        import ray

        if spec not in self.datasets:
            files = dataset_files(spec)
            sent = {name: path.read_bytes() for name, path in files.items() if not Path(name).is_absolute()}
            digests = {name: digest(path) for name, path in files.items()}
            self.datasets[spec] = digests, [ray.put(sent)]
        return self.datasets[spec]

    def start(self, run: Run, command: Sequence[str], environment: Mapping[str, str], lock: int) -> RemoteRun:
        """Give a run to Ray: a script of benchmarks/ with arguments. The lock is held until the run has ended."""
        return RemoteRun(self, run, command, environment, lock)


class RemoteRun:
    """A run in a cluster, with those methods of `subprocess.Popen` that the suite calls.

    When its worker or machine is lost, it starts again from the last checkpoint, perhaps elsewhere.
    """

    returncode: int | None = None

    def __init__(
        self, cluster: Cluster, run: Run, command: Sequence[str], environment: Mapping[str, str], lock: int
    ) -> None:
        self.cluster, self.run, self.command = cluster, run, command
        self.environment = {**environment} if cluster.need["GPU"] else {**environment, "CUDA_VISIBLE_DEVICES": ""}
        self.files, self.dataset = Files(cluster.out, run.name), cluster.dataset(run.dataset)
        self.lost, self.stopped = 0, False
        self._submit()
        self.lock = os.dup(lock)

    def _submit(self) -> None:
        files, of_bases = self.files, [Files(self.cluster.out, base.name) for base in bases(self.run)]
        kept = [files.checkpoint, checkpoint.previous(files.checkpoint)]
        kept += [path for base in of_bases for path in (base.result, base.model)]
        written = [files.checkpoint, files.model, files.result, files.log]
        kept_names, names = ([str(path.relative_to(self.cluster.out)) for path in paths] for paths in (kept, written))
        files.log.parent.mkdir(parents=True, exist_ok=True)
        files.log.write_bytes(b"")
        self.started_from = stamp(files.checkpoint)
        start = pack(self.cluster.out, kept_names)
        what = self.run.name, self.command, names, start, self.cluster.sources, self.dataset, self.environment
        self.task = self.cluster.work.options(name=self.run.name).remote(self.cluster.mailbox, *what)

    def poll(self) -> int | None:
        """The exit code of the run, or None while it goes on."""
        import ray

        if self.returncode is None and ray.wait([self.task], timeout=0)[0]:
            self.returncode = self._outcome()
            if self.returncode is not None:
                os.close(self.lock)
        return self.returncode

    def _outcome(self) -> int | None:
        import ray

        try:
            code = int(ray.get(self.task))
        except ray.exceptions.TaskCancelledError:
            return -signal.SIGTERM
        except ray.exceptions.RayTaskError as error:  # of `work` itself: a full disk, a dataset that differs
            self.files.log.write_text(str(error))
            return 1
        except ray.exceptions.RayError as error:
            if self.stopped:
                return -signal.SIGKILL
            self.lost = self.lost + 1 if stamp(self.files.checkpoint) == self.started_from else 1
            if self.lost > RETRIES:
                self.files.log.write_text(f"{self.lost} workers in a row were lost, the last one so: {error}")
                return 1
            lost = f"its worker was lost ({type(error).__name__}); it starts again from its last checkpoint"
            print(f"{self.run.name}: {lost}", flush=True)
            self.cluster.mailbox.lose.remote(self.run.name)
            self._submit()
            return None
        if code == 0:
            checkpoint.remove(self.files.checkpoint)
        return code

    def terminate(self) -> None:
        """Let the run save its checkpoint, send it here, and end."""
        import ray

        self.stopped = True
        if self.returncode is None and not ray.get(self.cluster.mailbox.stop.remote(self.run.name)):
            ray.cancel(self.task)  # it waits for a machine

    def kill(self) -> None:
        import ray

        self.stopped = True
        if self.returncode is None:
            ray.cancel(self.task, force=True)

    def wait(self, timeout: float) -> int:
        """Wait for the end of the run; raises `subprocess.TimeoutExpired`."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.command, timeout)
            time.sleep(0.1)
        return self.returncode or 0
