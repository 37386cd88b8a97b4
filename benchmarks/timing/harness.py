"""Variants measured in turns on one thread, the JSON file that keeps the numbers, and the page made from it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import ld_agents
import provenance
from files import write_json, write_text
from ld_agents import OfflineDataset

SCHEMA = 2
Result = dict[str, Any]

# What decides how long an action or a gradient step takes, of any agent. The check of the pages compares these with
# today's presets; whatever else is tuned, the pages stay true.
TIMED_SETTINGS = {
    *("latent_dim", "horizon", "exec_horizon", "solver", "solver_steps"),
    *("vae_hidden", "decoder", "prior", "denoiser_hidden", "denoiser_widths", "critic_hidden", "critic_latent_hidden"),
    *("diffusion_steps", "extra_steps", "candidates_acting", "redraw_at_predicted_state"),
    *("steps_per_latent", "width", "blocks", "heads", "return_inputs", "denoiser_width", "denoiser_multipliers"),
    *("denoiser_blocks", "denoiser_activation", "energy_hidden", "energy_layers", "guidance", "solver_grid"),
    *("n_candidates", "return_steps", "return_scale", "plan_return"),
    *("hidden", "batch_size", "actor", "actor_delay", "actor_layer_norm", "critic_layer_norm", "dropout", "n_actions"),
    *("max_target_backup", "target_action_gap"),
}


# Measuring


def random_dataset(steps: int, state_dim: int = 4, action_dim: int = 2, episode_steps: int = 80) -> OfflineDataset:
    """Random numbers in the shape of PointMaze, or another: full episodes that end by timeout."""
    generator = np.random.default_rng(0)
    timeouts = np.arange(1, steps + 1) % episode_steps == 0
    episodes = int(timeouts.sum()) + int(not timeouts[-1])
    return OfflineDataset(
        generator.standard_normal((steps, state_dim), np.float32),
        generator.random((steps, action_dim), np.float32) * 2 - 1,
        generator.standard_normal(steps, np.float32),
        np.zeros(steps, bool),
        timeouts,
        final_observations=generator.standard_normal((episodes, state_dim), np.float32),
    )


def clock_of(device: str) -> Callable[[], float]:
    """Seconds of CPU time, to which other programs add nothing; on a GPU, whose work it leaves out, wall-clock time."""
    return time.process_time if device == "cpu" else time.perf_counter


def in_turn(
    variants: Mapping[Any, Callable[[], Any]],
    repetitions: int,
    clock: Callable[[], float] = time.process_time,
    warm_up: int = 1,
) -> dict[Any, list[float]]:
    """Seconds of each repetition of each variant. The variants take turns, so that a slow spell hits all of them.

    The first `warm_up` rounds, which fill caches and compile, do not count.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in variants}
    for repetition in tqdm(range(-warm_up, repetitions), leave=False, disable=not sys.stderr.isatty()):
        for name, run in variants.items():
            started = clock()
            run()
            if repetition >= 0:
                seconds[name].append(clock() - started)
    return seconds


def versus(
    name: str, unit: str, straightforward: Iterable[float], ours: Iterable[float], required: float | None = None
) -> Result:
    """A row that compares two variants. Seconds per `unit`, one number per repetition; the ratio is one of medians."""
    seconds = {"straightforward": [float(s) for s in straightforward], "ours": [float(s) for s in ours]}
    ratio = float(np.median(seconds["straightforward"]) / np.median(seconds["ours"]))
    return {"name": name, "unit": unit, "seconds": seconds, "ratio": ratio, "required": required}


def milliseconds(seconds: Sequence[float]) -> Result:
    """Median and 95 % quantile."""
    return {"median": 1000 * float(np.median(seconds)), "p95": 1000 * float(np.percentile(seconds, 95))}


def check(name: str, value: float, limit: float) -> Result:
    """`value` must not exceed `limit`. Shows that the variants of a comparison do the same."""
    return {"name": name, "value": value, "limit": limit, "passed": bool(value <= limit)}


def timed_settings(settings: Any) -> Result:
    """Those of an agent's settings that decide how long it takes, as JSON has them."""
    chosen = {name: value for name, value in dataclasses.asdict(settings).items() if name in TIMED_SETTINGS}
    return json.loads(json.dumps(chosen))


def preset_settings(*presets: str) -> dict[str, Result]:
    """`timed_settings` of presets, which are named as in "LDCQ fast"."""
    classes = {preset: getattr(ld_agents, preset.split()[0]) for preset in presets}
    return {preset: timed_settings(agent.presets()[preset.split()[1]]) for preset, agent in classes.items()}


# Pages


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with the keys of the first row as its head. Columns of numbers stand to the right, in three digits."""
    rows = list(rows)
    number = {name: all(type(row[name]) in (int, float, type(None)) for row in rows) for name in rows[0]}
    head = [list(number), ["---:" if right else "---" for right in number.values()]]
    lines = [*head, *([_cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{float(f'{value:.3g}'):,.10g}" if isinstance(value, float) else str(value)


def duration(seconds: Sequence[float]) -> str:
    """The median in a fitting unit."""
    median = float(np.median(seconds))
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if median >= s), ("ns", 1e-9))
    return f"{_cell(median / size)} {unit}"


@dataclass(frozen=True)
class Timing:
    """Something that is timed, and its page.

    Args:
        name: what `time_agents.py` calls it.
        file: results/FILE.json and results/FILE.md.
        doc: docstring of the module. Its first line is the title of the page, the rest its text.
        sizes: how much is measured, the keyword arguments of `measure`.
        quick: of these, what suffices to see that everything runs.
        measure: returns `rows`, the `settings` that were measured (`preset_settings`), and maybe `checks`.
        cells: the rows of the page's table.
    """

    name: str
    file: str
    doc: str
    sizes: Mapping[str, Any]
    quick: Mapping[str, Any]
    measure: Callable[..., Result]
    cells: Callable[[Result], Iterable[Mapping[str, Any]]]

    def run(self, sizes: Mapping[str, Any], **inputs: Any) -> Result:
        """Measure, with `sizes` in place of some of the usual ones. Ready for JSON."""
        torch.set_num_threads(1)
        sizes = {**self.sizes, **sizes}
        commit, measured = provenance.source_commit(), self.measure(**sizes, **inputs)
        device = "cuda" if any(row.get("device") == "cuda" for row in measured["rows"]) else "cpu"
        return {
            "schema": SCHEMA,
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit,
            "how": "CPU time, or wall-clock time on a GPU; variants in turn.",
            "hardware": provenance.hardware(torch.device(device)),
            "versions": provenance.versions(),
            "sizes": sizes,
            **measured,
        }

    def write(self, result: Result, folder: Path) -> str:
        """The two files. Returns the page."""
        write_json(folder / f"{self.file}.json", result)
        return self.write_page(folder)

    def write_page(self, folder: Path) -> str:
        page = self.page(json.loads((folder / f"{self.file}.json").read_text()))
        write_text(folder / f"{self.file}.md", page)
        return page

    def page(self, result: Result) -> str:
        """The Markdown page of a result as it is read from its file."""
        title, _, text = self.doc.partition("\n\n")
        hardware, versions = result["hardware"], result["versions"]
        gpu = f", {hardware['gpu']}" if hardware["gpu"] else ""
        commit, plus, changes = (result["commit"] or "unknown").partition("+")
        listed = [f"- `{preset}`: {_listed(settings)}" for preset, settings in result["settings"].items()]
        checks = [
            {"check": c["name"], "value": float(f"{c['value']:.2g}"), "at most": c["limit"], "passed": c["passed"]}
            for c in result.get("checks", [])
        ]
        parts = [
            f"# {title.strip('.')}",
            f"Measured at commit {commit[:12]}{plus}{changes} on {result['made'][:10]}: {hardware['cpu']}{gpu}, "
            f"{hardware['threads']} thread, Python {versions['python']}, torch {versions['torch']}, numpy "
            f"{versions['numpy']}. {result['how']} `python benchmarks/time_agents.py {self.name}` measures it again.",
            text.strip(),
            markdown(self.cells(result)),
            markdown(checks) if checks else "",
            f"Measured: {_listed(result['sizes'])}.",
            "\n".join(["Settings:", "", *listed]) if listed else "",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def problems(self, folder: Path) -> list[str]:
        """What is wrong with the page in `folder`: it is not that of its JSON file, or presets have changed since."""
        source, page = folder / f"{self.file}.json", folder / f"{self.file}.md"
        again = f"python benchmarks/time_agents.py {self.name}"
        try:
            result = json.loads(source.read_text())
            same = result["schema"] == SCHEMA and page.read_bytes() == self.page(result).encode()
            presets = preset_settings(*result["settings"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            return [f"{source.name} or {page.name} cannot be used ({error!r}): run `{again}`"]
        found = [] if same else [f"{page.name} is not the page of {source.name}: run `{again} --render`"]
        for preset, measured in result["settings"].items():
            for name in sorted(measured.keys() | presets[preset].keys()):
                then, now = measured.get(name), presets[preset].get(name)
                if then != now:
                    found.append(f"{source.name}: {preset} was measured with {name} {then}, now {now}: run `{again}`")
        return found


def _listed(settings: Mapping[str, Any]) -> str:
    values = {name: f"{value:,}" if type(value) is int else str(value) for name, value in settings.items()}
    return ", ".join(f"{name} {value}" for name, value in values.items())
