"""Kills, damaged files and disks that are full, by the hundred: what comes of each is the good old thing or a refusal.

    export PYTHONPATH=.:benchmarks:tests:tests/common:tests/benchmarks:tests/data
    python tests/faults/campaign.py --write results/faults.md

Hypothesis draws the damage, the same at every call.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import select
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import damaged_datasets
import disks
import torch
from agent_blobs import members, packed, with_tensors, zipped
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from run_files import HOPPER, a_run

import checkpoint
import provenance
import report
import run_one
import specs
from conftest import StopAt, make_agent, record, saved
from files import write_json, write_text
from ld_agents import BC, OfflineDataset
from reporting import intervals
from reporting.runs import read_runs

SECONDS_PER_CASE = 10  # of this process's time; what sleeps instead has
SECONDS_ASLEEP = 120
MEMORY = 1_500_000_000  # bytes, beyond what the process has when a campaign begins
OPTIONS = {"hidden": (16, 16), "batch_size": 32, "steps": 30}
RUN = specs.Run("BC[hidden=[16,16],batch_size=32,steps=30]", "x/y-v0", 0, "fast", 1.0, 3)
ABSURD = (None, "x", -1, 1e308, 10**400, [], {}, True, [[1]], "<b>|\n", float("nan"), 0)
SOUND = ("same", "refused", "fell back", "unchecked")
HEAD = """# Kills, damaged files, full disks

`tests/faults/campaign.py` at commit {}. *Same*: the result, weights, scores or data are those of an undisturbed run,
bit by bit. *Refused*: an error names the file and what to do. *Fell back*: the run went on from its previous checkpoint
and ended the same. *Unchecked*: other data or settings were loaded from a file whose format has no checksum (HDF5 files
of others, any metadata.json); run files hold the hash of their data. The other columns are faults.
"""
Tell = Callable[[str], None]


def verdict(case: Callable[[], str]) -> str:
    """What came of a case: what it says, "refused", or the fault that it shows."""

    def too_long(*_: Any) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_CASE)
    try:
        return case()
    except ValueError:
        return "refused"
    except TimeoutError:
        return "hang"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def drive(n: int, strategy: st.SearchStrategy[Any], case: Callable[[Any], str], tell: Tell) -> None:
    """Tells what came of `n` cases that Hypothesis draws; of faults, with what was drawn."""

    @settings(
        max_examples=n,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(drawn: Any) -> None:
        found = verdict(lambda: case(drawn))
        tell(found if found in SOUND else f"{found}: {drawn!r:.300}")

    each()


@dataclass
class Child:
    """A campaign in a process of its own, with little memory: a crash or an endless sleep is a verdict, too."""

    campaign: Callable[[Tell], None]

    def __post_init__(self) -> None:
        self.reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            try:
                size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
                resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # HDF5 prints where it stumbles
                warnings.simplefilter("ignore")
                self.campaign(lambda found: os.write(writing, (json.dumps(found) + "\n").encode()) and None)
            except BaseException:
                os.write(writing, (json.dumps("traceback: " + traceback.format_exc()) + "\n").encode())
            finally:
                os._exit(0)
        os.close(writing)
        self.pid = child

    def verdicts(self) -> list[str]:
        """All of them, when it has ended."""
        content = b""
        with os.fdopen(self.reading, "rb", buffering=0) as lines:
            while ready := select.select([lines], [], [], SECONDS_ASLEEP)[0]:
                if not (piece := lines.read(65_536)):
                    break
                content += piece
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        found = [json.loads(line) for line in content.splitlines()]
        if os.WIFSIGNALED(status):
            found.append(f"traceback: killed by signal {os.WTERMSIG(status)}" if ready else "hang")
        return found


@dataclass(frozen=True)
class Damage:
    """Flipped bits, a cut, a hole of zeros, or the beginning of one file with the end of another."""

    kind: str
    places: tuple[int, ...]
    bit: int

    def to(self, good: bytes, other: bytes) -> bytes:
        at = self.places[0] % len(good)
        if self.kind == "flip":
            made = bytearray(good)
            for place in self.places:
                made[place % len(good)] ^= 1 << self.bit
        else:
            hole = good[:at] + bytes(min(4096, len(good) - at)) + good[at + 4096 :]
            made = bytearray({"cut": good[:at], "hole": hole, "mixture": good[:at] + other[at:]}[self.kind])
        # what is one of the two files is not damaged
        return bytes(made) if made not in (good, other) else good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]


damages = st.builds(
    Damage,
    st.sampled_from(["flip", "flip", "cut", "hole", "mixture"]),
    st.lists(st.integers(0, (1 << 20) - 1), min_size=1, max_size=8, unique=True).map(tuple),
    st.integers(0, 7),
)


def content(agent: BC) -> list[Any]:
    """All that tells two agents apart: weights, optimizers, generators, and progress."""
    tensors = agent.policy.state_dict() | agent.training_state()
    return [agent.stage_steps, agent.stage_budget, *((n, v.numpy().tobytes()) for n, v in sorted(tensors.items()))]


def models(n: int, dataset: OfflineDataset, tell: Tell) -> None:
    """A flip that the format does not notice, as in a time stamp, must give the same agent."""
    agent = make_agent("BC", dataset).learn(callback=StopAt(20))
    good, other = saved(agent), saved(make_agent("BC", dataset, seed=1).learn(callback=StopAt(20)))
    # cut in its first bytes, a mixture is all of the other file but for a field of the zip that nothing depends on
    whole = [content(BC.load(io.BytesIO(blob), dataset=dataset)) for blob in (good, other)]
    tensors = sorted(torch_names(good))

    def case(drawn: Damage | str | tuple[str, int, float]) -> str:
        if isinstance(drawn, Damage):
            blob = drawn.to(good, other)
        elif isinstance(drawn, str):  # a member of another agent
            blob = zipped({**members(good), drawn: members(other)[drawn]})
        else:  # a bad number under a checksum that fits
            blob = packed(members(with_tensors(good, "weights.safetensors", lambda t: spoil(t, *drawn))))
        return "same" if content(BC.load(io.BytesIO(blob), dataset=dataset)) in whole else "different"

    spoiled = st.tuples(st.sampled_from(tensors), st.integers(0, 1 << 16), st.sampled_from([torch.nan, torch.inf]))
    swapped = st.sampled_from(["weights.safetensors", "training.safetensors"])
    drive(n, damages | damages | damages | spoiled | swapped, case, tell)


def torch_names(blob: bytes) -> list[str]:
    """The floating-point tensors of an agent's file."""
    found: list[str] = []
    with_tensors(
        blob, "weights.safetensors", lambda t: found.extend(name for name, v in t.items() if v.is_floating_point())
    )
    return found


def spoil(tensors: dict[str, torch.Tensor], name: str, place: int, value: float) -> None:
    flat = tensors[name].view(-1)
    flat[place % len(flat)] = value


def two_checkpoints(folder: Path, dataset: OfflineDataset) -> tuple[Path, dict[int, list[Any]]]:
    """Checkpoints at steps 3 and 7 of a run, and what the agent is at each."""
    path, agent, expected = specs.Files(folder, RUN.name).checkpoint, make_agent("BC", dataset), {}
    for step in (3, 7):
        agent.learn(callback=StopAt(step), reset_num_timesteps=step == 3)
        checkpoint.write(path, RUN.name, agent, {"dataset_hash": dataset.content_hash, "resumes": 0})
        expected[step] = content(BC.load(io.BytesIO(saved(agent)), dataset=dataset))
    return path, expected


def resumed(folder: Path, dataset: OfflineDataset, expected: dict[int, list[Any]]) -> str:
    with contextlib.redirect_stdout(io.StringIO()):
        agent, _ = run_one.start_or_resume(RUN, folder, dataset)
    if agent.num_timesteps == 0:
        return "lost"
    if content(agent) != expected.get(agent.num_timesteps):
        return "different"
    return "fell back" if agent.num_timesteps == 3 else "same"


def checkpoints(n: int, dataset: OfflineDataset, tell: Tell) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, expected = two_checkpoints(folder, dataset)
        good, before = path.read_bytes(), checkpoint.previous(path).read_bytes()

        def case(drawn: Damage) -> str:
            path.write_bytes(drawn.to(good, before))
            return resumed(folder, dataset, expected)

        drive(n, damages, case, tell)


def kills(n: int, dataset: OfflineDataset, tell: Tell) -> None:
    """SIGKILL at random times in a process that writes checkpoints without a pause."""
    draw = random.Random(3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, expected = two_checkpoints(folder, dataset)
        blobs = [checkpoint.read(file, RUN.name)[1] for file in (path, checkpoint.previous(path))]
        agents = [BC.load(blob, dataset=dataset) for blob in blobs]
        for _ in range(n):
            if (child := os.fork()) == 0:
                while True:
                    for agent in agents:
                        checkpoint.write(path, RUN.name, agent, {"dataset_hash": dataset.content_hash, "resumes": 0})
            time.sleep(draw.uniform(0.001, 0.1))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            tell(verdict(lambda: resumed(folder, dataset, expected)))


def on_a_disk(
    n: int, dataset: OfflineDataset, tell: Tell, spoiled: Callable[[Path, int, bool], contextlib.AbstractContextManager]
) -> None:
    """Checkpoints, models and results that are written on a spoiled disk beside good ones; then it is mended."""
    with tempfile.TemporaryDirectory() as name, disks.small(folder := Path(name)) as real:
        path, expected = two_checkpoints(folder, dataset)
        agent = BC.load(checkpoint.read(path, RUN.name)[1], dataset=dataset)
        files, result = specs.Files(folder, RUN.name), a_run("BC", HOPPER)
        agent.save(files.model)
        write_json(files.result, result)
        kept = {file: file.read_bytes() for file in (files.model, files.result)}
        writes: dict[str, Callable[[], None]] = {
            "checkpoint": lambda: checkpoint.write(
                path, RUN.name, agent, {"dataset_hash": dataset.content_hash, "resumes": 0}
            ),
            "model": lambda: agent.save(files.model),
            "result": lambda: write_json(files.result, result),
        }

        def case(drawn: tuple[str, int]) -> str:
            what, free = drawn
            refused = False
            with spoiled(folder, free, real):
                try:
                    writes[what]()
                except OSError as error:
                    if str(folder) not in str(error) or "Make room" not in str(error):
                        raise
                    refused = True
            if not refused:
                kept.update({file: file.read_bytes() for file in kept})
            if any(file.read_bytes() != content for file, content in kept.items()) or list(folder.rglob("*.tmp")):
                return "lost"
            found = resumed(folder, dataset, expected)
            return "refused" if refused and found == "same" else found

        drive(n, st.tuples(st.sampled_from(sorted(writes)), st.integers(0, 120_000)), case, tell)


def full_disk(n: int, dataset: OfflineDataset, tell: Tell) -> None:
    on_a_disk(n, dataset, tell, disks.full)


def read_only(n: int, dataset: OfflineDataset, tell: Tell) -> None:
    on_a_disk(n, dataset, tell, lambda folder, _, real: disks.read_only(folder, real))


def run_files(n: int, dataset: OfflineDataset, tell: Tell) -> None:
    """One run file with one absurd or missing entry, or with damaged bytes, beside a good one."""
    intervals.REPS = 20
    run = a_run("BC", HOPPER, seed=1)
    text = json.dumps(run).encode()
    with tempfile.TemporaryDirectory() as name:
        runs = Path(name) / "runs"
        runs.mkdir()
        (runs / "good.json").write_text(json.dumps(a_run("IQL", HOPPER)))

        def case(drawn: Damage | tuple[tuple[Any, ...], Any]) -> str:
            if isinstance(drawn, Damage):
                (runs / "bad.json").write_bytes(drawn.to(text, text[::-1]))
            else:
                inner = changed = copy.deepcopy(run)
                *before, last = drawn[0]
                for key in before:
                    inner = inner[key]
                inner[last] = copy.deepcopy(drawn[1])
                (runs / "bad.json").write_text(json.dumps(changed))
            found, skipped = read_runs(runs)
            if skipped:  # the rest is the report of the good file alone
                return "refused" if len(found) == 1 and skipped[0].startswith("bad.json: ") else "lost"
            return "same" if "IQL" in report.build(Path(name), with_figures=False) else "lost"

        (runs / "bad.json").write_text("{")
        assert "IQL" in report.build(Path(name), with_figures=False)

        changes = st.tuples(st.sampled_from([place for place in places(run) if place]), st.sampled_from(ABSURD))
        drive(n, damages | changes | changes, case, tell)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def datasets(n: int, dataset: OfflineDataset, tell: Tell) -> None:
    """Damaged bytes in every format, wrong arrays, hostile metadata, links, pipes, bombs. Environments are built."""
    executed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        good = Path(name) / "good"
        good.mkdir()
        damaged_datasets.write_all(good)
        loaded = {
            source: damaged_datasets.what_is_loaded(good, source) for source in set(damaged_datasets.FILES.values())
        }
        structural, traps = damaged_datasets.structural(good), damaged_datasets.traps()
        damaged_datasets.forbid_execution(executed)

        def case(drawn: tuple[str, Damage] | dict[str, Any] | str | int) -> str:
            file = f"{damaged_datasets.FLAT}/data/metadata.json"
            with tempfile.TemporaryDirectory(dir=name) as place:
                folder = Path(place)
                if isinstance(drawn, int):
                    source = structural[drawn][1](folder)
                    source = str(Path(source).relative_to(folder)) if source.startswith(place) else source
                else:
                    if not isinstance(drawn, dict):
                        file = drawn[0] if isinstance(drawn, tuple) else traps[drawn][0]
                    path, source = damaged_datasets.copied(good, folder, file), damaged_datasets.FILES[file]
                    if isinstance(drawn, tuple):
                        content = path.read_bytes()
                        path.write_bytes(drawn[1].to(content, content[::-1]))
                    elif isinstance(drawn, dict):
                        damaged_datasets.with_changes(path, drawn)
                    else:
                        traps[drawn][1](path)
                executed.clear()
                found = damaged_datasets.what_is_loaded(folder, source)
            if executed:
                return f"execution: {executed}"
            if found == loaded.get(source):
                return "same"
            return "different" if not isinstance(drawn, int) and file in damaged_datasets.CHECKED else "unchecked"

        planted = good / "evil.xml"
        planted.write_text("<mujoco><worldbody/></mujoco>")
        of_bytes = st.tuples(st.sampled_from(sorted(damaged_datasets.FILES)), damages)
        drive(
            n,
            of_bytes
            | of_bytes
            | damaged_datasets.metadata(planted)
            | st.integers(0, len(structural) - 1)
            | st.sampled_from(sorted(traps)),
            case,
            tell,
        )


CAMPAIGNS = {f.__name__: f for f in (kills, models, checkpoints, run_files, datasets, full_disk, read_only)}
FULL = {
    "kills": 100,
    "models": 1000,
    "checkpoints": 500,
    "run_files": 500,
    "datasets": 600,
    "full_disk": 100,
    "read_only": 20,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for name, n in FULL.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=n, metavar="N")
    parser.add_argument("--write", type=Path, help="a Markdown page for the table")
    options, dataset = parser.parse_args(), record()
    commit = provenance.source_commit()[:12]
    heads = ("cases", *SOUND, "lost", "different", "execution", "hang", "traceback")
    page = "| damage | " + " | ".join(heads) + " |\n" + "| --- " * (len(heads) + 1) + "|\n"

    children = {
        name: Child(lambda tell, name=name: CAMPAIGNS[name](getattr(options, name), dataset, tell))
        for name in CAMPAIGNS
    }
    for name, child in children.items():
        found = child.verdicts()
        counts = Counter(verdict.partition(":")[0] for verdict in found)
        page += f"| {name.replace('_', ' ')} | {len(found)} | "
        page += " | ".join(str(counts[head]) for head in heads[1:]) + " |\n"
        faults = sorted({verdict for verdict in found if verdict not in SOUND})
        print(name, dict(counts), *faults[:20], sep="\n  ", flush=True)
    print(page)
    if options.write:
        write_text(options.write, f"{HEAD.format(commit)}\n{page}")


if __name__ == "__main__":
    main()
