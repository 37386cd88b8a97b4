"""Kills and damaged files by the hundred, from fixed seeds: what comes of each must be the good old thing or a refusal.

    export PYTHONPATH=.:benchmarks:tests:tests/common:tests/benchmarks
    python tests/faults/campaign.py --write results/faults.md

Damaged data have a campaign of their own, `tests/data/test_damaged_data.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from agent_blobs import members, packed, with_tensors, zipped
from run_files import HOPPER, a_run

import checkpoint
import provenance
import report
import run_one
import specs
from conftest import StopAt, make_agent, record, saved
from files import write_text
from ld_agents import BC, OfflineDataset
from reporting import intervals

SECONDS_PER_CASE = 10
RUN = specs.Run("BC[hidden=[16,16],batch_size=32,steps=30]", "x/y-v0", 0, "fast", 1.0, 3)
ABSURD = (None, "x", -1, 1e308, 10**400, [], {}, True, [[1]], "<b>|\n", float("nan"), 0)
SOUND = ("same", "refused", "fell back")
HEAD = """# Kills and damaged files

`tests/faults/campaign.py` at commit {}. *Same*: the result, weights or scores are those of an undisturbed run, bit by
bit. *Refused*: an error names the file and what to do. *Fell back*: the run went on from its previous checkpoint and
ended the same. The other columns are faults.
"""


def verdict(case: Callable[[], str]) -> str:
    """What came of a case: what it says, "refused", or the fault that it shows."""

    def too_long(*_: Any) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS_PER_CASE)
    try:
        return case()
    except ValueError:
        return "refused"
    except TimeoutError:
        return "hang"
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def damaged(good: bytes, other: bytes, draw: random.Random) -> bytes:
    """Flipped bits, a cut, a hole of zeros, or the beginning of one file with the end of another."""
    at, kind = draw.randrange(len(good)), draw.randrange(4)
    if kind == 0:
        return good[:at] + bytes([good[at] ^ 1 << draw.randrange(8)]) + good[at + 1 :]
    hole = good[:at] + bytes(min(4096, len(good) - at)) + good[at + 4096 :]
    made = (good[:at], hole, good[:at] + other[at:])[kind - 1]
    return damaged(good, other, draw) if made in (good, other) else made  # neither is damaged


def content(agent: BC) -> list[Any]:
    """All that tells two agents apart: weights, optimizers, generators, and progress."""
    tensors = agent.policy.state_dict() | agent.training_state()
    return [agent.stage_steps, agent.stage_budget, *((n, v.numpy().tobytes()) for n, v in sorted(tensors.items()))]


def models(n: int, dataset: OfflineDataset) -> Iterator[str]:
    """A flip that the format does not notice, as in a time stamp, must give the same agent."""
    draw, agent = random.Random(1), make_agent("BC", dataset).learn(callback=StopAt(20))
    good, other = saved(agent), saved(make_agent("BC", dataset, seed=1).learn(callback=StopAt(20)))
    # cut in its first bytes, a mixture is all of the other file but for a field of the zip that nothing depends on
    whole = [content(BC.load(io.BytesIO(blob), dataset=dataset)) for blob in (good, other)]

    def case() -> str:
        kind = draw.randrange(5)
        if kind == 0:  # a member of another agent
            name = draw.choice(["weights.safetensors", "training.safetensors"])
            blob = zipped({**members(good), name: members(other)[name]})
        elif kind == 1:  # a bad number under a checksum that fits
            blob = packed(members(with_tensors(good, "weights.safetensors", lambda t: spoil(t, draw))))
        else:
            blob = damaged(good, other, draw)
        return "same" if content(BC.load(io.BytesIO(blob), dataset=dataset)) in whole else "different"

    return (verdict(case) for _ in range(n))


def spoil(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    flat = tensors[draw.choice([name for name, value in tensors.items() if value.is_floating_point()])].view(-1)
    flat[draw.randrange(len(flat))] = draw.choice([torch.nan, torch.inf, -torch.inf])


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


def checkpoints(n: int, dataset: OfflineDataset) -> Iterator[str]:
    draw = random.Random(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, expected = two_checkpoints(folder, dataset)
        good, before = path.read_bytes(), checkpoint.previous(path).read_bytes()
        for _ in range(n):
            path.write_bytes(damaged(good, before, draw))
            yield verdict(lambda: resumed(folder, dataset, expected))


def kills(n: int, dataset: OfflineDataset) -> Iterator[str]:
    """SIGKILL at random times in a process that writes checkpoints without a pause."""
    draw = random.Random(3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, expected = two_checkpoints(folder, dataset)
        agents = [BC.load(checkpoint.read(path, RUN.name)[1], dataset=dataset)]
        agents.append(BC.load(checkpoint.read(checkpoint.previous(path), RUN.name)[1], dataset=dataset))
        for _ in range(n):
            if (child := os.fork()) == 0:
                while True:
                    for agent in agents:
                        checkpoint.write(path, RUN.name, agent, {"dataset_hash": dataset.content_hash, "resumes": 0})
            time.sleep(draw.uniform(0.001, 0.1))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            yield verdict(lambda: resumed(folder, dataset, expected))


def run_files(n: int, dataset: OfflineDataset) -> Iterator[str]:
    """One run file with one absurd or missing entry, or with damaged bytes, beside a good one."""
    draw, intervals.REPS = random.Random(4), 20
    with tempfile.TemporaryDirectory() as name:
        runs = Path(name) / "runs"
        runs.mkdir()
        (runs / "good.json").write_text(json.dumps(a_run("IQL", HOPPER)))

        def case() -> str:
            run = a_run("BC", HOPPER, seed=1)
            text = json.dumps(run).encode()
            if draw.random() < 0.3:
                (runs / "bad.json").write_bytes(damaged(text, text[::-1], draw))
            else:
                place = draw.choice([place for place in places(run) if place])
                inner = run
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = copy.deepcopy(draw.choice(ABSURD))
                (runs / "bad.json").write_text(json.dumps(run))
            errors = io.StringIO()
            with contextlib.redirect_stderr(errors):
                table = report.build(Path(name), with_figures=False)
            if "IQL" not in table:
                return "lost"
            return "refused" if "skipped bad.json" in errors.getvalue() else "same"

        for _ in range(n):
            yield verdict(case)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


CAMPAIGNS = {"kills": kills, "models": models, "checkpoints": checkpoints, "run_files": run_files}
FULL = {"kills": 100, "models": 1000, "checkpoints": 500, "run_files": 500}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for name, n in FULL.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=n, metavar="N")
    parser.add_argument("--write", type=Path, help="a Markdown page for the table")
    options, dataset = parser.parse_args(), record()
    heads = ("cases", *SOUND, "lost", "different", "hang", "traceback")
    page = "| damage | " + " | ".join(heads) + " |\n" + "| --- " * (len(heads) + 1) + "|\n"
    for name, campaign in CAMPAIGNS.items():
        found = list(campaign(getattr(options, name), dataset))
        counts = Counter(verdict.partition(":")[0] for verdict in found)
        page += f"| {name.replace('_', ' ')} | {len(found)} | " + " | ".join(str(counts[h]) for h in heads[1:]) + " |\n"
        print(name, dict(counts), *sorted({v for v in found if v.startswith("traceback")})[:20], sep="\n  ", flush=True)
    print(page)
    if options.write:
        head = HEAD.format(provenance.source_commit()[:12])
        write_text(options.write, f"{head}\n{page}")


if __name__ == "__main__":
    main()
