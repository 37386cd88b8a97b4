"""Priors and energies for which guidance is known in closed form, in float64 and apart from the code under test.

A density q over z is tilted to p(z) proportional to q(z) exp(-beta E(z)), and both are made noisy,
z_tau = alpha z + sigma epsilon. Then E_tau(z) = -log E_q[exp(-beta E(z_0)) | z_tau = z], and

    E_tau = log q_tau - log p_tau - log Z    with    Z = E_q[exp(-beta E)].

Leading dimensions are samples; D is the size of z, K the number of components or atoms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["exact", "mse", "posterior-mean", "none"]


def vp(tau: float) -> tuple[float, float]:
    """alpha and sigma of the linear schedule with beta_0 = 0.1 and beta_1 = 20."""
    log_alpha = -0.25 * tau**2 * 19.9 - 0.05 * tau
    return math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))


def gradient(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """By autograd. Shapes [n, D] -> [n, D] of a function [n, D] -> [n]."""
    with torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        return torch.autograd.grad(function(z).sum(), z)[0]


class Energy(NamedTuple):
    """beta E(z) with E(z) = (z - c)' A (z - c) / 2 - w' z. Shapes [], [D, D], [D], [D]."""

    beta: float
    a: Tensor
    c: Tensor
    w: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        y = z - self.c
        return self.beta * (0.5 * ((y @ self.a) * y).sum(-1) - z @ self.w)


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians. Shapes [K], [..., K, D], [K, D, D]; leading dimensions of the means are conditions."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        return (self.weights[:, None] * self.means).sum(-2)

    @property
    def covariance(self) -> Tensor:
        y = self.means - self.mean[..., None, :]
        return (self.weights[:, None, None] * (self.covariances + y[..., :, None] * y[..., None, :])).sum(-3)

    def noisy(self, alpha: float, sigma: float) -> Mixture:
        eye = torch.eye(self.means.shape[-1], dtype=torch.float64)
        return Mixture(self.weights, alpha * self.means, alpha**2 * self.covariances + sigma**2 * eye)

    def component_log_densities(self, z: Tensor) -> Tensor:
        """log of weight times density. Shapes [n, D] -> [n, K]."""
        root = torch.linalg.cholesky(self.covariances)
        y = torch.linalg.solve_triangular(root, (z[..., None, :] - self.means)[..., None], upper=False)[..., 0]
        half_log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        normalizer = half_log_det + 0.5 * z.shape[-1] * math.log(2 * math.pi)
        return self.weights.log() - 0.5 * (y**2).sum(-1) - normalizer

    def log_density(self, z: Tensor) -> Tensor:
        return self.component_log_densities(z).logsumexp(-1)

    def score(self, z: Tensor) -> Tensor:
        """grad log density, by hand. Shapes [n, D] -> [n, D]."""
        shares = self.component_log_densities(z).softmax(-1)
        pulls = torch.linalg.solve(self.covariances, (self.means - z[..., None, :])[..., None])[..., 0]
        return (shares[..., None] * pulls).sum(-2)

    def posterior(self, z: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of z_0 given z_tau: log weights [n, K], means [n, K, D], covariances [K, D, D]."""
        noisy = self.noisy(alpha, sigma)
        gain = alpha * torch.linalg.solve(noisy.covariances, self.covariances).mT
        means = self.means + (gain @ (z[..., None, :] - noisy.means)[..., None])[..., 0]
        covariances = self.covariances - alpha * gain @ self.covariances
        return noisy.component_log_densities(z).log_softmax(-1), means, covariances

    def posterior_mean(self, z: Tensor, alpha: float, sigma: float) -> Tensor:
        log_weights, means, _ = self.posterior(z, alpha, sigma)
        return (log_weights.exp()[..., None] * means).sum(-2)

    def noisy_energy(self, kind: Kind, energy: Energy, z: Tensor, alpha: float, sigma: float) -> Tensor:
        """E_tau, or what an approximation takes for it. Shapes [n, D] -> [n]."""
        log_weights, means, covariances = self.posterior(z, alpha, sigma)
        if kind == "none":
            return 0 * z.sum(-1)
        if kind == "posterior-mean":
            return energy((log_weights.exp()[..., None] * means).sum(-2))
        if kind == "mse":
            spread = 0.5 * energy.beta * (energy.a * covariances).sum((-2, -1))
            return (log_weights.exp() * (energy(means) + spread)).sum(-1)
        return -(log_weights + _log_mean_exp(energy, means, covariances)).logsumexp(-1)

    def log_z(self, energy: Energy) -> Tensor:
        """log E[exp(-beta E)]."""
        return (self.weights.log() + _log_mean_exp(energy, self.means, self.covariances)).logsumexp(-1)

    def tilted(self, energy: Energy) -> Mixture:
        """The exact target of guidance."""
        beta = energy.beta
        log_weights = self.weights.log() + _log_mean_exp(energy, self.means, self.covariances)
        precision = torch.linalg.inv(self.covariances)
        covariances = torch.linalg.inv(precision + beta * energy.a)
        pull = (precision @ self.means[..., None])[..., 0] + beta * (energy.a @ energy.c + energy.w)
        return Mixture(log_weights.softmax(-1), (covariances @ pull[..., None])[..., 0], covariances)


def _log_mean_exp(energy: Energy, means: Tensor, covariances: Tensor) -> Tensor:
    """log E[exp(-beta E(z))] of Gaussians. Shapes [..., K, D], [K, D, D] -> [..., K]."""
    beta, a, c, w = energy
    y = means - c
    m = torch.eye(len(w), dtype=torch.float64) + beta * covariances @ a
    quadratic = -0.5 * beta * ((a @ torch.linalg.inv(m) @ y[..., None])[..., 0] * y).sum(-1)
    linear = beta * (torch.linalg.solve(m, y[..., None])[..., 0] @ w + w @ c)
    both = 0.5 * beta**2 * (torch.linalg.solve(m, covariances) @ w) @ w
    return quadratic + linear + both - 0.5 * torch.logdet(m)


@dataclass(frozen=True)
class Atoms:
    """Finitely many points with weights, and any return for each. Shapes [K, D], [K], [K]."""

    points: Tensor
    weights: Tensor
    energies: Tensor  # beta R

    def log_shares(self, z: Tensor, alpha: float, sigma: float, *, tilted: bool) -> Tensor:
        """log of weight times density of z_tau around each atom, up to a constant. Shapes [n, D] -> [n, K]."""
        distances = ((z[..., None, :] - alpha * self.points) ** 2).sum(-1)
        return self.weights.log() + tilted * self.energies - distances / (2 * sigma**2)

    def noisy_energy(self, kind: Kind, z: Tensor, alpha: float, sigma: float) -> Tensor:
        shares = self.log_shares(z, alpha, sigma, tilted=False).log_softmax(-1)
        if kind == "mse":
            return -(shares.exp() * self.energies).sum(-1)
        return -(shares + self.energies).logsumexp(-1)

    def score(self, z: Tensor, alpha: float, sigma: float, *, tilted: bool = False) -> Tensor:
        shares = self.log_shares(z, alpha, sigma, tilted=tilted).softmax(-1)
        return (alpha * shares @ self.points - z) / sigma**2

    @property
    def tilted_weights(self) -> Tensor:
        return (self.weights.log() + self.energies).softmax(0)


def linear_quadratic_plan(state: Tensor) -> tuple[Mixture, Energy, float]:
    """A planning problem that is Gaussian throughout: prior, energy, and the constant part of its return.

    Eight latents of size 2 with prior N(M s, AR(1) covariance x 2 by 2), decoded linearly to 24 steps of 3 action
    dimensions, y = D z + B s. The return is -(y - reference)' W (y - reference) / 2 with W a diagonal over T, and
    beta = 6. The matrices are random, with a fixed seed. Shape of the state [3].
    """
    generator = torch.Generator().manual_seed(2)
    latents, steps, actions = 8, 24, 3

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    distance = (torch.arange(latents)[:, None] - torch.arange(latents)).abs()
    within = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    covariance = torch.kron(0.8 ** distance.double(), within)
    from_state, decoder = normal(2 * latents, 3) / 3**0.5, normal(steps * actions, 2 * latents) / (2 * latents) ** 0.5
    offset, reference = normal(steps * actions, 3) / 3**0.5, normal(steps * actions)
    w = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64).repeat(steps) / steps
    a = decoder.T @ (w[:, None] * decoder)
    remaining = reference - offset @ state
    c = torch.linalg.solve(a, decoder.T @ (w * remaining))
    constant = 0.5 * float(remaining @ (w * remaining) - c @ a @ c)
    prior = Mixture(torch.ones(1, dtype=torch.float64), (from_state @ state)[None], covariance[None])
    return prior, Energy(6.0, a, c, torch.zeros_like(c)), constant
