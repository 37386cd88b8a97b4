"""The networks that denoise."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ld_agents.critics import norm_gelu_mlp


def sinusoids(j: Tensor, size: int) -> Tensor:
    """Sine and cosine features of diffusion steps, frequencies 10000^(-k / (size/2 - 1)). Shapes [n] -> [n, size]."""
    frequencies = torch.exp(torch.arange(size // 2, device=j.device) * (-math.log(10_000) / (size // 2 - 1)))
    angles = j.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResidualBlock(nn.Module):
    """One block of the U-Net: takes in the state, is scaled and shifted by the time, and adds to its input.

    The three layer norms share one set of parameters, as in LDCQ's released code.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.state = nn.Linear(hidden, width)
        self.time = nn.Linear(hidden, 2 * width)
        self.first = nn.Linear(2 * width, width)
        self.second = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def state_term(self, state: Tensor) -> Tensor:
        """What the state adds to the first layer. Shapes [n, hidden] -> [n, width]."""
        return F.linear(self.norm(self.state(state)), self.first.weight[:, self.width :], self.first.bias)

    def time_terms(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and offset of a diffusion step. Shapes [n, hidden] -> two of [n, width]."""
        scale, shift = self.time(time).chunk(2, dim=-1)
        return 1 + scale, shift

    def forward(self, x: Tensor, state_term: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
        h = self.norm(F.linear(x, self.first.weight[:, : self.width]) + state_term)
        h = F.gelu(torch.addcmul(offset, h, factor))
        return x + F.gelu(self.norm(self.second(h)))


class ResidualMLPUNet(nn.Module):
    """LDCQ's denoiser: residual MLP blocks in the shape of a U-Net, conditioned on state and time, predicting x0.

    The default sizes are those of the released code (eight blocks; 715,776 parameters for 4-dimensional states).

    What depends on the state alone and on the time alone is worked out apart from the pass over x: `state_terms` once
    per plan, `time_terms` once per solver. The training pass uses the same two functions, so hoisting is exact.
    """

    def __init__(
        self,
        state_dim: int,
        latent_dim: int,
        hidden: int = 256,
        widths: tuple[int, ...] = (128, 32, 16, 8),
        time_features: int = 128,
    ) -> None:
        super().__init__()
        self.time_features = time_features
        self.time = norm_gelu_mlp(time_features, hidden, hidden)
        self.state = norm_gelu_mlp(state_dim, hidden, hidden)
        self.inlet = nn.Linear(latent_dim, widths[0])
        self.down_blocks = nn.ModuleList(ResidualBlock(width, hidden) for width in widths)
        self.up_blocks = nn.ModuleList(ResidualBlock(width, hidden) for width in widths[-2::-1])
        self.last_block = ResidualBlock(widths[0], hidden)
        self.down = nn.ModuleList(nn.Linear(w, v) for w, v in pairwise(widths))
        self.up = nn.ModuleList(nn.Linear(w, v) for w, v in pairwise(widths[::-1]))
        # one norm per width, shared between the way down and the way up
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.outlet = nn.Linear(widths[0], latent_dim)

    @property
    def _blocks(self) -> list[ResidualBlock]:
        return [*self.down_blocks, *self.up_blocks, self.last_block]

    def state_terms(self, states: Tensor) -> list[Tensor]:
        """Per block, what the states add. Shapes [..., S] -> list of [..., width]."""
        embedded = self.state(states)
        return [block.state_term(embedded) for block in self._blocks]

    def time_terms(self, j: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per block, factor and offset of diffusion steps. Shapes [n] int64 -> list of two [n, width]."""
        embedded = self.time(sinusoids(j, self.time_features))
        return [block.time_terms(embedded) for block in self._blocks]

    def denoise(self, x: Tensor, state_terms: list[Tensor], time_terms: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Predicts x0 from x [..., Z]. The terms broadcast against x: [n, 1, width] serves K candidates per state."""
        terms = iter(zip(self._blocks, state_terms, time_terms, strict=True))

        def block(h: Tensor) -> Tensor:
            module, state_term, (factor, offset) = next(terms)
            return module(h, state_term, factor, offset)

        inlet = self.inlet(x)
        h = block(inlet)
        skips = [h]
        for down, norm in zip(self.down, list(self.norms)[1:], strict=True):
            h = block(F.gelu(norm(down(h))))
            skips.append(h)
        for up, norm, skip in zip(self.up, list(self.norms)[-2::-1], skips[-2::-1], strict=True):
            h = block(F.gelu(norm(up(h))) + skip)
        return self.outlet(block(h + inlet))

    def forward(self, x: Tensor, j: Tensor, states: Tensor) -> Tensor:
        """Predicts x0. Shapes [B, Z], [B] int64, [B, S] -> [B, Z]."""
        return self.denoise(x, self.state_terms(states), self.time_terms(j))
