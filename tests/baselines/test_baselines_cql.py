"""CQL: losses worked out by hand, the sampled actions, and what each step changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_agents import check_resumption
from test_baselines_iql import in_numpy
from test_baselines_td3 import NoSynchronisation, forward, parts, q_by_hand, ready
from torch import Tensor, nn

from conftest import BOX, weights
from ld_agents import OfflineDataset
from ld_agents.baselines.cql import CQL, SquashedGaussian
from ld_agents.baselines.transitions import Transitions
from ld_agents.networks.critics import descend

TINY: dict[str, Any] = {"critic_hidden": (12, 8), "n_actions": 4, "discount": 0.9}


def ready_cql(data: OfflineDataset, **settings: Any) -> CQL:
    """An agent outside `learn`, whose critics disagree about which of them is the smaller one."""
    agent = ready(CQL, data, **{**TINY, **settings})
    for critics in (agent.policy.critics, agent.policy.target_critics):
        every = torch.arange(data.n_steps)
        q = q_by_hand(critics, agent.states(every).double().numpy(), agent.actions(every).double().numpy())
        with torch.no_grad():
            critics[0].net[-1].bias += float(np.median(q[1] - q[0]))
    return agent


def first_batch(agent: CQL) -> tuple[Tensor, ...]:
    batch = next(
        Transitions(agent.data, states=agent.states, actions=agent.actions).batches(
            range(1), agent.settings.batch_size, agent.derived_generator
        )
    )
    batch[3][:5] = 0  # some terminals
    return batch


def halves(agent: CQL, batch: tuple[Tensor, ...]) -> tuple[SquashedGaussian, SquashedGaussian]:
    return agent.policy.actor(torch.cat([batch[0], batch[-1]])).halves()


def actor_by_hand(agent: CQL, observations: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means before the tanh and standard deviations, [B, A] each."""
    outputs = forward(agent.policy.actor.net, observations)
    return outputs[:, :2], np.exp(outputs[:, 2:])


def log_density_by_hand(actions: NDArray[Any], mean: NDArray[Any], std: NDArray[Any]) -> NDArray[Any]:
    """Of a = tanh(x): the normal density of x over the slope 1 - a^2, dimension by dimension."""
    normal = np.exp(-(((np.arctanh(actions) - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
    return np.log(normal / (1 - actions**2)).sum(-1)


# ---------------------------------------------------------------- by hand, in numpy and float64


def test_density_of_the_squashed_gaussian() -> None:
    mean, log_std = torch.tensor([[0.3, -0.7]]), torch.tensor([[-0.5, 0.2]])
    epsilon = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    actions, log_density = SquashedGaussian(mean, log_std).sample(epsilon)
    hand = np.tanh((mean + log_std.exp() * epsilon).double().numpy())
    np.testing.assert_allclose(actions, hand, atol=1e-6)
    expected = log_density_by_hand(hand, mean.double().numpy(), log_std.double().exp().numpy())
    np.testing.assert_allclose(log_density, expected, atol=1e-4)
    np.testing.assert_allclose(SquashedGaussian(mean, log_std).log_density(actions), expected, atol=1e-3)
    # the density of one dimension adds up to 1
    grid = torch.linspace(-1, 1, 20_001)[:, None]
    density = SquashedGaussian(mean[:, :1], log_std[:, :1]).log_density(grid).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, abs=1e-3)


def test_density_stays_finite_where_the_tanh_is_flat() -> None:
    far = SquashedGaussian(torch.tensor([[40.0]]), torch.zeros(1, 1))
    actions, log_density = far.sample(torch.zeros(1, 1))
    assert actions.item() == 1
    # log(1 - tanh(x)^2) = log 4 - 2 x for large x
    assert log_density.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - math.log(4) + 80, rel=1e-5)
    assert torch.isfinite(far.log_density(torch.ones(1, 1)))


def test_actor_and_entropy_loss_by_hand(dataset: OfflineDataset) -> None:
    agent = ready_cql(dataset)
    policy, batch = agent.policy, first_batch(agent)
    nn.init.constant_(policy.log_entropy, -0.4)
    observations = in_numpy(batch)[0]
    epsilon = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
    chosen, log_density = halves(agent, batch)[0].sample(epsilon)
    mean, std = actor_by_hand(agent, observations)
    hand = np.tanh(mean + std * epsilon.numpy())
    q = q_by_hand(policy.critics, observations, hand)
    assert 0 < (q[0] < q[1]).mean() < 1
    entropy_weight = math.exp(policy.log_entropy.item())
    densities = log_density_by_hand(hand, mean, std)
    loss = agent.actor_loss(batch[0], chosen, log_density)
    assert loss.item() == pytest.approx((entropy_weight * densities - q.min(0)).mean(), rel=1e-4)
    entropy = agent.entropy_loss(log_density)
    assert entropy.item() == pytest.approx(-math.log(entropy_weight) * (densities - 2).mean(), rel=1e-4)
    # each moves its own parameters
    loss.backward(inputs=[policy.log_entropy, *policy.actor.parameters()], retain_graph=True)
    assert policy.log_entropy.grad is None or not policy.log_entropy.grad.any()
    before = [parameter.grad.clone() for parameter in policy.actor.parameters()]
    entropy.backward()
    assert policy.log_entropy.grad.item() == pytest.approx(-(densities - 2).mean(), rel=1e-4)
    assert all(torch.equal(a, b.grad) for a, b in zip(before, policy.actor.parameters(), strict=True))


def test_gradient_of_the_actor_by_differences(dataset: OfflineDataset) -> None:
    """Through the sampled action, its density and the critics."""
    agent = ready_cql(dataset)
    policy, batch = agent.policy, first_batch(agent)
    epsilon = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
    chosen, log_density = halves(agent, batch)[0].sample(epsilon)
    bias = policy.actor.net[-1].bias
    (gradient,) = torch.autograd.grad(agent.actor_loss(batch[0], chosen, log_density), bias)
    observations = in_numpy(batch)[0]

    def loss_after(change: NDArray[np.float64]) -> float:
        outputs = forward(policy.actor.net, observations) + change
        mean, std = outputs[:, :2], np.exp(outputs[:, 2:])
        hand = np.tanh(mean + std * epsilon.double().numpy())
        q = q_by_hand(policy.critics, observations, hand).min(0)
        return float((math.exp(policy.log_entropy.item()) * log_density_by_hand(hand, mean, std) - q).mean())

    steps = 1e-6 * np.eye(4)
    np.testing.assert_allclose(gradient, [(loss_after(s) - loss_after(-s)) / 2e-6 for s in steps], rtol=1e-3, atol=1e-4)


def test_cloning_loss_by_hand(dataset: OfflineDataset) -> None:
    """The likelihood is that of the data's actions."""
    agent = ready_cql(dataset)
    batch = first_batch(agent)
    batch[1].clamp_(-0.95, 0.95)
    observations, actions, *_ = in_numpy(batch)
    current, _ = halves(agent, batch)
    _, log_density = current.sample(torch.zeros(16, 2))
    mean, std = actor_by_hand(agent, observations)
    weight = math.exp(agent.policy.log_entropy.item())
    expected = weight * log_density_by_hand(np.tanh(mean), mean, std) - log_density_by_hand(actions, mean, std)
    loss = agent.cloning_loss(current, batch[1], log_density)
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-3)


@pytest.mark.parametrize("max_target_backup", [False, True])
def test_targets_by_hand(dataset: OfflineDataset, max_target_backup: bool) -> None:
    agent = ready_cql(dataset, max_target_backup=max_target_backup)
    batch = first_batch(agent)
    _, _, rewards, masks, next_observations = in_numpy(batch)
    k = 4 if max_target_backup else 1
    epsilon = torch.randn(16, k, 2, generator=torch.Generator().manual_seed(3)).numpy()
    mean, std = actor_by_hand(agent, next_observations)
    values = [
        q_by_hand(agent.policy.target_critics, next_observations, np.tanh(mean + std * epsilon[:, i])).min(0)
        for i in range(k)
    ]
    agent.generator.manual_seed(3)
    targets = agent.targets(batch, halves(agent, batch)[1])
    np.testing.assert_allclose(targets, rewards + 0.9 * masks * np.max(values, 0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(targets[:5], rewards[:5], rtol=1e-6)
    assert not targets.requires_grad


def test_bellman_loss_and_gaps_by_hand(dataset: OfflineDataset) -> None:
    agent = ready_cql(dataset)
    batch = first_batch(agent)
    observations, actions, *_ = in_numpy(batch)
    sampled, log_densities = agent.sampled_actions(*halves(agent, batch))
    q = agent.q_values(agent.policy.critics, batch[0], torch.cat([batch[1][:, None], sampled], 1))
    assert q.shape == (2, 16, 13)
    data_q = q_by_hand(agent.policy.critics, observations, actions)
    sampled_q = np.stack(
        [q_by_hand(agent.policy.critics, observations, sampled[:, i].double().numpy()) for i in range(12)], 2
    )
    np.testing.assert_allclose(q.detach(), np.concatenate([data_q[:, :, None], sampled_q], 2), atol=1e-4)
    targets = np.linspace(-1, 1, 16)
    errors = ((data_q - targets) ** 2).mean(1)
    assert agent.bellman_loss(q, torch.tensor(targets)).item() == pytest.approx(errors.sum(), rel=1e-5)
    # every sampled action counts with Q over its density
    total = np.exp(sampled_q) / np.exp(log_densities.double().numpy())
    expected = (np.log(total.sum(2)) - data_q).mean(1)
    np.testing.assert_allclose(agent.gaps(q, log_densities).detach(), expected, rtol=1e-4)
    # the data's actions are pushed up by 1 / B each, the sampled ones down by their shares
    (gradient,) = torch.autograd.grad(agent.gaps(q, log_densities).sum(), q)
    np.testing.assert_allclose(gradient[:, :, 0], -1 / 16, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, :, 1:], total / total.sum(2, keepdims=True) / 16, rtol=1e-3, atol=1e-7)
    floored = np.maximum(np.log(total.sum(2)) - data_q, expected.mean())
    assert 0 < (floored == expected.mean()).mean() < 1
    lifted = ready_cql(dataset, gap_floor=float(expected.mean()))
    np.testing.assert_allclose(lifted.gaps(q, log_densities).detach(), floored.mean(1), rtol=1e-4)


def test_values_of_many_actions_in_parts(dataset: OfflineDataset) -> None:
    """70 states with 31 actions, 33 states at a time: as one call with all 2,170 rows, gradients too."""
    critics = (agent := ready_cql(dataset)).policy.critics
    states, actions = torch.randn(70, agent.state_dim), torch.rand(70, 31, 2) * 2 - 1
    rows = torch.cat([states[:, None].expand(-1, 31, -1), actions], -1).flatten(0, 1)
    both = agent.q_values(critics, states, actions), torch.stack([c.net(rows).view(70, 31) for c in critics])
    found, wanted = ((q, *torch.autograd.grad(q.logsumexp(-1).mean(), tuple(critics.parameters()))) for q in both)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_gap_estimates_the_integral_over_actions(dataset: OfflineDataset) -> None:
    """exp(Q) over the density of a sampled action is on average the integral over [-1, 1]^2: 4 exp(Q) for a flat Q."""
    agent = ready_cql(dataset, n_actions=1000)
    set_output_layer(agent.policy, [0.3, -0.2], [0.4, 0.6])
    _, log_densities = agent.sampled_actions(*halves(agent, first_batch(agent)))
    for kind in log_densities.chunk(3, 1):
        assert torch.exp(-kind).mean().item() == pytest.approx(4, rel=0.03)
    q = torch.full((2, 16, 3001), 1.7)
    gap = math.log(3000 * 4 * math.exp(1.7)) - 1.7
    np.testing.assert_allclose(agent.gaps(q, log_densities), gap, atol=0.05)


def test_conservative_loss_by_hand(dataset: OfflineDataset) -> None:
    gaps = torch.tensor([1.5, 0.25])
    agent = ready_cql(dataset, conservative_weight=3.0)
    assert agent.conservative_loss(gaps).item() == pytest.approx(3 * 1.75)
    assert agent.multiplier_loss(gaps).item() == 0
    assert not hasattr(agent.policy, "log_multiplier")


def test_lagrange_version_by_hand(dataset: OfflineDataset) -> None:
    gaps = torch.tensor([1.5, 0.25], requires_grad=True)
    agent = ready_cql(dataset, conservative_weight=3.0, target_action_gap=0.5)
    with torch.no_grad():
        agent.policy.log_multiplier.fill_(0.7)
    loss = agent.conservative_loss(gaps)
    assert loss.item() == pytest.approx(3 * math.exp(0.7) * (1.0 - 0.25), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, gaps)
    np.testing.assert_allclose(gradient, [3 * math.exp(0.7)] * 2, rtol=1e-5)
    loss = agent.multiplier_loss(gaps)
    assert loss.item() == pytest.approx(-0.5 * 3 * math.exp(0.7) * 0.75, rel=1e-5)
    for excess, sign in ((1.0, 1), (-1.0, -1)):  # it grows while the gaps are too large
        before = agent.policy.log_multiplier.item()
        optimizer = torch.optim.Adam([agent.policy.log_multiplier], 0.01, fused=True)
        descend(optimizer, agent.multiplier_loss(torch.full((2,), 0.5 + excess)))
        assert sign * (agent.policy.log_multiplier.item() - before) > 0
    with torch.no_grad():
        agent.policy.log_multiplier.fill_(100.0)
    assert agent.conservative_loss(torch.tensor([1.5, 0.5])).item() == pytest.approx(3e6)


# ---------------------------------------------------------------- the sampled actions


def test_uniform_actions_fill_the_whole_box(dataset: OfflineDataset) -> None:
    agent = ready_cql(dataset, n_actions=1000)
    batch = first_batch(agent)
    actions, log_densities = agent.sampled_actions(*halves(agent, batch))
    assert actions.shape == (16, 3000, 2)
    assert log_densities.shape == (16, 3000)
    uniform = actions[:, :1000].reshape(-1, 2).numpy()
    assert uniform.min() < -0.999
    assert uniform.max() > 0.999
    np.testing.assert_allclose(uniform.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(uniform.std(0), 1 / math.sqrt(3), atol=0.01)
    assert abs(np.corrcoef(uniform.T)[0, 1]) < 0.03
    np.testing.assert_allclose(log_densities[:, :1000], math.log(0.5**2), rtol=1e-6)  # 0.5 per dimension


def test_actions_of_the_actor_come_with_the_densities_of_their_own_states(dataset: OfflineDataset) -> None:
    agent = ready_cql(dataset, n_actions=1000)
    batch = first_batch(agent)
    arrays = in_numpy(batch)
    actions, log_densities = agent.sampled_actions(*halves(agent, batch))
    for part, observations, others in ((1, arrays[0], arrays[4]), (2, arrays[4], arrays[0])):
        drawn = actions[:, 1000 * part : 1000 * (part + 1)].double().numpy()
        given = log_densities[:, 1000 * part : 1000 * (part + 1)].numpy()
        mean, std = (x[:, None] for x in actor_by_hand(agent, observations))
        before = np.arctanh(np.clip(drawn, -1 + 1e-9, 1 - 1e-9))
        np.testing.assert_allclose(np.median(before, 1), mean[:, 0], atol=0.25 * std.max())
        inside = (np.abs(drawn) < 0.999).all(-1)
        assert inside.mean() > 0.3
        expected = log_density_by_hand(drawn, mean, std)
        np.testing.assert_allclose(given[inside], expected[inside], atol=0.02)
        wrong = log_density_by_hand(drawn, *(x[:, None] for x in actor_by_hand(agent, others)))
        assert np.abs(given - wrong)[inside].max() > 0.5
    assert not actions.requires_grad
    assert not log_densities.requires_grad


def test_all_actions_are_valued_at_the_current_state(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those drawn at s' too: the critics are asked about s for 1 + 3N actions, the targets about s' for one."""
    agent = ready_cql(dataset)
    calls: list[tuple[bool, Tensor, Tensor]] = []
    q_values = agent.q_values

    def recorded(critics: nn.ModuleList, observations: Tensor, actions: Tensor) -> Tensor:
        calls.append((critics is agent.policy.target_critics, observations, actions))
        return q_values(critics, observations, actions)

    monkeypatch.setattr(agent, "q_values", recorded)
    batch = next(
        Transitions(agent.data, states=agent.states, actions=agent.actions).batches(
            range(1), 16, agent.derived_generator
        )
    )
    next(agent.train())
    assert [(target, actions.shape) for target, _, actions in calls] == [(True, (16, 1, 2)), (False, (16, 13, 2))]
    assert torch.equal(calls[0][1], batch[4])
    assert torch.equal(calls[1][1], batch[0])
    assert torch.equal(calls[1][2][:, 0], batch[1])
    assert not torch.equal(batch[0], batch[4])


# ---------------------------------------------------------------- the actor


def set_output_layer(policy: Any, means: list[float], log_std: list[float]) -> None:
    nn.init.zeros_(policy.actor.net[-1].weight)
    with torch.no_grad():
        policy.actor.net[-1].bias.copy_(torch.tensor(means + log_std))


def test_actions_are_samples_or_the_squashed_mean(dataset: OfflineDataset) -> None:
    agent = ready_cql(dataset)
    set_output_layer(agent.policy, [1.0, -0.5], [-1.5, -3.0])
    observations = np.random.default_rng(0).normal(size=(20_000, 3)).astype(np.float32)

    def scaled(actions: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.arctanh(2 * (actions - BOX.low) / (BOX.high - BOX.low) - 1)

    certain = scaled(agent.predict(observations[:9], deterministic=True)[0])
    np.testing.assert_allclose(certain, np.tile([1.0, -0.5], (9, 1)), atol=1e-4)
    before = scaled(agent.predict(observations)[0])
    np.testing.assert_allclose(before.mean(0), [1.0, -0.5], atol=0.01)
    np.testing.assert_allclose(before.std(0), np.exp([-1.5, -3.0]), rtol=0.03)
    set_output_layer(agent.policy, [0.0, 0.0], [-30.0, 30.0])
    np.testing.assert_array_equal(agent.policy.actor(torch.zeros(3)).log_std.detach(), [-20, 2])


def test_noise_of_an_episode_goes_on_in_the_state(dataset: OfflineDataset) -> None:
    agent = ready_cql(dataset)
    set_output_layer(agent.policy, [0.0, 0.0], [-2.0, -2.0])
    observations = np.zeros((2, 3), np.float32)
    first, state = agent.predict(observations)
    second, _ = agent.predict(observations, state)
    assert np.abs(first - second).min() > 1e-4  # fresh noise at every step
    np.testing.assert_array_equal(agent.predict(observations, state)[0], second)  # a state that is reused repeats it
    anew = agent.predict(observations, state, np.array([True, False]))[0]
    assert np.abs(anew[0] - second[0]).min() > 1e-4
    np.testing.assert_array_equal(anew[1], second[1])


def test_first_weights(dataset: OfflineDataset) -> None:
    agent = CQL("MlpPolicy", dataset, preset="paper", seed=0)
    policy = agent.policy
    with torch.no_grad():
        means, log_std = policy.actor(torch.randn(100, 3, generator=torch.Generator().manual_seed(0)))
        assert means.abs().max() < 0.05
        np.testing.assert_allclose(log_std, -1, atol=0.05)
    for critic in policy.critics:
        *hidden, output_layer = [layer for layer in critic.net if isinstance(layer, nn.Linear)]
        assert [layer.out_features for layer in hidden] == [256, 256, 256]
        for layer in hidden[1:]:
            np.testing.assert_allclose((layer.weight @ layer.weight.T).detach(), 2 * np.eye(256), atol=1e-4)
        assert output_layer.weight.norm().item() == pytest.approx(0.01, rel=1e-4)
        assert not any(layer.bias.any() for layer in (*hidden, output_layer))
    assert policy.log_entropy.item() == 0
    state = policy.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(parts(state, "critics"), parts(state, "target_critics"), strict=True))
    assert not torch.equal(policy.critics[0].net[0].weight, policy.critics[1].net[0].weight)
    plain = CQL("MlpPolicy", dataset, preset="paper", seed=0, orthogonal_critics=False, target_action_gap=1.0).policy
    assert plain.critics[0].net[0].bias.any()
    assert plain.log_multiplier.item() == 1


# ---------------------------------------------------------------- what a gradient step changes


@pytest.mark.parametrize("lagrange", [False, True])
def test_a_step_moves_each_part_by_its_own_loss(dataset: OfflineDataset, lagrange: bool) -> None:
    """All losses are those of the networks before the step; the targets follow the critics of after it."""
    settings: dict[str, Any] = {"target_rate": 0.25, "target_action_gap": 0.5 if lagrange else None}
    agent, twin = ready_cql(dataset, **settings), ready_cql(dataset, **settings)
    before = weights(agent)
    losses = next(agent.train())
    after = weights(agent)
    moved = {"actor", "critics", "target_critics", "log_entropy", *(["log_multiplier"] if lagrange else [])}
    assert {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])} == moved
    online, targets = parts(after, "critics"), parts(after, "target_critics")
    for old, new, target in zip(parts(before, "target_critics"), online, targets, strict=True):
        np.testing.assert_allclose(target, 0.75 * old + 0.25 * new, atol=1e-6)
    # the same numbers from a twin, drawing in the same order
    batch = next(
        Transitions(twin.data, states=twin.states, actions=twin.actions).batches(range(1), 16, twin.derived_generator)
    )
    current, following = halves(twin, batch)
    chosen, log_density = current.sample(torch.randn(16, 2, generator=twin.generator))
    assert losses["actor_loss"].item() == pytest.approx(twin.actor_loss(batch[0], chosen, log_density).item(), rel=1e-5)
    target_values = twin.targets(batch, following)
    sampled, log_densities = twin.sampled_actions(current, following)
    q = twin.q_values(twin.policy.critics, batch[0], torch.cat([batch[1][:, None], sampled], 1))
    gaps = twin.gaps(q, log_densities)
    expected = twin.bellman_loss(q, target_values) + twin.conservative_loss(gaps)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["gap"].item() == pytest.approx(gaps.mean().item(), rel=1e-5)
    # Adam's first step has the size of the learning rate, against the gradient of that loss
    expected.backward()
    for name, parameter in twin.policy.critics.named_parameters():
        step = (after[f"critics.{name}"] - before[f"critics.{name}"])[parameter.grad.abs() > 1e-4]
        np.testing.assert_allclose(step, -3e-4 * parameter.grad[parameter.grad.abs() > 1e-4].sign(), rtol=0.02)


def test_first_steps_clone(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = ready_cql(dataset, cloning_steps=3)
    used = []
    for name in ("actor_loss", "cloning_loss"):
        loss = getattr(agent, name)
        monkeypatch.setattr(agent, name, lambda *x, name=name, loss=loss: used.append(name) or loss(*x))
    for _, _ in zip(range(5), agent.train(), strict=False):
        pass
    assert used == [*["cloning_loss"] * 3, *["actor_loss"] * 2]


def test_rewards_are_learned_as_the_settings_say(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def learned(**settings: Any) -> Tensor:
        agent, seen = ready_cql(dataset, **settings), []

        def targets(batch: tuple[Tensor, ...], following: SquashedGaussian) -> Tensor:
            seen.append(batch[2])
            return CQL.targets(agent, batch, following)

        monkeypatch.setattr(agent, "targets", targets)
        next(agent.train())
        return seen[0]

    np.testing.assert_allclose(learned(reward_scale=10.0, reward_shift=-5.0), 10 * learned() - 5, rtol=1e-5)


@pytest.mark.parametrize("stop", [5, 15])
def test_cloning_steps_are_counted_on_after_a_stop(dataset: OfflineDataset, stop: int) -> None:
    check_resumption("CQL", dataset, stop, cloning_steps=10)


def test_training_steps_do_not_wait_for_the_device(dataset: OfflineDataset) -> None:
    steps = ready_cql(dataset, cloning_steps=3, max_target_backup=True, target_action_gap=1.0, gap_floor=0.0).train()
    next(steps)
    with NoSynchronisation():
        for _ in range(4):
            next(steps)
