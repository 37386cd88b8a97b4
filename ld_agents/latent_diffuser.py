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
| `q_function`             | Q_zeta(s_t, a_t); or a module of `vae`     | [B, T]    |
| `denoiser`               | epsilon_theta(z_tau, tau, s_1)             |           |
| `energy`                 | f_eta(z_tau, s_1, tau) = -E_tau + constant |           |
| `support`                | z_i ~ mu_theta(z given s_1)                | [B, K, D] |
| `plan_return`            | R = -E(h(z, s_1))                          | [B]       |
| `inverse_temperature`    | beta, in standard deviations of R          |           |

No code was released, and the body of the paper was not at hand. What it leaves open is decided as follows; what can
move a score is a setting.

1. Stages: VAE, prior, energy, one after the other, each frozen afterwards, as in the paper's algorithm 1. With
   `return_inputs="step"` the return module has a stage of its own after the VAE's.
2. The VAE's posterior is drawn to N(0, I) with weight `kl_weight`, per coordinate; the prior is fitted afterwards.
3. Tokens: one for each `steps_per_token` steps, with states, actions, rewards, returns-to-go and a flag that the
   episode is over.
4. Returns-to-go include the reward of their own step, so that they are samples of Q(s_t, a_t) (`discount`). Timeouts
   truncate them: steps shortly before one look worse than they are. Nothing is bootstrapped (`return_targets`).
5. Windows start at every step but an episode's last; past its end they are padded with zeros and the flag is 1.
   Padding counts in the loss of the flag alone.
6. Encoder: causal, maximum over each L steps, as in TAP. Decoder: one trunk and a module per element, or a trunk each
   (`decoder`). The return module sees the trunk, and the decoded state and action of its step. With
   `return_inputs="step"` it sees these two alone and learns from those of the data. Otherwise, where returns also hang
   on what no plan decides, latents hold how lucky the window was, and guidance looks for luck.
   `return_targets="bootstrapped"` has the module estimate what lies behind the window, which varies far less. With
   "expectile" that is an in-sample optimal value instead of the behavior's (`networks/window_values.py`).
7. The prior learns posterior means, whitened per channel. State and time are concatenated. Continuous VP diffusion;
   `solver`, `solver_grid` and `solver_steps` are ours.
8. R is the sum of the decoded returns-to-go, steps past a decoded end left out (`plan_return`, `return_steps`). Beta is
   in standard deviations of R over draws of the prior: at all states of the data, or at each state (`return_scale`).
   Far from a goal the returns of plans hardly differ, so that only the second guides there.
9. Support latents are draws of the prior with averaged weights, the one that is sampled later; `weights` says how they
   are weighted, `weight_limit` how much one may count. `energy_loss="exponential"` takes the place of the contrastive
   loss and has the same minimizer. `guidance` also has the two approximate kinds and none.
10. `guidance_scale` 1 is the only exact one. One plan is drawn and executed (`n_candidates`); with more, the one with
   the highest R is, which is no longer a draw of the tilted density.
11. `exec_horizon` actions are executed, as decoded with the plan, before the next plan: 1 in TAP.
12. Actions are decoded from the plan and s_1 alone. With `action_decoder="state"` they are decoded from the plan and
   the state they are taken in, as LDCQ's are, when that state is seen; an ant falls before an open loop notices.
   `action_hidden` gives the module that does it layers of its own, as wide as a policy's.
13. Weights of prior and energy are averaged (`average_rate`); the rate starts higher, so that short runs forget where
   they began.

`latent_space=False` is the same planner on raw actions: the L actions themselves take the place of each latent. Prior,
energy and sampler are the same; the decoder predicts states, rewards and returns from state and actions.

The fast preset is the same method with smaller networks and budgets. Beyond sizes it differs in: SiLU in the U-Net,
no dropout and no weight decay, cosine learning rates, a random subset of the windows for the prior, tokens of four
steps, in-sample optimal values of the step alone, beta in standard deviations at each state, an energy by the
exponential loss with limited weights, smoother features of time in it, the best of eight guided plans, of which two
actions are executed, and a discount of .998. `FAMILIES` has what it sets otherwise for AntMaze and locomotion.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ld_agents.common.memory import half_precision, half_precision_bytes
from ld_agents.common.offline_algorithm import Losses, OfflineAlgorithm, Stage
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.returns import returns_to_go
from ld_agents.diffusion.guidance import contrastive_loss, exponential_loss, support_weights
from ld_agents.diffusion.guided_sampler import SCHEDULE, TAU_MIN
from ld_agents.latent_diffuser_policy import LOG_STD_MIN, LatentDiffuserPolicy
from ld_agents.latent_diffuser_settings import ENERGY_GUIDED, ENERGY_SETTINGS, FAMILIES, PRESETS, LatentDiffuserSettings
from ld_agents.networks.critics import clip_norm, descend, polyak_update
from ld_agents.networks.window_values import expectile_loss, n_step_targets

# of the network that predicts mean and standard deviation of R at a state: ours
_SCALE_DRAWS = 8
_SCALE_STEPS = 1_000
_SCALE_BATCH = 512
_SCALE_LEARNING_RATE = 1e-3
_NOT_KEPT = ("energy", "scale_of_state")  # weights that `with_energy` trains anew


class LatentDiffuser(OfflineAlgorithm):
    """LatentDiffuser.

    Example:
        agent = LatentDiffuser("MlpPolicy", "ld-agents/pointmaze/medium-v0", seed=0)
        agent.learn(progress_bar=True)
        action, state = agent.predict(observation, deterministic=True)

    Training has the stages `vae`, `values`, `prior` and `energy`. There are values with `return_inputs="step"` alone,
    and no energy where the guidance needs no network ("posterior-mean", "none"). `with_energy` trains the energy
    again, with another beta for example.

    See `OfflineAlgorithm` for the arguments and `LatentDiffuserSettings` for the settings.
    """

    policy: LatentDiffuserPolicy
    settings: LatentDiffuserSettings
    policy_aliases: ClassVar = {"MlpPolicy": LatentDiffuserPolicy, "MultiInputPolicy": LatentDiffuserPolicy}
    retired_settings: ClassVar = {"latent_targets": "mean"}

    @classmethod
    def presets(cls) -> dict[str, LatentDiffuserSettings]:
        return PRESETS

    @classmethod
    def family_settings(cls, preset: str = "fast") -> dict[str, dict[str, Any]]:
        return FAMILIES[preset]

    def stages(self) -> list[Stage]:
        s = self.settings
        stages = [Stage("vae", s.vae_steps, self.train_vae)]
        if s.return_inputs == "step":
            stages.append(Stage("values", s.value_steps, self.train_values))
        stages.append(Stage("prior", s.prior_steps, self.train_prior, self._prior_bytes))
        if s.guidance in ENERGY_GUIDED:
            stages.append(Stage("energy", s.energy_steps, self.train_energy, self._support_bytes))
        return stages

    def _prior_bytes(self) -> int:
        return 4 * self.most_rows(self.settings.prior_windows, "prior") * math.prod(self.policy.latent_shape)

    def _support_bytes(self) -> int:
        s = self.settings
        n, size = self.most_rows(s.support_states, "energy"), self._support_sets() * s.support_size
        return half_precision_bytes(n, size, math.prod(self.policy.latent_shape), device=self.device)

    def with_energy(self, **settings: Any) -> Self:
        """A new agent with this one's VAE and prior, whose energy is still to be trained.

        Example:
            colder = agent.with_energy(inverse_temperature=10.0)
            colder.learn(reset_num_timesteps=False)

        Args:
            **settings: of the energy and of acting, where they are to differ: `ENERGY_SETTINGS`.

        Raises:
            TypeError: for a setting that VAE or prior depend on.
            ValueError: if this agent has no dataset, or its VAE or prior is not trained yet.
        """
        if fixed := sorted(set(settings) - set(ENERGY_SETTINGS)):
            raise TypeError(f"VAE and prior depend on {', '.join(fixed)}. Train a new agent instead.")
        earlier = [stage.name for stage in self.stages() if stage.name != "energy"]
        unfinished = any(self.stage_steps.get(name, 0) < self.stage_budget.get(name, 1) for name in earlier)
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
        for name in earlier:
            other.stage_steps[name] = other.stage_budget[name] = self.stage_steps[name]
            other.stage_seconds[name] = self.stage_seconds.get(name, 0.0)
        other.stage_in_bfloat16 = {name: used for name, used in self.stage_in_bfloat16.items() if name in earlier}
        other.num_timesteps = sum(other.stage_steps.values())
        other._prepare_data(self.dataset)
        other._fit_return_scale()
        other._release_data()
        other.generator.set_state(self.generator.get_state())  # as if this agent had gone on
        return other

    # ------------------------------------------------- data: windows of tokens, padded past the end of the episode

    def _prepare_data(self, dataset: OfflineDataset) -> None:
        super()._prepare_data(dataset)
        s, data = self.settings, self.data
        rewards = data.rewards
        if s.terminal_reward is not None:
            rewards = torch.where(data.terminals, s.terminal_reward, rewards)
        returns = returns_to_go(rewards, data.episode_ends, s.discount)
        self.payments = torch.stack([rewards, returns], dim=1)  # [rows, 2]
        if s.standardize:
            mean, std = self.policy.token_mean, self.policy.token_std
            for part, values in ((slice(-2), data.actions), (slice(-2, None), self.payments)):
                mean[part], std[part] = values.mean(0), values.std(0, correction=0)
            if self._scale_actions is not None:
                low, width = self._scale_actions
                mean[:-2], std[:-2] = 2 * (mean[:-2] - low) / width - 1, 2 * std[:-2] / width
            std.clamp_(min=1e-3)
            self.payments = (self.payments - mean[-2:]) / std[-2:]
        lengths = data.episode_ends.diff(prepend=data.episode_ends.new_zeros(1))
        self.row_ends = data.episode_ends.repeat_interleave(lengths)  # where the episode of each row ends
        rows = torch.arange(data.n_steps, device=self.device)
        self.window_starts = rows[rows + 1 < self.row_ends]
        if not len(self.window_starts):
            raise ValueError("No episode has two steps. LatentDiffuser learns from longer ones.")

    def _release_data(self) -> None:
        super()._release_data()
        del self.payments, self.row_ends, self.window_starts

    def tokens(self, rows: Tensor) -> Tensor:
        """Steps without the flag. Shapes [...] -> [..., S + A + 2]."""
        actions = (self.actions(rows) - self.policy.token_mean[:-2]) / self.policy.token_std[:-2]
        return torch.cat([self.states(rows), actions, self.payments[rows]], dim=-1)

    def windows(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and which of them lie inside the episode. Shapes [B] -> [B, T, S + A + 3], [B, T] bool."""
        rows = starts[:, None] + torch.arange(self.settings.horizon, device=self.device)
        inside = rows < self.row_ends[starts][:, None]
        tokens = self.tokens(rows.clamp(max=self.data.n_steps - 1)) * inside[..., None]
        return torch.cat([tokens, ~inside[..., None]], dim=-1), inside

    def _some_starts(self, n: int | None, purpose: str, stage: str | None = None) -> Tensor:
        return self.random_subset(self.window_starts, n, purpose, stage)

    # ------------------------------------------------- stage 1: VAE over windows

    def train_vae(self) -> Iterator[Losses]:
        """Squared errors of states, actions, rewards and returns, cross-entropy of the flag, weak KL to N(0, I)."""
        s, vae = self.settings, self.policy.vae
        parameters = list(vae.parameters())
        optimizer = self.optimizer("vae", parameters, s.vae_learning_rate)
        optimizer.param_groups[0]["betas"] = (0.9, 0.95)
        decayed = [module.weight for module in vae.modules() if isinstance(module, nn.Linear)]

        @torch.no_grad()
        def clip_and_decay(gradients: tuple[Tensor, ...]) -> None:
            clip_norm(gradients, s.gradient_clip)
            if s.weight_decay:  # decoupled, as in AdamW
                torch._foreach_mul_(decayed, 1 - optimizer.param_groups[0]["lr"] * s.weight_decay)

        for step in self.remaining_steps("vae"):
            self._set_learning_rate(optimizer, s.vae_learning_rate, "vae", step)
            tokens, inside = self.windows(
                self.window_starts[self.random_indices(len(self.window_starts), s.vae_batch_size)]
            )
            epsilon = torch.randn(len(tokens), *self.policy.latent_shape, generator=self.generator, device=self.device)
            with self._dropout(step):
                losses = vae.losses(tokens, inside, epsilon)
            weighted = [getattr(s, f"{name}_weight", 1.0) * value for name, value in losses.items()]
            loss = torch.stack(weighted).sum()
            descend(optimizer, loss, clip_and_decay)
            yield {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}
        latents = self._encode(self._some_starts(s.scale_states, "whitening", "vae")).flatten(0, 1)
        self.policy.latent_mean.copy_(latents.mean(0))
        self.policy.latent_std.copy_(latents.std(0, correction=0).clamp(min=1e-3))

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

    # ------------------------------------------------- values: Q(s_t, a_t), where it sees nothing else of a plan

    def train_values(self) -> Iterator[Losses]:
        """Q to the mean of its targets; with "expectile", V to their upper expectile (`window_values.py`)."""
        s, policy, data = self.settings, self.policy, self.data
        online: nn.Module = policy.value if s.return_targets == "expectile" else policy.q_function
        average: nn.Module = policy.value_average if s.return_targets == "expectile" else policy.q_average
        parameters = dict.fromkeys([*policy.q_function.parameters(), *online.parameters()])
        optimizer = self.optimizer("values", parameters, s.value_learning_rate)
        # the last step before a timeout has no successor to learn from
        followed = torch.arange(data.n_steps, device=self.device) + 1 < self.row_ends
        rows = torch.nonzero(followed | data.terminals)[:, 0]
        for step in self.remaining_steps("values"):
            self._set_learning_rate(optimizer, s.value_learning_rate, "values", step)
            row = rows[self.random_indices(len(rows), s.value_batch_size)]
            targets = self._value_targets(row)
            losses = {"q": F.mse_loss(policy.q_function(*self._steps(row)), targets)}
            if s.return_targets == "expectile":
                losses["value"] = expectile_loss(targets - policy.value(self.states(row)), s.expectile).mean()
            loss = torch.stack(list(losses.values())).sum()
            descend(optimizer, loss)
            polyak_update(tuple(online.parameters()), tuple(average.parameters()), s.return_average_rate)
            yield {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    def _steps(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """States and standardized actions. Shapes [B] -> [B, S], [B, A]."""
        tokens = self.tokens(rows)
        return tokens[:, : self.policy.state_dim], tokens[:, self.policy.state_dim : -2]

    @torch.no_grad()
    def _value_targets(self, rows: Tensor) -> Tensor:
        """What Q of steps learns: a random number of their rewards, then the value behind them. Shapes [B] -> [B]."""
        s, policy, returns = self.settings, self.policy, self.payments[:, 1]
        if s.return_targets == "data":
            return returns[rows]
        n = torch.randint(1, max(2, s.horizon), rows.shape, generator=self.generator, device=self.device)
        later = torch.minimum(rows + n, self.row_ends[rows] - 1)
        if s.return_targets == "expectile":
            value = policy.value_average(self.states(later))
        else:
            value = policy.q_average(*self._steps(later))
        terminal = self.data.terminals[later]
        return n_step_targets(returns[rows], returns[later], value, terminal, later - rows, s.discount)

    # ------------------------------------------------- stage 2: diffusion prior over latent sequences

    def train_prior(self) -> Iterator[Losses]:
        """Squared error of the predicted noise, unweighted, one time for the whole sequence."""
        s, policy = self.settings, self.policy
        starts = self._some_starts(s.prior_windows, "prior windows", "prior")
        latents = (self._encode(starts) - policy.latent_mean) / policy.latent_std  # [W, N, Z]
        optimizer = self.optimizer("prior", policy.denoiser.parameters(), s.prior_learning_rate)
        for step in self.remaining_steps("prior"):
            self._set_learning_rate(optimizer, s.prior_learning_rate, "prior", step)
            indices = self.random_indices(len(starts), s.prior_batch_size)
            z = latents[indices]
            tau = self._random_times(len(z))
            epsilon = torch.randn(z.shape, generator=self.generator, device=self.device)
            states = self.states(starts[indices])
            loss = F.mse_loss(policy.denoiser(SCHEDULE.add_noise(z, tau, epsilon), tau, states), epsilon)
            self._descend(optimizer, loss, policy.denoiser, policy.denoiser_average, step)
            yield {"loss": loss.detach()}
        self._fit_return_scale()

    @torch.no_grad()
    def _encode(self, starts: Tensor) -> Tensor:
        """Posterior means of windows, not whitened. Shapes [W] -> [W, N, Z]."""
        self.policy.vae.eval()
        chunks = tqdm(starts.split(2048), desc="encode windows", leave=False, disable=not self._show_progress)
        latents = torch.cat([self.policy.vae.encode(self.windows(chunk)[0])[0] for chunk in chunks])
        self.policy.vae.train(self.policy.training)
        return latents

    @torch.no_grad()
    def _fit_return_scale(self) -> None:
        """Mean and standard deviation of R over draws of the prior, at many states of the data and at each one."""
        policy, s = self.policy, self.settings
        if s.guidance == "none":
            return
        starts = self._some_starts(s.scale_states, "return scale", "prior")
        _, returns = self._draw_support(starts, 1 if s.return_scale == "all" else _SCALE_DRAWS)
        policy.return_mean.copy_(returns.mean())
        policy.return_std.copy_(returns.std(correction=0).clamp(min=1e-6))
        if s.return_scale == "all":
            return
        # the likelihood of a normal distribution whose mean and standard deviation depend on the state
        states, returns = self.states(starts), (returns - policy.return_mean) / policy.return_std
        optimizer = torch.optim.Adam(policy.scale_of_state.parameters(), _SCALE_LEARNING_RATE)
        generator = self.derived_generator("return scale steps")
        for _ in range(_SCALE_STEPS):
            rows = torch.randint(len(states), (_SCALE_BATCH,), generator=generator, device=self.device)
            with torch.enable_grad():
                mean, log_std = policy.scale_of_state(states[rows])[:, None].unbind(-1)
                log_std = log_std.clamp(min=LOG_STD_MIN)
                loss = (log_std + 0.5 * ((returns[rows] - mean) * (-log_std).exp()) ** 2).mean()
                descend(optimizer, loss)

    # ------------------------------------------------- stage 3: support latents and intermediate energy

    @torch.no_grad()
    def _draw_support(self, starts: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Draws of the prior, and their R. Shapes [M] -> [M, K, N Z] float16, [M, K]."""
        policy = self.policy
        policy.vae.eval()
        generator = self.derived_generator("support")
        support, returns = half_precision(len(starts), size, math.prod(policy.latent_shape), device=self.device), []
        first = 0
        # about 2k sequences at a time stay within the CPU's caches
        chunks = starts.split(max(1, (2048 if self.device.type == "cpu" else 1 << 16) // size))
        for chunk in tqdm(chunks, desc="draw support", leave=False, disable=not self._show_progress):
            states = self.states(chunk).repeat_interleave(size, 0)
            noise = torch.randn(len(states), *policy.latent_shape, generator=generator, device=self.device)
            latents = policy.draw_latents(states, noise, guided=False)
            support[first : first + len(chunk)] = latents.flatten(1).unflatten(0, (-1, size))
            first += len(chunk)
            returns.append(policy.plan_returns(policy.decode(latents, states)).unflatten(0, (-1, size)))
        policy.vae.train(policy.training)
        return support, torch.cat(returns)

    def _support_sets(self) -> int:
        """With independent weights of the contrastive loss each set is the normalizer of another.

        The regression of `guidance="mse"`, which needs no normalizer, learns from as many latents.
        """
        return 2 if self.settings.weights == "independent" and self.settings.energy_loss == "contrastive" else 1

    def train_energy(self) -> Iterator[Losses]:
        """A loss whose minimizer is exact, or for `guidance="mse"` a regression, over support latents of states."""
        s, policy = self.settings, self.policy
        starts = self._some_starts(s.support_states, "support states", "energy")
        sets = self._support_sets()
        support, returns = self._draw_support(starts, sets * s.support_size)
        with torch.no_grad():
            returns = policy.standardized(returns, self.states(starts)[:, None])
        optimizer = self.optimizer("energy", policy.energy.parameters(), s.energy_learning_rate)
        for step in self.remaining_steps("energy"):
            self._set_learning_rate(optimizer, s.energy_learning_rate, "energy", step)
            indices = self.random_indices(len(starts), s.energy_batch_size)
            z = support[indices.to(support.device)].to(self.device).float()  # [B, K, D]
            energies = s.inverse_temperature * returns[indices]  # [B, K]
            tau = self._random_times(len(z))  # shared by all that are contrasted
            epsilon = torch.randn(z.shape, generator=self.generator, device=self.device)
            states = self.states(starts[indices])
            f = policy.energy(SCHEDULE.add_noise(z, tau, epsilon), states[:, None], tau[:, None])  # [B, K]
            extra: Losses = {}
            if s.guidance == "mse":
                loss = F.mse_loss(f, energies)
            elif s.energy_loss == "exponential":
                loss, extra["limited"] = exponential_loss(f, energies, s.weight_limit)
            else:
                of_set = (-1, sets, s.support_size)
                weights = support_weights(energies.view(of_set), s.weights)
                limited = weights if s.weight_limit is None else weights.clamp(max=s.weight_limit)
                loss = contrastive_loss(f.view(of_set), limited)
                extra = {"limited": (limited < weights).float().mean()}
            self._descend(optimizer, loss, policy.energy, policy.energy_average, step)
            yield {"loss": loss.detach(), **extra}

    # ------------------------------------------------- common to the stages

    def _random_times(self, n: int) -> Tensor:
        return torch.rand(n, generator=self.generator, device=self.device) * (1 - TAU_MIN) + TAU_MIN

    def _descend(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module, average: nn.Module, step: int
    ) -> None:
        descend(optimizer, loss)
        online, target = tuple(network.parameters()), tuple(average.parameters())
        polyak_update(online, target, max(self.settings.average_rate, 9 / (10 + step)))

    def _set_learning_rate(self, optimizer: torch.optim.Optimizer, peak: float, stage: str, step: int) -> None:
        cosine = self.settings.learning_rates == "cosine"
        self.set_learning_rate(optimizer, peak * self.cosine_decay(stage, step) if cosine else peak)
