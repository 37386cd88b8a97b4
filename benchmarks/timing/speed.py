"""How fast the agents learn and act, beside other versions of themselves.

Seconds of CPU time, or bytes, medians over turns. In a turn each version does the same once, in a process of its own.
*times as fast* is that version's median over this tree's.

- A gradient step is a mean over the steps of a call of `learn`, batch sampling and target updates included, on
  synthetic data of Hopper's shape. *Once, before q*: LDCQ draws candidates for all windows of the data. *Once, before
  energy*: LatentDiffuser standardizes returns and draws latents at its support states.
- A plan is a call of `predict` that plans for all environments, a step of it one that goes on with it. *After
  speed_up*: through ONNX Runtime, where it is installed; a version without `agent.speed_up` plans as ever.
- Start-up is a fresh interpreter that imports the library.
- Memory is what gradient steps add at most to a fresh process that holds the dataset (16 MB per 250,000 rows).

d3rlpy trains networks of the same sizes on batches of the same size, CQL with as many actions, and does not plan.
"""

from __future__ import annotations

import contextlib
import itertools
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

import provenance
from timing.pages import Page, Result, differences, duration, preset_settings, size, timed_settings

ROOT = Path(__file__).resolve().parents[2]
THIS = "this tree"
PLANNERS = {"LDCQ": 54, "LatentDiffuser": 42}  # gradient steps of a turn, all stages together
BASELINES = {"BC": 202, "TD3BC": 102, "ReBRAC": 52, "IQL": 102, "CQL": 12}
Ask = Callable[..., Result]
SIZES: Result = {
    "planner_rows": 2_000,  # of their data: all of its windows get candidates in each turn
    "baseline_rows": 1_000_000,
    "gradient_steps": PLANNERS | BASELINES,
    "plans": {1: 10, 64: 3},  # of a turn, by number of environments
    "memory": {"TD3BC": [250_000, 1_000_000, 4_000_000]},  # rows; 20 gradient steps
    # Settings that are not the fast preset's: what is drawn once takes half a minute otherwise.
    "overrides": {"LatentDiffuser": {"support_states": 64, "scale_states": 64}},
}


@contextlib.contextmanager
def started(name: str, library: str, python: str, root: Path | None = None) -> Iterator[Ask]:
    """A process of `worker.py`, as a function: keywords in, seconds by what took them out.

    Args:
        name: of the version, in messages.
        library: "ld_agents" or "d3rlpy".
        python: its interpreter.
        root: folder that holds the library and is searched first; None where it is installed.

    The function raises SystemExit where the version fails, with its traceback.
    """
    # Python's safe path: the current folder, which may be this repository, would come first otherwise
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": str(root or "")}
    command = [python, str(Path(__file__).with_name("worker.py")), library]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def ask(**request: Any) -> Result:
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=process.stdin, flush=True)
        answer: Result = json.loads(process.stdout.readline() or "null")
        if answer is None:
            raise SystemExit(f"{name}: its process ended with exit code {process.wait()} at {request}")
        if "error" in answer:
            raise SystemExit(f"{name} fails at {request}:\n{answer['error']}")
        return answer

    try:
        yield ask
    finally:
        process.kill()
        process.communicate()


def operations(sizes: Result) -> Iterator[tuple[str, Result]]:
    """What is timed: of whom, and the request."""
    rows = dict.fromkeys(PLANNERS, sizes["planner_rows"]) | dict.fromkeys(BASELINES, sizes["baseline_rows"])
    for agent, steps in sizes["gradient_steps"].items():
        yield agent, {"do": "train", "agent": agent, "rows": rows[agent], "steps": steps}
    for agent in (name for name in PLANNERS if name in sizes["gradient_steps"]):
        for fast, (envs, plans) in itertools.product((False, True), sizes["plans"].items()):
            yield agent, {"do": "act", "agent": agent, "rows": rows[agent], "envs": envs, "plans": plans, "fast": fast}
    for agent, sizes_of_data in sizes["memory"].items():
        for n in sizes_of_data:
            yield agent, {"do": "memory", "agent": agent, "rows": n, "steps": 20}
    yield "start-up", {"do": "start"}


def in_turns(versions: Mapping[str, Ask], requests: Iterable[tuple[str, Result]], repetitions: int) -> list[Result]:
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


def measure(
    against: Sequence[str],
    d3rlpy: str | None,
    repetitions: int,
    folder: Path,
    sizes: Result,
    only: str | None = None,
) -> str:
    """Time this tree, commits of this repository, and the d3rlpy that an interpreter has. Writes and returns the page.

    `only` is what to do of "train", "act", "memory" and "start"; None is all.

    Raises:
        SystemExit: for a commit that does not exist, and where a version fails.
    """
    commit = provenance.source_commit()
    settings = preset_settings(*(f"{name} fast" for name in sizes["gradient_steps"]))
    # a library without our presets gets the sizes of their networks; where they say nothing, critics are like actors
    networks = {preset.split()[0]: {"critic_hidden": s.get("hidden"), **s} for preset, s in settings.items()}
    versions, how = {}, ["CPU time."]
    with contextlib.ExitStack() as stack:
        for name in (THIS, *against, *(["d3rlpy"] if d3rlpy else [])):
            if name == "d3rlpy":
                root, worker = None, started(name, "d3rlpy", str(d3rlpy))
            else:
                root = ROOT if name == THIS else stack.enter_context(tree_at(name))
                worker = started(name, "ld_agents", sys.executable, root)
            versions[name] = stack.enter_context(worker)
            about = versions[name](overrides=sizes["overrides"], networks=networks)
            if root and not Path(about["file"]).resolve().is_relative_to(root.resolve()):
                raise SystemExit(f"{name} is to be timed from {root}, but imports {about['file']}")
            if name != THIS:
                version = about.get("version") or f"commit {git('rev-parse', f'{name}^{{commit}}')[:12]}"
                theirs = {preset: timed_settings(s) for preset, s in about["presets"].items() if preset in settings}
                how.append("; ".join([f"{name} is {version}", *differences(theirs, settings)]) + ".")
        asked = [(of, request) for of, request in operations(sizes) if only in (None, request["do"])]
        rows = in_turns(versions, asked, repetitions)
    sizes = {"repetitions": repetitions, **sizes}
    return SPEED.write(folder, commit=commit, how=" ".join(how), rows=rows, sizes=sizes, settings=settings)


def cells(result: Result) -> Iterator[Result]:
    others = list(dict.fromkeys(name for row in result["rows"] for name in row["seconds"] if name != THIS))
    for row in result["rows"]:
        seconds = row["seconds"]
        shown = size if ": memory" in row["what"] else duration
        cells = {"what": row["what"], THIS: shown(seconds.get(THIS, []))}
        for name in others:
            both = name in seconds and THIS in seconds
            ratio = float(np.median(seconds[name]) / np.median(seconds[THIS])) if both else None
            cells |= {name: shown(seconds.get(name, [])), f"times as fast as {name}": ratio}
        yield cells


SPEED = Page("speed", __doc__, "--against COMMIT --d3rlpy PYTHON", cells)
