"""Offline data as flat arrays: rows, episode ends, and windows that are index gathers."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.data.frames import are_frames, checked_frame_space, frame_rows
from ld_agents.data.space_rules import checked_action_space, checked_observation_space, environment_spaces
from ld_agents.evaluation.eval_env import check_env

LARGEST = 1e15  # of what is learned from: float32 holds its square, and sums of many squares
_ROWS_PER_CHECK = 262_144


class OfflineDataset:
    """Transitions of many episodes, one after the other, in flat float32 tensors.

    An episode ends at a terminal, at a timeout, or at the last row. A terminal means that the value after the step is
    zero; a timeout only means that the recording stops, so it is never treated as a terminal.

    Args:
        observations: [N, S] array or tensor, float32 (used without a copy) or float64; or frames [N, h, w, C] uint8,
            which stay uint8 and, if they are a memory map, on disk.
        actions: [N, A], same types. Action t was taken at observation t.
        rewards: [N].
        terminals: [N] bool or 0/1.
        timeouts: [N] bool or 0/1.
        observation_space: Box, or the Dict that the user passes to ``predict``. None: that of the environment, without
            one an unbounded Box.
        action_space: Box. None: that of the environment, without one [-1, 1], which all actions must fit.
        final_observations: [E, S], the observation after the last action of each episode. A row of NaN means unknown.
            Of frames, [E, h, w, C] uint8. None: all are unknown.
        observation_keys: keys of a Dict observation, in the order in which they are concatenated to S numbers.
        env: the environment that the data were recorded in, or its id in Gymnasium's registry: gives the spaces, and
            becomes the evaluation environment of `info`. None: `info` may name one.
        recording_ends: [R] exclusive end rows of the recordings, where recording goes on after a terminal, as D4RL's
            AntMaze does at the goal. None: each episode is one.
        info: origin and evaluation environment.

    Attributes:
        observation_rows: [N, S] or [N + E, S] float32; the final observations follow the N observations. Frames are
            [N, h, w, C] or [N + E, h, w, C] uint8.
        observations: [N, S], a view of the first N rows.
        has_frames: whether observations are frames.
        actions: [N, A] float32.
        rewards: [N] float32.
        terminals: [N] bool.
        episode_ends: [E] int64, the exclusive end row of each episode.
        recording_ends: [R] int64, the exclusive end row of each recording, of one or more episodes.
        n_steps: number of transitions N.
        n_episodes: number of episodes E.
        observation_dim: size S of a flat observation; of a frame, h * w * C.
        action_dim: size A of an action.

    Warns:
        UserWarning: rows with both flags, data without any end, and actions of an integer type.

    Raises:
        ValueError: shapes that do not fit, NaN, infinite or huge numbers (beyond 1e15), actions outside the action
            space.
        TypeError: arrays that are not numbers, or spaces other than vectors and dictionaries of vectors.
    """

    def __init__(
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        terminals: Any,
        timeouts: Any,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Box | None = None,
        *,
        final_observations: Any = None,
        observation_keys: tuple[str, ...] | None = None,
        recording_ends: Any = None,
        env: gym.Env[Any, Any] | str | None = None,
        info: DatasetInfo | None = None,
    ) -> None:
        self.info = info if info is not None else DatasetInfo()
        self.observation_keys = tuple(observation_keys) if observation_keys is not None else None
        self.has_frames = are_frames(observations)
        rows = frame_rows(observations, None, 0) if self.has_frames else _tensor("observations", observations, 2)
        self.actions = _tensor("actions", actions, 2)
        self.rewards = _tensor("rewards", rewards, 1)
        self.terminals = _tensor("terminals", terminals, 1, torch.bool)
        ends = _tensor("timeouts", timeouts, 1, torch.bool)
        self.n_steps = n = len(rows)
        self.observation_dim, self.action_dim = math.prod(rows.shape[1:]), self.actions.shape[1]
        others = {"actions": self.actions, "rewards": self.rewards, "terminals": self.terminals, "timeouts": ends}
        for name, array in others.items():
            if array.shape[0] != n:
                raise ValueError(
                    f"observations have {n} rows but {name} have {array.shape[0]}. Give one row per step to all five "
                    "arrays; pass the observation after the last step of each episode as final_observations."
                )
        if n == 0:
            raise ValueError("The dataset is empty (0 steps). Pass at least one step.")
        if self.observation_dim == 0 or self.action_dim == 0:
            raise ValueError(
                f"Observations have {self.observation_dim} and actions {self.action_dim} columns. Give both at least "
                "one."
            )
        if (both := torch.nonzero(self.terminals & ends).reshape(-1)).numel():
            warnings.warn(
                f"{len(both)} rows have both flags, terminal and timeout, the first is row {int(both[0])}. They are "
                "taken for terminals, whose value after the step is zero. If your flags of done include the timeouts, "
                "as those of Stable-Baselines3's replay buffers do, pass terminals & ~timeouts.",
                stacklevel=2,
            )
        ends = self.terminals | ends
        if n > 1 and not ends.any():
            warnings.warn(
                f"Neither terminals nor timeouts mark an end, so all {n} rows are one episode. If the environment was "
                "reset in between, mark the last row of each episode in timeouts.",
                stacklevel=2,
            )
        ends[-1] = True
        self.episode_ends = torch.nonzero(ends).reshape(-1) + 1
        self.n_episodes = e = len(self.episode_ends)
        self.recording_ends = self.episode_ends
        if recording_ends is not None:
            self.recording_ends = torch.as_tensor(recording_ends, dtype=torch.int64)
            if not torch.isin(self.recording_ends, self.episode_ends).all() or self.recording_ends[-1:].tolist() != [n]:
                raise ValueError(
                    "recording_ends must be the ends of episodes, the last one that of the data. Mark each of them as "
                    "a timeout or a terminal."
                )
        if not self.has_frames:
            self._check_finite("observations", rows)
        self._check_finite("actions", self.actions)
        self._check_finite("rewards", self.rewards[:, None])

        if final_observations is None or self.has_frames:
            self._final_known = torch.full((e,), final_observations is not None)
            self.observation_rows = frame_rows(observations, final_observations, e) if self.has_frames else rows
        else:
            final = _tensor("final_observations", final_observations, 2)
            if tuple(final.shape) != (e, self.observation_dim):
                raise ValueError(
                    f"final_observations have shape {tuple(final.shape)}, but the arrays hold {e} episodes of "
                    f"{self.observation_dim} numbers. Give one row per episode (an episode ends at a terminal, a "
                    "timeout or the last row); use a row of NaN where it is not known."
                )
            if (bad := (final.abs() > LARGEST).any(dim=1)).any():
                raise ValueError(
                    f"The final observation of episode {int(torch.nonzero(bad)[0])} is infinite or beyond {LARGEST:g}. "
                    "Replace it or drop the episode."
                )
            self._final_known = ~torch.isnan(final).any(dim=1)
            self.observation_rows = rows
            if self._final_known.any():  # otherwise the rows are those of None: the same data have one content hash
                final = torch.where(self._final_known[:, None], final, rows[self.episode_ends - 1])
                self.observation_rows = torch.cat([rows, final])
        observation_space, action_space = self._take_spaces_of(env, [observation_space, action_space])
        self._bounds_given = action_space is not None
        if action_space is None and not str(getattr(actions, "dtype", "float")).startswith(("float", "torch.float")):
            warnings.warn(
                "Actions are whole numbers. If they name discrete actions, no agent here learns from them; if they are "
                "continuous, pass action_space= or floats.",
                stacklevel=2,
            )
        self.action_space = checked_action_space(action_space, self.actions, self._where)
        if self.has_frames:
            self.observation_space: spaces.Box | spaces.Dict = checked_frame_space(observation_space, rows)
        else:
            sizes = self.observation_keys, self.observation_dim
            self.observation_space = checked_observation_space(observation_space, *sizes)

    # -- validation ------------------------------------------------------------------------------------------------

    def _where(self, row: int) -> str:
        episode = int(torch.searchsorted(self.episode_ends, row, right=True))
        begin = int(self.episode_ends[episode - 1]) if episode else 0
        return f"episode {episode}, step {row - begin} (row {row})"

    def _check_finite(self, name: str, array: torch.Tensor) -> None:
        for begin in range(0, array.shape[0], _ROWS_PER_CHECK):
            bad = ~(array[begin : begin + _ROWS_PER_CHECK].abs() <= LARGEST)
            if bad.any():
                row, column = (int(i) for i in torch.nonzero(bad)[0])
                value = float(array[begin + row, column])
                huge = f", and nothing can be learned from numbers beyond {LARGEST:g}" if math.isfinite(value) else ""
                raise ValueError(
                    f"{name} hold {value:g} in {self._where(begin + row)}, column {column}{huge}. Drop that episode or "
                    "replace the value before building the dataset."
                )

    def _take_spaces_of(self, env: Any, found: list[spaces.Space[Any] | None]) -> list[Any]:
        """The given spaces, completed by those of an environment."""
        known = env is not None
        if not known and self.info.provenance == "arrays" and any(space is None for space in found):
            env = self.info.eval_env
        if env is None:
            return found
        try:
            spec, *of_env = environment_spaces(env)
        except (ValueError, TypeError, ImportError):
            if known:
                raise
            return found  # make_eval_env tells why
        shapes = tuple(self.observation_rows.shape[1:]), (self.action_dim,)
        if self.info.eval_env is None and spec is not None:
            self.info = replace(self.info, eval_env=spec)
        fits = [
            known or (isinstance(space, spaces.Box) and space.shape == shape)
            for space, shape in zip(of_env, shapes, strict=True)
        ]
        return [theirs if ours is None and fit else ours for ours, theirs, fit in zip(found, of_env, fits, strict=True)]

    # -- sizes -----------------------------------------------------------------------------------------------------

    @property
    def observations(self) -> torch.Tensor:
        """The N observations, [N, S] float32, without the final ones."""
        return self.observation_rows[: self.n_steps]

    def with_observations(self, rows: torch.Tensor) -> OfflineDataset:
        """The same steps with other observations, such as codes of frames, in the order of `observation_rows`."""
        other = self.to(self.rewards.device)
        other.observation_rows, other.observation_dim, other.has_frames = rows, rows.shape[1], False
        vars(other).pop("content_hash", None)
        return other

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            "observation_rows": self.observation_rows,
            "actions": self.actions,
            "rewards": self.rewards,
            "terminals": self.terminals,
            "episode_ends": self.episode_ends,
            "final_known": self._final_known,
        }

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of names, shapes, types and bytes of all arrays; the same on every machine."""
        return _sha256(self._tensors())

    def has_hash(self, given: str) -> bool:
        """Whether `given` is the `content_hash`, or what it was in earlier versions.

        Those kept a row for every final observation that was given, even where all of them were NaN.
        """
        if given == self.content_hash:
            return True
        if self.has_frames or self._final_known.any():
            return False
        rows = torch.cat([self.observation_rows, self.observation_rows[self.episode_ends - 1]])
        return given == _sha256(self._tensors() | {"observation_rows": rows})

    def __repr__(self) -> str:
        return (
            f"OfflineDataset({self.info.id!r}: {self.n_steps} steps, {self.n_episodes} episodes, "
            f"observations {self.observation_dim}, actions {self.action_dim})"
        )

    # -- windows ---------------------------------------------------------------------------------------------------

    def window_starts(self, horizon: int, *, past_terminals: bool = False) -> torch.Tensor:
        """Every row t such that rows t .. t+horizon-1 lie in one episode and s_{t+horizon} is known.

        The last window of an episode counts if its final observation is known, or if it ends in a terminal: then
        s_{t+horizon} is never bootstrapped.

        Args:
            horizon: window length H in steps, at least 1.
            past_terminals: windows may also run past a terminal, so that each of the last H steps before it begins a
                window that contains it. Such a window holds at least two recorded steps: D4RL's AntMaze continues at
                its goal, where every step is an episode of its own, and windows of one step would carry no signal.

        Returns:
            [W] int32, increasing.

        Raises:
            ValueError: horizon below 1, or no episode is long enough.
        """
        if horizon < 1:
            raise ValueError(f"The horizon is {horizon}. It must be at least 1.")
        ends = self.episode_ends
        begins = torch.cat([ends.new_zeros(1), ends[:-1]])
        terminal = self.terminals[ends - 1]
        counts = ends - begins - horizon + (self._final_known | terminal).long()
        if past_terminals:
            counts = torch.where(terminal, ends - begins + 1 - min(2, horizon), counts)
        counts.clamp_(min=0)
        total = int(counts.sum())
        if total == 0:
            raise ValueError(
                f"No window of {horizon} steps fits into an episode; the longest episode has "
                f"{int((ends - begins).max())} steps. Use a shorter horizon."
            )
        offsets = (begins - (counts.cumsum(0) - counts)).to(torch.int32)
        starts = torch.arange(total, dtype=torch.int32, device=ends.device)
        return starts.add_(torch.repeat_interleave(offsets, counts))

    def window_steps(self, starts: torch.Tensor, horizon: int) -> torch.Tensor:
        """Recorded steps of each window, [B] int64: fewer than ``horizon`` where it runs past a terminal."""
        starts = starts.long()
        return (self.episode_ends[self._episodes(starts)] - starts).clamp_(max=horizon)

    def next_rows(self, starts: torch.Tensor, horizon: int | torch.Tensor) -> torch.Tensor:
        """Row of s_{t+horizon} in ``observation_rows`` for each start t, [B] int64.

        Where the episode ends first, this is its final observation. If that is unknown, it is the last row of the
        episode: a placeholder that must never be bootstrapped from.
        """
        after = starts.long() + horizon
        episode = self._episodes(starts)
        end = self.episode_ends[episode]
        final_row = torch.where(self._final_known[episode], episode + self.n_steps, end - 1)
        return torch.where(after < end, after, final_row)

    def future_rows(
        self, starts: torch.Tensor, horizon: int, uniform: torch.Tensor, limit: int | None = None
    ) -> torch.Tensor:
        """Rows of states drawn from s_{t+horizon} to the end of the episode, or to s_{t+limit}, [B] int64.

        ``starts`` [B] are the rows t, ``uniform`` [B] numbers from [0, 1) that choose. Where the episode ends before
        s_{t+horizon}, its last state is taken.
        """
        episode = self._episodes(starts)
        last = self.episode_ends[episode] - starts.long() - 1 + self._final_known[episode].long()
        if limit is not None:
            last = last.clamp(max=max(limit, horizon))
        ahead = horizon + (uniform * (last - horizon + 1).clamp(min=1)).long()
        return self.next_rows(starts, ahead)

    def window_rows(self, starts: torch.Tensor, horizon: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the windows that begin at ``starts`` [B] in ``observation_rows``, and which steps are recorded.

        Past a terminal nothing is recorded, and the state stays what it became there.

        Returns:
            [B, H] int64, [B, H] bool.
        """
        rows, recorded = self._window_rows(starts, horizon)
        if not recorded.all():
            rows = torch.where(recorded, rows, self.next_rows(starts, horizon)[:, None])
        return rows, recorded

    def window_rewards(self, starts: torch.Tensor, horizon: int) -> torch.Tensor:
        """Rewards [B, H] of the windows that begin at ``starts`` [B]; zero past a terminal."""
        rows, recorded = self._window_rows(starts, horizon)
        return self.rewards[rows] * recorded

    def window_terminals(self, starts: torch.Tensor, horizon: int) -> torch.Tensor:
        """Whether a terminal lies in the window, [B] bool."""
        return self.terminals[starts.long() + self.window_steps(starts, horizon) - 1]

    def _window_rows(self, starts: torch.Tensor, horizon: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the windows, the last one of an episode in place of what would follow it, and which are recorded."""
        steps = torch.arange(horizon, device=starts.device)
        recorded = steps < self.window_steps(starts, horizon)[:, None]
        rows = starts.long()[:, None] + steps
        return torch.minimum(rows, self.episode_ends[self._episodes(starts)][:, None] - 1), recorded

    def _episodes(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(self.episode_ends, rows.long(), right=True)

    def to(self, device: torch.device | str) -> OfflineDataset:
        """The same data on another device; shares memory where nothing has to move."""
        other = object.__new__(OfflineDataset)
        for name, value in vars(self).items():
            setattr(other, name, value.to(device) if isinstance(value, torch.Tensor) else value)
        return other

    # -- use -------------------------------------------------------------------------------------------------------

    def flatten_observation(self, observation: Any) -> np.ndarray:
        """Dict observation (single or batched arrays) to flat float32 [..., S]; flat arrays pass through.

        Raises:
            ValueError: a key is missing or the size is not S.
        """
        if isinstance(observation, Mapping):
            if self.observation_keys is None:
                raise ValueError("This dataset has flat observations, but a dictionary was given. Pass the array.")
            missing = [key for key in self.observation_keys if key not in observation]
            if missing:
                raise ValueError(
                    f"The observation has no key {missing[0]!r}, only {tuple(observation)}. Use the environment of the "
                    "dataset (make_eval_env)."
                )
            parts = [np.asarray(observation[key], dtype=np.float32) for key in self.observation_keys]
            flat = np.concatenate(parts, axis=-1)
        else:
            flat = np.asarray(observation, dtype=np.float32)
        if flat.ndim == 0 or flat.shape[-1] != self.observation_dim:
            raise ValueError(
                f"The observation has shape {flat.shape}; its last axis must hold {self.observation_dim} numbers."
            )
        return flat

    def make_eval_env(self, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Build the evaluation environment; `render_mode` is Gymnasium's. Only registered environments are ever built.

        Raises:
            ValueError: the dataset names no environment, one that is not registered, or one with other spaces.
        """
        if self.info.eval_env is None:
            raise ValueError(
                f"The dataset {self.info.id!r} names no evaluation environment. Pass one, as in "
                "agent.evaluate(env): an environment, its registered id or a function that makes it."
            )
        env = self.info.eval_env.make(render_mode)
        try:
            spaces_of_data = self.observation_space, self.action_space, self.observation_keys
            check_env(env, *spaces_of_data, given=self._bounds_given)
        except ValueError:
            env.close()
            raise
        return env


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(tensor.cpu().numpy())
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {array.shape} {array.dtype.str}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _tensor(name: str, array: Any, ndim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The array as a contiguous tensor, without a copy where it is one of that type already."""
    array = array if isinstance(array, torch.Tensor) else np.asarray(array)
    given = array.dtype
    if not isinstance(array, torch.Tensor):
        if array.dtype.kind not in "fiub":
            wanted = "an array of numbers" if dtype == torch.float32 else "booleans, or 0 and 1"
            raise TypeError(f"{name} hold {array.dtype} values. Pass {wanted}.")
        with warnings.catch_warnings():
            # The dataset never writes to its arrays, so a read-only array (a memory map) is fine.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
            array = torch.from_numpy(np.ascontiguousarray(array, np.float32 if dtype == torch.float32 else None))
    tensor: torch.Tensor = array.detach()
    if tensor.ndim != ndim:
        wanted = "[steps, size]" if ndim == 2 else "[steps]"
        todo = "Reshape them."
        if ndim == 2 and tensor.ndim in (3, 4):
            image = f"Images are uint8 [steps, height, width, channels], and these are {given}"
            todo = f"{image}. Reshape them, or convert them: numbers from 0 to 1 times 255."
        raise ValueError(f"{name} have shape {tuple(tensor.shape)} instead of {wanted}. {todo}")
    if dtype == torch.bool and tensor.dtype != torch.bool and not ((tensor == 0) | (tensor == 1)).all():
        raise ValueError(f"{name} hold values other than 0 and 1. Pass booleans.")
    return tensor.to(dtype).contiguous()
