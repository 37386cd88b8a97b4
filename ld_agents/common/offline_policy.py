"""How every agent acts: Stable-Baselines3's `predict` on flat observations, dictionaries and batches."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from ld_agents.common.keyed_noise import next_keys, observation_keys, told_apart

State = tuple[NDArray[Any], ...]


class OfflinePolicy(BasePolicy):
    """How an agent acts. Subclasses implement `act`.

    Args:
        observation_space: what `predict` is given: a flat Box, or a Dict of vectors.
        action_space: a bounded Box. Networks work in [-1, 1]; `predict` returns actions in this box.
        observation_keys: the keys of a Dict observation that make up the flat state, in order. Dictionaries are
            accepted whenever this is given, also where `observation_space` is a Box.
        state_dim: S, the size of the flat state; of frames, the size of their codes.

    Attributes:
        input_dim: the size of a flat observation; S, unless the policy adds something to it.
        image_encoder: frames [n, h, w, C] uint8 to codes [n, S]; None where observations are vectors.
    """

    observation_mean: Tensor
    observation_std: Tensor
    image_encoder: nn.Module | None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        *,
        observation_keys: tuple[str, ...] | None,
        state_dim: int,
        seed: int,
    ) -> None:
        super().__init__(observation_space, action_space, squash_output=True)
        self.observation_keys = observation_keys
        self.state_dim = self.input_dim = state_dim
        self.action_dim = int(np.prod(action_space.shape))
        self.noise_seed = seed
        self.noise_calls = 0
        self.inference_only = False
        self.image_encoder = None
        self.register_buffer("observation_mean", torch.zeros(state_dim))
        self.register_buffer("observation_std", torch.ones(state_dim))

    @property
    def device(self) -> torch.device:
        """Where the networks are. SB3 searches all modules for it: a seventh of a step that goes on with a plan."""
        return self.observation_mean.device

    @abstractmethod
    def act(
        self, states: Tensor, keys: Tensor, state: State | None, episode_start: NDArray[np.bool_], deterministic: bool
    ) -> tuple[Tensor, State | None]:
        """Actions in [-1, 1] for a batch.

        Args:
            states: normalized observations, [n, S].
            keys: what the noise of this step is drawn from (`keyed_noise.py`), [n].
            state: what the last call returned, one row per environment; None at the very start.
            episode_start: [n], True where an episode begins.
            deterministic: no randomness that a repeated call would not repeat.

        Returns:
            actions [n, A], and what the next call needs to know; None if that is nothing, not even a key for its noise.
        """

    def drop(self, names: Iterable[str]) -> None:
        """Removes weights that acting does not need, by their names in `state_dict`. The agent can no longer learn."""
        for name in names:
            module, _, weight = name.rpartition(".")
            setattr(self.get_submodule(module), weight, None)  # which stays its name, as modules expect of theirs
        self.inference_only = True

    def hold(
        self,
        plan: Callable[[Tensor, Tensor], Tensor],
        width: int,
        steps: int,
        now: tuple[Tensor, Tensor, State | None, NDArray[np.bool_]],
    ) -> tuple[Tensor, NDArray[np.int64], State]:
        """Plans where an episode begins or a plan has run out, and holds every other environment's plan.

        Args:
            plan: what to hold from now on. Shapes [m, S], [m] noise keys -> [m, D].
            width: D.
            steps: environment steps that a plan is held for.
            now: states, keys, state and episode_start, as `act` was given them.

        Returns:
            the plans [n, D], the steps that each has been held for [n], and the state to return from `act`: plans and
            steps that are left.
        """
        states, keys, state, episode_start = now
        n = len(states)
        if state is None:
            held, steps_left = np.zeros((n, width), np.float32), np.zeros(n, np.int64)
        else:
            held, steps_left = state[0].copy(), state[1].copy()
        due = np.flatnonzero(episode_start | (steps_left <= 0))
        if len(due):
            rows = torch.as_tensor(due, device=states.device)
            held[due] = plan(states[rows], keys[rows]).cpu().numpy()
            steps_left[due] = steps
        return torch.as_tensor(held, device=states.device), steps - steps_left, (held, steps_left - 1)

    def normalize(self, observations: Tensor) -> Tensor:
        """Raw to normalized observations, [..., S]. The identity unless the agent normalizes observations."""
        return (observations - self.observation_mean) / self.observation_std

    def states_of(self, observations: Tensor) -> Tensor:
        """What networks see: normalized vectors, or codes of frames. Shapes [n, S] or [n, h, w, C] -> [n, S]."""
        return self.normalize(observations if self.image_encoder is None else self.image_encoder(observations))

    def action_bounds(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest action, [A] each, on the policy's device."""
        assert isinstance(self.action_space, spaces.Box)
        low, high = torch.as_tensor(self.action_space.low), torch.as_tensor(self.action_space.high)
        return low.flatten().to(self.device, torch.float32), high.flatten().to(self.device, torch.float32)

    def unscale(self, actions: Tensor) -> Tensor:
        """Actions from [-1, 1] to the action space; those outside are clipped. Shapes [..., A] -> [..., A]."""
        low, high = self.action_bounds()
        # low + (high - low) can be rounded above high
        return torch.clamp(low + 0.5 * (actions + 1) * (high - low), low, high)

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State | None]:
        """Acts. See `OfflineAlgorithm.predict`."""
        if isinstance(observation, tuple):
            raise ValueError(
                "predict was given a tuple. env.reset() of Gymnasium returns (observation, info): pass observation."
            )
        flat, single = self._flatten(observation)
        starts = np.zeros(len(flat), bool) if episode_start is None else np.asarray(episode_start, bool).reshape(-1)
        if len(starts) != len(flat):
            raise ValueError(f"episode_start has {len(starts)} entries for {len(flat)} observations.")
        if state is not None and any(len(part) != len(flat) for part in state):
            raise ValueError(
                f"state has {len(state[0])} rows for {len(flat)} observations. Pass the state that the last predict "
                "call returned for these environments, or None to start anew."
            )
        if self.training:
            self.set_training_mode(False)
        if not deterministic:
            self.noise_calls += 1
        with torch.inference_mode():
            # torch takes no views that run backwards, and warns of arrays that are read-only
            observations = torch.as_tensor(np.require(flat, requirements=["C", "W"]), device=self.device)
            keys = observation_keys(observations.flatten(1), self.noise_seed, 0 if deterministic else self.noise_calls)
            if state is not None:
                begins, last_keys = (torch.as_tensor(part, device=self.device) for part in (starts, state[-1]))
                keys = torch.where(begins, keys, next_keys(last_keys))
            if not deterministic and len(keys) > 1:
                keys = told_apart(keys)
            held = None if state is None else state[:-1]
            actions, held = self.act(self.states_of(observations), keys, held, starts, deterministic)
            actions = self.unscale(actions)
            state = None if held is None else (*held, keys.cpu().numpy())
        assert isinstance(self.action_space, spaces.Box)
        array = actions.cpu().numpy().reshape(-1, *self.action_space.shape)
        if self.action_space.dtype.kind in "iu":
            array = np.rint(array)
        array = array.astype(self.action_space.dtype)
        array = np.clip(array, self.action_space.low, self.action_space.high)  # a float64 bound is no float32 number
        if not np.isfinite(array).all():
            raise ValueError(
                f"Actions hold {array[~np.isfinite(array)][0]}. The agent has diverged, or these observations are far "
                "from all it learned from. Train it anew, or look at what it is given."
            )
        return (array[0] if single else array), state

    def forward(self, observation: Tensor, deterministic: bool = False) -> Tensor:
        """One stateless decision in torch alone, for tracing and export. Shapes [n, S] -> [n, A].

        Raises:
            RuntimeError: traced or exported, of an agent that holds plans: the graph would repeat one plan.
        """
        # neither TorchScript nor ONNX can read the bits of a number, so in a graph all states share their noise
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]
        if traced:
            keys = torch.zeros(len(observation), dtype=torch.int64, device=observation.device)
        else:
            keys = observation_keys(observation.flatten(1), self.noise_seed, 0 if deterministic else self.noise_calls)
            keys = keys if deterministic else told_apart(keys)
        starts = np.ones(len(observation), bool)
        actions, state = self.act(self.states_of(observation.float()), keys, None, starts, deterministic)
        if traced and state:
            raise RuntimeError("This agent holds plans, which a traced policy cannot. Export it: agent.export(path).")
        return self.unscale(actions)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        """SB3's inner call: one stateless decision for a batch of observations."""
        observation = (
            {k: v.cpu().numpy() for k, v in observation.items()}
            if isinstance(observation, dict)
            else (observation.cpu().numpy())
        )
        return torch.as_tensor(self.predict(observation, deterministic=deterministic)[0], device=self.device)

    def _flatten(self, observation: NDArray[Any] | dict[str, NDArray[Any]]) -> tuple[NDArray[Any], bool]:
        if self.image_encoder is not None:
            return self._frames(observation)
        return self._vectors(observation, self.observation_keys, self.input_dim)

    def _frames(self, observation: NDArray[Any] | dict[str, NDArray[Any]]) -> tuple[NDArray[np.uint8], bool]:
        assert self.observation_space.shape is not None
        shape, frames = self.observation_space.shape, np.asarray(observation)
        if frames.shape[-3:] == (shape[2], *shape[:2]):  # as SB3's VecTransposeImage turns them
            frames = np.moveaxis(frames, -3, -1)
        if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-3:] != shape:
            raise ValueError(
                f"Expected a uint8 frame of shape {shape} or a batch of shape (n, {', '.join(map(str, shape))}), got "
                f"{frames.dtype} of shape {frames.shape}. Give frames as they are in the data: the evaluation "
                "environment of the dataset makes them."
            )
        return frames.reshape(-1, *shape), frames.ndim == 3

    def _vectors(
        self, observation: NDArray[Any] | dict[str, NDArray[Any]], keys: tuple[str, ...] | None, size: int
    ) -> tuple[NDArray[np.float32], bool]:
        """Observations as vectors of a size, [n, size], of a dictionary its keys'; and whether there is just one."""
        if isinstance(observation, dict):
            if keys is None:
                raise ValueError(f"predict was given a dictionary, but this agent learned from vectors of size {size}.")
            missing = [key for key in keys if key not in observation]
            if missing:
                raise ValueError(f"The observation lacks the keys {missing}; it has {sorted(observation)}.")
            parts = [np.asarray(observation[key], np.float32) for key in keys]
            flat = np.concatenate(parts, axis=-1)
        else:
            flat = np.asarray(observation, np.float32)
        if flat.ndim not in (1, 2) or flat.shape[-1] != size:
            raise ValueError(
                f"Expected one observation of shape ({size},) or a batch of shape (n, {size}), got {flat.shape}."
            )
        if not np.isfinite(flat).all():
            raise ValueError(f"The observation holds {flat[~np.isfinite(flat)][0]}. Agents act on finite numbers.")
        return np.atleast_2d(flat), flat.ndim == 1

    def save(self, path: str) -> None:
        raise RuntimeError("Save the agent, not its policy: agent.save(path).")

    @classmethod
    def load(cls, path: str, device: torch.device | str = "auto") -> Self:
        # SB3's policies unpickle whatever the file holds
        raise RuntimeError("Load the agent, not its policy: LDCQ.load(path).policy, for example.")
