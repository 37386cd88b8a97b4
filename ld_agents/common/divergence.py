"""Training that has left the numbers it can come back from: found early, told with its place, never saved."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CHECK_STEPS = 100  # gradient steps between two checks, which cost less than 1 % of them
_LARGEST = torch.finfo(torch.float32).max


class DivergedError(ArithmeticError):
    """A loss, weight or optimizer state is not finite, or a weight is far from any that training ends with."""


def bad_loss(steps: Sequence[dict[str, Tensor]]) -> tuple[int, str] | None:
    """The first loss of consecutive gradient steps that is not finite: index of its step, and "name is value"."""
    named = [(i, name, value) for i, losses in enumerate(steps) for name, value in losses.items()]
    values = torch.stack([value.detach().float() for _, _, value in named]).tolist() if named else []
    bad = ((i, f"{name} is {value}") for (i, name, _), value in zip(named, values, strict=True))
    return next((found for found, value in zip(bad, values, strict=True) if not math.isfinite(value)), None)


def bad_tensor(tensors: dict[str, Tensor], limits: dict[str, float] | None = None) -> str | None:
    """The first tensor with a number that is not finite or above its limit in size, as "name holds value"."""
    checked = {name: value for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    if not checked:
        return None
    highest = torch.stack([value.detach().abs().amax().float() for value in checked.values()]).tolist()
    for name, value in zip(checked, highest, strict=True):
        if not value <= (limits or {}).get(name, _LARGEST):
            return f"{name} holds {value:.4g}"
    return None


def bad_weight(policy: nn.Module, max_weight: float) -> str | None:
    """The first parameter or buffer of a policy that is not finite, or parameter above `max_weight` in size."""
    parameters = dict(policy.named_parameters())
    return bad_tensor(parameters | dict(policy.named_buffers()), dict.fromkeys(parameters, max_weight))
