"""Reference scores with their sources and known defects, normalisation, and the two protocols of the mazes.

The environment's return counts every step at the goal, so an agent has to stay there. The first-contact return credits
all steps from the first one at the goal on, whatever the agent does afterwards. Both come from the same rollouts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ReferenceScore:
    """The returns that count as 0 and as 100 points, where they come from, and what is known to be wrong with them."""

    minimum: float
    maximum: float
    source: str
    known_defects: tuple[str, ...] = ()


_D4RL = "D4RL, d4rl/infos.py: REF_MIN_SCORE (random actions) and REF_MAX_SCORE (way-point controller)"
_MAZE2D_DEFECTS = (
    "D4RL places start and goal 0.2 off the centres of the cells that its controller steers to, so its controller is "
    "slow and scores well above 100 are possible",
)
_POINTMAZE_DEFECTS = (
    *_MAZE2D_DEFECTS,
    "the constants were measured in D4RL's own maze; gymnasium-robotics pays within 0.45 of the goal, D4RL within 0.5",
)
_MAZE2D = {"umaze": (23.85, 161.86), "medium": (13.13, 277.39), "large": (6.7, 273.99)}

REFERENCE_SCORES: dict[str, ReferenceScore] = {
    **{f"maze2d-{maze}-v1": ReferenceScore(*ends, _D4RL, _MAZE2D_DEFECTS) for maze, ends in _MAZE2D.items()},
    **{
        f"ld-agents/pointmaze/{maze}-v0": ReferenceScore(*ends, _D4RL, _POINTMAZE_DEFECTS)
        for maze, ends in _MAZE2D.items()
    },
    "ld-agents/pointmaze/umaze-10k-v0": ReferenceScore(*_MAZE2D["umaze"], _D4RL, _POINTMAZE_DEFECTS),
}
"""Reference scores by data set id."""


_FAMILIES = {
    "antmaze": r"ant-?maze",
    "maze2d": r"maze2d|pointmaze",
    "kitchen": r"kitchen",
    "adroit": r"\b(pen|hammer|door|relocate)\b",
    "locomotion": r"\b(halfcheetah|hopper|walker2d|ant)\b",
}


def family(dataset_id: str) -> str | None:
    """The benchmark family of a data set, read from its name: "maze2d", "antmaze", "locomotion", "adroit", "kitchen".

    Args:
        dataset_id: of Minari, or the path of a D4RL file. None for a name of no known family.
    """
    name = dataset_id.lower().replace("_", "-")
    return next((family for family, pattern in _FAMILIES.items() if re.search(pattern, name)), None)


def normalise(returns: ArrayLike, dataset_id: str) -> NDArray[np.float64]:
    """D4RL scores: 0 for a return of the data set's reference minimum, 100 for its maximum; the shape of `returns`.

    Raises:
        KeyError: when no reference scores are known for `dataset_id`.
    """
    if dataset_id not in REFERENCE_SCORES:
        raise KeyError(
            f"no reference scores for {dataset_id!r}; known: {', '.join(sorted(REFERENCE_SCORES))}. Report raw "
            "returns, or add the minimum and maximum with their source to REFERENCE_SCORES in ld_agents/scores.py"
        )
    reference = REFERENCE_SCORES[dataset_id]
    span = reference.maximum - reference.minimum
    return 100 * (np.asarray(returns, dtype=np.float64) - reference.minimum) / span


def first_contact_return(first_contact: Sequence[int | None] | NDArray[Any], episode_steps: int) -> NDArray[np.float64]:
    """Returns [E] of agents that would stay at the goal from their first contact on.

    Args:
        first_contact: E 1-based steps of the first positive reward; None where there was none.
        episode_steps: length of a full episode in steps.

    Returns:
        `episode_steps - k + 1` for a first contact at step k, 0 without contact.
    """
    return np.array([0.0 if k is None else episode_steps - int(k) + 1.0 for k in first_contact])
