"""How much faster three inner loops are than straightforward versions of them.

The straightforward versions do what LDCQ's released code does. Times are medians, and a ratio is one of medians.

- Windows of 30 steps: index gathers, against a Python loop that copies every window. *Build all*: both sides build the
  same windows (`loop_windows`), and ours is charged for its share of listing all starts. *Before the first batch*: the
  loop builds all windows (time scaled up from those measured), ours lists their starts. *Each batch after that*: the
  price of not storing windows. Random rows of the built tensors, which are only `loop_windows` here and so nearer to
  the cache, against gathers from random places of the dataset. *One epoch*: set-up and every window once in random
  batches; later epochs cost what the row above says.
- Prioritized sampling: `PrioritizedSampler`, against numpy's power, division and `choice` over all items. 20 calls in a
  row of either, or *one call at a time*, so that ours always starts with caches that the other has filled.
- Candidate latents: 10 steps of DPM-Solver++ (an approximation, tested elsewhere) with everything that depends on state
  or step alone computed once, against 105 ancestral steps with everything computed per candidate and step. *The exact
  part*: 10 network calls on either side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ld_agents import LDCQ, OfflineDataset
from ld_agents.common.prioritized_sampler import PrioritizedSampler
from ld_agents.diffusion.sampling import linear_schedule, sample, solver_steps
from timing.harness import Result, Timing, check, duration, in_turn, preset_settings, random_dataset, versus

HORIZON, BATCH_SIZE, ALPHA, SOLVER_STEPS = 30, 128, 0.7, 10
CALLS_IN_A_ROW = 20  # of the prioritized samplers: one repetition
Part = tuple[list[Result], list[Result]]  # rows and checks


def measure(steps: int, loop_windows: int, states: int, candidates: int, repetitions: int) -> Result:
    parts = (
        compare_windows(steps, loop_windows, repetitions),
        compare_prioritized(steps, repetitions),
        compare_candidates(states, candidates, repetitions),
    )
    rows, checks = ([item for part in parts for item in part[i]] for i in (0, 1))
    return {"rows": rows, "checks": checks, "settings": preset_settings("LDCQ paper")}


def copied_windows(arrays: Sequence[NDArray[np.float32]], starts: Sequence[int]) -> tuple[Tensor, ...]:
    """A Python loop over starts, a copy of each array per window, then a stack of each."""
    windows: list[list[Tensor]] = [[] for _ in arrays]
    for t in starts:
        for copies, array in zip(windows, arrays, strict=True):
            copies.append(torch.tensor(array[t : t + HORIZON], dtype=torch.float32))
    return tuple(torch.stack(copies) for copies in windows)


def gathered_windows(data: OfflineDataset, starts: Tensor) -> tuple[Tensor, ...]:
    return *data.windows(starts, HORIZON), data.window_rewards(starts, HORIZON)


def compare_windows(steps: int, loop_windows: int, repetitions: int) -> Part:
    data = random_dataset(steps)
    starts = data.window_starts(HORIZON)
    arrays = data.observations.numpy(), data.actions.numpy(), data.rewards.numpy()
    chosen = starts[:loop_windows].long()
    n, listed = len(chosen), chosen.tolist()
    built, gathered = copied_windows(arrays, listed), gathered_windows(data, chosen)
    # random places all over the data: the worst case for a gather
    places = torch.randperm(len(starts), generator=torch.Generator().manual_seed(0))[:n]
    batches = [batch.long() for batch in starts[places].split(BATCH_SIZE)]
    rows_of_built = torch.randperm(n, generator=torch.Generator().manual_seed(1)).split(BATCH_SIZE)
    seconds = in_turn(
        {
            "starts": lambda: data.window_starts(HORIZON),
            "copy": lambda: copied_windows(arrays, listed),
            "gather": lambda: gathered_windows(data, chosen),
            "anywhere": lambda: [gathered_windows(data, batch) for batch in batches],
            "rows": lambda: [[part[rows] for part in built] for rows in rows_of_built],
        },
        repetitions,
    )
    start = np.array(seconds["starts"]) / len(starts)  # all are seconds per window
    copy, gather, anywhere, row = (np.array(seconds[name]) / n for name in ("copy", "gather", "anywhere", "rows"))
    rows = [
        versus("windows: build all", "window", copy, start + gather, required=50),
        versus("windows: before the first batch", "dataset", copy * len(starts), start * len(starts)),
        versus("windows: each batch after that", f"batch of {BATCH_SIZE}", row * BATCH_SIZE, anywhere * BATCH_SIZE),
        versus("windows: one epoch, all in", "window", copy + row, start + anywhere),
    ]
    different = sum(int((a != b).sum()) for a, b in zip(built, gathered, strict=True))
    return rows, [check("windows: numbers that differ in any bit", different, 0)]


def compare_prioritized(items: int, repetitions: int) -> Part:
    generator, torch_generator = np.random.RandomState(0), torch.Generator().manual_seed(0)
    priorities = (generator.exponential(size=items) + 1e-6).astype(np.float32)
    sampler = PrioritizedSampler(torch.as_tensor(priorities), ALPHA)
    new = generator.exponential(size=BATCH_SIZE).astype(np.float32)
    new_tensor = torch.from_numpy(new)

    changed = generator.permutation(items)[: items // 10]  # both get the same updates
    priorities[changed] = (generator.exponential(size=len(changed)) * 3 + 1e-6).astype(np.float32)
    sampler.update(torch.as_tensor(changed), torch.as_tensor(priorities[changed]))
    true = priorities.astype(np.float64) ** ALPHA
    drawn, stated = (part.numpy() for part in sampler.draw(10_000, torch_generator))
    error = float(np.abs(stated * true.sum() / true[drawn] - 1).max())

    def over_all(calls: int) -> None:
        """Powers, division and `choice` over all items."""
        for _ in range(calls):
            probabilities = priorities**ALPHA
            probabilities /= probabilities.sum()
            indices = generator.choice(items, BATCH_SIZE, p=probabilities)
            probabilities[indices]  # what the importance weights need
            for index, priority in zip(indices, new, strict=True):
                priorities[index] = priority

    def ours(calls: int) -> None:
        for _ in range(calls):
            indices, _ = sampler.draw(BATCH_SIZE, torch_generator)
            sampler.update(indices, new_tensor)

    rows = []
    for name, calls, n, required in (
        ("prioritized sampling", CALLS_IN_A_ROW, repetitions, 50),
        ("prioritized sampling, one call at a time", 1, 3 * repetitions, None),
    ):
        seconds = in_turn({"over all": partial(over_all, calls), "ours": partial(ours, calls)}, n)
        plain, fast = (np.array(values) / calls for values in seconds.values())
        rows.append(versus(name, f"draw of {BATCH_SIZE} and update", plain, fast, required))
    return rows, [check("prioritized: relative error of the stated probabilities", error, 1e-4)]


@torch.no_grad()
def compare_candidates(n_states: int, candidates: int, repetitions: int) -> Part:
    agent = LDCQ("MlpPolicy", random_dataset(800), preset="paper", seed=0, device="cpu", solver_steps=SOLVER_STEPS)
    policy, generator = agent.policy, torch.Generator().manual_seed(0)
    policy.set_training_mode(False)
    network = policy.denoiser
    for module in network.modules():  # the norms of a fresh network are the identity, which would hide mistakes
        if isinstance(module, torch.nn.LayerNorm):
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    states = torch.randn(n_states, policy.state_dim, generator=generator)
    repeated = states.repeat_interleave(candidates, dim=0)
    few = solver_steps(linear_schedule(policy.settings.diffusion_steps), policy.settings.solver, SOLVER_STEPS)
    many = solver_steps(linear_schedule(100, rescaled=False), "ddpm", 100, extra_steps=5)  # as in the released code
    shape = (n_states, candidates, policy.settings.latent_dim)

    def noise(k: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def per_candidate(steps: Sequence[Any], noise: Any = noise) -> Tensor:
        """Every row has a state and a step of its own, which the network takes in anew in every call."""
        rows = lambda x, k: network(x.flatten(0, 1), torch.full((len(repeated),), steps[k].j), repeated).view(shape)  # noqa: E731
        return sample(rows, steps, noise(0), noise)

    start = noise(0)
    plain, hoisted = per_candidate(few, lambda k: start), policy.draw_latents(states, lambda k: start)
    seconds = in_turn(
        {
            "ancestral": lambda: per_candidate(many),
            "not hoisted": lambda: per_candidate(few),
            "ours": lambda: policy.draw_latents(states, noise),
        },
        repetitions,
    )
    unit = f"{n_states} x {candidates} candidates"
    rows = [
        versus("candidate latents", unit, seconds["ancestral"], seconds["ours"], required=20),
        versus("candidate latents, the exact part", unit, seconds["not hoisted"], seconds["ours"]),
    ]
    error = float((plain - hoisted).abs().max())
    return rows, [check("candidates: largest difference of the latents", error, 1e-5)]


def cells(result: Result) -> Iterable[Result]:
    for row in result["rows"]:
        sides = {side: duration(seconds) for side, seconds in row["seconds"].items()}
        yield {"what": row["name"], "per": row["unit"], **sides, "ratio": row["ratio"], "required": row["required"]}


SPEED = Timing(
    name="speed",
    file="speed",
    doc=__doc__,
    sizes={
        "steps": 1_000_000,  # of the dataset, and items of the prioritized samplers
        "loop_windows": 20_000,  # built in one repetition
        "states": 8,  # that candidates are drawn at
        "candidates": 100,  # per state
        "repetitions": 9,
    },
    quick={"steps": 8000, "loop_windows": 64, "states": 2, "candidates": 3, "repetitions": 1},
    measure=measure,
    cells=cells,
)
