"""Settings of LDGC: the paper's, the fast preset, what differs between families."""

import dataclasses
from typing import Any

from pydantic.dataclasses import dataclass

from ld_agents import ldcq_settings
from ld_agents.common.goals import GoalSettings
from ld_agents.common.settings import STRICT, Real, documented
from ld_agents.latent_prior_settings import LatentPriorSettings


@documented
@dataclass(frozen=True, config=STRICT)
class LDGCSettings(GoalSettings, LatentPriorSettings):
    """Settings of LDGC. Defaults: as LDCQ's; those of goals are of the paper where it says."""

    guidance_scale: Real = 2.0  # 0: without the goal; 1: p(z | s, g); more: guided, 1 + w of Ho and Salimans


def _shared(settings: Any) -> dict[str, Any]:
    """What LDCQ's settings say about VAE and prior."""
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(LatentPriorSettings)}


PAPER = LDGCSettings()
# No critic chooses among the draws: one that starts from wider noise is just a worse one.
FAST = LDGCSettings(**_shared(ldcq_settings.FAST) | {"noise_scale": 1.0})
PRESETS = {"fast": FAST, "paper": PAPER}

_OF_ANTMAZE = ("normalize_observations", "vae_hidden", "vae_steps", "prior_steps", "sample_actions", "exec_horizon")

# What differs between families of datasets in the fast preset.
FAMILY: dict[str, dict[str, Any]] = {
    "maze2d": {"vae_steps": 2_500, "prior_steps": 3_000, "guidance_scale": 3.0, "exec_horizon": 5},
    "antmaze": {name: ldcq_settings.FAMILY["antmaze"][name] for name in _OF_ANTMAZE},
}
