"""What identifies a run: specs of agents and datasets such as `LDCQ[prior=gaussian,horizon=10]`, and its files."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ld_agents
from ld_agents import images, latent_diffuser_settings, ldcq_settings
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.evaluation.scores import TASKS, family

SCHEMA = 1  # of the run files
# Settings of agents that their training does not depend on.
ACTING = {
    "LDCQ": ldcq_settings.ACTING_SETTINGS,
    "LatentDiffuser": latent_diffuser_settings.ACTING_SETTINGS,
}


@dataclass(frozen=True)
class Run:
    """What identifies a run. `agent` and `dataset` are specs such as `LDCQ[prior=gaussian,horizon=10]`."""

    agent: str
    dataset: str
    seed: int
    preset: str
    budget: float
    episodes: int

    @property
    def name(self) -> str:
        """Name of the run's files without the suffix; different runs have different names.

        What a slug leaves open, such as a slash or a hyphen, a digest tells. The benchmark's own names need none.
        """
        parts = self.agent, self.dataset, self.preset
        names = [*map(slug, parts), f"b{self.budget:g}", f"seed{self.seed}"]
        plain = re.fullmatch(r"[a-zA-Z0-9]+(\[[\w=.,-]*\])?", self.agent) and float(f"{self.budget:g}") == self.budget
        if self.dataset not in TASKS or not plain:
            names.append(hashlib.sha256(json.dumps([*parts, self.budget]).encode()).hexdigest()[:8])
        return "__".join(names)


def bases(run: Run) -> list[Run]:
    """Runs of which this one can take over what they learned, the most of it first; see `run_one.taken_over`."""
    name, settings = parse_spec(run.agent)
    trained = {key: value for key, value in settings.items() if key not in ACTING.get(name, ())}
    agents = [spelled(name, trained)] + [f"{name}[guidance=none]"] * (name == "LatentDiffuser" and run.budget == 1)
    return [replace(run, agent=agent) for agent in agents if agent != run.agent]


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split `Name[key=value,...]` into its name and its settings; values that are not JSON are strings."""
    match = re.fullmatch(r"\s*([^\[\]]+?)\s*(?:\[(.*)\])?\s*", spec, flags=re.DOTALL)
    if match is None:
        raise ValueError(f"cannot read {spec!r}; write Name or Name[setting=value,setting=value]")
    settings = {}
    for item in _split_at_commas(match[2] or ""):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key.isidentifier():
            raise ValueError(f"cannot read {item!r} in {spec!r}; write setting=value")
        if key in settings:
            raise ValueError(f"{key!r} is given twice in {spec!r}")
        settings[key] = _value(value)
    return match[1], settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def canonical_spec(spec: str) -> str:
    """The one spelling of a spec: no spaces, settings in alphabetical order."""
    return spelled(*parse_spec(spec))


def spelled(name: str, settings: Mapping[str, Any]) -> str:
    """The spec of a name and its settings."""
    items = []
    for key, value in sorted(settings.items()):
        # A text stands without quotation marks where it is read as the same text.
        bare = isinstance(value, str) and _split_at_commas(value) == [value] and _value(value.strip()) == value
        items.append(f"{key}={value if bare else json.dumps(value, separators=(',', ':'))}")
    return f"{name}[{','.join(items)}]" if items else name


def _split_at_commas(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotation marks."""
    items, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        depth += 0 if quoted else (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quoted:
            items.append("")
        else:
            items[-1] += character
    return [item for item in items if item.strip()]


def slug(text: str) -> str:
    """`text` as a part of a file name."""
    text = text.removesuffix("]").replace("[", "-").replace("/", "-").replace(":", ".")
    return re.sub(r"[^A-Za-z0-9_=,.+-]", lambda character: f"%{ord(character[0]):02x}", text)


def agent_class(name: str) -> Any:
    """The class called `name`: a public name of ld_agents, or `module:Class` of any importable module."""
    module_name, colon, class_name = name.rpartition(":")
    module = importlib.import_module(module_name) if colon else ld_agents
    if not hasattr(module, class_name):
        hint = "" if colon else "; agents of your own are given as module:Class"
        raise ValueError(f"{module.__name__} has no agent {class_name!r}{hint}")
    return getattr(module, class_name)


def resolved_settings(agent: str, preset: str, family_of_data: str | None) -> Any:
    """The settings that a spec of an agent resolves to; None for an agent that is none of this library.

    Raises:
        Exception: what importing a module of the user's own or a wrong name or setting raises.
    """
    name, settings = parse_spec(agent)
    cls = agent_class(name)
    if not issubclass(cls, OfflineAlgorithm):
        return None
    apart = {"cpu_bf16"} | (images.NAMES if issubclass(cls, images.ImageAgent) else set())
    of_agent = {key: value for key, value in settings.items() if key not in apart}
    return cls._resolve("fast" if preset == "default" else preset, family_of_data, of_agent)[0]


def settings_today(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the agent of a run file would be set to if it learned today; nothing for an agent from elsewhere."""
    data = run["dataset"]
    if ":" in run["agent"].partition("[")[0]:  # a file must not decide which modules are imported
        return {}
    try:
        resolved = resolved_settings(run["agent"], run["preset"], family(str(data.get("name", data["id"]))))
    except (ValueError, TypeError):  # no agent of ours, or settings that it no longer has
        return {}
    today: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(resolved)))
    return today


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings with other values in the first than in the second, of those that both have."""
    return {
        name: (first[name], second[name])
        for name in sorted(first.keys() & second.keys())
        if first[name] != second[name]
    }


def import_modules(names: Sequence[str]) -> None:
    """Import modules that register environments; they, and agents of your own, may lie where the command was typed."""
    sys.path.insert(1, os.getcwd())
    for name in names:
        importlib.import_module(name)


def load_dataset(spec: str) -> Any:
    """The dataset of a spec; settings in brackets go to `ld_agents.load_dataset`."""
    name, settings = parse_spec(spec)
    return ld_agents.load_dataset(name, **settings)


class Files:
    """Where a run's files are."""

    def __init__(self, out: Path, name: str) -> None:
        self.result = out / "runs" / f"{name}.json"
        self.checkpoint = out / "checkpoints" / f"{name}.ckpt"
        self.model = out / "models" / f"{name}.zip"
        self.failure = out / "failures" / f"{name}.json"
        self.lock = out / "locks" / f"{name}.lock"
        self.log = out / "logs" / f"{name}.log"
