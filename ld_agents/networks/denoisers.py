"""The networks that denoise."""

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ld_agents.networks.critics import linear_of_parts, norm_gelu_mlp
from ld_agents.networks.trajectory_transformer import CausalTransformer


def sinusoids(j: Tensor, size: int) -> Tensor:
    """Sine and cosine features of diffusion steps, frequencies 10000^(-k / (size/2 - 1)). Shapes [n] -> [n, size]."""
    frequencies = torch.exp(torch.arange(size // 2, device=j.device) * (-math.log(10_000) / (size // 2 - 1)))
    angles = j.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class NormGELU(NamedTuple):
    """A linear layer, LayerNorm and GELU, as tensors: in modules they take as long to look up as a small product."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, layer: nn.Linear, norm: nn.LayerNorm) -> "NormGELU":
        return cls(layer.weight, layer.bias, norm.weight, norm.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes [..., in] -> [..., out]."""
        h = F.linear(x, self.weight, self.bias)
        return F.gelu(torch.layer_norm(h, self.scale.shape, self.scale, self.shift))


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
        """Scale and shift of a diffusion step, those of the layer norm before it included.

        Shapes [n, hidden] -> two of [n, width].
        """
        scale, shift = self.time(time).chunk(2, dim=-1)
        scale = 1 + scale
        return scale * self.norm.weight, torch.addcmul(shift, scale, self.norm.bias)

    def weights(self) -> tuple[Tensor, NormGELU]:
        """What `through_block` needs beside the terms: the first layer's part for x, and the second layer."""
        return self.first.weight[:, : self.width], NormGELU.of(self.second, self.norm)


def through_block(
    x: Tensor, product: Tensor, state_term: Tensor, scale: Tensor, shift: Tensor, second: NormGELU
) -> Tensor:
    """A pass through a `ResidualBlock`; `product` is that of x and the first layer. Shape [..., width]."""
    h = product.add_(state_term)
    if scale.dim() == 1:  # one diffusion step for all rows
        h = torch.layer_norm(h, scale.shape, scale, shift)
    else:
        h = torch.addcmul(shift, torch.layer_norm(h, h.shape[-1:]), scale)
    return second(F.gelu(h)).add_(x)


class UNetWeights(NamedTuple):
    """Those of a pass over x, looked up once for many passes; the first block's product is that of x and `entry`."""

    inlet: tuple[Tensor, Tensor]
    entry: tuple[Tensor, Tensor] | None
    blocks: list[tuple[Tensor, NormGELU]]
    down: list[NormGELU]
    up: list[NormGELU]
    outlet: tuple[Tensor, Tensor]


Denoise = Callable[[Tensor, int], Tensor]  # x [n, K, Z] at a solver step -> x0


class LatentDenoiser(nn.Module):
    """A denoiser of one latent, conditioned on a state: embeddings of state and time, which all kinds share."""

    def __init__(self, state_dim: int, hidden: int, time_features: int) -> None:
        super().__init__()
        self.time_features = time_features
        self.time = norm_gelu_mlp(time_features, hidden, hidden)
        self.state = norm_gelu_mlp(state_dim, hidden, hidden)

    def denoise_embedded(self, x: Tensor, state: Tensor, time: Tensor) -> Tensor:
        """Predicts x0. Shapes [..., Z], and two of [..., hidden] that broadcast against x -> [..., Z]."""
        raise NotImplementedError

    def forward(self, x: Tensor, j: Tensor, states: Tensor) -> Tensor:
        """Predicts x0. Shapes [B, Z], [B] int64, [B, S] -> [B, Z]."""
        return self.denoise_embedded(x, self.state(states), self.time(sinusoids(j, self.time_features)))

    def at(self, states: Tensor, j: Tensor) -> Denoise:
        """The denoiser at states, for K latents of each, at the diffusion steps of a solver. Shapes [n, S], [k]."""
        state, times = self.state(states[:, None]), self.time(sinusoids(j, self.time_features))
        return lambda x, k: self.denoise_embedded(x, state, times[k])


class ResidualMLPUNet(LatentDenoiser):
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
        super().__init__(state_dim, hidden, time_features)
        self.inlet = nn.Linear(latent_dim, widths[0])
        self.down_blocks = nn.ModuleList(ResidualBlock(width, hidden) for width in widths)
        self.up_blocks = nn.ModuleList(ResidualBlock(width, hidden) for width in widths[-2::-1])
        self.last_block = ResidualBlock(widths[0], hidden)
        self.down = nn.ModuleList(nn.Linear(w, v) for w, v in pairwise(widths))
        self.up = nn.ModuleList(nn.Linear(w, v) for w, v in pairwise(widths[::-1]))
        # one norm per width, shared between the way down and the way up
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.outlet = nn.Linear(widths[0], latent_dim)
        # in tuples, which are no submodules, once and not at every pass
        norms = list(self.norms)
        self._blocks: tuple[Any, ...] = (*self.down_blocks, *self.up_blocks, self.last_block)
        self._down: tuple[Any, ...] = tuple(zip(self.down, norms[1:], strict=True))
        self._up: tuple[Any, ...] = tuple(zip(self.up, norms[-2::-1], strict=True))

    def state_terms(self, states: Tensor) -> list[Tensor]:
        """Per block, what the states add. Shapes [..., S] -> list of [..., width]."""
        embedded = self.state(states)
        return [block.state_term(embedded) for block in self._blocks]

    def time_terms(self, j: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per block, scale and shift of diffusion steps. Shapes [n] int64 -> list of two [n, width]."""
        embedded = self.time(sinusoids(j, self.time_features))
        return [block.time_terms(embedded) for block in self._blocks]

    def weights(self, entry: bool = False) -> UNetWeights:
        """What `denoise` needs. With `entry`, inlet and first layer after it are one layer: [width, Z] and [width]."""
        blocks = [block.weights() for block in self._blocks]
        return UNetWeights(
            inlet=(self.inlet.weight, self.inlet.bias),
            entry=(blocks[0][0] @ self.inlet.weight, blocks[0][0] @ self.inlet.bias) if entry else None,
            blocks=blocks,
            down=[NormGELU.of(*pair) for pair in self._down],
            up=[NormGELU.of(*pair) for pair in self._up],
            outlet=(self.outlet.weight, self.outlet.bias),
        )

    def denoise(
        self,
        x: Tensor,
        state_terms: list[Tensor],
        time_terms: list[tuple[Tensor, Tensor]],
        weights: UNetWeights | None = None,
    ) -> Tensor:
        """Predicts x0 from x [..., Z]. The terms broadcast against x: [n, 1, width] serves K candidates per state.

        `weights` are those of many passes; their `entry` saves each a product of [width, width].
        """
        inlet, entry, blocks, down, up, outlet = weights or self.weights()
        terms = iter(zip(blocks, state_terms, time_terms, strict=True))

        def through(h: Tensor, product: Tensor | None = None) -> Tensor:
            (first, second), state_term, (scale, shift) = next(terms)
            product = F.linear(h, first) if product is None else product
            return through_block(h, product, state_term, scale, shift, second)

        x_in = F.linear(x, *inlet)
        h = through(x_in, F.linear(x, *entry) if entry else None)
        skips = [h]
        for layer in down:
            h = through(layer(h))
            skips.append(h)
        for layer, skip in zip(up, skips[-2::-1], strict=True):
            h = through(layer(h).add_(skip))
        return F.linear(through(h + x_in), *outlet)

    def forward(self, x: Tensor, j: Tensor, states: Tensor) -> Tensor:
        return self.denoise(x, self.state_terms(states), self.time_terms(j))

    def at(self, states: Tensor, j: Tensor) -> Denoise:
        state_terms = self.state_terms(states[:, None])  # per block [n, 1, width]
        by_block = [zip(factor.unbind(), offset.unbind(), strict=True) for factor, offset in self.time_terms(j)]
        time_terms = [list(of_step) for of_step in zip(*by_block, strict=True)]
        weights = self.weights(entry=True)
        return lambda x, k: self.denoise(x, state_terms, time_terms[k], weights)


class MLPDenoiser(LatentDenoiser):
    """Latent, state and time side by side, and layers of LayerNorm and GELU. No residual connections."""

    def __init__(
        self, state_dim: int, latent_dim: int, hidden: int, widths: tuple[int, ...], time_features: int = 128
    ) -> None:
        super().__init__(state_dim, hidden, time_features)
        self.first = nn.Linear(latent_dim + 2 * hidden, widths[0])
        self.rest = nn.Sequential(nn.LayerNorm(widths[0]), nn.GELU(), *norm_gelu_mlp(*widths))
        self.outlet = nn.Linear(widths[-1], latent_dim)

    def denoise_embedded(self, x: Tensor, state: Tensor, time: Tensor) -> Tensor:
        return self.outlet(self.rest(linear_of_parts(self.first, x, state, time)))


class TransformerDenoiser(LatentDenoiser):
    """Three tokens, time, state and latent, and a causal block per width, in which the last token sees all three."""

    HEADS = 4

    def __init__(
        self, state_dim: int, latent_dim: int, hidden: int, widths: tuple[int, ...], time_features: int = 128
    ) -> None:
        super().__init__(state_dim, hidden, time_features)
        width = widths[0]
        self.time_token, self.state_token = nn.Linear(hidden, width), nn.Linear(hidden, width)
        self.latent_token = nn.Linear(latent_dim, width)
        self.body = CausalTransformer(3, width, len(widths), self.HEADS, dropout=0.0)
        self.norm = nn.LayerNorm(width)
        self.outlet = nn.Linear(width, latent_dim)

    def denoise_embedded(self, x: Tensor, state: Tensor, time: Tensor) -> Tensor:
        tokens = self.time_token(time), self.state_token(state), self.latent_token(x)
        h = self.body(torch.stack(torch.broadcast_tensors(*tokens), -2).flatten(0, -3))
        return self.outlet(self.norm(h[:, -1])).view(x.shape)


class PositionConv(nn.Module):
    """A 1-D convolution over few positions, done as one matrix product.

    With hardly more positions than taps, a convolution routine is mostly overhead. As a dense matrix over all (channel,
    position) pairs the same map is several times faster on a CPU, forward and backward.

    Args:
        positions: n, of the input.
        kernel: taps; the padding keeps n positions, or gives n / stride of them.
        stride: of a convolution, or of a transposed one, which gives n stride positions.
    """

    def __init__(
        self, inputs: int, outputs: int, positions: int, kernel: int, stride: int = 1, transposed: bool = False
    ) -> None:
        super().__init__()
        self.places = (positions, kernel, stride, transposed)
        self.positions = positions * stride if transposed else positions // stride  # of the output
        bound = (inputs * kernel) ** -0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def dense(self) -> tuple[Tensor, Tensor]:
        """The matrix [inputs n, outputs m] and the bias [outputs m] for m output positions."""
        outputs, inputs, kernel = self.weight.shape
        reached = _places(*self.places, self.weight.device).to(self.weight.dtype)  # [kernel, n, m]
        taps = self.weight.transpose(0, 1).reshape(-1, kernel) @ reached.flatten(1)  # [inputs outputs, n m]
        matrix = taps.view(inputs, outputs, *reached.shape[1:]).transpose(1, 2)  # [inputs, n, outputs, m]
        return matrix.reshape(-1, outputs * self.positions), self.bias.repeat_interleave(self.positions)


@functools.cache
def _places(positions: int, kernel: int, stride: int, transposed: bool, device: torch.device) -> Tensor:
    """1 where an input position reaches an output position through a tap. Shape [kernel, n, m]."""
    with torch.inference_mode(False):  # it is used in training too
        tap = torch.arange(kernel, device=device)[:, None, None] - (kernel - 1) // 2
        positions_in = torch.arange(positions, device=device)[:, None]
        positions_out = torch.arange(positions * stride if transposed else positions // stride, device=device)
        if transposed:
            return (positions_in * stride + tap == positions_out).float()
        return (positions_out * stride + tap == positions_in).float()


Dense = list[tuple[Tensor, Tensor]]


class TemporalBlock(nn.Module):
    """Two convolutions over the positions, each with GroupNorm and an activation; the condition is added in between."""

    def __init__(self, inputs: int, outputs: int, positions: int, condition: int, activation: str) -> None:
        super().__init__()
        self.shape = (-1, outputs, positions)
        self.activation = _ACTIVATIONS[activation]
        self.first = PositionConv(inputs, outputs, positions, 5)
        self.second = PositionConv(outputs, outputs, positions, 5)
        self.around = PositionConv(inputs, outputs, positions, 1) if inputs != outputs else None
        self.norms = nn.ModuleList(nn.GroupNorm(8, outputs) for _ in range(2))
        self.condition = nn.Linear(condition, outputs)

    def dense(self) -> Dense:
        return [conv.dense() for conv in (self.first, self.second, self.around) if conv is not None]

    def forward(self, x: Tensor, dense: Dense, term: Tensor) -> Tensor:
        """Shapes [B, inputs n], matrices, [B, outputs] -> [B, outputs n]."""
        (first, first_bias), (second, second_bias), *around = dense
        h = torch.addmm(first_bias, x, first).view(self.shape)
        h = self.activation(self.norms[0](h)) + term[..., None]
        h = torch.addmm(second_bias, h.flatten(1), second).view(self.shape)
        h = self.activation(self.norms[1](h)).flatten(1)
        return h + (torch.addmm(around[0][1], x, around[0][0]) if around else x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"mish": F.mish, "silu": F.silu}


class TemporalUNet(nn.Module):
    """Diffuser's denoiser: a 1-D convolutional U-Net over the N latents of a sequence, predicting noise.

    From Diffuser's code (jannerm/diffuser, commit 7ea4228), with the condition beside the time embedding as Decision
    Diffuser has it. The default sizes give 4.1 million parameters.

    What depends on the weights, the state and the time alone is worked out apart from the pass over x: `dense` and
    `state_terms` once per plan, `time_terms` once per solver. The training pass uses the same functions, so hoisting is
    exact.

    Args:
        positions: N, which every level but the last halves.
        width: channels of the first level, a multiple of 8.
        multipliers: channels of each level, in widths.
        blocks: residual blocks per level.
        activation: "mish", or "silu", which is several times faster on a CPU and nearly the same function.
    """

    def __init__(
        self,
        state_dim: int,
        latent_dim: int,
        positions: int,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 4),
        blocks: int = 2,
        activation: Literal["mish", "silu"] = "mish",
        embedding: int = 64,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.activation = _ACTIVATIONS[activation]
        self.time = nn.ModuleList([nn.Linear(embedding, 4 * embedding), nn.Linear(4 * embedding, embedding)])
        self.state = nn.ModuleList([nn.Linear(state_dim, 4 * embedding), nn.Linear(4 * embedding, embedding)])

        def level(inputs: int, outputs: int, n: int) -> nn.ModuleList:
            sizes = [inputs, *[outputs] * blocks]
            return nn.ModuleList(TemporalBlock(a, b, n, 2 * embedding, activation) for a, b in pairwise(sizes))

        channels = [width * multiplier for multiplier in multipliers]
        counts = [positions // 2**i for i in range(len(channels))]
        self.down_levels = nn.ModuleList(
            level(a, b, n) for (a, b), n in zip(pairwise([latent_dim, *channels]), counts, strict=True)
        )
        self.middle = level(channels[-1], channels[-1], counts[-1])
        self.up_levels = nn.ModuleList(
            level(2 * b, a, n) for a, b, n in zip(channels[-2::-1], channels[:0:-1], counts[:0:-1], strict=True)
        )
        self.down = nn.ModuleList(PositionConv(c, c, n, 3, 2) for c, n in zip(channels[:-1], counts[:-1], strict=True))
        self.up = nn.ModuleList(
            PositionConv(c, c, n, 4, 2, transposed=True) for c, n in zip(channels[-2::-1], counts[:0:-1], strict=True)
        )
        self.last = PositionConv(width, width, positions, 5)
        self.last_norm = nn.GroupNorm(8, width)
        self.outlet = PositionConv(width, latent_dim, positions, 1)

    @property
    def _blocks(self) -> list[TemporalBlock]:
        levels = [*self.down_levels, self.middle, *self.up_levels]
        return [block for level in levels for block in level]

    def dense(self) -> list[Dense]:
        """The convolutions as matrices: those of each block, then the rest."""
        rest = [*self.down, *self.up, self.last, self.outlet]
        return [*(block.dense() for block in self._blocks), [conv.dense() for conv in rest]]

    def state_terms(self, states: Tensor) -> list[Tensor]:
        """Per block, what the states add. Shapes [B, S] -> list of [B, channels]."""
        h = self.activation(self._embed(self.state, states))
        return [F.linear(h, block.condition.weight[:, self.embedding :]) for block in self._blocks]

    def time_terms(self, tau: Tensor) -> list[Tensor]:
        """Per block, what times in (0, 1] add. Shapes [n] -> list of [n, channels]."""
        h = self.activation(self._embed(self.time, sinusoids(1000 * tau, self.embedding)))
        return [
            F.linear(h, block.condition.weight[:, : self.embedding], block.condition.bias) for block in self._blocks
        ]

    def _embed(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        return layers[1](self.activation(layers[0](x)))

    def denoise(self, x: Tensor, dense: list[Dense], terms: list[Tensor]) -> Tensor:
        """Predicts noise. Shapes [B, N, Z], matrices, per block [B, channels] -> [B, N, Z]."""
        parts = iter(zip(dense, terms, strict=False))
        rest = iter(dense[-1])

        def through(level: nn.Module, h: Tensor) -> Tensor:
            for block in level:  # type: ignore[attr-defined]
                h = block(h, *next(parts))
            return h

        def convolve(h: Tensor) -> Tensor:
            matrix, bias = next(rest)
            return torch.addmm(bias, h, matrix)

        shape = x.transpose(1, 2).shape
        h = x.transpose(1, 2).flatten(1)  # [B, Z N], as all activations: channel by channel
        skips = []
        for i, level in enumerate(self.down_levels):
            h = through(level, h)
            skips.append(h)
            if i < len(self.down):
                h = convolve(h)
        h = through(self.middle, h)
        for level in self.up_levels:
            h = convolve(through(level, torch.cat([h, skips.pop()], dim=1)))
        h = convolve(h).view(-1, self.last_norm.num_channels, shape[2])
        h = convolve(self.activation(self.last_norm(h)).flatten(1))
        return h.view(shape).transpose(1, 2)

    def forward(self, x: Tensor, tau: Tensor, states: Tensor) -> Tensor:
        """Predicts noise. Shapes [B, N, Z], [B], [B, S] -> [B, N, Z]."""
        terms = [a + b for a, b in zip(self.state_terms(states), self.time_terms(tau), strict=True)]
        return self.denoise(x, self.dense(), terms)
