"""Do the steps of somebody else's data replay in today's simulator? Only then may returns be put on D4RL's scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ld_agents.dataset import OfflineDataset
from ld_agents.scores import TASKS, family

Array = NDArray[np.float64]

TOLERANCE = 0.01  # in standard deviations over the data, of every observed number and of the reward
SHARE = 0.99  # of the steps that must lie within the tolerance


def replay_check(dataset: OfflineDataset, n_steps: int = 500) -> dict[str, Any] | None:
    """Put the evaluation simulator into stored states, take the stored actions, and compare what comes of them.

    Works where the observation tells the whole state of the simulator: PointMaze, AntMaze with its 29 numbers,
    HalfCheetah, Hopper and Walker2d (whose forward position is not observed, and changes nothing). Steps are taken one
    by one, evenly spread over the data.

    Args:
        dataset: with an evaluation environment, for instance from Minari's hub or a D4RL file.
        n_steps: number of steps that are replayed.

    Returns:
        As in `DatasetInfo.replay_check`: ``passed``, the tolerance, the number of steps, and median and quantile of the
        largest error of a next observation and of the error of the reward, in standard deviations over the data. None
        where the simulator's state cannot be told from the observations.
    """
    task = TASKS.get(dataset.info.id)
    if task is None or dataset.info.eval_env is None:
        return None
    env = dataset.make_eval_env()
    try:
        env.reset(seed=0)
        put = _state_setter(task, env.unwrapped)
        starts = dataset.window_starts(1)
        if put is None or len(starts) == 0:
            return None
        observations = dataset.observation_rows.double().numpy()
        scale = np.maximum(observations.std(0), 1e-6)
        reward_scale = float(dataset.rewards.double().std(correction=0)) or 1.0
        chosen = starts[np.linspace(0, len(starts) - 1, min(n_steps, len(starts))).round().astype(np.int64)]
        after = observations[dataset.next_rows(chosen, 1).numpy()]
        errors: dict[str, list[float]] = {"next_state_error": [], "reward_error": []}
        for row, expected in zip(chosen.tolist(), after, strict=True):
            if not put(observations[row]):
                continue
            observation, reward, *_ = env.step(dataset.actions[row].numpy())
            errors["reward_error"].append(abs(float(reward) - float(dataset.rewards[row])) / reward_scale)
            if not dataset.terminals[row]:  # where it ends for good, the observation after it may not be stored
                difference = np.abs(dataset.flatten_observation(observation) - expected)
                errors["next_state_error"].append(float((difference / scale).max()))
    finally:
        env.close()
    if not errors["next_state_error"]:
        return None
    return {
        "passed": all(bool(np.quantile(error, SHARE) <= TOLERANCE) for error in errors.values()),
        "tolerance": TOLERANCE,
        "steps": len(errors["reward_error"]),
        **{f"median_{name}": float(np.median(error)) for name, error in errors.items()},
        **{f"quantile_{SHARE}_{name}": float(np.quantile(error, SHARE)) for name, error in errors.items()},
    }


def _state_setter(task: str, simulator: Any) -> Callable[[Array], bool] | None:
    """A function that puts the simulator into the state of an observation [S], and says whether it tells the state."""
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
