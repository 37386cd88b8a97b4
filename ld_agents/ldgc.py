"""LDGC: the goal-conditioned variant of LDCQ (Venkatraman et al., ICLR 2024, arXiv 2309.06599).

The VAE is LDCQ's and knows nothing of goals. The diffusion prior learns which latents lead from a state to a goal,
p(z | s, g), and for a share of its batch, whose goals are dropped, which latents there are, p(z | s). To act: draw one
latent with classifier-free guidance (Ho and Salimans, arXiv 2207.12598), decode it for some steps, draw again. There
are no rewards and no Q-learning.

| here                            | paper, Ho and Salimans                   | shape      |
| ------------------------------- | ---------------------------------------- | ---------- |
| `conditions(starts)`            | s_t, g, and whether g is given           | [B, S+G+1] |
| `denoiser(z, j, conditions)`    | x0 prediction of p_psi(z | s, g)         | [B, Z]     |
| `denoise_at` in `LDGCPolicy`    | z(s) + scale (z(s, g) - z(s))            |            |
| `guidance_scale`                | 1 + w                                    |            |

Mixing predictions of x0 is the same as mixing predictions of noise: both are linear in each other.

How sure this is: the paper's text was not at hand. That the prior alone sees the goal, that it is dropped for a tenth
of the batch, and that guidance acts at test time is from memory; the released code (commit 7ec96f3) differs in all
three. Differences, with the switch where there is one:

1. Goals: the code appends the goal that the data command to the state of every network, also while it changes within a
   window. Here only the prior sees it, and a window counts if its goal stays the same (`goals="commanded"`).
2. Hindsight: ours, and the default, because it needs no goals in the data. A goal is the position at a step drawn
   evenly from t+H to the end of the episode, or at most `goal_steps` ahead (`goals="hindsight"`).
3. Guidance: the code's flags have no effect on its default network, which ignores the mask. Here `guidance_scale=0`
   acts as the data do, 1 draws from p(z | s, g), and more sharpens it.
4. Planning: the code can also roll K latents out with the VAE's state decoder and take the one that ends nearest to the
   goal as the crow flies, which in a maze leads into walls. Here one latent is drawn, as the code does with a goal.
5. `deterministic=True` draws that latent with noise that repeats with the observation, and decodes mean actions.
6. Without a goal (`set_goal`) the agent acts as the data do: it draws from p(z | s).

Points 1 to 5, 7 and 10 of LDCQ's differences (`ldcq.py`) hold here as well.
"""

from typing import Any, ClassVar

from torch import Tensor

from ld_agents.common.goals import GoalAgent, GoalPolicy
from ld_agents.common.offline_algorithm import Stage
from ld_agents.common.planning_policy import Noise
from ld_agents.latent_prior import LatentPriorPolicy, LatentPriorTraining
from ld_agents.ldgc_settings import FAMILY, PRESETS, LDGCSettings
from ld_agents.networks.denoisers import Denoise


class LDGCPolicy(GoalPolicy, LatentPriorPolicy):
    """Draws one latent that leads to the goal and decodes it for some steps."""

    settings: LDGCSettings

    @property
    def vae_state_dim(self) -> int:
        return self.own_dim

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return 1, self.settings.latent_dim

    def plan_from(self, states: Tensor, noise: Noise) -> Tensor:
        """Shapes [n, S+G+1], [n, 1, Z] of each sampler step -> [n, Z]."""
        return self.draw_latents(states, noise)[:, 0]

    def denoise_at(self, states: Tensor) -> Denoise:
        """The guided denoiser: from the prediction without the goal towards, and beyond, the one with it."""
        scale, to_goal = self.settings.guidance_scale, super().denoise_at(states)
        if scale == 1:
            return to_goal
        anywhere = super().denoise_at(self.without_goal(states))
        return lambda z, k: anywhere(z, k).lerp(to_goal(z, k), scale)


class LDGC(GoalAgent, LatentPriorTraining):
    """Latent diffusion with goals: two stages of gradient steps (`vae`, `prior`), no rewards.

    Example:
        data = load_dataset("ld-agents/pointmaze/large-v0", goal="keep", eval_goals="cells")
        agent = LDGC("MultiInputPolicy", data, seed=0).learn()
        agent.evaluate()                        # a new goal in every episode, from its observation
        agent.set_goal([2.5, 1.0])              # or one for all
        action, state = agent.predict(observation, deterministic=True)

    See `OfflineAlgorithm` for the arguments, `LDGCSettings` for the settings and `set_goal` for goals.
    """

    policy: LDGCPolicy
    settings: LDGCSettings
    policy_aliases: ClassVar = {"MlpPolicy": LDGCPolicy, "MultiInputPolicy": LDGCPolicy}

    @classmethod
    def presets(cls) -> dict[str, LDGCSettings]:
        return PRESETS

    @classmethod
    def family_settings(cls, preset: str = "fast") -> dict[str, dict[str, Any]]:
        return FAMILY if preset == "fast" else {}

    def stages(self) -> list[Stage]:
        s = self.settings
        return [Stage("vae", s.vae_steps, self.train_vae), Stage("prior", s.prior_steps, self.train_prior)]

    def prior_starts(self) -> Tensor:
        return self.with_one_goal(self._window_starts(), self.settings.horizon)

    def conditions(self, starts: Tensor) -> Tensor:
        """States where windows begin with goals behind their ends; some without. Shapes [B] -> [B, S+G+1]."""
        return self.with_goals(starts, self.settings.horizon)
