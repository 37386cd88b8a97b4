"""Reference scores with their sources and known defects, normalization, and the two protocols of the mazes.

The environment's return counts every step at the goal, so an agent has to stay there. The first-contact return credits
all steps from the first one at the goal on, whatever the agent does afterwards. Both come from the same rollouts.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ld_agents.evaluation.disturbances import DISTURBED


@dataclass(frozen=True)
class ReferenceScore:
    """The returns that count as 0 and as 100 points, where they come from, and what is known to be wrong with them."""

    minimum: float
    maximum: float
    source: str
    known_defects: tuple[str, ...] = ()


# D4RL, d4rl/infos.py: REF_MIN_SCORE (random actions) and REF_MAX_SCORE. All datasets of a task share them.
_TASK_SCORES: dict[str, tuple[float, float]] = {
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
    **{f"antmaze-{maze}": (0.0, 1.0) for maze in ("umaze", "medium", "large")},
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
    **{f"kitchen-{name}": (0.0, 4.0) for name in ("complete", "partial", "mixed")},
    "carla-lane": (-0.8503839912088142, 1023.5784385429523),
}
# For each family: what earns 100 points, what is wrong with D4RL's numbers, what today's simulators do differently.
_FAMILY_NOTES: dict[str, tuple[str, str, str]] = {
    "maze2d": (
        "way-point controller",
        "D4RL places start and goal 0.2 off the centers of the cells that its controller steers to, so its controller "
        "is slow and scores well above 100 are possible",
        "measured in D4RL's own maze, which pays within 0.5 of the goal and starts in all cells; gymnasium-robotics "
        "pays within 0.45 and never starts in the goal's cell",
    ),
    "antmaze": (
        "success in every episode",
        "one pair of numbers for -v0 and -v2, although D4RL deprecates -v0, whose episodes end wrongly",
        "measured in D4RL's own maze, which draws the goal of every episode within a cell; Minari's data are evaluated "
        "in gymnasium-robotics' AntMaze, with one goal, a radius of 0.45 m and another ant, which starts up to 1 m "
        "away but always in one pose at rest ([start_noise=0.1] gives it D4RL's noise)",
    ),
    "locomotion": (
        "a policy trained with SAC",
        "one pair of numbers for -v0, -v1 and -v2, although their data differ",
        "measured on -v2; -v5 pays Hopper and Walker2d nothing for unhealthy steps and changes Walker2d's friction",
    ),
    "adroit": (
        "the DAPG policy with noise",
        "without its noise the same policy scores above 100",
        "AdroitHand*-v1 pays hammer, door and relocate for distance from the object and never ends pen; "
        "ld_agents/Adroit*-v0 follows D4RL",
    ),
    "kitchen": (
        "all four tasks",
        "in D4RL's data, unlike in its evaluation, a task pays in every step in which it is done",
        "FrankaKitchen-v1 observes velocities of the objects where D4RL has the goal",
    ),
    "carla": (
        "the controller that recorded the data",
        "measured in a simulator that is not here, with other traffic in every episode",
        "",
    ),
}

_MAZES = ("umaze", "medium", "large")
_ANTMAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
_ROBOTS = ("halfcheetah", "hopper", "walker2d", "ant")
_HANDS = ("pen", "hammer", "door", "relocate")
_DEMONSTRATIONS = ("human", "cloned", "expert")
_KITCHENS = ("complete", "partial", "mixed")

D4RL_TASKS: dict[str, str] = {
    **{f"maze2d-{maze}{dense}-v1": f"maze2d-{maze}{dense}" for maze in _MAZES for dense in ("", "-dense")},
    **{f"antmaze-{name}-{v}": f"antmaze-{name.split('-')[0]}" for name in _ANTMAZES for v in ("v0", "v2")},
    **{
        f"{robot}-{level}-{v}": robot
        for robot in _ROBOTS
        for level in ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
        for v in ("v0", "v1", "v2")
        if (level, v) != ("full-replay", "v0")
    },
    **{f"{hand}-{level}-{v}": hand for hand in _HANDS for level in _DEMONSTRATIONS for v in ("v0", "v1")},
    **{f"kitchen-{name}-v0": f"kitchen-{name}" for name in _KITCHENS},
    "carla-lane-v0": "carla-lane",
}
"""D4RL's task, for instance "hopper" or "antmaze-umaze", of each of D4RL's datasets."""

TASKS: dict[str, str] = {
    **D4RL_TASKS,
    **{f"D4RL/pointmaze/{maze}{dense}-v2": f"maze2d-{maze}{dense}" for maze in _MAZES for dense in ("", "-dense")},
    **{f"D4RL/antmaze/{name}-v1": f"antmaze-{name.split('-')[0]}" for name in _ANTMAZES},
    **{f"mujoco/{robot}/{level}-v0": robot for robot in _ROBOTS for level in ("simple", "medium", "expert")},
    **{f"D4RL/{hand}/{level}-v2": hand for hand in _HANDS for level in _DEMONSTRATIONS},
    **{f"D4RL/kitchen/{name}-v2": f"kitchen-{name}" for name in _KITCHENS},
    **{f"ld-agents/pointmaze/{maze}-v0": f"maze2d-{maze}" for maze in _MAZES},
    **{f"ld-agents/pointmaze/umaze-{steps}-v0": "maze2d-umaze" for steps in ("10k", "100k")},
    **{f"ld-agents/pointmaze/large-{steps}-v0": "maze2d-large" for steps in ("100k", "300k")},
    **{f"ld-agents/pointmaze/{name}-v0": "maze2d-large" for name in DISTURBED},
    **{f"ld-agents/antmaze/{name}-{v}": f"antmaze-{name.split('-')[0]}" for name in _ANTMAZES for v in ("v0", "v1")},
    **{f"ld-agents/locomotion/{robot}-expert-v0": robot for robot in _ROBOTS},
    **{
        f"ld-agents/locomotion/{robot}-{level}-{v}": robot
        for robot in _ROBOTS
        for level in ("medium", "medium-replay", "medium-expert")
        for v in ("v0", "v1", "noised-v0")
    },
    **{f"ld-agents/adroit/{hand}-{level}-v0": hand for hand in _HANDS for level in _DEMONSTRATIONS},
    **{f"ld-agents/kitchen/{name}-v0": f"kitchen-{name}" for name in _KITCHENS},
    "ld-agents/carracing/driver-v0": "carracing",
}
"""The same for the datasets of D4RL, of Minari's hub, and those that ld_agents makes."""

_FAMILIES = {
    "antmaze": r"ant-?maze",
    "maze2d": r"maze2d|pointmaze",
    "kitchen": r"kitchen",
    "adroit": r"\b(pen|hammer|door|relocate)\b",
    "carla": r"\bcarla\b",
    "carracing": r"car-?racing",
    "locomotion": r"\b(halfcheetah|hopper|walker2d|walker|ant)\b",
}

FAMILIES = tuple(_FAMILIES)
# Names of files on D4RL's server, where they are not the names of the datasets.
_SERVER_NAMES: dict[str, str] = {
    **{f"maze2d-{maze}-sparse-v1": f"maze2d-{maze}-v1" for maze in _MAZES},
    **{
        f"ant-maze-{maze}-maze-noisy-multistart-{starts}-multigoal-{goals}-sparse{fixed}": f"antmaze-{name}-{v}"
        for maze, starts, goals, name in (
            ("u", "false", "false", "umaze"),
            ("u", "true", "true", "umaze-diverse"),
            ("big", "true", "false", "medium-play"),
            ("big", "true", "true", "medium-diverse"),
            ("hardest", "true", "false", "large-play"),
            ("hardest", "true", "true", "large-diverse"),
        )
        for fixed, v in (("", "v0"), ("-fixed", "v2"))
    },
    **{f"{robot}-{level}": f"{robot}-{level}-v0" for robot in _ROBOTS for level in ("random", "medium", "expert")},
    **{f"{robot}-medium-expert": f"{robot}-medium-expert-v0" for robot in _ROBOTS},
    **{f"{robot}-mixed": f"{robot}-medium-replay-v0" for robot in _ROBOTS},
    "walker-mixed": "walker2d-medium-replay-v0",
    **{f"{hand}-v0-demos-clipped": f"{hand}-human-v0" for hand in _HANDS},
    **{f"{hand}-demos-v0-bc-combined": f"{hand}-cloned-v0" for hand in _HANDS},
    **{f"{hand}-v0-expert-clipped": f"{hand}-expert-v0" for hand in _HANDS},
    "carla-lane-follow-flat-v0": "carla-lane-v0",
    "mini-kitchen-microwave-kettle-light-slider-v0": "kitchen-complete-v0",
    "kitchen-microwave-kettle-light-slider-v0": "kitchen-partial-v0",
    "kitchen-microwave-kettle-bottomburner-light-v0": "kitchen-mixed-v0",
}


@functools.lru_cache(maxsize=1024)
def family(dataset_id: str) -> str | None:
    """The benchmark family of a dataset, read from its name: "maze2d", "antmaze", "locomotion", "adroit",
    "kitchen", "carla", "carracing".

    Args:
        dataset_id: of Minari, or the path of a D4RL file, of which only the file's name counts. None for a name of no
            known family.
    """
    name = PurePath(dataset_id).stem if dataset_id.endswith((".hdf5", ".h5")) else dataset_id
    name = name.lower().replace("_", "-")
    return next((family for family, pattern in _FAMILIES.items() if re.search(pattern, name)), None)


def d4rl_name(file: str | PurePath) -> str | None:
    """D4RL's name of the dataset in a file, such as "hopper-medium-v2", from the file's name; None if it is not known.

    Understands D4RL's dataset ids and the names that the files have on D4RL's server.
    """
    stem = PurePath(file).stem.lower().replace("_", "-")
    name = _SERVER_NAMES.get(stem, stem)
    return name if name in D4RL_TASKS else None


def _reference_score(dataset_id: str, task: str) -> ReferenceScore:
    reached, d4rl_defect, later = _FAMILY_NOTES[family(task) or ""]
    source = f"D4RL, d4rl/infos.py, task {task}: 0 for random actions, 100 for {reached}"
    # D4RL's own simulators: Gymnasium's -v4 of its robots, and this package's AntMaze and Adroit.
    like_d4rl = family(task) in ("antmaze", "locomotion", "adroit", "carla")
    as_d4rl = like_d4rl and (dataset_id in D4RL_TASKS or dataset_id.startswith("ld-agents/"))
    defects = (d4rl_defect,) if as_d4rl else (d4rl_defect, later)
    return ReferenceScore(*_TASK_SCORES[task], source, defects)


REFERENCE_SCORES: dict[str, ReferenceScore] = {
    name: _reference_score(name, task) for name, task in TASKS.items() if task in _TASK_SCORES
}
"""Reference scores by dataset id. CarRacing, which is not of D4RL, has none: its returns are told as they are."""


@dataclass(frozen=True)
class MeasuredScore:
    """What a policy returns in today's evaluation environment of a task.

    `success`: share of successful episodes, None where the environment reports no success flag. `versions`: of the
    packages that it was measured with, by their names.
    """

    mean_return: float
    std_return: float
    success: float | None
    episodes: int
    environment: str
    versions: Mapping[str, str]


MEASURED_FILE = Path(__file__).with_name("measured_scores.json")
_MEASURED_KEYS = ("mean_return", "std_return", "success_rate", "episodes", "environment", "versions")

MEASURED_SCORES: dict[str, dict[str, MeasuredScore]] = {
    task: {name: MeasuredScore(*(found[key] for key in _MEASURED_KEYS)) for name, found in policies.items()}
    for task, policies in json.loads(MEASURED_FILE.read_text(encoding="utf-8")).items()
}
"""Local reference scores, by task and by policy: "random" (uniform actions) and the policy that records the best data
of the task, "expert", "controller" or "driver". Measured by `make_datasets.py --reference-scores`; the mazes of maze2d
carry theirs with the data (`DatasetInfo.controller`)."""


def why_not_normalised(
    dataset_id: str, replay_check: Mapping[str, Any] | None, reference_scores: Sequence[float] | None
) -> str | None:
    """Why returns on a dataset may not be turned into D4RL scores; None if they may.

    D4RL's scale is for simulators in which stored actions from stored states lead to the stored states and rewards.

    Args:
        dataset_id: id of the dataset.
        replay_check: result that is stored with the data, ``{"passed": bool, ...}``.
        reference_scores: (minimum, maximum) that are stored with the data.
    """
    if not replay_check:
        return "no replay check is stored with the data"
    if replay_check.get("passed") is not True:
        return "the simulator failed the replay check: stored actions do not lead to the stored states and rewards"
    if reference_scores is None and (dataset_id.startswith("ld-agents/") or dataset_id not in REFERENCE_SCORES):
        return "no reference scores are known for its rewards"
    return None


def normalise(
    returns: ArrayLike, dataset_id: str, replay_check: Mapping[str, Any] | None = None
) -> NDArray[np.float64]:
    """D4RL scores: 0 for a return of the dataset's reference minimum, 100 for its maximum; the shape of `returns`.

    Args:
        returns: undiscounted returns.
        dataset_id: of D4RL, Minari or ld_agents.
        replay_check: `dataset.info.replay_check`; needed for the datasets that ld_agents makes.

    Raises:
        KeyError: when no reference scores are known for `dataset_id`.
        ValueError: the replay check was not passed, or a dataset made by ld_agents has none.
    """
    if dataset_id not in REFERENCE_SCORES:
        raise KeyError(
            f"no reference scores for {dataset_id!r}; known: {', '.join(sorted(REFERENCE_SCORES))}. Report raw "
            "returns, or add the dataset and its task to ld_agents/evaluation/scores.py"
        )
    passed = replay_check is not None and replay_check.get("passed") is True
    if not passed and (replay_check is not None or dataset_id.startswith("ld-agents/")):
        raise ValueError(
            f"{dataset_id} has no passed replay check, so D4RL's scale does not apply. Report raw returns, or pass the "
            "check of the dataset: replay_check=dataset.info.replay_check"
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
