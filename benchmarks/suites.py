"""The suites: which agents on which data sets, how long and how often. Plain data; `run_suite.py` reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """A grid of runs. `agents` and `datasets` are listed with the costliest first: they are started in this order.

    `budget` is the share of the preset's gradient steps; `episodes` the number of evaluation episodes of each run.
    """

    agents: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str = "fast"
    budget: float = 1.0
    episodes: int = 100


ALL_AGENTS = (
    "CQL",
    "LDCQ",
    "LDCQ[prior=gaussian]",
    "IQL",
    "ReBRAC",
    "TD3BC",
    "BC",
    "BC[best_fraction=0.1]",
)

SUITES: dict[str, Suite] = {
    "quick": Suite(
        agents=("LDCQ", "LDCQ[prior=gaussian]", "BC"),
        datasets=("ld-agents/pointmaze/umaze-v0",),
        seeds=(0, 1, 2),
    ),
    "maze2d": Suite(
        agents=ALL_AGENTS,
        datasets=(
            "ld-agents/pointmaze/large-v0",
            "ld-agents/pointmaze/medium-v0",
            "ld-agents/pointmaze/umaze-v0",
        ),
        seeds=(0, 1, 2, 3, 4),
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
