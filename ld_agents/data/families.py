"""What the recordings of each benchmark family need before they are episodes: one table, and the functions it names.

All of D4RL's files share a layout, but not its meaning: what a terminal marks, which step a reward belongs to, and
where the goal is differ from family to family. So it is with Minari's data sets of the same names. Sources: D4RL's
generation scripts (Fu et al. 2020) and Minari's. Data sets that ld_agents makes hold final rewards and terminals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ld_agents.evaluation.mazes import from_d4rl_frame
from ld_agents.evaluation.scores import TASKS, family

Terminals = Literal["as stored", "are timeouts", "not at timeouts", "all tasks done"]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

KITCHEN_TASKS = 4


@dataclass(frozen=True)
class Family:
    """How the recordings of a family become episodes.

    `observation`: keys of a goal dictionary (Minari) that make up the observation, in this order.
    `file_observation`: number of leading columns of a D4RL file that are the observation; the others hold the goal.
    `terminals` (D4RL files):
        "as stored": the episode ends for good;
        "are timeouts": they only end the recording;
        "not at timeouts": as stored, except in a row with a timeout, where D4RL has looked at the next episode's start;
        "all tasks done": stored ones only end the recording. Rewards count, in every step, the tasks that are done; the
        evaluation pays for each task once, and the episode ends for good with the last one (`newly_done`).
    `episode_steps`: length of the episodes of D4RL files without timeouts.
    """

    observation: tuple[str, ...] = ("observation",)
    file_observation: int | None = None
    terminals: Terminals = "as stored"
    episode_steps: int | None = None


FAMILIES: dict[str, Family] = {
    # The point is never reset: a timeout (a terminal in some files) marks a new target. D4RL pays a row for its own
    # observation, where the simulator pays for the one after the action; rewards stay as stored.
    "maze2d": Family(terminals="are timeouts"),
    # D4RL's 29 numbers begin with the position, which gymnasium-robotics only has as the achieved goal. The ant stays
    # at the goal for many steps, and each of them is a terminal.
    "antmaze": Family(observation=("achieved_goal", "observation"), terminals="not at timeouts"),
    "locomotion": Family(episode_steps=1000),
    "adroit": Family(),
    "kitchen": Family(file_observation=30, terminals="all tasks done"),
}


FILE_SIZES: dict[str, tuple[int, int]] = {
    **{task: (4, 2) for task in TASKS.values() if family(task) == "maze2d"},
    **{task: (29, 8) for task in TASKS.values() if family(task) == "antmaze"},
    "halfcheetah": (17, 6),
    "hopper": (11, 3),
    "walker2d": (17, 6),
    "ant": (111, 8),
    "pen": (45, 24),
    "hammer": (46, 26),
    "door": (39, 28),
    "relocate": (39, 30),
    **{task: (60, 9) for task in TASKS.values() if family(task) == "kitchen"},
}
"""Sizes of observations and actions in D4RL's files, by task."""


def rules(dataset_id: str) -> Family:
    """The row of the table for a data set, by its name; names of no known family are read as stored."""
    return FAMILIES.get(family(dataset_id) or "", Family())


# -- episodes ------------------------------------------------------------------------------------------------------


def split(row: Family, rewards: Floats, terminals: Bools, timeouts: Bools) -> tuple[Floats, Bools, Bools]:
    """Rewards, terminals and timeouts [N] of a D4RL file under the rules of its family; the inputs stay as they are."""
    if row.terminals == "are timeouts":
        return rewards, np.zeros_like(terminals), terminals | timeouts
    if row.terminals == "not at timeouts":
        return np.where(timeouts, np.float32(0), rewards), terminals & ~timeouts, timeouts
    if row.terminals == "all tasks done":
        return (*newly_done(rewards, terminals | timeouts, before_action=True), terminals | timeouts)
    return rewards, terminals, timeouts


def newly_done(counts: Floats, ends: Bools, *, before_action: bool) -> tuple[Floats, Bools]:
    """Rewards [N] for tasks that are done for the first time in an episode, and where the last one is done [N].

    Counts do not tell one task from another: where one is undone and another done, nothing is paid, while the
    evaluation pays for the second.

    Args:
        counts: [N] number of tasks that are done.
        ends: [N] last rows of the episodes.
        before_action: whether a row's count belongs to its observation; otherwise to the observation after its action.
    """
    rewards = np.zeros(len(counts), dtype=np.float32)
    all_done = np.zeros(len(counts), dtype=bool)
    begin = 0
    for end in [*(np.flatnonzero(ends) + 1).tolist(), len(counts)]:
        # The most tasks that were done at once, so that one that is undone and done again pays once.
        most = np.maximum.accumulate(np.concatenate([np.zeros(1, np.float32), counts[begin:end]]))
        if before_action:
            most = np.append(most[1:], most[-1:])
        rewards[begin:end] = np.diff(most)
        all_done[begin:end] = (most[1:] >= KITCHEN_TASKS) & (most[:-1] < KITCHEN_TASKS)
        begin = end
    return rewards, all_done


def fixed_length(terminals: Bools, steps: int) -> Bools:
    """Timeouts [N] where every episode that no terminal ends has `steps` steps."""
    begins = np.concatenate([[0], np.flatnonzero(terminals) + 1])
    age = np.arange(len(terminals)) - np.repeat(begins, np.diff(np.append(begins, len(terminals))))
    timeouts: Bools = (age % steps == steps - 1) & ~terminals
    return timeouts


def file_arrays(task: str, observations: Floats, actions: Floats) -> tuple[Floats, Floats]:
    """Observations and actions of a D4RL file as the evaluation environment has them, without the goal."""
    if family(task) == "maze2d":
        return from_d4rl_frame(task.split("-")[1], observations, actions)
    return observations[:, : rules(task).file_observation], actions
