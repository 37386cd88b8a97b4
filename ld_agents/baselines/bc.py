"""BC: behavior cloning with a deterministic actor, as in CORL's `any_percent_bc`.

The actor is TD3's: two layers of 256 and a tanh. The loss is the squared error to the actions of the data, so where
the data go both ways the actor goes the mean way: what the planners are compared with.

`best_fraction=0.1` is 10 % BC (Chen et al. 2021, arXiv 2106.01345, section 5.1): it clones the best tenth of the
episodes, by discounted return as in CORL. CORL ends its trajectories at terminals and every 1000 steps, and so joins
episodes that end by timeout (all of Maze2D's); here a trajectory is an episode, or the whole recording where that goes
on after terminals, as AntMaze's does at the goal. CORL normalizes observations by the kept episodes, we by all.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from ld_agents.common.actor_policy import ActorPolicy
from ld_agents.common.offline_algorithm import Losses, Stage
from ld_agents.common.settings import STRICT, BatchSize, Fraction, GradientSteps, Widths, documented
from ld_agents.data.returns import episode_of_steps, episode_returns
from ld_agents.images import ImageAgent
from ld_agents.networks.critics import TanhActor, descend


class BCPolicy(ActorPolicy):
    """The actor's output is the action."""

    def __init__(self, *spaces: Any, settings: "BCSettings", **kwargs: Any) -> None:
        super().__init__(*spaces, **kwargs)
        self.actor = TanhActor(self.state_dim, self.action_dim, settings.hidden)

    def action(self, states: Tensor, noise: Tensor | None) -> Tensor:
        return self.actor(states)


class BC(ImageAgent):
    """Behavior cloning, one stage (`train`), with "CnnPolicy" after one for `images`.

    See `OfflineAlgorithm` for arguments, `BCSettings` for settings, and `ImageSettings` for those of images.
    """

    policy: BCPolicy
    settings: "BCSettings"
    policy_aliases: ClassVar = dict.fromkeys(("MlpPolicy", "MultiInputPolicy", "CnnPolicy"), BCPolicy)

    @classmethod
    def presets(cls) -> dict[str, "BCSettings"]:
        return PRESETS

    def stages(self) -> list[Stage]:
        return [*self.image_stages(), Stage("train", self.settings.steps, self.train)]

    def train(self) -> Iterator[Losses]:
        """A step of the actor per gradient step."""
        s = self.settings
        optimizer = self.optimizer("train", self.policy.actor.parameters(), s.learning_rate)
        rows = self.best_rows()
        for _ in self.remaining_steps("train"):
            batch = rows[self.random_indices(len(rows), s.batch_size)]
            loss = self.actor_loss(self.conditions(batch), self.actions(batch))
            descend(optimizer, loss)
            yield {"loss": loss.detach()}

    def conditions(self, rows: Tensor) -> Tensor:
        """What the actor sees at steps of the data: the state. Shapes [B] -> [B, S]."""
        return self.states(rows)

    def actor_loss(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Mean squared error between the actor's actions and the data's. Shapes [B, S], [B, A] -> scalar."""
        return F.mse_loss(self.policy.actor(observations), actions)

    def best_rows(self) -> Tensor:
        """The steps of the recordings with the highest discounted returns, at least one recording. Shape [M] int64."""
        ends = self.data.recording_ends
        returns = episode_returns(self.data, self.settings.return_discount, ends)
        kept = torch.zeros(len(returns), dtype=torch.bool, device=self.device)
        best = returns.argsort(descending=True, stable=True)
        kept[best[: max(1, int(self.settings.best_fraction * len(returns)))]] = True
        return torch.nonzero(kept[episode_of_steps(self.data, ends)]).reshape(-1)


@documented
@dataclass(frozen=True, config=STRICT)
class BCSettings:
    """Settings of BC, from CORL's configurations of `any_percent_bc`."""

    hidden: Widths = (256, 256)  # units of the actor's layers
    learning_rate: Fraction = 3e-4  # Adam's
    batch_size: BatchSize = 256  # transitions
    normalize_observations: bool = True  # by mean and deviation of the data
    best_fraction: Fraction = 1.0  # of the recordings that are cloned
    return_discount: Fraction = 0.99  # of the returns that episodes are chosen by
    steps: GradientSteps = 1_000_000  # gradient steps


PAPER = BCSettings()
FAST = dataclasses.replace(PAPER, steps=20_000)  # a minute on one core
MINUTES = dataclasses.replace(PAPER, steps=5_000)  # for a first look on a small maze
PRESETS = {"fast": FAST, "minutes": MINUTES, "paper": PAPER}
