"""Make data sets on this machine: local Minari sets under the namespace ld-agents, or from an agent of your own.

    python benchmarks/make_datasets.py hopper-medium antmaze --policies FOLDER
    python benchmarks/make_datasets.py --env Hopper-v5 --agent tqc.zip --algo TQC --noise 0.2 --steps 1000000 \\
        --id me/hopper/medium-v0 --trust

The first form follows `recipes.py`: NAME is an id, its last part, a family (antmaze, locomotion, adroit, kitchen)
or all. FOLDER holds the behaviour policies as .npz files. Sets that exist are skipped, sets that others are made of are
made first, and a killed run goes on where it was. Every set leaves a small record in results/datasets for
`report.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from files import write_json
from ld_agents.evaluation.scores import REFERENCE_SCORES, TASKS
from recording import recorder
from recording.behaviours import SB3_ALGORITHMS, Behaviour, SavedAgent, agent_class
from recording.recipes import Clone, Copy, Recipe, recipes
from recording.recorder import Demonstrations, Episode, Recording

RECORDS = Path(__file__).resolve().parent.parent / "results" / "datasets"


# -- making --------------------------------------------------------------------------------------------------------


@dataclass
class Making:
    """A data set that is being made; `checks`, `seconds` and `hashes` fill up while its episodes are read."""

    dataset_id: str
    recipe: Recipe
    steps: int | None
    seed: int
    work: Path
    executor: Executor
    bar: tqdm[Any]
    chunk_steps: int
    checks: list[dict[str, Any]] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def episodes(self) -> Iterator[Episode]:
        """All episodes of the set, part after part."""
        for index, part in enumerate(self.recipe.parts):
            steps = _share(self.steps, index, len(self.recipe.parts))
            if isinstance(part, Copy):
                yield from self.copied(part.dataset_id, steps)
            elif isinstance(part, Demonstrations):
                yield from self.recorded(part, index)
            else:
                assert steps is not None
                behaviour = self.cloned(part.dataset_id) if isinstance(part, Clone) else part
                recipe = self.recipe
                recorded = Recording(
                    recipe.env_id, behaviour, steps, recipe.env_kwargs, recipe.past_terminals, self.chunk_steps
                )
                yield from self.recorded(recorded, index)

    def recorded(self, part: Recording | Demonstrations, index: int) -> Iterator[Episode]:
        """Episodes of a part that is recorded."""
        entropy = (self.seed, zlib.crc32(self.dataset_id.encode()), index)
        self.hashes |= part.describe()["sha256"]
        yield from first_steps(self.chunks_of(part, entropy, index), part.steps)

    def chunks_of(self, part: Recording | Demonstrations, entropy: tuple[int, ...], index: int) -> Iterator[Episode]:
        """Episodes of the chunks of a part, a few steps more than the part has."""
        for file in recorder.record_part(part, entropy, self.work / f"part{index}", self.executor, self.bar):
            episodes, check, seconds = recorder.read_chunk(file)
            self.checks.append(check)
            self.seconds += seconds
            yield from episodes

    def copied(self, dataset_id: str, steps: int | None) -> Iterator[Episode]:
        """Episodes of a local set: all of them once, or repeated until there are `steps`."""
        about = _metadata(dataset_id)["ld_agents"]
        self.checks.append(about["replay_check"])
        self.hashes |= about["policy_sha256"]
        self.seconds += about["seconds"]
        stored = local_episodes(dataset_id)
        total = sum(len(episode.actions) for episode in stored)
        yield from first_steps(itertools.cycle(stored), total if steps is None else steps)

    def cloned(self, dataset_id: str) -> SavedAgent:
        """Behaviour cloning of a local set; the agent is trained once and kept beside the chunks."""
        import torch

        from ld_agents import BC, load_dataset

        file, times = self.work / "clone.zip", self.work / "clone.json"
        dataset = load_dataset(dataset_id)
        if not file.exists():
            torch.set_num_threads(1)
            started = time.perf_counter()
            agent = BC("MlpPolicy", dataset, preset="fast", seed=self.seed, device="cpu").learn()
            agent.save(self.work / "unfinished.zip")
            write_json(times, {"seconds": time.perf_counter() - started})
            os.replace(self.work / "unfinished.zip", file)
        self.seconds += json.loads(times.read_text())["seconds"]
        return SavedAgent(dataset.action_dim, file=file, algorithm="BC")


def first_steps(episodes: Iterable[Episode], steps: int) -> Iterator[Episode]:
    """Episodes until there are `steps` steps, the last one cut."""
    for episode in episodes:
        if steps <= 0:
            return
        yield episode.cut(steps)
        steps -= len(episode.actions)


def _share(steps: int | None, index: int, parts: int) -> int | None:
    return None if steps is None else steps * (index + 1) // parts - steps * index // parts


def _metadata(dataset_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((recorder.target_folder(dataset_id) / "data" / "metadata.json").read_text())
    return found


def local_episodes(dataset_id: str) -> list[Episode]:
    """The episodes of a local Minari set that this script made."""
    from minari.dataset.minari_storage import MinariStorage

    storage = MinariStorage.read(recorder.target_folder(dataset_id) / "data")
    flags = _metadata(dataset_id)["ld_agents"]["episodes"]
    return [
        Episode(*(episode[name] for name in ("observations", "actions", "rewards", "terminations")), **about)
        for episode, about in zip(storage.get_episodes(range(storage.total_episodes)), flags, strict=True)
    ]


def is_made(dataset_id: str) -> bool:
    """Whether the data set lies in the local Minari folder."""
    return (recorder.target_folder(dataset_id) / "data" / "metadata.json").exists()


def make(
    dataset_id: str,
    recipe: Recipe,
    steps: int | None = None,
    seed: int = 0,
    processes: int = 1,
    *,
    records: Path | None = None,
    chunk_steps: int = recorder.CHUNK_STEPS,
    show_progress: bool = True,
) -> None:
    """Make a data set and its record, unless they are there.

    Args:
        dataset_id: Minari id.
        recipe: with the complete paths of its files.
        steps: number of steps; None, or a recipe without a number of steps: the recipe's size.
        seed: the data are a function of dataset_id, steps, seed and chunk_steps, whatever the number of processes. On
            another kind of processor the last bit of a policy's matrix products may differ, and then all that follows.
        processes: number of processes.
        records: folder for the small record of the set; None: no record.
        chunk_steps: about so many steps are kept together when a run is killed.
        show_progress: show a progress bar.

    Raises:
        FileExistsError: a data set of that id is there, but made otherwise.
    """
    described = _description(dataset_id, recipe, steps, seed, chunk_steps)
    if is_made(dataset_id):
        _check_same(dataset_id, described)
        print(f"{dataset_id} is there", file=sys.stderr)
    else:
        _make(dataset_id, recipe, described, processes, show_progress)
    recorder.remove_work_folders(dataset_id)
    check = _metadata(dataset_id)["ld_agents"]["replay_check"]
    if not check["passed"]:
        print(f"{dataset_id}: the stored steps do not replay, so it has no reference scores: {check}", file=sys.stderr)
    if records is not None and not record_file(dataset_id, records).exists():
        write_record(dataset_id, records)


def _description(dataset_id: str, recipe: Recipe, steps: int | None, seed: int, chunk_steps: int) -> dict[str, Any]:
    """All that the data are a function of, as JSON."""
    env = recorder.make_env(recipe.env_id, **dict(recipe.env_kwargs))
    assert env.spec is not None
    return {
        "id": dataset_id,
        "env": json.loads(env.spec.to_json()),
        "past_terminals": recipe.past_terminals,
        "parts": [_describe(part) for part in recipe.parts],
        "steps": recipe.steps if steps is None or recipe.steps is None else steps,
        "chunk_steps": chunk_steps,
        "seed": seed,
        "versions": recorder.versions(),
    }


def _check_same(dataset_id: str, described: dict[str, Any]) -> None:
    """Raise where a data set was made otherwise; the versions of the libraries may differ."""
    stored = _metadata(dataset_id).get("ld_agents", {}).get("made_with", {})
    other = [key for key, value in described.items() if key != "versions" and stored.get(key) != value]
    if other:
        raise FileExistsError(
            f"{dataset_id} is there, but made with other {' and '.join(other)}. Delete it (minari delete "
            f"{dataset_id}), or choose another id."
        )


def _make(dataset_id: str, recipe: Recipe, described: dict[str, Any], processes: int, show_progress: bool) -> None:
    steps, seed, parts, chunk_steps = (described[key] for key in ("steps", "seed", "parts", "chunk_steps"))
    work = recorder.work_folder(dataset_id, described)
    to_record = [i for i, part in enumerate(recipe.parts) if not isinstance(part, Copy)]
    total = sum(_share(steps, i, len(parts)) or getattr(recipe.parts[i], "steps", 0) for i in to_record)
    statistics = recorder.Statistics()
    env = recorder.make_env(recipe.env_id)
    with (
        FileLock(work.with_suffix(".lock")),
        recorder.worker_pool(processes) as executor,
        tqdm(total=total, unit="step", unit_scale=True, desc=dataset_id, disable=not show_progress) as bar,
    ):
        if is_made(dataset_id):
            return
        making = Making(dataset_id, recipe, steps, seed, work, executor, bar, chunk_steps)

        def metadata() -> dict[str, Any]:
            check = recorder.merge_checks(making.checks) | {"versions": described["versions"]}
            reference = REFERENCE_SCORES.get(dataset_id) if check["passed"] else None
            ours = {
                "provenance": recipe.provenance,
                "demonstrations": recipe.demonstrations,
                "seed": seed,
                "original_steps": recipe.original_steps,
                "replay_check": check,
                "policy_sha256": making.hashes,
                "parts": parts,
                "behaviour": statistics.summary(),
                "seconds": round(making.seconds, 1),
                "versions": described["versions"],
                "made_with": described,
                "episodes": statistics.flags,
            }
            size = f" {statistics.steps:,} steps"
            if recipe.original_steps is not None and statistics.steps != recipe.original_steps:
                size += f" (D4RL: {recipe.original_steps:,})"
            return {
                "algorithm_name": " + ".join(dict.fromkeys(str(next(iter(part.values()))) for part in parts)),
                "description": f"{recipe.description}{size}, seed {seed}. {_KIND[recipe.provenance]}",
                "ref_min_score": None if reference is None else reference.minimum,
                "ref_max_score": None if reference is None else reference.maximum,
                "num_episodes_average_score": 100,
                "ld_agents": ours,
            }

        recorder.store(dataset_id, env, statistics.watch(making.episodes()), metadata, work)


_KIND = {
    "regenerated": "Regenerated; not D4RL's own file.",
    "stand-in": "A stand-in: not made as D4RL's set was.",
    "recorded": "Recorded from a saved agent.",
}


def _describe(part: Behaviour | Copy | Clone | Demonstrations) -> dict[str, Any]:
    if isinstance(part, Copy | Clone):
        source = _metadata(part.dataset_id)
        made_with = json.dumps(source["ld_agents"]["made_with"], sort_keys=True)
        return {
            type(part).__name__.lower(): part.dataset_id,
            "source_steps": source["total_steps"],
            "source_seed": source["ld_agents"]["seed"],
            "source_made_with": hashlib.sha256(made_with.encode()).hexdigest()[:12],
        }
    return part.describe()


def record_file(dataset_id: str, folder: Path) -> Path:
    """Where the record of a data set is."""
    return folder / f"{dataset_id.replace('/', '-')}.json"


def write_record(dataset_id: str, folder: Path) -> None:
    """Write the small record of a local data set that `report.py` reads."""
    from ld_agents import load_dataset

    dataset = load_dataset(dataset_id, download=False)
    metadata = _metadata(dataset_id)
    assert dataset.info.eval_env is not None
    record = {
        "id": dataset_id,
        "env": dataset.info.eval_env.id,
        "steps": dataset.n_steps,
        "episodes": metadata["total_episodes"],
        "sha256": dataset.content_hash,
        "description": metadata["description"],
        **{key: value for key, value in metadata["ld_agents"].items() if key not in ("made_with", "episodes")},
    }
    write_json(record_file(dataset_id, folder), record)


# -- command line --------------------------------------------------------------------------------------------------


def select(names: Sequence[str]) -> list[str]:
    """Ids of the recipes that are meant by the names, each after those that it is made of.

    Raises:
        ValueError: a name means none.
    """
    known = recipes()
    chosen: list[str] = []

    def add(dataset_id: str) -> None:
        for part in known[dataset_id].parts:
            if isinstance(part, Copy | Clone):
                add(part.dataset_id)
        if dataset_id not in chosen:
            chosen.append(dataset_id)

    for name in names:
        meant = []
        for dataset_id in known:
            _, family, last = dataset_id.removesuffix("-v0").split("/")
            if name in ("all", dataset_id, family, last, f"{family}-{last}", f"{family}/{last}"):
                meant.append(dataset_id)
        if not meant:
            raise ValueError(f"There is no recipe for {name!r}. Choose from: {', '.join(known)}; a family; or all.")
        for dataset_id in meant:
            add(dataset_id)
    return chosen


def agent_recipe(env_id: str, agent: Path, algorithm: str, noise: float, trusted: bool) -> Recipe:
    """The recipe of a data set that is recorded from an agent saved by Stable-Baselines3 or sb3-contrib.

    The agent sees the environment's own observations: one that was trained behind VecNormalize needs an environment
    that normalises.

    Raises:
        PermissionError: not `trusted`.
        FileNotFoundError: there is no such zip.
        ValueError: unknown algorithm or environment, or one that does not fit the agent.
    """
    from gymnasium.spaces import Box

    cls = agent_class(algorithm, trusted)
    if not agent.is_file():
        raise FileNotFoundError(f"There is no file {agent}. Give the zip that the agent's save() wrote.")
    env = recorder.make_env(env_id)
    for space in (env.observation_space, env.action_space):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise ValueError(f"{env_id} has {space}. Only flat observations and continuous actions are recorded.")
    if not env.action_space.is_bounded():  # type: ignore[attr-defined]
        raise ValueError(f"{env_id} has {env.action_space}. Only bounded actions are recorded.")
    try:
        saved = cls.load(agent, device="cpu")
    except Exception as error:
        raise ValueError(
            f"{agent} cannot be read as a zip of {algorithm} ({type(error).__name__}: {error})."
        ) from error
    for mine, its in ((env.observation_space, saved.observation_space), (env.action_space, saved.action_space)):
        if mine.shape != its.shape:
            raise ValueError(f"{agent} was trained with {its}, but {env_id} has {mine}. Give its own environment.")
    assert env.action_space.shape is not None
    return Recipe(
        env_id,
        "recorded",
        f"{algorithm} from {agent.name} acts in {env_id} with Gaussian action noise (standard deviation {noise:g} of "
        "half the action range).",
        [SavedAgent(env.action_space.shape[0], noise, agent, algorithm, trusted)],
        steps=100_000,
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets, families, or all")
    parser.add_argument("--policies", type=Path, metavar="DIR", help="folder with the behaviour policies")
    parser.add_argument("--steps", type=int, help="steps of each set; default: as recipes.py says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder for the records of the sets")
    own = parser.add_argument_group("from an agent of your own")
    own.add_argument("--env", help="id of its environment; module:id imports the module first")
    own.add_argument("--agent", type=Path, help="zip that its save() wrote")
    own.add_argument("--algo", choices=SB3_ALGORITHMS, help="its class")
    own.add_argument("--noise", type=float, default=0.0, help="Gaussian action noise, in halves of the action range")
    own.add_argument("--id", help="Minari id of the new set")
    own.add_argument("--trust", action="store_true", help="read the zip, which may run any code that is in it")
    options = parser.parse_args(arguments)
    given = [name for name in ("env", "agent", "algo", "id") if getattr(options, name) is not None]
    if bool(options.names) == bool(given):
        parser.error("give NAMEs, or --env, --agent, --algo and --id")
    if given and len(given) < 4:
        parser.error("--env, --agent, --algo and --id belong together")
    if options.names and options.policies is None:
        parser.error("the recipes need the behaviour policies: --policies FOLDER")
    if (options.steps is not None and options.steps < 1) or options.processes < 1:
        parser.error("--steps and --processes must be at least 1")
    if options.seed < 0 or options.noise < 0:
        parser.error("--seed and --noise must be at least 0")
    if options.names and (options.noise or options.trust):
        parser.error("--noise and --trust belong to an agent of your own")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what the command line asks for."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    options = parse_arguments(arguments)
    previous = signal.signal(signal.SIGTERM, interrupt)
    sys.path.insert(1, os.getcwd())  # modules that register an environment are looked for where the command was typed
    try:
        if options.names:
            for dataset_id in select(options.names):
                recipe = recipes(options.policies)[dataset_id]
                make(dataset_id, recipe, options.steps, options.seed, options.processes, records=options.records)
        else:
            if options.id in TASKS or options.id.startswith(("D4RL/", "mujoco/", "ld-agents/")):
                raise ValueError(
                    f"{options.id} is the id of a published data set. Choose one of your own: me/hopper-v0."
                )
            recipe = agent_recipe(options.env, options.agent, options.algo, options.noise, options.trust)
            make(options.id, recipe, options.steps, options.seed, options.processes)
    except (ValueError, OSError) as error:
        sys.exit(f"make_datasets.py: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    main()
