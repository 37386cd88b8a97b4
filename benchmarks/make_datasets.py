"""Make datasets on this machine: local Minari sets under the namespace ld-agents, or from an agent of your own.

    python benchmarks/make_datasets.py hopper-medium walker2d-medium-replay
    python benchmarks/make_datasets.py antmaze hopper-expert --policies FOLDER
    python benchmarks/make_datasets.py --env Hopper-v5 --agent tqc.zip --algo TQC --noise 0.2 --steps 1000000 \\
        --id me/hopper/medium-v0 --trust

The first two follow `recording/recipes.py`: NAME is an id, its last part, a family (antmaze, locomotion, adroit,
kitchen) or all. FOLDER holds, as .npz files, the behavior policies of other projects; those of this one are in
`benchmarks/policies`. Sets that exist are skipped, sets that others are made of are made first, and a killed run
resumes. Every set leaves a small record in results/datasets for `report.py`.

Three tasks are not of data: `--train-sac hopper` trains the SAC agent whose actors are in `benchmarks/policies`;
`--reference-scores --policies FOLDER` measures what random actions and the best recording policies return, and
`--simulator --policies FOLDER` what the latter return on the version of MuJoCo that is installed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ld_agents.evaluation.scores import TASKS
from recording import reference_policies, train_sac
from recording.behaviors import SB3_ALGORITHMS, SavedAgent, agent_class
from recording.making import make
from recording.recipes import Clone, Copy, Recipe, recipes
from recording.recorder import make_env

RECORDS = Path(__file__).resolve().parent.parent / "results" / "datasets"


def select(names: Sequence[str]) -> list[str]:
    """Ids of the recipes that the names stand for, each after those that it is made of.

    Experts with noise are only meant where they are named.

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
            _, family, last = re.sub(r"-v\d+$", "", dataset_id).split("/")
            several = ("all", family) if not last.endswith("-noised") else ()
            if name in (*several, dataset_id, last, f"{family}-{last}", f"{family}/{last}"):
                meant.append(dataset_id)
        if not meant:
            raise ValueError(f"There is no recipe for {name!r}. Choose from: {', '.join(known)}; a family; or all.")
        for dataset_id in meant:
            add(dataset_id)
    return chosen


def agent_recipe(env_id: str, agent: Path, algorithm: str, noise: float, trusted: bool) -> Recipe:
    """The recipe of a dataset that is recorded from an agent saved by Stable-Baselines3 or sb3-contrib.

    The agent sees the environment's own observations: one that was trained behind VecNormalize needs an environment
    that normalizes.

    Raises:
        PermissionError: not `trusted`.
        FileNotFoundError: there is no such zip.
        ValueError: unknown algorithm or environment, or one that does not fit the agent.
    """
    from gymnasium.spaces import Box

    cls = agent_class(algorithm, trusted)
    if not agent.is_file():
        raise FileNotFoundError(f"There is no file {agent}. Give the zip that the agent's save() wrote.")
    env = make_env(env_id)
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
    parser.add_argument("names", nargs="*", metavar="NAME", help="datasets, families, or all")
    parser.add_argument(
        "--policies", type=Path, metavar="DIR", default=Path(), help="folder with the behavior policies"
    )
    before = parser.add_mutually_exclusive_group()
    before.add_argument("--train-sac", action="store_true", help="train the agents of the robots NAME; default: all")
    before.add_argument("--reference-scores", action="store_true", help="measure the tasks NAME; default: all")
    before.add_argument("--simulator", action="store_true", help="measure the tasks NAME on this MuJoCo; default: all")
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
    if options.train_sac or options.reference_scores or options.simulator:
        if given:
            parser.error("--train-sac, --reference-scores and --simulator have no data to make")
        return options
    if bool(options.names) == bool(given):
        parser.error("give NAMEs, or --env, --agent, --algo and --id")
    if given and len(given) < 4:
        parser.error("--env, --agent, --algo and --id belong together")
    if (options.steps is not None and options.steps < 1) or options.processes < 1:
        parser.error("--steps and --processes must be at least 1")
    if options.seed < 0 or options.noise < 0:
        parser.error("--seed and --noise must be at least 0")
    if options.names and (options.noise or options.trust):
        parser.error("--noise and --trust belong to an agent of your own")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what the command line asks for."""
    options = parse_arguments(arguments)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt
    sys.path.insert(1, os.getcwd())  # modules that register an environment are looked for where the command was typed
    try:
        if options.train_sac:
            train_sac.train(options.names)
        elif options.reference_scores:
            reference_policies.measure_missing(options.policies, options.names, options.processes)
        elif options.simulator:
            reference_policies.measure_simulator(options.policies, options.names)
        elif options.names:
            for dataset_id in select(options.names):
                recipe = recipes(options.policies)[dataset_id]
                make(dataset_id, recipe, options.steps, options.seed, options.processes, records=options.records)
        else:
            if options.id in TASKS or options.id.startswith(("D4RL/", "mujoco/", "ld-agents/")):
                raise ValueError(
                    f"{options.id} is the id of a published dataset. Choose one of your own: me/hopper-v0."
                )
            recipe = agent_recipe(options.env, options.agent, options.algo, options.noise, options.trust)
            make(options.id, recipe, options.steps, options.seed, options.processes)
    except (ValueError, OSError) as error:
        sys.exit(f"make_datasets.py: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    main()
