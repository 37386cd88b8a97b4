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
    "LatentDiffuser",
    "LDCQ[prior=gaussian]",
    "IQL",
    "ReBRAC",
    "TD3BC",
    "BC",
    "BC[best_fraction=0.1]",
)

# Data sets of each family that are made on this machine (`make_datasets.py`), costliest first.
MAZE2D = tuple(f"ld-agents/pointmaze/{maze}-v0" for maze in ("large", "medium", "umaze"))
ANTMAZE = tuple(f"ld-agents/antmaze/{name}-v1" for name in ("large-diverse", "medium-diverse", "umaze"))
LOCOMOTION = tuple(
    f"ld-agents/locomotion/{robot}-{level}"
    for robot in ("walker2d", "halfcheetah", "hopper")
    for level in ("medium-replay-v1", "medium-v1", "medium-expert-v1", "expert-v0")
)
ADROIT = tuple(
    f"ld-agents/adroit/{task}-{level}-v0"
    for task in ("relocate", "hammer", "door", "pen")
    for level in ("human", "cloned", "expert")
)
KITCHEN = tuple(f"ld-agents/kitchen/{name}-v0" for name in ("mixed", "partial", "complete"))

# The same families on Minari's hub. Its locomotion sets are no copies of D4RL's, and have other levels.
MAZE2D_MINARI = tuple(f"D4RL/pointmaze/{maze}-v2" for maze in ("large", "medium", "umaze"))
ANTMAZE_MINARI = tuple(
    f"D4RL/antmaze/{name}-v1"
    for name in ("large-diverse", "large-play", "medium-diverse", "medium-play", "umaze-diverse", "umaze")
)
LOCOMOTION_MINARI = tuple(
    f"mujoco/{robot}/{level}-v0"
    for robot in ("walker2d", "halfcheetah", "hopper")
    for level in ("simple", "medium", "expert")
)
ADROIT_MINARI = tuple(
    f"D4RL/{task}/{level}-v2"
    for task in ("relocate", "hammer", "door", "pen")
    for level in ("human", "cloned", "expert")
)
KITCHEN_MINARI = tuple(f"D4RL/kitchen/{name}-v2" for name in ("mixed", "partial", "complete"))

# The same families in D4RL's own files.
MAZE2D_D4RL = tuple(f"maze2d-{maze}-v1" for maze in ("large", "medium", "umaze"))
ANTMAZE_D4RL = tuple(name.removeprefix("D4RL/").replace("/", "-").replace("-v1", "-v2") for name in ANTMAZE_MINARI)
LOCOMOTION_D4RL = tuple(f"{name.split('/')[-1][:-3]}-v2" for name in LOCOMOTION)
ADROIT_D4RL = tuple(f"{name.split('/')[-1].removesuffix('-v0')}-v1" for name in ADROIT)
KITCHEN_D4RL = tuple(f"kitchen-{name}-v0" for name in ("mixed", "partial", "complete"))

# The nine data sets of Jackson et al. 2025 (Unifloral, arXiv 2504.11453), antmaze-medium-diverse and kitchen-partial.
CORE = (
    "ld-agents/kitchen/mixed-v0",
    "ld-agents/kitchen/partial-v0",
    "ld-agents/antmaze/large-diverse-v1",
    "ld-agents/antmaze/medium-diverse-v1",
    "ld-agents/locomotion/walker2d-medium-replay-v1",
    "ld-agents/locomotion/halfcheetah-medium-expert-v1",
    "ld-agents/locomotion/hopper-medium-v1",
    "ld-agents/pointmaze/large-v0",
    "ld-agents/adroit/pen-human-v0",
    "ld-agents/adroit/pen-cloned-v0",
    "ld-agents/adroit/pen-expert-v0",
)
# Minari has no medium-replay and no medium-expert sets.
CORE_MINARI = (
    "D4RL/antmaze/large-diverse-v1",
    "D4RL/antmaze/medium-diverse-v1",
    "D4RL/kitchen/mixed-v2",
    "D4RL/kitchen/partial-v2",
    "mujoco/hopper/medium-v0",
    "D4RL/pointmaze/large-v2",
    "D4RL/pen/human-v2",
    "D4RL/pen/cloned-v2",
    "D4RL/pen/expert-v2",
)
CORE_D4RL = (
    "antmaze-large-diverse-v2",
    "antmaze-medium-diverse-v2",
    "kitchen-mixed-v0",
    "kitchen-partial-v0",
    "walker2d-medium-replay-v2",
    "halfcheetah-medium-expert-v2",
    "hopper-medium-v2",
    "maze2d-large-v1",
    "pen-human-v1",
    "pen-cloned-v1",
    "pen-expert-v1",
)
SEEDS = (0, 1, 2, 3, 4)

SUITES: dict[str, Suite] = {
    "quick": Suite(
        agents=("LDCQ", "LDCQ[prior=gaussian]", "BC"),
        datasets=("ld-agents/pointmaze/umaze-v0",),
        seeds=(0, 1, 2),
    ),
    "maze2d": Suite(ALL_AGENTS, MAZE2D, SEEDS),
    "maze2d-minari": Suite(ALL_AGENTS, MAZE2D_MINARI, SEEDS),
    "maze2d-d4rl": Suite(ALL_AGENTS, MAZE2D_D4RL, SEEDS),
    "antmaze": Suite(ALL_AGENTS, ANTMAZE, SEEDS),
    "antmaze-minari": Suite(ALL_AGENTS, ANTMAZE_MINARI, SEEDS),
    "antmaze-d4rl": Suite(ALL_AGENTS, ANTMAZE_D4RL, SEEDS),
    "locomotion": Suite(ALL_AGENTS, LOCOMOTION, SEEDS),
    "locomotion-minari": Suite(ALL_AGENTS, LOCOMOTION_MINARI, SEEDS),
    "locomotion-d4rl": Suite(ALL_AGENTS, LOCOMOTION_D4RL, SEEDS),
    "adroit": Suite(ALL_AGENTS, ADROIT, SEEDS),
    "adroit-minari": Suite(ALL_AGENTS, ADROIT_MINARI, SEEDS),
    "adroit-d4rl": Suite(ALL_AGENTS, ADROIT_D4RL, SEEDS),
    "kitchen": Suite(ALL_AGENTS, KITCHEN, SEEDS),
    "kitchen-minari": Suite(ALL_AGENTS, KITCHEN_MINARI, SEEDS),
    "kitchen-d4rl": Suite(ALL_AGENTS, KITCHEN_D4RL, SEEDS),
    "core": Suite(ALL_AGENTS, CORE, SEEDS),
    "core-minari": Suite(ALL_AGENTS, CORE_MINARI, SEEDS),
    "core-d4rl": Suite(ALL_AGENTS, CORE_D4RL, SEEDS),
    # One data set of each family beside the mazes: the smallest that holds whole solutions.
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
    # All that a suite does, in less than a minute: the scores mean nothing.
    "smoke": Suite(
        agents=("LDCQ[q_windows=1024]", "LDCQ[prior=gaussian,q_windows=1024]", "BC"),
        datasets=("ld-agents/pointmaze/umaze-10k-v0",),
        seeds=(0, 1),
        budget=0.002,
        episodes=2,
    ),
}
