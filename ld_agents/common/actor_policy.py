"""How agents act that do not plan: a network's output is the action, or the mean of its distribution."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ld_agents.common.keyed_noise import keyed_normal
from ld_agents.common.offline_policy import OfflinePolicy, State


class ActorPolicy(OfflinePolicy):
    """A policy without plans. Subclasses implement `action`."""

    stochastic: ClassVar[bool] = False  # whether `deterministic=False` adds noise

    @abstractmethod
    def action(self, states: Tensor, noise: Tensor | None) -> Tensor:
        """Actions in [-1, 1] as a function of tensors alone. Shapes [n, S], standard normal [n, A] -> [n, A].

        Without noise, those of `deterministic=True`.
        """

    def act(
        self, states: Tensor, keys: Tensor, state: State | None, episode_start: NDArray[np.bool_], deterministic: bool
    ) -> tuple[Tensor, State | None]:
        if not self.stochastic:
            return self.action(states, None), None
        return self.action(states, None if deterministic else keyed_normal(keys, (self.action_dim,))), ()
