"""The recipes of the datasets that are made on this machine; `make_datasets.py` follows them.

What D4RL did is repeated where its behavior policy or its demonstrations are available ("regenerated"). Elsewhere
something else stands in, which the recipe says ("stand-in").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ld_agents.data.d4rl import FILE_SIZES
from ld_agents.evaluation import environments
from ld_agents.evaluation.eval_env import ENVIRONMENTS
from recording.behaviors import POLICIES, AntNavigator, Behavior, DapgPolicy, LocomotionActor, SacActor
from recording.kitchen_script import KitchenScript
from recording.race_driver import RaceDriver
from recording.recorder import Demonstrations

MILLION = 1_000_000


@dataclass(frozen=True)
class Copy:
    """A part of a dataset that repeats the episodes of another local set."""

    dataset_id: str


@dataclass(frozen=True)
class Clone:
    """A part of a dataset that is recorded from behavior cloning of another local set."""

    dataset_id: str


@dataclass(frozen=True)
class Recipe:
    """How a dataset is made.

    `env_id`: the evaluation environment; made with `env_kwargs`, names and values, it is that of the recording.
    `parts` follow each other and share `steps`, the default size, equally; None: the parts with all that they hold.
    `original_steps`: size of D4RL's set. `demonstrations`: what they are where the set holds any. `seeded_as`: the id
    that seeds the recording, where the set had another one before or extends another one; None: its own.
    """

    env_id: str
    provenance: Literal["regenerated", "stand-in", "recorded"]
    description: str
    parts: Sequence[Behavior | Copy | Clone | Demonstrations]
    steps: int | None = 200_000
    env_kwargs: tuple[tuple[str, Any], ...] = ()
    past_terminals: bool = False
    demonstrations: Literal["real", "scripted"] | None = None
    original_steps: int | None = None
    seeded_as: str | None = None


def recipes(policies: Path = Path()) -> dict[str, Recipe]:
    """All recipes by the ids of their datasets; `policies`: the folder with the behavior policies of other projects."""
    return {
        **_antmaze(policies / "antmaze"),
        **_locomotion(policies / "locomotion"),
        **_locomotion_noised(policies / "locomotion"),
        **_adroit(policies / "adroit"),
        **_kitchen(policies / "kitchen"),
        **_car_racing(),
    }


def reference_policies(policies: Path) -> dict[str, tuple[str, str, Behavior]]:
    """By task: the evaluation environment, and name and behavior of the policy whose data are the task's best.

    `reference_policies.py` measures what these policies return, beside uniformly random actions.
    """
    ant, hands, robots = policies / "antmaze" / _ANT_FILE, policies / "adroit", _experts(policies / "locomotion")
    best: dict[str, tuple[str, Behavior]] = {
        **{f"antmaze-{maze}": ("controller", AntNavigator(8, 0.2, ant, maze)) for maze in environments.ANTMAZE_GOALS},
        **{robot: ("expert", expert) for robot, expert in robots.items()},
        **{hand: ("expert", _dapg(hands, hand)) for hand in _HANDS},
        **{
            f"kitchen-{name}": ("controller", KitchenScript(9, 0.05, example=tasks, example_share=1.0))
            for name, tasks in environments.KITCHEN_TASKS.items()
        },
        "carracing": ("driver", RaceDriver()),
    }
    return {task: (ENVIRONMENTS[task], name, behavior) for task, (name, behavior) in best.items()}


def _actor(folder: Path, robot: str, name: str, noise: float = 0.0, stochastic: bool = False) -> LocomotionActor:
    return LocomotionActor(FILE_SIZES[robot][1], noise, folder / f"{robot}_{name}_actor.npz", stochastic)


def _experts(folder: Path) -> dict[str, LocomotionActor]:
    return {
        "halfcheetah": _actor(folder, "halfcheetah", "tqc", stochastic=True),
        "hopper": _actor(folder, "hopper", "trpo"),
        "walker2d": _actor(folder, "walker2d", "trpo"),
    }


# What a million steps of Walker2d cost, two busy cores and a quarter of an hour, the expert's set does not spend.
_EXPERT_STEPS = {"halfcheetah": MILLION, "hopper": MILLION, "walker2d": 200_000}
_REPLAY_STEPS = {"halfcheetah": 202_000, "hopper": 402_000, "walker2d": 302_000}
_SIMULATOR = "The simulator is Gymnasium's -v4, which is D4RL's -v2 with today's bindings of MuJoCo. "
_ZOO = "The behavior is an agent of RL Baselines3 Zoo, not D4RL's SAC. " + _SIMULATOR


def _locomotion(folder: Path) -> dict[str, Recipe]:
    recipes = {}
    sac = (
        "D4RL's recipe with Stable-Baselines3's SAC. Its training, with a snapshot every 10,000 steps, ended when the "
        "stochastic policy returned what D4RL's medium data do, to 15 %. " + _SIMULATOR
    )
    for robot, expert in _experts(folder).items():
        env_id, name = ENVIRONMENTS[robot], f"ld-agents/locomotion/{robot}"
        file = POLICIES / f"{robot}_sac.npz"
        sampling = "sampling its own actions" if expert.stochastic else "acting deterministically"
        recipes[f"{name}-medium-replay-v1"] = Recipe(
            env_id,
            "regenerated",
            sac
            + "The replay buffer is recorded anew: the actor acts as it was in all snapshots in turn, for equal shares "
            "of the steps.",
            [SacActor(expert.action_size, file=file, snapshot=None)],
            steps=_REPLAY_STEPS[robot],
            original_steps=_REPLAY_STEPS[robot],
        )
        recipes[f"{name}-medium-v1"] = Recipe(
            env_id,
            "regenerated",
            sac + "The last snapshot of the actor samples its own actions.",
            [SacActor(expert.action_size, file=file)],
            steps=MILLION,
            original_steps=MILLION,
        )
        recipes[f"{name}-expert-v0"] = Recipe(
            env_id,
            "stand-in",
            f"{_ZOO}The expert is {expert.file.stem}, {sampling}.",
            [expert],
            steps=_EXPERT_STEPS[robot],
            original_steps=MILLION,
        )
        recipes[f"{name}-medium-expert-v1"] = Recipe(
            env_id,
            "stand-in",
            "As many steps of the medium set, which a half-trained SAC agent recorded, as of the expert set, whose "
            "agent is of RL Baselines3 Zoo. " + _SIMULATOR,
            [Copy(f"{name}-medium-v1"), Copy(f"{name}-expert-v0")],
            steps=2 * _EXPERT_STEPS[robot],
            original_steps=2 * MILLION,
        )
    return recipes


# Algorithm of an agent of RL Baselines3 Zoo (none: random actions) and its action noise. Five levels stand for what an
# agent saw while it trained; the last one alone stands for the medium agent, and its noise is such that 20 episodes
# come near the mean returns of D4RL's medium sets (4,770, 1,420 and 2,850). The means over all levels come to about
# those of D4RL's medium-replay sets (3,100, 470 and 680).
_NOISED = {
    "halfcheetah": ((None, 0.0), ("a2c", 0.3), ("sac", 0.6), ("sac", 0.5), ("sac", 0.4)),
    "hopper": (("ppo", 1.0), ("ppo", 0.6), ("a2c", 0.6), ("ppo", 0.4), ("ppo", 0.2)),
    "walker2d": (("sac", 1.0), ("a2c", 0.4), ("a2c", 0.1), ("sac", 0.6), ("sac", 0.3)),
}


def _locomotion_noised(folder: Path) -> dict[str, Recipe]:
    """Experts with action noise, which cloning undoes: what medium sets were before SAC agents recorded them."""
    recipes = {}
    for robot, levels in _NOISED.items():
        name, replay_steps = f"ld-agents/locomotion/{robot}", _REPLAY_STEPS[robot]
        rising = [_actor(folder, robot, algorithm, noise) if algorithm else Behavior(6) for algorithm, noise in levels]
        medium = (
            "An expert ({}_{}_actor) with Gaussian action noise (standard deviation {}) stands in for a half-trained "
            "agent; its states differ from that agent's."
        ).format(robot, *levels[-1])
        replay = (
            "Five behaviors of rising skill, the last that of the medium set, stand in for what an agent saw while it "
            "trained."
        )
        joined = [Copy(f"{name}-medium-noised-v0"), Copy(f"{name}-expert-v0")]
        sets: tuple[tuple[str, str, Sequence[Behavior | Copy], int | None, int], ...] = (
            ("medium", medium, rising[-1:], _EXPERT_STEPS[robot], MILLION),
            ("medium-replay", replay, rising, replay_steps, replay_steps),
            ("medium-expert", "The medium set and the expert set, one after the other.", joined, None, 2 * MILLION),
        )
        for level, what, parts, steps, original in sets:
            old = f"{name}-{level}-v0"
            recipes[f"{name}-{level}-noised-v0"] = Recipe(
                ENVIRONMENTS[robot], "stand-in", _ZOO + what, parts, steps, original_steps=original, seeded_as=old
            )
    return recipes


_ANT_FILE = "goal_reaching_ant_policy.npz"


def _antmaze(folder: Path) -> dict[str, Recipe]:
    recipes = {}
    for name in ("umaze", "medium-diverse", "large-diverse"):
        maze, _, anywhere = name.partition("-")
        where = "a start and a goal cell drawn from all cells" if anywhere else "the fixed start and goal cell"
        recipes[f"ld-agents/antmaze/{name}-v1"] = Recipe(
            ENVIRONMENTS[f"antmaze-{maze}"],
            "regenerated",
            "D4RL's recipe with D4RL's policy and its ant's physics in a rebuilt maze: a goal-reaching ant is sent "
            "from cell to cell along shortest paths, with Gaussian action noise (standard deviation 0.2). Every "
            f"episode has {where} and goes on at its goal until the step limit. Rewards and terminals are those of one "
            "goal, the mean of those that evaluations draw; every step within 0.5 m of it is a terminal, also inside "
            "episodes.",
            [AntNavigator(8, 0.2, folder / _ANT_FILE, maze, bool(anywhere))],
            steps=MILLION,
            env_kwargs=(("goal", environments.typical_goal(environments.ANTMAZE_GOALS[maze])),),
            past_terminals=True,
            original_steps=MILLION,
            seeded_as=f"ld-agents/antmaze/{name}-v0",  # of which the first fifth was made
        )
    return recipes


_HANDS = ("pen", "hammer", "door", "relocate")


def _dapg(folder: Path, task: str) -> DapgPolicy:
    return DapgPolicy(FILE_SIZES[task][1], file=folder / f"{task}_dapg_policy.npz")


def _adroit(folder: Path) -> dict[str, Recipe]:
    human_steps = {"pen": 5_000, "hammer": 11_310, "door": 6_729, "relocate": 9_942}
    recipes = {}
    for task in _HANDS:
        env_id, name, policy = ENVIRONMENTS[task], f"ld-agents/adroit/{task}", _dapg(folder, task)
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
                steps=25 * environments.ADROIT_STEPS[task.capitalize()],
                original_steps=human_steps[task],
            )
        recipes[f"{name}-cloned-v0"] = Recipe(
            env_id,
            "regenerated" if real else "stand-in",
            "D4RL's recipe with our behavior cloning: half of the steps come from a policy cloned from "
            f"{'the human demonstrations' if real else 'the stand-in for the human demonstrations'}, the other half "
            "repeats the demonstrations.",
            [Clone(f"{name}-human-v0"), Copy(f"{name}-human-v0")],
            original_steps=500_000 if task == "pen" else MILLION,
        )
    return recipes


def _kitchen(folder: Path) -> dict[str, Recipe]:
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
                ENVIRONMENTS[f"kitchen-{name}"],
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
            "ld_agents/Kitchen-complete-v0",
            "stand-in",
            "No human demonstrations: those of D4RL are not at hand. A scripted way-point controller does the four "
            "tasks in D4RL's order; its actions are replayed with fresh sensor noise until the last task is done, and "
            "demonstrations that fail five times are left out. They are longer than an evaluation episode. A task pays "
            "once, as in the evaluation.",
            [Demonstrations("ld_agents/Kitchen-complete-v0", folder / "kitchen_scripted_complete.npz", attempts=5)],
            steps=None,
            demonstrations="scripted",
            original_steps=3_680,
        ),
    }


def _car_racing() -> dict[str, Recipe]:
    return {
        "ld-agents/carracing/driver-v0": Recipe(
            ENVIRONMENTS["carracing"],
            "recorded",
            "A scripted driver that sees the road itself. Every episode draws its top speed from 30 to 65 m/s and the "
            "standard deviation of its action noise, which is correlated over about ten steps, from 0 to 0.2. Without "
            "noise at 65 m/s the driver returns 862 ± 53 (seeds 100 to 107).",
            [RaceDriver(noise=0.2, slowest=30.0, fastest=65.0)],
            steps=100_000,
        )
    }
