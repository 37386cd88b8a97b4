"""Guidance against problems with exact answers (`analytic_guidance.py`)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from analytic_guidance import Atoms, Energy, Kind, Mixture, gradient, linear_quadratic_plan, vp
from guided import SCHEDULE, STATE, no_noise, normal_quantiles, tensor
from torch import Tensor

from ld_agents.diffusion.sampling import sample, vp_solver_steps, x0_from_noise

TIMES = (0.001, 0.01, 0.1, 0.3, 0.6, 1.0)


def guided_sample(
    score: Callable[[Tensor, float, float], Tensor],
    guide: Callable[[Tensor, float, float], Tensor],
    start: Tensor,
    n_steps: int,
    scale: float = 1.0,
) -> Tensor:
    """The sampler, given a score and the gradient of guidance as functions of (z, alpha, sigma)."""
    steps = vp_solver_steps(SCHEDULE, n_steps)

    def denoise(z: Tensor, k: int) -> Tensor:
        alpha, sigma = vp(steps[k].time)
        epsilon = -sigma * score(z, alpha, sigma)
        return x0_from_noise(z, epsilon, alpha, sigma, guide(z, alpha, sigma), scale)

    return sample(denoise, steps, start, no_noise)


def guided_mixture(
    prior: Mixture, energy: Energy, kind: Kind, start: Tensor, n_steps: int = 100, scale: float = 1.0
) -> Tensor:
    return guided_sample(
        lambda z, alpha, sigma: prior.noisy(alpha, sigma).score(z),
        lambda z, alpha, sigma: -gradient(lambda z: prior.noisy_energy(kind, energy, z, alpha, sigma), z),
        start,
        n_steps,
        scale,
    )


def guided_moments(
    prior: Mixture, energy: Energy, kind: Kind, n_steps: int = 300, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of the samples of a Gaussian prior."""
    dim = prior.means.shape[-1]
    start = torch.cat([torch.zeros(1, dim), torch.eye(dim)]).double()
    x = guided_mixture(prior, energy, kind, start, n_steps, scale)
    return x[0], (x[1:] - x[0]).T @ (x[1:] - x[0])


# ---------------------------------------------------------------- the closed forms themselves


def three_modes() -> tuple[Mixture, Energy]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def positive(*shape: int) -> Tensor:
        x = normal(*shape, 2, 2)
        return x @ x.mT / 2 + 0.2 * torch.eye(2)

    prior = Mixture(tensor(0.5, 0.3, 0.2), 2 * normal(3, 2), positive(3))
    return prior, Energy(2.0, positive(), normal(2), normal(2))


@pytest.mark.parametrize("tau", TIMES)
def test_noisy_energy_is_the_log_ratio_of_the_densities(tau: float) -> None:
    """T1. Energies up to 76, so that 1e-12 is rounding."""
    prior, energy = three_modes()
    target = prior.tilted(energy)
    alpha, sigma = vp(tau)
    z = 2 * torch.randn(256, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ratio = prior.noisy(alpha, sigma).log_density(z) - target.noisy(alpha, sigma).log_density(z)
    expected = ratio - prior.log_z(energy)
    found = prior.noisy_energy("exact", energy, z, alpha, sigma)
    assert float((found - expected).abs().max()) < 1e-12
    score = prior.noisy(alpha, sigma).score(z) - target.noisy(alpha, sigma).score(z)
    slope = gradient(lambda z: prior.noisy_energy("exact", energy, z, alpha, sigma), z)
    assert float((slope - score).abs().max()) < 1e-9
    for kind, wrong in (("mse", 0.01), ("posterior-mean", 0.01)):
        other = prior.noisy_energy(kind, energy, z, alpha, sigma)  # type: ignore[arg-type]
        assert float((other - expected).abs().max()) > wrong
        if kind == "mse":  # Jensen
            assert float((other - expected).min()) > -1e-12


@pytest.mark.parametrize("tau", TIMES)
def test_noisy_energy_of_atoms_with_any_returns(tau: float) -> None:
    """T7."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(40, generator=generator, dtype=torch.float64)
    atoms = Atoms(points, weights / weights.sum(), 5 * torch.rand(40, generator=generator, dtype=torch.float64))
    alpha, sigma = vp(tau)
    z = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    log_q, log_p = (atoms.log_shares(z, alpha, sigma, tilted=tilted).logsumexp(-1) for tilted in (False, True))
    log_z = (atoms.weights.log() + atoms.energies).logsumexp(0)  # log_p lacks the normalizer 1 / Z
    found = atoms.noisy_energy("exact", z, alpha, sigma)
    expected = log_q - (log_p - log_z) - log_z
    # where z lies far from every atom, log q is large: up to 4e6 at tau = 0.001
    assert float(((found - expected) / (1 + log_q.abs())).abs().max()) < 1e-14
    scores = atoms.score(z, alpha, sigma) - atoms.score(z, alpha, sigma, tilted=True)
    slope = gradient(lambda z: atoms.noisy_energy("exact", z, alpha, sigma), z)
    assert float(((slope - scores) * sigma**2).abs().max()) < 1e-9
    if tau > 0.01:  # else one atom has all the weight, and every energy is its return
        assert float((atoms.noisy_energy("mse", z, alpha, sigma) - expected).abs().max()) > 0.01


# ---------------------------------------------------------------- guided sampling


def scalar(beta: float = 4.0) -> tuple[Mixture, Energy]:
    """N(0, 1) and (x - 2)^2 / 2: the target is N(1.6, 0.4472^2)."""
    return Mixture(tensor(1.0), tensor([0.0]), tensor([[1.0]])), Energy(beta, tensor([1.0]), tensor(2.0), tensor(0.0))


@pytest.mark.parametrize(
    ("kind", "mean", "std"),
    [("exact", 1.5952, 0.4473), ("mse", 2.5530, 0.1354), ("posterior-mean", 2.5530, 0.1354), ("none", 0.0, 1.0)],
)
def test_quadratic_energy(kind: Kind, mean: float, std: float) -> None:
    """T2. The noise at tau = 1 is not quite N(0, 1), which costs 0.005 of the mean."""
    prior, energy = scalar()
    found_mean, found_variance = guided_moments(prior, energy, kind)
    assert float(found_mean) == pytest.approx(mean, abs=3e-4)
    assert float(found_variance) ** 0.5 == pytest.approx(std, abs=3e-4)
    target = prior.tilted(energy)
    assert float(target.mean) == pytest.approx(1.6)
    assert float(target.covariance) ** 0.5 == pytest.approx(0.2**0.5)
    close = abs(float(found_mean) - 1.6) < 0.05 and abs(float(found_variance) ** 0.5 - 0.4472) < 0.05
    assert close == (kind == "exact")


@pytest.mark.parametrize(
    ("scale", "mean", "std", "true_mean", "true_std"),
    [
        (0.5, 1.0046, 0.6688, 1.3333, 0.5774),
        (2.0, 2.1123, 0.2001, 1.7778, 0.3333),
        (4.0, 2.2335, 0.0400, 1.8824, 0.2425),
    ],
)
def test_guidance_scale_is_no_temperature(
    scale: float, mean: float, std: float, true_mean: float, true_std: float
) -> None:
    prior, energy = scalar()
    found_mean, found_variance = guided_moments(prior, energy, "exact", scale=scale)
    assert float(found_mean) == pytest.approx(mean, abs=5e-4)
    assert float(found_variance) ** 0.5 == pytest.approx(std, abs=5e-4)
    target = prior.tilted(scalar(4.0 * scale)[1])
    assert float(target.mean) == pytest.approx(true_mean, abs=1e-4)
    assert float(target.covariance) ** 0.5 == pytest.approx(true_std, abs=1e-4)


@pytest.mark.parametrize("kind", ["exact", "mse", "posterior-mean"])
def test_linear_energy(kind: Kind) -> None:
    """T3. All kinds have the same gradient here; only quadratic and other energies tell them apart."""
    mean, variance, beta = 0.3, 0.8, 1.5
    prior = Mixture(tensor(1.0), tensor([mean]), tensor([[variance]]))
    energy = Energy(beta, tensor([0.0]), tensor(0.0), tensor(1.0))
    z = torch.linspace(-3, 3, 11, dtype=torch.float64)[:, None]
    for tau in TIMES:
        alpha, sigma = vp(tau)
        slope = -gradient(lambda z: prior.noisy_energy(kind, energy, z, alpha, sigma), z)  # noqa: B023
        expected = beta * alpha * variance / (alpha**2 * variance + sigma**2)
        torch.testing.assert_close(slope, torch.full_like(z, expected), rtol=0, atol=1e-6)
    found_mean, found_variance = guided_moments(prior, energy, kind, n_steps=100)
    assert float(found_mean) == pytest.approx(mean + beta * variance, abs=0.01)
    assert float(found_variance) == pytest.approx(variance, abs=0.002)


def plan_return(prior: Mixture, energy: Energy, constant: float) -> float:
    """Mean return of plans drawn from a Gaussian."""
    spread = 0.5 * float((energy.a * prior.covariance).sum())
    return -float(energy(prior.mean)) / energy.beta - spread - constant


def relative_errors(prior: Mixture, energy: Energy, kind: Kind) -> tuple[float, float]:
    """Of mean and covariance of guided samples with 100 steps."""
    target = prior.tilted(energy)
    mean, covariance = guided_moments(prior, energy, kind, n_steps=100)
    return (
        float((mean - target.mean).norm() / target.mean.norm()),
        float((covariance - target.covariance).norm() / target.covariance.norm()),
    )


def test_plans_of_a_linear_quadratic_problem() -> None:
    """T4."""
    prior, energy, constant = linear_quadratic_plan(STATE)
    assert plan_return(prior, energy, constant) == pytest.approx(-4.354, abs=1e-3)
    assert plan_return(prior.tilted(energy), energy, constant) == pytest.approx(-2.964, abs=1e-3)
    mean_error, covariance_error = relative_errors(prior, energy, "exact")
    assert mean_error < 0.01
    assert covariance_error < 0.005
    for kind in ("mse", "posterior-mean"):
        mean_error, covariance_error = relative_errors(prior, energy, kind)  # type: ignore[arg-type]
        assert mean_error == pytest.approx(0.266, abs=0.005)
        assert covariance_error == pytest.approx(0.544, abs=0.005)


def test_plans_depend_on_the_state() -> None:
    """The mean moves as M s plus the tilt, which depends on s too; a prior of another state misses it."""
    prior, energy, _ = linear_quadratic_plan(STATE)
    for other in (tensor(-1.0, 0.2, 0.9), tensor(2.0, 1.0, -0.5)):
        other_prior, other_energy, _ = linear_quadratic_plan(other)
        exact = other_prior.tilted(other_energy).mean
        assert float((exact - prior.tilted(energy).mean).norm() / exact.norm()) > 0.5
        mean, _ = guided_moments(other_prior, other_energy, "exact", n_steps=100)
        assert float((mean - exact).norm() / exact.norm()) < 0.01
        wrong, _ = guided_moments(prior, other_energy, "exact", n_steps=100)
        assert float((wrong - exact).norm() / exact.norm()) > 0.2


def test_masses_of_two_modes() -> None:
    """T8. Not discriminating: the approximations give 0.725 here."""
    prior = Mixture(tensor(0.5, 0.5), tensor([-2.0], [2.0]), tensor([[0.25]], [[0.25]]))
    energy = Energy(0.25, tensor([0.0]), tensor(0.0), tensor(1.0))
    target = prior.tilted(energy)
    assert [float(target.weights[1]), float(target.mean)] == pytest.approx([0.7311, 0.987], abs=1e-3)
    assert float(target.covariance) ** 0.5 == pytest.approx(1.843, abs=1e-3)
    x = guided_mixture(prior, energy, "exact", normal_quantiles(2000), n_steps=15)
    assert float((x > 0).double().mean()) == pytest.approx(0.7311, abs=0.003)
    assert float(x.mean()) == pytest.approx(0.987, abs=0.005)
    approximate = guided_mixture(prior, energy, "mse", normal_quantiles(1000))
    assert float((approximate > 0).double().mean()) == pytest.approx(0.725, abs=0.001)


EIGHT_3 = (0.018, 0.028, 0.042, 0.065, 0.100, 0.153, 0.235, 0.360)


@pytest.mark.parametrize(("beta", "largest"), [(3.0, (0.235, 0.360)), (10.0, (0.182, 0.760))])
def test_eight_gaussians(beta: float, largest: tuple[float, float]) -> None:
    """T6. Component k of eight on a circle pays k / 7. Regression guidance moves the mass next to the best one."""
    angles = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    centers = 4 / 1.414 * torch.stack([angles.cos(), angles.sin()], 1)
    prior = Mixture(tensor(*[1 / 8] * 8), centers, (0.5 / 1.414) ** 2 * torch.eye(2).double().expand(8, 2, 2))
    rewards = torch.arange(8, dtype=torch.float64) / 7
    exact = torch.softmax(beta * rewards, 0)
    assert exact[-2:].tolist() == pytest.approx(largest, abs=5e-4)
    if beta == 3:
        assert exact.tolist() == pytest.approx(EIGHT_3, abs=5e-4)

    def total_variation(energy_of_shares: Callable[[Tensor], Tensor]) -> float:
        """Of the masses of 2,000 samples; that many exact draws have about 0.02."""
        x = guided_sample(
            lambda z, alpha, sigma: prior.noisy(alpha, sigma).score(z),
            lambda z, alpha, sigma: gradient(lambda z: energy_of_shares(prior.posterior(z, alpha, sigma)[0]), z),
            torch.randn(2000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
            20,
        )
        masses = torch.cdist(x, centers).argmin(1).bincount(minlength=8) / len(x)
        return 0.5 * float((masses - exact).abs().sum())

    assert total_variation(lambda log_shares: (log_shares + beta * rewards).logsumexp(-1)) < 0.03
    assert total_variation(lambda log_shares: (log_shares.exp() * beta * rewards).sum(-1)) > 0.1
