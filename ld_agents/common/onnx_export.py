"""An agent as an ONNX graph: one step of acting, for programs that have neither this library nor torch.

Acting with numpy and onnxruntime alone, in any number n of environments:

    import json
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession("policy.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["ld_agents"])
    rng = np.random.default_rng(0)

    def begin(n):  # where all n episodes begin; where one does, set its row of `step` to 0
        return {name: np.zeros((n, *shape), dtype) for name, (dtype, shape) in about["state"].items()}

    def act(observation, state):  # [n, S]; of a dictionary, the vectors of about["observation_keys"] side by side
        inputs = {"observation": observation.astype(np.float32), **state}
        for name, shape in about["noise"].items():
            inputs[name] = rng.standard_normal((len(observation), *shape), np.float32)
        if "action_noise" in inputs and not about["samples_actions"]:
            inputs["action_noise"][:] = 0  # the mean, as `predict(deterministic=True)` takes it
        action, *state = session.run(None, inputs)
        return action, dict(zip(about["state"], state))  # in the units of the environment

Inputs and outputs, all float32 but `step` and frames:

| name                            | shape                 | what it is                                                 |
| ------------------------------- | --------------------- | ---------------------------------------------------------- |
| `observation`                   | [n, S]                | in the units of the data; normalization is in the graph    |
|                                 | [n, h, w, C] uint8    | of a `CnnPolicy`; the encoder is in the graph              |
| `noise`                         | [n, K, ...]           | standard normal, for the plans; planners only              |
| `action_noise`                  | [n, A]                | standard normal; zeros act on the mean. Stochastic agents  |
| `plan`, output `next_plan`      | [n, ...]              | what a planner holds                                       |
| `step`, output `next_step`      | [n] int64             | steps that the plan was held for; where it is 0, a new one |
| output `action`                 | [n, A]                | in the units of the environment, within its bounds         |

A planner plans where `step` is 0 alone; in other calls only the action is computed, from the plan and the observation.
`next_step` returns to 0 after `exec_horizon` steps. The same noise gives the same actions.
"""

import json
import pathlib
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ld_agents.common.actor_policy import ActorPolicy
from ld_agents.common.offline_policy import OfflinePolicy
from ld_agents.common.onnx_graph import Function, required, traced
from ld_agents.common.planning_policy import PlanningPolicy
from ld_agents.data.storage import whole, with_default_suffix

SUFFIX = ".onnx"  # of a path without one


class ONNXExport:
    """What every agent can do by means of ONNX: leave the library, and plan faster."""

    policy: Any

    def export(self: Any, path: str | pathlib.Path) -> None:
        """Writes one step of acting as an ONNX graph; ld_agents/common/onnx_export.py says how to act with it.

        Args:
            path: of the file; ".onnx" is added where there is no suffix.

        Raises:
            ImportError: the extra `onnx` is not installed.
            ValueError: plans of this agent cannot be one program; the message says what can.
        """
        with torch.device("meta"):
            policy = self._make_policy()
        if self.policy.inference_only:
            policy.drop(policy.state_dict().keys() - self.policy.state_dict().keys())
        policy.load_state_dict({name: value.cpu() for name, value in self.policy.state_dict().items()}, assign=True)
        step = _PlannerStep(policy) if isinstance(policy, PlanningPolicy) else _ActorStep(policy)
        model = step.model()
        about = {
            "agent": type(self).__name__,
            "observation_keys": self.observation_keys,
            "noise": step.noise,
            "samples_actions": isinstance(policy, PlanningPolicy) and policy.samples_actions(deterministic=True),
            "state": step.state,
            "exec_horizon": getattr(self.settings, "exec_horizon", None),
            "action_low": policy.action_bounds()[0].tolist(),
            "action_high": policy.action_bounds()[1].tolist(),
            "dataset": self._dataset_identity,
            "ld_agents_version": version("ld-agents"),
        }
        required("onnx").helper.set_model_props(model, {"ld_agents": json.dumps(about)})
        with whole(with_default_suffix(path, SUFFIX)) as unfinished:
            unfinished.write_bytes(model.SerializeToString())

    def speed_up(self, by: Literal["fastest", "onnxruntime", "compile"] | None = "fastest") -> None:
        """Makes plans faster from now on. Actions stay the same to about 1e-5; nothing of it is saved with the agent.

        Agents that do not plan act as before.

        Args:
            by: "onnxruntime" (extra `onnx`, CPU only) exports the plan, which takes some seconds; "compile" is
                `torch.compile`, which needs a C++ compiler and about a minute at the first plan of each size: of the
                environments that plan at once, rounded up to a power of two; "fastest" is the first where it is
                installed, else the second; None plans as before.

        Raises:
            ImportError: the extra `onnx` is asked for and not installed.
            ValueError: plans of this agent cannot be one program; the message says what can.
        """
        if isinstance(self.policy, PlanningPolicy):
            self.policy.speed_up(by)


class _ActorStep(nn.Module):
    """A step of an agent that does not plan, as `predict` takes it."""

    state: dict[str, Any]  # by name, type and shape of one environment's row

    def __init__(self, policy: OfflinePolicy) -> None:
        super().__init__()
        if isinstance(policy, PlanningPolicy):
            self._stochastic = policy.samples_actions(deterministic=False)
        elif isinstance(policy, ActorPolicy):
            self._stochastic = policy.stochastic
        else:
            raise TypeError(
                f"{type(policy).__name__} is neither an ActorPolicy nor a PlanningPolicy: make it one of them."
            )
        policy.set_training_mode(False)
        self.policy: Any = policy
        self.state = {}
        self.noise: dict[str, Any] = {"action_noise": (policy.action_dim,)} if self._stochastic else {}  # shapes

    def model(self) -> Any:
        inputs = self.example()
        return traced(self, inputs, ["action"], list(inputs))

    def example(self) -> dict[str, Tensor]:
        """Inputs of two environments."""
        noise = {name: torch.zeros(2, *shape) for name, shape in self.noise.items()}
        observation = torch.zeros(2, self.policy.input_dim)
        if self.policy.image_encoder is not None:
            observation = torch.zeros(2, *self.policy.observation_space.shape, dtype=torch.uint8)
        return {"observation": observation, **noise}

    def forward(self, observation: Tensor, action_noise: Tensor | None = None) -> tuple[Tensor, ...]:
        return (self.in_space(self.policy.action(self.policy.states_of(observation), action_noise)),)

    def in_space(self, actions: Tensor) -> Tensor:
        actions = self.policy.unscale(actions)
        return actions.round() if self.policy.action_space.dtype.kind in "iu" else actions


class _PlannerStep(_ActorStep):
    """A step of an agent that plans."""

    def __init__(self, policy: PlanningPolicy) -> None:
        super().__init__(policy)
        policy.check_traceable()
        _, noise = policy.example(2)
        self.noise = {"noise": tuple(noise.shape[1:]), **self.noise}
        self.state = {"plan": ("float32", policy.plan_shape), "step": ("int64", ())}

    def model(self) -> Any:
        """The graph of `forward`, whose `planned` comes from the graph of a plan where one is due."""
        onnx, inputs = required("onnx"), self.example()
        plan_of = Function(self.policy, lambda seen, noise: self.policy.plan_of(self.policy.states_of(seen), noise))
        planning = traced(plan_of, inputs, ["new_plan"], ["observation", "noise"])
        planning = onnx.compose.add_prefix(planning, "plan/", rename_inputs=False, rename_outputs=False).graph
        plan = torch.zeros(2, *self.policy.plan_shape)
        inputs |= {"planned": plan, "plan": plan.clone(), "step": torch.zeros(2, dtype=torch.int64)}
        names = ["observation", "planned", "plan", "step", *(["action_noise"] if self._stochastic else [])]
        acting = traced(self, inputs, ["action", "next_plan", "next_step"], names)
        node, graph = onnx.helper.make_node, onnx.helper.make_graph
        held = onnx.helper.make_tensor_value_info("held_plan", onnx.TensorProto.FLOAT, ["n", *plan.shape[1:]])
        holding = graph([node("Identity", ["plan"], ["held_plan"])], "hold", [], [held])
        nodes = [
            node("ReduceMin", ["step"], ["least_step"], keepdims=0),
            node("Cast", ["least_step"], ["none_is_due"], to=onnx.TensorProto.BOOL),
            node(
                "If",
                ["none_is_due"],
                ["planned"],
                then_branch=holding,
                else_branch=graph(planning.node, "plan", [], planning.output, planning.initializer),
            ),
            *acting.graph.node,
        ]
        named = {value.name: value for value in (*planning.input, *acting.graph.input) if value.name != "planned"}
        whole_step = graph(nodes, "step", list(named.values()), acting.graph.output, acting.graph.initializer)
        return onnx.helper.make_model(whole_step, opset_imports=acting.opset_import, ir_version=acting.ir_version)

    def forward(  # type: ignore[override]
        self, observation: Tensor, planned: Tensor, plan: Tensor, step: Tensor, action_noise: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        due = (step == 0).view(-1, *[1] * (plan.dim() - 1))
        plan = torch.where(due, planned, plan)
        actions = self.policy.action_of(plan, step, self.policy.states_of(observation), action_noise)
        return self.in_space(actions), plan, (step + 1) % self.policy.settings.exec_horizon
