"""The beta-VAE that compresses frames to codes (Higgins et al., ICLR 2017), as LDCQ does for CARLA.

Neither LDCQ's paper nor its code tells sizes. Ours: strided convolutions as in DQN and its followers, and two things
without which a code of CarRacing's frames does not show the bar at their bottom, and so no speed:

1. Errors of pixels are in standard deviations of that pixel over the data: few pixels in thousands may tell much.
2. Code and frame are also joined by the principal components of the frames, which are fixed before training. Training
   so begins at probabilistic PCA (Tipping & Bishop 1999), and the convolutions learn what that leaves.
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from ld_agents.networks.trajectory_vae import Gaussian

_PIXEL_STD_FLOOR = 255 / 20  # so that pixels that hardly ever change do not count beyond measure
_LARGEST_LOG_STD = 4.0


class ImageVAE(nn.Module):
    """Frames [n, h, w, C] uint8 to codes [n, D] and back.

    Args:
        frame_shape: (h, w, C).
        code_dim: D.
        widths: channels of the convolutions, each of which halves height and width.

    Raises:
        ValueError: the frames are too small to be halved so often.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    components: Tensor  # [D, C * h * w], of length 1
    scales: Tensor  # [D], standard deviation of the frames along each component

    def __init__(self, frame_shape: tuple[int, ...], code_dim: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        height, width, channels = frame_shape
        sizes = [(height >> k, width >> k) for k in range(len(widths) + 1)]
        if min(sizes[-1]) < 1:
            raise ValueError(
                f"Frames of {height} x {width} pixels cannot be halved {len(widths)} times. Give fewer image_widths."
            )
        levels = list(pairwise((channels, *widths)))
        self.inner_shape = (widths[-1], *sizes[-1])
        features = widths[-1] * sizes[-1][0] * sizes[-1][1]
        self.encoder = nn.Sequential(*_with_relu(nn.Conv2d(a, b, 4, 2, 1) for a, b in levels), nn.Flatten())
        self.mean, self.log_std = nn.Linear(features, code_dim), nn.Linear(features, code_dim)
        self.decode_code = nn.Sequential(nn.Linear(code_dim, features), nn.ReLU())
        odd = [(h % 2, w % 2) for h, w in sizes[:-1]]
        up = [nn.ConvTranspose2d(b, a, 4, 2, 1, more) for (a, b), more in zip(levels, odd, strict=True)]
        self.decoder = nn.Sequential(*_with_relu(reversed(up)))[:-1]  # without the last ReLU
        for last in (self.mean, self.log_std, up[0]):  # the convolutions add nothing at first
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.register_buffer("pixel_mean", torch.zeros(frame_shape))
        self.register_buffer("pixel_std", torch.full(frame_shape, 255.0))
        self.register_buffer("components", torch.zeros(code_dim, channels * height * width))
        self.register_buffer("scales", torch.ones(code_dim))

    @torch.no_grad()
    def fit_components(self, frames: Tensor) -> None:
        """Takes mean and deviation of each pixel, and the principal components, from frames [n, h, w, C]."""
        self.pixel_mean.copy_(frames.float().mean(0))
        self.pixel_std.copy_(frames.float().std(0, correction=0).clamp(min=_PIXEL_STD_FLOOR))
        pixels = self.standardized(frames).flatten(1)
        variances, sides = torch.linalg.eigh(pixels @ pixels.T / len(pixels))  # of frames: fewer than pixels
        kept = [i for i in range(1, min(len(self.scales), len(variances)) + 1) if variances[-i] > 1e-6]
        for k, i in enumerate(kept):
            self.scales[k] = variances[-i].sqrt()
            self.components[k] = sides[:, -i] @ pixels / (len(pixels) * variances[-i]).sqrt()
            self.log_std.bias[k] = -0.5 * (1 + variances[-i]).log()  # what is best without the convolutions

    def standardized(self, frames: Tensor) -> Tensor:
        """Shapes [n, h, w, C] of 0 to 255 -> [n, C, h, w]."""
        return ((frames.float() - self.pixel_mean) / self.pixel_std).permute(0, 3, 1, 2)

    def encode(self, pixels: Tensor) -> Gaussian:
        """q(code | frame) of standardized frames. Shapes [n, C, h, w] -> [n, D]."""
        features = self.encoder(pixels)
        return Gaussian(self._mean(pixels, features), self.log_std(features).clamp(max=_LARGEST_LOG_STD).exp())

    def _mean(self, pixels: Tensor, features: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.components.T / self.scales + self.mean(features)

    def decode(self, codes: Tensor) -> Tensor:
        """Standardized frames. Shapes [n, D] -> [n, C, h, w]."""
        learned = self.decoder(self.decode_code(codes).view(-1, *self.inner_shape))
        return learned + ((codes * self.scales) @ self.components).view(learned.shape)

    def losses(self, frames: Tensor, epsilon: Tensor) -> dict[str, Tensor]:
        """Sums over pixels and numbers of the code, means over frames. Shapes [n, h, w, C], [n, D] -> scalars."""
        pixels = self.standardized(frames)
        posterior = self.encode(pixels)
        error = self.decode(posterior.sample(epsilon)) - pixels
        prior = Gaussian(torch.zeros_like(epsilon), torch.ones_like(epsilon))
        return {"reconstruction": 0.5 * (error**2).sum((1, 2, 3)).mean(), "kl": posterior.kl(prior).mean()}

    def forward(self, frames: Tensor) -> Tensor:
        """Codes: means of q(code | frame). Shapes [n, h, w, C] -> [n, D]."""
        pixels = self.standardized(frames)
        return self._mean(pixels, self.encoder(pixels))


def _with_relu(layers: Iterable[nn.Module]) -> list[nn.Module]:
    return [part for layer in layers for part in (layer, nn.ReLU())]
