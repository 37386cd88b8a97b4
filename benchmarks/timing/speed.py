"""How much faster three inner loops are than straightforward versions of them, measured side by side on this machine.

    python benchmarks/speed.py

1. Windows of a data set: index gathers, against a Python loop that copies every window.
2. Prioritised sampling: `PrioritizedSampler`, against numpy's power, division and `choice` over all items.
3. Candidate latents: ten DPM-Solver++ steps with what depends on state and step alone worked out once, against 105
   ancestral steps with everything worked out for every candidate at every step.

The straightforward versions do what LDCQ's released code does, in words of our own, and are vectorised where that code
is. Both sides run in one process on one thread, in turn; times are CPU time, and a ratio is one of medians. Next to the
times stand checks that both sides compute the same. Writes speed.json (raw numbers) and speed.md (the table).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import provenance
from ld_agents import LDCQ, OfflineDataset
from ld_agents.common.prioritized_sampler import PrioritizedSampler
from ld_agents.diffusion.sampling import linear_schedule, solver_steps
from ld_agents.networks.denoisers import ResidualBlock, ResidualMLPUNet, sinusoids
from run_one import write_json

SCHEMA = 1
STATE_DIM, ACTION_DIM, HORIZON, EPISODE_STEPS = 4, 2, 30, 80  # PointMaze
BATCH_SIZE = 128
ALPHA = 0.7
RELEASED_T, RELEASED_EXTRA_STEPS = 100, 5
CALLS_IN_A_ROW = 20  # of the prioritised samplers: one repetition


@dataclass(frozen=True)
class Sizes:
    """How much is measured. The comments are the help texts of the command line."""

    steps: int = 1_000_000  # steps of the data set and items of the prioritised samplers
    loop_windows: int = 20_000  # windows that are built in one repetition
    states: int = 8  # states that candidates are drawn at
    candidates: int = 100  # candidates per state
    solver_steps: int = 10  # of DPM-Solver++
    draws: int = 400_000  # for the comparison of distributions
    repetitions: int = 9


def synthetic_dataset(steps: int) -> OfflineDataset:
    """Random numbers in the shape of PointMaze: episodes of 80 steps that end by timeout. The values cost nothing."""
    generator = np.random.default_rng(0)
    timeouts = np.arange(1, steps + 1) % EPISODE_STEPS == 0
    episodes = int(timeouts.sum()) + int(not timeouts[-1])
    return OfflineDataset(
        generator.standard_normal((steps, STATE_DIM), np.float32),
        generator.random((steps, ACTION_DIM), np.float32) * 2 - 1,
        (generator.random(steps) < 0.02).astype(np.float32),
        np.zeros(steps, bool),
        timeouts,
        final_observations=generator.standard_normal((episodes, STATE_DIM), np.float32),
    )


def in_turn(versions: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of each repetition of each version, which run one after the other, so that a slow spell hits all.

    CPU time of the one thread: what other programs do on the machine does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for run in versions.values():
        run()
    for _ in range(repetitions):
        for name, run in versions.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return seconds


def comparison(
    name: str, unit: str, straightforward: Sequence[float], ours: Sequence[float], required: float | None, note: str
) -> dict[str, Any]:
    """One row. `straightforward` and `ours`: seconds per `unit`, one number per repetition."""
    return {
        "name": name,
        "unit": unit,
        "straightforward_seconds": list(straightforward),
        "our_seconds": list(ours),
        "ratio": float(np.median(straightforward) / np.median(ours)),
        "required": required,
        "note": note,
    }


def check(name: str, value: float, limit: float) -> dict[str, Any]:
    """`value` must not exceed `limit`."""
    return {"name": name, "value": value, "limit": limit, "passed": bool(value <= limit)}


# 1. Windows


def copied_windows(
    observations: NDArray[np.float32], actions: NDArray[np.float32], rewards: NDArray[np.float32], starts: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """A Python loop over starts, three copies per window, then a stack of each: states, actions, rewards."""
    window_states, window_actions, window_rewards = [], [], []
    for t in starts:
        window_states.append(torch.tensor(observations[t : t + HORIZON], dtype=torch.float32))
        window_actions.append(torch.tensor(actions[t : t + HORIZON], dtype=torch.float32))
        window_rewards.append(torch.tensor(rewards[t : t + HORIZON], dtype=torch.float32))
    return torch.stack(window_states), torch.stack(window_actions), torch.stack(window_rewards)


def gathered_windows(data: OfflineDataset, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return *data.windows(starts, HORIZON), data.window_rewards(starts, HORIZON)


def compare_windows(sizes: Sizes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    data = synthetic_dataset(sizes.steps)
    starts = data.window_starts(HORIZON)
    arrays = data.observations.numpy(), data.actions.numpy(), data.rewards.numpy()
    chosen = starts[: sizes.loop_windows].long()
    chosen_list = chosen.tolist()
    built = copied_windows(*arrays, chosen_list)
    gathered = gathered_windows(data, chosen)
    # random places all over the data: the worst case for a gather
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(0))[: len(chosen)]
    batches = [batch.long() for batch in starts[order].split(BATCH_SIZE)]
    rows_of_built = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(1)).split(BATCH_SIZE)
    seconds = in_turn(
        {
            "copy": lambda: copied_windows(*arrays, chosen_list),
            "starts": lambda: data.window_starts(HORIZON),
            "gather": lambda: gathered_windows(data, chosen),
            "random gather": lambda: [gathered_windows(data, batch) for batch in batches],
            "rows": lambda: [[part[rows] for part in built] for rows in rows_of_built],
        },
        sizes.repetitions,
    )
    each = {name: [s / len(chosen) for s in seconds[name]] for name in ("copy", "gather", "random gather", "rows")}
    per_start = [s / len(starts) for s in seconds["starts"]]
    rows = [
        comparison(
            "windows: build all",
            "window",
            each["copy"],
            [a + b for a, b in zip(per_start, each["gather"], strict=True)],
            50,
            f"{len(starts)} windows of {HORIZON} steps; both sides build the same {len(chosen)} of them, and ours is "
            "charged for its share of listing all starts.",
        ),
        comparison(
            "windows: before the first batch",
            "data set",
            [s * len(starts) for s in each["copy"]],
            seconds["starts"],
            None,
            "The loop builds all windows first (time scaled up from those measured); ours only lists their starts.",
        ),
        comparison(
            "windows: each batch after that",
            f"batch of {BATCH_SIZE}",
            [s * BATCH_SIZE for s in each["rows"]],
            [s * BATCH_SIZE for s in each["random gather"]],
            None,
            "The price of not storing windows: random rows of the built tensors, against gathers from random places of "
            f"the data set. The built tensors hold only {len(chosen)} windows here, so they are nearer to the cache.",
        ),
        comparison(
            "windows: one epoch, all in",
            "window",
            [a + b for a, b in zip(each["copy"], each["rows"], strict=True)],
            [a + b for a, b in zip(per_start, each["random gather"], strict=True)],
            None,
            "Set-up and every window once in random batches; later epochs cost what the row above says.",
        ),
    ]
    different = sum(int((a != b).sum()) for a, b in zip(built, gathered, strict=True))
    return rows, [check("windows: numbers that differ in any bit", different, 0)]


# 2. Prioritised sampling


def draw_over_all(
    priorities: NDArray[np.float32], n: int, generator: np.random.RandomState
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Powers, division and `choice` over all N items. Returns indices and their probabilities."""
    probabilities = priorities**ALPHA
    probabilities /= probabilities.sum()
    indices = generator.choice(len(priorities), n, p=probabilities)
    return indices, probabilities[indices]


def compare_prioritised(sizes: Sizes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    generator, torch_generator = np.random.RandomState(0), torch.Generator().manual_seed(0)
    priorities = (generator.exponential(size=sizes.steps) + 1e-6).astype(np.float32)
    sampler = PrioritizedSampler(torch.as_tensor(priorities), ALPHA)
    new = generator.exponential(size=BATCH_SIZE).astype(np.float32)
    new_tensor = torch.from_numpy(new)

    # both get the same updates, then draw: chi-squared of the counts in 100 groups of items
    changed = generator.permutation(sizes.steps)[: sizes.steps // 10]
    values = (generator.exponential(size=len(changed)) * 3 + 1e-6).astype(np.float32)
    priorities[changed] = values
    for items, some in zip(np.array_split(changed, 50), np.array_split(values, 50), strict=True):
        sampler.update(torch.as_tensor(items), torch.as_tensor(some))
    true = priorities.astype(np.float64) ** ALPHA
    true /= true.sum()
    drawn, stated = sampler.draw(sizes.draws, torch_generator)
    error = float(np.abs(stated.numpy() / true[drawn.numpy()] - 1).max())
    ranked = np.empty(sizes.steps, np.int64)
    ranked[np.argsort(priorities)] = np.arange(sizes.steps) * 100 // sizes.steps
    shuffled = generator.permutation(sizes.steps) % 100
    naive = draw_over_all(priorities, sizes.draws, generator)[0]
    checks = [check("prioritised: relative error of the stated probabilities", error, 1e-4)]
    for groups, what in ((ranked, "priority"), (shuffled, "chance")):
        for indices, whose in ((drawn.numpy(), "ours"), (naive, "numpy's")):
            z = _chi_squared_z(indices, groups, true)
            checks.append(check(f"prioritised: z of chi-squared, 100 groups of items by {what}, {whose}", z, 5.0))

    def over_all() -> None:
        indices, _ = draw_over_all(priorities, BATCH_SIZE, generator)
        for index, priority in zip(indices, new, strict=True):
            priorities[index] = priority

    def ours() -> None:
        indices, _ = sampler.draw(BATCH_SIZE, torch_generator)
        sampler.update(indices, new_tensor)

    def repeat(run: Callable[[], None]) -> Callable[[], None]:
        def many() -> None:
            for _ in range(CALLS_IN_A_ROW):
                run()

        return many

    seconds = in_turn({"over all": repeat(over_all), "ours": repeat(ours)}, sizes.repetitions)
    single = in_turn({"over all": over_all, "ours": ours}, sizes.repetitions * 3)
    unit = f"draw of {BATCH_SIZE} and update"
    rows = [
        comparison(
            "prioritised sampling",
            unit,
            [s / CALLS_IN_A_ROW for s in seconds["over all"]],
            [s / CALLS_IN_A_ROW for s in seconds["ours"]],
            50,
            f"{sizes.steps} items; {CALLS_IN_A_ROW} calls in a row of either.",
        ),
        comparison(
            "prioritised sampling, one call at a time",
            unit,
            single["over all"],
            single["ours"],
            None,
            "The two take turns after each call, so that ours always starts with caches that the other has filled.",
        ),
    ]
    return rows, checks


def _chi_squared_z(indices: NDArray[np.int64], groups: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """How many standard deviations the chi-squared statistic of the groups' counts lies above its mean."""
    expected = np.bincount(groups, probabilities) * len(indices)
    counts = np.bincount(groups[indices], minlength=len(expected))
    freedom = len(expected) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


# 3. Candidate latents


def plain_block(block: ResidualBlock, x: Tensor, state: Tensor, time: Tensor) -> Tensor:
    conditioned = torch.cat([x, block.norm(block.state(state))], dim=-1)
    scale, shift = block.time(time).chunk(2, dim=-1)
    h = F.gelu(block.norm(block.first(conditioned)) * (1 + scale) + shift)
    return x + F.gelu(block.norm(block.second(h)))


def plain_denoise(network: ResidualMLPUNet, x: Tensor, j: Tensor, states: Tensor) -> Tensor:
    """The network as one reads it in a paper: every row has a state and a step of its own. Shapes [B, .], [B]."""
    time = network.time(sinusoids(j, network.time_features))
    state = network.state(states)
    down, up = list(network.down_blocks), list(network.up_blocks)
    norms = list(network.norms)
    inlet = network.inlet(x)
    h = plain_block(down[0], inlet, state, time)  # type: ignore[arg-type]
    skips = [h]
    for block, linear, norm in zip(down[1:], network.down, norms[1:], strict=True):
        h = plain_block(block, F.gelu(norm(linear(h))), state, time)  # type: ignore[arg-type]
        skips.append(h)
    for block, linear, norm, skip in zip(up, network.up, norms[-2::-1], skips[-2::-1], strict=True):
        h = plain_block(block, F.gelu(norm(linear(h))) + skip, state, time)  # type: ignore[arg-type]
    return network.outlet(plain_block(network.last_block, h + inlet, state, time))


@torch.no_grad()
def ancestral_candidates(network: ResidualMLPUNet, states: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """T = 100 ancestral steps and 5 more at j = 1, each for all candidates with their state repeated: [n_s * n, Z]."""
    schedule = linear_schedule(RELEASED_T, rescaled=False)
    repeated = states.repeat_interleave(n, dim=0)
    z = torch.randn(len(repeated), network.outlet.out_features, generator=generator)
    for step in [*range(RELEASED_T, 0, -1), *([1] * RELEASED_EXTRA_STEPS)]:
        j = torch.full((len(repeated),), step)
        alpha_bar, beta = float(schedule.alpha_bar[step]), float(schedule.beta[step])
        clean = plain_denoise(network, z, j, repeated)
        epsilon = (z - math.sqrt(alpha_bar) * clean) / math.sqrt(1 - alpha_bar)
        z = (z - epsilon * beta / math.sqrt(1 - alpha_bar)) / math.sqrt(1 - beta)
        if step > 1:
            z = z + math.sqrt(beta) * torch.randn(z.shape, generator=generator)
    return z


def compare_candidates(sizes: Sizes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    data = synthetic_dataset(10 * EPISODE_STEPS)
    agent = LDCQ("MlpPolicy", data, preset="paper", seed=0, device="cpu", solver_steps=sizes.solver_steps)
    policy = agent.policy
    policy.set_training_mode(False)
    network = policy.denoiser
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the norms of a fresh network are the identity, which would hide mistakes
        for module in network.modules():
            if isinstance(module, torch.nn.LayerNorm):
                for parameter in module.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    states = torch.randn(sizes.states, STATE_DIM, generator=generator)
    schedule = linear_schedule(policy.settings.diffusion_steps)
    grid = [step.j for step in solver_steps(schedule, policy.settings.solver, sizes.solver_steps)]
    shape = (sizes.states, sizes.candidates, network.outlet.out_features)

    def ours() -> Tensor:
        return policy.draw_latents(states, lambda k: torch.randn(shape, generator=generator))

    @torch.no_grad()
    def not_hoisted() -> None:
        repeated = states.repeat_interleave(sizes.candidates, dim=0)
        x = torch.randn(shape, generator=generator).flatten(0, 1)
        for j in grid:
            plain_denoise(network, x, torch.full((len(x),), j), repeated)

    x = torch.randn(shape, generator=generator)
    repeated = states.repeat_interleave(sizes.candidates, dim=0)
    error = 0.0
    with torch.no_grad():
        state_terms = network.state_terms(states[:, None])
        for j in grid:
            time_terms = [(factor[0], offset[0]) for factor, offset in network.time_terms(torch.tensor([j]))]
            hoisted = network.denoise(x, state_terms, time_terms).flatten(0, 1)
            plain = plain_denoise(network, x.flatten(0, 1), torch.full((len(repeated),), j), repeated)
            error = max(error, float((hoisted - plain).abs().max()))
    seconds = in_turn(
        {
            "ancestral": lambda: ancestral_candidates(network, states, sizes.candidates, generator),
            "not hoisted": not_hoisted,
            "ours": ours,
        },
        sizes.repetitions,
    )
    unit = f"{sizes.states} x {sizes.candidates} candidates"
    rows = [
        comparison(
            "candidate latents",
            unit,
            seconds["ancestral"],
            seconds["ours"],
            20,
            f"{RELEASED_T + RELEASED_EXTRA_STEPS} ancestral steps against {sizes.solver_steps} of DPM-Solver++ (an "
            "approximation, tested elsewhere), and everything per candidate and step against once (exact).",
        ),
        comparison(
            "candidate latents, the exact part",
            unit,
            seconds["not hoisted"],
            seconds["ours"],
            None,
            f"{sizes.solver_steps} network calls on either side.",
        ),
    ]
    return rows, [check("candidates: largest difference of the predicted latents", error, 1e-5)]


# The report


def measure(sizes: Sizes) -> dict[str, Any]:
    """All comparisons and checks, ready for JSON."""
    parts: dict[str, Callable[[Sizes], tuple[list[dict[str, Any]], list[dict[str, Any]]]]] = {
        "windows": compare_windows,
        "prioritised sampling": compare_prioritised,
        "candidates": compare_candidates,
    }
    comparisons, checks = [], []
    progress = tqdm(parts.items(), disable=not sys.stderr.isatty())
    for name, compare in progress:
        progress.set_description(name)
        more_comparisons, more_checks = compare(sizes)
        comparisons += more_comparisons
        checks += more_checks
    return {
        "schema": SCHEMA,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": provenance.source_commit(),
        "hardware": provenance.hardware(torch.device("cpu")),
        "versions": provenance.versions(),
        "sizes": asdict(sizes),
        "comparisons": comparisons,
        "checks": checks,
    }


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def table(result: Mapping[str, Any]) -> str:
    """The Markdown page of a result."""
    hardware, versions = result["hardware"], result["versions"]
    lines = [
        "# Speed",
        "",
        f"Made by `python benchmarks/speed.py` on {result['made'][:10]}: {hardware['cpu']}, {hardware['threads']} "
        f"thread, Python {versions['python']}, torch {versions['torch']}, numpy {versions['numpy']}. Medians of "
        f"{result['sizes']['repetitions']} repetitions (CPU time), both versions in turn. Raw numbers: speed.json.",
        "",
        "| what | per | straightforward | ours | ratio | required |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in result["comparisons"]:
        plain, ours = (duration(float(np.median(row[side]))) for side in ("straightforward_seconds", "our_seconds"))
        required = "–" if row["required"] is None else f"{row['required']:g}"
        lines.append(f"| {row['name']} | {row['unit']} | {plain} | {ours} | {row['ratio']:.3g} | {required} |")
    lines += ["", *(f"- {row['name']}: {row['note']}" for row in result["comparisons"])]
    lines += ["", "| check | value | at most | passed |", "| --- | ---: | ---: | --- |"]
    lines += [
        f"| {row['name']} | {row['value']:.2g} | {row['limit']:g} | {'yes' if row['passed'] else 'NO'} |"
        for row in result["checks"]
    ]
    return "\n".join(lines) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of speed.json and speed.md")
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    options = vars(parser.parse_args(arguments))
    out: Path = options.pop("out")
    if too_small := [name for name, value in options.items() if value < 1]:
        parser.error(f"{', '.join(too_small)} must be at least 1")
    if options["steps"] < EPISODE_STEPS:
        parser.error(f"steps must be at least {EPISODE_STEPS}, one episode")
    torch.set_num_threads(1)
    result = measure(Sizes(**options))
    write_json(out / "speed.json", result)
    page = table(json.loads((out / "speed.json").read_text()))
    write_text(out / "speed.md", page)
    print(page)
    failed = [row["name"] for row in result["checks"] if not row["passed"]]
    if failed:
        print(f"The two sides differ: {'; '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
