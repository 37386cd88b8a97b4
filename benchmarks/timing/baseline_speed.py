"""Gradient steps per second of TD3+BC, IQL and CQL, beside straightforward versions of them, on this machine.

    python benchmarks/baseline_speed.py

The straightforward versions do what CORL's files do, in words of our own: two critics and an optimiser for each, a
Python loop over parameters for the targets, a replay buffer of numpy arrays that is indexed and converted at every
step, the actor run anew for each kind of action that CQL samples, and `.item()` on every logged number at every step.

Sizes are those of HalfCheetah. All versions run in one process on one thread, in blocks of gradient steps that take
turns, once in float32 and once with matrix products in bfloat16; a number is the median over blocks. The ratio is one
of CPU times, and wall times stand beside it. Checks that both sides compute the same losses stand below the times.
Writes baseline_speed.json (raw numbers) and baseline_speed.md (the table).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn import functional as F
from tqdm import tqdm

import provenance
from ld_agents import OfflineDataset
from ld_agents.baselines.cql import CQL
from ld_agents.baselines.iql import IQL
from ld_agents.baselines.td3_bc import TD3BC
from ld_agents.baselines.transitions import Transitions
from ld_agents.common.offline_algorithm import OfflineAlgorithm, in_bfloat16
from run_one import write_json
from timing.speed import check, comparison, write_text

SCHEMA = 1
STATE_DIM, ACTION_DIM, EPISODE_STEPS = 17, 6, 1000  # HalfCheetah
PRECISIONS = ("float32", "bfloat16")  # of matrix products

Batch = list[Tensor]  # observations [B, S], actions [B, A], rewards [B, 1], next observations [B, S], terminals [B, 1]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    transitions: int = 1_000_000
    steps: int = 100  # gradient steps of TD3+BC and of IQL in a block
    cql_steps: int = 4  # gradient steps of CQL in a block
    repetitions: int = 15


def synthetic_dataset(steps: int) -> OfflineDataset:
    """Random numbers in the shape of HalfCheetah: episodes of 1000 steps that end by timeout."""
    generator = np.random.default_rng(0)
    timeouts = np.arange(1, steps + 1) % EPISODE_STEPS == 0
    episodes = int(timeouts.sum()) + int(not timeouts[-1])
    return OfflineDataset(
        generator.standard_normal((steps, STATE_DIM), np.float32),
        generator.random((steps, ACTION_DIM), np.float32) * 2 - 1,
        generator.standard_normal(steps, np.float32),
        np.zeros(steps, bool),
        timeouts,
        final_observations=generator.standard_normal((episodes, STATE_DIM), np.float32),
    )


# Straightforward versions: `step` takes a batch, does one gradient step and returns the numbers for the log


class NumpyBuffer:
    """The data set as five arrays; every batch is five look-ups and five copies into tensors."""

    def __init__(self, data: OfflineDataset) -> None:
        self.observations = data.observations.numpy()
        self.actions = data.actions.numpy()
        self.rewards = data.rewards.numpy()[:, None]
        self.next_observations = data.observation_rows[data.next_rows(torch.arange(data.n_steps), 1)].numpy()
        self.terminals = data.terminals.numpy()[:, None].astype(np.float32)

    def sample(self, batch_size: int) -> Batch:
        rows = np.random.randint(0, len(self.observations), size=batch_size)
        arrays = (self.observations, self.actions, self.rewards, self.next_observations, self.terminals)
        return [torch.tensor(array[rows], dtype=torch.float32) for array in arrays]


def layers(*sizes: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in pairwise(sizes):
        parts += [nn.Linear(before, after), nn.ReLU()]
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


def adam(module: nn.Module, learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=learning_rate)


def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    for old, new in zip(target.parameters(), source.parameters(), strict=True):
        old.data.copy_((1 - rate) * old.data + rate * new.data)


class PlainTD3BC:
    def __init__(self, settings: Any) -> None:
        s = self.settings = settings
        self.actor = nn.Sequential(*layers(STATE_DIM, *s.hidden, ACTION_DIM), nn.Tanh())
        self.critic_1, self.critic_2 = Critic(s.hidden), Critic(s.hidden)
        self.restart_targets()
        self.actor_optimizer = adam(self.actor, s.actor_learning_rate)
        self.critic_optimizers = [adam(net, s.critic_learning_rate) for net in (self.critic_1, self.critic_2)]
        self.steps = 0

    def networks(self) -> list[nn.Module]:
        return [self.actor, self.critic_1, self.critic_2]

    def restart_targets(self) -> None:
        self.targets = [deepcopy(net) for net in self.networks()]

    def step(self, batch: Batch) -> dict[str, float]:
        s = self.settings
        self.steps += 1
        observations, actions, rewards, next_observations, terminals = batch
        target_actor, target_1, target_2 = self.targets
        with torch.no_grad():
            noise = (torch.randn_like(actions) * s.target_noise).clamp(-s.target_noise_clip, s.target_noise_clip)
            next_actions = (target_actor(next_observations) + noise).clamp(-1, 1)
            next_q = torch.min(target_1(next_observations, next_actions), target_2(next_observations, next_actions))
            target = rewards + (1 - terminals) * s.discount * next_q
        q_1, q_2 = self.critic_1(observations, actions), self.critic_2(observations, actions)
        critic_loss = F.mse_loss(q_1, target) + F.mse_loss(q_2, target)
        log = {"critic_loss": critic_loss.item()}
        for optimizer in self.critic_optimizers:
            optimizer.zero_grad()
        critic_loss.backward()
        for optimizer in self.critic_optimizers:
            optimizer.step()
        if self.steps % s.actor_delay == 0:
            chosen = self.actor(observations)
            q = self.critic_1(observations, chosen)
            weight = s.alpha / q.abs().mean().detach()
            actor_loss = -weight * q.mean() + F.mse_loss(chosen, actions)
            log["actor_loss"] = actor_loss.item()
            self.actor_optimizer.zero_grad()
            actor_loss.backward()
            self.actor_optimizer.step()
            for target_net, net in zip(self.targets, self.networks(), strict=True):
                follow(target_net, net, s.target_rate)
        return log


class PlainIQL:
    def __init__(self, settings: Any) -> None:
        s = self.settings = settings
        self.actor = nn.Sequential(*layers(STATE_DIM, *s.hidden, ACTION_DIM), nn.Tanh())
        self.log_std = nn.Parameter(torch.zeros(ACTION_DIM))
        self.value = layers(STATE_DIM, *s.hidden, 1)
        self.critic_1, self.critic_2 = Critic(s.hidden), Critic(s.hidden)
        self.restart_targets()
        self.value_optimizer = adam(self.value, s.critic_learning_rate)
        self.critic_optimizers = [adam(net, s.critic_learning_rate) for net in (self.critic_1, self.critic_2)]
        self.actor_optimizer = torch.optim.Adam([*self.actor.parameters(), self.log_std], lr=s.actor_learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_optimizer, s.steps)

    def networks(self) -> list[nn.Module]:
        return [self.actor, self.value, self.critic_1, self.critic_2]

    def restart_targets(self) -> None:
        self.targets = [deepcopy(net) for net in (self.critic_1, self.critic_2)]

    def step(self, batch: Batch) -> dict[str, float]:
        s = self.settings
        observations, actions, rewards, next_observations, terminals = batch
        log = {}
        with torch.no_grad():
            next_value = self.value(next_observations)
            target_q = torch.min(*(net(observations, actions) for net in self.targets))
        advantage = target_q - self.value(observations)
        value_loss = torch.mean(torch.abs(s.expectile - (advantage < 0).float()) * advantage**2)
        log["value_loss"] = value_loss.item()
        self.value_optimizer.zero_grad()
        value_loss.backward()
        self.value_optimizer.step()
        target = rewards + (1 - terminals) * s.discount * next_value
        critic_loss = torch.zeros(())
        for critic in (self.critic_1, self.critic_2):
            critic_loss = critic_loss + F.mse_loss(critic(observations, actions), target)
        log["critic_loss"] = critic_loss.item()
        for optimizer in self.critic_optimizers:
            optimizer.zero_grad()
        critic_loss.backward()
        for optimizer in self.critic_optimizers:
            optimizer.step()
        for target_net, net in zip(self.targets, (self.critic_1, self.critic_2), strict=True):
            follow(target_net, net, s.target_rate)
        weights = torch.exp(s.temperature * advantage.detach()).clamp(max=100.0)
        policy = Normal(self.actor(observations), torch.exp(self.log_std.clamp(-20, 2)))
        actor_loss = torch.mean(weights * -policy.log_prob(actions).sum(-1, keepdim=True))
        log["actor_loss"] = actor_loss.item()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        self.schedule.step()
        return log


class PlainCQL:
    def __init__(self, settings: Any) -> None:
        s = self.settings = settings
        self.actor = layers(STATE_DIM, *s.hidden, 2 * ACTION_DIM)
        self.critic_1, self.critic_2 = Critic(s.critic_hidden), Critic(s.critic_hidden)
        self.restart_targets()
        self.log_entropy = nn.Parameter(torch.zeros(()))
        self.actor_optimizer = adam(self.actor, s.actor_learning_rate)
        self.critic_optimizers = [adam(net, s.critic_learning_rate) for net in (self.critic_1, self.critic_2)]
        self.entropy_optimizer = torch.optim.Adam([self.log_entropy], lr=s.actor_learning_rate)

    def networks(self) -> list[nn.Module]:
        return [self.actor, self.critic_1, self.critic_2]

    def restart_targets(self) -> None:
        self.targets = [deepcopy(net) for net in (self.critic_1, self.critic_2)]

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
        critics = (self.critic_1, self.critic_2)
        chosen, log_density = self.sample(observations)
        entropy_loss = -(self.log_entropy * (log_density - ACTION_DIM).detach()).mean()
        chosen_q = torch.min(self.critic_1(observations, chosen), self.critic_2(observations, chosen))[:, 0]
        actor_loss = (self.log_entropy.exp() * log_density - chosen_q).mean()

        q_1, q_2 = self.critic_1(observations, actions), self.critic_2(observations, actions)
        next_actions, _ = self.sample(next_observations)
        next_q = torch.min(*(net(next_observations, next_actions) for net in self.targets))
        target = (rewards + (1 - terminals) * s.discount * next_q).detach()
        losses = [F.mse_loss(q_1, target), F.mse_loss(q_2, target)]

        uniform = torch.empty(len(actions), n, ACTION_DIM).uniform_(-1, 1)
        current, current_density = (part.detach() for part in self.sample(observations, n))
        following, following_density = (part.detach() for part in self.sample(next_observations, n))
        gaps, spreads = [], []
        for critic, q in zip(critics, (q_1, q_2), strict=True):
            at_uniform = critic(observations, uniform)
            at_current, at_following = critic(observations, current), critic(observations, following)
            spreads.append(torch.cat([at_uniform, q, at_following, at_current], dim=1).std(dim=1).mean())
            weighted = [
                at_uniform - math.log(0.5**ACTION_DIM),
                at_following - following_density,
                at_current - current_density,
            ]
            gaps.append((torch.logsumexp(torch.cat(weighted, dim=1), dim=1) - q[:, 0]).mean())
        critic_loss = losses[0] + losses[1] + s.conservative_weight * (gaps[0] + gaps[1])

        self.entropy_optimizer.zero_grad()
        entropy_loss.backward()
        self.entropy_optimizer.step()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        for optimizer in self.critic_optimizers:
            optimizer.zero_grad()
        critic_loss.backward()
        for optimizer in self.critic_optimizers:
            optimizer.step()
        for target_net, critic in zip(self.targets, critics, strict=True):
            follow(target_net, critic, s.target_rate)
        numbers = {
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "entropy_loss": entropy_loss,
            "log_density": log_density.mean(),
            "q_1": q_1.mean(),
            "q_2": q_2.mean(),
            "gap_1": gaps[0],
            "gap_2": gaps[1],
            "spread_1": spreads[0],
            "spread_2": spreads[1],
        }
        return {name: number.item() for name, number in numbers.items()}


# Ours, and the two side by side

Plain = PlainTD3BC | PlainIQL | PlainCQL


@dataclass(frozen=True)
class Pair:
    """One algorithm, in both versions."""

    name: str
    agent_class: type[OfflineAlgorithm]
    plain_class: type[Plain]
    required: float  # ratio of CPU times in float32
    fixed: dict[str, Any]  # settings under which the first losses of both versions agree
    tolerance: float  # of that


PAIRS = (
    Pair("TD3+BC", TD3BC, PlainTD3BC, 1.3, {"target_noise": 0.0, "actor_delay": 1}, 1e-4),
    Pair("IQL", IQL, PlainIQL, 1.4, {}, 1e-4),
    Pair("CQL", CQL, PlainCQL, 1.3, {}, 0.05),
)


def training(agent: Any, data: OfflineDataset) -> Iterator[dict[str, Tensor]]:
    """Takes one gradient step of the agent's only stage at each `next`, as `learn` does."""
    agent._plan_budget(None, reset=True)
    agent._prepare_data(data)
    agent.policy.set_training_mode(True)
    (stage,) = agent.stages()
    return stage.train()


def plain_training(pair: Pair, settings: Any, buffer: NumpyBuffer) -> Iterator[dict[str, float]]:
    plain = pair.plain_class(settings)
    while True:
        yield plain.step(buffer.sample(settings.batch_size))


def seconds_per_step(run: Iterator[Any], steps: int) -> tuple[float, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(steps):
        next(run)
    return (time.process_time() - cpu) / steps, (time.perf_counter() - wall) / steps


def measure(sizes: Sizes) -> dict[str, Any]:
    """All comparisons and checks, ready for JSON."""
    data = synthetic_dataset(sizes.transitions)
    buffer = NumpyBuffer(data)
    np.random.seed(0)
    torch.manual_seed(0)
    sides: dict[tuple[str, str, str], tuple[Iterator[Any], int]] = {}
    checks = []
    for pair in PAIRS:
        agent = pair.agent_class("MlpPolicy", data, preset="paper", seed=0, device="cpu")
        checks += same_losses(pair, data)
        steps = sizes.cql_steps if pair.agent_class is CQL else sizes.steps
        for precision in PRECISIONS:
            runs = {"straightforward": plain_training(pair, agent.settings, buffer), "ours": training(agent, data)}
            for side, run in runs.items():
                sides[pair.name, precision, side] = in_bfloat16(run) if precision == "bfloat16" else run, steps
    times: dict[tuple[str, str, str], list[tuple[float, float]]] = {side: [] for side in sides}
    # the first round warms up and does not count
    for repetition in tqdm(range(-1, sizes.repetitions), disable=not sys.stderr.isatty()):
        for key, (run, steps) in sides.items():
            seconds = seconds_per_step(run, steps)
            if repetition >= 0:
                times[key].append(seconds)
    comparisons = []
    for pair in PAIRS:
        for precision in PRECISIONS:
            plain_times, our_times = (
                list(zip(*times[pair.name, precision, side], strict=True)) for side in ("straightforward", "ours")
            )
            required = pair.required if precision == "float32" else None
            row = comparison(pair.name, "gradient step", plain_times[0], our_times[0], required, "")
            row |= {
                "precision": precision,
                "straightforward_wall_seconds": list(plain_times[1]),
                "our_wall_seconds": list(our_times[1]),
                "wall_ratio": float(np.median(plain_times[1]) / np.median(our_times[1])),
            }
            comparisons.append(row)
    return {
        "schema": SCHEMA,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": provenance.source_commit(),
        "hardware": provenance.hardware(torch.device("cpu")),
        "versions": provenance.versions(),
        "sizes": asdict(sizes),
        "comparisons": comparisons,
        "checks": checks,
    }


def same_losses(pair: Pair, data: OfflineDataset) -> list[dict[str, Any]]:
    """The losses of one gradient step from the same weights on the same batch, compared.

    TD3+BC has no noise meanwhile and its actor learns at once. CQL draws actions on either side, so its losses agree
    but for chance.
    """
    agent: Any = pair.agent_class("MlpPolicy", data, preset="paper", seed=0, device="cpu", **pair.fixed)
    plain = pair.plain_class(agent.settings)
    policy = agent.policy
    networks = [policy.actor.net, *([policy.value] if isinstance(plain, PlainIQL) else []), *policy.critics]
    for source, copy in zip(networks, plain.networks(), strict=True):
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


# The report


def table(result: dict[str, Any]) -> str:
    """The Markdown page of a result."""
    hardware, versions, sizes = result["hardware"], result["versions"], result["sizes"]
    lines = [
        "# Gradient steps per second of the baselines",
        "",
        f"Made by `python benchmarks/baseline_speed.py` on {result['made'][:10]}: {hardware['cpu']}, "
        f"{hardware['threads']} thread, Python {versions['python']}, torch {versions['torch']}, numpy "
        f"{versions['numpy']}. Sizes of HalfCheetah ({STATE_DIM} observations, {ACTION_DIM} actions), "
        f"{sizes['transitions']:,} transitions, batches of 256, preset `paper`. Medians of "
        f"{sizes['repetitions']} blocks of steps, both versions in turn. Raw numbers: baseline_speed.json.",
        "",
        "The straightforward version is written as CORL's files are: see the script. In bfloat16 are matrix products "
        "alone, on either side; weights stay float32.",
        "",
        "| agent | products in | straightforward, steps per CPU second | ours | ratio | required "
        "| straightforward, steps per second | ours | ratio |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["comparisons"]:
        required = "–" if row["required"] is None else f"{row['required']:g}"
        cells = [
            row["name"],
            row["precision"],
            *(f"{1 / float(np.median(row[side])):.3g}" for side in ("straightforward_seconds", "our_seconds")),
            f"{row['ratio']:.2f}",
            required,
            *(
                f"{1 / float(np.median(row[side])):.3g}"
                for side in ("straightforward_wall_seconds", "our_wall_seconds")
            ),
            f"{row['wall_ratio']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| check | value | at most | passed |", "| --- | ---: | ---: | --- |"]
    lines += [
        f"| {row['name']} | {row['value']:.2g} | {row['limit']:g} | {'yes' if row['passed'] else 'NO'} |"
        for row in result["checks"]
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the two files")
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    options = vars(parser.parse_args(arguments))
    out: Path = options.pop("out")
    if too_small := [name for name, value in options.items() if value < 1]:
        parser.error(f"{', '.join(too_small)} must be at least 1")
    torch.set_num_threads(1)
    result = measure(Sizes(**options))
    write_json(out / "baseline_speed.json", result)
    page = table(json.loads((out / "baseline_speed.json").read_text()))
    write_text(out / "baseline_speed.md", page)
    print(page)
    failed = [row["name"] for row in result["checks"] if not row["passed"]]
    if failed:
        print(f"The two sides differ: {'; '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
