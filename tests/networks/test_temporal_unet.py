"""The U-Net over latents: convolutions as matrices, against a plain implementation, the paper's sizes."""

from __future__ import annotations

import pytest
import torch
from latent_diffuser_data import plain_unet
from torch.nn import functional as F

from ld_agents.diffusion.guidance import EnergyNet
from ld_agents.latent_diffuser_settings import PAPER
from ld_agents.networks.denoisers import PositionConv, TemporalUNet

# ---------------------------------------------------------------- the U-Net


@pytest.mark.parametrize("positions", [2, 4, 8, 16])
@pytest.mark.parametrize(
    ("kernel", "stride", "transposed"), [(5, 1, False), (3, 2, False), (4, 2, True), (1, 1, False)]
)
def test_convolution_as_a_matrix(positions: int, kernel: int, stride: int, transposed: bool) -> None:
    conv = PositionConv(3, 6, positions, kernel, stride, transposed)
    x = torch.randn(7, 3, positions)
    matrix, bias = conv.dense()
    padding = (kernel - 1) // 2
    if transposed:
        expected = F.conv_transpose1d(x, conv.weight.transpose(0, 1), conv.bias, stride, padding)
    else:
        expected = F.conv1d(x, conv.weight, conv.bias, stride, padding)
    torch.testing.assert_close((x.flatten(1) @ matrix + bias).view(7, 6, -1), expected, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad((x.flatten(1) @ matrix).square().sum(), conv.weight)[0]
    wanted = torch.autograd.grad((expected - conv.bias[:, None]).square().sum(), conv.weight)[0]
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("blocks", [1, 2])
def test_unet_is_the_plain_one(blocks: int) -> None:
    net = TemporalUNet(3, 5, 8, 8, (1, 2, 4), blocks, "mish")
    x, tau, states = torch.randn(6, 8, 5), torch.rand(6), torch.randn(6, 3)
    torch.testing.assert_close(net(x, tau, states), plain_unet(net, x, tau, states), atol=1e-4, rtol=1e-4)


def test_unet_sees_state_time_and_every_position() -> None:
    net = TemporalUNet(3, 5, 8, 8, (1, 2, 4), 1, "silu")
    x, tau, states = torch.randn(1, 8, 5), torch.tensor([0.5]), torch.randn(1, 3)
    before = net(x, tau, states)
    assert (net(x, tau + 0.1, states) - before).abs().amin() > 1e-6
    assert (net(x, tau, states + 1) - before).abs().amin() > 1e-6
    for position in range(8):
        moved = x.clone()
        moved[:, position] += 1
        assert ((net(moved, tau, states) - before).abs().amax((0, 2)) > 1e-6).all()


def test_paper_sizes() -> None:
    """4.1 million parameters for the prior and 0.9 million for the energy (hopper: S = 11)."""
    n = PAPER.horizon // PAPER.steps_per_latent
    denoiser = TemporalUNet(
        11, PAPER.latent_dim, n, PAPER.denoiser_width, PAPER.denoiser_multipliers, PAPER.denoiser_blocks
    )
    energy = EnergyNet(11, n * PAPER.latent_dim, PAPER.energy_hidden, PAPER.energy_layers)
    assert sum(p.numel() for p in denoiser.parameters()) == 4_112_208
    assert sum(p.numel() for p in energy.parameters()) == pytest.approx(0.9e6, rel=0.05)
