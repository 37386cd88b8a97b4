"""LDCQ: Latent Diffusion-Constrained Q-learning (Venkatraman et al., ICLR 2024, arXiv 2309.06599).

A window of H steps of behavior becomes a latent z. A diffusion model learns which latents the data hold at a state.
Q-learning runs over latents, one decision per H steps, and its maximum is taken over samples of the diffusion model
only: that is the batch constraint. To act: draw candidate latents, score them with Q, decode the best one.

| here                     | paper            | shape          |
| ------------------------ | ---------------- | -------------- |
| `states[:, 0]`           | s_t              | [B, S]         |
| `latents`                | z                | [B, Z]         |
| `vae.encode`             | q_phi(z | tau)   |                |
| `vae.action`             | pi_theta(a|s,z)  |                |
| `vae.prior`              | p_omega(z | s)   |                |
| `denoiser`               | p_psi(z | s)     |                |
| `critics`                | Q_1, Q_2         |                |
| `candidates`             | z_i ~ p_psi      | [B, K, Z]      |

"Latent" is what the papers also call skill or latent action.

Where the paper and the released code (commit 7ec96f3) differ, the default follows the paper. What can move a score is
a setting (`LDCQSettings`, second group); `RELEASED_CODE` holds the code's values. The other differences:

1. Windows: all starts with a known s_{t+H}, never into another episode. They may run past a terminal
   (`windows_past_terminals`): the state stays what it became, reward is zero, and the actions there have no likelihood.
   Otherwise one window per terminal would tell of it, too few where only terminals pay (AntMaze). The code drops each
   sequence's last start, joins maze episodes, and in locomotion runs over terminals and cuts every 1000 steps.
2. AntMaze: the code drops the rest of a trajectory after its first success from stages 1 and 3. Here it is kept.
3. Condition dropout and guidance: the code's flags have no effect on its default network, so there are none here.
4. Standard deviations have a floor of 1e-4 (`trajectory_vae.py`).
5. Acting: `deterministic=True` executes mean actions, or with `sample_actions` samples whose noise repeats with the
   observation; `deterministic=False` samples, as the code always does. Actions are clipped to the action space.
6. Maze2D returns: the code credits all steps after the first contact with the goal; our evaluation reports the
   environment's return and that number side by side.
7. Sampling: DPM-Solver++ with few steps, not the full chain; for how close see tests/diffusion/test_diffusion.py.
8. Test-time critics: the code overwrites the targets by the online networks; here the online networks act too, unless
   `acting_critics` chooses their averages.
9. Rewards are divided by the spread of the returns in the data (`reward_scale`); the code divides locomotion's by ten.
10. Decisions: the paper holds a latent for all H steps. The paper preset decides every 10 steps, as the code's mazes do
    (`exec_horizon`; the code's other families hold it for 30).
11. Random subsets of the stored candidates: one for both critics. The code draws one for each.
12. Windows that have not been drawn yet get the highest priority among those that have been, Schaul et al.'s rule. In
    the code they keep a priority of 100, which others may exceed.
13. `learning_rates="released"`: the prior's rate falls as on data of a million windows, whatever their number.

The fast preset is the same method with smaller networks and budgets. Beyond sizes it differs in: an MLP encoder, one
network for all action dimensions, the action likelihood at a random subset of each window's steps (unbiased),
standardized latents, critics that see state and latent side by side (`critic`; point mazes, AntMaze), Q-learning on a
random subset of the windows, candidates that start from wider noise (`noise_scale`), and cosine learning rates.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ld_agents.common.keyed_noise import keyed_normal, observation_keys
from ld_agents.common.memory import half_precision, half_precision_bytes
from ld_agents.common.offline_algorithm import Losses, Stage
from ld_agents.common.planning_policy import Noise, chosen
from ld_agents.common.prioritized_sampler import PrioritizedSampler
from ld_agents.data.returns import returns_to_go
from ld_agents.images import ImageAgent
from ld_agents.latent_prior import LatentPriorPolicy, LatentPriorTraining
from ld_agents.ldcq_settings import FAMILY, PRESETS, LDCQSettings
from ld_agents.networks.critics import JointLatentCritic, LatentCritic, clip_norm, descend, polyak_update


class LDCQPolicy(LatentPriorPolicy):
    """Draws candidate latents at a state, takes the one with the highest Q, decodes it for some steps."""

    settings: LDCQSettings
    reward_scale: Tensor  # of the rewards that the critics learned from

    def __init__(self, *spaces: Any, settings: LDCQSettings, **kwargs: Any) -> None:
        super().__init__(*spaces, settings=settings, **kwargs)
        s = settings
        self.critics = nn.ModuleList(self._critic() for _ in range(s.n_critics))
        self.target_critics = nn.ModuleList(self._critic() for _ in range(s.n_critics))
        self.target_critics.load_state_dict(self.critics.state_dict())
        self.target_critics.requires_grad_(False)
        self.register_buffer("reward_scale", torch.tensor(1.0 if s.reward_scale is None else float(s.reward_scale)))

    def _critic(self) -> nn.Module:
        s = self.settings
        if s.critic == "joint":
            return JointLatentCritic(self.state_dim, s.latent_dim, s.critic_hidden)
        return LatentCritic(self.state_dim, s.latent_dim, s.critic_hidden, s.critic_latent_hidden)

    @property
    def has_denoiser(self) -> bool:
        return self.settings.prior == "diffusion"

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.settings.candidates_acting, self.settings.latent_dim

    @property
    def noise_streams(self) -> list[int]:
        return [0, _REDRAW] if self.settings.redraw_at_predicted_state else [0]

    def plan_from(self, states: Tensor, noise: Noise) -> Tensor:
        """The candidate with the highest score. Shapes [n, S], [n, K, Z] of each sampler step -> [n, Z]."""
        best = self._best(states, noise)
        if self.settings.redraw_at_predicted_state:  # as the released maze2d evaluation: the best of a second draw
            predicted = self.vae.predict_final_state(states, self._raw(best)).mean
            best = self._best(predicted, lambda k: noise(_REDRAW + k))
        return best

    def _best(self, states: Tensor, noise: Noise) -> Tensor:
        latents = self.draw_latents(states, noise)
        return chosen(latents, self.score(states[:, None], latents).argmax(1))

    def draw_latents(self, states: Tensor, noise: Noise) -> Tensor:
        """Candidates from the prior, given the noise [n, K, Z] of each sampler step. Shapes [n, S] -> [n, K, Z]."""
        if self.has_denoiser:
            return super().draw_latents(states, noise)
        latents = self.vae.prior(states[:, None]).sample(noise(0) * self.settings.noise_scale)
        return (latents - self.latent_mean) / self.latent_std

    def score(self, states: Tensor, latents: Tensor) -> Tensor:
        """min_i Q_i. Shapes [..., S], [..., Z] -> [...]."""
        critics = self.target_critics if self.settings.acting_critics == "averaged" else self.critics
        return self.q_values(critics, states, latents).amin(0)

    def q_values(self, critics: nn.ModuleList, states: Tensor, latents: Tensor) -> Tensor:
        """Q_i. Shapes [..., S], [..., Z] -> [C, ...].

        Joint critics see latents as the VAE has them, where the posterior is about as wide in every dimension: 1 is
        much there. Standardized latents hide from a critic of few examples which dimensions say little.
        """
        if self.settings.critic == "joint":
            latents = self._raw(latents)
        return torch.stack([critic(states, latents) for critic in critics])

    def propose(self, observations: Tensor, n: int | None = None, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Candidates, an episode's first or those of noise keys [n]; their Q in units of reward. [n, K, Z], [n, K]."""
        with torch.inference_mode():
            s = self.settings
            keys = observation_keys(observations.flatten(1), self.noise_seed, 0) if keys is None else keys
            states, shape = self.states_of(observations), (n or s.candidates_acting, s.latent_dim)
            latents = self.draw_latents(states, lambda k: keyed_normal(keys, shape, k))
            return latents, self.score(states[:, None], latents) / self.reward_scale

    def decode_action(self, observations: Tensor, latents: Tensor) -> Tensor:
        """Mean actions of latents, in the units of the environment. Shapes [n, S], [n, Z] -> [n, A]."""
        with torch.inference_mode():
            return self.unscale(self.vae.action.act(self.states_of(observations), self._raw(latents), None))


class LDCQ(LatentPriorTraining, ImageAgent):
    """Latent Diffusion-Constrained Q-learning.

    Example:
        agent = LDCQ("MlpPolicy", "ld-agents/pointmaze/umaze-v0", seed=0)
        agent.learn(progress_bar=True)
        action, state = agent.predict(observation, deterministic=True)

    Training has three stages of gradient steps (`vae`, `prior`, `q`), with "CnnPolicy" after one for `images`;
    candidates for Q-learning are drawn at the start of the last. With `prior="gaussian"` there is no diffusion model:
    the paper's ablation, which draws candidates from the VAE's own prior p_omega(z | s) instead.

    See `OfflineAlgorithm` for the arguments and `LDCQSettings` for the settings.
    """

    policy: LDCQPolicy
    settings: LDCQSettings
    policy_aliases: ClassVar = dict.fromkeys(("MlpPolicy", "MultiInputPolicy", "CnnPolicy"), LDCQPolicy)

    @classmethod
    def presets(cls) -> dict[str, LDCQSettings]:
        return PRESETS

    @classmethod
    def family_settings(cls, preset: str = "fast") -> dict[str, dict[str, Any]]:
        return FAMILY if preset == "fast" else {}

    @classmethod
    def complete_older_file(cls, settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
        if "windows_past_terminals" not in settings:
            settings["windows_past_terminals"] = False
            weights.setdefault("reward_scale", torch.tensor(float(settings["reward_scale"])))
        if LDCQSettings.noise_scale_is_lost(**settings):  # was allowed once, and had no effect
            settings["noise_scale"] = 1.0

    def stages(self) -> list[Stage]:
        s = self.settings
        vae, q = Stage("vae", s.vae_steps, self.train_vae), Stage("q", s.q_steps, self.train_q, self._q_bytes)
        prior = [] if s.prior == "gaussian" else [Stage("prior", s.prior_steps, self.train_prior)]
        return [*self.image_stages(), vae, *prior, q]

    def _q_bytes(self) -> int:
        """What Q-learning keeps of its windows: states, next states, latents, priorities and candidates."""
        s = self.settings
        n = self.most_rows(s.q_windows, "q")
        candidates = half_precision_bytes(n, s.candidates_stored, s.latent_dim, device=self.device)
        return candidates + 4 * n * (2 * self.policy.state_dim + s.latent_dim + 8)

    # ------------------------------------------------- stage 3, at its start: candidates at s_{t+H} (paper section 4.3)

    @torch.no_grad()
    def draw_candidates(self, states: Tensor) -> Tensor:
        """K latents per state from the prior. Shapes [M, S] -> [M, K, Z], float16: a third of the noise of a solver."""
        s = self.settings
        generator = self.derived_generator("candidates")
        candidates = half_precision(len(states), s.candidates_stored, s.latent_dim, device=self.device)
        # about 8k latents at a time stay within the CPU's caches
        size = max(1, (8192 if self.device.type == "cpu" else 1 << 19) // s.candidates_stored)
        chunks = range(0, len(states), size)
        for first in tqdm(chunks, desc="draw candidates", leave=False, disable=not self._show_progress):
            part = states[first : first + size]
            shape = (len(part), s.candidates_stored, s.latent_dim)
            noise = lambda k, shape=shape: torch.randn(shape, generator=generator, device=self.device)  # noqa: E731
            candidates[first : first + size] = self.policy.draw_latents(part, noise)
        return candidates

    # ------------------------------------------------- stage 3: Q-learning over latents (paper section 4.3)

    def train_q(self) -> Iterator[Losses]:
        """Clipped double Q-learning, its maximum over the stored candidates, with prioritized replay."""
        s = self.settings
        windows = self._q_windows()
        used = self.random_subset(torch.arange(len(windows), device=self.device), None, "q budget", "q")
        starts = windows[used]
        states = self.states(starts)
        latents = self._standardized(self._encode(starts))
        if s.reward_scale is None:
            spread = returns_to_go(self.data.rewards, self.data.episode_ends, s.discount).std()
            self.policy.reward_scale.copy_(1 / spread.clamp(min=1e-6))
        returns, bootstraps = self._window_returns(starts)
        next_states = self.states(self._next_rows(starts))
        candidates = self.draw_candidates(next_states)
        # of all windows that a full budget uses; infinite: not drawn yet
        priorities = self.resumable("q.priorities", lambda: torch.full((len(windows),), torch.inf, device=self.device))
        if not (priorities > 0).all():
            raise ValueError("The training state of this agent holds priorities that are not positive. Train it anew.")
        sampler = PrioritizedSampler(priorities[used], s.priority_alpha)
        policy = self.policy
        optimizer = self.optimizer("q", policy.critics.parameters(), s.q_learning_rate)
        online, target = tuple(policy.critics.parameters()), tuple(policy.target_critics.parameters())
        epoch_steps = max(1, len(starts) // s.q_batch_size)
        for step in self.remaining_steps("q"):
            self.set_learning_rate(optimizer, s.q_learning_rate * self._decay("q", step, epoch_steps))
            indices, probabilities = sampler.draw(s.q_batch_size, self.generator)
            importance_beta = min(1.0, 0.3 + 0.01 * (step // epoch_steps))
            weights = (len(starts) * probabilities) ** -importance_beta
            targets = self.q_targets(
                returns[indices],
                bootstraps[indices],
                next_states[indices],
                self._some(candidates[indices.to(candidates.device)].to(self.device)),
            )
            td_errors = self.td_errors(states[indices], latents[indices], targets)  # [C, B]
            loss = self.q_loss(td_errors, weights / weights.max())
            descend(optimizer, loss, self._clip_each_critic)
            polyak_update(online, target, s.target_rate)
            new_priorities = (td_errors.detach() ** 2 + 5e-6).mean(0)
            sampler.update(indices, new_priorities)
            priorities[used[indices]] = new_priorities
            yield {"loss": loss.detach(), "target": targets.mean(), "td_error": td_errors.detach().abs().mean()}

    def _clip_each_critic(self, gradients: tuple[Tensor, ...]) -> None:
        size = len(gradients) // self.settings.n_critics
        for first in range(0, len(gradients), size):
            clip_norm(gradients[first : first + size], 1.0)

    @torch.no_grad()
    def q_targets(self, returns: Tensor, bootstraps: Tensor, next_states: Tensor, candidates: Tensor) -> Tensor:
        """y_i = R + bootstrap min_j Q'_j(s', z*_i), where z*_i maximizes the next critic, Q'_{i+1} (cyclically).

        Args:
            returns: R of each window. Shape [B].
            bootstraps: discount of the next value, 0 after a terminal. Shape [B].
            next_states: s_{t+H}. Shape [B, S].
            candidates: latents drawn at s_{t+H}. Shape [B, K, Z].

        Returns:
            targets of the C critics, [C, B].
        """
        q = self.policy.q_values(self.policy.target_critics, next_states[:, None], candidates)  # [C, B, K]
        chosen = q.argmax(2).roll(-1, 0)  # [C, B]
        return returns + bootstraps * q.amin(0).gather(1, chosen.T).T

    def td_errors(self, states: Tensor, latents: Tensor, targets: Tensor) -> Tensor:
        """Q_i(s, z) - y_i of each critic. Shapes [B, S], [B, Z], [C, B] -> [C, B]."""
        return self.policy.q_values(self.policy.critics, states, latents) - targets

    def q_loss(self, td_errors: Tensor, weights: Tensor) -> Tensor:
        """Sum over critics of the weighted mean squared error. Shapes [C, B], [B] -> scalar."""
        if self.settings.importance_weights == "averaged":
            # the released code multiplies shapes (B, 1) and (B,): the weights only scale the whole loss
            return (td_errors**2).mean(1).sum() * weights.mean()
        return (weights * td_errors**2).mean(1).sum()

    def _q_windows(self) -> Tensor:
        """Starts of the windows that Q-learning may use: all, or a random subset drawn once. Shape [M] int64."""
        return self.random_subset(self._window_starts().long(), self.settings.q_windows, "q windows")

    def _window_returns(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """R = sum of discounted rewards in the window, and the factor of the next value. Both [M]."""
        s = self.settings
        discounts = s.reward_discount ** torch.arange(s.horizon, device=self.device)
        rewards = self.data.window_rewards(starts, s.horizon)  # [M, H]
        if s.success_fills_window:
            rewards = torch.where((rewards > 0).any(1, keepdim=True), 1.0, rewards)
        returns = (rewards * discounts).sum(1)
        stops = self.data.window_terminals(starts, s.horizon)
        if s.reward_stops_bootstrap:
            stops = stops | (returns != 0)
        discount = s.discount ** (s.horizon if s.bootstrap_exponent is None else s.bootstrap_exponent)
        return returns * self.policy.reward_scale, discount * (~stops).float()

    def _next_rows(self, starts: Tensor) -> Tensor:
        """Rows of s_{t+H}, or of s_{t+H-1} as in the released code. Shapes [B] -> [B]."""
        return self.data.next_rows(starts, self.settings.horizon - (self.settings.next_state == "s_{t+H-1}"))

    def _decay(self, stage: str, step: int, epoch_steps: int = 7_600) -> float:
        if stage == "q" and self.settings.learning_rates == "released":
            return 0.3 ** (step // epoch_steps // 50)
        return super()._decay(stage, step, epoch_steps)

    def _some(self, candidates: Tensor) -> Tensor:
        """One random subset of the stored candidates, shared by the batch. Shapes [B, K, Z] -> [B, k, Z]."""
        s = self.settings
        if s.candidates_per_target < s.candidates_stored:
            order = torch.randperm(s.candidates_stored, generator=self.generator, device=self.device)
            candidates = candidates[:, order[: s.candidates_per_target]]
        return candidates.float()


_REDRAW = 1 << 16  # added to the streams of a second draw
