"""IQL: losses worked out by hand, what each step changes, its actor, and a task where cloning fails."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from echo import BEST, Echo, echo_states, echoes, one_state_data
from numpy.typing import NDArray
from test_baselines_td3 import NoSynchronisation, forward, parts, q_by_hand, ready
from torch import Tensor, nn

from conftest import BOX, weights
from ld_agents import OfflineDataset, evaluate
from ld_agents.baselines.iql import IQL, PAPER
from ld_agents.baselines.transitions import Transitions
from ld_agents.networks.critics import descend


def first_batch(agent: IQL) -> tuple[Tensor, ...]:
    return next(
        Transitions(agent.data, states=agent.states, actions=agent.actions).batches(
            range(1), agent.settings.batch_size, agent.derived_generator
        )
    )


def in_numpy(batch: tuple[Tensor, ...]) -> list[NDArray[np.float64]]:
    return [part.double().numpy() for part in batch]


# ---------------------------------------------------------------- by hand, in numpy and float64


def test_advantages_by_hand(dataset: OfflineDataset) -> None:
    """The smaller of the target critics, less V."""
    agent = ready(IQL, dataset)
    batch = first_batch(agent)
    both = q_by_hand(agent.policy.target_critics, *in_numpy(batch)[:2])
    assert 0 < (both[0] < both[1]).mean() < 1
    advantages = agent.advantages(batch)
    v = forward(agent.policy.value, in_numpy(batch)[0])[:, 0]
    np.testing.assert_allclose(advantages.detach(), both.min(0) - v, rtol=1e-4, atol=1e-4)
    online = q_by_hand(agent.policy.critics, *in_numpy(batch)[:2]).min(0)
    assert np.abs(online - both.min(0)).max() > 0.1
    advantages.sum().backward()
    assert agent.policy.value[0].weight.grad is not None
    assert all(value.grad is None for value in agent.policy.target_critics.parameters())


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_value_loss_by_hand(dataset: OfflineDataset, expectile: float) -> None:
    agent = ready(IQL, dataset, expectile=expectile)
    u = np.linspace(-2, 3, 16)
    losses = [(expectile if difference > 0 else 1 - expectile) * difference**2 for difference in u]
    assert agent.value_loss(torch.tensor(u)).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_value_regression_finds_the_expectile() -> None:
    """Of the numbers 0 and 1, equally frequent, the expectile of 0.8 is 0.8."""
    agent = ready(IQL, one_state_data(np.zeros(16), np.arange(16) == 15), expectile=0.8)
    optimizer = torch.optim.Adam(agent.policy.value[-1].parameters(), 0.02, fused=True)
    for _ in range(400):
        descend(optimizer, agent.value_loss(torch.arange(16.0) % 2 - agent.policy.value(torch.zeros(16, 1))[:, 0]))
    assert agent.policy.value(torch.zeros(1, 1)).item() == pytest.approx(0.8, abs=1e-3)


def test_critic_loss_by_hand(dataset: OfflineDataset) -> None:
    agent = ready(IQL, dataset, discount=0.9)
    batch = first_batch(agent)
    batch[3][:5] = 0  # some terminals
    observations, actions, rewards, masks, next_observations = in_numpy(batch)
    targets = rewards + 0.9 * masks * forward(agent.policy.value, next_observations)[:, 0]
    np.testing.assert_allclose(targets[:5], rewards[:5])
    errors = q_by_hand(agent.policy.critics, observations, actions) - targets
    loss = agent.critic_loss(batch)
    assert float(loss.detach()) == pytest.approx((errors[0] ** 2).mean() + (errors[1] ** 2).mean(), rel=1e-5)
    loss.backward()
    assert all(value.grad is None for value in [*agent.policy.value.parameters(), *agent.policy.actor.parameters()])


ADVANTAGES = np.linspace(-3, 4, 16)


def test_actor_loss_by_hand(dataset: OfflineDataset) -> None:
    agent = ready(IQL, dataset, temperature=2.0)
    batch = first_batch(agent)
    observations, actions = batch[:2]
    log_std = agent.policy.actor.log_std.detach().double().numpy()
    assert log_std.shape == (2,)
    assert np.abs(log_std).min() > 0.01
    mean = np.tanh(forward(agent.policy.actor.net, observations.double().numpy()))
    # a product of normal densities; no correction for a tanh, and the same deviations in all states
    std = np.exp(log_std)
    density = np.exp(-(((actions.double().numpy() - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    factors = np.minimum(np.exp(2.0 * ADVANTAGES), 100)
    assert (factors == 100).sum() == 4
    expected = -(factors * np.log(density.prod(1))).mean()
    loss = agent.actor_loss(batch, torch.tensor(ADVANTAGES, dtype=torch.float32))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_huge_advantages_are_clipped_too(dataset: OfflineDataset) -> None:
    agent = ready(IQL, dataset, temperature=1e4)
    batch = first_batch(agent)
    huge, large = (agent.actor_loss(batch, torch.full((16,), a)).item() for a in (1e6, 1.0))
    assert np.isfinite(huge)
    assert huge == large


# ---------------------------------------------------------------- the actor


def set_output_layer(policy: Any, means: list[float], log_std: list[float]) -> None:
    """The same mean, given before the tanh, in all states."""
    nn.init.zeros_(policy.actor.net[-1].weight)
    with torch.no_grad():
        policy.actor.net[-1].bias.copy_(torch.tensor(means))
        policy.actor.log_std.copy_(torch.tensor(log_std))


def test_sampled_actions_have_the_free_deviations_and_are_not_squashed(dataset: OfflineDataset) -> None:
    agent = ready(IQL, dataset)
    set_output_layer(agent.policy, [1.0, -0.5], [-3.0, -1.5])
    observations = np.random.default_rng(0).normal(size=(20_000, 3)).astype(np.float32)
    actions = 2 * (agent.predict(observations)[0] - BOX.low) / (BOX.high - BOX.low) - 1
    np.testing.assert_allclose(actions.mean(0), np.tanh([1.0, -0.5]), atol=0.01)
    np.testing.assert_allclose(actions.std(0), np.exp([-3.0, -1.5]), rtol=0.03)
    # a tanh around the sample would skew it
    centered = (actions - actions.mean(0)) / actions.std(0)
    np.testing.assert_allclose((centered**3).mean(0), 0, atol=0.08)
    certain = agent.predict(observations[:9], deterministic=True)[0]
    np.testing.assert_allclose(certain, np.tile(agent.predict(observations[0], deterministic=True)[0], (9, 1)))


def test_deviations_are_clamped_and_actions_clipped(dataset: OfflineDataset) -> None:
    agent = ready(IQL, dataset)
    set_output_layer(agent.policy, [0.0, 0.0], [-30.0, 30.0])
    np.testing.assert_allclose(agent.policy.actor.clamped_log_std().detach(), [-5, 2])
    actions = agent.predict(np.zeros((1000, 3)) + np.arange(1000)[:, None])[0]
    assert actions[:, 0].std() < 0.01  # half of the box is 1, exp(-5) is 0.0067
    assert ((actions[:, 1] == BOX.low[1]) | (actions[:, 1] == BOX.high[1])).mean() > 0.8


def test_noise_of_an_episode_goes_on_in_the_state(dataset: OfflineDataset) -> None:
    agent = ready(IQL, dataset)
    set_output_layer(agent.policy, [0.0, 0.0], [-2.0, -2.0])
    observations = np.zeros((2, 3), np.float32)
    first, state = agent.predict(observations)
    second, later = agent.predict(observations, state)
    assert state is not None
    assert later is not None
    assert np.abs(first - second).min() > 1e-4  # fresh noise at every step
    np.testing.assert_array_equal(agent.predict(observations, state)[0], second)  # a state that is reused repeats it
    anew = agent.predict(observations, state, np.array([True, False]))[0]
    assert np.abs(anew[0] - second[0]).min() > 1e-4
    np.testing.assert_array_equal(anew[1], second[1])


def test_dropout_drops_hidden_units_in_training_alone(dataset: OfflineDataset) -> None:
    agent = ready(IQL, dataset, dropout=0.25, hidden=(4000,))
    actor = agent.policy.actor
    for parameter in actor.net.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(actor.net[0].bias)
    with torch.no_grad():
        actor.net[-1].weight += 0.75 / 4000
        kept = torch.atanh(actor(torch.zeros(50, 3), torch.Generator().manual_seed(0)))[:, 0]  # 0.75 on average
        assert kept.mean().item() == pytest.approx(0.75, abs=0.003)
        # each of 4000 units is 1 / 0.75 or nothing
        assert kept.std().item() == pytest.approx(0.75 * math.sqrt(0.25 / 0.75 / 4000), rel=0.3)
        assert torch.atanh(actor(torch.zeros(1, 3)))[0, 0].item() == pytest.approx(0.75, abs=1e-4)
        again = torch.atanh(actor(torch.zeros(50, 3), torch.Generator().manual_seed(0)))[:, 0]
    assert torch.equal(kept, again)
    acting = 2 * (agent.predict(np.zeros(3), deterministic=True)[0] - BOX.low) / (BOX.high - BOX.low) - 1
    np.testing.assert_allclose(np.arctanh(acting), 0.75, atol=1e-4)


# ---------------------------------------------------------------- what a gradient step changes


def test_a_step_moves_each_part(dataset: OfflineDataset) -> None:
    """All losses are those of the networks before the step; the targets follow the critics of after it."""
    settings: dict[str, Any] = {"critic_learning_rate": 0.05, "target_rate": 0.25, "expectile": 0.8}
    agent, twin = ready(IQL, dataset, **settings), ready(IQL, dataset, **settings)
    batch = first_batch(twin)
    before = weights(agent)
    losses = next(agent.train())
    after = weights(agent)
    advantages = twin.advantages(batch).detach()
    assert losses["value_loss"].item() == pytest.approx(twin.value_loss(advantages).item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(twin.critic_loss(batch).item(), rel=1e-5)
    assert losses["actor_loss"].item() == pytest.approx(twin.actor_loss(batch, advantages).item(), rel=1e-5)
    for name in ("actor", "value", "critics"):
        assert not any(torch.equal(a, b) for a, b in zip(parts(before, name), parts(after, name), strict=True))
    online, targets = parts(after, "critics"), parts(after, "target_critics")
    for old, new, target in zip(parts(before, "target_critics"), online, targets, strict=True):
        np.testing.assert_allclose(target, 0.75 * old + 0.25 * new, atol=1e-6)


def test_learning_rate_of_the_actor_falls_to_zero(dataset: OfflineDataset) -> None:
    agent = ready(IQL, dataset, actor_learning_rate=0.4)
    rates = []
    for _ in agent.train():
        rates.append(agent._optimizers["train.actor"].param_groups[0]["lr"])
    np.testing.assert_allclose(rates, [0.2 * (1 + math.cos(math.pi * step / 20)) for step in range(20)])
    assert agent._optimizers["train"].param_groups[0]["lr"] == 3e-4


def test_rewards_are_learned_as_the_settings_say(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def learned(**settings: Any) -> Tensor:
        agent, seen = ready(IQL, dataset, **settings), []

        def critic_loss(batch: tuple[Tensor, ...]) -> Tensor:
            seen.append(batch[2])
            return IQL.critic_loss(agent, batch)

        monkeypatch.setattr(agent, "critic_loss", critic_loss)
        next(agent.train())
        return seen[0]

    plain = learned()
    np.testing.assert_allclose(learned(reward_scale=2.0, reward_shift=-1.0), 2 * plain - 1, rtol=1e-5)
    returns = [r.sum() for r in np.split(dataset.rewards.numpy(), dataset.episode_ends[:-1])]
    np.testing.assert_allclose(learned(normalize_rewards=True), plain * 1000 / (max(returns) - min(returns)), rtol=1e-4)


def test_training_steps_do_not_wait_for_the_device(dataset: OfflineDataset) -> None:
    steps = ready(IQL, dataset, dropout=0.1).train()
    next(steps)
    with NoSynchronisation():
        for _ in range(4):
            next(steps)


# ---------------------------------------------------------------- settings


def test_settings_of_families(dataset: OfflineDataset) -> None:
    assert list(IQL.family_settings()) == ["maze2d", "antmaze", "locomotion", "kitchen", "adroit"]
    for settings in IQL.family_settings().values():
        assert IQL("MlpPolicy", dataset, preset="paper", seed=0, **settings).full_budget == 1_000_000
    antmaze = IQL("MlpPolicy", dataset, preset="paper", seed=0, **IQL.family_settings()["antmaze"]).settings
    assert (antmaze.expectile, antmaze.temperature, antmaze.reward_shift) == (0.9, 10.0, -1.0)
    assert (PAPER.expectile, PAPER.temperature, PAPER.hidden) == (0.7, 3.0, (256, 256))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("expectile", 1.1),
        ("temperature", -1.0),
        ("normalize_rewards", "no"),
        ("dropout", 1.0),
        ("batch_size", 0),
        ("steps", -1),
        ("discount", 1.1),
        ("target_rate", float("nan")),
        ("hidden", ()),
        ("reward_shift", float("inf")),
    ],
)
def test_settings_out_of_range(dataset: OfflineDataset, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        IQL("MlpPolicy", dataset, **{setting: value})


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize(("ends", "value"), [("terminals", 1.0), ("timeouts", 2.0)])
def test_timeouts_are_not_terminals(ends: str, value: float) -> None:
    """Episodes of one step with reward 1. With a discount of 0.5, going on for ever is worth 2, stopping 1."""
    always, never = np.ones(64, bool), np.zeros(64, bool)
    data = one_state_data(always, never) if ends == "terminals" else one_state_data(never, always)
    agent = IQL(
        "MlpPolicy",
        data,
        seed=0,
        discount=0.5,
        hidden=(8,),
        batch_size=32,
        target_rate=0.1,
        steps=300,
        critic_learning_rate=1e-2,
    )
    agent.learn()
    assert agent.policy.value(torch.zeros(1, 1)).item() == pytest.approx(value, abs=0.05)


def test_iql_finds_the_best_actions_and_their_values() -> None:
    agent = IQL(
        "MlpPolicy",
        echoes(),
        seed=0,
        hidden=(32, 32),
        batch_size=64,
        expectile=0.95,
        temperature=20.0,
        discount=0.9,
        target_rate=0.05,
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        steps=2500,
    ).learn()
    observations, best = echo_states()
    np.testing.assert_allclose(agent.predict(observations, deterministic=True)[0][:, 0], best, atol=0.2)
    assert evaluate(agent, Echo, 1, seed=0).returns[0] > 4.5  # the best is 4.64, cloning gets 3.48
    value = agent.policy.value(agent.policy.normalize(torch.zeros(1, 2))).item()
    weights = 0.9 ** np.arange(5)
    best_value = weights @ (1 - np.array([BEST[0] ** 2, 0, 0, 0, 0]))  # 3.74
    mean_value = weights @ (1 - BEST**2 - np.array([0, 1, 1, 1, 1]) / 3)  # 1.80: random actions, as in the data
    assert best_value - 0.25 * (best_value - mean_value) < value < best_value
