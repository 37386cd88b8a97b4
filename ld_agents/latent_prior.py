"""Stages 1 and 2 of LDCQ, which LDGC shares: a beta-VAE over windows, and a diffusion prior over its latents.

Both agents act alike, too: a latent is drawn at a state, held for some steps, and decoded at each of them.
"""

import functools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ld_agents.common.offline_algorithm import Losses, OfflineAlgorithm
from ld_agents.common.planning_policy import Noise, PlanningPolicy
from ld_agents.diffusion.sampling import Diffuser, NoiseSchedule, SolverStep, linear_schedule, sample, solver_steps
from ld_agents.latent_prior_settings import LatentPriorSettings
from ld_agents.networks.critics import descend
from ld_agents.networks.denoisers import Denoise, MLPDenoiser, ResidualMLPUNet, TransformerDenoiser
from ld_agents.networks.trajectory_vae import TrajectoryVAE

UNSEEN_SHARE = 0.1  # of the steps in episodes that are too short, from which on it is told


class LatentPriorPolicy(PlanningPolicy):
    """A VAE, a diffusion prior, and acting with a latent that is held for some steps.

    Latents are standardized outside the VAE if the agent standardizes them: all else sees z with mean 0 and standard
    deviation 1 over the data.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, *spaces: Any, settings: LatentPriorSettings, **kwargs: Any) -> None:
        super().__init__(*spaces, **kwargs)
        s = self.settings = settings
        self.vae = TrajectoryVAE(
            self.vae_state_dim,
            self.action_dim,
            latent_dim=s.latent_dim,
            horizon=s.horizon,
            hidden=s.vae_hidden,
            encoder=s.encoder,
            decoder=s.decoder,
        )
        if self.has_denoiser:
            denoiser = {"unet": ResidualMLPUNet, "mlp": MLPDenoiser, "transformer": TransformerDenoiser}[s.denoiser]
            self.denoiser = denoiser(self.state_dim, s.latent_dim, s.denoiser_hidden, s.denoiser_widths)
        self.register_buffer("latent_mean", torch.zeros(s.latent_dim))
        self.register_buffer("latent_std", torch.ones(s.latent_dim))

    @property
    def vae_state_dim(self) -> int:
        """Numbers of a state that the VAE sees: all, unless what the prior is conditioned on holds a goal."""
        return self.state_dim

    @property
    def has_denoiser(self) -> bool:
        return True

    @functools.cached_property
    def steps(self) -> list[SolverStep]:
        s = self.settings
        return solver_steps(noise_schedule(s), s.solver, s.solver_steps, extra_steps=s.extra_steps)

    @property
    def plan_shape(self) -> tuple[int, ...]:
        return (self.settings.latent_dim,)

    def check_traceable(self) -> None:
        if self.has_denoiser and any(step.s for step in self.steps):
            raise ValueError(
                f"Plans of the solver {self.settings.solver!r}, which draws noise at each of its {len(self.steps)} "
                "steps, are not compiled and not exported. Use 'dpm++2m' or 'ddim'."
            )

    def draw_latents(self, states: Tensor, noise: Noise) -> Tensor:
        """Latents from the prior, given the noise [n, K, Z] of each sampler step. Shapes [n, S] -> [n, K, Z]."""
        start = noise(0) * self.settings.noise_scale
        with torch.no_grad():
            return sample(self.denoise_at(states), self.steps, start, noise)

    def denoise_at(self, states: Tensor) -> Denoise:
        """The denoiser at states, for the K latents of each. Shape [n, S]."""
        return self.denoiser.at(states, torch.tensor([step.j for step in self.steps], device=states.device))

    def samples_actions(self, deterministic: bool) -> bool:
        return self.settings.sample_actions or not deterministic

    def action_of(self, plans: Tensor, steps: Tensor, states: Tensor, noise: Tensor | None) -> Tensor:
        return self.vae.action.act(states[:, : self.vae_state_dim], self._raw(plans), noise)

    def _raw(self, latents: Tensor) -> Tensor:
        """Latents as the VAE has them. Shapes [..., Z] -> [..., Z]."""
        return latents * self.latent_std + self.latent_mean


class LatentPriorTraining(OfflineAlgorithm):
    """Stages 1 and 2."""

    policy: LatentPriorPolicy
    settings: LatentPriorSettings

    # ------------------------------------------------- stage 1: beta-VAE over windows (paper section 4.1)

    def train_vae(self) -> Iterator[Losses]:
        """L = action likelihood + beta KL(q_phi || p_omega) + state decoder, all divided by H."""
        s = self.settings
        starts = self._window_starts()
        self._warn_of_short_episodes(starts)
        parameters = list(self.policy.vae.parameters())
        optimizer = self.optimizer("vae", parameters, s.vae_learning_rate)
        for step in self.remaining_steps("vae"):
            self.set_learning_rate(optimizer, s.vae_learning_rate * self._decay("vae", step))
            batch = starts[self.random_indices(len(starts), s.vae_batch_size)].long()
            states, actions = self._windows(batch)
            final_states = self.states(self._next_rows(batch))
            epsilon = torch.randn(len(batch), s.latent_dim, generator=self.generator, device=self.device)
            recorded = self.data.window_steps(batch, s.horizon)
            steps = self._decoded_steps(recorded)
            losses = self.policy.vae.losses(states, actions, final_states, epsilon, steps, recorded)
            loss = losses["action"] + s.kl_weight * losses["kl"] + losses["final_state"]
            descend(optimizer, loss)
            yield {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}
        if s.standardize_latents:
            latents = self._encode(self.random_subset(starts, None, "latent scale", "vae"))
            self.policy.latent_mean.copy_(latents.mean(0))
            self.policy.latent_std.copy_(latents.std(0, correction=0).clamp(min=1e-3))

    def _window_starts(self) -> Tensor:
        return self.data.window_starts(self.settings.horizon, past_terminals=self.settings.windows_past_terminals)

    def _warn_of_short_episodes(self, starts: Tensor) -> None:
        """Episodes without a window are not learned from: seldom worth a word, but not where they are the data."""
        ends = self.data.episode_ends
        lengths = torch.diff(ends, prepend=ends.new_zeros(1))
        lost = torch.ones_like(ends, dtype=torch.bool)
        lost[torch.searchsorted(ends, starts.to(ends), right=True)] = False
        if int(lengths[lost].sum()) > UNSEEN_SHARE * self.data.n_steps:
            warnings.warn(
                f"{int(lost.sum()):,} of {len(ends):,} episodes ({int(lengths[lost].sum()):,} of {self.data.n_steps:,} "
                f"steps) are shorter than horizon={self.settings.horizon}, and nothing is learned from them. Set a "
                "shorter horizon.",
                stacklevel=2,
            )

    def _windows(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """States and actions; past a terminal actions are zero. Shapes [B] -> [B, H, S], [B, H, A]."""
        rows, recorded = self.data.window_rows(starts, self.settings.horizon)
        actions = self.actions(rows.clamp(max=self.data.n_steps - 1))
        return self.states(rows), actions * recorded[..., None]

    def _next_rows(self, starts: Tensor) -> Tensor:
        """Rows of s_{t+H}. Shapes [B] -> [B]."""
        return self.data.next_rows(starts, self.settings.horizon)

    def _decoded_steps(self, recorded: Tensor) -> Tensor | None:
        """Steps for the action likelihood, drawn from the recorded ones of each window. Shapes [B] -> [B, n]."""
        s = self.settings
        if s.decoded_steps is None or s.decoded_steps >= s.horizon:
            return None
        uniform = torch.rand(len(recorded), s.decoded_steps, generator=self.generator, device=self.device)
        return (uniform * recorded[:, None]).long()

    # ------------------------------------------------- stage 2: diffusion prior over latents (paper section 4.2)

    def train_prior(self) -> Iterator[Losses]:
        """Min-SNR-5 weighted x0 prediction of the posterior means (paper eq. 5)."""
        s = self.settings
        starts = self.random_subset(self.prior_starts(), None, "prior windows", "prior")
        latents = self._standardized(self._encode(starts))  # [W, Z]
        diffuser = Diffuser(noise_schedule(s), self.device)
        denoiser = self.policy.denoiser
        optimizer = self.optimizer("prior", denoiser.parameters(), s.prior_learning_rate)
        for step in self.remaining_steps("prior"):
            self.set_learning_rate(optimizer, s.prior_learning_rate * self._decay("prior", step))
            indices = self.random_indices(len(starts), s.prior_batch_size)
            z = latents[indices]
            j = diffuser.random_steps(len(z), self.generator)
            epsilon = torch.randn(z.shape, generator=self.generator, device=self.device)
            prediction = denoiser(diffuser.add_noise(z, j, epsilon), j, self.conditions(starts[indices].long()))
            loss = diffuser.min_snr_loss(z, prediction, j, gamma=5.0)
            descend(optimizer, loss)
            yield {"loss": loss.detach()}

    def prior_starts(self) -> Tensor:
        """Starts of the windows that the prior learns from: all. Shape [W]."""
        return self._window_starts()

    def conditions(self, starts: Tensor) -> Tensor:
        """What the prior is conditioned on where windows begin: the state. Shapes [B] -> [B, S]."""
        return self.states(starts)

    @torch.no_grad()
    def _encode(self, starts: Tensor) -> Tensor:
        """Posterior means of windows, raw. Shapes [W] -> [W, Z]."""
        chunks = tqdm(starts.split(8192), desc="encode windows", leave=False, disable=not self._show_progress)
        return torch.cat([self.policy.vae.encode(*self._windows(chunk)).mean for chunk in chunks])

    def _standardized(self, latents: Tensor) -> Tensor:
        return (latents - self.policy.latent_mean) / self.policy.latent_std

    def _decay(self, stage: str, step: int, epoch_steps: int = 7_600) -> float:
        """Factor of the learning rate at a gradient step of a stage."""
        if self.settings.learning_rates == "cosine":
            return self.cosine_decay(stage, step)
        return 1.0 if stage == "vae" else 1 + math.cos(math.pi * (step // epoch_steps) / 75)


def noise_schedule(settings: LatentPriorSettings) -> NoiseSchedule:
    return linear_schedule(settings.diffusion_steps, rescaled=settings.schedule == "rescaled")
