"""Gradient steps per second of TD3+BC, IQL and CQL, beside straightforward versions of them.

The straightforward versions take the agents' losses in the way of CORL's files: two critics and an optimizer for each,
gradients of all that a loss runs through, a Python loop over parameters for the targets, a replay buffer of numpy
arrays that is indexed and converted at every step, the actor run anew for each kind of action that CQL samples, and
`.item()` on every logged number at every step. Sizes are those of HalfCheetah; a turn is a block of gradient steps, and
numbers are medians. In bfloat16 are matrix products alone, on either side; weights stay float32.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ld_agents import CQL, IQL, TD3BC, OfflineDataset
from ld_agents.baselines.transitions import Transitions
from ld_agents.common.offline_algorithm import in_bfloat16
from timing.harness import Result, Timing, check, in_turn, preset_settings, random_dataset, versus

STATE_DIM, ACTION_DIM, EPISODE_STEPS = 17, 6, 1000  # HalfCheetah
PRECISIONS = ("float32", "bfloat16")  # of matrix products
SIDES = ("straightforward", "ours")

Batches = Iterator[tuple[Tensor, ...]]  # observations, actions, rewards, masks, next observations
Log = dict[str, float]


def numpy_arrays(data: OfflineDataset) -> list[NDArray[np.float32]]:
    """The dataset as five arrays, one per part of a batch."""
    next_observations = data.observation_rows[data.next_rows(torch.arange(data.n_steps), 1)]
    parts = (data.observations, data.actions, data.rewards, 1 - data.terminals.float(), next_observations)
    return [part.numpy() for part in parts]


def numpy_batches(arrays: list[NDArray[np.float32]], batch_size: int) -> Batches:
    """Every batch is five look-ups and five copies into tensors."""
    while True:
        rows = np.random.randint(0, len(arrays[0]), size=batch_size)
        yield tuple(torch.tensor(array[rows], dtype=torch.float32) for array in arrays)


def adam(network: nn.Module, learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), learning_rate)


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def follow(targets: Iterable[nn.Module], networks: Iterable[nn.Module], rate: float) -> None:
    for target, network in zip(targets, networks, strict=True):
        for old, new in zip(target.parameters(), network.parameters(), strict=True):
            old.data.copy_((1 - rate) * old.data + rate * new.data)


def plain_td3_bc(agent: TD3BC, batches: Batches) -> Iterator[Log]:
    s, policy = agent.settings, agent.policy
    critic_optimizers = [adam(critic, s.critic_learning_rate) for critic in policy.critics]
    actor_optimizer = adam(policy.actor, s.actor_learning_rate)
    for step, batch in enumerate(batches, 1):
        critic_loss = agent.critic_loss(batch)
        log = {"loss": critic_loss.item()}
        descend(critic_loss, *critic_optimizers)
        if step % s.actor_delay == 0:
            actor_loss = agent.actor_loss(batch)
            log["actor_loss"] = actor_loss.item()
            descend(actor_loss, actor_optimizer)
            online, target = (policy.actor, *policy.critics), (policy.target_actor, *policy.target_critics)
            follow(target, online, s.target_rate)
        yield log


def plain_iql(agent: IQL, batches: Batches) -> Iterator[Log]:
    s, policy = agent.settings, agent.policy
    value_optimizer = adam(policy.value, s.critic_learning_rate)
    critic_optimizers = [adam(critic, s.critic_learning_rate) for critic in policy.critics]
    actor_optimizer = adam(policy.actor, s.actor_learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(actor_optimizer, s.steps)
    for batch in batches:
        advantages, critic_loss = agent.advantages(batch), agent.critic_loss(batch)
        value_loss = agent.value_loss(advantages)
        log = {"loss": critic_loss.item(), "value_loss": value_loss.item()}
        descend(value_loss, value_optimizer)
        descend(critic_loss, *critic_optimizers)
        follow(policy.target_critics, policy.critics, s.target_rate)
        actor_loss = agent.actor_loss(batch, advantages.detach())
        log["actor_loss"] = actor_loss.item()
        descend(actor_loss, actor_optimizer)
        schedule.step()
        yield log


def plain_cql(agent: CQL, batches: Batches) -> Iterator[Log]:
    s, policy = agent.settings, agent.policy
    critic_optimizers = [adam(critic, s.critic_learning_rate) for critic in policy.critics]
    actor_optimizer = adam(policy.actor, s.actor_learning_rate)
    entropy_optimizer = torch.optim.Adam([policy.log_entropy], s.actor_learning_rate)

    def sample(observations: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn(*observations.shape[:-1], ACTION_DIM, generator=agent.generator)
        return policy.actor(observations).sample(noise)

    def repeated(observations: Tensor) -> Tensor:
        return observations[:, None].repeat_interleave(s.n_actions, dim=1)

    for observations, actions, rewards, masks, next_observations in batches:
        chosen, log_density = sample(observations)
        entropy_loss, actor_loss = agent.entropy_loss(log_density), agent.actor_loss(observations, chosen, log_density)
        next_actions, _ = sample(next_observations)
        next_q = torch.min(*(critic(next_observations, next_actions) for critic in policy.target_critics))
        target = (rewards + masks * s.discount * next_q).detach()
        uniform = torch.empty(len(actions), s.n_actions, ACTION_DIM).uniform_(-1, 1, generator=agent.generator)
        kinds = [(uniform, torch.full(uniform.shape[:2], ACTION_DIM * np.log(0.5)))]
        for states in (observations, next_observations):
            drawn, density = sample(repeated(states))
            kinds.append((drawn.detach(), density.detach()))
        critic_loss = torch.zeros(())
        numbers: dict[str, Tensor] = {}
        for i, critic in enumerate(policy.critics):
            q = critic(observations, actions)
            values = [critic(repeated(observations), of_kind) for of_kind, _ in kinds]
            weighted = [value - density for value, (_, density) in zip(values, kinds, strict=True)]
            gap = (torch.logsumexp(torch.cat(weighted, dim=1), dim=1) - q).mean()
            critic_loss = critic_loss + F.mse_loss(q, target) + s.conservative_weight * gap
            spread = torch.cat([q[:, None], *values], dim=1).std(dim=1).mean()
            numbers |= {f"q_{i}": q.mean(), f"gap_{i}": gap, f"spread_{i}": spread}
        descend(entropy_loss, entropy_optimizer)
        descend(actor_loss, actor_optimizer)
        descend(critic_loss, *critic_optimizers)
        follow(policy.target_critics, policy.critics, s.target_rate)
        numbers |= {"loss": critic_loss, "actor_loss": actor_loss, "entropy_loss": entropy_loss}
        yield {name: number.item() for name, number in numbers.items()} | {"density": log_density.mean().item()}


@dataclass(frozen=True)
class Pair:
    """One algorithm, in both versions."""

    name: str
    agent_class: Any
    plain: Callable[[Any, Batches], Iterator[Log]]
    required: float  # ratio in float32

    def agent(self, data: OfflineDataset, **settings: Any) -> Any:
        return self.agent_class("MlpPolicy", data, preset="paper", seed=0, device="cpu", **settings)


PAIRS = (
    Pair("TD3+BC", TD3BC, plain_td3_bc, 1.3),
    Pair("IQL", IQL, plain_iql, 1.4),
    Pair("CQL", CQL, plain_cql, 1.3),
)


def measure(transitions: int, steps: int, cql_steps: int, repetitions: int) -> Result:
    data = random_dataset(transitions, STATE_DIM, ACTION_DIM, EPISODE_STEPS)
    np.random.seed(0)
    arrays, blocks, rows = numpy_arrays(data), {}, []
    cases = [(pair, precision) for pair in PAIRS for precision in PRECISIONS]
    block = {pair.name: cql_steps if pair.agent_class is CQL else steps for pair in PAIRS}
    for pair, precision in cases:
        agents = [pair.agent(data) for _ in SIDES]
        plain = pair.plain(agents[0], numpy_batches(arrays, agents[0].settings.batch_size))
        for side, run in zip(SIDES, (plain, training(agents[1], data)), strict=True):
            run = in_bfloat16(run) if precision == "bfloat16" else run
            blocks[pair.name, precision, side] = partial(take, run, block[pair.name])
    seconds = in_turn(blocks, repetitions)
    for pair, precision in cases:
        plain_times, times = (np.array(seconds[pair.name, precision, side]) / block[pair.name] for side in SIDES)
        required = pair.required if precision == "float32" else None
        rows.append({**versus(pair.name, "gradient step", plain_times, times, required), "precision": precision})
    checks = [item for pair in PAIRS for item in same_losses(pair, data)]
    return {"rows": rows, "checks": checks, "settings": preset_settings("TD3BC paper", "IQL paper", "CQL paper")}


def training(agent: Any, data: OfflineDataset) -> Iterator[dict[str, Tensor]]:
    """Takes one gradient step of the agent's only stage at each `next`, as `learn` does."""
    agent._plan_budget(None, reset=True)
    agent._prepare_data(data)
    agent.policy.set_training_mode(True)
    (stage,) = agent.stages()
    return stage.train()


def take(steps: Iterator[Any], n: int) -> None:
    deque(islice(steps, n), maxlen=0)


def same_losses(pair: Pair, data: OfflineDataset) -> list[Result]:
    """The losses of one gradient step from the same weights, on the same batch and with the same noise, compared."""
    settings = {"actor_delay": 1} if pair.agent_class is TD3BC else {}
    agent = pair.agent(data, **settings)
    losses = next(training(agent, data))
    batches = Transitions(agent.data).batches(range(1), agent.settings.batch_size, agent.derived_generator)
    log = next(pair.plain(pair.agent(data, **settings), batches))
    return [
        check(f"{pair.name}: {name}, relative difference", abs(log[name] / float(loss) - 1), 1e-4)
        for name, loss in losses.items()
        if name in log
    ]


def cells(result: Result) -> Iterable[Result]:
    for row in result["rows"]:
        speeds = {side: 1 / float(np.median(seconds)) for side, seconds in row["seconds"].items()}
        yield {
            "agent": row["name"],
            "products in": row["precision"],
            "straightforward, steps per CPU second": speeds["straightforward"],
            "ours": speeds["ours"],
            "ratio": row["ratio"],
            "required": row["required"],
        }


BASELINES = Timing(
    name="baselines",
    file="baseline_speed",
    doc=__doc__,
    sizes={"transitions": 1_000_000, "steps": 100, "cql_steps": 4, "repetitions": 15},
    quick={"transitions": 3000, "steps": 2, "cql_steps": 1, "repetitions": 1},
    measure=measure,
    cells=cells,
)
