"""Compares policies without a simulator: fitted Q evaluation (Le, Voloshin & Yue, ICML 2019, arXiv 1903.08738).

Q learns, from the dataset's steps, what a policy earns that takes action a in state s and follows itself from there:
r + gamma Q'(s', pi(s')) is its target, with Q' a slow average of Q. What Q says at the beginnings of episodes is the
estimate that ranks policies (Paine et al. 2020, arXiv 2007.09055). Like all such estimates it ranks better than it
measures, and is worth least for policies that do what the data never show: that is what the second number is for.
Nine short trainings on a point maze it ranked with a correlation of .51 to their scores, nine on hopper-medium with
-.38 (results/offline_evaluation.md): it does not replace a simulator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ld_agents.baselines.transitions import Transitions
from ld_agents.data.load import load_dataset
from ld_agents.networks.critics import QFunction, descend, polyak_update

_TARGET_RATE = 0.005
_LEARNING_RATE = 3e-4
_ROWS_PER_PREDICT = 1_000  # states that a policy decides on at once


@dataclass(frozen=True)
class OfflineEstimate:
    """What is estimated of a policy from data alone.

    Attributes:
        value: discounted return from the beginnings of episodes, in the unit of the dataset's rewards.
        td_error: root mean square of r + gamma Q(s', pi(s')) - Q(s, a) over steps that Q did not learn from, each
            weighted by how close the policy's own action is to the recorded one; same unit. An estimate whose error is
            large beside the differences of the values does not rank anything.
    """

    value: float
    td_error: float


def evaluate_offline(
    agents: Any,
    dataset: Any,
    *,
    discount: float = 0.99,
    n_steps: int = 20_000,
    gradient_steps: int = 10_000,
    batch_size: int = 256,
    hidden: tuple[int, ...] = (256, 256),
    held_out: float = 0.1,
    seed: int = 0,
) -> list[OfflineEstimate]:
    """Estimates of each agent by fitted Q evaluation, in the order of the agents; the highest `value` is the choice.

    All agents are evaluated on the same steps, with the same first weights and the same batches. An agent that holds a
    plan decides anew at every step here, as it does with ``predict(observation)``.

    Args:
        agents: one, or a sequence: have `predict`, as all agents here and of Stable-Baselines3 have; saved ones are
            loaded first.
        dataset: an `OfflineDataset` or what `load_dataset` takes, recorded in the environment that the agents are for;
            they need not have learned from it.
        discount: gamma of the estimate.
        n_steps: steps of the data that are drawn for the estimate. Planners take milliseconds for each.
        gradient_steps, batch_size, hidden: of Q's training.
        held_out: share of the drawn steps that only the TD error is measured on.
        seed: of the drawn steps, Q's first weights and batches.

    Raises:
        ValueError: no step has a known successor, or a number is out of its range.
    """
    if not (0 <= discount < 1 and 0 < held_out < 1 and n_steps >= 20 and gradient_steps >= 1 and batch_size >= 1):
        raise ValueError(
            f"discount is {discount}, held_out {held_out}, n_steps {n_steps}, gradient_steps {gradient_steps}, "
            f"batch_size {batch_size}. Give a discount from 0 to below 1, held_out between 0 and 1, at least 20 steps, "
            "one gradient step and one row per batch."
        )
    agents = [agents] if hasattr(agents, "predict") else agents
    dataset = load_dataset(dataset)
    if dataset.has_frames:
        raise ValueError("Fitted Q evaluation learns from vectors, not from frames. Evaluate in the environment.")
    device = dataset.rewards.device
    generator = torch.Generator(device).manual_seed(seed)
    transitions = Transitions(dataset, states=dataset.observation_rows.__getitem__, actions=dataset.actions.__getitem__)
    kept = torch.randperm(len(transitions), generator=generator, device=device)[:n_steps]
    columns = transitions.gather(kept)
    begins = torch.cat([dataset.episode_ends.new_zeros(1), dataset.episode_ends[:-1]])
    begins = begins[torch.randperm(len(begins), generator=generator, device=device)[:n_steps]]
    first_states = dataset.observations[begins]
    settings = discount, gradient_steps, batch_size, hidden, held_out, seed
    return [_evaluate(agent, columns, first_states, *settings) for agent in agents]


def _evaluate(
    agent: Any,
    columns: Sequence[Tensor],
    first_states: Tensor,
    discount: float,
    gradient_steps: int,
    batch_size: int,
    hidden: tuple[int, ...],
    held_out: float,
    seed: int,
) -> OfflineEstimate:
    states, actions, rewards, masks, next_states = columns
    # Q sees states and rewards in units of the data's spread, so that one learning rate does for all.
    mean, std = states.mean(0), states.std(0).clamp(min=1e-3)
    scale = float(rewards.std()) or 1.0
    next_actions, first_actions, own_actions = (_decide(agent, part) for part in (next_states, first_states, states))
    states, next_states, first_states = ((part - mean) / std for part in (states, next_states, first_states))
    rewards = rewards / scale

    with torch.random.fork_rng(devices=[states.device] if states.is_cuda else []):
        torch.manual_seed(seed)
        q, target = (
            QFunction(states.shape[1], actions.shape[1], hidden, layer_norm=True).to(states.device) for _ in range(2)
        )
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=_LEARNING_RATE, fused=True)
    learned = min(len(states) - 1, max(1, round((1 - held_out) * len(states))))
    generator = torch.Generator(states.device).manual_seed(seed)
    for _ in range(gradient_steps):
        rows = torch.randint(learned, (batch_size,), generator=generator, device=states.device)
        with torch.no_grad():
            targets = rewards[rows] + discount * masks[rows] * target(next_states[rows], next_actions[rows])
        descend(optimizer, F.mse_loss(q(states[rows], actions[rows]), targets))
        polyak_update(tuple(q.parameters()), tuple(target.parameters()), _TARGET_RATE)

    with torch.no_grad():
        value = q(first_states, first_actions).mean()
        test = slice(learned, None)
        errors = rewards[test] + discount * masks[test] * q(next_states[test], next_actions[test])
        errors = errors - q(states[test], actions[test])
        distances = (own_actions[test] - actions[test]).square().sum(-1)
        weights = torch.softmax(-distances / (2 * distances.median().clamp(min=1e-6)), 0)
        return OfflineEstimate(scale * float(value), scale * float((weights * errors.square()).sum().sqrt()))


def _decide(agent: Any, states: Tensor) -> Tensor:
    """The agent's actions in states, each a decision of its own. Shapes [n, S] -> [n, A]."""
    parts = [
        agent.predict(np.ascontiguousarray(part), deterministic=True)[0]
        for part in np.array_split(states.cpu().numpy(), max(1, len(states) // _ROWS_PER_PREDICT))
    ]
    flat = np.concatenate(parts).reshape(len(states), -1)
    return torch.as_tensor(flat, dtype=torch.float32, device=states.device)
