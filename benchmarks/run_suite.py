"""Train and evaluate a grid of agents, datasets and seeds, each run in a process of its own; then print the table.

    python benchmarks/run_suite.py                                   suite `first`: a table within five minutes
    python benchmarks/run_suite.py --full                            suite `quick`: the same maze with full trainings
    python benchmarks/run_suite.py --suite maze2d --seeds 0 1        another suite, fewer seeds
    python benchmarks/run_suite.py --agents LDCQ my_module:MyAgent   your own agent beside ours, no registration needed
    python benchmarks/run_suite.py --ray 10.0.0.1:6379               on the machines of a Ray cluster

A second call does only the missing runs, and beside a first that is still at work it shares them. Ctrl-C keeps finished
runs, and interrupted ones resume from their checkpoints; a second Ctrl-C ends at once, without saving them anew.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

import claims
import ray_cluster
import report
from files import write_json
from ld_agents.evaluation import scores
from live_table import live_table
from specs import SCHEMA, Files, Run, import_modules, load_dataset, parse_spec, resolved_settings
from suites import SUITES, Suite, grid

RESULTS = Path(__file__).resolve().parent.parent / "results"
RUN_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
RUN_ONE = Path(__file__).resolve().parent / "run_one.py"
POLL_SECONDS = 0.5
FULL_BYTES = 1 << 20  # fewer are left on a full disk
RUN_BYTES = 32 << 20  # what a run may write: model, two checkpoints, log
STOP_SECONDS = 20.0  # for a run to save its checkpoint when the suite is interrupted


def is_finished(run: Run, out: Path) -> bool:
    """Whether the run's result exists.

    Raises:
        SystemExit: when a result of that name is unreadable or has another number of episodes; results are never
            overwritten. Those of older presets count, too: the tables say so.
    """
    path = Files(out, run.name).result
    if not path.exists():
        return False
    try:
        result = json.loads(path.read_text())
        episodes = result["protocol"]["episodes"] if result["schema"] == SCHEMA else None
    except (ValueError, KeyError, TypeError):
        episodes = None
    if episodes is None:
        raise SystemExit(f"{path} is not a result that this version can read; move it away or give another --out")
    if episodes != run.episodes:
        raise SystemExit(f"{path} has {episodes} evaluation episodes, not {run.episodes}; give another --out")
    return True


def check_place(out: Path, runs: int) -> None:
    """Before anything is trained: can the results of so many runs be written?

    Raises:
        SystemExit: the folder cannot be written to, or the disk has too little room.
    """
    try:
        write_json(out / ".write_test", {})
        (out / ".write_test").unlink(missing_ok=True)  # another suite on this folder may have been quicker
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise SystemExit(
            f"cannot write to {out}: {os.strerror(error.errno or 0)}; give another --out or make room"
        ) from None
    if free < runs * RUN_BYTES:
        raise SystemExit(
            f"{out} has {free >> 20:,} MiB free, {runs} runs may need {runs * RUN_BYTES >> 20:,} (model, two "
            "checkpoints, log); make room, give another --out, or take fewer runs"
        )


def check_agents(runs: Iterable[Run]) -> dict[Run, str]:
    """Why some runs cannot start: modules that do not import, unknown agents, presets and settings."""
    failures = {}
    for run in runs:
        try:
            resolved_settings(run.agent, run.preset, scores.family(parse_spec(run.dataset)[0]))
        except Exception as error:  # a module of the user's own may raise anything
            failures[run] = f"{type(error).__name__}: {error}"
    return failures


def make_datasets(specs: Iterable[str]) -> dict[str, str]:
    """Make or download each dataset once, before any run needs it; returns why some are unavailable.

    A dataset that is loaded is readable and finite; its evaluation environment is built once, too.
    """
    failures = {}
    for spec in specs:
        print(f"dataset {spec}: generated or downloaded unless present", flush=True)
        started = time.perf_counter()
        try:
            dataset = load_dataset(spec)
            dataset.make_eval_env().close()
        except Exception as error:
            failures[spec] = f"{type(error).__name__}: {error}"
            print(f"dataset {spec} is unavailable: {failures[spec]}", flush=True)
            continue
        seconds = time.perf_counter() - started
        size = f"{dataset.n_steps:,} steps in {dataset.n_episodes:,} episodes"
        print(f"dataset {spec}: {size}, {dataset.info.provenance}, {seconds:.0f} s", flush=True)
    return failures


def start(
    run: Run, out: Path, cluster: ray_cluster.Cluster | None = None, *options: str
) -> subprocess.Popen[bytes] | ray_cluster.RemoteRun | None:
    """The process that does a run, here or in a cluster; its output goes to the run's log.

    None while another process does the run.
    """
    log, lock = Files(out, run.name).log, claims.claim(Files(out, run.name).lock)
    if lock is None:
        return None
    if Files(out, run.name).result.exists():  # another suite was faster
        os.close(lock)
        return None
    log.parent.mkdir(parents=True, exist_ok=True)
    settings = (f"--{name}={value}" for name, value in dataclasses.asdict(run).items())
    arguments = ["--claimed", *settings, *options]
    try:
        if cluster is not None:
            return cluster.start(run, [RUN_ONE.name, *arguments], RUN_ENVIRONMENT, lock)
        command = [sys.executable, claims.__file__, str(os.getpid()), str(RUN_ONE), f"--out={out}", *arguments]
        with log.open("wb") as stream:
            # In a session of its own a run does not get the terminal's Ctrl-C, so it can save its checkpoint first.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=os.environ | RUN_ENVIRONMENT,
                start_new_session=True,
                pass_fds=[lock] if os.name == "posix" else [],
                preexec_fn=claims.dying_with_parent(),
            )
    finally:
        os.close(lock)  # the child has its own


def why_failed(code: int, files: Files) -> str | None:
    """Why a run that ended with this exit code failed; None when its result is there."""
    if code == 0 and files.result.exists():
        return None
    if code < 0:
        hint = "; perhaps the machine ran out of memory" if -code == signal.SIGKILL else ""
        return f"killed by signal {-code} ({signal.Signals(-code).name}){hint}"
    if line := last_line(files.log):
        return line
    full = shutil.disk_usage(files.log.parent).free < FULL_BYTES
    hint = f"; the disk of {files.log.parent} is full: make room and run the same command again" if full else ""
    return f"ended with exit code {code} and no output{hint}"


def keep_failure(run: Run, out: Path, reason: str) -> None:
    """Write down why a run failed, for the tables, unless the disk is full; its result takes the place of that."""
    with contextlib.suppress(OSError):
        write_json(Files(out, run.name).failure, dataclasses.asdict(run) | {"reason": reason})


def done_elsewhere(run: Run, out: Path, since: float) -> str | Literal[False] | None:
    """How another suite on this folder ended a run: None with a result, the reason if it failed; False if neither."""
    files = Files(out, run.name)
    if files.result.exists():
        return None
    try:
        if files.failure.stat().st_mtime >= since:
            return str(json.loads(files.failure.read_text())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return False


def stop(processes: Collection[subprocess.Popen[bytes] | ray_cluster.RemoteRun]) -> None:
    """Ask runs to save their checkpoints and end; kill those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def title(run: Run) -> str:
    return f"{run.agent} on {run.dataset}, seed {run.seed}"


def do_runs(
    runs: Sequence[Run],
    out: Path,
    jobs: int,
    plans_seed: int,
    imports: Sequence[str] = (),
    cluster: ray_cluster.Cluster | None = None,
    measured: bool = False,
) -> dict[Run, str]:
    """Do the runs, `jobs` at a time, here or in a cluster; returns the reasons of those that failed.

    Several suites on one folder share the runs: each is done by the process that holds its lock.
    Shows a live table on a terminal; elsewhere, a line for each run that ends and one a minute about the others.

    Raises:
        KeyboardInterrupt: after every running process has saved its checkpoint and ended.
    """
    waiting, failures = list(runs), dict[Run, str]()
    alive: dict[Run, subprocess.Popen[bytes] | ray_cluster.RemoteRun] = {}
    interrupted, console = False, Console()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        # No exception, which could come when a process has started and is not in `alive` yet.
        nonlocal interrupted
        if interrupted:
            for process in alive.values():
                process.kill()
            console.show_cursor()  # which the live table has hidden
            os._exit(128 + signum)
        interrupted = True

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    started, began = time.monotonic(), time.time()
    told = started

    def clock() -> str:
        return str(datetime.timedelta(seconds=round(time.monotonic() - started)))

    def drawn() -> Table:
        places = cluster.places() if cluster else None
        return live_table(runs, out, alive, failures, clock(), console.height - 4, places)

    def names(of: Collection[Run]) -> dict[Run, str]:
        places = cluster.places() if cluster and of else {}
        return {run: title(run) + (f" at {places[run.name]}" if run.name in places else "") for run in of}

    live = Live(get_renderable=drawn, console=console, refresh_per_second=2) if sys.stdout.isatty() else None
    try:
        if live:
            live.start()
        while (waiting or alive) and not interrupted:
            ended: dict[Run, str | None] = {}
            room = min(jobs, cluster.room()) if cluster else jobs
            for run in list(waiting):
                if len(alive) >= room:
                    break
                options = ["--plans"] * (run.seed == plans_seed) + ["--measure"] * measured + ["--imports", *imports]
                try:
                    if (reason := done_elsewhere(run, out, began)) is not False:
                        ended[run] = reason
                    elif (process := start(run, out, cluster, *options)) is not None:
                        alive[run] = process
                    else:
                        continue
                except OSError as error:  # the disk is full by now, say
                    ended[run] = f"cannot be started: {error}"
                waiting.remove(run)
            time.sleep(POLL_SECONDS)
            for run, code in [(run, process.poll()) for run, process in alive.items()]:
                if code is None:
                    continue
                del alive[run]
                ended[run] = reason = why_failed(code, Files(out, run.name))
                if reason:
                    keep_failure(run, out, reason)
                else:
                    Files(out, run.name).failure.unlink(missing_ok=True)
            called = {} if live else names(ended)
            for run, reason in ended.items():
                if reason:
                    failures[run] = reason
                outcome = f"FAILED, {reason}" if reason else last_line(Files(out, run.name).log)
                done = len(runs) - len(waiting) - len(alive)
                if not live:
                    print(f"[{clock()}] {done}/{len(runs)} {called[run]}: {outcome}", flush=True)
            if not live and time.monotonic() - told > 60:
                told = time.monotonic()
                news = (f"{name}: {last_line(Files(out, run.name).log)}" for run, name in names(alive).items())
                print(f"[{clock()}] {'; '.join(news)}", flush=True)
        if interrupted:
            print("\nstopping; the runs save their checkpoints; Ctrl-C again ends them at once", flush=True)
            raise KeyboardInterrupt
    finally:
        stop(alive.values())
        if live:
            live.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return failures


def usable_cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def suite_from(options: argparse.Namespace) -> Suite:
    """The suite of that name with what the command line replaces."""
    names = ("agents", "datasets", "seeds", "preset", "budget", "episodes")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    suite = dataclasses.replace(SUITES[options.suite], **given)
    if not options.cpu_bf16:
        return suite
    # a setting of every agent, so that its runs have names and rows of their own
    opened = [agent.strip().removesuffix("]") + ("," if "[" in agent else "[") for agent in suite.agents]
    return dataclasses.replace(suite, agents=tuple(f"{agent}cpu_bf16=true]" for agent in opened))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=sorted(SUITES), help="default: first, or quick where options change it")
    parser.add_argument("--full", action="store_const", const="quick", dest="suite", help="the same as --suite quick")
    parser.add_argument(
        "--agents", nargs="+", metavar="SPEC", help="LDCQ, LDCQ[prior=gaussian], my_module:MyAgent, ..."
    )
    parser.add_argument("--datasets", nargs="+", metavar="ID", help="Minari ids or paths of D4RL .hdf5 files")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N")
    parser.add_argument("--preset", help="minutes (some agents), fast, paper, or default (the agent's own choice)")
    parser.add_argument("--budget", type=float, help="share of the preset's gradient steps; 1 is all of them")
    parser.add_argument("--episodes", type=int, help="evaluation episodes of each run")
    parser.add_argument(
        "--cpu-bf16", action="store_true", help="train with matrix products in bfloat16 (for CPUs with AMX)"
    )
    parser.add_argument("--out", type=Path, help="folder for everything that is written (default: results/SUITE)")
    parser.add_argument(
        "--imports", nargs="*", default=[], metavar="MODULE", help="modules that register environments of your own"
    )
    parser.add_argument("--jobs", type=int, help="runs side by side (default: all cores, here or in the cluster)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="do the runs in a Ray cluster: HOST:PORT, auto (this machine's), or local"
    )
    parser.add_argument("--cpus", type=float, default=1.0, help="CPUs of a run in a cluster (default: 1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of a run in a cluster, such as 0.25 (default: 0)")
    options = parser.parse_args(arguments)
    # `first` has a preset that few agents have: other agents and budgets start from `quick`.
    changed = options.agents or options.datasets or options.preset or options.budget is not None or options.cpu_bf16
    options.suite = options.suite or ("quick" if changed else "first")
    if (options.jobs is not None and options.jobs < 1) or (options.budget is not None and options.budget <= 0):
        parser.error("--jobs must be at least 1 and --budget above 0")
    if options.cpus <= 0 or options.gpus < 0:
        parser.error("--cpus must be above 0 and --gpus not below")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 when every run of the suite has its result, 1 when one failed, 130 when interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = parse(arguments)
    suite = suite_from(options)
    out: Path = options.out or RESULTS / options.suite
    import_modules(options.imports)
    runs = grid(suite)
    missing = [run for run in runs if not is_finished(run, out)]
    finished = len(runs) - len(missing)
    print(
        f"suite {options.suite}: {len(runs)} runs, {finished} finished before, preset {suite.preset}, results in {out}",
        flush=True,
    )

    failures: dict[Run, str] = {}
    try:
        if missing:
            check_place(out, len(missing))
            failures = check_agents(missing)
            with contextlib.ExitStack() as stack:
                cluster, jobs = None, options.jobs or usable_cores()
                if options.ray:
                    joined = ray_cluster.joined(options.ray, out, options.cpus, options.gpus, usable_cores())
                    cluster, jobs = stack.enter_context(joined), options.jobs or sys.maxsize
                unavailable = make_datasets(dict.fromkeys(run.dataset for run in missing if run not in failures))
                no_data = {run: unavailable[run.dataset] for run in missing if run.dataset in unavailable}
                for run, reason in no_data.items():  # what cannot start at all, a typo say, is not kept for the tables
                    keep_failure(run, out, reason)
                failures |= no_data
                runnable = [run for run in missing if run not in failures]
                failures |= do_runs(runnable, out, jobs, min(suite.seeds), options.imports, cluster, suite.measured)
    except KeyboardInterrupt:
        finished = sum(Files(out, run.name).result.exists() for run in runs)
        print(f"interrupted with {finished} of {len(runs)} runs finished; run the same command again to resume")
        return 130

    if any((out / "runs").glob("*.json")):
        try:
            print(report.build(out))
            print(f"\nReport: {out / 'report.html'}")
        except OSError as error:
            print(f"the tables are not written: {error}; then: python benchmarks/report.py {out}")
    for run, reason in failures.items():
        log = Files(out, run.name).log
        print(f"FAILED: {title(run)}: {reason}" + f"\n        log: {log}" * log.exists())
    if failures:
        print(f"{len(failures)} of {len(runs)} runs failed; run the same command again to retry them")
    elif options.suite == "first":
        print("These were short trainings for a first look. Full ones, half an hour on two cores:")
        print("python benchmarks/run_suite.py --full")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
