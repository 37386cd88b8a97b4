"""Where rewards, terminals and goals come from: the rules of each benchmark family, applied to what a reader returns.

All of D4RL's files share a layout, but not its meaning: what a terminal marks, which step a reward belongs to, and
where the goal is differ from family to family. So it is with Minari's datasets of the same names.

| family | D4RL's files | Minari's hub |
| --- | --- | --- |
| maze2d | rewards as stored; terminals and timeouts mark a new target, nothing ends for good | computed for one goal |
| antmaze | rewards (1 at the goal) and terminals as stored, but none at a timeout | computed for one goal; terminal |
| locomotion, adroit | as stored | as stored |
| kitchen | each task pays once, the last one is terminal | the same, where the recording counted tasks |

"Computed": by the evaluation environment from the recorded positions, for its one goal (`_relabel`). Datasets that
ld_agents makes hold final rewards and terminals, except for PointMaze, which is computed as that of the hub is. With
`goal="keep"` the goal becomes a part of the observation, and rewards are as stored. Sources: D4RL's generation scripts
(Fu et al. 2020) and Minari's. Which environment evaluates which dataset: `ld_agents/evaluation/eval_env.py`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.data.frames import are_frames
from ld_agents.evaluation.eval_env import EvalEnvSpec, FixedGoal
from ld_agents.evaluation.mazes import from_d4rl_frame

Array = NDArray[Any]
Goal = Literal["relabel", "keep"]

KITCHEN_TASKS = 4
_KITCHEN_OBSERVATION = 30  # columns of D4RL's files; the other 30 hold the goal
_GOAL_SEEDS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Recording:
    """N steps as a reader found them, one episode after the other, before any rule of a family.

    Attributes:
        family: see `ld_agents.evaluation.scores.family`; None: of no known family, read as stored.
        observations: parts of the observation, [N, .] each: ``"observation"``, and where goals are stored
            ``"achieved_goal"`` (float64) and ``"desired_goal"``.
        final_observations: the same parts after the last action of each of the E episodes, [E, .]. A row of NaN is
            unknown; None: all are.
        actions: [N, A].
        rewards: [N].
        terminals: [N] bool.
        timeouts: [N] bool. Terminals and timeouts both end an episode.
        ends: [E] exclusive end rows of the recorded episodes. A terminal inside of one ends it there.
        info: origin, and the evaluation environment that the source names.
        observation_space: Box or goal dictionary; None: the source has none; so for `action_space`.
        env: the environment of the recording, where the source names it.
        observation_keys: of which dictionary's parts the observations are the concatenation; None: stored as they are.
        from_file: whether it is one of D4RL's files. A Minari dataset that was converted from one is not, though it has
            its provenance: the rules of files have been applied to it.
    """

    family: str | None
    observations: dict[str, Array]
    final_observations: dict[str, Array] | None
    actions: Array
    rewards: Array
    terminals: Array
    timeouts: Array
    ends: Array
    info: DatasetInfo
    observation_space: spaces.Box | spaces.Dict | None = None
    action_space: spaces.Box | None = None
    env: EvalEnvSpec | None = None
    observation_keys: tuple[str, ...] | None = None
    from_file: bool = False


def to_dataset(recording: Recording, goal: Goal, env: Any = None) -> OfflineDataset:
    """Apply the rules of the family.

    Args:
        recording: what a reader returned.
        env: see `OfflineDataset`.
        goal: see `ld_agents.load_dataset`.

    Raises:
        ValueError: the goals cannot be treated as `goal` says.
    """
    keep, space, ruled = goal == "keep", recording.observation_space, recording
    if recording.from_file:
        ruled = _file_rules(recording, keep)
    elif isinstance(space, spaces.Dict):
        ruled = _goal_rules(recording, keep)
    # D4RL's 29 numbers of AntMaze begin with the position, which gymnasium-robotics only has as the achieved goal.
    position = ("achieved_goal",) if recording.family == "antmaze" else ()
    order = (*position, "observation", *(("desired_goal",) if keep else ()))
    keys = tuple(key for key in order if key in ruled.observations)
    if isinstance(space, spaces.Dict) and not keep:
        low, high = (np.concatenate([getattr(space[key], end) for key in keys]) for end in ("low", "high"))
        space = spaces.Box(low, high, dtype=low.dtype.type)
    observations, final = _joined(ruled.observations, keys), None
    if ruled.final_observations is not None:
        final = _joined(ruled.final_observations, keys)
        ends = episode_ends(ruled.terminals, ruled.timeouts)
        if len(ends) > len(ruled.ends):  # what follows an end inside of an episode is known
            known, final = final, observations[np.minimum(ends, len(observations) - 1)]
            final[np.searchsorted(ends, ruled.ends)] = known
    eval_env = ruled.info.eval_env
    observes_goals = isinstance(recording.observation_space, spaces.Dict) or (eval_env is not None and eval_env.goal)
    # In D4RL's files a row with both flags is a doubtful one, of which OfflineDataset warns.
    marked_twice = ruled.terminals & (not recording.from_file)
    return OfflineDataset(
        observations,
        ruled.actions,
        ruled.rewards,
        ruled.terminals,
        ruled.timeouts & ~marked_twice,
        space,
        ruled.action_space,
        final_observations=final,
        observation_keys=recording.observation_keys or (keys if observes_goals else None),
        recording_ends=ruled.ends,
        env=env,
        info=ruled.info,
    )


def episode_ends(terminals: Array, timeouts: Array) -> NDArray[np.int64]:
    """The exclusive end row of each episode, [E]."""
    return np.flatnonzero(np.append((terminals | timeouts)[:-1], True)) + 1


def _joined(parts: dict[str, Array], keys: tuple[str, ...]) -> Array:
    columns = [parts[key] if are_frames(parts[key]) else parts[key].astype(np.float32, copy=False) for key in keys]
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)  # one is not copied


# -- D4RL's files --------------------------------------------------------------------------------------------------


def _file_rules(recording: Recording, keep: bool) -> Recording:
    family, observations, terminals = recording.family, dict(recording.observations), recording.terminals
    final, actions = dict(recording.final_observations or {}), recording.actions
    ruled = recording
    if family == "maze2d":
        # The point is never reset: a timeout (a terminal in some files) marks a new target. D4RL pays a row for its own
        # observation, where the simulator pays for the one after the action; rewards stay as stored.
        ruled = replace(ruled, terminals=np.zeros_like(terminals), timeouts=terminals | ruled.timeouts)
    elif family == "antmaze":
        # The ant stays at the goal for many steps, and each of them is a terminal. In a row with a timeout D4RL has
        # looked at the next episode's start.
        rewards = np.where(ruled.timeouts, np.float32(0), ruled.rewards)
        ruled = replace(ruled, rewards=rewards, terminals=terminals & ~ruled.timeouts)
    elif family == "kitchen":
        ruled = _paid_once(ruled, before_action=True)
    if keep:
        return replace(ruled, rewards=recording.rewards, info=replace(ruled.info, eval_env=None))
    if family == "maze2d":
        maze = recording.info.id.split("-")[1]
        if final:
            final["observation"] = from_d4rl_frame(maze, final["observation"], actions[recording.ends - 1])[0]
        observations["observation"], actions = from_d4rl_frame(maze, observations["observation"], actions)
    elif family == "kitchen":
        observations, final = (
            {key: part[:, :_KITCHEN_OBSERVATION] for key, part in parts.items()} for parts in (observations, final)
        )
    return replace(ruled, observations=observations, final_observations=final or None, actions=actions)


# -- Kitchen -------------------------------------------------------------------------------------------------------


def _paid_once(recording: Recording, *, before_action: bool) -> Recording:
    """A recording that was paid in every step for each task that is done, paid as the evaluation does: once.

    Stored rewards count tasks: in a row's observation if `before_action`, otherwise in the one after its action. They
    do not tell one task from another: where one is undone and another done, nothing is paid, while the evaluation pays
    for the second. Stored terminals only end the recording; the episode ends for good with the last task.
    """
    counts = recording.rewards
    rewards = np.zeros(len(counts), dtype=np.float32)
    all_done = np.zeros(len(counts), dtype=bool)
    begin = 0
    for end in episode_ends(recording.terminals, recording.timeouts).tolist():
        # The most tasks that were done at once, so that one that is undone and done again pays once.
        most = np.maximum.accumulate(np.concatenate([np.zeros(1, np.float32), counts[begin:end]]))
        if before_action:
            most = np.append(most[1:], most[-1:])
        rewards[begin:end] = np.diff(most)
        all_done[begin:end] = (most[1:] >= KITCHEN_TASKS) & (most[:-1] < KITCHEN_TASKS)
        begin = end
    return replace(
        recording, rewards=rewards, terminals=all_done, timeouts=(recording.terminals | recording.timeouts) & ~all_done
    )


# -- goal dictionaries ---------------------------------------------------------------------------------------------


def _goal_rules(recording: Recording, keep: bool) -> Recording:
    if "achieved_goal" in recording.observations:
        return recording if keep else _relabel(recording)
    # Kitchen: the goal is a dictionary of tasks, the same in every episode.
    if keep:
        raise ValueError(
            f'The goals of {recording.info.id} are dictionaries and cannot be appended. Use goal="relabel".'
        )
    counted = recording.env is not None and recording.env.kwargs.get("remove_task_when_completed") is False
    return _paid_once(recording, before_action=False) if counted else recording


def _relabel(recording: Recording) -> Recording:
    """Rewards (and terminals, if the task ends at its goal) for the evaluation environment's one goal."""
    name, spec = recording.info.id, recording.info.eval_env
    if spec is None:
        raise ValueError(f'{name} names no evaluation environment to take the goal from. Use goal="keep".')
    which, instead = f"The evaluation environment of {name} ({spec.id})", 'Use goal="keep".'
    assert recording.final_observations is not None
    achieved, final = (parts["achieved_goal"] for parts in (recording.observations, recording.final_observations))
    # The goal that is achieved after each action. Where the final one is not known the last one stands in: no window
    # reads that reward unless it is terminal.
    last, after = recording.ends - 1, np.concatenate([achieved[1:], achieved[-1:]])
    after[last] = np.where(np.isnan(final), achieved[last], final)
    with contextlib.closing(spec.make()) as env:
        unwrapped: Any = env.unwrapped
        goal, terminals = _fixed_goal(env, which), recording.terminals
        try:
            rewards = np.asarray(unwrapped.compute_reward(after, goal, {}), dtype=np.float32)
        except Exception as error:
            reason = f"({type(error).__name__}: {error})"
            raise ValueError(f"{which} cannot compute rewards for its goals {reason}. {instead}") from None
        if rewards.shape != (len(after),):
            raise ValueError(f"{which} cannot compute the rewards of many steps at once. {instead}")
        if not getattr(unwrapped, "continuing_task", True):
            if getattr(unwrapped, "reward_type", "sparse") != "sparse":
                raise ValueError(
                    f"{which} ends at its goal and pays a dense reward, which cannot be relabeled. {instead}"
                )
            terminals = rewards > 0
        if hasattr(unwrapped, "maze"):
            spec = replace(spec, goal=tuple(goal.tolist()))
    return replace(recording, rewards=rewards, terminals=terminals, info=replace(recording.info, eval_env=spec))


def _fixed_goal(env: gym.Env[Any, Any], which: str) -> NDArray[np.float64]:
    """The one goal of an environment, which messages call `which`."""
    if isinstance(env, FixedGoal):
        return np.array(env.goal, dtype=np.float64)
    # A maze with one goal cell puts the goal there, jittered by up to a quarter of a cell. D4RL's goal is the center.
    cells: list[Any] = getattr(getattr(env.unwrapped, "maze", None), "unique_goal_locations", [])
    if len(cells) == 1:
        return np.asarray(cells[0], dtype=np.float64)
    try:
        goals = [np.asarray(env.reset(seed=seed)[0]["desired_goal"], dtype=np.float64) for seed in _GOAL_SEEDS]
    except Exception as error:
        raise ValueError(f'{which} names no goal ({type(error).__name__}). Use goal="keep".') from None
    if not all(np.array_equal(goals[0], other) for other in goals):
        raise ValueError(
            f'{which} draws a new goal in every episode, so rewards cannot be relabeled for one goal. Use goal="keep".'
        )
    return goals[0]
