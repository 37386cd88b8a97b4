"""A scripted driver for CarRacing: pure pursuit along the road's center line, at a speed that suits the bends ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from recording.behaviors import Array, Behavior, Drawn, Generators

# Found by trying on seeds 100 to 107.
LOOK_AHEAD = 5.0, 0.05  # tiles that are always looked ahead, and for each m/s
BENDS_AHEAD = 6.0, 1 / 6  # the same for bends, which are braked for
BEND_SLOWNESS = 0.4  # the speed is divided by 1 plus this times the sharpest bend ahead (rad)
STEERING, GAS, BRAKE = 2.0, 0.1, 0.03  # actions per rad, and per m/s off the wanted speed
BRAKE_MARGIN = 5.0  # m/s above the wanted speed from which the brake helps
GAS_IN_TURNS = 1.5  # less gas per rad of error, as rear wheels slip
NOISE_MEMORY = 0.9  # of the noise from step to step


@dataclass(frozen=True)
class RaceDriver(Behavior):
    """Sees the car and the road themselves, not the frames. Drives as fast and as badly as each episode draws.

    `noise` is the largest standard deviation of what every step adds to the noise of the three actions, of which the
    next step keeps 0.9; an episode draws its own from 0 to there, and its top speed from `slowest` to `fastest` (m/s).
    It drives best without noise at 65 m/s.
    """

    action_size: int = 3
    slowest: float = 65.0
    fastest: float = 65.0

    def begin(self, rng: np.random.Generator) -> Drawn:
        return {"top_speed": rng.uniform(self.slowest, self.fastest), "noise": rng.uniform(0.0, self.noise)}

    def start(self, env: gym.Env[Any, Any], episode: Drawn) -> None:
        simulator: Any = env.unwrapped
        simulator = simulator.simulator
        tiles = np.array([(x, y) for _, _, x, y in simulator.track])
        along = np.roll(tiles, -1, axis=0) - tiles
        episode["hull"], episode["tiles"] = simulator.car.hull, tiles
        episode["headings"], episode["added"] = np.arctan2(along[:, 1], along[:, 0]), np.zeros(3)

    def act(self, observations: Array, rngs: Generators, episodes: Sequence[Drawn]) -> Array:
        """Steering, gas and brake, [n, 3], scaled to [-1, 1]."""
        actions = []
        for rng, episode in zip(rngs, episodes, strict=True):
            episode["added"] = NOISE_MEMORY * episode["added"] + episode["noise"] * rng.standard_normal(3)
            steering, gas, brake = np.clip(_drive(episode) + episode["added"], (-1, 0, 0), (1, 1, 0.8))
            actions.append((steering, 2 * gas - 1, 2 * brake - 1))
        return np.array(actions)


def _drive(episode: Drawn) -> Array:
    """Steering, gas and brake without noise, before they are clipped."""
    hull, tiles, headings = episode["hull"], episode["tiles"], episode["headings"]
    position, speed = np.array(hull.position), float(np.linalg.norm(hull.linearVelocity))
    here = int(np.argmin(((tiles - position) ** 2).sum(1)))
    target = tiles[(here + int(LOOK_AHEAD[0] + LOOK_AHEAD[1] * speed)) % len(tiles)] - position
    error = _angle(np.arctan2(target[1], target[0]) - hull.angle - np.pi / 2)
    ahead = headings[(here + np.arange(2, 2 + int(BENDS_AHEAD[0] + BENDS_AHEAD[1] * speed))) % len(tiles)]
    bend = np.abs(_angle(ahead - headings[here])).max()
    wanted = episode["top_speed"] / (1 + BEND_SLOWNESS * bend)
    gas = GAS * (wanted - speed) * max(0.0, 1 - GAS_IN_TURNS * abs(error))
    return np.array([-STEERING * error, gas, BRAKE * (speed - wanted - BRAKE_MARGIN)])


def _angle(radians: Any) -> Any:
    """The same angles in [-pi, pi)."""
    return (radians + np.pi) % (2 * np.pi) - np.pi
