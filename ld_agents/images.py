"""Learning from images: a stage before all others compresses frames to codes, which the other stages learn from.

A code stands for one frame: what one frame does not show, such as a speed, no agent here can see. Frames stay uint8
where the dataset has them; every frame is encoded once per call of `learn`, after the stage.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ld_agents.common.offline_algorithm import Losses, OfflineAlgorithm, Stage
from ld_agents.common.offline_policy import OfflinePolicy
from ld_agents.common.settings import (
    STRICT,
    BatchSize,
    Fraction,
    GradientSteps,
    LatentDim,
    NonNegative,
    Widths,
    documented,
    layered,
)
from ld_agents.data.dataset import OfflineDataset
from ld_agents.networks.critics import descend
from ld_agents.networks.image_encoder import ImageVAE

_COMPONENT_FRAMES = 2048  # that the principal components are taken from
_ENCODED_AT_ONCE = 256


@documented
@dataclass(frozen=True, config=STRICT)
class ImageSettings:
    """Settings of the stage `images` of a "CnnPolicy". The numbers are ours: the paper has none."""

    image_code: LatentDim = 64  # numbers in a code
    image_widths: Widths = (32, 64, 128)  # channels of the convolutions, each of which halves a frame
    image_kl_weight: NonNegative = 1.0  # beta
    image_learning_rate: Fraction = 1e-3  # Adam's, falling to 0 as a cosine
    image_batch_size: BatchSize = 64  # frames
    image_steps: GradientSteps = 50_000  # gradient steps


PAPER = ImageSettings()
FAST = dataclasses.replace(PAPER, image_widths=(16, 32, 64), image_steps=2_000)  # minutes on one core
PRESETS = {"fast": FAST, "paper": PAPER}
NAMES = frozenset(field.name for field in dataclasses.fields(ImageSettings))


class ImageAgent(OfflineAlgorithm):
    """An agent that also learns from frames: with "CnnPolicy" its stages begin with `image_stages`.

    `ImageSettings` are given as its own settings are.
    """

    image_settings: ImageSettings | None  # None: observations are vectors

    def _initialize(
        self, policy: str, *, state_dim: int, preset: str | None, settings: dict[str, Any], **others: Any
    ) -> None:
        self.image_settings = None
        if policy == "CnnPolicy":
            given = {name: value for name, value in settings.items() if name in NAMES}
            settings = {name: value for name, value in settings.items() if name not in NAMES}
            self.image_settings, _ = layered("CnnPolicy", PRESETS.get(preset or "fast", FAST), {}, given)
            state_dim = self.image_settings.image_code
        super()._initialize(policy, state_dim=state_dim, preset=preset, settings=settings, **others)

    def config(self) -> dict[str, Any]:
        if self.image_settings is None:
            return super().config()
        return {**super().config(), "image_settings": dataclasses.asdict(self.image_settings)}

    def _make_policy(self) -> OfflinePolicy:
        policy = super()._make_policy()
        if (s := self.image_settings) is not None:
            assert self.observation_space.shape is not None
            policy.image_encoder = ImageVAE(self.observation_space.shape, s.image_code, s.image_widths)
        return policy

    def image_stages(self) -> list[Stage]:
        """The stage `images`; of vectors none."""
        s = self.image_settings
        return [] if s is None else [Stage("images", s.image_steps, self.train_images)]

    def train_images(self) -> Iterator[Losses]:
        """L = half the squared error of standardized pixels + beta KL(q(code | frame) || N(0, 1))."""
        s, frames, encoder = self.image_settings, self._frames, self.policy.image_encoder
        assert s is not None
        assert isinstance(encoder, ImageVAE)
        rows = torch.arange(len(frames), device=self.device)
        if self.stage_steps["images"] == 0:
            encoder.fit_components(self._some_frames(self.random_subset(rows, _COMPONENT_FRAMES, "components")))
        optimizer = self.optimizer("images", encoder.parameters(), s.image_learning_rate)
        for step in self.remaining_steps("images"):
            self.set_learning_rate(optimizer, s.image_learning_rate * self.cosine_decay("images", step))
            batch = self._some_frames(self.random_indices(len(frames), s.image_batch_size))
            epsilon = torch.randn(len(batch), s.image_code, generator=self.generator, device=self.device)
            losses = encoder.losses(batch, epsilon)
            loss = losses["reconstruction"] + s.image_kl_weight * losses["kl"]
            descend(optimizer, loss)
            yield {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}
        codes = self._encode_frames()
        self.policy.observation_mean.copy_(codes.mean(0))
        self.policy.observation_std.copy_(codes.std(0, correction=0).clamp(min=1e-3))
        self.data.observation_rows = codes

    def _prepare_data(self, dataset: OfflineDataset) -> None:
        """Of frames, `self.data` holds their codes, as soon as the stage `images` is finished."""
        if self.image_settings is None:
            return super()._prepare_data(dataset)
        self._frames = dataset.observation_rows
        finished = self.stage_steps["images"] == self.stage_budget["images"]
        codes = self._encode_frames() if finished else torch.zeros(len(self._frames), self.state_dim)
        return super()._prepare_data(dataset.with_observations(codes))

    def _release_data(self) -> None:
        super()._release_data()
        self._frames = torch.empty(0)

    def _some_frames(self, rows: Tensor) -> Tensor:
        return self._frames[rows.to(self._frames.device)].to(self.device)

    @torch.no_grad()
    def _encode_frames(self) -> Tensor:
        """Codes of all frames. Shape [rows, D]."""
        encoder = self.policy.image_encoder
        assert encoder is not None
        return torch.cat([encoder(part.to(self.device)) for part in self._frames.split(_ENCODED_AT_ONCE)])
