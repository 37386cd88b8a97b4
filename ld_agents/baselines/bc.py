"""BC: behaviour cloning with a deterministic actor, as in CORL's `any_percent_bc`.

The actor is TD3's: two layers of 256 and a tanh. The loss is the squared error to the actions of the data, so where
the data go both ways the actor goes the mean way: what the planners are compared with.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ld_agents.critics import TanhActor
from ld_agents.offline_algorithm import Losses, OfflineAlgorithm, Stage, check_settings
from ld_agents.offline_policy import OfflinePolicy, State


class BCPolicy(OfflinePolicy):
    """The actor's output is the action."""

    def __init__(self, *spaces: Any, settings: "BCSettings", **kwargs: Any) -> None:
        super().__init__(*spaces, **kwargs)
        self.actor = TanhActor(self.state_dim, self.action_dim, settings.hidden)

    def act(
        self, states: Tensor, keys: Tensor, state: State | None, episode_start: NDArray[np.bool_], deterministic: bool
    ) -> tuple[Tensor, State | None]:
        return self.actor(states), state


class BC(OfflineAlgorithm):
    """Behaviour cloning, one stage (`train`). See `OfflineAlgorithm` for arguments, `BCSettings` for settings."""

    policy: BCPolicy
    settings: "BCSettings"
    policy_aliases: ClassVar = {"MlpPolicy": BCPolicy, "MultiInputPolicy": BCPolicy}

    @classmethod
    def presets(cls) -> dict[str, "BCSettings"]:
        return PRESETS

    def stages(self) -> list[Stage]:
        return [Stage("train", self.settings.steps, self.train)]

    def train(self) -> Iterator[Losses]:
        """Mean squared error between the actor's actions and the data's."""
        s = self.settings
        optimizer = self.optimizer("train", self.policy.actor.parameters(), s.learning_rate)
        for _ in self.remaining_steps("train"):
            batch = torch.randint(self.data.n_steps, (s.batch_size,), generator=self.generator, device=self.device)
            loss = F.mse_loss(self.policy.actor(self.data.observations[batch]), self.data.actions[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield {"loss": loss.detach()}


@dataclass(frozen=True)
class BCSettings:
    """Settings of BC, from CORL's configurations of `any_percent_bc`."""

    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    batch_size: int = 256
    normalize_observations: bool = True
    steps: int = 1_000_000  # gradient steps

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        check_settings(
            self, {"batch_size": (1, 1_000_000), "steps": (0, 1_000_000_000)}, {"learning_rate": (0.0, 1.0)}, {}
        )
        if not 1 <= len(self.hidden) <= 16 or not all(1 <= width <= 8192 for width in self.hidden):
            raise ValueError(f"hidden must be 1 to 16 widths in 1..8192, got {self.hidden[:20]}.")


PAPER = BCSettings()
FAST = dataclasses.replace(PAPER, steps=20_000)  # a minute on one core
PRESETS = {"fast": FAST, "paper": PAPER}
