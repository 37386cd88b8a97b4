"""The studies: questions that the papers leave open, each answered by letting one setting vary. Plain data.

`suites.py` makes the suite `studies` of them, `reporting/studies.py` a table and a figure of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from specs import Run, bases

_LARGE, _HOPPER = "ld-agents/pointmaze/large", "ld-agents/locomotion/hopper"
MAZE = f"{_LARGE}-v0"
HAND = "ld-agents/adroit/pen-human-v0"  # of Adroit's human sets the one on which most agents score above zero
KITCHEN = "ld-agents/kitchen/mixed-v0"  # four of seven tasks in any order
TASKS = (MAZE, HAND)
SOLVING = ("LDCQ", "LatentDiffuser", "IQL", "TD3BC", "BC")  # the agents that have scores in the maze, and BC


class Cell(NamedTuple):
    """Runs of an agent on a dataset: a point of a line, over a value of what the study varies.

    `draws`: the latents that the point is about, by their name in `measuring.py`; None: those of the agent, and its
    score.
    """

    value: str
    line: str
    agent: str
    dataset: str
    draws: str | None = None


class Study(NamedTuple):
    """A question, what is varied for it, and the cells that answer it.

    `measures`: what the figure shows beside the score, keys of `measured` in the run files (`measuring.py`).
    """

    question: str
    setting: str
    cells: tuple[Cell, ...]
    measures: tuple[str, ...] = ()


def _agents(specs: Mapping[str, str], datasets: Sequence[str] = TASKS) -> tuple[Cell, ...]:
    """Agents by the value of the setting, a line per dataset."""
    pairs = itertools.product(datasets, specs.items())
    return tuple(Cell(value, dataset, agent, dataset) for dataset, (value, agent) in pairs)


def _over(name: str, values: Sequence[float], template: str, default: float | None = None) -> dict[str, str]:
    """Specs of an agent by the value of a setting; the default is what the agent has without it."""
    return {f"{value:g}": name if value == default else f"{name}[{template.format(value)}]" for value in values}


def _datasets(names: Mapping[str, str], agents: Sequence[str]) -> tuple[Cell, ...]:
    """Datasets by the value of what makes them differ, a line per agent."""
    return tuple(Cell(value, agent, agent, dataset) for agent in agents for value, dataset in names.items())


# The most telling first.
STUDIES: dict[str, Study] = {
    "prior": Study(
        "Does the diffusion prior cover what the data do, and does it stay within that, where a Gaussian does not?",
        "prior of LDCQ",
        _agents(
            {
                "diffusion, start noise 1.5": "LDCQ",
                "diffusion, start noise 1": "LDCQ[noise_scale=1.0]",
                "Gaussian": "LDCQ[prior=gaussian]",
            }
        ),
        ("covered", "outside", "action_error"),
    ),
    "batch_constraint": Study(
        "How much of what is chosen from lies outside the data, and how far is Q off what is chosen?",
        "latents of LDCQ, actions of the others",
        tuple(
            Cell(value, dataset, agent, dataset, draws)
            for dataset in TASKS
            for value, agent, draws in (
                ("LDCQ", "LDCQ", None),
                ("LDCQ's choice", "LDCQ", "chosen"),
                ("LDCQ, start noise 1", "LDCQ[noise_scale=1.0]", None),
                ("LDCQ, Gaussian prior", "LDCQ[prior=gaussian]", None),
                ("uniform latents", "LDCQ", "uniform"),
                ("TD3BC", "TD3BC", None),
                ("IQL", "IQL", None),
                ("CQL", "CQL", None),
            )
        ),
        ("outside", "unlikely", "overestimation"),
    ),
    "latent_dim": Study(
        "How large must a latent be? Larger ones are decoded better, smaller ones are easier to model and to value.",
        "numbers in a latent of LDCQ",
        _agents(_over("LDCQ", (2, 4, 8, 16, 32), "latent_dim={}", default=16)),
        ("action_error", "covered", "outside"),
    ),
    "horizon": Study(
        "How many steps should a latent stand for? More spread rewards faster, fewer are decoded better.",
        "steps per latent of LDCQ, which decides every 5 of them",
        (
            *_agents(_over("LDCQ", (5, 10, 20, 30, 40), "horizon={}", default=30), [MAZE]),
            *_agents(
                {"30": "LDCQ[exec_horizon=5]", **_over("LDCQ", (5, 10, 20, 40), "exec_horizon=5,horizon={}")}, [HAND]
            ),
        ),
        ("action_error", "action_spread", "covered", "overestimation"),
    ),
    "candidates": Study(
        "How many candidates should LDCQ choose from when it acts?",
        "candidates",
        _agents(_over("LDCQ", (1, 3, 10, 30, 100, 300), "candidates_acting={}", default=100)),
        ("plan_ms",),
    ),
    "inverse_temperature": Study(
        "How strongly should LatentDiffuser's plans be tilted towards high returns?",
        "inverse temperature (0: no guidance)",
        _agents(
            {
                "0": "LatentDiffuser[guidance=none]",
                **_over("LatentDiffuser", (1, 3, 10, 30), "inverse_temperature={}", 3),
            }
        ),
        ("tilt", "plan_ms"),
    ),
    "guidance_scale": Study(
        "What comes of a guidance scale that is not 1, for which guidance is exact?",
        "guidance scale of LatentDiffuser",
        _agents(
            {"0": "LatentDiffuser[guidance=none]", **_over("LatentDiffuser", (0.5, 1, 2, 4), "guidance_scale={}", 1)}
        ),
        ("tilt",),
    ),
    "latent_space": Study(
        "Do latents tell what the robot is about to do, and how many numbers does that take?",
        "numbers in a latent of LDCQ",
        _agents(_over("LDCQ", (2, 4, 8, 16, 32), "latent_dim={}", default=16), [KITCHEN]),
        ("action_error", "same_task", "covered"),
    ),
    "kl_weight": Study(
        "How regular must the latent space be?",
        "weight of the KL divergence in the loss of LDCQ's VAE",
        _agents(_over("LDCQ", (0, 0.005, 0.05, 0.5), "kl_weight={}", default=0.05)),
        ("action_error", "action_spread", "covered", "outside"),
    ),
    "steps_per_latent": Study(
        "How many steps should a latent of LatentDiffuser stand for?",
        "steps per latent, of plans of 32 steps",
        _agents(
            {
                "2": "LatentDiffuser[steps_per_latent=2,steps_per_token=2]",
                "4": "LatentDiffuser",
                "8": "LatentDiffuser[steps_per_latent=8]",
                "16": "LatentDiffuser[steps_per_latent=16]",
            }
        ),
        ("action_error", "plan_ms"),
    ),
    "plan_horizon": Study(
        "How far should LatentDiffuser plan, and what does a step more cost?",
        "steps per plan",
        _agents(_over("LatentDiffuser", (16, 32, 64), "horizon={}", default=32)),
        ("action_error", "plan_ms", "plan_mflop"),
    ),
    "raw_actions": Study(
        "Is planning in a latent space better than planning in the space of actions, and what does either cost?",
        "what LatentDiffuser plans",
        (
            *_agents({"latents": "LatentDiffuser", "raw actions": "LatentDiffuser[latent_space=false]"}),
            # in the maze both cost 117 MFLOP, here 246 and 417; with 8 solver steps instead of 15 it is 254
            Cell("raw actions, equal compute", HAND, "LatentDiffuser[latent_space=false,solver_steps=8]", HAND),
        ),
        ("plan_ms", "plan_mflop"),
    ),
    "diffusion_steps": Study(
        "How many noise levels must LDCQ's prior learn?",
        "diffusion steps; draws take as many solver steps as ever",
        _agents(_over("LDCQ", (50, 200, 1000), "diffusion_steps={}", default=200)),
        ("covered", "outside"),
    ),
    "guidance": Study(
        "Is exact guidance better than the approximate kinds?",
        "guidance of LatentDiffuser",
        _agents(
            {
                "none": "LatentDiffuser[guidance=none]",
                "posterior mean": "LatentDiffuser[guidance=posterior-mean]",
                "regression": "LatentDiffuser[guidance=mse]",
                "exact": "LatentDiffuser",
            },
            [MAZE],
        ),
        ("tilt", "plan_ms"),
    ),
    "denoiser": Study(
        "Is the residual U-Net a better denoiser of latents than plainer networks of as many parameters?",
        "denoiser of LDCQ, 0.41 million parameters each",
        _agents(
            {
                "residual MLP U-Net": "LDCQ",
                "MLP": "LDCQ[denoiser=mlp,denoiser_widths=[356,356,356]]",
                "Transformer": "LDCQ[denoiser=transformer,denoiser_widths=[116,116]]",
            }
        ),
        ("covered", "outside", "plan_ms"),
    ),
    "data_size": Study(
        "How much data do the agents need?",
        "share of a million steps of the maze's data, %",
        _datasets({"10": f"{_LARGE}-100k-v0", "30": f"{_LARGE}-300k-v0", "100": MAZE}, SOLVING),
    ),
    "data_quality": Study(
        "What do the agents make of data in which an expert's are mixed with those of a half-trained agent?",
        "expert's share of the steps, %",
        _datasets(
            {"0": f"{_HOPPER}-medium-v1", "50": f"{_HOPPER}-medium-expert-v1", "100": f"{_HOPPER}-expert-v0"}, SOLVING
        ),
    ),
    "wind": Study(
        "What do agents that plan ahead lose where gusts of wind blow?",
        "wind, % of the largest force of the point",
        _datasets({"0": MAZE, **{f"{n}": f"{_LARGE}-wind{n}-v0" for n in (10, 20, 40)}}, SOLVING),
    ),
    "action_noise": Study(
        "What do agents that plan ahead lose where actions are executed with noise?",
        "standard deviation of the noise, % of the largest action",
        _datasets({"0": MAZE, **{f"{n}": f"{_LARGE}-noise{n}-v0" for n in (25, 50, 100)}}, SOLVING),
    ),
}

_CELLS = [cell for study in STUDIES.values() for cell in study.cells]
_AGENTS = {cell.agent for cell in _CELLS}


def _others_before(pair: tuple[str, str]) -> int:
    """How many steps there are from an agent back to one that takes nothing over of what another has learned."""
    run = Run(*pair, seed=0, preset="fast", budget=1.0, episodes=100)
    before = [base for base in bases(run) if base.agent in _AGENTS]
    return 1 + _others_before((before[0].agent, pair[1])) if before else 0


# Agents and datasets of all studies, each once, after those that they can take something over from.
PAIRS = tuple(sorted(dict.fromkeys((cell.agent, cell.dataset) for cell in _CELLS), key=_others_before))
