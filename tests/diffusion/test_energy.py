"""Losses of the energy, their optima, and the energy network."""

from __future__ import annotations

import math

import pytest
import torch
from analytic_guidance import gradient, linear_quadratic_plan, vp
from guided import SCHEDULE, STATE, no_noise, normal_quantiles, tensor
from torch import Tensor
from torch.nn import functional as F

from ld_agents.diffusion.guidance import (
    EnergyNet,
    Weights,
    contrastive_loss,
    exponential_loss,
    posterior_mean_gradient,
    support_weights,
)
from ld_agents.diffusion.sampling import sample, vp_solver_steps, x0_from_noise

# ---------------------------------------------------------------- the contrastive loss


def slope_ratio(kind: Weights, m: int, beta: float, alpha: float, numbers: int) -> float:
    """Slope a of the best linear f = a z_tau over the exact one, beta alpha, where z_0 is N(0, 1) and R = z_0.

    By Newton's method on the contrastive loss of `numbers` latents in sets of M.
    """
    generator = torch.Generator().manual_seed(3)
    x, noise = torch.randn(2, numbers // (2 * m), 2, m, generator=generator)
    z = alpha * x + math.sqrt(1 - alpha**2) * noise
    weights = support_weights(beta * x, kind)
    a = torch.tensor(0.7 * beta * alpha, requires_grad=True)
    for _ in range(5):
        (slope,) = torch.autograd.grad(contrastive_loss(a * z, weights), a, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, a)
        a = (a - slope / curvature).detach().requires_grad_()
    return float(a.detach()) / (beta * alpha)


@pytest.mark.parametrize("kind", ["independent", "unnormalised"])
@pytest.mark.parametrize("alpha", [0.81, 0.53, 0.28])
def test_contrastive_optimum_is_exact(kind: Weights, alpha: float) -> None:
    """T5."""
    assert slope_ratio(kind, 16, 2.0, alpha, 1 << 20) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    ("m", "ratios"),
    [(2, (0.71, 0.55, 0.50)), (4, (0.76, 0.63, 0.58)), (16, (0.85, 0.77, 0.74)), (64, (0.91, 0.87, 0.85))],
)
def test_contrastive_optimum_with_softmax_weights_is_too_flat(m: int, ratios: tuple[float, ...]) -> None:
    """T5: as many latents as there are, no more tilt than the best of them."""
    found = [slope_ratio("softmax", m, 2.0, alpha, 1 << 18) for alpha in (0.81, 0.53, 0.28)]
    assert found == pytest.approx(ratios, abs=0.02)
    if m == 16:
        assert 0.70 < found[-1] < 0.80


@pytest.mark.parametrize(
    ("spread", "effective"),
    [
        (1.0, (0.86, 0.95, 0.97, 0.98, 0.99)),
        (2.0, (0.67, 0.79, 0.84, 0.87, 0.92)),
        (4.0, (0.43, 0.52, 0.56, 0.61, 0.70)),
    ],
)
def test_effective_beta_with_softmax_weights(spread: float, effective: tuple[float, ...]) -> None:
    """T9: beta of the final samples over the nominal one. It is the mean of the slope ratio over alpha in (0, 1)."""
    nodes, node_weights = (0.1127, 0.5, 0.8873), (5 / 18, 8 / 18, 5 / 18)  # Gauss-Legendre
    found = [
        sum(w * slope_ratio("softmax", m, spread, alpha, 1 << 19) for alpha, w in zip(nodes, node_weights, strict=True))
        for m in (4, 16, 32, 64, 256)
    ]
    assert found == pytest.approx(effective, abs=0.02)


def test_contrastive_loss_by_hand() -> None:
    f = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]])
    weights = torch.tensor([[1.0, 2.0], [0.5, 0.0]])
    expected = -(math.log(0.25) + 2 * math.log(0.75) + 0.5 * math.log(0.5)) / 2
    assert float(contrastive_loss(f, weights)) == pytest.approx(expected)
    shifted = contrastive_loss(f + torch.tensor([[1e4], [-50.0]]), weights)  # a constant per set is free
    assert float(shifted) == pytest.approx(expected, rel=1e-3)


def test_weights_by_hand() -> None:
    energies = torch.tensor([[[0.0, math.log(3.0)], [math.log(2.0), math.log(6.0)]]])
    expected = {
        "unnormalised": [[[1.0, 3.0], [2.0, 6.0]]],
        "softmax": [[[0.25, 0.75], [0.25, 0.75]]],
        "independent": [[[1 / 4, 3 / 4], [2 / 2, 6 / 2]]],  # the other set's mean: 4, then 2
    }
    for kind, weights in expected.items():
        torch.testing.assert_close(support_weights(energies, kind), torch.tensor(weights))  # type: ignore[arg-type]
    three = support_weights(torch.tensor([[0.0, math.log(3.0)], [math.log(2.0), math.log(6.0)], [0.0, 0.0]]))
    torch.testing.assert_close(three, torch.tensor([[4 / 10, 12 / 10], [8 / 6, 24 / 6], [4 / 12, 4 / 12]]))


def test_weights_do_not_overflow_or_clip() -> None:
    energies = torch.tensor([[[1e4, 1e4 + 1], [1e4 - 60, 1e4 - 61]]])
    weights = support_weights(energies)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights, support_weights(energies - 1e4), rtol=1e-2, atol=0)
    assert float(weights.max()) == pytest.approx(2 * math.e / (math.exp(-60) + math.exp(-61)), rel=0.01)
    torch.testing.assert_close(support_weights(energies, "softmax").sum(-1), torch.ones(1, 2))


def test_wrong_weights() -> None:
    with pytest.raises(ValueError, match=r"two support sets per state.*\[\.\.\., n, M\], got \(1, 16\)"):
        support_weights(torch.zeros(1, 16))
    with pytest.raises(ValueError, match=r"Unknown weights 'hard'. Use 'independent', 'softmax' or 'unnormalised'"):
        support_weights(torch.zeros(5, 2, 16), "hard")  # type: ignore[arg-type]


# ---------------------------------------------------------------- the energy network


@pytest.fixture(scope="module")
def net() -> EnergyNet:
    """With weights that are large enough for its layers to be curved."""
    torch.manual_seed(0)
    net = EnergyNet(3, 10, hidden=64, frequency_scale=1.0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    return net


def inputs(n: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 10, generator=generator), torch.randn(n, 3, generator=generator), torch.linspace(0.01, 1, n)


def test_sizes_of_the_published_network() -> None:
    net = EnergyNet(11, 128)
    assert sum(p.numel() for p in net.parameters()) == 171 * 512 + 512 + 3 * (512 * 512 + 512) + 513
    assert net.frequencies.shape == (16,)
    assert 15 < float(net.frequencies.std()) < 50
    assert "frequencies" in net.state_dict()


def test_energy_net_is_the_plain_mlp(net: EnergyNet) -> None:
    z, states, tau = inputs()
    angles = 2 * math.pi * tau[:, None] * net.frequencies
    x = torch.cat([z, angles.sin(), angles.cos(), states], 1)
    weight = torch.cat([net.from_latent.weight, net.from_time.weight, net.from_state.weight], 1)
    h = F.linear(x, weight, net.from_state.bias)
    for layer in net.hidden:
        h = layer(F.silu(h))
    expected = net.outlet(F.silu(h))[:, 0]
    torch.testing.assert_close(net(z, states, tau), expected, rtol=1e-5, atol=1e-6)
    assert len(net.hidden) == 3
    assert float(expected.detach().std()) > 0.05
    # sets share state and time
    grid = net(z.expand(4, 7, 10), states[:4, None], tau[:4, None])
    for i in range(4):
        torch.testing.assert_close(grid[i], net(z, states[i].expand(7, 3), tau[i].expand(7)), rtol=1e-5, atol=1e-6)


def test_gradient_equals_autograd(net: EnergyNet) -> None:
    z, states, tau = inputs()
    exact = EnergyNet(3, 10, hidden=64).double()
    exact.load_state_dict(net.state_dict())
    expected = gradient(lambda z: exact(z, states.double(), tau.double()), z.double())
    found = net.gradient(z, net.state_terms(states), net.time_terms(tau))
    assert not found.requires_grad
    assert float((found - expected).abs().max()) < 1e-6
    assert float(expected.abs().max()) > 0.05
    for k in range(7):  # hoisted: one time for all rows
        one_time = net.gradient(z, net.state_terms(states), net.time_terms(tau)[k])
        expected = gradient(lambda z: exact(z, states.double(), tau[k].double()), z.double())  # noqa: B023
        assert float((one_time - expected).abs().max()) < 1e-6


def test_gradient_stays_in_float32(net: EnergyNet) -> None:
    z, states, tau = inputs()
    with torch.no_grad():
        terms = net.state_terms(states), net.time_terms(tau)
        z = z.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            found = net.gradient(z, *terms)
        assert found.dtype == torch.float32
        assert torch.equal(found, net.gradient(z.float(), *terms))


def test_posterior_mean_gradient() -> None:
    """beta G' A (c - mu), without the factor (I + beta P A)^-1 of the exact one; in inference mode too."""
    prior, energy, _ = linear_quadratic_plan(STATE)
    alpha, sigma = vp(0.4)
    z = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = prior.noisy(alpha, sigma)
    expected = -gradient(lambda z: prior.noisy_energy("posterior-mean", energy, z, alpha, sigma), z)
    exact = -gradient(lambda z: prior.noisy_energy("exact", energy, z, alpha, sigma), z)
    assert float((expected - exact).norm() / exact.norm()) > 0.5
    with torch.inference_mode():
        epsilon, found = posterior_mean_gradient(
            z + 0.0, lambda z: -sigma * noisy.score(z), lambda x0: -energy(x0), alpha, sigma
        )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(epsilon, -sigma * noisy.score(z))
    assert not epsilon.requires_grad


@pytest.mark.parametrize("alpha", [0.81, 0.53, 0.28])
def test_exponential_optimum_is_exact(alpha: float) -> None:
    """T5, as for the contrastive loss: slope and constant of the best linear f, by Newton's method."""
    beta, n = 2.0, 1 << 20
    x, noise = torch.randn(2, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z = alpha * x + math.sqrt(1 - alpha**2) * noise
    inputs = torch.stack([z, torch.ones_like(z)], 1)
    f = tensor(0.7 * beta * alpha, 1.0).requires_grad_()
    for _ in range(8):
        (slope,) = torch.autograd.grad(exponential_loss(inputs @ f, beta * x)[0], f, create_graph=True)
        curvature = torch.stack([torch.autograd.grad(g, f, retain_graph=True)[0] for g in slope])
        f = (f - torch.linalg.solve(curvature, slope)).detach().requires_grad_()
    assert float(f[0].detach()) == pytest.approx(beta * alpha, rel=0.03)
    assert float(f[1].detach()) == pytest.approx(0.5 * beta**2 * (1 - alpha**2), abs=0.05)


def test_exponential_loss_by_hand() -> None:
    """e^d - d - 1 for d = beta R - f; beyond the limit its tangent, whose slope in f is 1 - limit."""
    f, energies = tensor(0.0, 0.0, 0.0).requires_grad_(), tensor(-1.0, 0.5, math.log(4.0) + 2)
    loss, limited = exponential_loss(f, energies, 4.0)
    tangent = 4 * (1 + 2) - (math.log(4.0) + 2) - 1
    assert float(loss.detach()) == pytest.approx((math.exp(-1) + math.exp(0.5) - 1.5 + tangent) / 3)
    assert float(limited) == pytest.approx(1 / 3)
    (slope,) = torch.autograd.grad(loss, f)
    torch.testing.assert_close(slope, (1 - tensor(math.exp(-1), math.exp(0.5), 4.0)) / 3)


# ---------------------------------------------------------------- a learned energy


def train_energy(kind: Weights | str, steps: int) -> EnergyNet:
    """Three layers of 128 on N(s, 1) with beta R = -2 (x - 2)^2, 256 sets of 16 latents a step, s in (-1, 1)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = EnergyNet(1, 1, hidden=128, layers=3, frequency_scale=1.0)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-4 * (1 + math.cos(math.pi * step / steps))
        states = 2 * torch.rand(32, 1, 1, 1, generator=generator) - 1
        x0 = states + torch.randn(32, 8, 16, 1, generator=generator)  # eight sets per state
        tau = 1e-3 + (1 - 1e-3) * torch.rand(32, 8, 1, generator=generator)  # one for each set
        epsilon = torch.randn(x0.shape, generator=generator)
        z = SCHEDULE.add_noise(x0.flatten(0, 1), tau.flatten(), epsilon.flatten(0, 1)).view_as(x0)
        energies = -2 * (x0[..., 0] - 2) ** 2
        f = net(z, states, tau)
        loss = F.mse_loss(f, energies) if kind == "mse" else contrastive_loss(f, support_weights(energies, kind))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def moments_with(net: EnergyNet, state: float) -> tuple[float, float]:
    """Mean and standard deviation of samples guided by a network, with the exact score of N(s, 1)."""
    steps = vp_solver_steps(SCHEDULE, 100)
    tau = torch.tensor([step.time for step in steps])
    signal, noise = SCHEDULE.signal(tau).tolist(), SCHEDULE.noise(tau).tolist()
    state_terms, time_terms = net.state_terms(torch.tensor([state])).detach(), net.time_terms(tau).detach()

    def denoise(z: Tensor, k: int) -> Tensor:
        epsilon = noise[k] * (z - signal[k] * state)
        return x0_from_noise(z, epsilon, signal[k], noise[k], net.gradient(z, state_terms, time_terms[k]))

    x = sample(denoise, steps, normal_quantiles(2000).float(), no_noise)
    return float(x.mean()), float(x.std())


@pytest.mark.slow
def test_learned_energy() -> None:
    """The target is N((s + 8) / 5, 0.4472^2): 1.6 at s = 0, as in T2."""
    net = train_energy("independent", 2000)
    for state, mean_error, std_error in ((0.0, 0.05, 0.15), (-1.0, 0.08, 0.3), (1.0, 0.08, 0.3)):
        mean, std = moments_with(net, state)
        assert mean == pytest.approx((state + 8) / 5, abs=mean_error)
        assert std == pytest.approx(0.4472, rel=std_error)


@pytest.mark.slow
def test_learned_energy_by_regression_guides_too_far() -> None:
    mean, _ = moments_with(train_energy("mse", 500), 0.0)
    assert mean > 2.2
