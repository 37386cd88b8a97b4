"""Time the agents, and write what was found as JSON and as a page.

    python benchmarks/time_agents.py                          # everything
    python benchmarks/time_agents.py speed latency            # some of it
    python benchmarks/time_agents.py --quick --out /tmp/try   # does it run?
    python benchmarks/time_agents.py latency --agent mine.zip --out /tmp/mine
    python benchmarks/time_agents.py --latents latent_diffuser.zip ld-agents/pointmaze/large-v0
    python benchmarks/time_agents.py --render                 # the pages anew, from the numbers that are stored

The docstrings of the files in benchmarks/timing say what is timed, and head the pages in results/.
One thread; nothing else should run on its core. Exits with 1 if variants that must agree do not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from timing import RESULTS, TIMINGS
from timing.atomic import ATOMIC
from timing.latency import LATENCY


def main(arguments: Sequence[str] | None = None) -> int:
    names = [timing.name for timing in TIMINGS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"some of {', '.join(names)}; all if none is given")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    parser.add_argument("--repetitions", type=int, help="turns of each variant")
    parser.add_argument("--quick", action="store_true", help="small and few: the numbers mean nothing")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the pages anew")
    parser.add_argument("--agent", type=Path, metavar="FILE", help="latency: of a saved agent, not of fresh ones")
    parser.add_argument(
        "--latents",
        nargs=2,
        metavar=("FILE", "DATASET"),
        help="atomic: those that a saved LatentDiffuser draws",
    )
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.what) - set(names)):
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(names)}")
    if options.repetitions is not None and options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    if (options.quick or options.agent) and options.out == RESULTS:
        parser.error("--quick and --agent measure nothing for results/: say with --out where to write it")
    chosen = [timing for timing in TIMINGS if timing.name in (options.what or names)]
    if options.agent and chosen != [LATENCY]:
        parser.error("--agent goes with latency alone")
    if options.latents and ATOMIC not in chosen:
        parser.error("--latents goes with atomic")
    inputs = {"latency": {"agent": options.agent}, "atomic": {"latents": options.latents}}
    failed = []
    for timing in chosen:
        if options.render:
            print(timing.write_page(options.out))
            continue
        sizes = dict(timing.quick) if options.quick else {}
        if options.repetitions and "repetitions" in timing.sizes:
            sizes["repetitions"] = options.repetitions
        result = timing.run(sizes, **inputs.get(timing.name, {}))
        print(timing.write(result, options.out), flush=True)
        failed += [row["name"] for row in result.get("checks", []) if not row["passed"]]
    if failed:
        print(f"The variants differ: {'; '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
