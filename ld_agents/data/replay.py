"""Whether the steps of recorded data replay in today's simulator: only then may returns be put on D4RL's scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ld_agents.data.dataset import OfflineDataset
from ld_agents.evaluation.scores import TASKS, family

Array = NDArray[np.float64]

TOLERANCE = 0.01  # in standard deviations over the data, of every observed number and of the reward
SHARE = 0.99  # of the steps that must lie within the tolerance


def replay_check(dataset: OfflineDataset, n_steps: int = 500) -> dict[str, Any] | None:
    """Put the evaluation simulator into stored states, take the stored actions, and compare what comes of them.

    Works where the observation is the whole state of the simulator: PointMaze, AntMaze with its 29 numbers,
    HalfCheetah, Hopper and Walker2d (whose forward position is not observed, and changes nothing). Steps are taken one
    by one, evenly spread over the data; where rewards are sparse, half of them over the steps with the most common
    reward and half over all others, which must each agree. AntMaze's rewards are not compared: they are those of one
    goal, and evaluations draw others.

    Args:
        dataset: with an evaluation environment, for instance from Minari's hub or a D4RL file.
        n_steps: about this many steps are replayed.

    Returns:
        As in `DatasetInfo.replay_check`: ``passed``, the tolerance, the number of steps, and the quantile `SHARE` of
        the errors in standard deviations over the data: of next observations (their worst number) and of rewards; None
        where there was nothing to compare, and then the check is not passed. None as a whole where the simulator's
        state does not follow from the observations.
    """
    task = TASKS.get(dataset.info.id)
    if task is None or dataset.info.eval_env is None:
        return None
    # D4RL's maze2d pays for the observation before the action, the simulators for the one after it.
    early = family(task) == "maze2d" and dataset.info.provenance == "d4rl-file"
    rewards = dataset.rewards.double().numpy()
    observations = dataset.observation_rows.double().numpy()
    scale = np.maximum(observations.std(0), 1e-6)
    starts = dataset.window_starts(1)
    following = dataset.next_rows(starts, 1).numpy()
    rows = starts.numpy()
    if early:
        rows, following = rows[following == rows + 1], following[following == rows + 1]
    paid = rewards[rows + early]
    values, counts = np.unique(paid, return_counts=True)
    common = paid == values[counts.argmax()]
    groups = {"reward": np.ones_like(common)}
    if common.mean() > 0.5:
        groups = {"common_reward": common, "other_reward": ~common}
    errors: dict[str, list[float]] = {"next_state": [], **{name: [] for name in groups}}
    env = dataset.make_eval_env()
    try:
        env.reset(seed=0)
        put = _state_setter(task, env.unwrapped)
        if put is None:
            return None
        for kind, members in groups.items():
            group = np.flatnonzero(members)
            n = min(n_steps // len(groups), len(group))
            for i in group[np.linspace(0, len(group) - 1, n).round().astype(np.int64)]:
                if not put(observations[rows[i]]):
                    continue
                after, reward, *_ = env.step(dataset.actions[rows[i]].numpy())
                errors[kind].append(abs(float(reward) - paid[i]) / max(rewards.std(), 1e-6))
                if not dataset.terminals[rows[i]]:  # what follows a step that ends it for good may not be stored
                    difference = np.abs(dataset.flatten_observation(after) - observations[following[i]])
                    errors["next_state"].append(float((difference / scale).max()))
    finally:
        env.close()
    steps = sum(len(errors[kind]) for kind in groups)
    if family(task) == "antmaze":
        errors = {"next_state": errors["next_state"]}
    found = {f"{name}_error": float(np.quantile(e, SHARE)) if e else None for name, e in errors.items()}
    passed = all(error is not None and error <= TOLERANCE for error in found.values())
    return {"passed": passed, "tolerance": TOLERANCE, "share": SHARE, "steps": steps, **found}


def _state_setter(task: str, simulator: Any) -> Callable[[Array], bool] | None:
    """A function that puts the simulator into the state of an observation [S], and says whether it could."""
    kind = family(task)
    if kind == "maze2d":
        inner, hidden, largest = simulator.point_env, 0, np.inf
    elif kind == "antmaze":
        inner, hidden, largest = getattr(simulator, "ant_env", getattr(simulator, "simulator", None)), 0, np.inf
    elif task in ("halfcheetah", "hopper", "walker2d"):
        # Hopper and Walker2d observe velocities that are clipped at 10.
        inner, hidden, largest = simulator, 1, np.inf if task == "halfcheetah" else 10.0
    else:
        return None
    n_positions, n_velocities = inner.model.nq, inner.model.nv

    def put(observation: Array) -> bool:
        state = np.concatenate([np.zeros(hidden), observation])
        if len(state) != n_positions + n_velocities or np.abs(state[n_positions:]).max() >= largest:
            return False
        inner.set_state(state[:n_positions], state[n_positions:])
        return True

    return put
