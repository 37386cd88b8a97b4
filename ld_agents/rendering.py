"""What an agent does, to look at: a window, a video, a picture of its plans. In mazes the plans are drawn in.

LDCQ's candidates are drawn where each is predicted to end, LatentDiffuser's as the paths they describe; those of the
highest value are bright, and the one that is executed is red.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from ld_agents.data.storage import whole
from ld_agents.evaluation.rollouts import episode_seed

MakeEnv = Callable[[str], gym.Env[Any, Any]]  # from a render mode
N_CANDIDATES = 24
_MARKER_SIZE = 0.05  # radius, of the width of a maze's corridor
_SPHERE, _BOX = 2, 6  # MuJoCo's numbers of kinds of geoms
_NO_RENDERER = (
    "Rendering without a display needs EGL (Debian, Ubuntu: apt-get install libegl1 libgl1-mesa-dri) or OSMesa "
    "(apt-get install libosmesa6)."
)


@dataclass(frozen=True)
class Plans:
    """Candidates at one state, in meters: paths [K, T, 2], values [K], and the index of the one that is executed."""

    paths: NDArray[np.float64]
    values: NDArray[np.float64]
    chosen: int


def plans(agent: Any, observation: Any, keys: NDArray[np.int64] | None = None) -> Plans | None:
    """Candidates at an observation of a maze, whose state begins with the position; None where the agent has none.

    Args:
        agent: LDCQ or LatentDiffuser; any other agent has no plans.
        observation: of one environment.
        keys: noise keys [1] of a decision, the last part of the state that `predict` returned with it; None: those of
            an episode that begins here.
    """
    policy = agent.policy
    states = torch.as_tensor(policy._flatten(observation)[0], device=agent.device)
    noise = None if keys is None else torch.as_tensor(keys, device=agent.device)
    if hasattr(policy, "propose_plans"):
        found = policy.propose_plans(states, max(N_CANDIDATES, agent.settings.n_candidates), keys=noise)
        paths, values = found.states[0, :, :, :2], found.returns[0]
        chosen = int(values[: agent.settings.n_candidates].argmax())
    elif hasattr(policy, "propose"):
        latents, of_candidates = policy.propose(states, keys=noise)
        with torch.inference_mode():
            ends = policy.vae.predict_final_state(policy.normalize(states)[:, None], policy._raw(latents)).mean
            ends = (ends * policy.observation_std + policy.observation_mean)[0, :, :2]
        paths, values = torch.stack([states[:, :2].expand_as(ends), ends], 1), of_candidates[0]
        chosen = int(values.argmax())
    else:
        return None
    return Plans(paths.double().cpu().numpy(), values.double().cpu().numpy(), chosen)


class _Scene:
    """A maze of MuJoCo as it is drawn: its walls, and the renderer that takes markers."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.base: Any = env.unwrapped
        parts = (getattr(self.base, name, None) for name in ("point_env", "ant_env", "simulator"))
        self.simulator: Any = next((part for part in parts if part is not None), self.base)
        self.walls = self.half_sizes = np.zeros((0, 2))  # centers and extents [W, 2] in meters
        if hasattr(self.simulator, "model"):
            model = self.simulator.model
            of_walls = model.geom_type == _BOX
            self.walls, self.half_sizes = model.geom_pos[of_walls, :2], model.geom_size[of_walls, :2]

    @property
    def goal(self) -> NDArray[np.float64]:
        """Position [2] in meters."""
        return np.asarray(self.base.goal)

    @property
    def is_maze(self) -> bool:
        return len(self.walls) > 0 and hasattr(self.base, "goal") and self.goal.shape == (2,)

    def corners(self) -> NDArray[np.float64]:
        """Lower left and upper right corner of the maze [2, 2]."""
        return np.stack([(self.walls - self.half_sizes).min(0), (self.walls + self.half_sizes).max(0)])

    def mark(self, plans: Plans) -> None:
        """Draw candidates, the executed one and the goal into the next image."""
        viewer = self.simulator.mujoco_renderer._get_viewer(self.simulator.render_mode)
        low, high = self.corners()
        camera = viewer.cam
        camera.type, camera.fixedcamid, camera.trackbodyid = 0, -1, -1
        camera.lookat[:] = [*(low + high) / 2, 0]
        camera.azimuth, camera.elevation, camera.distance = 90, -90, 1.25 * (high - low).max()
        size, heat = 2 * _MARKER_SIZE * self.half_sizes.min(), _shares(plans.values)
        for index in np.argsort(plans.values):
            color = np.array([1, 0, 0, 1]) if index == plans.chosen else np.array([heat[index], heat[index], 1, 0.6])
            path = plans.paths[index]
            for point in path[-1:] if len(path) == 2 else path[:: max(1, len(path) // 12)]:
                self._sphere(viewer, point, size * (2 if index == plans.chosen else 1), color)
        self._sphere(viewer, self.goal, 3 * size, np.array([0, 1, 0, 0.6]))

    @staticmethod
    def _sphere(viewer: Any, point: Any, size: float, color: NDArray[Any]) -> None:
        viewer.add_marker(
            type=_SPHERE, pos=np.array([*point[:2], 2 * size]), size=np.full(3, size), rgba=color.astype(np.float32)
        )


def _shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values - values.min()) / max(float(np.ptp(values)), 1e-12)


def episodes(agent: Any, env: gym.Env[Any, Any], n_episodes: int = 1, *, seed: int = 0) -> Iterator[Any]:
    """Run seeded episodes, those of `evaluate`, and yield after each step the image that the environment renders.

    In mazes the plan that is being executed is drawn, and its rivals.
    """
    scene = _Scene(env)
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=episode_seed(seed, episode))
        state, drawn, start, over = None, None, True, False
        while not over:
            batch = {k: np.asarray(v)[None] for k, v in observation.items()} if isinstance(observation, dict) else None
            actions, state = agent.predict(
                np.asarray(observation)[None] if batch is None else batch, state, np.array([start]), deterministic=True
            )
            if scene.is_maze and state is not None:
                if len(state) == 3 and state[1][0] == agent.settings.exec_horizon - 1:  # just planned
                    drawn = plans(agent, observation, state[-1])
                if drawn is not None:
                    scene.mark(drawn)
            observation, _, terminated, truncated, _ = env.step(actions[0])
            start, over = False, bool(terminated or truncated)
            yield None if env.render_mode == "human" else env.render()  # a window follows by itself


def play(agent: Any, make_env: MakeEnv, n_episodes: int = 1, *, seed: int = 0) -> None:
    """Show episodes in a window.

    Args:
        agent: any agent.
        make_env: makes the environment from a render mode, such as `dataset.make_eval_env`.
        n_episodes: number of episodes.
        seed: the episodes are those of `evaluate` with this seed.

    Raises:
        RuntimeError: there is no display.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise RuntimeError("There is no display for a window. Record a video instead: ld-agents video AGENT agent.mp4")
    with contextlib.closing(make_env("human")) as env:
        for _ in episodes(agent, env, n_episodes, seed=seed):
            pass


def record_video(
    agent: Any, make_env: MakeEnv, path: str | Path, n_episodes: int = 1, *, seed: int = 0, max_frames: int = 2000
) -> Path:
    """Record episodes as an mp4 (H.264), without a display where there is none.

    Args:
        agent, make_env, n_episodes, seed: see `play`.
        path: file to write; it appears when the video is complete.
        max_frames: the video ends here.

    Raises:
        ImportError: PyAV is not installed.
        RuntimeError: nothing can be rendered; the message names the packages to install.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError('Videos need PyAV. Install it with: pip install "ld_agents[video]"') from error
    path = Path(path)
    with (
        contextlib.closing(_headless(make_env)) as env,
        whole(path) as unfinished,
        av.open(str(unfinished), "w", format="mp4") as file,
    ):
        stream: Any = file.add_stream("libx264", rate=int(env.metadata.get("render_fps") or 30))
        stream.pix_fmt = "yuv420p"
        for image in itertools.islice(_images(agent, env, n_episodes, seed), max_frames):
            height, width = (2 * (size // 2) for size in image.shape[:2])  # H.264 takes even sizes
            if not stream.codec_context.is_open:
                stream.width, stream.height = width, height
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]))))
        file.mux(stream.encode())
    return path


def _images(agent: Any, env: gym.Env[Any, Any], n_episodes: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    env.reset(seed=episode_seed(seed, 0))
    try:
        env.render()  # whatever fails here has to do with rendering alone
    except Exception as error:
        raise RuntimeError(f"{_NO_RENDERER} ({type(error).__name__}: {error})") from error
    yield from episodes(agent, env, n_episodes, seed=seed)


def _headless(make_env: MakeEnv) -> gym.Env[Any, Any]:
    """An environment that renders images. MuJoCo must be told how before it draws for the first time."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and "MUJOCO_GL" not in os.environ:
        found = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if ctypes.util.find_library(library)]
        if found:
            os.environ["MUJOCO_GL"] = found[0]
    return make_env("rgb_array")


def plans_picture(agent: Any, make_env: MakeEnv, path: str | Path, n_starts: int = 3, *, seed: int = 0) -> Path:
    """Draw the candidates at the first states of seeded episodes of a maze, one panel each.

    Args:
        agent, seed: see `play`.
        make_env: makes the evaluation environment, a maze.
        path: file to write, in the format that its suffix names.
        n_starts: number of episodes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the environment is no maze, or the agent has no plans.
    """
    try:
        from matplotlib.collections import LineCollection, PatchCollection
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ImportError('Pictures need matplotlib. Install it with: pip install "ld_agents[bench]"') from error
    path = Path(path)
    with contextlib.closing(make_env("rgb_array")) as env:
        scene = _Scene(env)
        figure = Figure(figsize=(4.2 * n_starts, 4.4), layout="constrained")
        for episode in range(n_starts):
            observation, _ = env.reset(seed=episode_seed(seed, episode))
            found = plans(agent, observation) if scene.is_maze else None
            if found is None:
                raise ValueError(
                    "Only the plans of LDCQ and LatentDiffuser in a maze can be drawn; this is "
                    f"{type(agent).__name__} in {env.spec.id if env.spec else env}."
                )
            axis = figure.add_subplot(1, n_starts, episode + 1)
            corners = zip(scene.walls - scene.half_sizes, 2 * scene.half_sizes, strict=True)
            boxes = [Rectangle((corner[0], corner[1]), *sides) for corner, sides in corners]
            axis.add_collection(PatchCollection(boxes, color="#b9bec4"))
            lines = LineCollection(list(found.paths), cmap="viridis", linewidths=1.2, alpha=0.8)
            lines.set_array(_shares(found.values))
            axis.add_collection(lines)
            axis.plot(*found.paths[found.chosen].T, color="#CC0000", linewidth=3)
            axis.plot(*found.paths[found.chosen][0], "o", color="black", markersize=6, markeredgecolor="white")
            axis.plot(*scene.goal, "*", color="#CC0000", markersize=14, markeredgecolor="white")
            low, high = scene.corners()
            axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])
            axis.set_title(f"start {episode + 1}: value {found.values.min():.3g} to {found.values.max():.3g}", size=10)
        figure.suptitle(f"{type(agent).__name__}: candidates, bright is high value; red: the one that is executed")
        with whole(path) as unfinished:
            figure.savefig(unfinished, format=path.suffix.removeprefix(".") or "png", dpi=120)
    return path
