"""Gradient steps per second of TD3+BC, IQL and CQL, beside straightforward versions of them.

The straightforward versions do what CORL's files do, in words of our own: two critics and an optimizer for each, a
Python loop over parameters for the targets, a replay buffer of numpy arrays that is indexed and converted at every
step, the actor run anew for each kind of action that CQL samples, and `.item()` on every logged number at every step.
Sizes are those of HalfCheetah. A variant's turn is a block of gradient steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn import functional as F

from ld_agents import CQL, IQL, TD3BC, OfflineDataset
from ld_agents.baselines.transitions import Transitions
from ld_agents.common.offline_algorithm import in_bfloat16
from timing.harness import Result, Timing, check, in_turn, preset_settings, random_dataset, versus

STATE_DIM, ACTION_DIM, EPISODE_STEPS = 17, 6, 1000  # HalfCheetah
PRECISIONS = ("float32", "bfloat16")  # of matrix products
SIDES = ("straightforward", "ours")
Batch = Sequence[
    Tensor
]  # observations [B, S], actions [B, A], rewards [B, 1], next observations [B, S], terminals [B, 1]


class NumpyBuffer:
    """The dataset as five arrays; every batch is five look-ups and five copies into tensors."""

    def __init__(self, data: OfflineDataset) -> None:
        self.arrays = (
            data.observations.numpy(),
            data.actions.numpy(),
            data.rewards.numpy()[:, None],
            data.observation_rows[data.next_rows(torch.arange(data.n_steps), 1)].numpy(),
            data.terminals.numpy()[:, None].astype(np.float32),
        )

    def sample(self, batch_size: int) -> Batch:
        rows = np.random.randint(0, len(self.arrays[0]), size=batch_size)
        return [torch.tensor(array[rows], dtype=torch.float32) for array in self.arrays]


def layers(*sizes: int) -> nn.Sequential:
    parts = [part for before, after in pairwise(sizes) for part in (nn.Linear(before, after), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


class Critic(nn.Module):
    def __init__(self, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = layers(STATE_DIM + ACTION_DIM, *hidden, 1)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Shapes [B, S] and [B, A] -> [B, 1], or [B, S] and [B, K, A] -> [B, K]."""
        if actions.ndim == 2:
            return self.net(torch.cat([observations, actions], dim=-1))
        repeated = observations[:, None].repeat_interleave(actions.shape[1], dim=1).flatten(0, 1)
        return self.net(torch.cat([repeated, actions.flatten(0, 1)], dim=-1)).view(actions.shape[:2])


def adam(parameters: nn.Module | Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters.parameters() if isinstance(parameters, nn.Module) else parameters, learning_rate)


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


class Plain:
    """What the three have in common. `step` takes a gradient step and returns the numbers for the log."""

    def __init__(
        self, settings: Any, actor: nn.Module, critic_hidden: Sequence[int], actor_target: bool = False
    ) -> None:
        s, self.settings, self.actor = settings, settings, actor
        self.critics = [Critic(critic_hidden), Critic(critic_hidden)]
        self.critic_optimizers = [adam(critic, s.critic_learning_rate) for critic in self.critics]
        self.actor_optimizer = adam(actor, s.actor_learning_rate)
        self.networks: list[nn.Module] = [actor, *self.critics]
        self.followed = self.networks if actor_target else self.networks[1:]  # by targets
        self.restart_targets()

    def restart_targets(self) -> None:
        self.targets = [deepcopy(network) for network in self.followed]

    def follow(self) -> None:
        rate = self.settings.target_rate
        for target, network in zip(self.targets, self.followed, strict=True):
            for old, new in zip(target.parameters(), network.parameters(), strict=True):
                old.data.copy_((1 - rate) * old.data + rate * new.data)

    def step(self, batch: Batch) -> dict[str, float]:
        raise NotImplementedError


class PlainTD3BC(Plain):
    def __init__(self, settings: Any) -> None:
        actor = nn.Sequential(*layers(STATE_DIM, *settings.hidden, ACTION_DIM), nn.Tanh())
        super().__init__(settings, actor, settings.hidden, actor_target=True)
        self.steps = 0

    def step(self, batch: Batch) -> dict[str, float]:
        s = self.settings
        self.steps += 1
        observations, actions, rewards, next_observations, terminals = batch
        target_actor, *target_critics = self.targets
        with torch.no_grad():
            noise = (torch.randn_like(actions) * s.target_noise).clamp(-s.target_noise_clip, s.target_noise_clip)
            next_actions = (target_actor(next_observations) + noise).clamp(-1, 1)
            next_q = torch.min(*(critic(next_observations, next_actions) for critic in target_critics))
            target = rewards + (1 - terminals) * s.discount * next_q
        q_1, q_2 = (critic(observations, actions) for critic in self.critics)
        critic_loss = F.mse_loss(q_1, target) + F.mse_loss(q_2, target)
        log = {"critic_loss": critic_loss.item()}
        descend(critic_loss, *self.critic_optimizers)
        if self.steps % s.actor_delay == 0:
            chosen = self.actor(observations)
            q = self.critics[0](observations, chosen)
            actor_loss = -s.alpha / q.abs().mean().detach() * q.mean() + F.mse_loss(chosen, actions)
            log["actor_loss"] = actor_loss.item()
            descend(actor_loss, self.actor_optimizer)
            self.follow()
        return log


class PlainIQL(Plain):
    def __init__(self, settings: Any) -> None:
        s = settings
        super().__init__(s, nn.Sequential(*layers(STATE_DIM, *s.hidden, ACTION_DIM), nn.Tanh()), s.hidden)
        self.log_std = nn.Parameter(torch.zeros(ACTION_DIM))
        self.value = layers(STATE_DIM, *s.hidden, 1)
        self.networks = [self.actor, self.value, *self.critics]
        self.value_optimizer = adam(self.value, s.critic_learning_rate)
        self.actor_optimizer = adam([*self.actor.parameters(), self.log_std], s.actor_learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_optimizer, s.steps)

    def step(self, batch: Batch) -> dict[str, float]:
        s = self.settings
        observations, actions, rewards, next_observations, terminals = batch
        with torch.no_grad():
            next_value = self.value(next_observations)
            target_q = torch.min(*(critic(observations, actions) for critic in self.targets))
        advantage = target_q - self.value(observations)
        value_loss = torch.mean(torch.abs(s.expectile - (advantage < 0).float()) * advantage**2)
        log = {"value_loss": value_loss.item()}
        descend(value_loss, self.value_optimizer)
        target = rewards + (1 - terminals) * s.discount * next_value
        q_1, q_2 = (critic(observations, actions) for critic in self.critics)
        critic_loss = F.mse_loss(q_1, target) + F.mse_loss(q_2, target)
        log["critic_loss"] = critic_loss.item()
        descend(critic_loss, *self.critic_optimizers)
        self.follow()
        weights = torch.exp(s.temperature * advantage.detach()).clamp(max=100.0)
        policy = Normal(self.actor(observations), torch.exp(self.log_std.clamp(-20, 2)))
        actor_loss = torch.mean(weights * -policy.log_prob(actions).sum(-1, keepdim=True))
        log["actor_loss"] = actor_loss.item()
        descend(actor_loss, self.actor_optimizer)
        self.schedule.step()
        return log


class PlainCQL(Plain):
    def __init__(self, settings: Any) -> None:
        super().__init__(settings, layers(STATE_DIM, *settings.hidden, 2 * ACTION_DIM), settings.critic_hidden)
        self.log_entropy = nn.Parameter(torch.zeros(()))
        self.entropy_optimizer = adam([self.log_entropy], settings.actor_learning_rate)

    def sample(self, observations: Tensor, repeat: int | None = None) -> tuple[Tensor, Tensor]:
        """Actions [B, A] and their log densities [B], or [B, K, A] and [B, K] where observations are repeated."""
        if repeat is not None:
            observations = observations[:, None].repeat_interleave(repeat, dim=1)
        mean, log_std = self.actor(observations).chunk(2, dim=-1)
        normal = Normal(mean, torch.exp(log_std.clamp(-20, 2)))
        policy = TransformedDistribution(normal, TanhTransform(cache_size=1))
        actions = policy.rsample()
        return actions, policy.log_prob(actions).sum(-1)

    def step(self, batch: Batch) -> dict[str, float]:
        s, n = self.settings, self.settings.n_actions
        observations, actions, rewards, next_observations, terminals = batch
        chosen, log_density = self.sample(observations)
        entropy_loss = -(self.log_entropy * (log_density - ACTION_DIM).detach()).mean()
        chosen_q = torch.min(*(critic(observations, chosen) for critic in self.critics))[:, 0]
        actor_loss = (self.log_entropy.exp() * log_density - chosen_q).mean()

        next_actions, _ = self.sample(next_observations)
        next_q = torch.min(*(critic(next_observations, next_actions) for critic in self.targets))
        target = (rewards + (1 - terminals) * s.discount * next_q).detach()
        uniform = torch.empty(len(actions), n, ACTION_DIM).uniform_(-1, 1)
        current, current_density = (part.detach() for part in self.sample(observations, n))
        following, following_density = (part.detach() for part in self.sample(next_observations, n))
        critic_loss = torch.zeros(())
        numbers: dict[str, Tensor] = {}
        for i, critic in enumerate(self.critics):
            q, at_uniform = critic(observations, actions), critic(observations, uniform)
            at_current, at_following = critic(observations, current), critic(observations, following)
            weighted = [
                at_uniform - math.log(0.5**ACTION_DIM),
                at_following - following_density,
                at_current - current_density,
            ]
            gap = (torch.logsumexp(torch.cat(weighted, dim=1), dim=1) - q[:, 0]).mean()
            critic_loss = critic_loss + F.mse_loss(q, target) + s.conservative_weight * gap
            spread = torch.cat([at_uniform, q, at_following, at_current], dim=1).std(dim=1).mean()
            numbers |= {f"q_{i}": q.mean(), f"gap_{i}": gap, f"spread_{i}": spread}

        descend(entropy_loss, self.entropy_optimizer)
        descend(actor_loss, self.actor_optimizer)
        descend(critic_loss, *self.critic_optimizers)
        self.follow()
        numbers |= {"critic_loss": critic_loss, "actor_loss": actor_loss}
        numbers |= {"entropy_loss": entropy_loss, "log_density": log_density.mean()}
        return {name: number.item() for name, number in numbers.items()}


# Ours, and the two side by side


@dataclass(frozen=True)
class Pair:
    """One algorithm, in both versions."""

    name: str
    agent_class: Any
    plain_class: Callable[[Any], Plain]
    required: float  # ratio in float32
    fixed: dict[str, Any]  # settings under which the first losses of both versions agree
    tolerance: float  # of that


PAIRS = (
    Pair("TD3+BC", TD3BC, PlainTD3BC, 1.3, {"target_noise": 0.0, "actor_delay": 1}, 1e-4),
    Pair("IQL", IQL, PlainIQL, 1.4, {}, 1e-4),
    Pair("CQL", CQL, PlainCQL, 1.3, {}, 0.05),
)


def measure(transitions: int, steps: int, cql_steps: int, repetitions: int) -> Result:
    data = random_dataset(transitions, STATE_DIM, ACTION_DIM, EPISODE_STEPS)
    buffer = NumpyBuffer(data)
    np.random.seed(0)
    torch.manual_seed(0)
    checks = [item for pair in PAIRS for item in same_losses(pair, data)]
    blocks = {}
    for pair in PAIRS:
        n = cql_steps if pair.agent_class is CQL else steps
        for precision in PRECISIONS:
            agent = pair.agent_class("MlpPolicy", data, preset="paper", seed=0, device="cpu")
            runs = plain_training(pair.plain_class(agent.settings), buffer), training(agent, data)
            for side, run in zip(SIDES, runs, strict=True):
                steps_of_run = in_bfloat16(run) if precision == "bfloat16" else run
                blocks[pair.name, precision, side] = partial(take, steps_of_run, n)
    seconds = in_turn(blocks, repetitions)
    rows = []
    for pair in PAIRS:
        n = cql_steps if pair.agent_class is CQL else steps
        for precision in PRECISIONS:
            plain, ours = (np.array(seconds[pair.name, precision, side]) / n for side in SIDES)
            required = pair.required if precision == "float32" else None
            rows.append(versus(pair.name, "gradient step", plain, ours, required) | {"precision": precision})
    return {"rows": rows, "checks": checks, "settings": preset_settings("TD3BC paper", "IQL paper", "CQL paper")}


def training(agent: Any, data: OfflineDataset) -> Iterator[dict[str, Tensor]]:
    """Takes one gradient step of the agent's only stage at each `next`, as `learn` does."""
    agent._plan_budget(None, reset=True)
    agent._prepare_data(data)
    agent.policy.set_training_mode(True)
    (stage,) = agent.stages()
    return stage.train()


def plain_training(plain: Plain, buffer: NumpyBuffer) -> Iterator[dict[str, float]]:
    while True:
        yield plain.step(buffer.sample(plain.settings.batch_size))


def take(steps: Iterator[Any], n: int) -> None:
    deque(islice(steps, n), maxlen=0)


def same_losses(pair: Pair, data: OfflineDataset) -> list[Result]:
    """The losses of one gradient step from the same weights on the same batch, compared.

    TD3+BC has no noise meanwhile and its actor learns at once. CQL draws actions on either side, so its losses agree
    but for chance.
    """
    agent = pair.agent_class("MlpPolicy", data, preset="paper", seed=0, device="cpu", **pair.fixed)
    plain, policy = pair.plain_class(agent.settings), agent.policy
    networks = [policy.actor.net, *([policy.value] if isinstance(plain, PlainIQL) else []), *policy.critics]
    for source, copy in zip(networks, plain.networks, strict=True):
        for ours, theirs in zip(linear_layers(source), linear_layers(copy), strict=True):
            theirs.load_state_dict(ours.state_dict())
    plain.restart_targets()
    losses = next(training(agent, data))
    batches = Transitions(agent.data).batches(range(1), agent.settings.batch_size, agent.derived_generator)
    observations, actions, rewards, masks, next_observations = next(batches)
    log = plain.step([observations, actions, rewards[:, None], next_observations, 1 - masks[:, None]])
    names = {"loss": "critic_loss", "value_loss": "value_loss", "actor_loss": "actor_loss"}
    return [
        check(f"{pair.name}: {theirs}, relative difference", abs(log[theirs] / float(losses[ours]) - 1), pair.tolerance)
        for ours, theirs in names.items()
        if theirs in log
    ]


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


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
    title="Gradient steps per second of the baselines",
    text=f"Sizes of HalfCheetah ({STATE_DIM} observations, {ACTION_DIM} actions), preset `paper`. Medians of blocks of "
    "gradient steps. The straightforward version is written as CORL's files are: see `benchmarks/timing/baselines.py`. "
    "In bfloat16 are matrix products alone, on either side; weights stay float32.",
    sizes={"transitions": 1_000_000, "steps": 100, "cql_steps": 4, "repetitions": 15},
    quick={"transitions": 3000, "steps": 2, "cql_steps": 1, "repetitions": 1},
    measure=measure,
    cells=cells,
)
