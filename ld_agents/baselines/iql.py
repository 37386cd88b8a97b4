"""IQL: Implicit Q-Learning (Kostrikov, Nair & Levine, ICLR 2022, arXiv 2110.06169).

No action outside the data is ever valued. V is an upper expectile of Q over the data's actions, Q learns from V at the
next state, and the actor imitates the data's actions, each with a weight that grows with its advantage Q - V.

| here               | paper            | shape     |
| ------------------ | ---------------- | --------- |
| `policy.critics`   | Q_1, Q_2         |           |
| `policy.value`     | V_psi            |           |
| `policy.actor`     | pi_phi           |           |
| `target_critics`   | Q_theta^         |           |
| `advantages`       | Q_theta^ - V_psi | [B]       |
| `expectile`        | tau              |           |
| `temperature`      | beta             |           |

The actor is a Gaussian that is not squashed: its mean is a tanh, its standard deviations are one free vector for all
states. Sampled actions are clipped to the action space.

Differences from the authors' code and CORL's:

1. Weights start as torch's layers do, as in CORL; the authors' start orthogonal.
2. The authors clip the data's actions to 1 - 1e-5; a Gaussian that is not squashed does not need it.
3. Log standard deviations are clamped to -5..2 as in the authors' code; CORL's to -20..2.
4. Dropout drops units of the actor, as in the authors' code; CORL's `GaussianPolicy` ignores it.
5. All losses are those of before the step, as in CORL. The authors step V first, and compute the others with the new V.
6. Where the data hold the observation after a timeout, that step is learned from and bootstraps; see `Transitions`.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

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
from ld_agents.networks.window_values import expectile_loss


class IQLPolicy(ActorPolicy):
    """The actor's mean, or a sample of its Gaussian. V, critics and targets are kept beside it for training."""

    stochastic = True

    def __init__(self, *spaces: Any, settings: "IQLSettings", **kwargs: Any) -> None:
        super().__init__(*spaces, **kwargs)
        self.actor = IQLActor(self.state_dim, self.action_dim, settings)
        self.value = mlp(self.state_dim, *settings.hidden, 1)
        self.critics, self.target_critics = (
            nn.ModuleList(QFunction(self.state_dim, self.action_dim, settings.hidden) for _ in range(2))
            for _ in range(2)
        )
        self.target_critics.load_state_dict(self.critics.state_dict())
        self.target_critics.requires_grad_(False)

    def action(self, states: Tensor, noise: Tensor | None) -> Tensor:
        means = self.actor(states)
        return means if noise is None else means + self.actor.clamped_log_std().exp() * noise


class IQLActor(nn.Module):
    """Means in [-1, 1], and one log standard deviation per action dimension."""

    def __init__(self, observation_dim: int, action_dim: int, settings: "IQLSettings") -> None:
        super().__init__()
        self.dropout = settings.dropout
        self.net = mlp(observation_dim, *settings.hidden, action_dim)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, observations: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean actions. Shapes [..., S] -> [..., A].

        Args:
            observations: normalized.
            generator: of the units that are dropped. None: no unit is.
        """
        hidden = observations
        for layer in self.net:
            hidden = layer(hidden)
            if generator is not None and self.dropout > 0 and isinstance(layer, nn.ReLU):
                kept = torch.rand(hidden.shape, generator=generator, device=hidden.device) >= self.dropout
                hidden = hidden * kept / (1 - self.dropout)
        return torch.tanh(hidden)

    def clamped_log_std(self) -> Tensor:
        """Shape [A]."""
        return self.log_std.clamp(-5.0, 2.0)

    def negative_log_likelihood(self, means: Tensor, actions: Tensor) -> Tensor:
        """-log pi(a | s), summed over action dimensions. Shapes [B, A], [B, A] -> [B]."""
        log_std = self.clamped_log_std()
        scaled = (actions - means) * torch.exp(-log_std)
        return (0.5 * scaled.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


class IQL(OfflineAlgorithm):
    """Implicit Q-Learning, one stage (`train`). See `OfflineAlgorithm` for arguments, `IQLSettings` for settings."""

    policy: IQLPolicy
    settings: "IQLSettings"
    policy_aliases: ClassVar = {"MlpPolicy": IQLPolicy, "MultiInputPolicy": IQLPolicy}
    retired_settings: ClassVar = {"actor": "gaussian"}

    @classmethod
    def presets(cls) -> dict[str, "IQLSettings"]:
        return PRESETS

    @classmethod
    def family_settings(cls, preset: str = "fast") -> dict[str, dict[str, Any]]:
        return FAMILY

    def stages(self) -> list[Stage]:
        return [Stage("train", self.settings.steps, self.train)]

    def train(self) -> Iterator[Losses]:
        """One step of V, critics, actor and targets per gradient step; all losses are of before the step."""
        s, policy = self.settings, self.policy
        online, target = tuple(policy.critics.parameters()), tuple(policy.target_critics.parameters())
        critic_parameters = [*online, *policy.value.parameters()]
        critic_optimizer = self.optimizer("train", critic_parameters, s.critic_learning_rate)
        actor_optimizer = self.optimizer("train.actor", policy.actor.parameters(), s.actor_learning_rate)
        rewards = scaled_rewards(self.data, s.reward_scale, s.reward_shift, s.normalize_rewards)
        steps = self.remaining_steps("train")
        transitions = Transitions(self.data, rewards, states=self.states, actions=self.actions)
        batches = transitions.batches(steps, s.batch_size, self.derived_generator)
        for step, batch in zip(steps, batches, strict=True):
            advantages = self.advantages(batch)
            value_loss, critic_loss = self.value_loss(advantages), self.critic_loss(batch)
            actor_loss = self.actor_loss(batch, advantages.detach())
            descend(critic_optimizer, value_loss + critic_loss)
            self.set_learning_rate(actor_optimizer, s.actor_learning_rate * self.cosine_decay("train", step))
            descend(actor_optimizer, actor_loss)
            polyak_update(online, target, s.target_rate)
            yield {
                "loss": critic_loss.detach(),
                "value_loss": value_loss.detach(),
                "actor_loss": actor_loss.detach(),
            }

    def advantages(self, batch: tuple[Tensor, ...]) -> Tensor:
        """min(Q'_1, Q'_2)(s, a) - V(s) of the data's actions; gradients flow into V alone. Shape [B]."""
        observations, actions = batch[:2]
        q = torch.minimum(*(critic(observations, actions) for critic in self.policy.target_critics))
        return q - self.policy.value(observations).squeeze(-1)

    def value_loss(self, advantages: Tensor) -> Tensor:
        """Expectile regression, mean of |tau - 1(u < 0)| u^2 with u = Q - V (eq. 5). Shape [B] -> scalar."""
        return expectile_loss(advantages, self.settings.expectile).mean()

    def critic_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Sum over both critics of the mean squared error to r + gamma V(s'), r after a terminal (eq. 6)."""
        observations, actions, rewards, masks, next_observations = batch
        with torch.no_grad():
            next_values = self.policy.value(next_observations).squeeze(-1)
        targets = rewards + self.settings.discount * masks * next_values
        first, second = (F.mse_loss(critic(observations, actions), targets) for critic in self.policy.critics)
        return first + second

    def actor_loss(self, batch: tuple[Tensor, ...], advantages: Tensor) -> Tensor:
        """Mean of -log pi(a | s), weighted with exp(beta (Q - V)), at most 100 (eq. 7)."""
        observations, actions = batch[:2]
        weights = torch.exp(self.settings.temperature * advantages).clamp(max=100.0)
        means = self.policy.actor(observations, self.generator)
        return (weights * self.policy.actor.negative_log_likelihood(means, actions)).mean()


@documented
@dataclass(frozen=True, config=STRICT)
class IQLSettings:
    """Settings of IQL. Defaults: the authors' code for MuJoCo [A]; CORL's configurations of `iql` [C] are named."""

    expectile: Fraction = 0.7  # tau
    temperature: NonNegative = 3.0  # beta: inverse temperature of the weights
    dropout: Annotated[float, Field(ge=0, le=0.99)] = 0.0  # share of the actor's hidden units that are dropped
    hidden: Widths = (256, 256)  # of all networks
    actor_learning_rate: Fraction = 3e-4  # falls to 0 over the budget, as a cosine
    critic_learning_rate: Fraction = 3e-4  # of the critics and V
    batch_size: BatchSize = 256  # transitions
    discount: Fraction = 0.99  # per environment step
    target_rate: Fraction = 0.005  # by which target networks follow
    normalize_observations: bool = True  # [C]; False in [A]
    reward_scale: Real = 1.0  # factor of the rewards
    reward_shift: Real = 0.0  # added to the scaled reward
    normalize_rewards: bool = False  # to returns that span 1000; see `scaled_rewards`
    steps: GradientSteps = 1_000_000  # gradient steps


PAPER = IQLSettings()
FAST = dataclasses.replace(PAPER, steps=30_000)  # four minutes on one core
MINUTES = dataclasses.replace(PAPER, steps=5_000)  # for a first look on a small maze
PRESETS = {"fast": FAST, "minutes": MINUTES, "paper": PAPER}

# The paper's appendix B and the authors' code; Maze2D, which they do not have, as in [C].
FAMILY: dict[str, dict[str, Any]] = {
    "maze2d": {},
    "antmaze": {"expectile": 0.9, "temperature": 10.0, "reward_shift": -1.0, "normalize_observations": False},
    "locomotion": {"normalize_rewards": True, "normalize_observations": False},
    "kitchen": {"temperature": 0.5, "dropout": 0.1, "normalize_observations": False},
    "adroit": {"temperature": 0.5, "dropout": 0.1, "normalize_observations": False},
}
