"""Agents that are told where to go: where a goal comes from in training, and how `predict` is given one.

A goal is a vector of G numbers. As in Gymnasium's `GoalEnv`, an observation may hold it under `desired_goal`, and the
agent learned from data that keep it there (`load_dataset(id, goal="keep")`) or from data without goals. What has been
achieved is read off the observation itself, in `goal_dim` columns from `goal_start` on. In training a goal is either

* commanded: the one that the data hold, and only from windows through which it stays the same; or
* taken in hindsight: what is achieved at a step drawn from t+H to the end of the episode.

Networks see a state, the goal in the units of the state, and 1; or, without a goal, the state and zeros.
"""

from typing import Annotated, Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.common.offline_policy import OfflinePolicy
from ld_agents.common.settings import STRICT, EnvironmentSteps, Fraction, LatentDim, documented
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.returns import moments

KEY = "desired_goal"


@documented
@dataclass(frozen=True, config=STRICT)
class GoalSettings:
    """Where goals come from."""

    goals: Literal["hindsight", "commanded"] = "hindsight"  # "commanded": by the data, as in the released code
    goal_dim: LatentDim = 2  # G; a position (x, y) in the mazes
    # the first of G columns of an observation without its goal that tell what has been achieved
    goal_start: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    goal_steps: EnvironmentSteps | None = None  # a hindsight goal is at most so far ahead; None: to the episode's end
    goal_dropout: Fraction = 0.1  # share of the training batch that learns without a goal; paper, from memory


class GoalPolicy(OfflinePolicy):
    """A policy whose states are the data's without their goal, then the goal, then whether there is one. [n, S+G+1].

    Attributes:
        goal: the one that `set_goal` was given, [G]; None: that of the observation.
        own_columns: those of a flat observation that are no goal, S of them.
        own_dim: S.
        achieved: the columns of these that a goal is compared with, G of them.
    """

    settings: Any

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        *,
        observation_keys: tuple[str, ...] | None,
        state_dim: int,
        settings: GoalSettings,
        **kwargs: Any,
    ) -> None:
        sizes = {}
        if isinstance(observation_space, spaces.Dict):
            sizes = {key: int(np.prod(observation_space[key].shape or ())) for key in observation_keys or ()}
        held = [key for key, size in sizes.items() for _ in range(size)]  # the key of each column
        self._goal_places = [i for i, key in enumerate(held) if key == KEY]
        own = [i for i in range(state_dim) if i not in self._goal_places]
        whole = slice(own[0], own[-1] + 1) if own else slice(0)  # a view, where the goal is last
        self.own_columns: slice | list[int] = whole if len(range(state_dim)[whole]) == len(own) else own
        self.own_dim, self.goal_dim = len(own), settings.goal_dim
        self.achieved = slice(settings.goal_start, settings.goal_start + settings.goal_dim)
        if self.achieved.stop > self.own_dim:
            raise ValueError(
                f"goal_dim ({self.goal_dim}) columns from goal_start ({settings.goal_start}) on are more than the "
                f"{self.own_dim} numbers of an observation without its goal. Name those that a goal stands for."
            )
        if self._goal_places and len(self._goal_places) != self.goal_dim:
            raise ValueError(
                f"The data hold goals of {len(self._goal_places)} numbers, and goal_dim is {self.goal_dim}. Set it to "
                "that, and goal_start to the first column of an observation that a goal stands for."
            )
        if settings.goals == "commanded" and not self._goal_places:
            raise ValueError(
                'These data hold no goals to be commanded. Load them with load_dataset(id, goal="keep"), or train with '
                'goals="hindsight".'
            )
        self.goal: tuple[float, ...] | None = None
        super().__init__(
            observation_space,
            action_space,
            observation_keys=observation_keys,
            state_dim=self.own_dim + self.goal_dim + 1,
            settings=settings,  # type: ignore[call-arg]  # of the policy that this is mixed into
            **kwargs,
        )
        self.input_dim = state_dim

    def _flatten(self, observation: Any) -> tuple[NDArray[np.float32], bool]:
        """Flat states with their goals, [n, S+G+1]: raw, not normalized yet."""
        is_dict = isinstance(observation, dict)
        goal: ArrayLike | None = observation.get(KEY) if is_dict else None
        if self._goal_places and self.goal is not None and (is_dict or np.shape(observation)[-1:] == (self.own_dim,)):
            own_keys = tuple(key for key in self.observation_keys or () if key != KEY)
            own, single = self._vectors(observation, own_keys, self.own_dim)
        else:
            flat, single = super()._flatten(observation)
            own, goal = flat[:, self.own_columns], flat[:, self._goal_places] if self._goal_places else goal
        goal = goal if self.goal is None else self.goal
        goals = np.zeros(self.goal_dim, np.float32) if goal is None else np.asarray(goal, np.float32)
        if goals.shape[-1:] != (self.goal_dim,) or not np.isfinite(goals).all():
            raise ValueError(f"A goal has {self.goal_dim} finite numbers, got {goals}.")
        is_told = np.full((len(own), 1), goal is not None, np.float32)
        return np.concatenate([own, np.broadcast_to(goals, (len(own), self.goal_dim)), is_told], axis=1), single

    def normalize(self, observations: Tensor) -> Tensor:
        """States for the networks, of what `_flatten` returns or of flat observations as the data hold them."""
        x = observations
        if x.shape[-1] != self.state_dim:  # a graph takes observations as they are
            own, is_told = x[..., self.own_columns], torch.ones_like(x[..., :1])
            goals = x[..., self._goal_places] if self._goal_places else torch.zeros_like(own[..., : self.goal_dim])
            if self.goal is not None:
                goals = torch.tensor(self.goal, device=x.device).expand_as(goals)
            elif not self._goal_places:
                is_told = torch.zeros_like(is_told)
            x = torch.cat([own, goals, is_told], dim=-1)
        x = (x - self.observation_mean) / self.observation_std
        return torch.cat([x[..., : self.own_dim], x[..., self.own_dim : -1] * x[..., -1:], x[..., -1:]], dim=-1)

    def without_goal(self, states: Tensor) -> Tensor:
        """The same normalized states without their goals. Shapes [..., S+G+1] -> [..., S+G+1]."""
        return torch.cat([states[..., : self.own_dim], torch.zeros_like(states[..., self.own_dim :])], dim=-1)


class GoalAgent(OfflineAlgorithm):
    """Training with goals, and `set_goal`."""

    policy: GoalPolicy
    settings: Any

    def set_goal(self, goal: ArrayLike | None) -> None:
        """Where to go from the next plan on, in all environments, whatever goal an observation holds.

        Args:
            goal: [G], in the units of the observation; None: the goal is that of the observation
                (`desired_goal`). Where that has none either, the agent acts as the data do.

        It is not saved with the agent. `export` writes it into the graph.
        """
        if goal is not None:
            goal = np.asarray(goal, np.float32)
            if goal.shape != (self.policy.goal_dim,) or not np.isfinite(goal).all():
                raise ValueError(f"A goal has {self.policy.goal_dim} finite numbers, got {goal}.")
            goal = tuple(goal.tolist())
        self.policy.goal = goal

    def _make_policy(self) -> OfflinePolicy:
        policy: Any = super()._make_policy()
        policy.goal = self.policy.goal if hasattr(self, "policy") else None
        return policy

    def _normalize_as(self, dataset: OfflineDataset) -> None:
        policy = self.policy
        mean, std = (moment[policy.own_columns] for moment in moments(dataset.observations))
        policy.observation_mean[:-1] = torch.cat([mean, mean[policy.achieved]])
        policy.observation_std[:-1] = torch.cat([std, std[policy.achieved]]).clamp(min=1e-3)

    def states(self, rows: Tensor) -> Tensor:
        """Normalized observations without goals. Shapes [...], rows of `observation_rows` -> [..., S]."""
        own, policy = self.raw_rows(rows)[..., self.policy.own_columns], self.policy
        return (own - policy.observation_mean[: policy.own_dim]) / policy.observation_std[: policy.own_dim]

    def with_goals(self, starts: Tensor, horizon: int) -> Tensor:
        """States where windows begin, with goals for them; some without. Shapes [B] -> [B, S+G+1]."""
        states, policy = self.states(starts), self.policy
        if self.settings.goals == "commanded":
            part = slice(policy.own_dim, -1)
            goals = self.raw_rows(starts)[:, policy._goal_places]
            goals = (goals - policy.observation_mean[part]) / policy.observation_std[part]
        else:
            uniform = torch.rand(len(starts), generator=self.generator, device=self.device)
            rows = self.data.future_rows(starts, horizon, uniform, self.settings.goal_steps)
            goals = self.states(rows)[:, policy.achieved]
        kept = torch.rand(len(starts), 1, generator=self.generator, device=self.device) >= self.settings.goal_dropout
        return torch.cat([states, goals * kept, kept.float()], dim=1)

    def with_one_goal(self, starts: Tensor, horizon: int) -> Tensor:
        """Of the starts of windows those through which a commanded goal stays the same. Shapes [W] -> [V]."""
        if self.settings.goals == "hindsight":
            return starts
        goals = self.data.observations[:, self.policy._goal_places]
        changes = torch.cat([goals.new_zeros(1), (goals[1:] != goals[:-1]).any(1)]).cumsum(0)
        last = starts.long() + self.data.window_steps(starts, horizon) - 1
        kept = starts[changes[starts.long()] == changes[last]]
        if not len(kept):
            raise ValueError(f"No goal of the data stays the same for {horizon} steps. Use goals='hindsight'.")
        return kept
