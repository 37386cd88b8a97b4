"""Point mazes whose dynamics are random: gusts of wind, or actions that are not executed as they were chosen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

GUST_STEPS = 50  # after which a gust is down to 1 / e
_KEPT = math.exp(-1 / GUST_STEPS)
# The mazes that there are datasets of: three strengths of each kind.
DISTURBED = (
    *(f"large-wind{percent}" for percent in (10, 20, 40)),
    *(f"large-noise{percent}" for percent in (25, 50, 100)),
)


class Push(NamedTuple):
    """What happens in a step: a force on the point, and what is added to its action; both [2], 1 is a full action."""

    wind: NDArray[np.float64]
    noise: NDArray[np.float64]


@dataclass(frozen=True)
class Disturbance:
    """What no agent can foresee in the large maze; standard deviations in units of the largest action.

    `wind`: of a force in each direction, an Ornstein-Uhlenbeck process with a correlation time of `GUST_STEPS` steps.
    `action_noise`: of white noise on the executed action, which is clipped as every action is.
    """

    wind: float = 0.0
    action_noise: float = 0.0

    @classmethod
    def of(cls, dataset_id: str) -> Disturbance | None:
        """That of a dataset such as `ld-agents/pointmaze/large-wind20-v0`, of 20 %, by its id; None: it has none."""
        found = re.fullmatch(r"ld-agents/pointmaze/large-(wind|noise)(\d+)-v0", dataset_id)
        if found is None:
            return None
        strength = int(found[2]) / 100
        return cls(wind=strength) if found[1] == "wind" else cls(action_noise=strength)

    def pushes(self, rng: np.random.Generator) -> Iterator[Push]:
        """Those of step after step."""
        wind = self.wind * rng.normal(size=2)
        while True:
            yield Push(wind, self.action_noise * rng.normal(size=2))
            wind = _KEPT * wind + math.sqrt(1 - _KEPT**2) * self.wind * rng.normal(size=2)


def executed(point: Any, action: Any, push: Push) -> NDArray[Any]:
    """Let the wind blow on a PointMaze's point for its next step, and return the action that is executed there."""
    point.data.qfrc_applied[:2] = point.model.actuator_gear[:2, 0] * push.wind
    clipped: NDArray[Any] = np.clip(action + push.noise, -1.0, 1.0).astype(np.float32)
    return clipped


class Disturbed(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """A PointMaze with a `Disturbance`, drawn anew in every episode from the environment's own random numbers."""

    def __init__(self, env: gym.Env[Any, Any], wind: float = 0.0, action_noise: float = 0.0) -> None:
        self.disturbance = Disturbance(float(wind), float(action_noise))
        gym.utils.RecordConstructorArgs.__init__(self, **asdict(self.disturbance))
        gym.Wrapper.__init__(self, env)
        if not hasattr(env.unwrapped, "point_env"):
            raise TypeError(f"{env} is no PointMaze, and nothing else is disturbed. Leave the disturbance out.")
        self._pushes: Iterator[Push] = iter(())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; what follows depends on the seed alone."""
        result = self.env.reset(seed=seed, options=options)
        self.repeat(self.disturbance.pushes(self.env.unwrapped.np_random))
        return result

    def repeat(self, pushes: Iterable[Push]) -> None:
        """Let the steps that follow be disturbed by these."""
        self._pushes = iter(pushes)

    def step(self, action: Any) -> Any:
        maze: Any = self.env.unwrapped
        return self.env.step(executed(maze.point_env, action, next(self._pushes)))
