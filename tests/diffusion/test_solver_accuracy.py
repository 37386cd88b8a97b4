"""How close few-step solvers come: order of convergence, masses of modes, distance to full chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from analytic_guidance import Energy, Mixture, gradient, vp
from guided import no_noise
from torch import Tensor

from ld_agents.diffusion.sampling import (
    NoiseSchedule,
    Solver,
    SolverStep,
    VPSchedule,
    VPSolver,
    linear_schedule,
    sample,
    solver_steps,
    vp_solver_steps,
    x0_from_noise,
)

# ---------------------------------------------------------------- accuracy of the few-step solvers


def gaussian_denoiser(
    schedule: NoiseSchedule, steps: list[SolverStep], mean: float, std: float
) -> Callable[[Tensor, int], Tensor]:
    """E[x0 | x_j] where x0 is N(mean, std^2)."""

    def denoise(x: Tensor, k: int) -> Tensor:
        alpha_bar = float(schedule.alpha_bar[steps[k].j])
        gain = alpha_bar**0.5 * std**2 / (alpha_bar * std**2 + 1 - alpha_bar)
        return mean + gain * (x - alpha_bar**0.5 * mean)

    return denoise


def solver_error(solver: Solver, n_steps: int) -> float:
    """Distance to the exact solution of the probability flow, which is linear for Gaussian data."""
    mean, std = 0.5, 0.3
    schedule = linear_schedule(1000)
    steps = solver_steps(schedule, solver, n_steps)
    start = torch.linspace(-3, 3, 101, dtype=torch.float64)[:, None]
    found = sample(gaussian_denoiser(schedule, steps, mean, std), steps, start, no_noise)
    spread = [float((schedule.alpha_bar[j] * std**2 + 1 - schedule.alpha_bar[j]).sqrt()) for j in (1000, 0)]
    exact = mean + (start - float(schedule.signal[-1]) * mean) * spread[1] / spread[0]
    return float((found - exact).abs().max())


def test_dpm_solver_is_of_second_order_and_ddim_of_first() -> None:
    ddim = [solver_error("ddim", n) for n in (10, 20, 40)]
    dpm = [solver_error("dpm++2m", n) for n in (10, 20, 40)]
    assert 1.5 < ddim[0] / ddim[1] < 3
    assert 1.5 < ddim[1] / ddim[2] < 3
    assert dpm[0] / dpm[2] > 8
    assert all(fast < slow / 2 for fast, slow in zip(dpm, ddim, strict=True))


def guided_gaussian(solver: VPSolver, grid: Literal["log-snr", "time"], n_steps: int) -> tuple[float, float]:
    """Mean and standard deviation of N(0, 1) tilted by exp(-2 (x - 2)^2), exact up to the solver: 1.6 and 0.4472.

    The chain is an affine map of its noise, so two starts tell its moments.
    """
    one = torch.ones(1, dtype=torch.float64)
    prior, energy = Mixture(one, 0 * one[:, None], one[:, None, None]), Energy(4.0, one[:, None], 2 * one, 0 * one)
    steps = vp_solver_steps(VPSchedule(), n_steps, solver=solver, grid=grid)

    def denoise(z: Tensor, k: int) -> Tensor:
        alpha, sigma = vp(steps[k].time)
        slope = -gradient(lambda z: prior.noisy_energy("exact", energy, z, alpha, sigma), z)
        return x0_from_noise(z, sigma * z, alpha, sigma, slope)

    x = sample(denoise, steps, torch.tensor([[0.0], [1.0]], dtype=torch.float64), no_noise)
    return float(x[0]), float(x[1] - x[0])


@pytest.mark.parametrize(
    ("solver", "grid", "stds"),
    [
        ("dpm++2m", "time", (0.496, 0.611, 0.587, 0.556, 0.512)),
        ("dpm++2m", "log-snr", (0.428, 0.462, 0.457, 0.453, 0.450)),
        ("dpm++2s", "time", (0.231, 0.506, 0.389, 0.470, 0.455)),  # QGPO's choice
        ("dpm++2s", "log-snr", (0.306, 0.381, 0.413, 0.426, 0.437)),
        ("ddim", "log-snr", (0.283, 0.352, 0.381, 0.397, 0.413)),
    ],
)
def test_solver_errors_under_guidance(
    solver: VPSolver, grid: Literal["log-snr", "time"], stds: tuple[float, ...]
) -> None:
    """With 5, 10, 15, 20 and 30 evaluations."""
    for n_steps, expected in zip((5, 10, 15, 20, 30), stds, strict=True):
        mean, std = guided_gaussian(solver, grid, n_steps)
        assert mean == pytest.approx(1.6, abs=0.01)
        assert std == pytest.approx(expected, abs=6e-4)


MASSES, CENTERS, WIDTH = (0.8, 0.2), (-1.0, 1.0), 0.1


def mixture_denoiser(schedule: NoiseSchedule, steps: list[SolverStep]) -> Callable[[Tensor, int], Tensor]:
    """E[x0 | x_j] where x0 has two narrow modes: 80 % at -1 and 20 % at +1. Exact."""
    masses, centers = torch.tensor(MASSES), torch.tensor(CENTERS)

    def denoise(x: Tensor, k: int) -> Tensor:
        alpha_bar = float(schedule.alpha_bar[steps[k].j])
        variance = alpha_bar * WIDTH**2 + 1 - alpha_bar
        distance = x - alpha_bar**0.5 * centers  # [n, 2]
        responsibility = torch.softmax(masses.log() - distance**2 / (2 * variance), 1)
        means = centers + alpha_bar**0.5 * WIDTH**2 / variance * distance
        return (responsibility * means).sum(1, keepdim=True)

    return denoise


def draw_mixture(
    solver: Solver, n_steps: int, *, n_diffusion: int = 500, rescaled: bool = True, extra: int = 0, n: int, seed: int
) -> Tensor:
    schedule = linear_schedule(n_diffusion, rescaled=rescaled)
    steps = solver_steps(schedule, solver, n_steps, extra_steps=extra)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(n, 1, generator=generator)
    return sample(mixture_denoiser(schedule, steps), steps, start, lambda k: torch.randn(n, 1, generator=generator))


def minority(x: Tensor) -> float:
    return float((x > 0).float().mean())


@pytest.mark.parametrize("n_diffusion", [100, 200, 500])
@pytest.mark.parametrize(
    ("solver", "n_steps", "shift", "width"),
    [("dpm++2m", 10, 0.08, 0.25), ("dpm++2m", 20, 0.01, 0.1), ("ddim", 20, 0.06, 0.25)],
)
def test_few_steps_keep_the_masses_of_two_modes(
    solver: Solver, n_steps: int, shift: float, width: float, n_diffusion: int
) -> None:
    """Within 0.02. Ten steps, and DDIM's twenty, move a mode as narrow as this by most of its width."""
    x = draw_mixture(solver, n_steps, n_diffusion=n_diffusion, n=40_000, seed=0)
    assert minority(x) == pytest.approx(0.2, abs=0.02)
    for mode in (x[x < 0], x[x > 0]):
        assert float(mode.abs().mean()) == pytest.approx(1.0, abs=shift)
        assert float(mode.std()) == pytest.approx(WIDTH, rel=width)


def test_eight_steps_nearly_keep_the_masses() -> None:
    """What the fast preset uses."""
    x = draw_mixture("dpm++2m", 8, n_diffusion=200, n=40_000, seed=0)
    assert minority(x) == pytest.approx(0.2, abs=0.025)


def test_full_chain_keeps_the_masses_of_two_modes() -> None:
    x = draw_mixture("ddpm", 0, n=40_000, seed=1)
    assert minority(x) == pytest.approx(0.2, abs=0.01)
    for mode in (x[x < 0], x[x > 0]):
        assert float(mode.std()) == pytest.approx(WIDTH, rel=0.2)


def test_released_chain_of_100_steps_flattens_the_masses() -> None:
    """The defect that `rescaled=True` is there for. How large it is depends on the width of the modes."""
    x = draw_mixture("ddpm", 0, n_diffusion=100, rescaled=False, extra=5, n=20_000, seed=2)
    assert 0.27 < minority(x) < 0.4
    longer = draw_mixture("ddpm", 0, n_diffusion=500, rescaled=False, extra=5, n=20_000, seed=2)
    assert minority(longer) == pytest.approx(0.203, abs=0.01)


def energy_distance(x: Tensor, y: Tensor) -> float:
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def test_few_step_samples_are_within_the_noise_of_two_full_runs() -> None:
    """Sets of 500 samples: as many candidates as the paper preset draws."""
    full = draw_mixture("ddpm", 0, n_diffusion=200, n=500 * 64, seed=0).split(500)
    noise = torch.tensor([energy_distance(x, y) for x, y in zip(full[:32], full[32:], strict=True)])

    def distance(solver: Solver, n_steps: int) -> float:
        few = draw_mixture(solver, n_steps, n_diffusion=200, n=500 * 32, seed=1).split(500)
        return sum(energy_distance(x, y) for x, y in zip(few, full[:32], strict=True)) / 32

    largest = float(noise.quantile(0.95))
    assert distance("dpm++2m", 20) < largest
    assert distance("dpm++2m", 40) < largest
    assert distance("ddim", 100) < largest
    assert distance("dpm++2m", 20) < 1.5 * float(noise.mean())
    assert distance("dpm++2m", 8) > largest  # the test can tell
