"""GCBC: goal-conditioned behavior cloning (Ghosh et al. 2021, arXiv 1912.06088; Ding et al. 2019, arXiv 1906.05838).

BC whose actor sees a goal beside the observation: the one that the data command, or what is achieved at a later step of
the same episode, drawn evenly as in both papers. Like LDGC it learns from a share of the steps without their goals
(`goal_dropout`), so that it can act without one; the papers do not.
"""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from pydantic.dataclasses import dataclass

from ld_agents.baselines.bc import BC, BCPolicy, BCSettings
from ld_agents.common.goals import GoalAgent, GoalPolicy, GoalSettings
from ld_agents.common.offline_algorithm import Losses
from ld_agents.common.settings import STRICT, documented
from ld_agents.networks.critics import descend


class GCBCPolicy(GoalPolicy, BCPolicy):
    """The actor's output is the action."""


class GCBC(GoalAgent, BC):
    """Goal-conditioned behavior cloning, one stage (`train`). See `set_goal` for goals, `GCBCSettings` for settings."""

    policy: GCBCPolicy
    settings: "GCBCSettings"
    policy_aliases: ClassVar = {"MlpPolicy": GCBCPolicy, "MultiInputPolicy": GCBCPolicy}

    @classmethod
    def presets(cls) -> dict[str, "GCBCSettings"]:  # type: ignore[override]
        return PRESETS

    def train(self) -> Iterator[Losses]:
        """A step of the actor per gradient step."""
        s = self.settings
        optimizer = self.optimizer("train", self.policy.actor.parameters(), s.learning_rate)
        rows = self.best_rows()
        for _ in self.remaining_steps("train"):
            batch = rows[self.random_indices(len(rows), s.batch_size)]
            loss = self.actor_loss(self.with_goals(batch, 1), self.actions(batch))
            descend(optimizer, loss)
            yield {"loss": loss.detach()}


@documented
@dataclass(frozen=True, config=STRICT)
class GCBCSettings(GoalSettings, BCSettings):
    """Settings of GCBC: BC's, and where goals come from."""


PAPER = GCBCSettings()
FAST = dataclasses.replace(PAPER, steps=20_000)
PRESETS = {"fast": FAST, "paper": PAPER}
