"""Actors, critics and the target update: what LDCQ and the baselines share."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(*sizes: int, layer_norm: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them; with `layer_norm`, a LayerNorm after each ReLU, as in ReBRAC's code."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        if layer_norm:
            layers.append(nn.LayerNorm(after, eps=1e-6))  # eps of flax, which ReBRAC's code uses
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def norm_gelu_mlp(*sizes: int) -> nn.Sequential:
    """Linear layers, each followed by LayerNorm and GELU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
    return nn.Sequential(*layers)


class TanhActor(nn.Module):
    """A deterministic actor with actions in [-1, 1]: linear layers, ReLU, tanh (as in TD3)."""

    def __init__(
        self, observation_dim: int, action_dim: int, hidden: tuple[int, ...] = (256, 256), layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.net = mlp(observation_dim, *hidden, action_dim, layer_norm=layer_norm)

    def forward(self, observations: Tensor) -> Tensor:
        """Shapes [..., S] -> [..., A]."""
        return torch.tanh(self.net(observations))


class QFunction(nn.Module):
    """Q(s, a): linear layers and ReLU over observation and action side by side (as in TD3)."""

    def __init__(
        self, observation_dim: int, action_dim: int, hidden: tuple[int, ...] = (256, 256), layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.net = mlp(observation_dim + action_dim, *hidden, 1, layer_norm=layer_norm)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Shapes [..., S], [..., A] -> [...]."""
        return self.net(torch.cat([observations, actions], -1)).squeeze(-1)


class LatentCritic(nn.Module):
    """Q(s, z): a state branch, a latent branch, a common head; LayerNorm and GELU after each hidden layer.

    The default sizes are those of LDCQ's released code (141,057 parameters for 4-dimensional states).
    """

    def __init__(
        self, state_dim: int, latent_dim: int, hidden: int = 256, latent_hidden: int = 128, head_hidden: int = 32
    ) -> None:
        super().__init__()
        self.state = norm_gelu_mlp(state_dim, hidden, hidden)
        self.latent = norm_gelu_mlp(latent_dim, latent_hidden, latent_hidden)
        self.join = nn.Linear(hidden + latent_hidden, latent_hidden)
        self.join_norm = nn.LayerNorm(latent_hidden)
        self.head = nn.Sequential(*norm_gelu_mlp(latent_hidden, head_hidden), nn.Linear(head_hidden, 1))
        self.hidden = hidden

    def forward(self, states: Tensor, latents: Tensor) -> Tensor:
        """Shapes [..., S], [..., Z] -> [...]. Leading dimensions broadcast: the state branch runs once per state.

        For K candidates per state pass [n, 1, S] and [n, K, Z].
        """
        from_state = F.linear(self.state(states), self.join.weight[:, : self.hidden])
        from_latent = F.linear(self.latent(latents), self.join.weight[:, self.hidden :], self.join.bias)
        return self.head(F.gelu(self.join_norm(from_state + from_latent))).squeeze(-1)


@torch.no_grad()
def polyak_update(online: tuple[Tensor, ...], target: tuple[Tensor, ...], rate: float) -> None:
    """target <- (1 - rate) target + rate online, for all parameters in one call."""
    torch._foreach_lerp_(target, online, rate)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One gradient step on the optimizer's own parameters.

    Nothing is spent on gradients of other parameters that the loss runs through, such as the critics' in an actor's
    loss. Parameters that it does not run through stay as they are.
    """
    parameters = optimizer.param_groups[0]["params"]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        parameter.grad = gradient
    optimizer.step()
