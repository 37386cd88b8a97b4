"""The sampling loop of guided plans, with everything hoisted out of it that does not change from step to step.

What depends on weights and solver alone (`Fixed`) is computed once per set of weights, what depends on the state
once per plan. Several plans at one state share the latter.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ld_agents.diffusion.guidance import EnergyNet
from ld_agents.diffusion.sampling import SolverStep, VPSchedule, VPSolver, vp_solver_steps
from ld_agents.networks.denoisers import Dense, TemporalUNet

SCHEDULE = VPSchedule()
TAU_MIN = 1e-3


class SamplerSteps(NamedTuple):
    """The steps of a solver, with alpha and sigma at each."""

    steps: list[SolverStep]
    signal: list[float]
    noise: list[float]


@functools.cache
def sampler_steps(n_steps: int, solver: VPSolver, grid: str) -> SamplerSteps:
    """The steps from noise to `TAU_MIN`; see `vp_solver_steps` for the arguments."""
    steps = vp_solver_steps(SCHEDULE, n_steps, solver=solver, grid=grid, tau_end=TAU_MIN)  # type: ignore[arg-type]
    tau = torch.tensor([step.time for step in steps], dtype=torch.float64)
    return SamplerSteps(steps, SCHEDULE.signal(tau).tolist(), SCHEDULE.noise(tau).tolist())


class Fixed(NamedTuple):
    """What sampling needs of the weights and the solver alone."""

    denoiser: TemporalUNet
    energy: EnergyNet | None
    dense: list[Dense]
    time_terms: list[Tensor]  # per block [steps, channels]
    energy_time_terms: Sequence[Tensor | None]  # per step [hidden]
    steps: SamplerSteps


def fix(denoiser: TemporalUNet, energy: EnergyNet | None, steps: SamplerSteps) -> Fixed:
    """Computes `Fixed`."""
    tau = torch.tensor([step.time for step in steps.steps], device=next(denoiser.parameters()).device)
    energy_terms = list(energy.time_terms(tau)) if energy else [None] * len(tau)
    return Fixed(denoiser, energy, denoiser.dense(), denoiser.time_terms(tau), energy_terms, steps)


def sums(state_terms: list[Tensor], time_terms: list[Tensor]) -> list[list[Tensor]]:
    """Terms of every step and block. Shapes per block [n, channels], [steps, channels] -> per step [n, channels]."""
    by_block = [(state[None] + time[:, None]).unbind() for state, time in zip(state_terms, time_terms, strict=True)]
    return [list(of_step) for of_step in zip(*by_block, strict=True)]


def evaluate(
    x: Tensor, fixed: Fixed, terms: list[Tensor], energy_terms: Tensor | None, energy_times: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Predicted noise, and the gradient of the energy. Shapes [n, N, Z] and what is hoisted -> two of [n, N, Z]."""
    epsilon = fixed.denoiser.denoise(x, fixed.dense, terms)
    if fixed.energy is None or energy_terms is None or energy_times is None:
        return epsilon, None
    return epsilon, fixed.energy.gradient(x.flatten(1), energy_terms, energy_times).view_as(x)
