"""How LatentDiffuser acts: draws plans, takes the best, executes its first actions (points 8 to 13 of the agent)."""

import contextlib
import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ld_agents.common.keyed_noise import keyed_normal, observation_keys
from ld_agents.common.planning_policy import Noise, PlanningPolicy, chosen
from ld_agents.diffusion import guided_sampler
from ld_agents.diffusion.guidance import EnergyNet, Guidance, posterior_mean_gradient
from ld_agents.diffusion.guided_sampler import Fixed, SamplerSteps, sampler_steps
from ld_agents.diffusion.sampling import sample, x0_from_noise
from ld_agents.latent_diffuser_settings import ENERGY_GUIDED, LatentDiffuserSettings
from ld_agents.networks.critics import QFunction
from ld_agents.networks.denoisers import TemporalUNet
from ld_agents.networks.trajectory_transformer import Decoded, TrajectoryTransformer
from ld_agents.networks.window_values import StateValue

_SCALE_HIDDEN = 128  # of the network that predicts mean and standard deviation of R at a state: ours
LOG_STD_MIN = -9.0  # of the standard deviation over all states


class Plans(NamedTuple):
    """Drawn plans, in the units of the environment."""

    states: Tensor  # [n, K, T, S]
    actions: Tensor  # [n, K, T, A]
    returns: Tensor  # [n, K], R


class LatentDiffuserPolicy(PlanningPolicy):
    """Plans at a state by guided sampling, executes the plan's first actions, plans again.

    Latents are whitened outside the VAE: prior and energy see mean 0 and standard deviation 1 per channel.
    """

    token_mean: Tensor
    token_std: Tensor
    latent_mean: Tensor
    latent_std: Tensor
    return_mean: Tensor
    return_std: Tensor

    def __init__(self, *spaces: Any, settings: LatentDiffuserSettings, **kwargs: Any) -> None:
        super().__init__(*spaces, **kwargs)
        s = self.settings = settings
        self.vae = TrajectoryTransformer(
            self.state_dim,
            self.action_dim,
            horizon=s.horizon,
            steps_per_latent=s.steps_per_latent,
            steps_per_token=s.steps_per_token,
            latent_dim=s.latent_dim,
            width=s.width,
            blocks=s.blocks,
            heads=s.heads,
            dropout=s.dropout,
            decoder=s.decoder,
            returns=s.return_inputs == "trunk",
            action_decoder=s.action_decoder,
            action_hidden=s.action_hidden,
            latent_space=s.latent_space,
        )
        if s.return_inputs == "step":
            self.q_function = QFunction(self.state_dim, self.action_dim, (4 * s.width, 4 * s.width))
            self.q_average = copy.deepcopy(self.q_function).requires_grad_(False)
        if s.return_targets == "expectile":
            self.value = StateValue(self.state_dim, (4 * s.width, 4 * s.width))
            self.value_average = copy.deepcopy(self.value).requires_grad_(False)
        self.latent_shape = (s.horizon // s.steps_per_latent, self.vae.latent_dim)
        n_latents, latent_dim = self.latent_shape
        self.denoiser = TemporalUNet(
            self.state_dim,
            latent_dim,
            n_latents,
            s.denoiser_width,
            s.denoiser_multipliers,
            s.denoiser_blocks,
            s.denoiser_activation,
        )
        self.denoiser_average = copy.deepcopy(self.denoiser).requires_grad_(False)
        if s.guidance in ENERGY_GUIDED:
            self.energy = EnergyNet(
                self.state_dim,
                n_latents * latent_dim,
                s.energy_hidden,
                s.energy_layers,
                frequency_scale=s.energy_frequency_scale,
            )
            self.energy_average = copy.deepcopy(self.energy).requires_grad_(False)
        # actions, rewards and returns-to-go
        self.register_buffer("token_mean", torch.zeros(self.action_dim + 2))
        self.register_buffer("token_std", torch.ones(self.action_dim + 2))
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_std", torch.ones(latent_dim))
        self.register_buffer("return_mean", torch.zeros(()))
        self.register_buffer("return_std", torch.ones(()))
        if s.return_scale == "state":
            self.scale_of_state = nn.Sequential(
                nn.Linear(self.state_dim, _SCALE_HIDDEN),
                nn.SiLU(),
                nn.Linear(_SCALE_HIDDEN, _SCALE_HIDDEN),
                nn.SiLU(),
                nn.Linear(_SCALE_HIDDEN, 2),
            )
        self._fixed_key: object = None
        self._fixed_value: Fixed

    @property
    def plan_shape(self) -> tuple[int, ...]:
        of_state = self.settings.action_decoder == "state"
        return self.settings.exec_horizon, self.vae.width if of_state else self.action_dim

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.settings.n_candidates, *self.latent_shape

    def check_traceable(self) -> None:
        if self.settings.guidance == "posterior-mean":
            raise ValueError(
                "Posterior-mean guidance differentiates while it samples: its plans are not compiled and not exported. "
                "Train with guidance='exact'."
            )

    def action_of(self, plans: Tensor, steps: Tensor, states: Tensor, noise: Tensor | None) -> Tensor:
        """The plan's next action. Its noise is all the randomness there is."""
        actions = chosen(plans, steps)
        if self.settings.action_decoder == "state":
            actions = self._unstandardized(self.vae.actions(actions, states), slice(self.action_dim))
        return actions

    def plan_from(self, states: Tensor, noise: Noise) -> Tensor:
        """What is executed of a plan: its first actions, or what they are decoded from once their state is seen.

        Shapes [n, S], [n, K, N, Z] -> [n, exec_horizon, A], scaled to [-1, 1], or with `action_decoder="state"`
        [n, exec_horizon, width].
        """
        s = self.settings
        latents = self.draw_latents(states, noise(0).flatten(0, 1))  # [n K, N, Z]
        if s.n_candidates > 1:
            decoded = self.decode(latents, states.repeat_interleave(s.n_candidates, 0))
            best = self.plan_returns(decoded).view(-1, s.n_candidates).argmax(1)
            latents = chosen(latents.unflatten(0, (-1, s.n_candidates)), best)
        # the decoder is causal: what comes later in the plan does not change its first steps
        latents = latents[:, : -(-s.exec_horizon // s.steps_per_latent)]
        if s.action_decoder == "state":
            return self.vae.action_features(self._raw(latents), states)[:, : s.exec_horizon]
        return self._unstandardized(self.decode(latents, states).actions, slice(self.action_dim))[:, : s.exec_horizon]

    def draw_latents(self, states: Tensor, start: Tensor, guided: bool = True) -> Tensor:
        """Latents from the tilted density, or from the prior itself, any number K at each state.

        Shapes [n, S], noise [n K, N, Z] -> [n K, N, Z]. What depends on the state is computed once for all K. The loop
        has fixed shapes, and nothing is read back from the device.
        """
        s, n_each = self.settings, start.shape[0] // states.shape[0]
        guidance: Guidance = s.guidance if guided and s.guidance_scale else "none"
        # what autograd is to run through must not come from inference mode
        inference = contextlib.nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False)
        with inference, torch.no_grad():
            start, states = start.clone(), states.clone()
            fixed = self._fixed()
            steps, signal, noise = fixed.steps
            state_terms = [term.repeat_interleave(n_each, 0) for term in self.denoiser_average.state_terms(states)]
            terms = guided_sampler.sums(state_terms, fixed.time_terms)
            energy_terms = None
            if guidance in ENERGY_GUIDED:
                energy_terms = self.energy_average.state_terms(states).repeat_interleave(n_each, 0)

            def evaluate(x: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
                if guidance != "posterior-mean":
                    return guided_sampler.evaluate(x, fixed, terms[k], energy_terms, fixed.energy_time_terms[k])
                return posterior_mean_gradient(
                    x,
                    lambda z: fixed.denoiser.denoise(z, fixed.dense, terms[k]),
                    lambda z: s.inverse_temperature * self.standard_returns(z, states.repeat_interleave(n_each, 0)),
                    signal[k],
                    noise[k],
                )

            def denoise(x: Tensor, k: int) -> Tensor:
                epsilon, gradient = evaluate(x, k)
                return x0_from_noise(x, epsilon, signal[k], noise[k], gradient, s.guidance_scale)

            return sample(denoise, steps, start, lambda _: start)

    def _steps(self) -> SamplerSteps:
        s = self.settings
        return sampler_steps(s.solver_steps, s.solver, s.solver_grid)

    def _fixed(self) -> Fixed:
        """What sampling needs of weights and solver alone; computed again only when one of them has changed."""
        if torch.compiler.is_compiling():  # of weights that do not change: `example` has computed it
            return self._fixed_value
        denoiser, energy = self.denoiser_average, getattr(self, "energy_average", None)
        parameters = [*denoiser.parameters(), *(energy.parameters() if energy else ())]
        key = (self.settings, self.device, [(id(p), p._version) for p in parameters])
        if self._fixed_key != key:
            self._fixed_value = guided_sampler.fix(denoiser, energy, self._steps())
            self._fixed_key = key
        return self._fixed_value

    def decode(self, latents: Tensor, states: Tensor) -> Decoded:
        """Whitened latents to standardized steps. Shapes [n, m, Z], [n, S] -> `Decoded` of m L steps."""
        return self.vae.decode(self._raw(latents), states)

    def _raw(self, latents: Tensor) -> Tensor:
        return latents * self.latent_std + self.latent_mean

    def plan_returns(self, decoded: Decoded) -> Tensor:
        """R of decoded plans, in the units of the environment. Shape [n]."""
        s = self.settings
        steps = s.return_steps or s.horizon
        going_on = torch.sigmoid(-decoded.end_logits[:, :steps])  # [n, H]
        of_steps = decoded.returns
        if of_steps is None:
            of_steps = self.q_function(decoded.states[:, :steps], decoded.actions[:, :steps])
        returns = self._unstandardized(of_steps[:, :steps, None], slice(-1, None))[..., 0]
        if s.plan_return != "tap":
            total = (going_on * returns).sum(1)
            return total / steps if s.plan_return == "mean" else total
        rewards = self._unstandardized(decoded.rewards[:, :steps, None], slice(-2, -1))[..., 0]
        discounts = s.discount ** torch.arange(steps, device=returns.device)
        discounted = discounts * going_on.cumprod(1)
        return (discounted[:, :-1] * rewards[:, :-1]).sum(1) + discounted[:, -1] * returns[:, -1]

    def standard_returns(self, latents: Tensor, states: Tensor) -> Tensor:
        """R of latents, standardized. Shapes [n, N, Z], [n, S] -> [n]."""
        return self.standardized(self.plan_returns(self.decode(latents, states)), states)

    def standardized(self, returns: Tensor, states: Tensor) -> Tensor:
        """R in standard deviations of the prior's draws (`return_scale`). Shapes [...], [..., S] -> [...]."""
        returns = (returns - self.return_mean) / self.return_std
        if self.settings.return_scale == "all":
            return returns
        mean, log_std = self.scale_of_state(states).unbind(-1)
        return (returns - mean) * (-log_std.clamp(min=LOG_STD_MIN)).exp()

    def _unstandardized(self, x: Tensor, part: slice) -> Tensor:
        return x * self.token_std[part] + self.token_mean[part]

    def propose_plans(self, observations: Tensor, n: int, guided: bool = True, keys: Tensor | None = None) -> Plans:
        """Plans that an episode could begin with here, guided or from the prior alone. Shape [m, S] -> m times n.

        The first `n_candidates` are those that an episode that begins here chooses from, or in the middle of one a
        decision whose noise keys [m] are given.
        """
        with torch.inference_mode():
            keys = observation_keys(observations, self.noise_seed, 0) if keys is None else keys
            states = self.normalize(observations)
            first = min(n, self.settings.n_candidates)
            blocks = [keyed_normal(keys, (k, *self.latent_shape), i) for i, k in enumerate((first, n - first))]
            noise = torch.cat(blocks, 1).flatten(0, 1)
            decoded = self.decode(self.draw_latents(states, noise, guided), states.repeat_interleave(n, 0))
            actions = self.unscale(self._unstandardized(decoded.actions, slice(self.action_dim)))
            return Plans(
                (decoded.states * self.observation_std + self.observation_mean).unflatten(0, (-1, n)),
                actions.unflatten(0, (-1, n)),
                self.plan_returns(decoded).unflatten(0, (-1, n)),
            )
