"""An agent of a user's own, for `--agents goal_seeker:GoalSeeker`: steers straight to a point that it learns.

Its settings make it misbehave, to test that the suite goes on: `fail="raise"` raises in the second stage, `fail="kill"`
kills the process there, once per folder named by the environment variable GOAL_SEEKER_KILLED.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the first optimizer would, which takes seconds of the time that is measured as learning
from numpy.typing import NDArray
from torch import Tensor, nn

from ld_agents.common.offline_algorithm import Losses, OfflineAlgorithm, Stage
from ld_agents.common.offline_policy import OfflinePolicy, State

UMAZE_GOAL = (-1.0, 1.0)


class GoalSeekerPolicy(OfflinePolicy):
    def __init__(self, *spaces: Any, settings: Settings, **kwargs: Any) -> None:
        super().__init__(*spaces, **kwargs)
        self.target = nn.Parameter(torch.ones(2))
        self.register_buffer("steps_in_stage", torch.zeros(2, dtype=torch.int64))

    def act(
        self, states: Tensor, keys: Tensor, state: State | None, episode_start: NDArray[np.bool_], deterministic: bool
    ) -> tuple[Tensor, State | None]:
        return 10 * (self.target - states[:, :2]) - states[:, 2:4], state


class GoalSeeker(OfflineAlgorithm):
    policy: GoalSeekerPolicy
    policy_aliases = {"MlpPolicy": GoalSeekerPolicy, "MultiInputPolicy": GoalSeekerPolicy}  # noqa: RUF012

    @classmethod
    def presets(cls) -> dict[str, Settings]:
        return {"fast": Settings(), "paper": Settings(steps=1000)}

    def stages(self) -> list[Stage]:
        return [Stage(name, self.settings.steps, lambda name=name: self.train(name)) for name in ("first", "second")]

    def train(self, stage: str) -> Iterator[Losses]:
        settings = self.settings
        optimizer = self.optimizer(stage, [self.policy.target], 0.1)
        for step in self.remaining_steps(stage):
            if stage == "second" and step == settings.steps // 2:
                misbehave(settings.fail)
            loss = ((self.policy.target - torch.tensor(UMAZE_GOAL)) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.policy.steps_in_stage[stage == "second"] += 1
            time.sleep(settings.pause)
            yield {"loss": loss.detach()}


def misbehave(how: str) -> None:
    if how == "raise":
        raise RuntimeError("this agent always fails")
    if how == "kill" and not (killed := Path(os.environ["GOAL_SEEKER_KILLED"])).exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Settings:
    steps: int = 20
    pause: float = 0.0
    fail: str = "no"
    normalize_observations: bool = False
