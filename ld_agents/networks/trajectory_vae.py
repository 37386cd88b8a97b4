"""The trajectory VAE of LDCQ: a window of H steps becomes one latent, a latent becomes a policy.

Four diagonal Gaussians (LDCQ section 4.1). Letters: B batch, H window length, S, A, Z sizes of state, action, latent.

| here           | paper                    |
| -------------- | ------------------------ |
| `encode`       | q_phi(z given window)    |
| `action`       | pi_theta(a given s, z)   |
| `final_state`  | p_eta(s_H given s_0, z)  |
| `prior`        | p_omega(z given s_0)     |

Every standard deviation is a softplus plus a floor of 1e-4. The floor is ours: without it the likelihood of
near-deterministic data has no upper bound.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ld_agents.networks.critics import linear_of_parts, mlp

_STD_FLOOR = 1e-4


class Gaussian(NamedTuple):
    """Mean and standard deviation of a diagonal Gaussian, both [..., D]."""

    mean: Tensor
    std: Tensor

    def negative_log_density(self, x: Tensor) -> Tensor:
        """Summed over the last dimension. Shapes [..., D] -> [...]."""
        z = (x - self.mean) / self.std
        return (0.5 * z * z + self.std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other), summed over the last dimension."""
        ratio = self.std / other.std
        distance = (self.mean - other.mean) / other.std
        return (0.5 * (ratio * ratio + distance * distance - 1) - ratio.log()).sum(-1)

    def sample(self, epsilon: Tensor) -> Tensor:
        return self.mean + self.std * epsilon


class GaussianMLP(nn.Module):
    """A trunk of two ReLU layers and a two-layer head each for mean and standard deviation."""

    def __init__(self, in_dim: int, out_dim: int, hidden: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(mlp(in_dim, hidden, hidden), nn.ReLU())
        self.mean = mlp(hidden, hidden, out_dim)
        self.std = mlp(hidden, hidden, out_dim)

    def forward(self, *parts: Tensor) -> Gaussian:
        """Of parts that stand side by side, and broadcast. Shapes [..., D_1], [..., D_2], ... -> [..., out_dim]."""
        first, second = self.trunk[0][0], self.trunk[0][2]  # type: ignore[index]
        h = F.relu_(second(F.relu_(linear_of_parts(first, *parts))))
        return Gaussian(self.mean(h), F.softplus(self.std(h)) + _STD_FLOOR)


class RecurrentEncoder(nn.Module):
    """The encoder of the released code: state embedding, 4-layer bidirectional GRU, read out at the last step."""

    def __init__(self, state_dim: int, action_dim: int, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(mlp(state_dim, hidden, hidden), nn.ReLU())
        self.gru = nn.GRU(hidden + action_dim, hidden, num_layers=4, batch_first=True, bidirectional=True)
        self.mean = mlp(2 * hidden, hidden, latent_dim)
        self.std = mlp(2 * hidden, hidden, latent_dim)

    def forward(self, states: Tensor, actions: Tensor) -> Gaussian:
        h = self.gru(torch.cat([self.embed(states), actions], dim=-1))[0][:, -1]  # [B, 2 * hidden]
        return Gaussian(self.mean(h), F.softplus(self.std(h)) + _STD_FLOOR)


class FlatEncoder(nn.Module):
    """An MLP on the flattened window: the fast preset's encoder."""

    def __init__(self, state_dim: int, action_dim: int, latent_dim: int, hidden: int, horizon: int) -> None:
        super().__init__()
        self.net = GaussianMLP(horizon * (state_dim + action_dim), latent_dim, hidden)

    def forward(self, states: Tensor, actions: Tensor) -> Gaussian:
        return self.net(torch.cat([states.flatten(1), actions.flatten(1)], dim=1))


class JointPolicyDecoder(nn.Module):
    """One network for all action dimensions, independent given (s, z): the fast preset's policy decoder."""

    def __init__(self, state_dim: int, action_dim: int, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.net = GaussianMLP(state_dim + latent_dim, action_dim, hidden)

    def forward(self, states: Tensor, latents: Tensor, actions: Tensor) -> Gaussian:
        """Shapes [..., S], [..., Z], [..., A] -> Gaussian [..., A]. The true actions are ignored."""
        return self.net(states, latents)

    def act(self, states: Tensor, latents: Tensor, epsilon: Tensor | None) -> Tensor:
        """Mean actions, or with standard normal `epsilon` [..., A] samples. Shape [..., A]."""
        action = self.net(states, latents)
        return action.mean if epsilon is None else action.sample(epsilon)


class AutoregressivePolicyDecoder(nn.Module):
    """One network per action dimension, each seeing the dimensions before it: the decoder of the released code."""

    def __init__(self, state_dim: int, action_dim: int, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(GaussianMLP(state_dim + latent_dim + i, 1, hidden) for i in range(action_dim))

    def forward(self, states: Tensor, latents: Tensor, actions: Tensor) -> Gaussian:
        """Shapes [..., S], [..., Z], [..., A] -> Gaussian [..., A]; dimension i sees the true actions before it."""
        before = [[actions[..., :i]] if i else [] for i in range(len(self.nets))]
        dimensions = [net(states, latents, *seen) for net, seen in zip(self.nets, before, strict=True)]
        return Gaussian(torch.cat([d.mean for d in dimensions], -1), torch.cat([d.std for d in dimensions], -1))

    def act(self, states: Tensor, latents: Tensor, epsilon: Tensor | None) -> Tensor:
        """Mean actions, or with standard normal `epsilon` [..., A] samples, one dimension after the other."""
        x = torch.cat([states, latents], dim=-1)
        for i, net in enumerate(self.nets):
            dimension = net(x)
            action = dimension.mean if epsilon is None else dimension.sample(epsilon[..., i : i + 1])
            x = torch.cat([x, action], dim=-1)
        return x[..., -len(self.nets) :]


class TrajectoryVAE(nn.Module):
    """beta-VAE over windows of H steps with a learned, state-conditioned prior (LDCQ section 4.1).

    Args:
        horizon: H, environment steps per latent.
        hidden: width of every layer.
        encoder: "gru" (released code) or "mlp" (fast preset).
        decoder: "autoregressive" (released code) or "joint" (fast preset).
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        latent_dim: int,
        horizon: int,
        hidden: int,
        encoder: Literal["gru", "mlp"],
        decoder: Literal["autoregressive", "joint"],
    ) -> None:
        super().__init__()
        self.encode: RecurrentEncoder | FlatEncoder
        if encoder == "gru":
            self.encode = RecurrentEncoder(state_dim, action_dim, latent_dim, hidden)
        else:
            self.encode = FlatEncoder(state_dim, action_dim, latent_dim, hidden, horizon)
        decoder_class = AutoregressivePolicyDecoder if decoder == "autoregressive" else JointPolicyDecoder
        self.action = decoder_class(state_dim, action_dim, latent_dim, hidden)
        self.final_state = GaussianMLP(state_dim + latent_dim, state_dim, hidden)
        self.prior = GaussianMLP(state_dim, latent_dim, hidden)

    def predict_final_state(self, states: Tensor, latents: Tensor) -> Gaussian:
        """p_eta(s_H given s_0, z). Shapes [..., S], [..., Z] -> Gaussian [..., S]."""
        return self.final_state(states, latents)

    def losses(
        self,
        states: Tensor,
        actions: Tensor,
        final_states: Tensor,
        epsilon: Tensor,
        steps: Tensor | None,
        recorded: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the negative ELBO, each divided by H as in the released code.

        Args:
            states, actions: windows. Shapes [B, H, S], [B, H, A].
            final_states: s_{t+H}. Shape [B, S].
            epsilon: noise of the one reparameterized sample. Shape [B, Z].
            steps: which steps of each window the action likelihood is taken at, [B, n] int64, drawn uniformly from the
                recorded ones: an unbiased estimate of the sum over all of them at n / H of its cost. None takes all.
            recorded: how many steps of each window were recorded, [B]; actions past a terminal have no likelihood.
                None: all H.

        Returns:
            scalars "action", "kl" and "final_state". The latent is detached in the last, so that the state decoder
            never shapes the latent space.
        """
        horizon = states.shape[1]
        posterior = self.encode(states, actions)
        latents = posterior.sample(epsilon)  # [B, Z]
        first = states[:, 0]
        weights: Tensor | float = 1.0
        if recorded is not None:
            weights = recorded[:, None] / horizon if steps is not None else _first(recorded, horizon)
        if steps is not None:
            rows = torch.arange(len(states), device=states.device)[:, None]
            states, actions = states[rows, steps], actions[rows, steps]  # [B, n, .]
        return {
            "action": (weights * self.action(states, latents[:, None], actions).negative_log_density(actions)).mean(),
            "kl": posterior.kl(self.prior(first)).mean() / horizon,
            "final_state": self.predict_final_state(first, latents.detach()).negative_log_density(final_states).mean()
            / horizon,
        }


def _first(counts: Tensor, n: int) -> Tensor:
    """1 for the first `counts` of n columns, else 0. Shapes [B] -> [B, n]."""
    return (torch.arange(n, device=counts.device) < counts[:, None]).float()
