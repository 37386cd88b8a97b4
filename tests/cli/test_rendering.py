"""Plans as they are drawn: those that are executed, where the agent is, in units of the maze."""

from __future__ import annotations

import ctypes.util
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from maze_agents import maze_agent

from ld_agents import rendering

RENDERS = sys.platform != "linux" or any(map(ctypes.util.find_library, ("EGL", "OSMesa")))
needs_renderer = pytest.mark.skipif(not RENDERS, reason="neither EGL nor OSMesa is installed")


@pytest.mark.parametrize("name", ["LDCQ", "LatentDiffuser"])
def test_the_drawn_plan_is_the_executed_one(name: str) -> None:
    """In the middle of an episode too: what `predict` holds is the chosen candidate of the same noise."""
    agent: Any = maze_agent(name)
    rng = np.random.default_rng(0)
    state, start, checked = None, True, 0
    for _ in range(7):
        observation = {"observation": rng.uniform(-1, 1, 4)}
        actions, state = agent.predict(
            {"observation": observation["observation"][None]}, state, np.array([start]), deterministic=True
        )
        start = False
        if state[1][0] != agent.settings.exec_horizon - 1:
            continue
        checked += 1
        found = rendering.plans(agent, observation, state[-1])
        assert found is not None
        np.testing.assert_allclose(found.paths[:, 0], found.paths[:1, 0].repeat(len(found.paths), 0), atol=0.5)
        states = torch.as_tensor(observation["observation"][None], dtype=torch.float32)
        keys = torch.as_tensor(state[-1])
        if name == "LDCQ":
            latents, values = agent.policy.propose(states, keys=keys)
            np.testing.assert_array_equal(latents[0, found.chosen], state[0][0])
            assert found.chosen == int(values.argmax())
            np.testing.assert_allclose(found.paths[0, 0], observation["observation"][:2], atol=1e-6)
        else:
            plans = agent.policy.propose_plans(states, rendering.N_CANDIDATES, keys=keys)
            np.testing.assert_allclose(plans.actions[0, found.chosen, 0], actions[0], atol=1e-5)
    assert checked == 3


def test_agents_without_plans(tmp_path: Path) -> None:
    agent = maze_agent("BC")
    assert rendering.plans(agent, np.zeros(4, np.float32)) is None
    with pytest.raises(ValueError, match="LDCQ and LatentDiffuser"):
        rendering.plans_picture(agent, Screen, tmp_path / "plans.png")
    assert not list(tmp_path.iterdir())


class Screen(gym.Env[Any, Any]):
    """Renders its step number; observation and actions are those of a point maze's agent."""

    observation_space = gym.spaces.Box(-10, 10, (4,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode: str | None = None, *, broken: bool = False) -> None:
        self.render_mode, self.broken, self.rendered = render_mode, broken, 0
        self.metadata = {"render_fps": 10, "render_modes": ["human", "rgb_array"]}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        if self.render_mode == "human":
            self.render()
        return np.zeros(4, np.float32), 0.0, False, self.count == 5, {}

    def render(self) -> Any:
        if self.broken:
            raise AttributeError("'NoneType' object has no attribute 'opengl_context'")
        self.rendered += 1
        return np.full((33, 47, 3), 40 * self.count, np.uint8) if self.render_mode == "rgb_array" else None


def decoded(path: Path) -> list[np.ndarray]:
    import av

    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def test_video_holds_every_step_and_has_even_sizes(tmp_path: Path) -> None:
    path = rendering.record_video(maze_agent("BC"), Screen, tmp_path / "new" / "v.mp4", 2)
    frames = decoded(path)
    assert len(frames) == 10
    assert frames[0].shape == (32, 46, 3)
    brightness = [float(frame.mean()) for frame in frames]
    np.testing.assert_allclose(brightness, [40, 80, 120, 160, 200] * 2, atol=6)
    assert len(decoded(rendering.record_video(maze_agent("BC"), Screen, path, max_frames=3))) == 3


def test_a_renderer_that_fails_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"apt-get install libegl1 libgl1-mesa-dri.*opengl_context"):
        rendering.record_video(maze_agent("BC"), lambda mode: Screen(mode, broken=True), tmp_path / "v.mp4")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"ld_agents\[video\]"):
        rendering.record_video(maze_agent("BC"), Screen, tmp_path / "v.mp4")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"ld_agents\[bench\]"):
        rendering.plans_picture(maze_agent(), Screen, tmp_path / "p.png")


def test_play_shows_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    made: list[Screen] = []

    def make(mode: str) -> Screen:
        made.append(Screen(mode))
        return made[0]

    rendering.play(maze_agent("BC"), make, 2)
    assert made[0].render_mode == "human"
    assert made[0].rendered == 10


@pytest.mark.skipif(sys.platform != "linux", reason="other systems need no DISPLAY")
def test_play_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="Record a video instead"):
        rendering.play(maze_agent("BC"), Screen)
