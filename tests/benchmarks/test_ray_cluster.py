"""Runs on a Ray cluster: on two raylets, where they are interrupted and lose a worker or machine; what needs no Ray."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import goal_seeker
import pytest

import ray_cluster
import ray_work
import run_one
import run_suite
import specs
from conftest import differing, weights
from ld_agents.data.storage import digest

TESTS = Path(__file__).resolve().parent
BENCHMARKS = TESTS.parents[1] / "benchmarks"
DATASET = "ld-agents/pointmaze/umaze-10k-v0"
PATIENCE = 300  # seconds
STORE: dict[str, Any] = {"object_store_memory": 100 << 20}  # of a raylet
MEASURED = ("seconds", "predict_ms", "peak_memory_mb", "finished", "resumes")
QUICK, SLOW = (
    specs.Run(f"goal_seeker:GoalSeeker{settings}", DATASET, 0, "fast", 1.0, 3) for settings in ("", "[pause=0.4]")
)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """References to files are the files, and temporary files are the test's own."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_runtime_context=Node))
    monkeypatch.setattr(ray_work, "fetch", lambda reference: reference)
    monkeypatch.setattr(ray_work.tempfile, "tempdir", str(tmp_path))


class Node:
    def get_node_id(self) -> str:
        return "here"


class Mailbox(ray_work.Mailbox):
    """The actor's class, called without Ray."""

    def __init__(self, out: str) -> None:
        super().__init__(out)
        self.sent: list[list[str]] = []
        self.put = SimpleNamespace(remote=self.receive)

    def receive(self, run: str, node: str, files: ray_work.Pack) -> bool:
        self.sent.append(sorted(files))
        return ray_work.Mailbox.put(self, run, node, files)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):
        monkeypatch.setenv(variable, "")  # what is set below is taken back
        monkeypatch.delenv(variable)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r'pip install "ld-agents\[ray\]"'), joined("local", tmp_path):
        pass
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def joined(address: str, out: Path, gpus: float = 0.0) -> Any:
    return ray_cluster.joined(address, out, 1.0, gpus, 1)


def test_an_address_without_a_cluster_is_refused_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SystemExit, match=f"{address}: no cluster answers there.*ray start --head"):
            joined(address, tmp_path).__enter__()
    for address in ("head", "ray://head:10001", "head:port"):
        with pytest.raises(SystemExit, match="give HOST:PORT of the cluster's head, auto, or local"):
            joined(address, tmp_path).__enter__()


@pytest.mark.parametrize("given", [["--cpus", "0"], ["--gpus", "-1"], ["--jobs", "0"]])
def test_resources_are_positive(given: list[str]) -> None:
    with pytest.raises(SystemExit):
        run_suite.parse(["--ray", "local", *given])


def test_a_dataset_is_sent_once_and_checked_for_each_run(tmp_path: Path, without_ray: None) -> None:
    source, files = tmp_path / "data.bin", {"minari/a/b-v0/data/x.bin": b"some data"}
    source.write_bytes(b"some data")
    digests = dict.fromkeys(files, digest(source))
    base = ray_work.own_folder()
    folder = ray_work.place(base, digests, [files])
    placed = folder / next(iter(files))
    assert placed.read_bytes() == b"some data"
    assert ray_work.place(base, digests, []) == folder, "what is there is not fetched"
    placed.write_bytes(b"same data")
    with pytest.raises(IndexError):
        ray_work.place(base, digests, [])
    ray_work.place(base, digests, [files])
    assert placed.read_bytes() == b"some data"
    # of a file in a shared folder the digest alone is sent
    assert ray_work.place(base, {str(source): digest(source)}, []) != folder
    with pytest.raises(FileNotFoundError, match="a folder that all machines share"):
        ray_work.place(base, {str(source): "0" * 64}, [])


def test_more_runs_are_given_to_ray_than_fit() -> None:
    """So that none of its places waits for the suite to look, and a cluster that can grow is asked to."""
    nodes = [{"Resources": {"CPU": 8.0, "GPU": 1.0}}, {"Resources": {"CPU": 8.0}}]

    def room(cpus: float, gpus: float) -> int:
        need = {"CPU": cpus, "GPU": gpus}
        return ray_cluster.Cluster.room(SimpleNamespace(need=need, nodes=lambda: nodes))  # type: ignore[arg-type]

    assert room(1, 0) == 16 + 1 + 1
    assert room(0.1, 0) == 160 + 1 + 16
    assert room(1, 0.25) == 4 + 1
    assert room(9, 0) == room(1, 2) == 0


def test_files_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    metadata = tmp_path / "minari" / "me" / "walk-v0" / "data" / "metadata.json"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("{}")
    (tmp_path / "hopper_medium-v2.hdf5").touch()
    assert ray_cluster.dataset_files("me/walk-v0[goal=keep]") == {"minari/me/walk-v0/data/metadata.json": metadata}
    assert ray_cluster.dataset_files(f"{tmp_path}/x.npz") == {f"{tmp_path}/x.npz": tmp_path / "x.npz"}
    found = ray_cluster.dataset_files("hopper-medium-v2")
    assert found == {"d4rl/hopper_medium-v2.hdf5": tmp_path / "hopper_medium-v2.hdf5"}
    with pytest.raises(FileNotFoundError, match="with --ray give the absolute path"):
        ray_cluster.dataset_files("x.hdf5")


SCRIPT = """
import os, pathlib, signal, sys, time, mine
out = pathlib.Path(sys.argv[1].removeprefix("--out="))
before = (out / "checkpoints/a.ckpt").read_text()
(out / "checkpoints/a.ckpt").write_text(before + "2")
print(os.environ["OMP_NUM_THREADS"], pathlib.Path(os.environ["MINARI_DATASETS_PATH"], "x").read_text(), mine.x)
(out / "runs").mkdir()
(out / "runs/a.json").write_text("{}")
sys.exit(int(sys.argv[2]))
"""


def sent(files: ray_work.Pack) -> tuple[dict[str, str], list[Any]]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}, [files]


def test_a_run_is_done_where_it_is_sent_to(tmp_path: Path, without_ray: None) -> None:
    base = ray_work.own_folder()
    (base / "run-of-a-killed-worker").mkdir()
    names = ["checkpoints/a.ckpt", "runs/a.json", "logs/a.log"]
    sources = {"benchmarks/run.py": SCRIPT.encode(), "benchmarks/claims.py": (BENCHMARKS / "claims.py").read_bytes()}
    # what the script imports lies in the folder where runs look for agents of one's own
    sources |= {"cwd/mine.py": b"x = 5", "benchmarks/mine.py": b"x = 4"}
    mailbox = Mailbox(str(tmp_path / "results"))
    what = {"checkpoints/a.ckpt": b"1"}, sent(sources), sent({"minari/x": b"data"}), {"OMP_NUM_THREADS": "3"}
    assert ray_work.work(mailbox, "a", ["run.py", "7"], names, *what) == 7
    assert (tmp_path / "results" / names[0]).read_text() == "12"
    assert (tmp_path / "results" / names[2]).read_text() == "3 data 4\n"
    assert mailbox.sent[-1] == sorted(names)
    assert mailbox.where() == {"a": "here"}
    assert sorted(path.name for path in base.iterdir()) == ["lock", "sent"], "nothing is left but what was sent"


SLEEPER = """
import pathlib, signal, sys, time
checkpoint = pathlib.Path(sys.argv[1].removeprefix("--out=")) / "checkpoints/a.ckpt"
def stop(signum, frame):
    checkpoint.write_text("saved")
    sys.exit(9)
signal.signal(signal.SIGTERM, stop)
checkpoint.parent.mkdir(parents=True)
checkpoint.write_text("begun")
time.sleep(60)
"""


def test_a_run_that_has_to_stop_sends_its_checkpoint(
    tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(Mailbox):
        def receive(self, run: str, node: str, files: ray_work.Pack) -> bool:
            stopped = super().receive(run, node, files)
            if "checkpoints/a.ckpt" in files:
                assert self.stop(run), "it is at work"
            return stopped

    monkeypatch.setattr(ray_work, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(ray_work, "LOOK_SECONDS", 0.1)
    sources = {"benchmarks/run.py": SLEEPER.encode(), "benchmarks/claims.py": (BENCHMARKS / "claims.py").read_bytes()}
    mailbox = Stopping(str(tmp_path / "results"))
    assert not mailbox.stop("b"), "it waits for a machine"
    began = time.monotonic()
    what: tuple[Any, ...] = ({}, sent(sources), sent({"minari/x": b"data"}), {})
    assert ray_work.work(mailbox, "a", ["run.py"], ["checkpoints/a.ckpt", "logs/a.log"], *what) == 9
    assert time.monotonic() - began < 30
    assert (tmp_path / "results" / "checkpoints" / "a.ckpt").read_text() == "saved"
    mailbox.lose("a")
    assert mailbox.where() == {}
    assert not mailbox.stop("a"), "it waits for another machine"


def test_folders_of_other_runs_stay(tmp_path: Path) -> None:
    with ray_work.run_folder(tmp_path) as first, ray_work.run_folder(tmp_path) as second:
        assert first.exists()
        assert first != second
    assert not list(tmp_path.glob("run-*"))


# A suite on two raylets.


def result(out: Path, run: specs.Run) -> dict[str, Any]:
    """What a result says but for times and sizes."""
    found: dict[str, Any] = json.loads(specs.Files(out, run.name).result.read_text())
    for point in found["curve"]:
        del point["seconds"]
    return {key: value for key, value in found.items() if key not in MEASURED}


def processes_of(run: specs.Run) -> list[tuple[int, int]]:
    """Processes that do a run, each with that of the Ray worker which started it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"--agent={run.agent}" in words and "--claimed" in words:
            found.append((int(path.parent.name), int(words[words.index("--claimed") - 3])))
    return found


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of two raylets with a CPU each, with a token."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        from ray.cluster_utils import Cluster  # Ray looks for the mode when it is imported

        head = {"num_cpus": 1, **STORE, "node_name": "one", "include_dashboard": False}
        cluster = Cluster(True, head_node_args=head)
        cluster.add_node(num_cpus=1, **STORE, node_name="two")
        patch.setenv("RAY_ADDRESS", cluster.address)  # where `auto` looks first
        yield cluster
        cluster.shutdown()


@pytest.fixture
def address(machines: Any) -> str:
    return str(machines.address)


@pytest.mark.slow
def test_ctrl_c_brings_the_checkpoints_and_leaves_nothing(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With runs that sleep. More GPUs than there are would be waited for in silence, were they not refused."""
    with pytest.raises(SystemExit, match=r"no machine of the cluster has 1 CPUs and 0\.5 GPUs"):
        joined(address, tmp_path, gpus=0.5).__enter__()
    monkeypatch.setattr(run_suite, "RUN_ONE", BENCHMARKS / "measure_ray.py")
    run_suite.make_datasets([DATASET])
    runs = [specs.Run("Sleeper[seconds=100]", DATASET, seed, "fast", 1.0, 1) for seed in (0, 1, 2)]
    files = [specs.Files(tmp_path, run.name) for run in runs]

    def interrupt() -> None:
        while not all(file.log.exists() and b"learning" in file.log.read_bytes() for file in files[:2]):
            time.sleep(0.1)  # what is printed before, such as a warning at an import, may come before they can stop
        os.kill(os.getpid(), signal.SIGINT)

    with joined("auto", tmp_path) as cluster:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_suite.do_runs(runs, tmp_path, 100, -1, (), cluster)
        assert set(cluster.places().values()) == {"one", "two"}
        assert not processes_of(runs[0])
    assert [file.checkpoint.read_bytes() for file in files[:2]] == [b"stopped"] * 2
    assert not files[2].checkpoint.exists(), "it had no machine"
    assert not any(file.result.exists() for file in files)


@pytest.mark.slow
def test_a_suite_whose_worker_is_killed_equals_the_serial_one(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, serial, slow = tmp_path / "out", tmp_path / "serial", specs.Files(tmp_path / "out", SLOW.name)
    arguments = ["--suite", "smoke", "--datasets", DATASET, "--budget", "1", "--episodes", "3", "--seeds", "0"]
    command = [sys.executable, str(BENCHMARKS / "run_suite.py"), *arguments, "--ray", address, "--out", str(out)]
    command += ["--agents", SLOW.agent, QUICK.agent]
    commit = run_one.provenance.source_commit()
    suite = subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + PATIENCE
    while not slow.checkpoint.exists():  # it comes at the end of the first of two stages
        assert suite.poll() is None, suite.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ((process, worker),) = processes_of(SLOW)
    os.kill(worker, signal.SIGKILL)
    text, _ = suite.communicate(timeout=PATIENCE)
    assert suite.returncode == 0, text
    assert "it starts again from its last checkpoint" in text
    assert not Path(f"/proc/{process}").exists()

    monkeypatch.setattr(run_one.provenance, "source_commit", lambda: commit)
    monkeypatch.setattr(goal_seeker.time, "sleep", lambda _: None)
    for run, resumes in ((QUICK, 0), (SLOW, 1)):
        run_one.run_and_write(run, serial, with_plans=True)
        assert result(out, run) == result(serial, run)
        assert json.loads(specs.Files(out, run.name).result.read_text())["resumes"] == resumes
        models = (goal_seeker.GoalSeeker.load(specs.Files(folder, run.name).model) for folder in (out, serial))
        assert differing(*map(weights, models)) == []
    assert not list((out / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_run_whose_machine_is_lost_goes_on_at_another(
    machines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TESTS)  # where the agent is
    for name in ("three", "four"):  # a run with two CPUs has room there only
        machines.add_node(num_cpus=2, **STORE, node_name=name)
    run_suite.make_datasets([DATASET])
    files, places = specs.Files(tmp_path, SLOW.name), list[str]()

    def lose() -> None:
        """When the first of two stages has ended, kill the raylet, its worker and the run."""
        while not files.checkpoint.exists():
            time.sleep(0.05)
        places.extend(cluster.places().values())
        ((process, worker),) = processes_of(SLOW)
        raylet = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        for each in (raylet, worker, process):
            os.kill(each, signal.SIGKILL)

    with ray_cluster.joined(machines.address, tmp_path, 2.0, 0.0, 1) as cluster:
        threading.Thread(target=lose, daemon=True).start()
        assert run_suite.do_runs([SLOW], tmp_path, 1, -1, (), cluster) == {}
        places.extend(cluster.places().values())
    assert sorted(places) == ["four", "three"]
    assert json.loads(files.result.read_text())["resumes"] == 1
    assert goal_seeker.GoalSeeker.load(files.model).policy.steps_in_stage.tolist() == [20, 20]
