"""GCBC: goal-conditioned behavior cloning (Ghosh et al. 2021, arXiv 1912.06088; Ding et al. 2019, arXiv 1906.05838).

BC whose actor sees a goal beside the observation: the one that the data command, or what is achieved at a later step of
the same episode, drawn evenly as in both papers. Like LDGC it learns from a share of the steps without their goals
(`goal_dropout`), so that it can act without one; the papers do not.
"""

import dataclasses
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from ld_agents.baselines.bc import BC, BCPolicy, BCSettings
from ld_agents.common.goals import GoalAgent, GoalPolicy, GoalSettings
from ld_agents.common.settings import STRICT, documented


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

    def conditions(self, rows: Tensor) -> Tensor:
        """States with goals; some without. Shapes [B] -> [B, S+G+1]."""
        return self.with_goals(rows, 1)


@documented
@dataclass(frozen=True, config=STRICT)
class GCBCSettings(GoalSettings, BCSettings):
    """Settings of GCBC: BC's, and where goals come from."""


PAPER = GCBCSettings()
FAST = dataclasses.replace(PAPER, steps=20_000)
PRESETS = {"fast": FAST, "paper": PAPER}
