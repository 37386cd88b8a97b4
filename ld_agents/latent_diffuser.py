"""LatentDiffuser: planning by energy-guided diffusion in a latent space (Li, ICLR 2024, arXiv 2310.00311).

A window of T steps becomes N = T / L latents. A diffusion model learns which latent sequences z the data hold after a
state s. The decoder also predicts the return-to-go of every step, so each z has a return R(z, s). Planning draws z from
mu(z | s) exp(beta R(z, s)): sampling the diffusion model with the gradient of an intermediate energy added, which a
contrastive loss makes exact (`guidance.py`). To act: plan, execute the first decoded actions, plan again.

| here                     | paper                                      | shape     |
| ------------------------ | ------------------------------------------ | --------- |
| `states`                 | s_1                                        | [B, S]    |
| `latents`                | z, whitened                                | [B, N, Z] |
| `vae.encode`             | q_phi(z given s_1, a_1, r_1, G_1, ...)     |           |
| `vae.decode`             | h_psi(z, s_1)                              |           |
| `vae.decode(...).returns`| Q_zeta(s_t, a_t)                           | [B, T]    |
| `denoiser`               | epsilon_theta(z_tau, tau, s_1)             |           |
| `energy`                 | f_eta(z_tau, s_1, tau) = -E_tau + constant |           |
| `support`                | z_i ~ mu_theta(z given s_1)                | [B, K, D] |
| `plan_return`            | R = -E(h(z, s_1))                          | [B]       |
| `inverse_temperature`    | beta, in standard deviations of R          |           |

No code was released, and the body of the paper was not at hand. What it leaves open is decided as follows; what can
move a score is a setting.

1. Stages: VAE, prior, energy, one after the other, each frozen afterwards, as in the paper's algorithm 1.
2. The VAE's posterior is drawn to N(0, I) with weight `kl_weight`, per coordinate; the prior is fitted afterwards.
3. Tokens: one per step, with states, actions, rewards, returns-to-go and a flag that the episode is over.
4. Returns-to-go include the reward of their own step, so that they are samples of Q(s_t, a_t) (`discount`). Timeouts
   truncate them: steps shortly before one look worse than they are. Nothing is bootstrapped (`return_targets`).
5. Windows start at every step but an episode's last; past its end they are padded with zeros and the flag is 1.
   Padding counts in the loss of the flag alone.
6. Encoder: causal, maximum over each L steps, as in TAP. Decoder: one trunk and a module per element, or a trunk each
   (`decoder`). The return module sees the trunk, and the decoded state and action of its step. With
   `return_inputs="step"` it sees these two alone and learns from those of the data. Otherwise, where returns also hang
   on what no plan decides, latents hold how lucky the window was, and guidance looks for luck.
   `return_targets="bootstrapped"` has the module estimate what lies behind the window, which varies far less.
7. The prior learns posterior means or samples (`latent_targets`), whitened per channel. State and time are
   concatenated. Continuous VP diffusion; `solver`, `solver_grid` and `solver_steps` are ours.
8. R is the sum of the decoded returns-to-go, steps past a decoded end left out (`plan_return`, `return_steps`). Beta is
   in standard deviations of R over draws of the prior: at all states of the data, or at each state (`return_scale`).
   Far from a goal the returns of plans hardly differ, so that only the second guides there.
9. Support latents are draws of the prior with averaged weights, the one that is sampled later; `weights` says how they
   are weighted, `weight_limit` how much one may count. `guidance` also has the two approximate kinds and none.
10. `guidance_scale` 1 is the only exact one. One plan is drawn and executed (`n_candidates`); with more, the one with
   the highest R is, which is no longer a draw of the tilted density.
11. `exec_horizon` actions are executed, as decoded with the plan, before the next plan: 1 in TAP.
12. Weights of prior and energy are averaged (`average_rate`); the rate starts higher, so that short runs forget where
   they began.

`latent_space=False` is the same planner on raw actions: the L actions themselves take the place of each latent. Prior,
energy and sampler are the same; the decoder predicts states, rewards and returns from state and actions.

The fast preset is the same method with smaller networks and budgets. Beyond sizes it differs in: SiLU in the U-Net,
no dropout and no weight decay, cosine learning rates, a random subset of the windows for the prior, bootstrapped
returns of the step alone, beta in standard deviations at each state, limited weights, which tilt less than beta says
where the best draws are rare, and smoother features of time in the energy.
"""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ld_agents.common.keyed_noise import keyed_normal, observation_keys
from ld_agents.common.offline_algorithm import Losses, OfflineAlgorithm, Stage
from ld_agents.common.offline_policy import OfflinePolicy, State
from ld_agents.data.dataset import OfflineDataset
from ld_agents.diffusion.guidance import (
    EnergyNet,
    Guidance,
    contrastive_loss,
    posterior_mean_gradient,
    support_weights,
)
from ld_agents.diffusion.sampling import SolverStep, VPSchedule, sample, vp_solver_steps, x0_from_noise
from ld_agents.latent_diffuser_settings import ENERGY_SETTINGS, FAMILY, PRESETS, LatentDiffuserSettings
from ld_agents.networks.critics import descend, polyak_update
from ld_agents.networks.denoisers import Dense, TemporalUNet
from ld_agents.networks.trajectory_transformer import Decoded, TrajectoryTransformer

_SCHEDULE = VPSchedule()
_TAU_MIN = 1e-3
# of the network that predicts mean and standard deviation of R at a state: ours
_SCALE_HIDDEN = 128
_SCALE_DRAWS = 8
_SCALE_STEPS = 1_000
_SCALE_BATCH = 512
_SCALE_LEARNING_RATE = 1e-3
_LOG_STD_MIN = -9.0  # of the standard deviation over all states
_ENERGY_GUIDED = ("exact", "mse")
_NOT_KEPT = ("energy", "scale_of_state")  # weights that `with_energy` trains anew


class Plans(NamedTuple):
    """Drawn plans, in the units of the environment."""

    states: Tensor  # [n, K, T, S]
    actions: Tensor  # [n, K, T, A]
    returns: Tensor  # [n, K], R


class LatentDiffuserPolicy(OfflinePolicy):
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
            latent_dim=s.latent_dim,
            width=s.width,
            blocks=s.blocks,
            heads=s.heads,
            dropout=s.dropout,
            decoder=s.decoder,
            return_inputs=s.return_inputs,
            latent_space=s.latent_space,
        )
        if s.return_targets == "bootstrapped":
            self.q_average = copy.deepcopy(self.vae.q_function).requires_grad_(False)
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
        if s.guidance in _ENERGY_GUIDED:
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
        self.speed_up()
        self._fixed_key: object = None

    def act(
        self, states: Tensor, keys: Tensor, state: State | None, episode_start: NDArray[np.bool_], deterministic: bool
    ) -> tuple[Tensor, State]:
        """Executes each environment's plan for `exec_horizon` steps.

        `deterministic` makes the noise of a plan repeatable, which is all the randomness there is.

        state: actions of the plans, flattened [n, exec_horizon A]; how many are still to come [n].
        """
        length = self.settings.exec_horizon
        now = (states, keys, state, episode_start)
        plans, executed, state = self.hold(
            lambda *of_rows: self.plan(*of_rows).flatten(1), length * self.action_dim, length, now
        )
        return plans.unflatten(1, (length, self.action_dim))[np.arange(len(plans)), executed], state

    def plan(self, states: Tensor, keys: Tensor) -> Tensor:
        """The first actions of a plan, scaled to [-1, 1]. Shapes [n, S], [n] noise keys -> [n, exec_horizon, A]."""
        s = self.settings
        noise = keyed_normal(keys, (s.n_candidates, *self.latent_shape))  # [n, K, N, Z]
        repeated = states.repeat_interleave(s.n_candidates, 0)
        latents = self.draw_latents(repeated, noise.flatten(0, 1))  # [n K, N, Z]
        if s.n_candidates > 1:
            scores = self.plan_returns(self.decode(latents, repeated)).view(len(states), s.n_candidates)
            rows = torch.arange(len(states), device=states.device)
            latents = latents.unflatten(0, (len(states), s.n_candidates))[rows, scores.argmax(1)]
        # the decoder is causal: what comes later in the plan does not change its first steps
        decoded = self.decode(latents[:, : -(-s.exec_horizon // s.steps_per_latent)], states)
        return self._unstandardised(decoded.actions, slice(self.action_dim))[:, : s.exec_horizon]

    def draw_latents(self, states: Tensor, start: Tensor, guided: bool = True) -> Tensor:
        """Latents from the tilted density, or from the prior itself. Shapes [n, S], noise [n, N, Z] -> [n, N, Z].

        The loop has fixed shapes, and nothing is read back from the device.
        """
        s, n = self.settings, len(states)
        guidance: Guidance = s.guidance if guided and s.guidance_scale else "none"
        steps, signal, noise = _sampler_steps(s)
        # what autograd is to run through must not come from inference mode
        with torch.inference_mode(False), torch.no_grad():
            # compiled for each size of the batch, so there are to be few sizes
            size = 1 << (n - 1).bit_length() if self.compiled else n
            rows = torch.arange(size, device=states.device).clamp(max=n - 1)
            states, start = states[rows], start[rows]
            fixed = self._fixed()
            dtype = fixed.time_terms[0].dtype
            terms = _sums([term.to(dtype) for term in self.denoiser_average.state_terms(states)], fixed.time_terms)
            energy_terms = self.energy_average.state_terms(states).to(dtype) if guidance in _ENERGY_GUIDED else None
            networks = _compiled_evaluate() if self.compiled else _evaluate

            def evaluate(x: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
                if guidance != "posterior-mean":
                    return networks(x, fixed, terms[k], energy_terms, fixed.energy_time_terms[k])
                return posterior_mean_gradient(
                    x,
                    lambda z: fixed.denoiser.denoise(z.to(dtype), fixed.dense, terms[k]).float(),
                    lambda z: s.inverse_temperature * self.standard_returns(z, states),
                    signal[k],
                    noise[k],
                )

            def denoise(x: Tensor, k: int) -> Tensor:
                epsilon, gradient = evaluate(x, k)
                return x0_from_noise(x, epsilon, signal[k], noise[k], gradient, s.guidance_scale)

            return sample(denoise, steps, start, lambda _: start)[:n]

    def speed_up(self, *, compile: bool = False, precision: Literal["fp32", "bf16"] = "fp32") -> None:
        """How plans are computed from now on; says nothing about what is learned, and is not saved.

        Args:
            compile: let `torch.compile` make one program of the networks in the sampling loop; on a GPU, a CUDA graph.
                Takes a while at the first plan of each size. Posterior-mean guidance is never compiled.
            precision: of the two networks in the loop; the latents themselves stay in float32.
        """
        self.compiled, self.precision = compile, precision

    def _fixed(self) -> "_Fixed":
        """What sampling needs of the weights and the solver alone; worked out again only when weights have changed."""
        denoiser, energy = self.denoiser_average, getattr(self, "energy_average", None)
        parameters = [*denoiser.parameters(), *(energy.parameters() if energy else ())]
        key = (self.settings, self.precision, self.device, [(id(p), p._version) for p in parameters])
        if self._fixed_key != key:
            tau = torch.tensor([step.time for step in _sampler_steps(self.settings)[0]], device=self.device)
            dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
            self._fixed_value = _Fixed(
                copy.deepcopy(denoiser).to(dtype) if self.precision == "bf16" else denoiser,
                copy.deepcopy(energy).to(dtype) if self.precision == "bf16" and energy else energy,
                [[(matrix.to(dtype), bias.to(dtype)) for matrix, bias in part] for part in denoiser.dense()],
                [term.to(dtype) for term in denoiser.time_terms(tau)],
                list(energy.time_terms(tau).to(dtype)) if energy else [None] * len(tau),
            )
            self._fixed_key = key
        return self._fixed_value

    def decode(self, latents: Tensor, states: Tensor) -> Decoded:
        """Whitened latents to standardised steps. Shapes [n, m, Z], [n, S] -> `Decoded` of m L steps."""
        return self.vae.decode(latents * self.latent_std + self.latent_mean, states)

    def plan_returns(self, decoded: Decoded) -> Tensor:
        """R of decoded plans, in the units of the environment. Shape [n]."""
        s = self.settings
        steps = s.return_steps or s.horizon
        going_on = torch.sigmoid(-decoded.end_logits[:, :steps])  # [n, H]
        returns = self._unstandardised(decoded.returns[:, :steps, None], slice(-1, None))[..., 0]
        if s.plan_return != "tap":
            total = (going_on * returns).sum(1)
            return total / steps if s.plan_return == "mean" else total
        rewards = self._unstandardised(decoded.rewards[:, :steps, None], slice(-2, -1))[..., 0]
        discounts = s.discount ** torch.arange(steps, device=returns.device)
        discounted = discounts * going_on.cumprod(1)
        return (discounted[:, :-1] * rewards[:, :-1]).sum(1) + discounted[:, -1] * returns[:, -1]

    def standard_returns(self, latents: Tensor, states: Tensor) -> Tensor:
        """R of latents, standardised. Shapes [n, N, Z], [n, S] -> [n]."""
        return self.standardised(self.plan_returns(self.decode(latents, states)), states)

    def standardised(self, returns: Tensor, states: Tensor) -> Tensor:
        """R in standard deviations of the prior's draws (`return_scale`). Shapes [...], [..., S] -> [...]."""
        returns = (returns - self.return_mean) / self.return_std
        if self.settings.return_scale == "all":
            return returns
        mean, log_std = self.scale_of_state(states).unbind(-1)
        return (returns - mean) * (-log_std.clamp(min=_LOG_STD_MIN)).exp()

    def _unstandardised(self, x: Tensor, part: slice) -> Tensor:
        return x * self.token_std[part] + self.token_mean[part]

    def propose_plans(self, observations: Tensor, n: int, guided: bool = True) -> Plans:
        """Plans that an episode could begin with here, guided or from the prior alone. Shape [m, S] -> m times n.

        The first `n_candidates` are those that an episode that begins here chooses from.
        """
        with torch.inference_mode():
            keys = observation_keys(observations, self.noise_seed, 0)
            states = self.normalize(observations).repeat_interleave(n, 0)
            first = min(n, self.settings.n_candidates)
            blocks = [keyed_normal(keys, (k, *self.latent_shape), i) for i, k in enumerate((first, n - first))]
            noise = torch.cat(blocks, 1).flatten(0, 1)
            decoded = self.decode(self.draw_latents(states, noise, guided), states)
            actions = self.unscale(self._unstandardised(decoded.actions, slice(self.action_dim)))
            return Plans(
                (decoded.states * self.observation_std + self.observation_mean).unflatten(0, (-1, n)),
                actions.unflatten(0, (-1, n)),
                self.plan_returns(decoded).unflatten(0, (-1, n)),
            )


class _Fixed(NamedTuple):
    """What sampling needs of the weights and the solver alone."""

    denoiser: TemporalUNet
    energy: EnergyNet | None
    dense: list[Dense]
    time_terms: list[Tensor]  # per block [steps, channels]
    energy_time_terms: list[Tensor | None]  # per step [hidden]


def _sums(state_terms: list[Tensor], time_terms: list[Tensor]) -> list[list[Tensor]]:
    """Terms of every step and block. Shapes per block [n, channels], [steps, channels] -> per step [n, channels]."""
    sums = [(state[None] + time[:, None]).unbind() for state, time in zip(state_terms, time_terms, strict=True)]
    return [list(of_step) for of_step in zip(*sums, strict=True)]


def _evaluate(
    x: Tensor, fixed: _Fixed, terms: list[Tensor], energy_terms: Tensor | None, energy_times: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Predicted noise, and the gradient of the energy. Shapes [n, N, Z] and what is hoisted -> two of [n, N, Z]."""
    epsilon = fixed.denoiser.denoise(x.to(terms[0].dtype), fixed.dense, terms)
    if fixed.energy is None or energy_terms is None or energy_times is None:
        return epsilon, None
    return epsilon, fixed.energy.gradient(x.flatten(1), energy_terms, energy_times).view_as(x)


@functools.cache
def _compiled_evaluate() -> Callable[..., tuple[Tensor, Tensor | None]]:
    return torch.compile(_evaluate, dynamic=False, mode="reduce-overhead")


class LatentDiffuser(OfflineAlgorithm):
    """LatentDiffuser.

    Example:
        agent = LatentDiffuser("MlpPolicy", "ld-agents/pointmaze/medium-v0", seed=0)
        agent.learn(progress_bar=True)
        action, state = agent.predict(observation, deterministic=True)

    Training has three stages of gradient steps (`vae`, `prior`, `energy`). The last is left out where the guidance
    needs no network ("posterior-mean", "none"). `with_energy` trains it again with another beta, for example.

    See `OfflineAlgorithm` for the arguments and `LatentDiffuserSettings` for the settings.
    """

    policy: LatentDiffuserPolicy
    settings: LatentDiffuserSettings
    policy_aliases: ClassVar = {"MlpPolicy": LatentDiffuserPolicy, "MultiInputPolicy": LatentDiffuserPolicy}

    @classmethod
    def presets(cls) -> dict[str, LatentDiffuserSettings]:
        return PRESETS

    @classmethod
    def family_settings(cls) -> dict[str, dict[str, Any]]:
        return FAMILY

    def stages(self) -> list[Stage]:
        s = self.settings
        stages = [Stage("vae", s.vae_steps, self.train_vae), Stage("prior", s.prior_steps, self.train_prior)]
        return [*stages, Stage("energy", s.energy_steps, self.train_energy)] if s.guidance in _ENERGY_GUIDED else stages

    def with_energy(self, **settings: Any) -> Self:
        """A new agent with this one's VAE and prior, whose energy is still to be trained.

        Example:
            colder = agent.with_energy(inverse_temperature=10.0)
            colder.learn(reset_num_timesteps=False)

        Args:
            **settings: of the energy and of acting, where they are to differ: `ENERGY_SETTINGS`.

        Raises:
            TypeError: for a setting that VAE or prior depend on.
            ValueError: if this agent has no data set, or its VAE or prior is not trained yet.
        """
        if fixed := sorted(set(settings) - set(ENERGY_SETTINGS)):
            raise TypeError(f"VAE and prior depend on {', '.join(fixed)}. Train a new agent instead.")
        unfinished = [n for n in ("vae", "prior") if self.stage_steps.get(n, 0) < self.stage_budget.get(n, 1)]
        if self.dataset is None or unfinished:
            raise ValueError("with_energy needs an agent with data, VAE and prior trained: call learn first.")
        other = type(self)(
            self.policy_name,
            self.dataset,
            preset=self.preset,
            family=self.family,
            seed=self.seed,
            device=self.device,
            verbose=self.verbose,
            tensorboard_log=self.tensorboard_log,
            cpu_bf16=self.cpu_bf16,
            **{**dataclasses.asdict(self.settings), **settings},
        )
        other.settings_origin = self.settings_origin | dict.fromkeys(settings, "user")
        fresh = other.policy.state_dict()
        kept = {n: v for n, v in self.policy.state_dict().items() if n in fresh and not n.startswith(_NOT_KEPT)}
        other.policy.load_state_dict({**fresh, **kept})
        other._plan_budget(None, reset=True)
        for name in ("vae", "prior"):
            other.stage_steps[name] = other.stage_budget[name]
            other.stage_seconds[name] = self.stage_seconds.get(name, 0.0)
        other.num_timesteps = sum(other.stage_steps.values())
        other._prepare_data(self.dataset)
        other._fit_return_scale()
        other._release_data()
        return other

    # ------------------------------------------------- data: windows of tokens, padded past the end of the episode

    def _prepare_data(self, dataset: OfflineDataset) -> None:
        super()._prepare_data(dataset)
        s, data = self.settings, self.data
        rewards = data.rewards
        if s.terminal_reward is not None:
            rewards = torch.where(data.terminals, s.terminal_reward, rewards)
        returns = returns_to_go(rewards, data.episode_ends, s.discount)
        rest = torch.cat([data.actions, rewards[:, None], returns[:, None]], dim=1)  # [rows, A + 2]
        if s.standardize:
            self.policy.token_mean.copy_(rest.mean(0))
            self.policy.token_std.copy_(rest.std(0, correction=0).clamp(min=1e-3))
            rest = (rest - self.policy.token_mean) / self.policy.token_std
        self.tokens = torch.cat([data.observations, rest], dim=1)
        lengths = data.episode_ends.diff(prepend=data.episode_ends.new_zeros(1))
        self.row_ends = data.episode_ends.repeat_interleave(lengths)  # where the episode of each row ends
        rows = torch.arange(data.n_steps, device=self.device)
        self.window_starts = rows[rows + 1 < self.row_ends]
        if not len(self.window_starts):
            raise ValueError("No episode has two steps. LatentDiffuser learns from longer ones.")

    def _release_data(self) -> None:
        super()._release_data()
        del self.tokens, self.row_ends, self.window_starts

    def windows(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and which of them lie inside the episode. Shapes [B] -> [B, T, S + A + 3], [B, T] bool."""
        rows = starts[:, None] + torch.arange(self.settings.horizon, device=self.device)
        inside = rows < self.row_ends[starts][:, None]
        tokens = self.tokens[rows.clamp(max=len(self.tokens) - 1)] * inside[..., None]
        return torch.cat([tokens, ~inside[..., None]], dim=-1), inside

    def _some_starts(self, n: int | None, purpose: str) -> Tensor:
        """Starts of windows: all, or a random subset that depends on the seed alone. Shape [min(n, W)]."""
        starts = self.window_starts
        if n is None or n >= len(starts):
            return starts
        order = torch.randperm(len(starts), generator=self.derived_generator(purpose), device=self.device)
        return starts[order[:n].sort().values]

    # ------------------------------------------------- stage 1: VAE over windows

    def train_vae(self) -> Iterator[Losses]:
        """Squared errors of states, actions, rewards and returns, cross-entropy of the flag, weak KL to N(0, I)."""
        s, vae = self.settings, self.policy.vae
        weights = {
            "state": s.state_weight,
            "action": s.action_weight,
            "reward": s.reward_weight,
            "return": s.return_weight,
            "end": 1.0,
            "kl": s.kl_weight,
        }
        parameters = list(vae.parameters())
        optimizer = self.optimizer("vae", parameters, s.vae_learning_rate)
        optimizer.param_groups[0]["betas"] = (0.9, 0.95)
        decayed = [module.weight for module in vae.modules() if isinstance(module, nn.Linear)]
        for step in self.remaining_steps("vae"):
            learning_rate = self._set_learning_rate(optimizer, s.vae_learning_rate, "vae", step)
            starts = self._random(self.window_starts, s.vae_batch_size)
            tokens, inside = self.windows(starts)
            returns = self._bootstrapped(starts, tokens, inside) if s.return_targets == "bootstrapped" else None
            epsilon = torch.randn(len(tokens), *self.policy.latent_shape, generator=self.generator, device=self.device)
            with self._dropout(step):
                losses = vae.losses(tokens, inside, epsilon, returns)
            loss = sum((weights[name] * value for name, value in losses.items()), torch.zeros((), device=self.device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, s.gradient_clip, foreach=True)
            if s.weight_decay:  # decoupled, as in AdamW
                with torch.no_grad():
                    torch._foreach_mul_(decayed, 1 - learning_rate * s.weight_decay)
            optimizer.step()
            if s.return_targets == "bootstrapped":
                online, average = vae.q_function, self.policy.q_average
                polyak_update(tuple(online.parameters()), tuple(average.parameters()), s.return_average_rate)
            yield {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}
        latents = self._encode(self._some_starts(s.scale_states, "whitening")).flatten(0, 1)
        self.policy.latent_mean.copy_(latents.mean(0))
        self.policy.latent_std.copy_(latents.std(0, correction=0).clamp(min=1e-3))

    @torch.no_grad()
    def _bootstrapped(self, starts: Tensor, tokens: Tensor, inside: Tensor) -> Tensor:
        """Returns-to-go whose part behind the window is Q of its last step. Shapes [B], as `windows` -> [B, T].

        The discounted rewards up to the last step are G_t less what G_last adds to it, so no reward is summed here.
        A terminal leaves nothing to estimate.
        """
        state_dim, action_dim = self.policy.state_dim, self.policy.action_dim
        last = inside.sum(1) - 1  # [B]
        token = tokens[torch.arange(len(last), device=self.device), last]
        states, actions = token[:, :state_dim], token[:, state_dim : state_dim + action_dim]
        change = (self.policy.q_average(states, actions) - token[:, -2]) * ~self.data.terminals[starts + last]
        steps_left = (last[:, None] - torch.arange(tokens.shape[1], device=self.device)).clamp(min=0)
        return tokens[..., -2] + self.settings.discount**steps_left * change[:, None]

    @contextlib.contextmanager
    def _dropout(self, step: int) -> Iterator[None]:
        """Dropout draws from torch's global generator: here it depends on seed and step, and leaves no trace there."""
        if not self.settings.dropout:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.derived_generator(f"dropout {step}").initial_seed())
            yield

    # ------------------------------------------------- stage 2: diffusion prior over latent sequences

    def train_prior(self) -> Iterator[Losses]:
        """Squared error of the predicted noise, unweighted, one time for the whole sequence."""
        s, policy = self.settings, self.policy
        starts = self._some_starts(s.prior_windows, "prior windows")
        latents = (self._encode(starts) - policy.latent_mean) / policy.latent_std  # [W, N, Z]
        optimizer = self.optimizer("prior", policy.denoiser.parameters(), s.prior_learning_rate)
        for step in self.remaining_steps("prior"):
            self._set_learning_rate(optimizer, s.prior_learning_rate, "prior", step)
            indices = torch.randint(len(starts), (s.prior_batch_size,), generator=self.generator, device=self.device)
            z = latents[indices]
            tau = self._random_times(len(z))
            epsilon = torch.randn(z.shape, generator=self.generator, device=self.device)
            states = self.data.observations[starts[indices]]
            loss = F.mse_loss(policy.denoiser(_SCHEDULE.add_noise(z, tau, epsilon), tau, states), epsilon)
            self._descend(optimizer, loss, policy.denoiser, policy.denoiser_average, step)
            yield {"loss": loss.detach()}
        self._fit_return_scale()

    @torch.no_grad()
    def _encode(self, starts: Tensor) -> Tensor:
        """Latents of windows, not whitened. Shapes [W] -> [W, N, Z]."""
        self.policy.vae.eval()
        generator = self.derived_generator("posterior")
        latents = []
        for chunk in tqdm(starts.split(2048), desc="encode windows", leave=False, disable=not self._show_progress):
            mean, log_variance = self.policy.vae.encode(self.windows(chunk)[0])
            if self.settings.latent_targets == "sample":
                epsilon = torch.randn(mean.shape, generator=generator, device=self.device)
                mean = mean + (0.5 * log_variance).exp() * epsilon
            latents.append(mean)
        self.policy.vae.train(self.policy.training)
        return torch.cat(latents)

    @torch.no_grad()
    def _fit_return_scale(self) -> None:
        """Mean and standard deviation of R over draws of the prior, at many states of the data and at each one."""
        policy, s = self.policy, self.settings
        if s.guidance == "none":
            return
        starts = self._some_starts(s.scale_states, "return scale")
        _, returns = self._draw_support(starts, 1 if s.return_scale == "all" else _SCALE_DRAWS)
        policy.return_mean.copy_(returns.mean())
        policy.return_std.copy_(returns.std(correction=0).clamp(min=1e-6))
        if s.return_scale == "all":
            return
        # the likelihood of a normal distribution whose mean and standard deviation depend on the state
        states, returns = self.data.observations[starts], (returns - policy.return_mean) / policy.return_std
        optimizer = torch.optim.Adam(policy.scale_of_state.parameters(), _SCALE_LEARNING_RATE)
        generator = self.derived_generator("return scale steps")
        for _ in range(_SCALE_STEPS):
            rows = torch.randint(len(states), (_SCALE_BATCH,), generator=generator, device=self.device)
            with torch.enable_grad():
                mean, log_std = policy.scale_of_state(states[rows])[:, None].unbind(-1)
                log_std = log_std.clamp(min=_LOG_STD_MIN)
                loss = (log_std + 0.5 * ((returns[rows] - mean) * (-log_std).exp()) ** 2).mean()
                descend(optimizer, loss)

    # ------------------------------------------------- stage 3: support latents and intermediate energy

    @torch.no_grad()
    def _draw_support(self, starts: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Draws of the prior, and their R. Shapes [M] -> [M, K, N Z] float16, [M, K]."""
        policy = self.policy
        policy.vae.eval()
        generator = self.derived_generator("support")
        support, returns = [], []
        # about 2k sequences at a time stay within the CPU's caches
        chunks = starts.split(max(1, (2048 if self.device.type == "cpu" else 1 << 16) // size))
        for chunk in tqdm(chunks, desc="draw support", leave=False, disable=not self._show_progress):
            states = self.data.observations[chunk].repeat_interleave(size, 0)
            noise = torch.randn(len(states), *policy.latent_shape, generator=generator, device=self.device)
            latents = policy.draw_latents(states, noise, guided=False)
            support.append(latents.flatten(1).half().unflatten(0, (-1, size)))
            returns.append(policy.plan_returns(policy.decode(latents, states)).unflatten(0, (-1, size)))
        policy.vae.train(policy.training)
        return torch.cat(support), torch.cat(returns)

    def train_energy(self) -> Iterator[Losses]:
        """The contrastive loss, or for `guidance="mse"` a regression, over support latents of random states."""
        s, policy = self.settings, self.policy
        starts = self._some_starts(s.support_states, "support states")
        sets = 2 if s.weights == "independent" else 1  # each set is the other's normaliser
        support, returns = self._draw_support(starts, sets * s.support_size)
        with torch.no_grad():
            returns = policy.standardised(returns, self.data.observations[starts][:, None])
        optimizer = self.optimizer("energy", policy.energy.parameters(), s.energy_learning_rate)
        for step in self.remaining_steps("energy"):
            self._set_learning_rate(optimizer, s.energy_learning_rate, "energy", step)
            indices = torch.randint(len(starts), (s.energy_batch_size,), generator=self.generator, device=self.device)
            z = support[indices].float()  # [B, K, D]
            energies = s.inverse_temperature * returns[indices]  # [B, K]
            tau = self._random_times(len(z))  # shared by all that are contrasted
            epsilon = torch.randn(z.shape, generator=self.generator, device=self.device)
            states = self.data.observations[starts[indices]]
            f = policy.energy(_SCHEDULE.add_noise(z, tau, epsilon), states[:, None], tau[:, None])  # [B, K]
            extra: Losses = {}
            if s.guidance == "mse":
                loss = F.mse_loss(f, energies)
            else:
                of_set = (-1, sets, s.support_size)
                weights = support_weights(energies.view(of_set), s.weights)
                limited = weights if s.weight_limit is None else weights.clamp(max=s.weight_limit)
                loss = contrastive_loss(f.view(of_set), limited)
                extra = {"limited": (limited < weights).float().mean()}
            self._descend(optimizer, loss, policy.energy, policy.energy_average, step)
            yield {"loss": loss.detach(), **extra}

    # ------------------------------------------------- common to the stages

    def _random(self, starts: Tensor, n: int) -> Tensor:
        return starts[torch.randint(len(starts), (n,), generator=self.generator, device=self.device)]

    def _random_times(self, n: int) -> Tensor:
        return torch.rand(n, generator=self.generator, device=self.device) * (1 - _TAU_MIN) + _TAU_MIN

    def _descend(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module, average: nn.Module, step: int
    ) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        online, target = tuple(network.parameters()), tuple(average.parameters())
        polyak_update(online, target, max(self.settings.average_rate, 9 / (10 + step)))

    def _set_learning_rate(self, optimizer: torch.optim.Optimizer, peak: float, stage: str, step: int) -> float:
        learning_rate = peak
        if self.settings.learning_rates == "cosine":
            learning_rate *= self.cosine_decay(stage, step)
        self.set_learning_rate(optimizer, learning_rate)
        return learning_rate


def returns_to_go(rewards: Tensor, episode_ends: Tensor, discount: float) -> Tensor:
    """G_t = r_t + discount r_{t+1} + ... to the end of the episode, reward of step t included.

    Sums over 1, 2, 4, 8, ... steps, each from the one before it: as many passes as the longest episode has binary
    digits. A timeout ends the sum like a terminal does.

    Args:
        rewards: [rows].
        episode_ends: exclusive end row of each episode, [E] int64.
        discount: gamma, per environment step.

    Returns:
        [rows], of the type of `rewards`; summed in float64.
    """
    lengths = episode_ends.diff(prepend=episode_ends.new_zeros(1))
    ends = episode_ends.repeat_interleave(lengths)
    rows = torch.arange(len(rewards), device=rewards.device)
    returns, span, longest = rewards.double(), 1, int(lengths.max())
    while span < longest:
        later = returns[(rows + span).clamp(max=len(rewards) - 1)]
        returns = returns + discount**span * torch.where(rows + span < ends, later, 0.0)
        span *= 2
    return returns.to(rewards.dtype)


@functools.cache
def _sampler_steps(settings: LatentDiffuserSettings) -> tuple[list[SolverStep], list[float], list[float]]:
    """The steps of the sampler, with signal and noise at each."""
    s = settings
    steps = vp_solver_steps(_SCHEDULE, s.solver_steps, solver=s.solver, grid=s.solver_grid, tau_end=_TAU_MIN)
    tau = torch.tensor([step.time for step in steps], dtype=torch.float64)
    return steps, _SCHEDULE.signal(tau).tolist(), _SCHEDULE.noise(tau).tolist()
