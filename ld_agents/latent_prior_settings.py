"""Settings of the VAE over windows and the diffusion prior over its latents, which LDCQ and LDGC share."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ld_agents.common.settings import (
    STRICT,
    BatchSize,
    EnvironmentSteps,
    Fraction,
    GradientSteps,
    LatentDim,
    NonNegative,
    SamplerSteps,
    Width,
    Widths,
    documented,
)
from ld_agents.diffusion.sampling import Solver


@documented
@dataclass(frozen=True, config=STRICT)
class LatentPriorSettings:
    """Defaults: the paper where it says, else the released code [C] or its fork's scripts [F]."""

    # sizes [C]
    latent_dim: LatentDim = 16  # Z, numbers in a latent; paper
    horizon: EnvironmentSteps = 30  # H, environment steps per latent [C]
    vae_hidden: Width = 256  # units of the VAE's layers
    encoder: Literal["gru", "mlp"] = "gru"  # network over the steps of a window
    decoder: Literal["autoregressive", "joint"] = "autoregressive"  # action dimensions in turn or at once
    denoiser: Literal["unet", "mlp", "transformer"] = "unet"  # residual MLP U-Net; the others are ours, to compare
    denoiser_hidden: Width = 256  # units of the denoiser's embeddings
    denoiser_widths: Widths = (128, 32, 16, 8)  # of the U-Net's levels, the MLP's layers or the Transformer's blocks

    # where the paper and the released code differ
    windows_past_terminals: bool = True  # point 1 of LDCQ's differences
    schedule: Literal["rescaled", "released"] = "rescaled"  # of the noise
    learning_rates: Literal["cosine", "released"] = "released"  # how they fall in a stage
    sample_actions: bool = False  # also with deterministic=True, with noise that repeats
    exec_horizon: EnvironmentSteps = 10  # environment steps between decisions: H in the paper, 10 in the code's mazes

    # stage 1
    kl_weight: NonNegative = 0.05  # beta of the VAE; paper
    vae_learning_rate: Fraction = 5e-5  # Adam's [C]
    vae_batch_size: BatchSize = 128  # windows [C]
    vae_steps: GradientSteps = 760_000  # 100 epochs of a million windows [F]
    decoded_steps: EnvironmentSteps | None = None  # steps per window in the action likelihood; None is all
    standardize_latents: bool = False  # to mean 0 and deviation 1 over the data [C]
    normalize_observations: bool = False  # by mean and deviation of the data [C]

    # stage 2
    diffusion_steps: SamplerSteps = 500  # T; DIAR's table, same pipeline
    prior_learning_rate: Fraction = 1e-4  # Adam's [C]
    prior_batch_size: BatchSize = 128  # windows [F]
    prior_steps: GradientSteps = 3_400_000  # 450 epochs of a million windows [F]

    # draws from the prior
    solver: Solver = "dpm++2m"  # ours: the released code runs the full chain
    solver_steps: SamplerSteps = 20  # network evaluations
    extra_steps: Annotated[int, Field(ge=0, le=1_000)] = 0  # "ddpm" only; 5 in [C]
    # standard deviation of the noise that draws start from; above 1 draws more widely
    noise_scale: Annotated[float, Field(ge=0, le=10)] = 1.0

    def __post_init__(self) -> None:
        if len(self.denoiser_widths) < 2:
            raise ValueError(f"denoiser_widths must be at least 2 widths, got {self.denoiser_widths}.")
        if self.denoiser == "transformer" and (len(set(self.denoiser_widths)) > 1 or self.denoiser_widths[0] % 4):
            raise ValueError(
                f'denoiser_widths must be one multiple of 4 for all blocks with denoiser="transformer", such as '
                f"(128, 128), got {self.denoiser_widths}."
            )
        if self.exec_horizon > self.horizon:
            raise ValueError(f"exec_horizon ({self.exec_horizon}) must not exceed horizon ({self.horizon}).")
        if self.schedule == "rescaled" and self.diffusion_steps < 30:
            raise ValueError(
                f"diffusion_steps must be at least 30 with the rescaled schedule, got {self.diffusion_steps}."
            )
        if self.solver != "ddpm" and self.solver_steps > self.diffusion_steps:
            raise ValueError(
                f"solver_steps ({self.solver_steps}) must not exceed diffusion_steps ({self.diffusion_steps})."
            )
        if self.noise_scale_is_lost(**dataclasses.asdict(self)):
            raise ValueError(
                f'noise_scale ({self.noise_scale}) has no effect with solver="ddpm", whose chain forgets where it '
                'started: set noise_scale=1.0, or use "dpm++2m" or "ddim".'
            )

    @staticmethod
    def noise_scale_is_lost(
        *, solver: str, schedule: str, noise_scale: float, prior: str = "diffusion", **_: Any
    ) -> bool:
        """Whether the full chain forgets the scale. On latents that are standard normal, 0.6 % of the start is left at
        the end of the rescaled chain of any length, but 60 % of the released one, which does not begin at noise.
        """
        return noise_scale != 1 and (solver, schedule, prior) == ("ddpm", "rescaled", "diffusion")
