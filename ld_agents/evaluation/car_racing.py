"""Gymnasium's CarRacing-v3 with small frames: the benchmark's environment whose observations are images."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]

CAR_RACING_STEPS = 1000  # of an episode, as in CarRacing-v3


class CarRacing(gym.Env[Frame, NDArray[np.float32]]):
    """CarRacing-v3 seen from above in frames [48, 48, 3] uint8: the means of 2x2 pixels of its own 96x96.

    The bar at the bottom of a frame shows speed, wheel speeds, steering angle and turn rate, so one frame tells how the
    car moves. Actions [3]: steering in [-1, 1] (right is positive), gas and brake in [0, 1]. Every tile of road that is
    visited first pays 1000 / tiles, every step costs 0.1, leaving the field costs 100 and ends the episode, and so does
    a lap of 95 % of the tiles, which `info["success"]` tells.

    Args:
        render_mode: see Gymnasium.

    Raises:
        ImportError: Box2D is not installed.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        try:
            from gymnasium.envs.box2d.car_racing import CarRacing as Simulator
        except Exception as error:  # Gymnasium raises its own class where Box2D or pygame are missing
            raise ImportError(
                'CarRacing needs Box2D, which is not installed. Install it with: pip install "ld_agents[box2d]"'
            ) from error
        self.simulator: Any = Simulator(render_mode=render_mode, continuous=True)
        self.metadata, self.render_mode = self.simulator.metadata, render_mode
        self.action_space = self.simulator.action_space
        self.observation_space = gym.spaces.Box(0, 255, (48, 48, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed)
        frame, _ = self.simulator.reset(seed=seed)
        return half_size(frame), {"success": False}

    def step(self, action: NDArray[Any]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        frame, reward, terminal, timeout, info = self.simulator.step(np.asarray(action))
        return half_size(frame), float(reward), terminal, timeout, {"success": bool(info.get("lap_finished", False))}

    def render(self) -> Any:
        return self.simulator.render()

    def close(self) -> None:
        self.simulator.close()


def half_size(frame: Frame) -> Frame:
    """Means of 2x2 pixels, rounded half up. Shapes [2h, 2w, C] -> [h, w, C]."""
    height, width, channels = frame.shape
    sums = frame.reshape(height // 2, 2, width // 2, 2, channels).sum((1, 3), dtype=np.uint16)
    return ((sums + 2) // 4).astype(np.uint8)
