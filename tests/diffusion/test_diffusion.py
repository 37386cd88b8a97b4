"""Schedules, the forward process, and the coefficients of the solvers."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import pytest
import torch
from analytic_guidance import vp
from guided import no_noise
from torch import Tensor

from ld_agents.diffusion.sampling import (
    Diffuser,
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

# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("n_steps", "alpha_bar", "snr", "share_above_5"),
    [(100, 0.364, 0.571, 0.42), (200, 0.132, 0.152, 0.30), (500, 0.0064, 0.0064, 0.19), (1000, 4e-5, 4e-5, 0.13)],
)
def test_released_schedule_ends_far_from_noise(
    n_steps: int, alpha_bar: float, snr: float, share_above_5: float
) -> None:
    """Numbers measured on LDCQ's released code."""
    schedule = linear_schedule(n_steps, rescaled=False)
    assert float(schedule.alpha_bar[-1]) == pytest.approx(alpha_bar, rel=0.02, abs=5e-4 if n_steps < 500 else 0)
    assert float(schedule.snr[-1]) == pytest.approx(snr, rel=0.02)
    assert float((schedule.snr[1:] > 5).double().mean()) == pytest.approx(share_above_5, abs=0.006)
    # entry 0 is counted in the product
    assert float(schedule.alpha_bar[1]) == pytest.approx((1 - 1e-4) ** 2, abs=1e-12)
    assert float(schedule.beta[1]) == pytest.approx(1e-4)
    assert float(schedule.beta[-1]) == pytest.approx(0.02)


@pytest.mark.parametrize("n_steps", [30, 50, 100, 200, 500, 1000])
def test_rescaled_schedule_ends_in_noise(n_steps: int) -> None:
    schedule = linear_schedule(n_steps)
    assert schedule.alpha_bar.shape == schedule.beta.shape == (n_steps + 1,)
    assert float(schedule.alpha_bar[-1]) < 5e-5
    assert float(schedule.alpha_bar[0]) == 1.0
    assert float(schedule.beta[1]) == pytest.approx(0.1 / n_steps)
    assert float(schedule.beta[-1]) == pytest.approx(20 / n_steps)
    assert float(schedule.alpha_bar[1]) == pytest.approx(1 - 0.1 / n_steps, abs=1e-12)
    assert (schedule.alpha_bar.diff() < 0).all()
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(n_steps + 1, dtype=torch.float64))
    torch.testing.assert_close(schedule.snr[1:], (schedule.signal / schedule.noise)[1:] ** 2)


def test_both_schedules_agree_for_a_thousand_steps() -> None:
    one, other = (linear_schedule(1000, rescaled=rescaled).beta[1:] for rescaled in (True, False))
    torch.testing.assert_close(one, other)


def test_rescaled_schedule_needs_thirty_steps() -> None:
    with pytest.raises(ValueError, match="at least 30 diffusion steps, got 29"):
        linear_schedule(29)
    linear_schedule(29, rescaled=False)


def test_continuous_schedule() -> None:
    schedule = VPSchedule()
    tau = torch.tensor([[1e-3, 0.1], [0.5, 1.0]])
    alpha, sigma = schedule.signal(tau), schedule.noise(tau)
    assert alpha.shape == tau.shape
    assert alpha.dtype == sigma.dtype == schedule.log_snr(tau).dtype == torch.float64
    assert alpha.flatten().tolist() == pytest.approx([0.999945, 0.946722, 0.281184, 0.006572], abs=2e-6)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-15)
    torch.testing.assert_close(schedule.log_signal(tau).exp(), alpha)
    torch.testing.assert_close(schedule.log_snr(tau), (alpha**2 / sigma**2).log(), rtol=1e-10, atol=0)
    tau = torch.logspace(-6, 0, 50, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(tau)), tau, rtol=1e-12, atol=0)
    assert vp(0.3) == pytest.approx(
        (float(schedule.signal(tau.new_tensor(0.3))), float(schedule.noise(tau.new_tensor(0.3))))
    )


def test_continuous_schedule_is_the_limit_of_the_linear_one() -> None:
    continuous, discrete = VPSchedule(), linear_schedule(10_000)
    j = torch.tensor([1, 100, 2000, 10_000])
    torch.testing.assert_close(discrete.signal[j], continuous.signal(j / 10_000), rtol=0.004, atol=0)


# ---------------------------------------------------------------- forward process and loss


def test_forward_process_has_the_marginals_of_the_schedule() -> None:
    schedule = linear_schedule(100)
    diffuser = Diffuser(schedule)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((200_000, 1), 2.0)
    epsilon = torch.randn(x0.shape, generator=generator)
    for j in (1, 40, 100):
        z = diffuser.add_noise(x0, torch.full((len(x0),), j), epsilon)
        alpha_bar = float(schedule.alpha_bar[j])
        assert float(z.mean()) == pytest.approx(2 * alpha_bar**0.5, abs=0.01)
        assert float(z.std()) == pytest.approx((1 - alpha_bar) ** 0.5, rel=0.01)
    rows = diffuser.add_noise(torch.ones(2, 3), torch.tensor([1, 100]), torch.zeros(2, 3))
    torch.testing.assert_close(rows, schedule.signal[[1, 100], None].float().expand(2, 3))


def test_forward_process_in_continuous_time() -> None:
    schedule = VPSchedule()
    x0, epsilon = torch.full((3, 2, 5), 2.0), torch.full((3, 2, 5), -1.0)
    tau = torch.tensor([0.01, 0.4, 1.0])
    z = schedule.add_noise(x0, tau, epsilon)
    assert z.dtype == torch.float32
    for row, time in zip(z, tau.tolist(), strict=True):
        alpha, sigma = vp(time)
        torch.testing.assert_close(row, torch.full((2, 5), 2 * alpha - sigma))


def test_predicted_noise_becomes_x0() -> None:
    alpha, sigma = vp(0.7)
    x0, epsilon = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = alpha * x0 + sigma * epsilon
    torch.testing.assert_close(x0_from_noise(z, epsilon, alpha, sigma), x0)
    slope = torch.cos(x0)
    # guidance enters the noise as - sigma times the gradient
    guided = (z - sigma * (epsilon - 0.5 * sigma * slope)) / alpha
    torch.testing.assert_close(x0_from_noise(z, epsilon, alpha, sigma, slope, 0.5), guided)


def test_diffusion_steps_are_drawn_uniformly_from_one_to_T() -> None:
    diffuser = Diffuser(linear_schedule(30))
    counts = diffuser.random_steps(60_000, torch.Generator().manual_seed(0)).bincount(minlength=31)
    assert counts[0] == 0
    assert len(counts) == 31
    assert ((counts[1:] - 2000).abs() < 5 * 2000**0.5).all()


def test_min_snr_loss_by_hand() -> None:
    schedule = linear_schedule(100)
    diffuser = Diffuser(schedule)
    j = torch.tensor([1, 60])
    snr = schedule.snr[j].tolist()
    assert snr[0] > 5 > snr[1]
    x0, prediction = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    expected = (5 * 1 + 5 * 0 + snr[1] * 0 + snr[1] * 9) / 4
    assert float(diffuser.min_snr_loss(x0, prediction, j, gamma=5.0)) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- coefficients of the solvers


def test_ancestral_steps_are_those_of_the_released_sampler() -> None:
    """The chain in its usual form, by the noise that the prediction implies (methods of Ho et al. 2020)."""
    schedule = linear_schedule(40, rescaled=False)
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(50, 6, 3, generator=generator)

    def denoise(x: Tensor) -> Tensor:
        return torch.tanh(2 * x) * 0.7

    steps = solver_steps(schedule, "ddpm", 7, extra_steps=5)
    assert [step.j for step in steps] == [*range(40, 0, -1), 1, 1, 1, 1, 1]
    asked: list[int] = []

    def noise(k: int) -> Tensor:
        asked.append(k)
        return noises[k]

    result = sample(lambda x, k: denoise(x), steps, noises[0], noise)
    assert asked == list(range(1, 40))  # none at j = 1

    z = noises[0].double()
    for k, j in enumerate([*range(40, 0, -1), 1, 1, 1, 1, 1]):
        beta, alpha_bar = float(schedule.beta[j]), float(schedule.alpha_bar[j])
        predicted = denoise(z.float()).double()
        epsilon = (z - alpha_bar**0.5 * predicted) / (1 - alpha_bar) ** 0.5
        z = (z - epsilon * beta / (1 - alpha_bar) ** 0.5) / (1 - beta) ** 0.5
        if j > 1:
            z = z + beta**0.5 * noises[k + 1].double()
    torch.testing.assert_close(result, z.float(), rtol=1e-4, atol=1e-5)


def test_ddim_steps_keep_the_implied_noise() -> None:
    """Song et al. 2021, eq. 12 with eta = 0."""
    schedule = linear_schedule(100)
    start = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))

    def denoise(x: Tensor) -> Tensor:
        return torch.tanh(x)

    steps = solver_steps(schedule, "ddim", 6)
    x = start.double()
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        predicted = denoise(x.float()).double()
        epsilon = (x - schedule.signal[step.j] * predicted) / schedule.noise[step.j]
        x = predicted
        if following is not None:
            x = schedule.signal[following.j] * predicted + schedule.noise[following.j] * epsilon
    torch.testing.assert_close(sample(lambda x, k: denoise(x), steps, start, no_noise), x.float())


def test_dpm_solver_steps() -> None:
    """Lu et al. 2022, algorithm 2 (data prediction): the half log-SNR lambda is the time."""
    schedule = linear_schedule(200)
    start = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))

    def denoise(x: Tensor) -> Tensor:
        return torch.tanh(x)

    steps = solver_steps(schedule, "dpm++2m", 7)
    half_log_snr = 0.5 * schedule.snr.log()
    x, previous, previous_h = start.double(), None, 0.0
    for step, following in itertools.pairwise(steps):
        predicted = denoise(x.float()).double()
        h = float(half_log_snr[following.j] - half_log_snr[step.j])
        slope = predicted
        if previous is not None:
            r = previous_h / h
            slope = (1 + 1 / (2 * r)) * predicted - 1 / (2 * r) * previous
        ratio = schedule.noise[following.j] / schedule.noise[step.j]
        x = ratio * x - schedule.signal[following.j] * (math.exp(-h) - 1) * slope
        previous, previous_h = predicted, h
    expected = denoise(x.float())  # the last step goes all the way to the prediction
    torch.testing.assert_close(sample(lambda x, k: denoise(x), steps, start, no_noise), expected)


@pytest.mark.parametrize(("grid", "n_steps"), [("log-snr", 8), ("time", 7)])
@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "dpm++2s"])
@pytest.mark.parametrize("final_denoise", [False, True])
def test_continuous_solver_steps(
    solver: VPSolver, grid: Literal["log-snr", "time"], n_steps: int, final_denoise: bool
) -> None:
    """In the form of Lu et al. 2022, algorithms 1 and 2, with half the log SNR as the time."""
    schedule = VPSchedule()
    steps = vp_solver_steps(schedule, n_steps, solver=solver, grid=grid, tau_end=2e-3, final_denoise=final_denoise)
    times = [step.time for step in steps] + ([] if final_denoise else [2e-3])
    assert len(steps) == n_steps
    assert [times[0], times[-1]] == pytest.approx([1.0, 2e-3])
    tau = torch.tensor(times, dtype=torch.float64)
    gaps = (schedule.log_snr(tau) if grid == "log-snr" else tau).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps))

    def denoise(x: Tensor) -> Tensor:
        return torch.tanh(1.5 * x) - 0.1

    alpha, sigma, half_log_snr = schedule.signal(tau), schedule.noise(tau), 0.5 * schedule.log_snr(tau)

    def towards(x: Tensor, i: int, j: int, slope: Tensor) -> Tensor:
        h = half_log_snr[j] - half_log_snr[i]
        return sigma[j] / sigma[i] * x - alpha[j] * torch.expm1(-h) * slope

    start = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, k, predictions = start, 0, []
    while k + 1 < len(times):
        predictions.append(denoise(x))
        if solver == "dpm++2s" and k + 2 < len(times):
            middle = towards(x, k, k + 1, predictions[-1])
            r = float((half_log_snr[k + 1] - half_log_snr[k]) / (half_log_snr[k + 2] - half_log_snr[k]))
            x = towards(x, k, k + 2, (1 - 1 / (2 * r)) * predictions[-1] + 1 / (2 * r) * denoise(middle))
            k += 2
            continue
        slope = predictions[-1]
        if solver == "dpm++2m" and k > 0:
            r = float((half_log_snr[k] - half_log_snr[k - 1]) / (half_log_snr[k + 1] - half_log_snr[k]))
            slope = (1 + 1 / (2 * r)) * predictions[-1] - 1 / (2 * r) * predictions[-2]
        x = towards(x, k, k + 1, slope)
        k += 1
    expected = denoise(x) if final_denoise else x
    found = sample(lambda x, k: denoise(x), steps, start, no_noise)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m"])
@pytest.mark.parametrize(("n_diffusion", "n_steps"), [(30, 1), (30, 2), (30, 29), (30, 30), (200, 8), (1000, 20)])
def test_grid_of_few_step_solvers(solver: Solver, n_diffusion: int, n_steps: int) -> None:
    schedule = linear_schedule(n_diffusion)
    steps = solver_steps(schedule, solver, n_steps)
    j = [step.j for step in steps]
    assert len(j) == n_steps
    assert j[0] == n_diffusion
    assert all(a > b >= 1 for a, b in itertools.pairwise(j))
    assert steps[-1][1:] == (0.0, 1.0, 0.0, 0.0)
    assert all(step.s == 0 for step in steps)
    if n_steps > 1:
        assert j[-1] == 1
    if (n_diffusion, n_steps) == (1000, 20):
        gaps = schedule.snr[j].log().diff()
        assert float(gaps[5:].max() / gaps[5:].min()) < 2  # even in log SNR, as far as whole numbers allow


def test_wrong_solvers() -> None:
    schedule = linear_schedule(50)
    with pytest.raises(ValueError, match=r"Unknown solver 'euler'. Use 'ddpm', 'ddim' or 'dpm\+\+2m'"):
        solver_steps(schedule, "euler", 5)  # type: ignore[arg-type]
    for n_steps in (0, 51):
        with pytest.raises(ValueError, match=rf"n_steps must lie in 1\.\.50 .* got {n_steps}"):
            solver_steps(schedule, "ddim", n_steps)


def test_wrong_continuous_solvers() -> None:
    schedule = VPSchedule()
    with pytest.raises(ValueError, match=r"Unknown solver 'ddpm'. Use 'ddim', 'dpm\+\+2m' or 'dpm\+\+2s'"):
        vp_solver_steps(schedule, 5, solver="ddpm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Unknown grid 'quadratic'. Use 'log-snr' or 'time'"):
        vp_solver_steps(schedule, 5, grid="quadratic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"n_steps must be at least 1 and tau_end in \(0, 1\), got 0 and 0\.001"):
        vp_solver_steps(schedule, 0)
    with pytest.raises(ValueError, match="got 5 and 0"):
        vp_solver_steps(schedule, 5, tau_end=0)


def test_sample_takes_no_gradient_and_keeps_its_start() -> None:
    start = torch.ones(3, 2)
    weight = torch.ones(2, requires_grad=True)
    steps = [SolverStep(2, 0.5, 0.25, 0.0, 1.0), SolverStep(1, 0.5, 1.0, 2.0, 0.0)]
    seen = []

    def denoise(x: Tensor, k: int) -> Tensor:
        seen.append((k, float(x[0, 0])))
        return x * weight

    result = sample(denoise, steps, start, lambda k: torch.full((3, 2), 10.0 * k))
    # 0.5 * 1 + 0.25 * 1 + 10 = 10.75; then 0.5 * 10.75 + 10.75 + 2 * 1
    assert seen == [(0, 1.0), (1, 10.75)]
    assert result.tolist() == [[18.125, 18.125]] * 3
    assert not result.requires_grad
    assert start.tolist() == [[1.0, 1.0]] * 3


@pytest.mark.parametrize(
    ("solver", "n_steps", "rescaled", "extra", "total", "absolute", "one"),
    [
        ("ddpm", 0, True, 0, -58.87993, 60.00766, -1.01061),
        ("ddpm", 0, False, 5, -19.77159, 53.49025, -1.00791),
        ("ddim", 10, True, 0, -11.63477, 54.67865, -1.02627),
        ("dpm++2m", 10, True, 0, -12.00358, 55.19762, -1.02413),
    ],
)
def test_golden_numbers_of_whole_chains(
    solver: Solver, n_steps: int, rescaled: bool, extra: int, total: float, absolute: float, one: float
) -> None:
    start = torch.linspace(-2, 2, 64, dtype=torch.float64).view(16, 4)
    steps = solver_steps(linear_schedule(100, rescaled=rescaled), solver, n_steps, extra_steps=extra)
    x = sample(lambda x, k: torch.tanh(1.5 * x) - 0.1, steps, start, lambda k: torch.cos(start * k))
    assert float(x.sum()) == pytest.approx(total, abs=2e-5)
    assert float(x.abs().sum()) == pytest.approx(absolute, abs=2e-5)
    assert float(x[3, 1]) == pytest.approx(one, abs=2e-5)
