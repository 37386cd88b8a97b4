"""The recipes of the data sets that are made on this machine; `make_datasets.py` follows them.

What D4RL did is repeated where its behaviour policy or its demonstrations are at hand ("regenerated"). Elsewhere
something else stands in, which the recipe says ("stand-in").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym

from ld_agents.evaluation import environments
from recording.behaviours import AntNavigator, Behaviour, DapgPolicy, LocomotionActor
from recording.kitchen_script import KitchenScript
from recording.recorder import Demonstrations

MILLION = 1_000_000


@dataclass(frozen=True)
class Copy:
    """A part of a data set that repeats the episodes of another local set."""

    dataset_id: str


@dataclass(frozen=True)
class Clone:
    """A part of a data set that is recorded from behaviour cloning of another local set."""

    dataset_id: str


@dataclass(frozen=True)
class Recipe:
    """How a data set is made.

    `env_id`: the evaluation environment; made with `env_kwargs`, names and values, it is that of the recording.
    `parts` follow each other and share `steps`, the default size, equally; None: the parts with all that they hold.
    `original_steps`: size of D4RL's set. `demonstrations`: what they are where the set holds any.
    """

    env_id: str
    provenance: Literal["regenerated", "stand-in", "recorded"]
    description: str
    parts: Sequence[Behaviour | Copy | Clone | Demonstrations]
    steps: int | None = 200_000
    env_kwargs: tuple[tuple[str, Any], ...] = ()
    past_terminals: bool = False
    demonstrations: Literal["real", "scripted"] | None = None
    original_steps: int | None = None


def episode_steps(env_id: str) -> int:
    """Step limit of an environment of this project."""
    environments.register()
    steps = gym.registry[env_id].max_episode_steps
    assert steps is not None
    return steps


def recipes(policies: Path = Path()) -> dict[str, Recipe]:
    """All recipes by the ids of their data sets; `policies` is the folder with the behaviour policies."""
    return {
        **_antmaze(policies / "antmaze"),
        **_locomotion(policies / "locomotion"),
        **_adroit(policies / "adroit"),
        **_kitchen(policies / "kitchen"),
    }


def reference_policies(policies: Path) -> dict[str, tuple[str, str, Behaviour]]:
    """By D4RL's task: the evaluation environment, and name and behaviour of the policy whose data are the task's best.

    `reference_policies.py` measures what these policies return, beside uniformly random actions.
    """
    ant, hands, robots = policies / "antmaze" / _ANT_FILE, policies / "adroit", _experts(policies / "locomotion")
    return {
        **{
            f"antmaze-{maze}": (f"ld_agents/AntMaze-{maze}-v0", "controller", AntNavigator(8, 0.2, ant, maze))
            for maze in _MAZES
        },
        **{robot: (_ROBOTS[robot], "expert", expert) for robot, expert in robots.items()},
        **{task: (_adroit_env(task), "expert", _dapg(hands, task)) for task in _ADROIT_ACTIONS},
        **{
            f"kitchen-{name}": (
                f"ld_agents/Kitchen-{name}-v0",
                "controller",
                KitchenScript(9, 0.05, example=tasks, example_share=1.0),
            )
            for name, tasks in environments.KITCHEN_TASKS.items()
        },
    }


# D4RL recorded in -v2. -v4 is the same with today's bindings of MuJoCo; -v5 pays differently and moves Walker2d
# differently.
_ROBOTS = {"halfcheetah": "HalfCheetah-v4", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4"}


def _actor(folder: Path, robot: str, name: str, noise: float = 0.0, stochastic: bool = False) -> LocomotionActor:
    actions = {"halfcheetah": 6, "hopper": 3, "walker2d": 6}[robot]
    return LocomotionActor(actions, noise, folder / f"{robot}_{name}_actor.npz", stochastic)


def _experts(folder: Path) -> dict[str, LocomotionActor]:
    return {
        "halfcheetah": _actor(folder, "halfcheetah", "tqc", stochastic=True),
        "hopper": _actor(folder, "hopper", "trpo"),
        "walker2d": _actor(folder, "walker2d", "trpo"),
    }


def _locomotion(folder: Path) -> dict[str, Recipe]:
    actor = partial(_actor, folder)
    expert = _experts(folder)
    # Noise for which 20 episodes come near the mean returns of D4RL's medium sets (4,770, 1,420 and 2,850).
    medium = {
        "halfcheetah": actor("halfcheetah", "sac", 0.4),
        "hopper": actor("hopper", "ppo", 0.2),
        "walker2d": actor("walker2d", "sac", 0.3),
    }
    # Mean returns of D4RL's sets are about 3,100, 470 and 680; the means of these levels come to about as much.
    rising: dict[str, list[Behaviour]] = {
        "halfcheetah": [
            Behaviour(6),
            actor("halfcheetah", "a2c", 0.3),
            *(actor("halfcheetah", "sac", noise) for noise in (0.6, 0.5, 0.4)),
        ],
        "hopper": [
            *(actor("hopper", "ppo", noise) for noise in (1.0, 0.6)),
            actor("hopper", "a2c", 0.6),
            *(actor("hopper", "ppo", noise) for noise in (0.4, 0.2)),
        ],
        "walker2d": [
            actor("walker2d", "sac", 1.0),
            *(actor("walker2d", "a2c", noise) for noise in (0.4, 0.1)),
            *(actor("walker2d", "sac", noise) for noise in (0.6, 0.3)),
        ],
    }
    # A million steps of Walker2d take two busy cores a quarter of an hour.
    steps = {"halfcheetah": MILLION, "hopper": MILLION, "walker2d": 200_000}
    original = {"halfcheetah": 202_000, "hopper": 402_000, "walker2d": 302_000}
    zoo = (
        "The behaviour is an agent of RL Baselines3 Zoo, not D4RL's SAC. The simulator is Gymnasium's -v4, which is "
        "D4RL's -v2 with today's bindings of MuJoCo. "
    )
    recipes = {}
    for robot, env_id in _ROBOTS.items():
        name = f"ld-agents/locomotion/{robot}"
        sampling = "sampling its own actions" if expert[robot].stochastic else "acting deterministically"
        levels = {
            "medium": (
                medium[robot],
                f"An expert ({medium[robot].file.stem}) with Gaussian action noise (standard deviation "
                f"{medium[robot].noise}) stands in for a half-trained agent; its states differ from that agent's.",
            ),
            "expert": (expert[robot], f"The expert is {expert[robot].file.stem}, {sampling}."),
        }
        for level, (policy, what) in levels.items():
            recipes[f"{name}-{level}-v0"] = Recipe(
                env_id, "stand-in", zoo + what, [policy], steps=steps[robot], original_steps=MILLION
            )
        recipes[f"{name}-medium-replay-v0"] = Recipe(
            env_id,
            "stand-in",
            zoo + "Five behaviours of rising skill, the last that of the medium set, stand in for what an agent saw "
            "while it trained.",
            rising[robot],
            steps=original[robot],
            original_steps=original[robot],
        )
        recipes[f"{name}-medium-expert-v0"] = Recipe(
            env_id,
            "stand-in",
            zoo + "The medium set and the expert set, one after the other.",
            [Copy(f"{name}-medium-v0"), Copy(f"{name}-expert-v0")],
            steps=None,
            original_steps=2 * MILLION,
        )
    return recipes


_MAZES = ("umaze", "medium", "large")
_ANT_FILE = "goal_reaching_ant_policy.npz"


def _antmaze(folder: Path) -> dict[str, Recipe]:
    recipes = {}
    for name in ("umaze", "medium-diverse", "large-diverse"):
        maze, _, anywhere = name.partition("-")
        where = "a start and a goal cell drawn from all cells" if anywhere else "the fixed start and goal cell"
        recipes[f"ld-agents/antmaze/{name}-v0"] = Recipe(
            f"ld_agents/AntMaze-{maze}-v0",
            "regenerated",
            "D4RL's recipe with D4RL's policy and its ant's physics in a rebuilt maze: a goal-reaching ant is sent "
            "from cell to cell along shortest paths, with Gaussian action noise (standard deviation 0.2). Every "
            f"episode has {where} and goes on at its goal until the step limit. Rewards and terminals are those of one "
            "goal, the mean of those that evaluations draw; every step within 0.5 m of it is a terminal, also inside "
            "episodes.",
            [AntNavigator(8, 0.2, folder / _ANT_FILE, maze, bool(anywhere))],
            env_kwargs=(("goal", environments.typical_goal(environments.ANTMAZE_GOALS[maze])),),
            past_terminals=True,
            original_steps=MILLION,
        )
    return recipes


_ADROIT_ACTIONS = {"pen": 24, "hammer": 26, "door": 28, "relocate": 30}


def _adroit_env(task: str) -> str:
    return f"ld_agents/Adroit{task.capitalize()}-v0"


def _dapg(folder: Path, task: str) -> DapgPolicy:
    return DapgPolicy(_ADROIT_ACTIONS[task], file=folder / f"{task}_dapg_policy.npz")


def _adroit(folder: Path) -> dict[str, Recipe]:
    human_steps = {"pen": 5_000, "hammer": 11_310, "door": 6_729, "relocate": 9_942}
    recipes = {}
    for task in _ADROIT_ACTIONS:
        env_id, name, policy = _adroit_env(task), f"ld-agents/adroit/{task}", _dapg(folder, task)
        real = task == "door"
        recipes[f"{name}-expert-v0"] = Recipe(
            env_id,
            "regenerated",
            "D4RL's recipe: the expert of Rajeswaran et al. (DAPG) acts with its own Gaussian noise.",
            [policy],
            original_steps=500_000 if task == "pen" else MILLION,
        )
        if real:
            recipes[f"{name}-human-v0"] = Recipe(
                env_id,
                "regenerated",
                "The 25 human demonstrations of Rajeswaran et al., recorded anew as D4RL did: their actions, clipped "
                "to [-1, 1], are replayed from their starts. Demonstrations are longer than an evaluation episode.",
                [Demonstrations(env_id, folder / "door_human_demos.npz")],
                steps=None,
                demonstrations="real",
                original_steps=human_steps[task],
            )
        else:
            recipes[f"{name}-human-v0"] = Recipe(
                env_id,
                "stand-in",
                "No human demonstrations: those of this task are not at hand. The DAPG expert with twice its own "
                "noise stands in for a human, whose mistakes are of another kind.",
                [replace(policy, spread=2.0)],
                steps=25 * episode_steps(env_id),
                original_steps=human_steps[task],
            )
        recipes[f"{name}-cloned-v0"] = Recipe(
            env_id,
            "regenerated" if real else "stand-in",
            "D4RL's recipe with our behaviour cloning: half of the steps come from a policy cloned from "
            f"{'the human demonstrations' if real else 'the stand-in for the human demonstrations'}, the other half "
            "repeats the demonstrations.",
            [Clone(f"{name}-human-v0"), Copy(f"{name}-human-v0")],
            original_steps=500_000 if task == "pen" else MILLION,
        )
    return recipes


def _kitchen(folder: Path) -> dict[str, Recipe]:
    env_id = "ld_agents/Kitchen-complete-v0"
    scripted = (
        "No human demonstrations: those of D4RL are not at hand. A scripted controller with Gaussian action noise "
        "(standard deviation 0.05) stands in: in each episode it does four of the kitchen's seven tasks in an order "
        "drawn at random, with the hinge cabinet last where it is drawn. "
    )
    ending = (
        " An episode ends with its last task and may be longer than one of the evaluation. A task pays once, as in the "
        "evaluation."
    )
    # Minari's hub has 621 episodes in partial, and 19 in complete, which do the four tasks in D4RL's order.
    scripts = {
        "partial": (
            KitchenScript(9, 0.05, example=environments.KITCHEN_TASKS["partial"], example_share=19 / 621),
            "Three per cent of the episodes do the four tasks of the evaluation in D4RL's order.",
        ),
        "mixed": (
            KitchenScript(9, 0.05, never_all_of=environments.KITCHEN_TASKS["mixed"]),
            "No episode does all four tasks of the evaluation.",
        ),
    }
    return {
        **{
            f"ld-agents/kitchen/{name}-v0": Recipe(
                f"ld_agents/Kitchen-{name}-v0",
                "stand-in",
                f"{scripted}{what}{ending}",
                [script],
                steps=136_950,
                demonstrations="scripted",
                original_steps=136_950,
                env_kwargs=(("max_episode_steps", 450),),
            )
            for name, (script, what) in scripts.items()
        },
        "ld-agents/kitchen/complete-v0": Recipe(
            env_id,
            "stand-in",
            "No human demonstrations: those of D4RL are not at hand. A scripted way-point controller does the four "
            "tasks in D4RL's order; its actions are replayed with fresh sensor noise until the last task is done, and "
            "demonstrations that fail five times are left out. They are longer than an evaluation episode. A task pays "
            "once, as in the evaluation.",
            [Demonstrations(env_id, folder / "kitchen_scripted_complete.npz", attempts=5)],
            steps=None,
            demonstrations="scripted",
            original_steps=3_680,
        ),
    }
