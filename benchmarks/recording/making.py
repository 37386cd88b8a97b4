"""Making a dataset from its recipe: its parts one after the other, its metadata, and the record of it in results/."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from files import write_json
from ld_agents.data.recording import (
    Episode,
    Map,
    Part,
    merge_checks,
    read_metadata,
    recorded_chunks,
    store,
    versions,
    work_folder,
    worker_pool,
)
from ld_agents.data.storage import dataset_folder, is_local
from ld_agents.evaluation.scores import REFERENCE_SCORES
from recording.behaviors import Behavior, SavedAgent
from recording.recipes import Clone, Copy, Recipe
from recording.recorder import CHUNK_STEPS, Demonstrations, Recording, make_env


def make(
    dataset_id: str,
    recipe: Recipe,
    steps: int | None = None,
    seed: int = 0,
    processes: int = 1,
    *,
    records: Path | None = None,
    chunk_steps: int = CHUNK_STEPS,
    show_progress: bool = True,
) -> None:
    """Make a dataset and its record, unless they exist.

    Args:
        dataset_id: Minari id.
        recipe: with the complete paths of its files.
        steps: number of steps; None, or a recipe without a number of steps: the recipe's size.
        seed: the data are a function of dataset_id, steps, seed and chunk_steps, whatever the number of processes. On
            another kind of processor the last bit of a policy's matrix products may differ, and then all that follows.
        processes: number of processes.
        records: folder for the small record of the set, which `report.py` reads; None: no record.
        chunk_steps: steps of a chunk, about; a killed run resumes after its last complete chunk.
        show_progress: show a progress bar.

    Raises:
        FileExistsError: a dataset of that id exists, but was made differently.
    """
    described = _description(dataset_id, recipe, steps, seed, chunk_steps)
    total = described["steps"] or sum(getattr(part, "steps", 0) for part in recipe.parts) or None
    with work_folder(dataset_id, described) as work, worker_pool(processes) as run:
        if is_local(dataset_id):
            _check_same(dataset_id, described)
            print(f"{dataset_id} exists", file=sys.stderr)
        else:
            with tqdm(total=total, unit="step", unit_scale=True, desc=dataset_id, disable=not show_progress) as bar:
                making = _Making(dataset_id, recipe, described, work, run, bar)
                store(dataset_id, make_env(recipe.env_id), making.episodes(), making.metadata, work)
    check = read_metadata(dataset_id)["ld_agents"]["replay_check"]
    if not check["passed"]:
        print(f"{dataset_id}: the stored steps do not replay, so it has no reference scores: {check}", file=sys.stderr)
    if records is not None:
        file = records / f"{dataset_id.replace('/', '-')}.json"
        if not file.exists():
            write_json(file, _record(dataset_id))


@dataclass
class _Making:
    """A dataset that is being made; what follows `bar` fills up as its episodes are read."""

    dataset_id: str
    recipe: Recipe
    described: dict[str, Any]
    work: Path
    run: Map
    bar: tqdm[Any]
    checks: list[dict[str, Any]] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    returns: list[float] = field(default_factory=list)
    flags: list[dict[str, bool | None]] = field(default_factory=list)

    def episodes(self) -> Iterator[Episode]:
        """All episodes of the set, part after part, which share the steps equally."""
        given, total = self.recipe.parts, self.described["steps"]
        parts = [stage for part in given for stage in (part.stages if isinstance(part, Behavior) else [part])]
        for index, part in enumerate(parts):
            steps = None if total is None else total * (index + 1) // len(parts) - total * index // len(parts)
            for episode in self.copied(part, steps) if isinstance(part, Copy) else self.recorded(part, index, steps):
                self.steps += len(episode.actions)
                # An agent's episode would have ended at its first terminal.
                ends = np.flatnonzero(episode.terminals)
                self.returns.append(float(episode.rewards[: ends[0] + 1 if len(ends) else None].sum()))
                self.flags.append({name: getattr(episode, name) for name in ("success", "reached", "whole")})
                self.bar.update(len(episode.actions))
                yield episode

    def recorded(self, part: Behavior | Clone | Demonstrations, index: int, steps: int | None) -> Iterator[Episode]:
        """Episodes of a part that is recorded."""
        recorded: Part
        if isinstance(part, Demonstrations):
            recorded = part
        else:
            assert steps is not None
            part, recipe = self.cloned(part.dataset_id) if isinstance(part, Clone) else part, self.recipe
            chunk_steps = self.described["chunk_steps"]
            recorded = Recording(recipe.env_id, part, steps, recipe.env_kwargs, recipe.past_terminals, chunk_steps)
        self.hashes |= part.describe()["sha256"]
        name = self.recipe.seeded_as or self.dataset_id
        entropy = (self.described["seed"], zlib.crc32(name.encode()), index)

        def episodes() -> Iterator[Episode]:
            for found, check, seconds in recorded_chunks(recorded, entropy, self.work / f"part{index}", self.run):
                self.checks.append(check)
                self.seconds += seconds
                yield from found

        return _first_steps(episodes(), recorded.steps)

    def copied(self, part: Copy, steps: int | None) -> Iterator[Episode]:
        """Episodes of a local set that was made here: all of them once, or repeated until there are `steps`."""
        from minari.dataset.minari_storage import MinariStorage

        about = read_metadata(part.dataset_id)["ld_agents"]
        self.checks.append(about["replay_check"])
        self.hashes |= about["policy_sha256"]
        self.seconds += about["seconds"]
        storage = MinariStorage.read(dataset_folder(part.dataset_id) / "data")
        found = zip(storage.get_episodes(range(storage.total_episodes)), about["episodes"], strict=True)
        stored = [
            Episode(*(rows[name] for name in ("observations", "actions", "rewards", "terminations")), **flags)
            for rows, flags in found
        ]
        total = sum(len(episode.actions) for episode in stored)
        return _first_steps(itertools.cycle(stored), total if steps is None else steps)

    def cloned(self, dataset_id: str) -> SavedAgent:
        """Behavior cloning of a local set; the agent is trained once and kept beside the chunks."""
        import torch

        from ld_agents import BC, load_dataset

        file, times = self.work / "clone.zip", self.work / "clone.json"
        dataset = load_dataset(dataset_id)
        if not file.exists():
            torch.set_num_threads(1)
            started = time.perf_counter()
            agent = BC("MlpPolicy", dataset, preset="fast", seed=self.described["seed"], device="cpu").learn()
            write_json(times, {"seconds": time.perf_counter() - started})
            agent.save(file)
        self.seconds += json.loads(times.read_text())["seconds"]
        return SavedAgent(dataset.action_dim, file=file, algorithm="BC")

    def metadata(self) -> dict[str, Any]:
        """The metadata, after all episodes were read."""
        recipe, described = self.recipe, self.described
        check = merge_checks(self.checks) | {"versions": described["versions"]}
        reference = REFERENCE_SCORES.get(self.dataset_id) if check["passed"] else None
        size = f" {self.steps:,} steps"
        if recipe.original_steps is not None and self.steps != recipe.original_steps:
            size += f" (D4RL: {recipe.original_steps:,})"
        return {
            "algorithm_name": " + ".join(dict.fromkeys(str(next(iter(part.values()))) for part in described["parts"])),
            "code_permalink": "benchmarks/make_datasets.py",
            "description": f"{recipe.description}{size}, seed {described['seed']}. {_KIND[recipe.provenance]}",
            "ref_min_score": None if reference is None else reference.minimum,
            "ref_max_score": None if reference is None else reference.maximum,
            "num_episodes_average_score": 100,
            "ld_agents": {
                "provenance": recipe.provenance,
                "demonstrations": recipe.demonstrations,
                "seed": described["seed"],
                "original_steps": recipe.original_steps,
                "replay_check": check,
                "policy_sha256": self.hashes,
                "parts": described["parts"],
                "behaviour": self.achieved(),
                "seconds": round(self.seconds, 1),
                "versions": described["versions"],
                "made_with": described,
                "episodes": self.flags,
            },
        }

    def achieved(self) -> dict[str, Any]:
        """Returns and rates of the behavior over whole episodes, None where there are none."""
        whole = [i for i, flags in enumerate(self.flags) if flags["whole"]]
        returns = [self.returns[i] for i in whole]

        def rate(name: str) -> float | None:
            values = [self.flags[i][name] for i in whole]
            return float(np.mean(values)) if values and None not in values else None  # type: ignore[arg-type]

        own_target = rate("reached")
        return {
            "mean_return": float(np.mean(returns)) if returns else None,
            "std_return": float(np.std(returns)) if returns else None,
            "success_rate": rate("success"),
            "episodes": len(returns),
            **({} if own_target is None else {"own_target_rate": own_target}),
        }


_KIND = {
    "regenerated": "Regenerated; not D4RL's own file.",
    "stand-in": "A stand-in: not made as D4RL's set was.",
    "recorded": "Recorded here, after no published recipe.",
}


def _first_steps(episodes: Iterable[Episode], steps: int) -> Iterator[Episode]:
    """Episodes until there are `steps` steps, the last one cut."""
    for episode in episodes:
        if steps <= 0:
            return
        yield episode.cut(steps)
        steps -= len(episode.actions)


def _description(dataset_id: str, recipe: Recipe, steps: int | None, seed: int, chunk_steps: int) -> dict[str, Any]:
    """All that the data are a function of, as JSON."""
    spec = make_env(recipe.env_id, **dict(recipe.env_kwargs)).spec
    assert spec is not None
    return {
        "id": dataset_id,
        "env": {key: value for key, value in json.loads(spec.to_json()).items() if key != "entry_point"},
        "past_terminals": recipe.past_terminals,
        "parts": [_described(part) for part in recipe.parts],
        "steps": recipe.steps if steps is None or recipe.steps is None else steps,
        "chunk_steps": chunk_steps,
        "seed": seed,
        "versions": versions(),
    }


def _described(part: Behavior | Copy | Clone | Demonstrations) -> dict[str, Any]:
    if not isinstance(part, Copy | Clone):
        return part.describe()
    source = read_metadata(part.dataset_id)
    made_with = json.dumps(source["ld_agents"]["made_with"], sort_keys=True)
    return {
        type(part).__name__.lower(): part.dataset_id,
        "source_steps": source["total_steps"],
        "source_seed": source["ld_agents"]["seed"],
        "source_made_with": hashlib.sha256(made_with.encode()).hexdigest()[:12],
    }


def _check_same(dataset_id: str, described: dict[str, Any]) -> None:
    """Raise where a dataset was made otherwise; the versions of the libraries may differ."""
    stored = read_metadata(dataset_id).get("ld_agents", {}).get("made_with", {})
    stored.get("env", {}).pop("entry_point", None)  # where the code of the environment was then
    other = [key for key, value in described.items() if key != "versions" and stored.get(key) != value]
    if other:
        raise FileExistsError(
            f"{dataset_id} exists, but was made with different {' and '.join(other)}. Delete it (minari delete "
            f"{dataset_id}), or choose another id."
        )


def _record(dataset_id: str) -> dict[str, Any]:
    """The small record of a local dataset."""
    from ld_agents import load_dataset

    dataset, metadata = load_dataset(dataset_id, download=False), read_metadata(dataset_id)
    return {
        "id": dataset_id,
        "env": json.loads(metadata["eval_env_spec"])["id"],
        "steps": dataset.n_steps,
        "episodes": metadata["total_episodes"],
        "sha256": dataset.content_hash,
        "description": metadata["description"],
        **{key: value for key, value in metadata["ld_agents"].items() if key not in ("made_with", "episodes")},
    }
