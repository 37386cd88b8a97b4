"""TD3+BC and ReBRAC: losses worked out by hand, what each step changes, and a task where cloning fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from echo import BEST, Echo, echo_states, echoes
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import BOX, record, weights
from ld_agents import BC, OfflineDataset, evaluate
from ld_agents.baselines import rebrac, td3_bc
from ld_agents.baselines.rebrac import ReBRAC
from ld_agents.baselines.td3_bc import TD3BC
from ld_agents.networks.critics import descend

BOTH = pytest.mark.parametrize("agent_class", [TD3BC, ReBRAC])
SMALL: dict[str, Any] = {
    "preset": "fast",
    "hidden": (12, 8),
    "batch_size": 16,
    "steps": 20,
    "normalize_observations": True,
}


def ready(agent_class: type[TD3BC], data: OfflineDataset, seed: int = 0, **settings: Any) -> TD3BC:
    """An agent whose losses can be asked for, outside `learn`. Its weights are far from small."""
    agent = agent_class("MlpPolicy", data, seed=seed, device="cpu", **{**SMALL, **settings})
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    agent._plan_budget(None, True)
    agent._prepare_data(data)
    agent.policy.set_training_mode(True)
    return agent


def first_batch(agent: TD3BC) -> tuple[Tensor, ...]:
    return next(agent.transitions().batches(range(1), agent.settings.batch_size, agent.derived_generator))


# ---------------------------------------------------------------- by hand, in numpy and float64


def forward(net: nn.Sequential, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The layers one by one, from their weights."""
    for layer in net:
        values = [parameter.detach().double().numpy() for parameter in layer.parameters()]
        if isinstance(layer, nn.Linear):
            x = x @ values[0].T + values[1]
        elif isinstance(layer, nn.LayerNorm):
            centered = x - x.mean(-1, keepdims=True)
            x = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * values[0] + values[1]
        else:
            x = np.maximum(x, 0)
    return x


def q_by_hand(critics: Any, observations: Any, actions: Any) -> NDArray[np.float64]:
    """Both critics, [2, B]."""
    return np.stack([forward(critic.net, np.concatenate([observations, actions], 1))[:, 0] for critic in critics])


def targets_by_hand(agent: TD3BC, batch: list[NDArray[np.float64]], critic_penalty: float) -> NDArray[np.float64]:
    _, _, rewards, masks, next_observations, *next_actions = batch
    noise = torch.randn(16, 2, generator=torch.Generator().manual_seed(3)).double().numpy() * 0.3
    noise = np.minimum(np.maximum(noise, -0.4), 0.4)
    chosen = np.tanh(forward(agent.policy.target_actor.net, next_observations)) + noise
    chosen = np.minimum(np.maximum(chosen, -1), 1)
    values = q_by_hand(agent.policy.target_critics, next_observations, chosen).min(0)
    if next_actions:
        values = values - critic_penalty * ((chosen - next_actions[0]) ** 2).sum(1)
    return rewards + 0.9 * masks * values


HAND: dict[str, Any] = {"discount": 0.9, "target_noise": 0.3, "target_noise_clip": 0.4}


@BOTH
def test_critic_loss_by_hand(agent_class: type[TD3BC], dataset: OfflineDataset) -> None:
    settings = {**HAND, "critic_penalty": 0.7} if agent_class is ReBRAC else HAND
    agent = ready(agent_class, dataset, **settings)
    batch = first_batch(agent)
    masks = batch[3]
    masks[:5] = 0  # some terminals
    hand = [part.double().numpy() for part in batch]
    targets = targets_by_hand(agent, hand, 0.7)
    agent.generator.manual_seed(3)
    np.testing.assert_allclose(agent.targets(batch).numpy(), targets, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(targets[:5], hand[2][:5])
    errors = q_by_hand(agent.policy.critics, hand[0], hand[1]) - targets
    agent.generator.manual_seed(3)
    loss = agent.critic_loss(batch)
    assert float(loss.detach()) == pytest.approx((errors[0] ** 2).mean() + (errors[1] ** 2).mean(), rel=1e-5)
    # the two critics do not agree, so it matters which is the smaller one
    targets_of = q_by_hand(agent.policy.target_critics, hand[4], hand[1])
    assert 0 < (targets_of[0] < targets_of[1]).mean() < 1
    # nothing flows into the targets
    loss.backward()
    assert all(parameter.grad is None for parameter in agent.policy.target_critics.parameters())
    assert all(parameter.grad is None for parameter in agent.policy.target_actor.parameters())


def test_actor_loss_of_td3bc_by_hand(dataset: OfflineDataset) -> None:
    agent = ready(TD3BC, dataset, alpha=1.7)
    batch = first_batch(agent)
    observations, actions = (part.double().numpy() for part in batch[:2])
    chosen = np.tanh(forward(agent.policy.actor.net, observations))
    q = q_by_hand(agent.policy.critics, observations, chosen)[0]
    expected = ((chosen - actions) ** 2).mean() - 1.7 / np.abs(q).mean() * q.mean()
    assert float(agent.actor_loss(batch).detach()) == pytest.approx(expected, rel=1e-5)


def test_actor_loss_of_rebrac_by_hand(dataset: OfflineDataset) -> None:
    agent = ready(ReBRAC, dataset, actor_penalty=0.6)
    batch = first_batch(agent)
    observations, actions = (part.double().numpy() for part in batch[:2])
    chosen = np.tanh(forward(agent.policy.actor.net, observations))
    both = q_by_hand(agent.policy.critics, observations, chosen)
    assert 0 < (both[0] < both[1]).mean() < 1
    q = both.min(0)
    expected = 0.6 * ((chosen - actions) ** 2).sum(1).mean() - q.mean() / np.abs(q).mean()
    assert float(agent.actor_loss(batch).detach()) == pytest.approx(expected, rel=1e-5)


@BOTH
def test_normaliser_of_q_is_held_constant(agent_class: type[TD3BC], dataset: OfflineDataset) -> None:
    """With Q > 0 everywhere, mean(Q) / mean |Q| is 1 whatever the actor does: its gradient must not be zero."""
    agent = ready(agent_class, dataset, actor_penalty=0.0) if agent_class is ReBRAC else ready(agent_class, dataset)
    policy, alpha = agent.policy, agent.settings.alpha
    for critic in policy.critics:
        nn.init.constant_(critic.net[-1].bias, 30.0)
    observations = first_batch(agent)[0]
    batch = (observations, policy.actor(observations).detach())  # no pull towards the data
    bias = policy.actor.net[-1].bias
    (gradient,) = torch.autograd.grad(agent.actor_loss(batch), bias)

    def q_after(change: list[float]) -> float:
        hand = observations.double().numpy()
        chosen = np.tanh(forward(policy.actor.net, hand) + change)
        values = q_by_hand(policy.critics, hand, chosen)
        q = values.min(0) if agent_class is ReBRAC else values[0]
        assert (q > 0).all()
        return float(q.mean())

    step = 1e-6
    differences = [q_after([step, 0]) - q_after([-step, 0]), q_after([0, step]) - q_after([0, -step])]
    expected = -alpha / q_after([0, 0]) * np.array(differences) / (2 * step)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-3, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


# ---------------------------------------------------------------- target policy smoothing


@BOTH
def test_target_noise_is_scaled_and_clipped(agent_class: type[TD3BC], dataset: OfflineDataset) -> None:
    def noise(**settings: float) -> NDArray[np.float32]:
        agent = ready(agent_class, dataset, **settings)
        for parameter in agent.policy.target_actor.net[-1].parameters():
            nn.init.zeros_(parameter)  # the action without noise is 0
        with torch.no_grad():
            return agent.target_actions(torch.zeros(20_000, 3)).numpy()

    wide = noise(target_noise=0.2, target_noise_clip=2.0)
    assert wide.std() == pytest.approx(0.2, rel=0.02)
    assert wide.mean() == pytest.approx(0, abs=0.005)
    clipped = noise(target_noise=0.2, target_noise_clip=0.3)
    assert np.abs(clipped).max() == np.float32(0.3)
    np.testing.assert_array_equal(clipped, wide.clip(np.float32(-0.3), np.float32(0.3)))
    assert (np.abs(clipped) == np.float32(0.3)).mean() == pytest.approx(0.1336, abs=0.01)  # beyond 1.5 deviations
    assert np.abs(noise(target_noise=2.0, target_noise_clip=2.0)).max() == 1
    assert not noise(target_noise=0.0).any()


@BOTH
def test_target_actions_are_those_of_the_target_actor(agent_class: type[TD3BC], dataset: OfflineDataset) -> None:
    agent = ready(agent_class, dataset, target_noise=0.0)
    observations = first_batch(agent)[4]
    expected = np.tanh(forward(agent.policy.target_actor.net, observations.double().numpy()))
    np.testing.assert_allclose(agent.target_actions(observations).numpy(), expected, atol=1e-5)
    assert np.abs(expected - np.tanh(forward(agent.policy.actor.net, observations.double().numpy()))).max() > 0.01


# ---------------------------------------------------------------- what a gradient step changes


def parts(state: dict[str, Tensor], name: str) -> list[Tensor]:
    return [value for key, value in state.items() if key.startswith(f"{name}.")]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    assert a
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@BOTH
@pytest.mark.parametrize("delay", [1, 2, 3])
def test_actor_and_targets_move_at_every_so_many_steps(
    agent_class: type[TD3BC], dataset: OfflineDataset, delay: int
) -> None:
    agent = ready(agent_class, dataset, actor_delay=delay, target_rate=0.25)
    steps = agent.train()
    for step in range(1, 8):
        before = weights(agent)
        losses = next(steps)
        after = weights(agent)
        assert not same(parts(before, "critics"), parts(after, "critics"))
        moved = step % delay == 0
        assert ("actor_loss" in losses) == moved
        for name in ("actor", "target_actor", "target_critics"):
            assert same(parts(before, name), parts(after, name)) != moved, name
        if moved:
            for online in ("actor", "critics"):
                for new, old, source in zip(
                    parts(after, f"target_{online}"),
                    parts(before, f"target_{online}"),
                    parts(after, online),
                    strict=True,
                ):
                    np.testing.assert_allclose(new.numpy(), (0.75 * old + 0.25 * source).numpy(), atol=1e-6)


@BOTH
def test_each_loss_moves_its_own_networks_alone(agent_class: type[TD3BC], dataset: OfflineDataset) -> None:
    agent = ready(agent_class, dataset)
    policy, batch = agent.policy, first_batch(agent)
    optimizer = agent.optimizer("train.actor", policy.actor.parameters(), 1e-2)
    before = weights(agent)
    descend(optimizer, agent.actor_loss(batch))
    after = weights(agent)
    assert {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])} == {"actor"}
    assert all(parameter.grad is None for parameter in policy.critics.parameters())


def test_rewards_are_learned_as_the_settings_say(dataset: OfflineDataset) -> None:
    agent = ready(TD3BC, dataset, reward_scale=3.0, reward_shift=-1.0)
    plain = ready(TD3BC, dataset)
    np.testing.assert_allclose(first_batch(agent)[2], 3 * first_batch(plain)[2] - 1, rtol=1e-5)


# ---------------------------------------------------------------- networks and settings


def test_networks_of_rebrac(dataset: OfflineDataset) -> None:
    agent = ReBRAC("MlpPolicy", dataset, preset="paper", seed=0, device="cpu")
    policy = agent.policy

    def kinds(net: nn.Sequential) -> list[str]:
        return [type(layer).__name__ for layer in net]

    assert kinds(policy.actor.net) == [*["Linear", "ReLU"] * 3, "Linear"]
    nets = [(policy.actor.net, 1e-3), *((critic.net, 3e-3) for critic in policy.critics)]
    for net, last in nets:
        hidden, output_layer = [layer for layer in net if isinstance(layer, nn.Linear)][:-1], net[-1]
        for layer in hidden:
            assert (layer.bias == 0.1).all()
            bound = layer.in_features**-0.5
            assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert 0.8 * last < float(output_layer.weight.detach().abs().max()) <= last
        assert float(output_layer.bias.detach().abs().max()) <= last
    for critic in policy.critics:
        assert kinds(critic.net) == [*["Linear", "ReLU", "LayerNorm"] * 3, "Linear"]
        assert [layer.out_features for layer in critic.net if isinstance(layer, nn.Linear)] == [256, 256, 256, 1]
    state = policy.state_dict()
    for name in ("actor", "critics"):
        assert same(parts(state, name), parts(state, f"target_{name}"))
    assert not torch.equal(policy.critics[0].net[0].weight, policy.critics[1].net[0].weight)


@BOTH
def test_target_networks_are_no_parameters_to_train(agent_class: type[TD3BC], dataset: OfflineDataset) -> None:
    policy = ready(agent_class, dataset).policy
    frozen = {name.split(".")[0] for name, value in policy.named_parameters() if not value.requires_grad}
    assert frozen == {"target_actor", "target_critics"}


@pytest.mark.parametrize(("agent_class", "families"), [(TD3BC, td3_bc.FAMILY), (ReBRAC, rebrac.FAMILY)])
def test_settings_of_families(
    agent_class: type[TD3BC], families: dict[str, dict[str, Any]], dataset: OfflineDataset
) -> None:
    assert list(families) == ["maze2d", "antmaze", "locomotion", "adroit"]
    for settings in families.values():
        agent = agent_class("MlpPolicy", dataset, device="cpu", **{"preset": "paper", **settings})
        assert agent.settings.steps == 1_000_000
    for penalties in rebrac.PENALTIES.values():
        ReBRAC("MlpPolicy", dataset, device="cpu", **{**SMALL, **families["maze2d"], **penalties})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("batch_size", 0),
        ("actor_delay", 0),
        ("steps", -1),
        ("alpha", -1.0),
        ("discount", 1.1),
        ("target_rate", 2.0),
        ("target_noise", -0.1),
        ("reward_scale", float("nan")),
        ("hidden", ()),
        ("critic_layer_norm", 1),
        ("actor_penalty", -1.0),
        ("critic_penalty", float("inf")),
    ],
)
def test_settings_out_of_range(dataset: OfflineDataset, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        ReBRAC("MlpPolicy", dataset, **{**SMALL, setting: value})


# ---------------------------------------------------------------- no waiting for the device


class NoSynchronisation(TorchDispatchMode):
    """Fails at operations that make a GPU's host wait for a result, and that no CUDA graph can hold."""

    forbidden = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "allclose")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not any(name.startswith(word) for word in self.forbidden), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@BOTH
def test_training_steps_do_not_wait_for_the_device(agent_class: type[TD3BC], dataset: OfflineDataset) -> None:
    steps = ready(agent_class, dataset).train()
    next(steps)
    with NoSynchronisation():
        for _ in range(4):
            next(steps)
    with pytest.raises(AssertionError, match="waits for the device"), NoSynchronisation():
        float(torch.ones(()))


# ---------------------------------------------------------------- a task with a known optimum

LEARNING: dict[str, Any] = {
    "preset": "fast",
    "hidden": (32, 32),
    "batch_size": 64,
    "actor_learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "actor_delay": 1,
    "target_rate": 0.05,
    "target_noise": 0.1,
    "discount": 0.9,
    "normalize_observations": True,
    "steps": 800,
}


@pytest.fixture(scope="module")
def echo_data() -> OfflineDataset:
    return echoes()


def test_cloning_does_nothing(echo_data: OfflineDataset) -> None:
    bc = BC("MlpPolicy", echo_data, preset="fast", seed=0, hidden=(32, 32), steps=500, learning_rate=3e-3).learn()
    assert evaluate(bc, Echo, 1, seed=0).returns[0] == pytest.approx(3.48, abs=0.2)


@pytest.mark.parametrize(
    ("agent_class", "settings"),
    [(TD3BC, {"alpha": 40.0}), (ReBRAC, {"actor_penalty": 0.003, "critic_penalty": 0.001})],
)
def test_finds_what_pays_later(agent_class: type[TD3BC], settings: dict[str, Any], echo_data: OfflineDataset) -> None:
    agent = agent_class("MlpPolicy", echo_data, seed=0, **LEARNING, **settings).learn()
    assert 4.4 < evaluate(agent, Echo, 1, seed=0).returns[0] <= 4.64
    observations, best = echo_states()
    errors = np.abs(agent.predict(observations)[0][:, 0] - best)
    assert errors.mean() < 0.25  # doing nothing is 0.53 away
    # Q of the best way from the start: a reward of 1 - 0.36, then 1 each, discounted
    start = agent.policy.normalize(torch.zeros(1, 2))
    q = agent.policy.critics[0](start, torch.tensor([[float(BEST[1])]])).item()
    assert q == pytest.approx(0.64 + 0.9 + 0.81 + 0.729 + 0.6561, abs=0.25)


def test_cloning_term_holds_the_actor_back_by_alpha(echo_data: OfflineDataset) -> None:
    """Q falls by 0.9 (a - c)^2 around the best action c, and the mean of the data is 0.

    So the actor's loss a^2 + w (a - c)^2, w = 0.9 alpha / mean |Q|, is least at a = c w / (1 + w).
    """
    agent = TD3BC("MlpPolicy", echo_data, seed=0, **LEARNING, alpha=2.5).learn()
    every = agent.policy.normalize(echo_data.observations)
    w = 0.9 * 2.5 / agent.policy.critics[0](every, agent.policy.actor(every)).detach().abs().mean().item()
    assert 0.3 < w / (1 + w) < 0.7
    observations, best = echo_states()
    errors = np.abs(agent.predict(observations)[0][:, 0] - best * w / (1 + w))
    assert errors.mean() < 0.15


def test_terminals_end_the_value_and_timeouts_do_not() -> None:
    """One state, one action, reward 1 for ever: 1 / (1 - 0.8) = 5 if the data end by timeout, 1 if by a terminal."""

    def value(terminal: bool) -> float:
        n = 200
        data = OfflineDataset(
            np.zeros((n, 1)),
            np.zeros((n, 1)),
            np.ones(n),
            np.full(n, terminal),
            np.full(n, not terminal),
            action_space=spaces.Box(-1, 1, (1,)),
            final_observations=np.zeros((n, 1)),
        )
        settings = {**LEARNING, "discount": 0.8, "target_rate": 0.2, "steps": 300, "target_noise": 0.0, "alpha": 0.0}
        agent = TD3BC("MlpPolicy", data, seed=0, **settings).learn()
        return float(agent.policy.critics[0](torch.zeros(1, 1), torch.zeros(1, 1)).detach())

    assert value(terminal=False) == pytest.approx(5, abs=0.3)
    assert value(terminal=True) == pytest.approx(1, abs=0.1)


def test_actions_are_learned_in_units_of_the_box() -> None:
    """Data from a box that is not [-1, 1]: a strong cloning term reproduces them."""
    data = record()
    constant = torch.tensor([1.7, -2.5])
    data.actions = constant.expand(len(data.actions), 2).contiguous()
    agent = TD3BC("MlpPolicy", data, seed=0, **{**LEARNING, "alpha": 0.01, "steps": 400}).learn()
    actions = agent.predict(data.observations.numpy()[:20])[0]
    np.testing.assert_allclose(actions, np.tile(constant, (20, 1)), atol=0.1)
    assert all(BOX.contains(action) for action in actions)
