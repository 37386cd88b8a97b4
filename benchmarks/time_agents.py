"""Time the agents beside other versions of themselves, and write what was found to results/speed.json and speed.md.

    python benchmarks/time_agents.py                                    # this tree alone
    python benchmarks/time_agents.py --against 7ba881a --against HEAD   # and commits of this repository
    python benchmarks/time_agents.py --d3rlpy ~/d3rlpy/bin/python       # and d3rlpy, in an environment of its own
    python benchmarks/time_agents.py --only act --out acting            # a part of it, elsewhere
    python benchmarks/time_agents.py --render                           # rewrite the pages from the stored numbers
    python benchmarks/time_agents.py --latents latent_diffuser.zip ld-agents/pointmaze/large-v0

The last one times nothing: it measures how exact guidance is on the latents of a saved LatentDiffuser, for
results/atomic_guidance.md. The docstrings of benchmarks/timing/speed.py and atomic.py head the pages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from timing import PAGES, RESULTS, atomic, speed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", nargs="+", action="extend", default=[], metavar="COMMIT", help="versions beside")
    parser.add_argument("--d3rlpy", metavar="PYTHON", help="an interpreter that has d3rlpy, to time that too")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each version")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    parser.add_argument("--only", choices=("train", "act", "memory", "start"), help="a part of it; needs --out")
    parser.add_argument("--render", action="store_true", help="measure nothing, rewrite the pages")
    parser.add_argument("--latents", nargs=2, metavar=("FILE", "DATASET"), help="how exact guidance is, instead")
    options = parser.parse_args(arguments)
    if options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    if options.only and options.out == RESULTS:
        parser.error("--only measures a part of the page: say with --out which other folder it goes to")
    if options.latents and (options.against or options.d3rlpy or options.render):
        parser.error("--latents measures how exact guidance is, without --against, --d3rlpy or --render")
    torch.set_num_threads(1)
    if options.render:
        for page in PAGES:
            page.render(options.out)
    elif options.latents:
        file, dataset = options.latents
        print(atomic.measure(file, dataset, options.out))
    else:
        timed = (options.against, options.d3rlpy, options.repetitions, options.out, speed.SIZES, options.only)
        print(speed.measure(*timed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
