"""The suites: which agents on which datasets, how long and how often. Plain data; `run_suite.py` reads it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from specs import Run, canonical_spec
from studies import PAIRS


@dataclass(frozen=True)
class Suite:
    """A grid of runs. `agents` and `datasets` are listed with the costliest first: they are started in this
    order, one seed of everything, then the next.

    `budget` is the share of the preset's gradient steps; `episodes` the number of evaluation episodes of each run.
    `pairs`: the agents and datasets that belong together, where few do. `without`: the few that do not. `measured`:
    whether the runs measure more than scores (`measuring.py`).
    """

    agents: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str = "fast"
    budget: float = 1.0
    episodes: int = 100
    pairs: tuple[tuple[str, str], ...] | None = None
    without: tuple[tuple[str, str], ...] = ()
    measured: bool = False


ALL_AGENTS = (
    "CQL",
    "LDCQ",
    "LatentDiffuser",
    "LDCQ[prior=gaussian]",
    "IQL",
    "ReBRAC",
    "TD3BC",
    "BC",
    "BC[best_fraction=0.1]",
)


def _named(pattern: str, *parts: Sequence[str]) -> tuple[str, ...]:
    """Names of datasets: the pattern filled with each combination of the parts."""
    return tuple(pattern.format(*words) for words in itertools.product(*parts))


MAZES = ("large", "medium", "umaze")
ANTMAZES = ("large-diverse", "large-play", "medium-diverse", "medium-play", "umaze-diverse", "umaze")
ROBOTS = ("walker2d", "halfcheetah", "hopper")
HANDS = (("relocate", "hammer", "door", "pen"), ("human", "cloned", "expert"))
KITCHENS = ("mixed", "partial", "complete")

# The datasets of each family, costliest first: those made on this machine (`make_datasets.py`), those of Minari's hub,
# and D4RL's own files. Minari's locomotion datasets are no copies of D4RL's, and have other levels.
FAMILIES = {
    "kitchen": [_named(name, KITCHENS) for name in ("ld-agents/kitchen/{}-v0", "D4RL/kitchen/{}-v2", "kitchen-{}-v0")],
    "antmaze": [
        _named("ld-agents/antmaze/{}-v1", ("large-diverse", "medium-diverse", "umaze")),
        _named("D4RL/antmaze/{}-v1", ANTMAZES),
        _named("antmaze-{}-v2", ANTMAZES),
    ],
    "locomotion": [
        _named(
            "ld-agents/locomotion/{}-{}", ROBOTS, ("medium-replay-v1", "medium-v1", "medium-expert-v1", "expert-v0")
        ),
        _named("mujoco/{}/{}-v0", ROBOTS, ("simple", "medium", "expert")),
        _named("{}-{}-v2", ROBOTS, ("medium-replay", "medium", "medium-expert", "expert")),
    ],
    "maze2d": [_named(name, MAZES) for name in ("ld-agents/pointmaze/{}-v0", "D4RL/pointmaze/{}-v2", "maze2d-{}-v1")],
    "adroit": [_named(name, *HANDS) for name in ("ld-agents/adroit/{}-{}-v0", "D4RL/{}/{}-v2", "{}-{}-v1")],
}
# The table: each family's most quoted datasets, from one that all agents solve to one that few do.
# Minari's hub has no medium-replay.
CORE = re.compile(
    "kitchen.partial|antmaze.(umaze-v|(medium|large)-diverse)|walker2d.medium-v|halfcheetah-medium-replay"
    "|hopper.medium-v|(pointmaze/|maze2d-)large|door.human|pen.cloned"
)
FAMILIES["core"] = [tuple(filter(CORE.search, sum(source, ()))) for source in zip(*FAMILIES.values(), strict=True)]
SEEDS = (0, 1, 2, 3, 4)
ANT_TO_GOALS, *MAZES_TO_GOALS = _named(
    "ld-agents/{}[eval_goals=cells,goal=keep]",
    ("antmaze/medium-diverse-v1", "pointmaze/large-v0", "pointmaze/medium-v0"),
)

SUITES: dict[str, Suite] = {
    # A first look within five minutes on two cores, data included: short trainings on a tenth of the data.
    "first": Suite(
        agents=("LDCQ", "LDCQ[prior=gaussian]", "IQL", "BC"),
        datasets=("ld-agents/pointmaze/umaze-100k-v0",),
        seeds=(0, 1),
        preset="minutes",
        episodes=20,
    ),
    "quick": Suite(
        agents=("LDCQ", "LDCQ[prior=gaussian]", "BC"),
        datasets=("ld-agents/pointmaze/umaze-v0",),
        seeds=(0, 1, 2),
    ),
    **{
        f"{family}{source}": Suite(ALL_AGENTS, datasets, (0, 1, 2) if family == "core" else SEEDS)
        for family, sources in FAMILIES.items()
        for source, datasets in zip(("", "-minari", "-d4rl"), sources, strict=True)
    },
    # One dataset of each family beside the mazes: the smallest that holds whole solutions.
    "families": Suite(
        agents=("LDCQ", "IQL", "TD3BC", "BC"),
        datasets=(
            "ld-agents/antmaze/umaze-v1",
            "ld-agents/locomotion/hopper-medium-v1",
            "ld-agents/adroit/door-human-v0",
            "ld-agents/kitchen/complete-v0",
        ),
        seeds=(0, 1, 2),
    ),
    # LatentDiffuser's kinds of guidance and temperatures; those that start when the first has ended share its VAE and
    # prior.
    "guidance": Suite(
        agents=(
            "LatentDiffuser[guidance=none]",
            "LatentDiffuser",
            "LatentDiffuser[inverse_temperature=1.0]",
            "LatentDiffuser[inverse_temperature=10.0]",
            "LatentDiffuser[guidance=mse]",
            "LatentDiffuser[guidance=posterior-mean]",
            "LatentDiffuser[n_candidates=8]",
        ),
        datasets=("ld-agents/pointmaze/large-v0", "ld-agents/pointmaze/medium-v0"),
        seeds=(0, 1, 2),
    ),
    # Start and goal of every episode drawn from all cells; the goal is in the observation, and returns are rates of
    # success. LDCQ learns there from the rewards of the goals that the data command. AntMaze's data command none.
    "goals": Suite(
        agents=("LDCQ", "LDGC", "LDGC[goals=commanded]", "GCBC", "GCBC[goals=commanded]"),
        datasets=(ANT_TO_GOALS, *MAZES_TO_GOALS),
        seeds=(0, 1, 2),
        without=tuple((agent, ANT_TO_GOALS) for agent in ("LDCQ", "LDGC[goals=commanded]", "GCBC[goals=commanded]")),
    ),
    # The questions of `studies.py`.
    "studies": Suite(
        agents=tuple(dict.fromkeys(agent for agent, _ in PAIRS)),
        datasets=tuple(dict.fromkeys(dataset for _, dataset in PAIRS)),
        seeds=(0, 1, 2),
        pairs=PAIRS,
        measured=True,
    ),
    # Images: LDCQ and BC learn from the same frames. An episode takes some seconds, so there are few.
    "images": Suite(
        agents=("LDCQ", "BC"),
        datasets=("ld-agents/carracing/driver-v0",),
        seeds=(0, 1, 2),
        episodes=20,
    ),
    # All that a suite does, in less than a minute: the scores mean nothing.
    "smoke": Suite(
        agents=("LDCQ[q_windows=1024]", "LDCQ[prior=gaussian,q_windows=1024]", "BC"),
        datasets=("ld-agents/pointmaze/umaze-10k-v0",),
        seeds=(0, 1),
        budget=0.002,
        episodes=2,
    ),
}


def grid(suite: Suite) -> list[Run]:
    """All runs of a suite, in the order in which they are started: one seed of everything, then the next."""
    agents, datasets = ([canonical_spec(spec) for spec in specs] for specs in (suite.agents, suite.datasets))
    pairs: Iterable[tuple[str, str]] = itertools.product(agents, datasets)
    if suite.pairs is not None:
        pairs = (pair for pair in suite.pairs if pair[0] in agents and pair[1] in datasets)
    return [
        Run(agent, dataset, seed, suite.preset, suite.budget, suite.episodes)
        for seed, (agent, dataset) in itertools.product(suite.seeds, pairs)
        if (agent, dataset) not in suite.without
    ]
