"""Tiny LatentDiffuser agents, and episodes whose numbers count up."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import make_agent
from ld_agents import LatentDiffuser, OfflineDataset
from ld_agents.networks.denoisers import PositionConv, TemporalUNet, sinusoids

T, L, N = 8, 2, 4  # of TINY_LATENT_DIFFUSER


def make(dataset: OfflineDataset, **settings: Any) -> LatentDiffuser:
    agent = make_agent("LatentDiffuser", dataset, **settings)
    assert isinstance(agent, LatentDiffuser)
    return agent


def prepared(dataset: OfflineDataset, **settings: Any) -> LatentDiffuser:
    """An agent in the middle of `learn`: its data are there."""
    agent = make(dataset, **settings)
    agent._plan_budget(None, reset=True)
    agent._prepare_data(dataset)
    return agent


def counting(episodes: list[tuple[int, bool]]) -> OfflineDataset:
    """Row i has state (i, -i), action i / 100 and reward i; episodes of given lengths, ending in a terminal or not."""
    n = sum(length for length, _ in episodes)
    ends = np.cumsum([length for length, _ in episodes]) - 1
    terminals, timeouts = np.zeros(n, bool), np.zeros(n, bool)
    for end, (_, terminal) in zip(ends, episodes, strict=True):
        (terminals if terminal else timeouts)[end] = True
    rows = np.arange(n, dtype=np.float32)
    return OfflineDataset(np.stack([rows, -rows], 1), rows[:, None] / 100, rows, terminals, timeouts)


def plain_unet(net: TemporalUNet, x: Tensor, tau: Tensor, states: Tensor) -> Tensor:
    """The same U-Net with torch's convolutions and nothing hoisted, layer by layer as in Diffuser's code."""
    time = net.time[1](net.activation(net.time[0](sinusoids(1000 * tau, 64))))
    state = net.state[1](net.activation(net.state[0](states)))
    condition = net.activation(torch.cat([time, state], -1))

    def conv(layer: PositionConv, h: Tensor) -> Tensor:
        _, kernel, stride, transposed = layer.places
        if transposed:
            return F.conv_transpose1d(h, layer.weight.transpose(0, 1), layer.bias, stride, (kernel - 1) // 2)
        return F.conv1d(h, layer.weight, layer.bias, stride, (kernel - 1) // 2)

    def block(layer: Any, h: Tensor) -> Tensor:
        out = net.activation(layer.norms[0](conv(layer.first, h))) + layer.condition(condition)[..., None]
        out = net.activation(layer.norms[1](conv(layer.second, out)))
        return out + (conv(layer.around, h) if layer.around is not None else h)

    h, skips = x.transpose(1, 2), []
    for i, level in enumerate(net.down_levels):
        for layer in level:
            h = block(layer, h)
        skips.append(h)
        if i < len(net.down):
            h = conv(net.down[i], h)
    for layer in net.middle:
        h = block(layer, h)
    for level, up in zip(net.up_levels, net.up, strict=True):
        h = torch.cat([h, skips.pop()], 1)
        for layer in level:
            h = block(layer, h)
        h = conv(up, h)
    return conv(net.outlet, net.activation(net.last_norm(conv(net.last, h)))).transpose(1, 2)
