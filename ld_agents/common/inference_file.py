"""A small file of an agent that acts: the weights that acting reads, matrices in float16, nothing of training."""

import io
import pathlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ld_agents.common import agent_file
from ld_agents.evaluation.scores import family


class _Reads(TorchDispatchMode):
    """Notes the memory of every tensor that goes into an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        self.places |= {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, Tensor)}
        return func(*args, **(kwargs or {}))


def acting_weights(agent: Any) -> set[str]:
    """Names of the weights that acting reads, found by acting, and in mazes of those that draw its candidates."""
    policy = agent.policy
    observation = policy.observation_mean[: policy.input_dim].cpu().numpy().astype(np.float32)[None]
    if policy.image_encoder is not None:
        observation = np.zeros((1, *agent.observation_space.shape), np.uint8)
    with torch.inference_mode(), _Reads() as reads:
        for deterministic in (True, False):
            agent.predict(observation, deterministic=deterministic)
        states = policy.observation_mean[None]
        in_maze = family(str(agent._dataset_identity.get("id"))) in ("maze2d", "antmaze")
        if hasattr(policy, "propose_plans"):
            policy.propose_plans(states, 1)
        if hasattr(policy, "propose") and in_maze:
            policy.vae.predict_final_state(states, policy.propose(states)[0][:, 0])
    weights = policy.state_dict().items()
    return {name for name, value in weights if value.untyped_storage().data_ptr() in reads.places}


def save_for_inference(agent: Any, path: str | pathlib.Path) -> None:
    """Writes a file from which the agent's class loads an agent that acts, and can be saved again, but not learn.

    A quarter of what `save` writes or less. Half precision moves actions by about a thousandth of their range.

    Args:
        agent: an `OfflineAlgorithm`.
        path: ".zip" is added where there is no suffix.
    """
    stream = io.BytesIO()
    agent.save(stream)
    description, weights, _ = agent_file.read(stream)
    copy = type(agent).load(stream, device="cpu")  # acting advances the noise
    kept = acting_weights(copy)
    weights = {name: value for name, value in weights.items() if name in kept}
    agent_file.write(path, {**description, "inference_only": True}, weights, {}, half=True)
