"""How fast the agents learn and act, beside other versions of themselves.

Seconds of CPU time, medians over turns. In a turn each version does the same once, in a process of its own. *times as
fast* is that version's median over this tree's.

- A gradient step is a mean over the steps of a call of `learn`, batches drawn and targets moved, on made-up data of
  Hopper's shape. *Once, before q*: LDCQ draws candidates for all windows of the data. *Once, before energy*:
  LatentDiffuser standardizes returns and draws latents at its support states.
- A plan is a call of `predict` that plans for all environments, a step of it one that goes on with it.
- Start-up is a fresh interpreter that imports the library.

d3rlpy trains networks of the same sizes on batches of the same size, and does not plan.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from timing.pages import Page, Result, duration, preset_settings, timed_settings

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
THIS = "this tree"
PLANNERS = {"LDCQ": 54, "LatentDiffuser": 42}  # gradient steps of a turn, all stages together
BASELINES = {"BC": 202, "TD3BC": 102, "ReBRAC": 52, "IQL": 102, "CQL": 12}
SIZES: Result = {
    "planner_rows": 2_000,  # of their data: all of its windows get candidates in each turn
    "baseline_rows": 1_000_000,
    "gradient_steps": PLANNERS | BASELINES,
    "plans": {1: 10, 64: 3},  # of a turn, by number of environments
    # Settings that are not the fast preset's: what is drawn once takes half a minute otherwise.
    "overrides": {"LatentDiffuser": {"support_states": 64, "scale_states": 64}},
}


class Worker:
    """A process that times one version of a library. See `worker.py`.

    Args:
        name: of the version, in messages and in the table.
        library: "ld_agents" or "d3rlpy".
        python: its interpreter.
        root: folder that holds the library, which is found first; None where it is installed.

    Raises:
        SystemExit: where the library cannot be imported, or is not the one in `root`.
    """

    def __init__(self, name: str, library: str, python: str, root: Path | None, sizes: Result) -> None:
        self.name = name
        path = {"PYTHONPATH": str(root)} if root else {}
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [python, str(WORKER), library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"OMP_NUM_THREADS": "1"} | path,
        )
        self.about = self.ask(overrides=sizes["overrides"], networks=network_sizes())
        if root and not Path(self.about["file"]).resolve().is_relative_to(root.resolve()):
            raise SystemExit(f"{name} is to be timed from {root}, but imports {self.about['file']}")

    def ask(self, **request: Any) -> Result:
        """Seconds by what took them.

        Raises:
            SystemExit: where the version fails, with its traceback.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process ended with exit code {self.process.wait()} at {request}")
        answer: Result = json.loads(line)
        if "error" in answer:
            raise SystemExit(f"{self.name} fails at {request}:\n{answer['error']}")
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def network_sizes() -> Result:
    """For libraries without our presets: by baseline what d3rlpy has."""
    settings = preset_settings(*(f"{name} fast" for name in BASELINES)).items()
    return {name.split()[0]: {"critic_hidden": s["hidden"], **s} for name, s in settings}


def operations(sizes: Result) -> Iterator[tuple[str, Result]]:
    """What is timed: of whom, and the request."""
    rows = dict.fromkeys(PLANNERS, sizes["planner_rows"]) | dict.fromkeys(BASELINES, sizes["baseline_rows"])
    for agent, steps in sizes["gradient_steps"].items():
        yield agent, {"do": "train", "agent": agent, "rows": rows[agent], "steps": steps}
    for agent in PLANNERS.keys() & sizes["gradient_steps"]:
        for envs, plans in sizes["plans"].items():
            yield agent, {"do": "act", "agent": agent, "rows": rows[agent], "envs": envs, "plans": plans}
    yield "start-up", {"do": "start"}


def in_turns(
    versions: Mapping[str, Callable[..., Mapping[str, float]]],
    requests: Iterable[tuple[str, Result]],
    repetitions: int,
) -> list[Result]:
    """Rows of seconds by version, a number per turn. All do an operation before any does it again.

    The first turn, which fills caches and builds agents, does not count.
    """
    rows: dict[str, dict[str, list[float]]] = {}
    for of, request in tqdm(list(requests), leave=False, disable=not sys.stderr.isatty()):
        for turn in range(-1, repetitions):
            for name, ask in versions.items():
                for what, seconds in ask(**request).items():
                    if turn >= 0:
                        rows.setdefault(f"{of}: {what}", {}).setdefault(name, []).append(seconds)
    return [{"what": what, "seconds": seconds} for what, seconds in rows.items()]


def git(*arguments: str) -> str:
    """Its output. Raises SystemExit with its message where git fails."""
    ended = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {ended.stderr.strip()}")
    return ended.stdout.strip()


@contextlib.contextmanager
def tree_at(commit: str) -> Iterator[Path]:
    """A folder with the files of a commit. Raises SystemExit for one that this repository lacks."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def measure(against: Sequence[str], d3rlpy: str | None, repetitions: int, folder: Path, sizes: Result) -> str:
    """Time this tree, commits of this repository, and the d3rlpy that an interpreter has. Writes and returns the page.

    Raises:
        SystemExit: for a commit that does not exist, and where a version fails.
    """
    settings = preset_settings(*(f"{name} fast" for name in sizes["gradient_steps"]))
    workers, compared = {}, []
    with contextlib.ExitStack() as stack:
        for name in (THIS, *against, *(["d3rlpy"] if d3rlpy else [])):
            if name == "d3rlpy":
                worker = Worker(name, name, str(d3rlpy), None, sizes)
            else:
                root = ROOT if name == THIS else stack.enter_context(tree_at(name))
                worker = Worker(name, "ld_agents", sys.executable, root, sizes)
            stack.callback(worker.stop)
            workers[name] = worker.ask
            if name != THIS:
                version = worker.about.get("version") or f"commit {git('rev-parse', f'{name}^{{commit}}')[:12]}"
                compared.append(f"{name} is {version}{differences(worker.about['presets'], settings)}.")
        rows = in_turns(workers, operations(sizes), repetitions)
    how = " ".join(["CPU time.", *compared])
    return SPEED.write(folder, rows, {"repetitions": repetitions, **sizes}, settings, how)


def differences(presets: Mapping[str, Any], settings: Mapping[str, Result]) -> str:
    """How the fast presets of another version differ in what decides their time."""
    found = [
        f"{name} {setting} {then[setting]} instead of {now.get(setting)}"
        for name, preset in presets.items()
        for then, now in [(timed_settings(preset), settings.get(f"{name} fast", {}))]
        for setting in sorted(then)
        if then[setting] != now.get(setting)
    ]
    return f", whose presets have {', '.join(found)}" if found else ""


def cells(result: Result) -> Iterator[Result]:
    others = list(dict.fromkeys(name for row in result["rows"] for name in row["seconds"] if name != THIS))
    for row in result["rows"]:
        seconds = row["seconds"]
        cells = {"what": row["what"], THIS: duration(seconds.get(THIS, []))}
        for name in others:
            both = name in seconds and THIS in seconds
            cells[name] = duration(seconds.get(name, []))
            cells[f"times as fast as {name}"] = ratio(seconds[name], seconds[THIS]) if both else None
        yield cells


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """How many times as fast ours is: of medians."""
    return float(np.median(theirs) / np.median(ours))


SPEED = Page("speed", __doc__, "--against COMMIT --d3rlpy PYTHON", cells)
