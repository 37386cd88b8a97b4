"""Where a dataset comes from and how to evaluate on it."""

from dataclasses import dataclass
from typing import Any, Literal

from ld_agents.evaluation.eval_env import EvalEnvSpec

Provenance = Literal["hub", "d4rl-file", "regenerated", "stand-in", "recorded", "arrays"]


@dataclass(frozen=True)
class DatasetInfo:
    """Where a dataset comes from and how to evaluate on it.

    Attributes:
        id: name of the dataset.
        provenance: how the data were made: from the hub, from a D4RL file, regenerated with the original recipe,
            a labeled stand-in, recorded from an agent of the user's own, or arrays.
        description: one paragraph in plain words.
        eval_env: the evaluation environment, an `EvalEnvSpec`; None if there is none.
        reference_scores: (minimum, maximum) return for D4RL's normalization.
        replay_check: result of replaying stored actions in the evaluation simulator.
        controller: measured returns of reference policies.
        mujoco: version of MuJoCo that the data were recorded on, if it is known.
    """

    id: str = "user arrays"
    provenance: Provenance = "arrays"
    description: str = ""
    eval_env: EvalEnvSpec | None = None
    reference_scores: tuple[float, float] | None = None
    replay_check: dict[str, Any] | None = None
    controller: dict[str, Any] | None = None
    mujoco: str | None = None
