"""Energy guidance: how the prior over latents is tilted towards returns while it is sampled.

The wanted density is pi(z | s) proportional to mu(z | s) exp(beta R(z, s)), with the prior mu and the return R of the
decoded latent. While sampling, at time tau, the score of the diffused pi is that of the diffused mu plus the gradient
of f*(z_tau, s, tau) = log E[exp(beta R(z_0, s)) | z_tau] (LatentDiffuser, Li 2024, section 3; QGPO, Lu et al. 2023).
There are three ways to get a gradient, and only the first is that one:

| guidance         | how                                             | gradient of                     |
| ---------------- | ----------------------------------------------- | ------------------------------- |
| "exact"          | an `EnergyNet`, fitted with `contrastive_loss`  | log E[exp(beta R(z_0)) | z_tau] |
| "mse"            | an `EnergyNet`, fitted to beta R by regression  | E[beta R(z_0) | z_tau]          |
| "posterior-mean" | `posterior_mean_gradient`, through the decoder  | beta R(E[z_0 | z_tau])          |

"mse" is Diffuser's value network (Janner et al. 2022). It and the last ignore how much z_0 still varies given z_tau,
and so guide too strongly while there is much noise.

| here        | paper                                                                               |
| ----------- | ----------------------------------------------------------------------------------- |
| `EnergyNet` | f_eta(z_tau, s_1, tau), the intermediate energy with its sign turned: large is good |
| `energies`  | beta R of the support latents, that is minus beta E                                 |
| `weights`   | omega, what the contrastive loss compares softmax(f) with                           |
"""

import contextlib
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ld_agents.diffusion.sampling import x0_from_noise

Guidance = Literal["exact", "mse", "posterior-mean", "none"]
Weights = Literal["independent", "softmax", "unnormalised"]


class EnergyNet(nn.Module):
    """f(z_tau, s, tau): an MLP on the latent, the state and Fourier features of the time, with one output.

    SiLU between the layers, because the sampler differentiates f. Default sizes follow QGPO's released code
    (ChenDRAG/CEP-energy-guided-diffusion, commit 4cc0622), whose linear layer between features and first layer is left
    out: two linear layers in a row are one.

    The first layer splits into what the latent, the state and the time add. `state_terms` is worked out once per plan,
    `time_terms` once per solver. Training uses the same functions, so hoisting is exact.

    Args:
        state_dim: S.
        latent_dim: Z, the size of a whole latent sequence, flattened.
        hidden: width of every layer.
        layers: hidden layers.
        time_features: random Fourier features of the time, an even number.
        frequency_scale: standard deviation of their frequencies, in cycles per unit of tau. Fixed, not learned.
    """

    frequencies: Tensor

    def __init__(
        self,
        state_dim: int,
        latent_dim: int,
        hidden: int = 512,
        layers: int = 4,
        time_features: int = 32,
        frequency_scale: float = 30.0,
    ) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(time_features // 2) * frequency_scale)
        self.from_latent = nn.Linear(latent_dim, hidden, bias=False)
        self.from_time = nn.Linear(time_features, hidden, bias=False)
        self.from_state = nn.Linear(state_dim, hidden)
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers - 1))
        self.outlet = nn.Linear(hidden, 1)
        # the three parts are one layer, and start like one
        bound = (latent_dim + time_features + state_dim) ** -0.5
        for parameter in (self.from_latent.weight, self.from_time.weight, *self.from_state.parameters()):
            nn.init.uniform_(parameter, -bound, bound)

    def state_terms(self, states: Tensor) -> Tensor:
        """What states add to the first layer. Shapes [..., S] -> [..., hidden]."""
        return self.from_state(states)

    def time_terms(self, tau: Tensor) -> Tensor:
        """What times add to the first layer. Shapes [...] -> [..., hidden]."""
        angles = 2 * math.pi * tau.to(self.frequencies.dtype)[..., None] * self.frequencies
        return self.from_time(torch.cat([angles.sin(), angles.cos()], dim=-1))

    def forward(self, z: Tensor, states: Tensor, tau: Tensor) -> Tensor:
        """f. Shapes [..., Z], [..., S], [...] -> [...]. Leading dimensions broadcast.

        A set of M latents that share a state and a time is [B, M, Z] with [B, 1, S] and [B, 1].
        """
        h = self.from_latent(z) + (self.state_terms(states) + self.time_terms(tau))
        for layer in self.hidden:
            h = layer(F.silu(h))
        return self.outlet(F.silu(h)).squeeze(-1)

    @torch.no_grad()
    def gradient(self, z: Tensor, state_terms: Tensor, time_terms: Tensor) -> Tensor:
        """The gradient of f in z, without an autograd graph and in the precision of the weights.

        Shapes [..., Z], [..., hidden], [..., hidden] -> [..., Z]; the terms broadcast against z.
        """
        exact = torch.autocast(z.device.type, enabled=False)
        with contextlib.nullcontext() if torch.compiler.is_compiling() else exact:
            h = self.from_latent(z.to(self.outlet.weight.dtype)) + (state_terms + time_terms)
            layer_inputs = [h]
            for layer in self.hidden:
                h = layer(F.silu(h))
                layer_inputs.append(h)
            slope = self.outlet.weight[0].expand_as(h)
            for layer, h in zip(list(self.hidden)[::-1], layer_inputs[:0:-1], strict=True):
                slope = _silu_backward(slope, h) @ layer.weight  # type: ignore[operator]
            return _silu_backward(slope, layer_inputs[0]) @ self.from_latent.weight


def _silu_backward(slope: Tensor, h: Tensor) -> Tensor:
    if not torch.compiler.is_compiling():
        return torch.ops.aten.silu_backward(slope, h)
    sigmoid = torch.sigmoid(h)  # ONNX knows no derivatives
    return slope * (sigmoid * (1 + h * (1 - sigmoid)))


def support_weights(energies: Tensor, kind: Weights = "independent") -> Tensor:
    """omega of the support latents: how much each one is worth. Nothing is clipped.

    With "independent" and "unnormalised" weights the minimizer of `contrastive_loss` is the exact f. With "softmax" it
    guides too little, like a smaller beta: the more so, the fewer the latents and the larger beta std(R). With 16
    latents and beta std(R) = 4 half of beta is left.

    Exact weights pay with noise. Where the normalizer misses the best latents of a state, this state's weights are huge
    and drown the others, so many sets per state help: n sets of M give each set a normalizer of (n - 1) M latents.

    Args:
        energies: beta R. Shape [..., M]; for "independent" [..., n, M], at least two support sets of the same state.
        kind: "independent": exp(beta R) over the mean of exp(beta R) in the other sets of the state (ours: the
            normalizer does not depend on the contrasted latents, and the size of R drops out); "softmax": exp(beta R)
            over the sum of its own set, as in QGPO's released code; "unnormalised": exp(beta R), which overflows in
            float32 for beta R above 88.

    Returns:
        weights of the shape of `energies`; contrast each set of M apart.
    """
    if kind == "softmax":
        return torch.softmax(energies, -1)
    if kind == "unnormalised":
        return energies.exp()
    if kind != "independent":
        raise ValueError(f"Unknown weights {kind!r}. Use 'independent', 'softmax' or 'unnormalised'.")
    n, m = energies.shape[-2:] if energies.dim() > 1 else (1, 0)
    if n < 2:
        raise ValueError(
            f"Independent weights need at least two support sets per state, energies of shape [..., n, M], got "
            f"{tuple(energies.shape)}."
        )
    itself = torch.eye(n, dtype=torch.bool, device=energies.device)
    others = energies.logsumexp(-1)[..., None, :].masked_fill(itself, -math.inf)  # [..., n, n]
    log_mean = others.logsumexp(-1, keepdim=True) - math.log((n - 1) * m)
    return (energies - log_mean).exp()


def contrastive_loss(f: Tensor, weights: Tensor) -> Tensor:
    """- sum_i omega_i log softmax(f)_i over the latents of a set, mean over the sets (LatentDiffuser eq. 6).

    The latents of a set share state and time; they are draws of the prior that will be sampled, made noisy
    independently. The minimizer is then f = log E[omega | z_tau], up to a constant per state and time.

    Args:
        f: of the noisy latents. Shape [..., M].
        weights: from `support_weights`, of the latents before noise. Shape [..., M].
    """
    return -(weights * F.log_softmax(f, -1)).sum(-1).mean()


def exponential_loss(f: Tensor, energies: Tensor, limit: float | None = None) -> tuple[Tensor, Tensor]:
    """E[exp(beta R - f) + f]: another loss whose minimizer is the exact f = log E[exp(beta R) | z_tau].

    Its derivative in f at z_tau is 1 - E[exp(beta R - f) | z_tau], which is zero at the exact f and nowhere else. Known
    as the linear-exponential loss, and as Gumbel regression in Extreme Q-learning (Garg et al. 2023, eq. 11).

    A draw counts exp(beta R - f): how much better it is than what f says of z_tau. The contrastive loss has exp(beta R)
    over the mean at the state, which is as large at small tau, where f knows R, as at large tau. With beta std(R) = 3
    most of that mean comes from one draw in a hundred. Here weights are near 1 wherever f knows R, so few draws are
    needed and a limit cuts little. No support sets are contrasted, so the constant per state and time is learned too.

    Args:
        f: of the noisy latents, any shape.
        energies: beta R of the latents before noise, of the same shape.
        limit: largest weight exp(beta R - f); above, the loss goes on along its tangent. None is exact.

    Returns:
        the loss, and the share of the draws beyond the limit.
    """
    excess = energies - f
    cap = math.inf if limit is None else math.log(limit)
    within = excess.clamp(max=cap)
    loss = within.exp() * (1 + excess - within) - excess - 1
    return loss.mean(), (excess > cap).float().mean()


def posterior_mean_gradient(
    z: Tensor,
    predict_noise: Callable[[Tensor], Tensor],
    energy: Callable[[Tensor], Tensor],
    signal: float,
    noise: float,
) -> tuple[Tensor, Tensor]:
    """Predicted noise at z, and the gradient in z of beta R(h(E[z_0 | z])), through prior and decoder.

    Works inside `torch.inference_mode` if what the two functions have worked out before was made outside of it.

    Args:
        z: noisy latents. Shape [n, ...].
        predict_noise: of the prior, at z.
        energy: beta R of clean latents, decoder included. Shapes [n, ...] -> [n].
        signal: alpha at the time of z.
        noise: sigma at the time of z.
    """
    with torch.inference_mode(False), torch.enable_grad():
        z = z.clone().requires_grad_()
        epsilon = predict_noise(z)
        energies = energy(x0_from_noise(z, epsilon, signal, noise))
        (gradient,) = torch.autograd.grad(energies.sum(), z)
    return epsilon.detach(), gradient
