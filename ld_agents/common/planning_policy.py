"""How planners act: a plan is drawn from noise, held for some steps, and every step's action is taken from it."""

import math
import types
from abc import abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ld_agents.common import onnx_graph
from ld_agents.common.keyed_noise import keyed_normal
from ld_agents.common.offline_policy import OfflinePolicy, State

Noise = Callable[[int], Tensor]  # of a stream, [n, *noise_shape]
Program = Callable[[Tensor, Tensor], Tensor]  # states [n, S] and noise, as `draw_noise` returns it, to plans


def chosen(x: Tensor, index: Tensor) -> Tensor:
    """x[i, index[i]] for every i. Shapes [n, m, ...], [n] -> [n, ...]."""
    # a gather, because an ONNX graph would keep the length of an arange
    rows = x.flatten(2)
    return rows.gather(1, index.view(-1, 1, 1).expand(-1, 1, rows.shape[2])).view(-1, *x.shape[2:])


class PlanningPolicy(OfflinePolicy):
    """A policy that plans. Subclasses implement `plan_from` and `action_of`, and say what shapes these have.

    Their settings have `exec_horizon`, the environment steps that a plan is held for.
    """

    settings: Any

    def __init__(self, *spaces: Any, **kwargs: Any) -> None:
        super().__init__(*spaces, **kwargs)
        self._made_for: object = None
        self._made: Program | None = None
        self._tensors: list[Tensor] = []
        self.speed_up(None)

    @property
    @abstractmethod
    def plan_shape(self) -> tuple[int, ...]:
        """Of one environment's plan."""

    @property
    @abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise that one environment's plan takes from a stream."""

    @property
    def noise_streams(self) -> list[int]:
        """Those that a plan takes noise from, where `check_traceable` does not raise."""
        return [0]

    def check_traceable(self) -> None:
        """Raises ValueError where a plan cannot be one program."""

    @abstractmethod
    def plan_from(self, states: Tensor, noise: Noise) -> Tensor:
        """Plans as a function of tensors alone. Shapes [n, S], [n, *noise_shape] per stream -> [n, *plan_shape]."""

    @abstractmethod
    def action_of(self, plans: Tensor, steps: Tensor, states: Tensor, noise: Tensor | None) -> Tensor:
        """Actions in [-1, 1] of plans that have been held for some steps.

        Shapes [n, *plan_shape], [n] int64, [n, S], standard normal [n, A] -> [n, A]. Without noise, means.
        """

    def samples_actions(self, deterministic: bool) -> bool:
        """Whether actions are samples, given their plan; by default never."""
        return False

    def act(
        self, states: Tensor, keys: Tensor, state: State | None, episode_start: NDArray[np.bool_], deterministic: bool
    ) -> tuple[Tensor, State]:
        """Holds each environment's plan for `exec_horizon` steps.

        state: flat plans [n, D], steps that they are still held [n].
        """
        now = (states, keys, state, episode_start)

        def flat_plan(states: Tensor, keys: Tensor) -> Tensor:
            return self.plan(states, keys).flatten(1)

        width = math.prod(self.plan_shape)
        plans, held, state = self.hold(flat_plan, width, self.settings.exec_horizon, now)
        noise = keyed_normal(keys, (self.action_dim,), 1 << 17) if self.samples_actions(deterministic) else None
        steps = torch.as_tensor(held, device=states.device)
        return self.action_of(plans.view(-1, *self.plan_shape), steps, states, noise), state

    def plan(self, states: Tensor, keys: Tensor) -> Tensor:
        """Plans with the noise of keys. Shapes [n, S], [n] -> [n, *plan_shape]."""
        if self.fast is None:
            return self.plan_from(states, lambda k: keyed_normal(keys, self.noise_shape, k))
        return self._program()(states, self.draw_noise(keys))

    def draw_noise(self, keys: Tensor) -> Tensor:
        """All noise of a plan. Shape [n, *noise_shape], of several streams [n, streams, *noise_shape]."""
        streams = [keyed_normal(keys, self.noise_shape, k) for k in self.noise_streams]
        return torch.stack(streams, 1) if len(streams) > 1 else streams[0]

    def plan_of(self, states: Tensor, noise: Tensor) -> Tensor:
        """`plan_from` with the noise as one tensor, as `draw_noise` returns it."""
        streams = self.noise_streams
        return self.plan_from(states, lambda k: noise[:, streams.index(k)] if len(streams) > 1 else noise)

    def speed_up(self, by: Literal["fastest", "onnxruntime", "compile"] | None) -> None:
        """See `ONNXExport.speed_up`."""
        if by == "fastest":
            installed = self.device.type == "cpu" and all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))
            by = "onnxruntime" if installed else "compile"
        if by not in (None, "onnxruntime", "compile"):
            raise ValueError(f"Unknown way {by!r} to plan. Use 'fastest', 'onnxruntime', 'compile' or None.")
        if by:
            self.check_traceable()
        self.fast, self._made_for, self._made = by, None, None
        if by == "onnxruntime":
            try:
                self._program()  # what is missing is said here, not at the first plan
            except Exception:
                self.fast = None  # it plans as it did without
                raise

    def set_training_mode(self, mode: bool) -> None:
        """Also forgets the program of a plan before weights change: fused optimizers do not count their steps."""
        if mode:
            self._made = None
        super().set_training_mode(mode)

    def _program(self) -> Program:
        """The program of a plan; made anew when weights have changed."""
        if self._made is None or self._made_for != self._versions():
            self._tensors = [*self.parameters(), *self.buffers()]
            with torch.inference_mode(False), torch.no_grad():
                self._made, self._made_for = self._make_program(), self._versions()
        return self._made

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: a program is made anew."""
        return self.__dict__ | {"_made": None, "_made_for": None}

    def _versions(self) -> object:
        return self.settings, [tensor._version for tensor in self._tensors]

    def example(self, n: int) -> tuple[Tensor, Tensor]:
        """States and noise to trace a plan with. A first plan computes what no trace may, like the solver's steps."""
        states = torch.zeros(n, self.state_dim, device=self.device)
        noise = self.draw_noise(torch.arange(n, device=self.device))
        self.plan_of(states, noise)
        return states, noise

    def _make_program(self) -> Program:
        if self.fast == "onnxruntime":
            self.set_training_mode(False)
            return onnx_graph.session(self, self.plan_of, self.example(2))
        self.example(1)
        graphs: dict[str, Any] = {"mode": "reduce-overhead"} if self.device.type == "cuda" else {}  # CUDA graphs
        plan, programs = type(self).plan_of, dict[int, Program]()

        def padded(states: Tensor, noise: Tensor) -> Tensor:  # to powers of two, so that few sizes are compiled
            n = len(states)
            size = 1 << (n - 1).bit_length()
            if size not in programs:
                # a code object of its own: torch counts compilations by them, over all agents, and gives up at eight
                own = types.FunctionType(plan.__code__.replace(), plan.__globals__, closure=plan.__closure__)
                programs[size] = torch.compile(types.MethodType(own, self), fullgraph=True, dynamic=False, **graphs)
            rows = torch.arange(size, device=states.device).clamp_(max=n - 1)
            return programs[size](states[rows], noise[rows])[:n]

        return padded
