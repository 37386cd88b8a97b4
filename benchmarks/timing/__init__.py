"""What is timed, one file each, on the `harness` that they share; `benchmarks/time_agents.py` is the command.

Files of this room may import ld_agents, `provenance` and `files`, and no command.
"""

from pathlib import Path

from timing.atomic import ATOMIC
from timing.baselines import BASELINES
from timing.latency import LATENCY
from timing.plans import PLANS
from timing.speed import SPEED

RESULTS = Path(__file__).resolve().parents[2] / "results"
TIMINGS = (SPEED, LATENCY, PLANS, BASELINES, ATOMIC)


def check_pages(folder: Path = RESULTS) -> list[str]:
    """What is wrong with the pages: not those of their JSON files, or not of today's presets. Empty if fine."""
    return [problem for timing in TIMINGS for problem in timing.problems(folder)]
