"""A scripted demonstrator for FrankaKitchen: seven skills in any order, from what is observed alone.

Every skill goes through the same phases: to the hub and on to the skill's own ready pose, joint by joint; in a straight
line to the object's handle; drag it along the path of its joint; retreat. Where the handle is follows from the observed
position of the object's joint, by forward kinematics in a copy of the model that is never stepped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recording.behaviors import Array, Behavior

Vector = tuple[float, float, float]

# These numbers and those of the skills were found by trying, with action noise 0.05 on reset seeds 0-419.
HUB = (-0.1, -1.55, 1.6, -2.8, -0.2, 1.4, 1.7)  # joint angles [7] from which the way to every ready pose is free
STEP_LIMITS = {  # of the phases; those without an end of their own take as many steps
    "hub": 30,
    "ready": 40,
    "line up": 15,
    "reach": 20,
    "close": 5,
    "drag": 60,
    "open": 5,
    "retreat": 5,
}
NEAR = {"hub": 0.8, "ready": 0.12, "line up": 0.015, "reach": 0.015}  # where a phase has come to its end, rad or m
FREE_WAY = 0.13  # m between the handle and where the gripper lines up with it
JOINT_STEP = 0.08  # rad per step
GRIPPER_STEP, CAREFUL_STEP = 0.06, 0.03  # m per step, the second where the fingers must go around a handle
TURN_STEP = 0.12  # rad per step
TURN_WEIGHT = 0.3  # m in the gripper's place that count as much as a radian in its direction
DAMPING = 0.02  # of the least squares
PULL, PULL_STEP = 0.15, 0.08  # share of the way to the ready pose, and rad per step, where the gripper is not moved
LIMIT_MARGIN = 0.02  # rad between the arm and the limits of its joints
FINGERS = 0.25  # action of both fingers
AHEAD = 0.15  # rad that a servo is sent ahead of its joint at most
STEP_SECONDS, SPEED = 0.08, 2.0  # FrankaKitchen's, and its speed of a joint for an action of 1, rad/s


@dataclass(frozen=True)
class Skill:
    """How a task is done.

    `handle`: name of a site of the model. `joint`: index of the object's joint in MuJoCo's positions (rad or m).
    `enough`: position of the joint where dragging ends, some way past the point that the environment pays for. `lead`:
    how far the gripper is sent ahead of the handle along its path, in the joint's unit. `grip`: place of the gripper in
    the handle's frame (m). `fingers`: "grasp" closes them around the handle. `ready`: joint angles [7] of the arm in
    front of the handle. `ahead`: where the hand points to; the fingers open horizontally.
    """

    handle: str
    joint: int
    enough: float
    lead: float
    grip: Vector
    fingers: Literal["open", "closed", "grasp"]
    ready: tuple[float, ...]
    ahead: Vector = (0.0, 1.0, 0.0)

    @cached_property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases in their order."""
        return tuple(name for name in STEP_LIMITS if self.fingers == "grasp" or name not in ("close", "open"))

    @cached_property
    def pointing(self) -> Array:
        """Wanted axes of the gripper, as columns [3, 3]: up, along the fingers' way, ahead."""
        ahead = np.array(self.ahead) / np.linalg.norm(self.ahead)
        across = np.array([ahead[1], -ahead[0], 0.0]) / np.linalg.norm(ahead[:2])
        return np.stack([np.cross(across, ahead), across, ahead], axis=1)


# The ready poses are where Cartesian control from the environment's start had brought the arm, FREE_WAY before the
# handle; the kettle's is the inverse kinematics' solution with the most room to the joints' limits. Hinged doors are
# pulled. The kettle is pushed at its base by two fingertips from above, because higher up it tips over. A burner's knob
# is pushed at its upper end from the left. The sliding door and the switch lie between open fingers.
SKILLS = {
    "microwave": Skill(
        "microhandle_site", 22, -0.6, -0.3, (0.0, -0.01, 0.0), "grasp",
        (-1.08, -1.7, 2.04, -1.38, -0.48, 0.79, 2.31),
    ),
    "kettle": Skill(
        "kettle_site", 24, 0.53, 0.12, (0.0, -0.185, -0.165), "open",
        (-0.06, -1.2, 2.44, -2.74, 0.16, 1.3, 2.27), (0.0, 0.88, -0.48),
    ),
    "bottom burner": Skill(
        "knob2_site", 11, -0.8, -0.8, (-0.04, 0.03, 0.055), "closed",
        (-0.85, -1.44, 1.16, -2.62, -0.63, 1.9, 1.8),
    ),
    "top burner": Skill(
        "knob4_site", 15, -0.8, -0.8, (-0.04, 0.035, 0.055), "closed",
        (-0.77, -1.11, 0.91, -2.41, -1.01, 1.77, 1.81),
    ),
    "light switch": Skill(
        "light_site", 17, -0.55, -0.6, (0.0, -0.015, 0.0), "open",
        (-0.85, -1.3, 1.19, -2.39, -0.72, 1.75, 1.84),
    ),
    "slide cabinet": Skill(
        "slide_site", 19, 0.2, 0.15, (0.0, -0.01, -0.08), "open",
        (-0.29, -0.67, 0.2, -2.22, -1.51, 1.68, 1.64),
    ),
    "hinge cabinet": Skill(
        "hinge_site2", 21, 1.25, 0.25, (0.0, 0.02, -0.1), "grasp",
        (-0.66, -0.52, 1.1, -1.82, -1.19, 1.58, 1.64), (-0.39, 0.92, 0.0),
    ),
}  # fmt: skip
LAST = "hinge cabinet"  # its open door is in the way of the slide cabinet and of the top burner


@dataclass(frozen=True)
class KitchenScript(Behavior):
    """Tasks of the kitchen one after the other, each tried until it is done; then the episode is finished.

    An episode does `n_tasks` of `tasks` in an order that is drawn evenly from `orders`, or, in a share `example_share`
    of the episodes, the tasks of `example`. Orders with all of `never_all_of` are not drawn.
    """

    tasks: tuple[str, ...] = tuple(SKILLS)
    n_tasks: int = 4
    never_all_of: tuple[str, ...] = ()
    example: tuple[str, ...] = ()
    example_share: float = 0.0

    @property
    def files(self) -> tuple[Path, ...]:
        """This script, whose hash tells one version of the skills from another."""
        return (Path(__file__),)

    @cached_property
    def orders(self) -> list[tuple[str, ...]]:
        """All orders of tasks that may be drawn."""
        return [
            order
            for order in itertools.permutations(self.tasks, self.n_tasks)
            if LAST not in order[:-1] and not (self.never_all_of and set(self.never_all_of) <= set(order))
        ]

    def begin(self, rng: np.random.Generator) -> dict[str, Any]:
        """The order of the tasks, and how far the episode has come, which `mean_actions` keeps up to date."""
        shown = rng.random() < self.example_share
        order = self.example if shown else self.orders[rng.integers(len(self.orders))]
        return {"order": order, "task": 0, "phase": 0, "steps": 0}

    def finished(self, episode: dict[str, Any]) -> bool:
        """Whether all tasks of the order are done."""
        return episode["task"] == len(episode["order"])

    def mean_actions(
        self, observations: Array, rngs: Sequence[np.random.Generator], episodes: Sequence[dict[str, Any]]
    ) -> Array:
        return np.stack([self._action(row, episode) for row, episode in zip(observations, episodes, strict=True)])

    def _action(self, observation: Array, episode: dict[str, Any]) -> Array:
        """Action [9] for one environment; the episode moves on to its next phase where this one has come to its end."""
        arm = the_arm()
        arm.observe(observation)
        if self.finished(episode):
            return arm.action(np.zeros(7), opened=False)
        skill = SKILLS[episode["order"][episode["task"]]]
        phase = skill.phases[episode["phase"]]
        progress = float(observation[9 + skill.joint]) / skill.enough
        ended = False
        if phase in ("hub", "ready"):
            way = np.subtract(skill.ready if phase == "ready" else HUB, observation[:7])
            step = shortened(way, JOINT_STEP, np.inf)
            ended = bool(np.abs(way).max() < NEAR[phase])
        else:
            place = arm.gripper()
            aim = arm.grip(skill, skill.lead if phase == "drag" else 0.0)
            if phase == "line up":
                aim = aim - FREE_WAY * skill.pointing[:, 2]
            elif phase == "retreat":
                aim = place - FREE_WAY * skill.pointing[:, 2]
            speed = CAREFUL_STEP if phase == "reach" else GRIPPER_STEP
            step = arm.step_to(shortened(aim - place, speed), skill)
            if phase == "drag":
                ended = progress >= 1.0
            elif phase in NEAR:
                ended = bool(np.linalg.norm(aim - place) < NEAR[phase])
        opened = skill.fingers == "open" or (skill.fingers == "grasp" and phase not in ("close", "drag"))
        episode["steps"] += 1
        if ended or episode["steps"] == STEP_LIMITS[phase]:
            episode["steps"] = 0
            episode["phase"] += 1
            if episode["phase"] == len(skill.phases):
                episode["phase"] = 0
                episode["task"] += progress >= 0.9  # what was dragged far enough may have sprung back a little
        return arm.action(step, opened)


def shortened(vector: Array, length: float, order: float = 2.0) -> Array:
    """The vector, scaled down to a norm (of that order) of at most `length`."""
    return vector * min(1.0, length / (float(np.linalg.norm(vector, order)) + 1e-9))


class Arm:
    """Kinematics of the robot in its kitchen, and the actions that its servos need; it holds one observed state."""

    def __init__(self) -> None:
        import gymnasium_robotics
        import mujoco

        kitchen = "envs/assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml"
        self._mujoco = mujoco
        self.model = mujoco.MjModel.from_xml_path(str(Path(gymnasium_robotics.__path__[0]) / kitchen))
        self.data = mujoco.MjData(self.model)
        low, high = self.model.jnt_range[:7].T
        self._low, self._high = low + LIMIT_MARGIN, high - LIMIT_MARGIN
        self._stiffness = self.model.actuator_gainprm[:7, 0]
        # A servo against so much damping covers this share of its way in a step.
        self._share = 1.0 - np.exp(-self._stiffness / self.model.dof_damping[:7] * STEP_SECONDS)

    def observe(self, observation: Array) -> None:
        """Take over the positions in an observation [59]."""
        self.data.qpos[:9], self.data.qpos[9:] = observation[:9], observation[18:39]
        self._mujoco.mj_kinematics(self.model, self.data)
        self._mujoco.mj_comPos(self.model, self.data)

    def gripper(self) -> Array:
        """Position [3] of the gripper, in metres."""
        return self.data.site("end_effector").xpos.copy()

    def grip(self, skill: Skill, lead: float) -> Array:
        """Position [3] of the gripper when it holds the handle and the object's joint is `lead` further on."""
        self.data.qpos[skill.joint] += lead
        self._mujoco.mj_kinematics(self.model, self.data)
        handle = self.data.site(skill.handle)
        return handle.xpos + handle.xmat.reshape(3, 3) @ skill.grip

    def step_to(self, shift: Array, skill: Skill) -> Array:
        """Changes [7] of the arm's joints that move the gripper by `shift` [3] and turn it to where it should point.

        Damped least squares; a joint that comes to its limit stays there, and the others do what they can.
        """
        jacobian = np.zeros((6, self.model.nv))
        site = self.data.site("end_effector")
        self._mujoco.mj_jacSite(self.model, self.data, jacobian[:3], jacobian[3:], site.id)
        turn = 0.5 * np.cross(site.xmat.reshape(3, 3), skill.pointing, axis=0).sum(axis=1)
        weights = np.repeat([1.0, TURN_WEIGHT], 3)
        jacobian = weights[:, None] * jacobian[:, :7]
        wanted = weights * np.concatenate([shift, shortened(turn, TURN_STEP)])
        joints = self.data.qpos[:7]
        pull = np.clip(PULL * (skill.ready - joints), -PULL_STEP, PULL_STEP)
        step, free = np.zeros(7), np.ones(7, dtype=bool)
        while free.any():
            j = jacobian * free
            step = np.where(free, pull, step)
            step = step + j.T @ np.linalg.solve(j @ j.T + DAMPING**2 * np.eye(6), wanted - jacobian @ step)
            bounded = np.clip(step, self._low - joints, self._high - joints)
            if not (free & (bounded != step)).any():
                break
            free &= bounded == step
            step = bounded
        return step

    def action(self, step: Array, opened: bool) -> Array:
        """Action [9] that changes the arm's joints by `step` [7] against the servos' lag and the arm's weight."""
        weight = np.zeros(self.model.nv)
        self._mujoco.mj_rne(self.model, self.data, 0, weight)
        ahead = shortened(step / self._share, AHEAD, np.inf) + weight[:7] / self._stiffness
        return np.append(ahead / (SPEED * STEP_SECONDS), [FINGERS if opened else -FINGERS] * 2)


@cache
def the_arm() -> Arm:
    """The process's one arm: a model is large and takes a while to read."""
    return Arm()
