"""The table on the terminal that fills while runs finish, read from the runs' logs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from specs import Files, Run

BLOCKS = "▁▂▃▄▅▆▇█"
MAX_LOG = 1 << 20  # bytes of a log that are looked at, from its end

# The lines that `run_one.py` prints.
LEARNING = re.compile(r"^learning, (\d+) % of [\d,]+ gradient steps, ([\d,.]+) steps/s, (.+) left$", re.MULTILINE)
POINT = re.compile(r"^curve point \d+ of \d+: mean return (\S+)$", re.MULTILINE)
FINISHED = re.compile(r"^finished: mean return ([^\s,]+)", re.MULTILINE)


class Progress(NamedTuple):
    """What a run's log tells: percent of its gradient steps, speed and time left as text, returns of the curve."""

    percent: int = 0
    speed: str = ""
    left: str = ""
    curve: tuple[float, ...] = ()
    evaluating: bool = False
    result: str | None = None


def read_progress(log: Path) -> Progress:
    """The progress of a run; that of a run without a log is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - MAX_LOG))
            text = stream.read().decode(errors="replace")
    except OSError:
        return Progress()
    percent, speed, left = (LEARNING.findall(text) or [("0", "", "")])[-1]
    result = FINISHED.search(text)
    curve = tuple(float(value) for value in POINT.findall(text) if re.fullmatch(r"-?\d+(\.\d+)?(e[+-]\d+)?", value))
    evaluating = re.search("^evaluating, ", text, re.MULTILINE) is not None
    return Progress(int(percent), speed, left, curve, evaluating, result[1] if result else None)


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """A block per value, as high as the value lies between `low` and `high`."""
    width = max(high - low, 1e-9)
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * min(max((value - low) / width, 0), 1))] for value in values)


def live_table(
    runs: Sequence[Run],
    out: Path,
    alive: Collection[Run],
    failures: Mapping[Run, str],
    clock: str,
    height: int,
    places: Mapping[str, str] | None = None,
) -> Table:
    """The runs with their progress; where there are more than `height`, those that wait are only counted.

    `places` are the machines of runs in a cluster by the runs' names; those without one wait for theirs.

    Sparklines have one scale per dataset, from the lowest to the highest return of any curve.
    """
    alive = alive if places is None else [run for run in runs if run in alive and run.name in places]
    found = {run: read_progress(Files(out, run.name).log) for run in runs}
    done = {run for run in runs if run in failures or (found[run].result is not None and run not in alive)}
    ends: dict[str, list[float]] = {}
    for run in runs:
        ends.setdefault(run.dataset, []).extend(found[run].curve)
    shown = [run for run in runs if run in alive or run in done]
    shown += [run for run in runs if run not in shown]
    shown = sorted(shown[: max(1, height)], key=runs.index) if len(runs) <= height else shown[: max(1, height)]
    table = Table(
        caption=f"{len(done)} of {len(runs)} runs done, {clock}", box=None, pad_edge=False, header_style="dim"
    )
    table.add_column("agent", no_wrap=True)
    datasets = len({run.dataset for run in runs}) > 1
    if datasets:
        table.add_column("dataset", no_wrap=True)
    for name in ("seed", *["machine"] * (places is not None), "", "steps/s", "ETA", "learning curve", "return"):
        words = name in ("machine", "", "learning curve")
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    for run in shown:
        progress = found[run]
        state: ProgressBar | Text = Text("waiting", style="dim")
        if run in failures:
            state = Text("failed", style="bold red")
        elif run in alive and progress.evaluating:
            state = Text("evaluating")
        elif run in alive or run in done:
            state = ProgressBar(100, 100 if run in done else progress.percent, width=16)
        busy = run in alive and not progress.evaluating
        curve = sparkline(progress.curve, min(ends[run.dataset], default=0), max(ends[run.dataset], default=1))
        names = [run.agent, *[run.dataset.removeprefix("ld-agents/")] * datasets, str(run.seed)]
        names += [] if places is None else [places.get(run.name, "")]
        speed, left = (progress.speed, progress.left) if busy else ("", "")
        result = (progress.result if run in done else None) or ""
        table.add_row(
            *map(Text, names), state, Text(speed), Text(left), Text(curve, style="cyan"), Text(result, style="bold")
        )
    return table
