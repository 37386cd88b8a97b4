"""ReBRAC: TD3+BC with what later work found to matter (Tarasov et al., NeurIPS 2023, arXiv 2305.09836).

On top of TD3+BC (`td3_bc.py`):

1. The squared distance to the data's actions, summed over action dimensions, is a penalty with a weight of its own in
   the actor's loss (beta_1: `actor_penalty`) and in the critics' targets (beta_2: `critic_penalty`). There it is the
   distance of the target actor's action at s' to a', the action that the data take next.
2. LayerNorm in the critics, three hidden layers, and EDAC's first weights.
3. The actor maximizes the smaller of both critics.
4. Observations as they are; for locomotion larger batches, for AntMaze a discount of 0.999 and 100 times the reward.

Differences from the authors' code, which CORL's `rebrac.py` repeats:

1. After a terminal there is no a'. The code takes the first action of the next episode there, and here a' is zero; the
   bootstrap mask cancels either. Steps that end in a timeout have no a' and are left out, as in the code.
2. The code's target actor follows the actor of before the actor's step, ours that of after it, as in TD3.
3. The code steps the actor at the first of every two gradient steps, we at the second, as TD3+BC does.
"""

import dataclasses
from typing import Any, ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ld_agents.baselines.td3_bc import TD3BC, TD3BCPolicy, TD3BCSettings
from ld_agents.common.settings import STRICT, NonNegative, Widths, documented


class ReBRACPolicy(TD3BCPolicy):
    """TD3+BC's networks with EDAC's first weights."""

    def __init__(self, *spaces: Any, **kwargs: Any) -> None:
        super().__init__(*spaces, **kwargs)
        _initialize(self.actor.net, 1e-3)
        for critic in self.critics:
            _initialize(critic.net, 3e-3)  # type: ignore[arg-type]
        self.restart_targets()


def _initialize(net: nn.Sequential, last: float) -> None:
    """Hidden biases of 0.1, and a last layer within +- `last`. Torch draws the hidden weights as EDAC does."""
    *hidden, output_layer = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in hidden:
        nn.init.constant_(layer.bias, 0.1)
    nn.init.uniform_(output_layer.weight, -last, last)
    nn.init.uniform_(output_layer.bias, -last, last)


class ReBRAC(TD3BC):
    """ReBRAC, one stage (`train`). See `OfflineAlgorithm` for arguments, `ReBRACSettings` for settings.

    The paper tunes both penalties for every dataset; those values are in `PENALTIES`.
    """

    policy: ReBRACPolicy
    settings: "ReBRACSettings"
    policy_aliases: ClassVar = {"MlpPolicy": ReBRACPolicy, "MultiInputPolicy": ReBRACPolicy}
    needs_next_actions: ClassVar[bool] = True

    @classmethod
    def presets(cls) -> dict[str, Any]:
        return PRESETS

    @classmethod
    def family_settings(cls, preset: str = "fast") -> dict[str, dict[str, Any]]:
        return FAMILY

    @torch.no_grad()
    def targets(self, batch: tuple[Tensor, ...]) -> Tensor:
        """y = r + gamma (min(Q'_1, Q'_2)(s', a~') - beta_2 |a~' - a'|^2), r alone after a terminal. Shape [B]."""
        _, _, rewards, masks, next_observations, next_actions = batch
        chosen = self.target_actions(next_observations)
        penalties = (chosen - next_actions).square().sum(-1)
        values = self.target_values(next_observations, chosen) - self.settings.critic_penalty * penalties
        return rewards + self.settings.discount * masks * values

    def actor_loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean of beta_1 |pi(s) - a|^2 - lambda min(Q_1, Q_2)(s, pi(s)), lambda = alpha / mean |min| held constant."""
        observations, actions = batch[:2]
        chosen = self.policy.actor(observations)
        q = torch.minimum(*(critic(observations, chosen) for critic in self.policy.critics))
        penalty = (chosen - actions).square().sum(-1).mean()
        return self.settings.actor_penalty * penalty - self.settings.alpha / q.detach().abs().mean() * q.mean()


@documented
@dataclass(frozen=True, config=STRICT)
class ReBRACSettings(TD3BCSettings):
    """Settings of ReBRAC, from CORL's configurations of `rebrac`. Defaults are those for Maze2D."""

    alpha: NonNegative = 1.0  # fixed: the penalty has a weight of its own
    actor_penalty: NonNegative = 0.003  # beta_1
    critic_penalty: NonNegative = 0.001  # beta_2
    hidden: Widths = (256, 256, 256)  # of actor and critics
    critic_layer_norm: bool = True  # in the critics' layers
    normalize_observations: bool = False  # by mean and deviation of the data


PAPER = ReBRACSettings()
FAST = dataclasses.replace(PAPER, steps=20_000)  # four minutes on one core
PRESETS = {"fast": FAST, "paper": PAPER}

_LOCOMOTION = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "batch_size": 1024}
_ANTMAZE = {"critic_learning_rate": 5e-5, "discount": 0.999, "reward_scale": 100.0}

# CORL's configurations of `rebrac`. Where only the penalties differ within a family, each is the most frequent one (for
# AntMaze the middle one); what the paper uses is in PENALTIES.
FAMILY: dict[str, dict[str, Any]] = {
    "maze2d": {},
    "antmaze": _ANTMAZE | {"actor_penalty": 0.002, "critic_penalty": 0.001},
    "locomotion": _LOCOMOTION | {"actor_penalty": 0.01, "critic_penalty": 0.01},
    "adroit": {"actor_penalty": 0.1, "critic_penalty": 0.01},
}

# The penalties that the paper tuned for each dataset, from the same configurations:
# ReBRAC("MlpPolicy", "mujoco/hopper/medium-v0", **PENALTIES["hopper-medium"])
PENALTIES: dict[str, dict[str, float]] = {
    name: {"actor_penalty": actor, "critic_penalty": critic}
    for name, (actor, critic) in {
        "maze2d-umaze": (0.003, 0.001),
        "maze2d-medium": (0.003, 0.001),
        "maze2d-large": (0.003, 0.001),
        "antmaze-umaze": (0.003, 0.002),
        "antmaze-umaze-diverse": (0.003, 0.001),
        "antmaze-medium-play": (0.001, 0.0005),
        "antmaze-medium-diverse": (0.001, 0.0),
        "antmaze-large-play": (0.002, 0.001),
        "antmaze-large-diverse": (0.002, 0.002),
        "halfcheetah-random": (0.001, 0.1),
        "halfcheetah-medium": (0.001, 0.01),
        "halfcheetah-expert": (0.01, 0.01),
        "halfcheetah-medium-expert": (0.01, 0.1),
        "halfcheetah-medium-replay": (0.01, 0.001),
        "halfcheetah-full-replay": (0.001, 0.1),
        "hopper-random": (0.001, 0.01),
        "hopper-medium": (0.01, 0.01),
        "hopper-expert": (0.1, 0.1),
        "hopper-medium-expert": (0.1, 0.01),
        "hopper-medium-replay": (0.05, 0.5),
        "hopper-full-replay": (0.01, 0.01),
        "walker2d-random": (0.01, 0.0),
        "walker2d-medium": (0.05, 0.1),
        "walker2d-expert": (0.01, 0.5),
        "walker2d-medium-expert": (0.01, 0.01),
        "walker2d-medium-replay": (0.05, 0.01),
        "walker2d-full-replay": (0.01, 0.01),
        "pen-human": (0.1, 0.5),
        "pen-cloned": (0.05, 0.5),
        "pen-expert": (0.01, 0.01),
        "door-human": (0.1, 0.1),
        "door-cloned": (0.01, 0.1),
        "door-expert": (0.05, 0.01),
        "hammer-human": (0.01, 0.5),
        "hammer-cloned": (0.1, 0.5),
        "hammer-expert": (0.01, 0.01),
        "relocate-human": (0.1, 0.01),
        "relocate-cloned": (0.1, 0.01),
        "relocate-expert": (0.05, 0.01),
    }.items()
}
