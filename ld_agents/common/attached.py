"""What users attach to an agent, environments and callbacks of Stable-Baselines3, checked for what would be in vain."""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnMaxEpisodes

_EVALUATION_SEED = 1 << 31  # no training seed


class SpacesOnlyEnv(gym.Env[Any, Any]):
    """Placeholder for the training environment that SB3's callbacks expect."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if isinstance(self.observation_space, spaces.Dict):
            return {k: np.zeros(s.shape, s.dtype) for k, s in self.observation_space.spaces.items()}, {}
        return np.zeros(self.observation_space.shape or (), self.observation_space.dtype), {}

    def step(self, action: Any) -> Any:
        raise RuntimeError(
            "This is a placeholder: offline agents learn from a dataset. Evaluate with agent.evaluate(), or attach an "
            "environment with agent.set_env(env) first."
        )


def refuse_normalized(env: Any) -> None:
    """Raise for an environment, vector environment or None that scales what the agent learned as it was recorded."""
    layers, normalizing = [env], ("VecNormalize", "NormalizeObservation", "NormalizeReward")
    for layer in layers:
        if type(layer).__name__ in normalizing:
            raise ValueError(
                f"{type(layer).__name__} is around the environment, but the agent learned from what was recorded, and "
                "normalizes that itself where its settings say so. Leave it out."
            )
        layers += filter(None, [getattr(layer, "venv", None), vars(layer).get("env") if layer is not None else None])
        layers += getattr(layer, "envs", [])


def check_callbacks(callback: Any, check_eval_env: Callable[[Any], None]) -> None:
    """Raise for a callback, or one within it, that cannot work; warn of what it cannot save.

    Args:
        callback: of Stable-Baselines3.
        check_eval_env: raises for an environment in which the agent cannot be evaluated.

    Raises:
        ValueError: an evaluation environment that normalizes or has other spaces, or a callback that counts episodes.
    """
    for each in _with_children(callback):
        if isinstance(each, StopTrainingOnMaxEpisodes):
            raise ValueError("StopTrainingOnMaxEpisodes counts episodes, and offline training has none. Leave it out.")
        if (eval_env := getattr(each, "eval_env", None)) is not None:
            refuse_normalized(eval_env)
            check_eval_env(eval_env)
        for option in ("save_vecnormalize", "save_replay_buffer"):
            if getattr(each, option, False):
                warnings.warn(
                    f"{type(each).__name__}({option}=True) saves nothing: offline agents have no such thing. What "
                    "normalizes observations is saved with the agent, and the data are the dataset's.",
                    stacklevel=2,
                )


def adapt_evaluations(callback: Any, can_act: Callable[[], bool]) -> None:
    """Make SB3's EvalCallbacks wait until the agent can act, and begin each evaluation from the same seeds.

    Without that, the first "best model" is of a stage in which nothing that chooses actions has learned, and later ones
    are those with the luckier starts.
    """
    for each in _with_children(callback):
        if isinstance(each, EvalCallback):
            each._on_step = functools.partial(_evaluate_again, each, can_act)  # type: ignore[method-assign]


def _evaluate_again(callback: EvalCallback, can_act: Callable[[], bool]) -> bool:
    if not can_act():
        return True
    if callback.eval_freq > 0 and callback.n_calls % callback.eval_freq == 0:
        callback.eval_env.seed(_EVALUATION_SEED)
    return type(callback)._on_step(callback)


def _with_children(callback: Any) -> Iterator[Any]:
    yield callback
    children = getattr(callback, "callbacks", None) or filter(None, [getattr(callback, "callback", None)])
    for child in children:
        yield from _with_children(child)
