"""CQL: Conservative Q-Learning, CQL(H) on soft actor-critic (Kumar et al., NeurIPS 2020, arXiv 2006.04779).

The critics learn as SAC's do (Haarnoja et al. 2018, arXiv 1812.05905), and are pushed down where the data have no
actions: their loss contains the gap between the log-sum-exp of Q over all actions and Q of the data's action. The
integral over actions is estimated from sampled ones, each divided by the density that it was drawn from.

| here                    | paper              | shape       |
| ----------------------- | ------------------ | ----------- |
| `policy.critics`        | Q_1, Q_2           |             |
| `policy.actor`          | pi_phi             |             |
| `conservative_weight`   | alpha              |             |
| `target_action_gap`     | tau                |             |
| `policy.log_multiplier` | log alpha, learned |             |
| `policy.log_entropy`    | log alpha of SAC   |             |
| `sampled`               | a_1 .. a_3N        | [B, 3N, A]  |
| `gaps`                  | brackets of eq. 4  | [2]         |

Differences from the authors' code [A] and CORL's [C]:

1. First weights and first standard deviations are those of [C]. It also learns a factor and an offset of the log
   standard deviations, which are part of the last layer here.
2. `cloning_steps` use the likelihood of the data's actions, as in [A]. [C] means to, but takes fresh samples instead.
3. The Lagrange version compares the gap with tau before it is weighted, as the paper and [C] do; [A] compares it after.
4. `max_target_backup` takes the largest of N minima over the critics, as in [C]; [A] the minimum of two largest values.
5. The targets have no entropy term: the default of [A] and [C].
6. All losses are those of before the step, as in [C]; [A] steps the entropy weight and the multiplier first.
7. Where the data hold the observation after a timeout, that step is learned from and bootstraps; see `Transitions`.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from ld_agents.baselines.transitions import Transitions, scaled_rewards
from ld_agents.common.actor_policy import ActorPolicy
from ld_agents.common.offline_algorithm import Losses, OfflineAlgorithm, Stage
from ld_agents.common.settings import STRICT, BatchSize, Fraction, GradientSteps, NonNegative, Real, Widths, documented
from ld_agents.networks.critics import QFunction, descend, mlp, polyak_update


class CQLPolicy(ActorPolicy):
    """The tanh of the actor's mean, or a sample. Critics, targets and multipliers are kept beside it for training."""

    stochastic = True

    def __init__(self, *spaces: Any, settings: "CQLSettings", **kwargs: Any) -> None:
        super().__init__(*spaces, **kwargs)
        sizes = (self.state_dim, self.action_dim, settings.critic_hidden)
        self.actor = SquashedGaussianActor(self.state_dim, self.action_dim, settings.hidden)
        self.critics, self.target_critics = (nn.ModuleList(QFunction(*sizes) for _ in range(2)) for _ in range(2))
        if settings.orthogonal_critics:
            for critic in self.critics:
                _initialize(critic.net)  # type: ignore[arg-type]
        self.target_critics.load_state_dict(self.critics.state_dict())
        self.target_critics.requires_grad_(False)
        self.log_entropy = nn.Parameter(torch.zeros(()))
        if settings.target_action_gap is not None:
            self.log_multiplier = nn.Parameter(torch.ones(()))  # starts at 1 in [C], at 0 in [A]

    def action(self, states: Tensor, noise: Tensor | None) -> Tensor:
        means, log_std = self.actor(states)
        return torch.tanh(means if noise is None else means + log_std.exp() * noise)


def _initialize(net: nn.Sequential) -> None:
    """Orthogonal weights, no biases, values near zero: [C]."""
    *hidden, output_layer = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in hidden:
        nn.init.orthogonal_(layer.weight, math.sqrt(2))
        nn.init.zeros_(layer.bias)
    nn.init.orthogonal_(output_layer.weight, 0.01)
    nn.init.zeros_(output_layer.bias)


class SquashedGaussian(NamedTuple):
    """The tanh of a Gaussian. Shapes [..., A]."""

    means: Tensor  # before the tanh
    log_std: Tensor

    def sample(self, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        """Actions tanh(mean + std epsilon) and their log densities. Shapes [..., A] -> [..., A], [...]."""
        x = self.means + self.log_std.exp() * epsilon
        log_normal = -0.5 * epsilon.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - x - F.softplus(-2 * x))  # log(1 - tanh(x)^2), also where tanh(x) rounds to 1
        return torch.tanh(x), (log_normal - log_slope).sum(-1)

    def log_density(self, actions: Tensor) -> Tensor:
        """Of given actions, which are kept 1e-6 away from the bounds (as in [A]). Shapes [..., A] -> [...]."""
        x = torch.atanh(actions.clamp(-1 + 1e-6, 1 - 1e-6))
        return self.sample((x - self.means) * torch.exp(-self.log_std))[1]

    def halves(self) -> tuple[Self, Self]:
        """Of the first and the second half of a batch."""
        (means, next_means), (log_std, next_log_std) = self.means.chunk(2), self.log_std.chunk(2)
        return type(self)(means, log_std), type(self)(next_means, next_log_std)


class SquashedGaussianActor(nn.Module):
    """SAC's actor."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.net = mlp(observation_dim, *hidden, 2 * action_dim)
        output_layer = self.net[-1]
        assert isinstance(output_layer, nn.Linear)
        nn.init.xavier_uniform_(output_layer.weight, 0.01)  # [C]
        nn.init.zeros_(output_layer.bias[:action_dim])
        nn.init.constant_(output_layer.bias[action_dim:], -1.0)  # [C]

    def forward(self, observations: Tensor) -> SquashedGaussian:
        """Shapes [..., S] -> [..., A]."""
        means, log_std = self.net(observations).chunk(2, -1)
        return SquashedGaussian(means, log_std.clamp(-20.0, 2.0))  # [A], [C]


class CQL(OfflineAlgorithm):
    """Conservative Q-Learning, one stage (`train`). See `OfflineAlgorithm` and `CQLSettings`."""

    policy: CQLPolicy
    settings: "CQLSettings"
    policy_aliases: ClassVar = {"MlpPolicy": CQLPolicy, "MultiInputPolicy": CQLPolicy}

    @classmethod
    def presets(cls) -> dict[str, "CQLSettings"]:
        return PRESETS

    @classmethod
    def family_settings(cls, preset: str = "fast") -> dict[str, dict[str, Any]]:
        return FAST_FAMILY if preset == "fast" else FAMILY

    def stages(self) -> list[Stage]:
        return [Stage("train", self.settings.steps, self.train)]

    def train(self) -> Iterator[Losses]:
        """One step of actor, critics, multipliers and targets per gradient step; all losses are of before the step."""
        s, policy = self.settings, self.policy
        online, target = tuple(policy.critics.parameters()), tuple(policy.target_critics.parameters())
        critic_parameters = (*online, policy.log_multiplier) if s.target_action_gap is not None else online
        actor_parameters = [*policy.actor.parameters(), policy.log_entropy]
        critic_optimizer = self.optimizer("train", critic_parameters, s.critic_learning_rate)
        actor_optimizer = self.optimizer("train.actor", actor_parameters, s.actor_learning_rate)
        rewards = scaled_rewards(self.data, s.reward_scale, s.reward_shift, by_return_range=False)
        steps = self.remaining_steps("train")
        transitions = Transitions(self.data, rewards, states=self.states, actions=self.actions)
        batches = transitions.batches(steps, s.batch_size, self.derived_generator)
        for step, batch in zip(steps, batches, strict=True):
            observations, actions, *_, next_observations = batch
            current, following = policy.actor(torch.cat([observations, next_observations])).halves()
            chosen, log_density = current.sample(self._normal(actions.shape))
            if step < s.cloning_steps:
                actor_loss = self.cloning_loss(current, actions, log_density)
            else:
                actor_loss = self.actor_loss(observations, chosen, log_density)
            entropy_loss = self.entropy_loss(log_density)
            targets = self.targets(batch, following)
            sampled, log_densities = self.sampled_actions(current, following)
            descend(actor_optimizer, actor_loss + entropy_loss)
            # one call values the data's actions (column 0) and the sampled ones
            q = self.q_values(policy.critics, observations, torch.cat([actions[:, None], sampled], 1))  # [2, B, 1 + 3N]
            gaps = self.gaps(q, log_densities)
            bellman_loss, conservative_loss = self.bellman_loss(q, targets), self.conservative_loss(gaps)
            descend(critic_optimizer, bellman_loss + conservative_loss + self.multiplier_loss(gaps))
            polyak_update(online, target, s.target_rate)
            yield {
                "loss": (bellman_loss + conservative_loss).detach(),
                "gap": gaps.detach().mean(),
                "actor_loss": actor_loss.detach(),
            }

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def q_values(self, critics: nn.ModuleList, observations: Tensor, actions: Tensor) -> Tensor:
        """Both critics for K actions per observation. Shapes [B, S], [B, K, A] -> [2, B, K]."""
        # about 1k rows at a time stay within the CPU's caches
        size = max(1, 1024 // actions.shape[1]) if self.device.type == "cpu" else len(actions)
        parts = list(zip(observations[:, None].split(size), actions.split(size), strict=True))
        return torch.stack([torch.cat([critic(*part) for part in parts]) for critic in critics])

    # ------------------------------------------------- the actor and its entropy (SAC)

    def actor_loss(self, observations: Tensor, chosen: Tensor, log_density: Tensor) -> Tensor:
        """Mean of alpha log pi(a | s) - min(Q_1, Q_2)(s, a), alpha held. Shapes [B, S], [B, A], [B] -> scalar."""
        q = torch.minimum(*(critic(observations, chosen) for critic in self.policy.critics))
        return (self.policy.log_entropy.detach().exp() * log_density - q).mean()

    def cloning_loss(self, current: SquashedGaussian, actions: Tensor, log_density: Tensor) -> Tensor:
        """The actor's loss in the first steps: the likelihood of the data's actions [B, A] stands for Q."""
        return (self.policy.log_entropy.detach().exp() * log_density - current.log_density(actions)).mean()

    def entropy_loss(self, log_density: Tensor) -> Tensor:
        """Moves log alpha until the entropy is -A: mean of -log alpha (log pi - A). Shape [B] -> scalar."""
        return -self.policy.log_entropy * (log_density.detach() - self.policy.action_dim).mean()

    # ------------------------------------------------- the Bellman error

    @torch.no_grad()
    def targets(self, batch: tuple[Tensor, ...], following: SquashedGaussian) -> Tensor:
        """y = r + gamma min(Q'_1, Q'_2)(s', a'), a' from the actor; r alone after a terminal. Shape [B].

        With `max_target_backup`, the largest of N such values.
        """
        _, actions, rewards, masks, next_observations = batch
        k = self.settings.n_actions if self.settings.max_target_backup else 1
        widened = SquashedGaussian(following.means[:, None], following.log_std[:, None])
        next_actions, _ = widened.sample(self._normal((len(actions), k, actions.shape[1])))
        q = self.q_values(self.policy.target_critics, next_observations, next_actions)  # [2, B, K]
        return rewards + self.settings.discount * masks * q.amin(0).amax(1)

    def bellman_loss(self, q: Tensor, targets: Tensor) -> Tensor:
        """Sum over both critics of the mean squared error of Q(s, a). Shapes [2, B, 1 + 3N], [B] -> scalar."""
        return (q[:, :, 0] - targets).square().mean(1).sum()

    # ------------------------------------------------- the conservative part (paper eq. 4)

    @torch.no_grad()
    def sampled_actions(self, current: SquashedGaussian, following: SquashedGaussian) -> tuple[Tensor, Tensor]:
        """N uniform actions, N of the actor at s, N of the actor at s', and their log densities. All are valued at s.

        Returns:
            actions [B, 3N, A] and log densities [B, 3N], those of the third kind given s'.
        """
        (b, a), n = current.means.shape, self.settings.n_actions
        uniform = current.means.new_empty(b, n, a).uniform_(-1, 1, generator=self.generator)
        actions, log_densities = [uniform], [uniform.new_full((b, n), a * math.log(0.5))]
        for means, log_std in (current, following):
            drawn = SquashedGaussian(means[:, None], log_std[:, None]).sample(self._normal((b, n, a)))
            actions.append(drawn[0])
            log_densities.append(drawn[1])
        return torch.cat(actions, 1), torch.cat(log_densities, 1)

    def gaps(self, q: Tensor, log_densities: Tensor) -> Tensor:
        """Mean of log sum exp(Q(s, a_i) - log density of a_i) - Q(s, a), per critic.

        Shapes [2, B, 1 + 3N] (the data's action first), [B, 3N] -> [2].
        """
        gaps = torch.logsumexp(q[:, :, 1:] - log_densities, -1) - q[:, :, 0]
        return gaps.clamp(min=self.settings.gap_floor).mean(1) if self.settings.gap_floor is not None else gaps.mean(1)

    def conservative_loss(self, gaps: Tensor) -> Tensor:
        """alpha times both gaps; in the Lagrange version, times what they exceed tau by and the held multiplier."""
        s = self.settings
        if s.target_action_gap is None:
            return s.conservative_weight * gaps.sum()
        return s.conservative_weight * (self._multiplier().detach() * (gaps - s.target_action_gap)).sum()

    def multiplier_loss(self, gaps: Tensor) -> Tensor:
        """Raises the multiplier while the gaps exceed tau (paper, appendix F). Zero without the Lagrange version."""
        s = self.settings
        if s.target_action_gap is None:
            return gaps.new_zeros(())
        return -0.5 * s.conservative_weight * (self._multiplier() * (gaps.detach() - s.target_action_gap)).sum()

    def _multiplier(self) -> Tensor:
        return self.policy.log_multiplier.exp().clamp(max=1e6)


@documented
@dataclass(frozen=True, config=STRICT)
class CQLSettings:
    """Settings of CQL. Defaults: CORL's configurations of `cql` for locomotion [C]; the authors' code [A] is named."""

    conservative_weight: NonNegative = 10.0  # alpha
    n_actions: Annotated[int, Field(ge=1, le=1000)] = 10  # N of each of three kinds
    target_action_gap: Real | None = None  # tau of the Lagrange version; None: alpha is fixed
    max_target_backup: bool = False  # targets take the best of the sampled actions
    gap_floor: Real | None = None  # no gap counts as less
    cloning_steps: GradientSteps = 0  # gradient steps at the start; 40,000 in [A]
    hidden: Widths = (256, 256, 256)  # of the actor
    critic_hidden: Widths = (256, 256, 256)  # of the critics
    orthogonal_critics: bool = True  # first weights; False in [A]
    actor_learning_rate: Fraction = 3e-5  # 1e-4 in [A]
    critic_learning_rate: Fraction = 3e-4  # Adam's
    batch_size: BatchSize = 256  # transitions
    discount: Fraction = 0.99  # per environment step
    target_rate: Fraction = 0.005  # by which target networks follow
    normalize_observations: bool = True  # False in [A]
    reward_scale: Real = 1.0  # factor of the rewards
    reward_shift: Real = 0.0  # added to the scaled reward
    steps: GradientSteps = 1_000_000  # gradient steps


PAPER = CQLSettings()
# Eight minutes on one core, in which the published sizes take 3,000 steps and learn nothing: found on seed 101
# (results/tuning/README.md).
FAST = dataclasses.replace(
    PAPER,
    n_actions=3,
    hidden=(128, 128),
    critic_hidden=(128, 128),
    actor_learning_rate=1e-4,
    batch_size=64,
    steps=60_000,
)
PRESETS = {"fast": FAST, "paper": PAPER}

# CORL's configurations of `cql`; Kitchen is the command in the readme of [A].
FAMILY: dict[str, dict[str, Any]] = {
    "maze2d": {"target_action_gap": 5.0},
    "antmaze": {
        "conservative_weight": 5.0,
        "target_action_gap": 0.8,
        "max_target_backup": True,
        "gap_floor": -200.0,
        "critic_hidden": (256,) * 5,
        "actor_learning_rate": 1e-4,
        "normalize_observations": False,
        "reward_scale": 10.0,
        "reward_shift": -5.0,
    },
    "locomotion": {},
    "kitchen": {"target_action_gap": 5.0, "cloning_steps": 40_000, "normalize_observations": False},
    "adroit": {"conservative_weight": 1.0, "actor_learning_rate": 1e-4},
}
# In the fast preset without what is of their size: networks stay small, and cloning takes its share of fewer steps.
FAST_FAMILY = FAMILY | {
    "antmaze": {name: value for name, value in FAMILY["antmaze"].items() if name != "critic_hidden"},
    "kitchen": FAMILY["kitchen"] | {"cloning_steps": 2_400},
}
