"""The losses of a batch are whole graphs: `torch.compile` finds no break, and the weights are the same to the last bit.

What draws noise is left out: no graph takes a generator.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pytest
import torch

from conftest import differing, make_agent, record, weights

STEPS = 12
# methods, by the names of agents in `AGENTS`
LOSSES = {
    "LDCQ": ["policy.vae.losses", "policy.denoiser.forward", "q_targets", "td_errors", "q_loss"],
    "LDGC": ["policy.vae.losses", "policy.denoiser.forward"],
    "LatentDiffuser": [
        *("policy.vae.losses", "policy.q_function.forward", "policy.denoiser.forward", "policy.energy.forward"),
    ],
    "BC": ["actor_loss"],
    "GCBC": ["actor_loss"],
    "TD3BC": ["target_values", "bellman_loss", "actor_loss"],
    "ReBRAC": ["target_values", "bellman_loss", "actor_loss"],
    "IQL": ["advantages", "value_loss", "critic_loss", "actor_loss"],
    "CQL": [
        *("actor_loss", "entropy_loss", "q_values", "bellman_loss"),
        *("gaps", "conservative_loss", "multiplier_loss"),
    ],
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_full_graphs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"dropout": 0.0} if name == "IQL" else {}
    plain, agent = (make_agent(name, record(), **settings) for _ in range(2))
    plain.learn(STEPS)
    traced = set()

    def spied(path: str, method: Callable[..., Any]) -> Callable[..., Any]:
        graph = torch.compile(method, fullgraph=True, backend="eager")

        def call(*arguments: Any, **keywords: Any) -> Any:
            traced.add(path)
            return graph(*arguments, **keywords)

        return call

    torch._dynamo.reset()
    for path in LOSSES[name]:
        owner, _, method = path.rpartition(".")
        kind = type(attrgetter(owner)(agent) if owner else agent)
        monkeypatch.setattr(kind, method, spied(path, getattr(kind, method)))
    agent.learn(STEPS)
    assert traced == set(LOSSES[name])
    assert not differing(weights(plain), weights(agent))
