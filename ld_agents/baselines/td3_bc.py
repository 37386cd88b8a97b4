"""TD3+BC: TD3 with behavior cloning in the actor's loss (Fujimoto & Gu, NeurIPS 2021, arXiv 2106.06860).

Two critics learn from the smaller of their targets, at the target actor's action with clipped noise (TD3, Fujimoto et
al. 2018, arXiv 1802.09477). The actor maximizes the first critic and stays near the data's actions; the critic's weight
in its loss is alpha over the mean |Q| of the batch, so that one alpha serves rewards of any size.

| here                      | paper            | shape     |
| ------------------------- | ---------------- | --------- |
| `policy.actor`            | pi               |           |
| `policy.critics`          | Q_1, Q_2         |           |
| `target_actions`          | pi'(s') + noise  | [B, A]    |
| `targets`                 | y                | [B]       |

Differences from the authors' code and CORL's:

1. Where the data hold the observation after a timeout, that step is learned from and bootstraps. There it is left out,
   since D4RL's data lack that observation; see `Transitions`.
2. The standard deviations of the observations have a floor of 1e-3. There 1e-3 is added to them.
"""

import dataclasses
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
from ld_agents.common.settings import (
    STRICT,
    BatchSize,
    Count,
    Fraction,
    GradientSteps,
    NonNegative,
    Real,
    Widths,
    documented,
)
from ld_agents.networks.critics import QFunction, TanhActor, descend, polyak_update


class TD3BCPolicy(ActorPolicy):
    """The actor's output is the action. Critics and targets are kept beside it for training."""

    def __init__(self, *spaces: Any, settings: "TD3BCSettings", **kwargs: Any) -> None:
        super().__init__(*spaces, **kwargs)
        sizes, layer_norm = (self.state_dim, self.action_dim, settings.hidden), settings.critic_layer_norm
        self.actor, self.target_actor = (TanhActor(*sizes) for _ in range(2))
        self.critics, self.target_critics = (
            nn.ModuleList(QFunction(*sizes, layer_norm=layer_norm) for _ in range(2)) for _ in range(2)
        )
        self.target_actor.requires_grad_(False)
        self.target_critics.requires_grad_(False)
        self.restart_targets()

    def restart_targets(self) -> None:
        """Sets the target networks to the online ones."""
        self.target_actor.load_state_dict(self.actor.state_dict())
        self.target_critics.load_state_dict(self.critics.state_dict())

    def action(self, states: Tensor, noise: Tensor | None) -> Tensor:
        return self.actor(states)


class TD3BC(OfflineAlgorithm):
    """TD3+BC, one stage (`train`). See `OfflineAlgorithm` for arguments, `TD3BCSettings` for settings."""

    policy: TD3BCPolicy
    settings: "TD3BCSettings"
    policy_aliases: ClassVar = {"MlpPolicy": TD3BCPolicy, "MultiInputPolicy": TD3BCPolicy}
    retired_settings: ClassVar = {"actor_layer_norm": False, "normalize_rewards": False}
    needs_next_actions: ClassVar[bool] = False

    @classmethod
    def presets(cls) -> dict[str, Any]:
        return PRESETS

    @classmethod
    def family_settings(cls, preset: str = "fast") -> dict[str, dict[str, Any]]:
        return FAMILY

    def stages(self) -> list[Stage]:
        return [Stage("train", self.settings.steps, self.train)]

    def train(self) -> Iterator[Losses]:
        """A step of the critics at every gradient step; of the actor and all targets at every `actor_delay`-th."""
        s, policy = self.settings, self.policy
        critic_optimizer = self.optimizer("train", policy.critics.parameters(), s.critic_learning_rate)
        actor_optimizer = self.optimizer("train.actor", policy.actor.parameters(), s.actor_learning_rate)
        online = (*policy.actor.parameters(), *policy.critics.parameters())
        target = (*policy.target_actor.parameters(), *policy.target_critics.parameters())
        steps, transitions = self.remaining_steps("train"), self.transitions()
        batches = transitions.batches(steps, s.batch_size, self.derived_generator)
        for step, batch in zip(steps, batches, strict=True):
            loss = self.critic_loss(batch)
            descend(critic_optimizer, loss)
            losses = {"loss": loss.detach()}
            if (step + 1) % s.actor_delay == 0:
                actor_loss = self.actor_loss(batch)
                descend(actor_optimizer, actor_loss)
                polyak_update(online, target, s.target_rate)
                losses["actor_loss"] = actor_loss.detach()
            yield losses

    def transitions(self) -> Transitions:
        """What is learned from, rewards as the settings want them."""
        s = self.settings
        rewards = scaled_rewards(self.data, s.reward_scale, s.reward_shift)
        return Transitions(
            self.data, rewards, states=self.states, actions=self.actions, next_actions=self.needs_next_actions
        )

    def critic_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """`bellman_loss` with fresh targets."""
        return self.bellman_loss(batch, self.targets(batch))

    def bellman_loss(self, batch: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Sum over both critics of the mean squared error to the targets [B]."""
        observations, actions = batch[:2]
        first, second = (F.mse_loss(critic(observations, actions), targets) for critic in self.policy.critics)
        return first + second

    @torch.no_grad()
    def targets(self, batch: tuple[Tensor, ...]) -> Tensor:
        """y = r + gamma min(Q'_1, Q'_2)(s', a~'), without the second part after a terminal. Shape [B]."""
        _, _, rewards, masks, next_observations = batch
        values = self.target_values(next_observations, self.target_actions(next_observations))
        return rewards + self.settings.discount * masks * values

    def target_actions(self, next_observations: Tensor) -> Tensor:
        """The target actor's actions with clipped noise. Shapes [B, S] -> [B, A]."""
        s = self.settings
        actions = self.policy.target_actor(next_observations)
        noise = torch.randn(actions.shape, generator=self.generator, device=self.device) * s.target_noise
        return (actions + noise.clamp(-s.target_noise_clip, s.target_noise_clip)).clamp(-1, 1)

    def target_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """min(Q'_1, Q'_2). Shapes [B, S], [B, A] -> [B]."""
        return torch.minimum(*(critic(observations, actions) for critic in self.policy.target_critics))

    def actor_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean of (pi(s) - a)^2 - lambda Q_1(s, pi(s)), lambda = alpha / mean |Q_1| held constant."""
        observations, actions = batch[:2]
        chosen = self.policy.actor(observations)
        q = self.policy.critics[0](observations, chosen)
        return F.mse_loss(chosen, actions) - self.settings.alpha / q.detach().abs().mean() * q.mean()


@documented
@dataclass(frozen=True, config=STRICT)
class TD3BCSettings:
    """Settings of TD3+BC: the paper's, which CORL's configurations of `td3_bc` repeat."""

    alpha: NonNegative = 2.5  # weight of the critic in the actor's loss
    hidden: Widths = (256, 256)  # of actor and critics
    critic_layer_norm: bool = False  # in the critics' layers
    actor_learning_rate: Fraction = 3e-4  # Adam's
    critic_learning_rate: Fraction = 3e-4  # Adam's
    batch_size: BatchSize = 256  # transitions
    discount: Fraction = 0.99  # per environment step
    target_rate: Fraction = 0.005  # by which target networks follow
    target_noise: Annotated[float, Field(ge=0, le=2)] = 0.2  # standard deviation; actions are in [-1, 1]
    target_noise_clip: Annotated[float, Field(ge=0, le=2)] = 0.5  # largest size of it
    actor_delay: Count = 2  # gradient steps of the critics per step of actor and targets
    normalize_observations: bool = True  # by mean and deviation of the data
    reward_scale: Real = 1.0  # factor of the rewards
    reward_shift: Real = 0.0  # added to the scaled reward
    steps: GradientSteps = 1_000_000  # gradient steps


PAPER = TD3BCSettings()
FAST = dataclasses.replace(PAPER, steps=30_000)  # three minutes on one core
PRESETS = {"fast": FAST, "paper": PAPER}

# One setting for all families, but for AntMaze's rewards: CORL's configurations of `td3_bc`.
FAMILY: dict[str, dict[str, Any]] = {
    "maze2d": {},
    "antmaze": {"reward_shift": -1.0},
    "locomotion": {},
    "adroit": {},
}
