"""Actors, critics and the target update: what LDCQ and the baselines share."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """Torch's, but on a CPU it learns faster from few inputs.

    The gradient of a weight with fewer than 16 inputs takes up to four times as long as its transpose, and the
    transpose is what a weight that is stored transposed gets.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Shapes [..., in] -> [..., out]."""
        if self.in_features >= 16 or not torch.is_grad_enabled():
            return super().forward(x)
        return F.linear(x, self.weight.t().contiguous().t(), self.bias)


def mlp(*sizes: int, layer_norm: bool = False, linear: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    """Linear layers with ReLU between them; with `layer_norm`, a LayerNorm after each ReLU, as in ReBRAC's code."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [linear(before, after), nn.ReLU(inplace=True)]
        if layer_norm:
            layers.append(nn.LayerNorm(after, eps=1e-6))  # eps of flax, which ReBRAC's code uses
    return nn.Sequential(*layers, linear(sizes[-2], sizes[-1]))


def norm_gelu_mlp(*sizes: int) -> nn.Sequential:
    """Linear layers, each followed by LayerNorm and GELU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
    return nn.Sequential(*layers)


def linear_of_parts(layer: nn.Linear, *parts: Tensor) -> Tensor:
    """A layer on parts that stand side by side, and broadcast. Shapes [..., D_1], [..., D_2], ... -> [..., out].

    What is the same for many rows, such as the state of many actions, is multiplied once.
    """
    if all(part.shape[:-1] == parts[0].shape[:-1] for part in parts):
        return layer(torch.cat(parts, -1) if len(parts) > 1 else parts[0])
    pairs = list(zip(parts, layer.weight.split([part.shape[-1] for part in parts], dim=1), strict=True))
    # the others broadcast to the part with the fewest ones; sizes are not compared, so that a trace may leave them open
    ones = [sum(size == 1 for size in part.shape[:-1]) - part.dim() for part in parts]
    part, weight = pairs.pop(ones.index(min(ones)))
    sums = F.linear(part, weight, layer.bias)
    for part, weight in pairs:
        others = F.linear(part, weight)
        # `sums` is a view: what is changed in place there costs copies of its gradient
        sums = sums + others if torch.is_grad_enabled() else sums.add_(others)
    return sums


class TanhActor(nn.Module):
    """A deterministic actor with actions in [-1, 1]: linear layers, ReLU, tanh (as in TD3)."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: tuple[int, ...] = (256, 256)) -> None:
        super().__init__()
        self.net = mlp(observation_dim, *hidden, action_dim, linear=Linear)

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
        """Shapes [..., S], [..., A] -> [...]. Leading dimensions broadcast: [B, 1, S] serves K actions per state."""
        first, activation, *layers = self.net
        h = activation(linear_of_parts(first, observations, actions))  # type: ignore[arg-type]
        rows = h.reshape(-1, h.shape[-1])  # on more dimensions layers return views, and ReLU in place copies gradients
        for layer in layers:
            rows = layer(rows)
        return rows.view(h.shape[:-1])


class JointLatentCritic(nn.Module):
    """Q(s, z): layers that see state and latent side by side, each with LayerNorm and GELU."""

    def __init__(self, state_dim: int, latent_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.join = nn.Linear(state_dim + latent_dim, hidden)
        self.join_norm = nn.LayerNorm(hidden)
        self.head = nn.Sequential(*norm_gelu_mlp(hidden, hidden), nn.Linear(hidden, 1))

    def forward(self, states: Tensor, latents: Tensor) -> Tensor:
        """Shapes [..., S], [..., Z] -> [...]. Leading dimensions broadcast, as those of `LatentCritic`."""
        joined = linear_of_parts(self.join, states, latents)
        return self.head(F.gelu(self.join_norm(joined))).squeeze(-1)


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

    def forward(self, states: Tensor, latents: Tensor) -> Tensor:
        """Shapes [..., S], [..., Z] -> [...]. Leading dimensions broadcast: the state branch runs once per state.

        For K candidates per state pass [n, 1, S] and [n, K, Z].
        """
        joined = linear_of_parts(self.join, self.state(states), self.latent(latents))
        return self.head(F.gelu(self.join_norm(joined))).squeeze(-1)


@torch.no_grad()
def polyak_update(online: tuple[Tensor, ...], target: tuple[Tensor, ...], rate: float) -> None:
    """target <- (1 - rate) target + rate online, for all parameters in one call."""
    torch._foreach_lerp_(target, online, rate)


def clip_norm(gradients: tuple[Tensor, ...], largest: float) -> None:
    """Scales gradients down, in place, so that their common norm is at most `largest`."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, clip: Callable[[tuple[Tensor, ...]], None] | None = None
) -> None:
    """One gradient step on the optimizer's own parameters.

    Nothing is spent on gradients of other parameters that the loss runs through, such as the critics' in an actor's
    loss. Parameters that it does not run through stay as they are.

    Args:
        optimizer: an Adam without weight decay, of one group of parameters.
        loss: a scalar.
        clip: changes the gradients, in the order of the parameters, in place.
    """
    group = optimizer.param_groups[0]
    parameters = group["params"]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    # as `backward` has them: the gradient of a transposed product is transposed, and the fused Adam ignores its layout
    gradients = tuple(found[i] if found[i] is None else found[i].contiguous() for i in range(len(found)))
    if clip is not None:
        clip(gradients)
    states = [optimizer.state[parameter] for parameter in parameters]
    if not group["fused"] or not all(states) or any(gradient is None for gradient in gradients):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        return
    # What `optimizer.step` comes down to; its checks of every parameter cost as much again.
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    torch._fused_adam_(
        parameters,
        gradients,
        means,
        squares,
        [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=0.0,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
