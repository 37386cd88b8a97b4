"""Gaussian noise for acting that depends on a seed and on the episode, and on nothing else.

A planner draws noise for every decision. With one random stream for all environments, the noise of one environment
would depend on how many others run beside it. Here every environment has a key: made from (seed, call, observation)
where an episode begins, then advanced by one per step. It does not look at later observations, whose last bits depend
on the size of the batch. Equal observations have equal keys, so that actions repeat; where they are to be random,
`told_apart` gives each its own. Noise is computed from keys by a counter-based generator, on every device alike. The
mixing function is splitmix64 (Steele et al. 2014), the normals are Box-Muller's.
"""

import math

import torch
from torch import Tensor

_GAMMA = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MULTIPLIER_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finalizer on int64 tensors. The masks make the right shifts logical."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MULTIPLIER_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MULTIPLIER_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def observation_keys(observations: Tensor, seed: int, call: int) -> Tensor:
    """A 64-bit key per observation. Shapes [n, S] float32 -> [n] int64."""
    bits = (observations.float() + 0.0).contiguous().view(torch.int32).long()  # + 0.0 makes -0.0 equal 0.0
    columns = torch.arange(1, bits.shape[-1] + 1, device=bits.device)
    factors = torch.tensor([_GAMMA, _MULTIPLIER_1], device=bits.device)
    stream = _mix(torch.tensor([seed, call], device=bits.device) * factors + 1).sum()
    return _mix(_mix(bits + columns * _GAMMA).sum(-1) + stream)


def told_apart(keys: Tensor) -> Tensor:
    """Keys of which no two are equal: of equal ones, the second and all later ones change. Shapes [n] -> [n]."""
    ordered, order = keys.sort(stable=True)
    rows = torch.arange(len(keys), device=keys.device)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    repeats = rows - torch.where(first, rows, 0).cummax(0).values
    # mixed, since the noise of a key counts on from it in steps of _GAMMA: keys so far apart would share theirs
    apart = torch.where(first, ordered, _mix(ordered ^ _mix(repeats * _MULTIPLIER_1)))
    return keys.scatter(0, order, apart)


def next_keys(keys: Tensor) -> Tensor:
    """The keys of the next step. Shapes [n] -> [n]."""
    return _mix(keys + _GAMMA)


def keyed_normal(keys: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Standard normal noise, one independent block per key. Shapes [n] int64 -> [n, *shape] float32.

    Args:
        keys: from `observation_keys`.
        shape: of the block of each key.
        stream: different streams of one key are independent.
    """
    size = math.prod(shape)
    pairs = (size + 1) // 2
    counters = torch.arange(1, pairs + 1, device=keys.device) + (stream << 32)
    bits = _mix(keys[:, None] + counters * _GAMMA)
    radius = torch.sqrt(-2 * torch.log((((bits >> 40) & 0xFFFFFF) + 1).float() / 2**24))
    angle = (bits & 0xFFFFFF).float() * (2 * math.pi / 2**24)
    normals = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return normals[:, :size].reshape(len(keys), *shape)
