"""Which spaces a dataset has: those that are given, else those of its environment, else the default."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from ld_agents.evaluation.eval_env import EvalEnvSpec

ACTION_TOLERANCE = 1e-5
_OF_VECTORS = ("num_envs", "vectorization_mode")  # arguments of gymnasium.make_vec


def environment_spaces(
    env: str | EvalEnvSpec | Any,
) -> tuple[EvalEnvSpec | None, spaces.Space[Any], spaces.Space[Any]]:
    """How an environment is built again (None: it is not registered), its observation space and its action space.

    Raises:
        ValueError: the id is not in Gymnasium's registry.
        TypeError: neither an id nor an environment.
    """
    if isinstance(env, str):
        env = EvalEnvSpec(env)
    if isinstance(env, EvalEnvSpec):
        with contextlib.closing(env.make()) as made:
            return env, made.observation_space, made.action_space
    if not hasattr(env, "observation_space"):
        raise TypeError(f"env is {env!r:.100}. Pass an environment, or its id in Gymnasium's registry.")
    spec = None
    if getattr(env, "spec", None) is not None:
        with contextlib.suppress(ValueError, TypeError):  # arguments that are no JSON
            spec = EvalEnvSpec.from_json(env.spec.to_json())
    if hasattr(env, "single_action_space"):  # several side by side
        kwargs = {} if spec is None else {k: v for k, v in spec.kwargs.items() if k not in _OF_VECTORS}
        spec = None if spec is None else replace(spec, kwargs=kwargs)
        return spec, env.single_observation_space, env.single_action_space
    return spec, env.observation_space, env.action_space


def checked_action_space(
    space: spaces.Space[Any] | None, actions: torch.Tensor, where: Callable[[int], str]
) -> spaces.Box:
    """The Box of actions [N, A]; `where` names a row. None: [-1, 1].

    Raises:
        ValueError: actions outside the space, or one of another shape.
        TypeError: the space is no Box.
    """
    size, low, high = actions.shape[1], actions.amin(dim=0).numpy(), actions.amax(dim=0).numpy()
    if space is None:
        if low.min() < -1 - ACTION_TOLERANCE or high.max() > 1 + ACTION_TOLERANCE:
            raise ValueError(
                f"Actions reach from {low.min():.6g} to {high.max():.6g}, and nothing tells which actions the "
                "environment takes: their range in the data is not it. Pass env=, the environment or its id, to "
                f"load_dataset or OfflineDataset, or to the latter action_space=Box(low, high, ({size},))."
            )
        return spaces.Box(-1.0, 1.0, (size,), np.float32)
    if not isinstance(space, spaces.Box):
        raise TypeError(f"The action space is {space}. Only continuous actions (spaces.Box) are supported.")
    if space.shape != (size,):
        raise ValueError(
            f"The action space has shape {space.shape}, but actions have {size} columns. Pass the action space of the "
            "environment that made the data."
        )
    if not space.is_bounded():
        raise ValueError(
            f"The action space {space} has no bounds, and agents act within [-1, 1], scaled to the bounds. Pass "
            f"action_space=gymnasium.spaces.Box(low, high, ({size},)) with those that the environment takes."
        )
    if (low < space.low - ACTION_TOLERANCE).any() or (high > space.high + ACTION_TOLERANCE).any():
        values = actions.numpy()
        outside = (values < space.low - ACTION_TOLERANCE) | (values > space.high + ACTION_TOLERANCE)
        row, column = (int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"Action {values[row, column]:.6g} in {where(row)}, column {column} lies outside "
            f"[{space.low[column]:.6g}, {space.high[column]:.6g}] ({outside.any(axis=1).sum()} such rows). "
            "Clip the actions to the box, or pass the wider action_space they were made for."
        )
    return space


def checked_observation_space(
    space: spaces.Space[Any] | None, keys: tuple[str, ...] | None, size: int
) -> spaces.Box | spaces.Dict:
    """The Box of observations of `size` numbers, or the Dict whose `keys` they concatenate. None: an unbounded Box.

    Raises:
        ValueError: a Dict without keys or the reverse, or a space of another size.
        TypeError: parts that are no vectors.
    """
    if space is None:
        if keys is not None and keys != ("observation",):
            raise ValueError(f"observation_keys={keys} need the Dict observation_space as well.")
        return spaces.Box(-np.inf, np.inf, (size,), np.float32)
    parts: dict[str, Any] = {"": space}
    if isinstance(space, spaces.Dict):
        if keys is None:
            raise ValueError(
                f"The observation space is a Dict with keys {tuple(space.spaces)}. Pass observation_keys too: the keys "
                "in the order in which your observations concatenate them."
            )
        missing = [key for key in keys if key not in space.spaces]
        if missing:
            raise ValueError(f"The observation space has no key {missing[0]!r}, only {tuple(space.spaces)}.")
        parts = {key: space.spaces[key] for key in keys}
        boxes = {key: part for key, part in space.spaces.items() if key in parts or isinstance(part, spaces.Box)}
        space = spaces.Dict(boxes)  # other kinds could not be saved, and are not learned from
    for key, part in parts.items():
        if not isinstance(part, spaces.Box) or len(part.shape) != 1:
            raise TypeError(
                f"The observation space{f' at key {key!r}' if key else ''} is {part}. Only vectors (Box with one "
                "axis), and Dict of them, are learned from. Flatten it, numbers of a class one-hot "
                "(gymnasium.wrappers.FlattenObservation does both), before building the dataset."
            )
    assert isinstance(space, spaces.Box | spaces.Dict)
    found = sum(part.shape[0] for part in parts.values())
    if found != size:
        raise ValueError(
            f"The observation space holds {found} numbers, but observations have {size} columns. Pass the space that "
            "belongs to the data."
        )
    return space
