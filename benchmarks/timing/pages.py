"""A page of results: the JSON file that keeps the numbers, the page made from it, and whether both still hold."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ld_agents
import provenance
from files import write_json, write_text

SCHEMA = 2
Result = dict[str, Any]

# Settings of any agent that decide how long an action or a gradient step takes. The check of the pages compares these
# with today's presets; whatever else is tuned, the pages stay true.
TIMED_SETTINGS = {
    *("latent_dim", "horizon", "exec_horizon", "solver", "solver_steps"),
    *("vae_hidden", "decoder", "prior", "denoiser_hidden", "denoiser_widths", "critic_hidden", "critic_latent_hidden"),
    *("diffusion_steps", "extra_steps", "candidates_acting", "redraw_at_predicted_state"),
    *(
        "steps_per_latent",
        "steps_per_token",
        "width",
        "blocks",
        "heads",
        "return_inputs",
        "denoiser_width",
        "denoiser_multipliers",
    ),
    *("denoiser_blocks", "denoiser_activation", "energy_hidden", "energy_layers", "guidance", "solver_grid"),
    *("n_candidates", "return_steps", "return_scale", "plan_return"),
    *("hidden", "batch_size", "actor_delay", "critic_layer_norm", "dropout", "n_actions"),
    *("max_target_backup", "target_action_gap"),
}


def timed_settings(settings: Mapping[str, Any]) -> Result:
    """Those of an agent's settings that decide how long it takes, as JSON has them."""
    return json.loads(json.dumps({name: value for name, value in settings.items() if name in TIMED_SETTINGS}))


def preset_settings(*presets: str) -> dict[str, Result]:
    """`timed_settings` of presets, which are named as in "LDCQ fast"."""
    classes = {preset: getattr(ld_agents, preset.split()[0]) for preset in presets}
    return {
        preset: timed_settings(dataclasses.asdict(agent.presets()[preset.split()[1]]))
        for preset, agent in classes.items()
    }


def differences(then: Mapping[str, Result], now: Mapping[str, Result]) -> list[str]:
    """Settings of presets that have changed: "LDCQ fast: horizon was 20, is 30"."""
    return [
        f"{preset}: {name} was {settings.get(name)}, is {now[preset].get(name)}"
        for preset, settings in then.items()
        for name in sorted(now[preset])
        if settings.get(name) != now[preset][name]
    ]


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
    return f"{float(f'{value:.3g}'):,.10g}" if isinstance(value, float) else str(value)


def duration(seconds: Sequence[float]) -> str:
    """The median in a fitting unit, or a dash where nothing was measured."""
    if not seconds:
        return _cell(None)
    median = float(np.median(seconds))
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)) if median >= s), ("ns", 1e-9))
    return f"{_cell(median / size)} {unit}"


def size(n_bytes: Sequence[float]) -> str:
    """The median in MB, or a dash where nothing was measured."""
    return f"{_cell(float(np.median(n_bytes)) / 1e6)} MB" if n_bytes else _cell(None)


def listed(settings: Mapping[str, Any]) -> str:
    values = {name: f"{value:,}" if type(value) is int else str(value) for name, value in settings.items()}
    return ", ".join(f"{name} {value}" for name, value in values.items())


@dataclass(frozen=True)
class Page:
    """results/FILE.md, and results/FILE.json that it is made from.

    Args:
        file: its name.
        doc: docstring of the module that measures. Its first line is the title of the page, the rest its text.
        again: arguments of `time_agents.py` that measure it again.
        cells: the rows of the page's table.
    """

    file: str
    doc: str
    again: str
    cells: Callable[[Result], Iterable[Mapping[str, Any]]]

    def write(self, folder: Path, **measured: Any) -> str:
        """Keep what was measured, and on what. Returns the page.

        Args:
            folder: of the two files.
            **measured: `commit` when measuring began, `how` it was done, `rows` for `cells`, `sizes`, and `settings`,
                the `timed_settings` by preset.
        """
        result = {
            "schema": SCHEMA,
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "hardware": provenance.hardware(torch.device("cpu")),
            "versions": provenance.versions(),
            **measured,
        }
        write_json(folder / f"{self.file}.json", result)
        return self.render(folder)

    def render(self, folder: Path) -> str:
        """Rewrite the page from the stored numbers."""
        page = self.page(json.loads((folder / f"{self.file}.json").read_text()))
        write_text(folder / f"{self.file}.md", page)
        return page

    def page(self, result: Result) -> str:
        """The Markdown page of a result as it is read from its file."""
        title, _, text = self.doc.partition("\n\n")
        hardware, versions = result["hardware"], result["versions"]
        commit, plus, changes = (result["commit"] or "unknown").partition("+")
        presets = [f"- `{preset}`: {listed(settings)}" for preset, settings in result["settings"].items()]
        parts = [
            f"# {title.strip('.')}",
            f"Measured at commit {commit[:12]}{plus}{changes} on {result['made'][:10]}: {hardware['cpu']}, "
            f"{hardware['threads']} thread, Python {versions['python']}, torch {versions['torch']}, numpy "
            f"{versions['numpy']}. {result['how']} `python benchmarks/time_agents.py {self.again}` measures it again.",
            text.strip(),
            markdown(self.cells(result)),
            f"Measured: {listed(result['sizes'])}.",
            "\n".join(["Settings:", "", *presets]),
        ]
        return "\n\n".join(parts) + "\n"

    def problems(self, folder: Path) -> list[str]:
        """What is wrong with the page in `folder`: it is not that of its JSON file, or presets have changed since."""
        source, page = folder / f"{self.file}.json", folder / f"{self.file}.md"
        again = f"python benchmarks/time_agents.py {self.again}"
        try:
            result = json.loads(source.read_text())
            same = result["schema"] == SCHEMA and page.read_bytes() == self.page(result).encode()
            presets = preset_settings(*result["settings"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            return [f"{source.name} or {page.name} cannot be used ({error!r}): run `{again}`"]
        found = [f"{source.name}: {change}: run `{again}`" for change in differences(result["settings"], presets)]
        if not same:
            found.append(f"{page.name} is not that of {source.name}: run `python benchmarks/time_agents.py --render`")
        return found
