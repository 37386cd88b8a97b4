"""Pages of what is timed (`speed`, in processes of `worker`) and of how exact guidance is (`atomic`).

Files of this room may import ld_agents, `provenance` and `files`, and no command.
"""

from pathlib import Path

from timing.atomic import ATOMIC
from timing.speed import ROOT, SPEED

RESULTS = ROOT / "results"
PAGES = (SPEED, ATOMIC)


def check_pages(folder: Path = RESULTS) -> list[str]:
    """What is wrong with the pages: not those of their JSON files, or not of today's presets. Empty if fine."""
    return [problem for page in PAGES for problem in page.problems(folder)]
