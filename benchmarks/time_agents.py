"""Time the agents, and write what was found as JSON and as a page.

    python benchmarks/time_agents.py                          # everything
    python benchmarks/time_agents.py speed latency            # some of it
    python benchmarks/time_agents.py --quick --out /tmp/try   # does it run?
    python benchmarks/time_agents.py latency --agent mine.zip --out /tmp/mine
    python benchmarks/time_agents.py atomic --agent latent_diffuser.zip --dataset ld-agents/pointmaze/large-v0
    python benchmarks/time_agents.py --render                 # the pages anew, from the numbers that are stored

speed      inner loops against straightforward versions of them   -> speed
latency    milliseconds of a decision                             -> latency
plans      ways to make LatentDiffuser's sampling faster          -> plan_speed
baselines  gradient steps per second against straightforward code -> baseline_speed
atomic     whether guidance reaches exact weights                 -> atomic_guidance

One thread; nothing else should run on its core. Exits with 1 if variants that must agree do not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from timing import RESULTS, TIMINGS


def main(arguments: Sequence[str] | None = None) -> int:
    names = [timing.name for timing in TIMINGS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"some of {', '.join(names)}; all if none is given")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    parser.add_argument("--repetitions", type=int, help="turns of each variant")
    parser.add_argument("--quick", action="store_true", help="small and few: the numbers mean nothing")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the pages anew")
    parser.add_argument("--agent", type=Path, help="latency, atomic: file of a saved agent")
    parser.add_argument("--dataset", help="atomic: the dataset of the agent, for states to plan from")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.what) - set(names)):
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(names)}")
    if options.repetitions is not None and options.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    if options.quick and options.out == RESULTS:
        parser.error("--quick measures nothing worth keeping: say with --out where to write it")
    inputs = {name: value for name in ("agent", "dataset") if (value := getattr(options, name)) is not None}
    if inputs and (options.what, set(inputs)) not in ((["latency"], {"agent"}), (["atomic"], {"agent", "dataset"})):
        parser.error("--agent goes with latency alone, or together with --dataset with atomic alone")
    failed = []
    for timing in TIMINGS:
        if options.what and timing.name not in options.what:
            continue
        if not options.render:
            sizes = dict(timing.quick) if options.quick else {}
            if options.repetitions and "repetitions" in timing.sizes:
                sizes["repetitions"] = options.repetitions
            result = timing.run(sizes, **inputs)
            timing.write(result, options.out)
            failed += [row["name"] for row in result.get("checks", []) if not row["passed"]]
        else:
            timing.write_page(options.out)
        print((options.out / f"{timing.file}.md").read_text(encoding="utf-8"), flush=True)
    if failed:
        print(f"The variants differ: {'; '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
