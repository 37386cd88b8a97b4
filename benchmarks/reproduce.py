"""Do a run of results/ again, with this code and these libraries, and compare its score with the stored one.

    python benchmarks/reproduce.py results/maze2d/runs/BC__ld-agents-pointmaze-umaze-v0__fast__b1__seed0.json

With the run's own commit and versions its returns repeat to the last bit, but for runs of `results/guidance` that took
networks over from another (`shares_with`): those drew other numbers than a run on its own does. Otherwise the means
have to agree within three standard errors of their difference; the exit code is 1 where they do not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from run_one import run_and_write
from specs import Run, differing


def comparison(stored: Mapping[str, Any], again: Mapping[str, Any]) -> tuple[str, bool]:
    """What two run files of one run say in a few words, and whether their scores agree."""
    texts, error = [], 0.0
    for run in (stored, again):
        mean, deviation = np.mean(run["returns"]), np.std(run["returns"]) / math.sqrt(len(run["returns"]))
        texts.append(f"{mean:.4g} ± {deviation:.2g}")
        error = math.hypot(error, deviation)
    apart = abs(np.mean(stored["returns"]) - np.mean(again["returns"]))
    equal = "equal to the last bit" if stored["returns"] == again["returns"] else f"{apart:.3g} apart"
    data = "the same data" if stored["dataset"]["hash"] == again["dataset"]["hash"] else "data of another hash"
    other = ", ".join(
        f"{name} {now} for {stored['versions'].get(name)}"
        for name, now in again["versions"].items()
        if now != stored["versions"].get(name)
    )
    text = f"stored {texts[0]}, again {texts[1]}: {equal}, on {data}; other versions: {other or 'none'}"
    changed = differing(stored.get("settings", {}), again.get("settings", {}))
    if changed:
        text += "; NOT THE SAME AGENT, its preset has changed: "
        text += ", ".join(f"{name} {now!r} for {then!r}" for name, (then, now) in changed.items())
    return text, bool(apart <= 3 * error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when the scores disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run file")
    stored = json.loads(parser.parse_args(arguments).run.read_text())
    names = ("agent", "seed", "preset", "budget_share")
    agent, seed, preset, budget = (stored[name] for name in names)
    run = Run(agent, stored["dataset"]["id"], seed, preset, budget, stored["protocol"]["episodes"])
    with tempfile.TemporaryDirectory() as folder:
        again = json.loads(run_and_write(run, Path(folder)).read_text())
    text, agrees = comparison(stored, again)
    print(text)
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
