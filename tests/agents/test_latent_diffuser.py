"""LatentDiffuser: its data, its networks, its three stages, and a task that only guided plans solve."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_learning import TwoWays, walks
from torch import Tensor
from torch.nn import functional as F

from conftest import TINY_LATENT_DIFFUSER, StopAt, differing, make_agent, saved, weights
from ld_agents import LatentDiffuser, OfflineDataset, evaluate
from ld_agents import latent_diffuser as module
from ld_agents.common.keyed_noise import keyed_normal, observation_keys
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.data.returns import returns_to_go
from ld_agents.diffusion import guided_sampler
from ld_agents.diffusion.guidance import EnergyNet
from ld_agents.diffusion.sampling import VPSchedule, vp_solver_steps
from ld_agents.latent_diffuser_settings import ENERGY_SETTINGS, FAMILY, PAPER, PRESETS
from ld_agents.networks.critics import QFunction
from ld_agents.networks.denoisers import PositionConv, TemporalUNet, sinusoids
from ld_agents.networks.trajectory_transformer import Decoded
from ld_agents.networks.window_values import StateValue

Trained = Callable[[str], OfflineAlgorithm]
T, L, N = 8, 2, 4  # of TINY_LATENT_DIFFUSER


def make(dataset: OfflineDataset, **settings: Any) -> LatentDiffuser:
    agent = make_agent("LatentDiffuser", dataset, **settings)
    assert isinstance(agent, LatentDiffuser)
    return agent


def prepared(dataset: OfflineDataset, **settings: Any) -> LatentDiffuser:
    """An agent in the middle of `learn`: its data are there."""
    agent = make(dataset, **settings)
    agent._plan_budget(None, reset=True)
    agent._prepare_data(dataset)
    return agent


def counting(episodes: list[tuple[int, bool]]) -> OfflineDataset:
    """Row i has state (i, -i), action i / 100 and reward i; episodes of given lengths, ending in a terminal or not."""
    n = sum(length for length, _ in episodes)
    ends = np.cumsum([length for length, _ in episodes]) - 1
    terminals, timeouts = np.zeros(n, bool), np.zeros(n, bool)
    for end, (_, terminal) in zip(ends, episodes, strict=True):
        (terminals if terminal else timeouts)[end] = True
    rows = np.arange(n, dtype=np.float32)
    return OfflineDataset(np.stack([rows, -rows], 1), rows[:, None] / 100, rows, terminals, timeouts)


# ---------------------------------------------------------------- returns-to-go


def test_returns_to_go_by_hand() -> None:
    """The reward of the step itself counts, and nothing behind the end of the episode does."""
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    returns = returns_to_go(rewards, torch.tensor([3, 5, 6]), 0.5)
    assert returns.tolist() == [1 + 1 + 1, 2 + 2, 4, 8 + 8, 16, 32]
    assert returns_to_go(rewards, torch.tensor([6]), 0.0).tolist() == rewards.tolist()


@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_returns_to_go_against_a_loop(discount: float) -> None:
    rng = np.random.default_rng(0)
    lengths = [1, 2, 3, 64, 65, 130, 7]
    rewards = rng.normal(size=sum(lengths))
    expected, end = np.zeros(len(rewards)), 0
    for length in lengths:
        end += length
        total = 0.0
        for row in range(end - 1, end - length - 1, -1):
            total = rewards[row] + discount * total
            expected[row] = total
    returns = returns_to_go(torch.tensor(rewards), torch.tensor(np.cumsum(lengths)), discount)
    np.testing.assert_allclose(returns.numpy(), expected, rtol=1e-10)


# ---------------------------------------------------------------- windows


def test_windows_start_everywhere_but_at_the_last_step() -> None:
    agent = prepared(counting([(5, False), (1, False), (12, True)]), standardize=False, normalize_observations=False)
    assert agent.window_starts.tolist() == [0, 1, 2, 3, *range(6, 17)]


def test_windows_are_padded_past_the_end_of_the_episode() -> None:
    data = counting([(5, False), (12, True)])
    agent = prepared(data, standardize=False, normalize_observations=False, discount=0.5)
    tokens, inside = agent.windows(torch.tensor([2, 5, 15]))
    assert inside.sum(1).tolist() == [3, 8, 2]
    for window, start, length in zip(tokens, (2, 5, 15), (3, 8, 2), strict=True):
        rows = torch.arange(start, start + length, dtype=torch.float32)
        assert window[:length, 0].tolist() == rows.tolist()
        assert window[:length, 1].tolist() == (-rows).tolist()
        torch.testing.assert_close(window[:length, 2], rows / 100)
        assert window[:length, 3].tolist() == rows.tolist()
        assert window[:length, 5].tolist() == [0] * length
        assert (window[length:, :5] == 0).all()
        assert window[length:, 5].tolist() == [1] * (T - length)
    assert tokens[0, :3, 4].tolist() == [2 + 1.5 + 1, 3 + 2, 4]
    assert tokens[2, :2, 4].tolist() == [15 + 8, 16]


def test_reward_at_a_terminal_may_be_replaced() -> None:
    data = counting([(5, False), (4, True)])
    agent = prepared(data, standardize=False, normalize_observations=False, discount=0.5, terminal_reward=-100.0)
    tokens, _ = agent.windows(torch.tensor([3, 7]))
    assert tokens[0, :2, 3].tolist() == [3, 4]  # a timeout is none
    assert tokens[1, :2, 3].tolist() == [7, -100]
    assert tokens[1, :2, 4].tolist() == [7 - 50, -100]


def test_tokens_are_standardised(dataset: OfflineDataset) -> None:
    agent = prepared(dataset)
    assert agent.tokens.shape == (dataset.n_steps, 3 + 2 + 2)
    torch.testing.assert_close(agent.tokens.mean(0), torch.zeros(7), atol=1e-3, rtol=0)
    torch.testing.assert_close(agent.tokens.std(0, correction=0), torch.ones(7), atol=1e-3, rtol=0)
    back = agent.tokens[:, 3:] * agent.policy.token_std + agent.policy.token_mean
    torch.testing.assert_close(back[:, 2], dataset.rewards, atol=1e-4, rtol=1e-4)
    returns = returns_to_go(dataset.rewards, dataset.episode_ends, 0.9)
    torch.testing.assert_close(back[:, 3], returns, atol=1e-3, rtol=1e-4)
    plain = prepared(dataset, standardize=False, normalize_observations=False)
    torch.testing.assert_close(plain.tokens[:, :3], dataset.observations)
    torch.testing.assert_close(plain.tokens[:, 5], dataset.rewards)


def test_episodes_of_one_step_are_refused() -> None:
    with pytest.raises(ValueError, match="No episode has two steps"):
        make(counting([(1, True)] * 30)).learn(1)


def test_data_are_dropped_after_learning(dataset: OfflineDataset) -> None:
    agent = make(dataset).learn(3)
    assert not {"data", "tokens", "window_starts", "row_ends"} & set(vars(agent))


# ---------------------------------------------------------------- the U-Net


@pytest.mark.parametrize("positions", [2, 4, 8, 16])
@pytest.mark.parametrize(
    ("kernel", "stride", "transposed"), [(5, 1, False), (3, 2, False), (4, 2, True), (1, 1, False)]
)
def test_convolution_as_a_matrix(positions: int, kernel: int, stride: int, transposed: bool) -> None:
    conv = PositionConv(3, 6, positions, kernel, stride, transposed)
    x = torch.randn(7, 3, positions)
    matrix, bias = conv.dense()
    padding = (kernel - 1) // 2
    if transposed:
        expected = F.conv_transpose1d(x, conv.weight.transpose(0, 1), conv.bias, stride, padding)
    else:
        expected = F.conv1d(x, conv.weight, conv.bias, stride, padding)
    torch.testing.assert_close((x.flatten(1) @ matrix + bias).view(7, 6, -1), expected, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad((x.flatten(1) @ matrix).square().sum(), conv.weight)[0]
    wanted = torch.autograd.grad((expected - conv.bias[:, None]).square().sum(), conv.weight)[0]
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


def plain_unet(net: TemporalUNet, x: Tensor, tau: Tensor, states: Tensor) -> Tensor:
    """The same U-Net with torch's convolutions and nothing hoisted, layer by layer as in Diffuser's code."""
    time = net.time[1](net.activation(net.time[0](sinusoids(1000 * tau, 64))))
    state = net.state[1](net.activation(net.state[0](states)))
    condition = net.activation(torch.cat([time, state], -1))

    def conv(layer: PositionConv, h: Tensor) -> Tensor:
        _, kernel, stride, transposed = layer.places
        if transposed:
            return F.conv_transpose1d(h, layer.weight.transpose(0, 1), layer.bias, stride, (kernel - 1) // 2)
        return F.conv1d(h, layer.weight, layer.bias, stride, (kernel - 1) // 2)

    def block(layer: Any, h: Tensor) -> Tensor:
        out = net.activation(layer.norms[0](conv(layer.first, h))) + layer.condition(condition)[..., None]
        out = net.activation(layer.norms[1](conv(layer.second, out)))
        return out + (conv(layer.around, h) if layer.around is not None else h)

    h, skips = x.transpose(1, 2), []
    for i, level in enumerate(net.down_levels):
        for layer in level:
            h = block(layer, h)
        skips.append(h)
        if i < len(net.down):
            h = conv(net.down[i], h)
    for layer in net.middle:
        h = block(layer, h)
    for level, up in zip(net.up_levels, net.up, strict=True):
        h = torch.cat([h, skips.pop()], 1)
        for layer in level:
            h = block(layer, h)
        h = conv(up, h)
    return conv(net.outlet, net.activation(net.last_norm(conv(net.last, h)))).transpose(1, 2)


@pytest.mark.parametrize("blocks", [1, 2])
def test_unet_is_the_plain_one(blocks: int) -> None:
    net = TemporalUNet(3, 5, 8, 8, (1, 2, 4), blocks, "mish")
    x, tau, states = torch.randn(6, 8, 5), torch.rand(6), torch.randn(6, 3)
    torch.testing.assert_close(net(x, tau, states), plain_unet(net, x, tau, states), atol=1e-4, rtol=1e-4)


def test_unet_sees_state_time_and_every_position() -> None:
    net = TemporalUNet(3, 5, 8, 8, (1, 2, 4), 1, "silu")
    x, tau, states = torch.randn(1, 8, 5), torch.tensor([0.5]), torch.randn(1, 3)
    before = net(x, tau, states)
    assert (net(x, tau + 0.1, states) - before).abs().amin() > 1e-6
    assert (net(x, tau, states + 1) - before).abs().amin() > 1e-6
    for position in range(8):
        moved = x.clone()
        moved[:, position] += 1
        assert ((net(moved, tau, states) - before).abs().amax((0, 2)) > 1e-6).all()


def test_paper_sizes() -> None:
    """4.1 million parameters for the prior and 0.9 million for the energy (hopper: S = 11)."""
    n = PAPER.horizon // PAPER.steps_per_latent
    denoiser = TemporalUNet(
        11, PAPER.latent_dim, n, PAPER.denoiser_width, PAPER.denoiser_multipliers, PAPER.denoiser_blocks
    )
    energy = EnergyNet(11, n * PAPER.latent_dim, PAPER.energy_hidden, PAPER.energy_layers)
    assert sum(p.numel() for p in denoiser.parameters()) == 4_112_208
    assert sum(p.numel() for p in energy.parameters()) == pytest.approx(0.9e6, rel=0.05)


# ---------------------------------------------------------------- stages 1 and 2


def test_loss_of_the_vae_is_the_weighted_sum(dataset: OfflineDataset) -> None:
    factors = {"state_weight": 2.0, "action_weight": 3.0, "reward_weight": 5.0, "return_weight": 7.0, "kl_weight": 11.0}
    losses = next(prepared(dataset, **factors).train_vae())
    expected = sum(factors[f"{name}_weight"] * losses[name] for name in ("state", "action", "reward", "return", "kl"))
    torch.testing.assert_close(losses["loss"], expected + losses["end"])


def test_weight_decay_is_that_of_adamw(dataset: OfflineDataset) -> None:
    """On the matrices alone: with no gradient to speak of, they shrink by lr times decay per step."""
    zero = dict.fromkeys(("state_weight", "action_weight", "reward_weight", "return_weight", "kl_weight"), 0.0)
    agent = prepared(dataset, weight_decay=0.5, vae_learning_rate=0.01, learning_rates="constant", **zero)
    before = weights(agent)
    next(agent.train_vae())
    name = "vae.modules_of.actions.1.weight"  # the flag's loss, which has no weight, does not reach it
    torch.testing.assert_close(weights(agent)[name], before[name] * (1 - 0.01 * 0.5))
    assert torch.equal(weights(agent)["vae.modules_of.actions.1.bias"], before["vae.modules_of.actions.1.bias"])
    assert agent._optimizers["vae"].param_groups[0]["betas"] == (0.9, 0.95)


def test_gradients_of_the_vae_are_clipped(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.Adam.step

    def note(self: Any, *args: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", note)
    next(prepared(dataset, gradient_clip=0.01).train_vae())
    assert norms == [pytest.approx(0.01, rel=1e-3)]


def test_dropout_is_resumable_and_leaves_the_global_generator_alone(dataset: OfflineDataset) -> None:
    whole = make(dataset, dropout=0.3).learn()
    assert differing(weights(whole), weights(make(dataset).learn()))
    stopped = make(dataset, dropout=0.3).learn(callback=StopAt(5))
    resumed = LatentDiffuser.load(io.BytesIO(saved(stopped)), dataset=dataset)
    torch.manual_seed(99)
    resumed.learn(reset_num_timesteps=False)
    expected = torch.Generator().manual_seed(99)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))
    assert not differing(weights(whole), weights(resumed))


def test_latents_are_whitened_per_channel(dataset: OfflineDataset) -> None:
    agent = make(dataset, scale_states=10_000).learn()
    agent._prepare_data(dataset)
    latents = (agent._encode(agent.window_starts) - agent.policy.latent_mean) / agent.policy.latent_std
    assert agent.policy.latent_mean.shape == (3,)
    torch.testing.assert_close(latents.mean((0, 1)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 1), correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_prior_learns_the_noise_of_whitened_latents_at_their_first_states(
    dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make(dataset).learn()
    agent._prepare_data(dataset)
    policy, seen = agent.policy, []
    forward = TemporalUNet.forward

    def note(self: TemporalUNet, x: Tensor, tau: Tensor, states: Tensor) -> Tensor:
        seen.append((x, tau, states))
        return forward(self, x, tau, states)

    monkeypatch.setattr(TemporalUNet, "forward", note)
    agent._plan_budget(None, reset=True)
    next(agent.train_prior())
    (x, tau, states), *_ = seen
    assert tau.shape == (32,)
    assert tau.min() >= 1e-3
    assert tau.max() <= 1
    rows = torch.cdist(states, agent.data.observations).argmin(1)
    latents = (agent._encode(rows) - policy.latent_mean) / policy.latent_std
    schedule = VPSchedule()
    signal, noise = schedule.signal(tau).float()[:, None, None], schedule.noise(tau).float()[:, None, None]
    epsilon = (x - signal * latents) / noise  # is noise, if x is these latents made noisy
    informative = tau > 0.05
    assert abs(float(epsilon[informative].std()) - 1) < 0.1
    shifted = (x - signal * latents.roll(1, 0)) / noise
    assert float(shifted[tau < 0.3].std()) > 1.2


@pytest.mark.parametrize("targets", ["mean", "sample"])
def test_prior_targets(dataset: OfflineDataset, targets: str) -> None:
    agent = make(dataset, latent_targets=targets).learn(12)
    agent._prepare_data(dataset)
    starts = agent.window_starts[:64]
    mean, log_variance = (x.detach() for x in agent.policy.vae.encode(agent.windows(starts)[0]))
    difference = (agent._encode(starts) - mean) / (log_variance / 2).exp()
    if targets == "mean":
        assert difference.abs().max() < 1e-4
    else:
        assert abs(float(difference.std()) - 1) < 0.1
        assert torch.equal(agent._encode(starts), agent._encode(starts))


def test_averages_forget_where_they_began(dataset: OfflineDataset) -> None:
    """Like an average over all steps at first, and with the settled rate in the end."""
    agent = prepared(dataset, average_rate=0.25)
    network, average = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    for parameter, value in zip((*network.parameters(), *average.parameters()), (1.0, 1.0, 0.0, 0.0), strict=True):
        torch.nn.init.constant_(parameter, value)
    left = 1.0
    for step in (0, 5, 100):
        agent._descend(optimizer, network(torch.zeros(1, 1)).sum(), network, average, step)
        left *= 1 - {0: 0.9, 5: 0.6, 100: 0.25}[step]
        assert float(average.weight) == pytest.approx(1 - left)


# ---------------------------------------------------------------- stage 3


def test_support_is_drawn_from_the_averaged_prior_without_guidance(dataset: OfflineDataset) -> None:
    agent = make(dataset).learn()
    agent._prepare_data(dataset)
    starts = agent.window_starts[:6]
    support, returns = agent._draw_support(starts, 3)
    assert support.shape == (6, 3, N * 3)
    assert returns.shape == (6, 3)
    with torch.no_grad():  # neither the energy nor the weights that are not averaged matter
        for network in (agent.policy.energy, agent.policy.energy_average, agent.policy.denoiser):
            for parameter in network.parameters():
                parameter += 1
    assert torch.equal(agent._draw_support(starts, 3)[0], support)
    with torch.no_grad():
        agent.policy.denoiser_average.outlet.bias += 1
    assert not torch.equal(agent._draw_support(starts, 3)[0], support)


def test_support_returns_are_those_of_the_decoded_latents(dataset: OfflineDataset) -> None:
    agent = make(dataset).learn()
    agent._prepare_data(dataset)
    policy, starts = agent.policy, agent.window_starts[:6]
    support, returns = agent._draw_support(starts, 3)
    for i, start in enumerate(starts):
        raw = support[i].float().view(3, N, 3) * policy.latent_std + policy.latent_mean
        states = agent.data.observations[start].expand(3, -1)
        decoded = policy.vae.decode(raw, states)
        torch.testing.assert_close(returns[i], policy.plan_returns(decoded), atol=0.02, rtol=0.02)  # stored in float16


def test_returns_are_standardised_over_the_prior(dataset: OfflineDataset) -> None:
    agent = make(dataset, scale_states=500, return_scale="all").learn()
    agent._prepare_data(dataset)
    starts = agent._some_starts(500, "return scale")
    _, returns = agent._draw_support(starts, 1)
    returns = agent.policy.standardised(returns, agent.data.observations[starts][:, None])
    assert abs(float(returns.mean())) < 1e-3
    assert float(returns.std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_returns_are_standardised_at_each_state(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Returns of mean 5 x and standard deviation exp(x) - but for the overall scale, which the second step undoes."""
    agent = prepared(dataset)
    states = agent.data.observations
    generator = torch.Generator().manual_seed(0)

    def draw(starts: Tensor, size: int) -> tuple[Tensor, Tensor]:
        x = states[starts, :1]
        return torch.empty(0), 40 + 5 * x + x.exp() * torch.randn(len(starts), size, generator=generator)

    monkeypatch.setattr(agent, "_draw_support", draw)
    agent._fit_return_scale()
    starts = agent._some_starts(2000, "elsewhere")
    x = states[starts, 0]
    chosen = starts[(x.abs() < 1.5)]
    returns = agent.policy.standardised(draw(chosen, 400)[1], states[chosen][:, None])
    assert float(returns.mean(1).abs().mean()) < 0.2
    assert float((returns.std(1) - 1).abs().mean()) < 0.2


@pytest.mark.parametrize("kind", ["independent", "softmax", "unnormalised"])
def test_contrasted_latents_share_state_and_time(
    dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Conditions (i) to (iv) of exact guidance, as the training loop meets them."""
    agent = make(dataset, weights=kind, inverse_temperature=2.0, return_scale="all").learn(20)
    agent._prepare_data(dataset)
    inputs, sets, noisy = [], [], []
    forward, contrast, add_noise = EnergyNet.forward, module.contrastive_loss, VPSchedule.add_noise
    monkeypatch.setattr(EnergyNet, "forward", lambda self, *a: (inputs.append(a), forward(self, *a))[1])
    monkeypatch.setattr(module, "contrastive_loss", lambda *a: (sets.append(a), contrast(*a))[1])
    monkeypatch.setattr(VPSchedule, "add_noise", lambda self, *a: (noisy.append(a), add_noise(self, *a))[1])
    agent._plan_budget(None, reset=True)
    next(agent.train_energy())
    ((z, states, tau),), ((f, omega),), ((z0, times, epsilon),) = inputs, sets, noisy
    n_sets = 2 if kind == "independent" else 1
    assert z.shape == (16, 4 * n_sets, N * 3)
    assert states.shape == (16, 1, 3)  # one state and one time for all that are contrasted
    assert tau.shape == (16, 1)
    assert f.shape == omega.shape == (16, n_sets, 4)
    assert len(torch.unique(tau)) == 16
    assert torch.equal(times, tau[:, 0])
    assert abs(float(epsilon.std()) - 1) < 0.1  # independent noise for each
    assert float(torch.corrcoef(epsilon.flatten(1)[:2])[0, 1]) < 0.5
    # the support is that of the model, at these states, and omega is worked out from its returns
    support, returns = agent._draw_support(agent._some_starts(64, "support states"), 4 * n_sets)
    rows = [int((support.float() == z0[i]).flatten(1).all(1).nonzero()[0]) for i in range(16)]
    starts = agent._some_starts(64, "support states")[rows]
    torch.testing.assert_close(states[:, 0], agent.data.observations[starts])
    energies = 2.0 * agent.policy.standardised(returns[rows], states).view(16, n_sets, 4).detach()
    expected = {
        "independent": lambda: energies.exp() / energies.flip(1).exp().mean(-1, keepdim=True),
        "softmax": lambda: energies.exp() / energies.exp().sum(-1, keepdim=True),
        "unnormalised": energies.exp,
    }[kind]()
    torch.testing.assert_close(omega, expected, rtol=1e-4, atol=1e-5)


def test_regression_for_mse_guidance(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(dataset, guidance="mse", inverse_temperature=2.0, support_size=64, return_scale="all").learn(20)
    agent._prepare_data(dataset)
    agent._plan_budget(None, reset=True)
    monkeypatch.setattr(EnergyNet, "forward", lambda self, z, states, tau: 3 + 0 * self.from_latent(z).sum(-1))
    loss = float(next(agent.train_energy())["loss"])
    starts = agent._some_starts(64, "support states")
    _, returns = agent._draw_support(starts, 128)
    returns = agent.policy.standardised(returns, agent.data.observations[starts][:, None])
    assert loss == pytest.approx(float(((2.0 * returns - 3) ** 2).mean()), rel=0.2)


@pytest.mark.parametrize(("guidance", "stages"), [("posterior-mean", 2), ("none", 2), ("mse", 3), ("exact", 3)])
def test_stages_of_each_guidance(dataset: OfflineDataset, guidance: str, stages: int) -> None:
    agent = make(dataset, guidance=guidance).learn()
    assert len(agent.stages()) == len(agent.stage_steps) == stages
    loaded = LatentDiffuser.load(io.BytesIO(saved(agent)))
    states = dataset.observations[:3].numpy()
    np.testing.assert_array_equal(
        loaded.predict(states, deterministic=True)[0], agent.predict(states, deterministic=True)[0]
    )


# ---------------------------------------------------------------- the return of a plan


@pytest.mark.parametrize(("kind", "steps"), [("sum", None), ("sum", 2), ("mean", 2), ("tap", None), ("tap", 3)])
def test_return_of_a_plan_by_hand(dataset: OfflineDataset, kind: str, steps: int | None) -> None:
    policy = make(dataset, plan_return=kind, return_steps=steps).policy
    policy.token_mean.copy_(torch.tensor([0, 0, 10.0, 100.0]))
    policy.token_std.copy_(torch.tensor([1, 1, 2.0, 3.0]))
    rewards, returns, logits = torch.randn(3, 1, T)
    decoded = Decoded(torch.zeros(1, T, 3), torch.zeros(1, T, 2), rewards, returns, logits)
    total, alive, h = 0.0, 1.0, steps or T
    for t in range(h):
        over = 1 / (1 + math.exp(-float(logits[0, t])))
        reward, return_to_go = 10 + 2 * float(rewards[0, t]), 100 + 3 * float(returns[0, t])
        alive *= 1 - over
        if kind == "tap":
            total += 0.9**t * alive * (reward if t < h - 1 else return_to_go)
        else:
            total += (1 - over) * return_to_go / (h if kind == "mean" else 1)
    assert float(policy.plan_returns(decoded)) == pytest.approx(total, rel=1e-4)


# ---------------------------------------------------------------- sampling


def naive_sample(agent: LatentDiffuser, states: Tensor, start: Tensor, guided: bool) -> Tensor:
    """The sampler without anything hoisted: embeddings at every step, the gradient by autograd."""
    policy, s, schedule = agent.policy, agent.settings, VPSchedule()
    x = previous = start
    for step in vp_solver_steps(schedule, s.solver_steps):
        tau = torch.full((len(x),), step.time)
        signal, noise = float(schedule.signal(tau[0])), float(schedule.noise(tau[0]))
        with torch.no_grad():
            epsilon = plain_unet(policy.denoiser_average, x, tau, states)
        if guided:
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                if s.guidance == "posterior-mean":
                    mean = (z - noise * plain_unet(policy.denoiser_average, z, tau, states)) / signal
                    raw = mean * policy.latent_std + policy.latent_mean
                    total = policy.plan_returns(policy.vae.decode(raw, states))
                    f = s.inverse_temperature * (total - policy.return_mean) / policy.return_std
                else:
                    f = policy.energy_average(z.flatten(1), states, tau)
                epsilon = epsilon - s.guidance_scale * noise * torch.autograd.grad(f.sum(), z)[0]
        x0 = (x - noise * epsilon) / signal
        x, previous = step.a * x + step.b * x0 + step.c * previous, x0
    return x.detach()


@pytest.mark.parametrize("guidance", ["exact", "posterior-mean"])
@pytest.mark.parametrize("guided", [True, False])
def test_sampler_is_the_naive_one(dataset: OfflineDataset, guidance: str, guided: bool) -> None:
    agent = make(dataset, guidance=guidance, guidance_scale=1.5, return_scale="all").learn()
    states, start = torch.randn(5, 3), torch.randn(5, N, 3)
    expected = naive_sample(agent, states, start, guided)
    for inference in (True, False):
        with torch.inference_mode(inference):
            found = agent.policy.draw_latents(states, start, guided)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    if not guided:
        assert (agent.policy.draw_latents(states, start) - expected).abs().max() > 1e-3


def test_no_scale_is_no_guidance(trained: Trained) -> None:
    policy = trained("LatentDiffuser").policy
    states, start = torch.randn(5, 3), torch.randn(5, N, 3)
    unguided = policy.draw_latents(states, start, guided=False)
    for off in ({"guidance_scale": 0.0}, {"guidance": "none"}):
        policy.settings = dataclasses.replace(policy.settings, **off)
        torch.testing.assert_close(policy.draw_latents(states, start), unguided)


def test_what_is_hoisted_follows_the_weights(trained: Trained) -> None:
    """It is kept from plan to plan, and must not outlive the weights it was worked out from."""
    policy = trained("LatentDiffuser").policy
    states, start = torch.randn(2, 3), torch.randn(2, N, 3)
    first = policy.draw_latents(states, start)
    kept = policy._fixed()
    assert policy._fixed() is kept
    for network in (policy.denoiser_average, policy.energy_average):
        before = policy.draw_latents(states, start)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter *= 1.5
        assert not torch.equal(policy.draw_latents(states, start), before)
    policy.load_state_dict(trained("LatentDiffuser").policy.state_dict())
    assert torch.equal(policy.draw_latents(states, start), first)
    policy.settings = dataclasses.replace(policy.settings, solver_steps=5)
    assert not torch.equal(policy.draw_latents(states, start), first)


def test_bf16_is_close_and_can_be_switched_off(trained: Trained) -> None:
    policy = trained("LatentDiffuser").policy
    states, start = torch.randn(64, 3), torch.randn(64, N, 3)
    exact = policy.draw_latents(states, start)
    policy.speed_up(precision="bf16")
    rough = policy.draw_latents(states, start)
    assert rough.dtype == torch.float32
    assert 1e-6 < float((rough - exact).square().mean().sqrt()) < 0.05 * float(exact.std())
    policy.speed_up()
    assert torch.equal(policy.draw_latents(states, start), exact)


def test_compiled_sampling_pads_the_batch(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of two, so that few programs are made; the program itself is torch's."""
    policy, sizes = trained("LatentDiffuser").policy, []

    def note(x: Tensor, *rest: Any) -> Any:
        sizes.append(len(x))
        return guided_sampler.evaluate(x, *rest)

    monkeypatch.setattr(guided_sampler, "compiled_evaluate", lambda: note)
    for n in (1, 2, 3, 5, 8):
        states, start = torch.randn(n, 3), torch.randn(n, N, 3)
        policy.speed_up()
        expected = policy.draw_latents(states, start)
        policy.speed_up(compile=True)
        torch.testing.assert_close(policy.draw_latents(states, start), expected, atol=1e-5, rtol=1e-4)
    assert sizes == [n for n in (1, 2, 4, 8, 8) for _ in range(4)]


# ---------------------------------------------------------------- acting


def test_plan_is_executed_for_exec_horizon_steps(trained: Trained) -> None:
    agent = trained("LatentDiffuser")
    assert isinstance(agent, LatentDiffuser)
    observations = agent.dataset.observations.numpy()[[0, 40, 80, 120, 160, 200, 240]]
    state: Any = None
    left, actions, plans = [], [], []
    for observation in observations:
        action, state = agent.predict(observation, state, np.array([False]), deterministic=True)
        actions.append(action)
        plans.append(state[0][0])
        left.append(int(state[1][0]))
    assert left == [2, 1, 0, 2, 1, 0, 2]
    for step in range(1, 7):
        assert np.array_equal(plans[step], plans[step - 1]) == (step % 3 != 0)
    # the plan of the first observation, one action after the other
    keys = observation_keys(torch.as_tensor(observations[:1]), agent.policy.noise_seed, 0)
    plan = agent.policy.plan(agent.policy.normalize(torch.as_tensor(observations[:1])), keys)
    np.testing.assert_allclose(np.stack(actions[:3]), agent.policy.unscale(plan)[0].detach(), atol=1e-5)
    assert np.abs(np.diff(np.stack(actions[:3]), axis=0)).max() > 1e-4


def test_episode_start_replans_that_row_alone(trained: Trained) -> None:
    agent = trained("LatentDiffuser")
    observations = agent.dataset.observations.numpy()[::40][:6]
    _, state = agent.predict(observations[:3], deterministic=True)
    before = [part.copy() for part in state]
    _, after = agent.predict(observations[3:], state, np.array([False, True, False]), deterministic=True)
    assert after[1].tolist() == [1, 2, 1]
    assert (after[0] != before[0]).any(1).tolist() == [False, True, False]
    for part, unchanged in zip(state, before, strict=True):
        np.testing.assert_array_equal(part, unchanged)
    alone = agent.predict(observations[4], deterministic=True)[1]
    np.testing.assert_allclose(after[0][1], alone[0][0], atol=1e-5)


def test_first_steps_of_a_plan_need_no_later_latents(trained: Trained) -> None:
    agent = trained("LatentDiffuser")
    policy, states = agent.policy, torch.randn(5, 3)
    keys = observation_keys(states, 0, 0)
    latents = policy.draw_latents(states, keyed_normal(keys, (N, 3)))
    actions = policy.decode(latents, states).actions * policy.token_std[:2] + policy.token_mean[:2]
    torch.testing.assert_close(policy.plan(states, keys), actions[:, :3], atol=1e-5, rtol=1e-4)


def test_stochastic_plans_are_fresh_and_deterministic_ones_repeat(trained: Trained) -> None:
    agent = trained("LatentDiffuser")
    batch = agent.dataset.observations.numpy()[:4]
    first, again = (agent.predict(batch)[0] for _ in range(2))
    assert (np.abs(first - again) > 1e-4).any(1).all()
    certain = agent.predict(batch, deterministic=True)[0]
    agent.predict(batch)
    np.testing.assert_array_equal(agent.predict(batch, deterministic=True)[0], certain)


def test_of_several_candidates_the_best_is_executed(dataset: OfflineDataset) -> None:
    agent = make(dataset, n_candidates=6).learn()
    policy, states = agent.policy, torch.randn(3, 3)
    keys = observation_keys(states, 0, 0)
    noise = keyed_normal(keys, (6, N, 3))
    expected = []
    for i in range(3):
        repeated = states[i].expand(6, -1)
        decoded = policy.decode(policy.draw_latents(repeated, noise[i]), repeated)
        best = int(policy.plan_returns(decoded).argmax())
        expected.append(decoded.actions[best, :3] * policy.token_std[:2] + policy.token_mean[:2])
    torch.testing.assert_close(policy.plan(states, keys), torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_proposed_plans_are_in_units_of_the_environment(trained: Trained) -> None:
    agent = trained("LatentDiffuser")
    policy, observations = agent.policy, agent.dataset.observations[:3]
    plans = policy.propose_plans(observations, 5)
    assert plans.states.shape == (3, 5, T, 3)
    assert plans.actions.shape == (3, 5, T, 2)
    assert plans.returns.shape == (3, 5)
    assert agent.action_space.contains(plans.actions[0, 0, 0].numpy())
    # the third number of an observation is 100 plus the first
    assert 95 < float(plans.states[..., 2].mean()) < 105
    assert not torch.equal(policy.propose_plans(observations, 5, guided=False).states, plans.states)
    # an agent with one candidate executes the first of them
    action = agent.predict(observations[:1].numpy(), deterministic=True)[0]
    for n in (1, 5):
        found = policy.propose_plans(observations[:1], n)
        np.testing.assert_allclose(action[0], found.actions[0, 0, 0], atol=1e-5)


# ---------------------------------------------------------------- another energy on the same prior


def test_with_energy_keeps_vae_and_prior(dataset: OfflineDataset) -> None:
    agent = make(dataset).learn()
    before = weights(agent)
    colder = agent.with_energy(inverse_temperature=10.0)
    assert not differing(before, weights(agent))
    assert colder.settings.inverse_temperature == 10.0
    assert agent.settings.inverse_temperature == 1.0
    colder.learn(reset_num_timesteps=False)
    assert colder.stage_steps == agent.stage_steps
    changed = {name.split(".")[0] for name in differing(before, weights(colder))}
    assert changed == {"energy", "energy_average"}
    repeated = agent.with_energy(inverse_temperature=10.0).learn(reset_num_timesteps=False)
    assert not differing(weights(colder), weights(repeated))
    assert LatentDiffuser.load(io.BytesIO(saved(colder))).settings.inverse_temperature == 10.0


def test_with_energy_standardises_another_return_anew(dataset: OfflineDataset) -> None:
    agent = make(dataset).learn()
    other = agent.with_energy(plan_return="mean", guidance="posterior-mean")
    torch.testing.assert_close(other.policy.return_mean * T, agent.policy.return_mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.policy.return_std * T, agent.policy.return_std, rtol=1e-3, atol=1e-4)
    assert list(other.stage_budget) == ["vae", "prior"]


def test_with_energy_refuses_what_it_cannot_keep(dataset: OfflineDataset) -> None:
    agent = make(dataset).learn()
    with pytest.raises(TypeError, match="VAE and prior depend on horizon, latent_dim"):
        agent.with_energy(latent_dim=4, horizon=16, guidance="mse")
    with pytest.raises(ValueError, match="call learn first"):
        make(dataset).with_energy()
    with pytest.raises(ValueError, match="call learn first"):
        make(dataset).learn(callback=StopAt(15)).with_energy()
    with pytest.raises(ValueError, match="call learn first"):
        LatentDiffuser.load(io.BytesIO(saved(agent))).with_energy()


# ---------------------------------------------------------------- raw actions


def test_raw_actions_take_the_place_of_latents(dataset: OfflineDataset) -> None:
    agent = make(dataset, latent_space=False).learn()
    policy = agent.policy
    assert policy.latent_shape == (N, L * 2)
    states = torch.randn(3, 3)
    keys = observation_keys(states, 0, 0)
    latents = policy.draw_latents(states, keyed_normal(keys, policy.latent_shape)) * policy.latent_std
    actions = (latents + policy.latent_mean).reshape(3, T, 2) * policy.token_std[:2] + policy.token_mean[:2]
    torch.testing.assert_close(policy.plan(states, keys), actions[:, :3], atol=1e-5, rtol=1e-4)
    resumed = LatentDiffuser.load(
        io.BytesIO(saved(make(dataset, latent_space=False).learn(callback=StopAt(9)))), dataset=dataset
    ).learn(reset_num_timesteps=False)
    assert not differing(weights(agent), weights(resumed))


# ---------------------------------------------------------------- returns of the step alone


def test_bootstrapped_returns_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards up to the window's last step, then Q there; after a terminal, and after a timeout, nothing is added."""
    agent = prepared(counting([(20, False), (12, True)]), standardize=False)
    monkeypatch.setattr(QFunction, "forward", lambda self, states, actions: torch.full(states.shape[:-1], 1000.0))
    starts = torch.tensor([3, 15, 20, 25])
    tokens, inside = agent.windows(starts)
    returns, known = agent._window_targets(starts, tokens, inside)
    assert torch.equal(known, inside)
    # rows are rewards; the window of 8 rows ends at row 10, at the timeout in row 19, at row 27, at the terminal
    for i, (start, last, q) in enumerate([(3, 10, True), (15, 19, True), (20, 27, True), (25, 31, False)]):
        for t in range(start, last + 1):
            rewards = sum(0.9 ** (row - t) * row for row in range(t, last))
            expected = rewards + 0.9 ** (last - t) * (1000 if q else 31)
            assert float(returns[i, t - start]) == pytest.approx(expected, rel=1e-5)


def test_q_learns_from_the_steps_of_the_data(dataset: OfflineDataset) -> None:
    """With "step" no latent reaches the returns, and R is Q of the decoded states and actions."""
    vae = make(dataset).policy.vae
    latents, states = torch.randn(5, N, 3), torch.randn(5, 3)
    decoded = vae.decode(latents, states)
    torch.testing.assert_close(decoded.returns, vae.q_function(decoded.states, decoded.actions))
    tokens, inside = torch.randn(5, T, 3 + 2 + 3), torch.ones(5, T, dtype=torch.bool)
    targets = torch.randn(5, T)
    losses = [vae.losses(tokens, inside, torch.randn(5, N, 3), targets)["return"] for _ in range(2)]
    expected = F.mse_loss(vae.q_function(tokens[..., :3], tokens[..., 3:5]), targets)
    for loss in losses:
        torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(losses[0], list(vae.parameters()), allow_unused=True)
    reached = {name for (name, _), g in zip(vae.named_parameters(), gradients, strict=True) if g is not None}
    assert reached == {name for name, _ in vae.named_parameters() if name.startswith("q_function")}


def test_bootstrapping_needs_q(dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match="return_inputs"):
        make(dataset, return_inputs="trunk")


EXPECTILE: dict[str, Any] = {"return_targets": "expectile", "value_steps": 10, "value_learning_rate": 1e-2}


def test_expectile_targets_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards up to the window's last step, then V of its state; the last step itself is told of by terminals alone."""
    agent = prepared(counting([(20, False), (12, True)]), standardize=False, **EXPECTILE)
    monkeypatch.setattr(StateValue, "forward", lambda self, states: torch.full(states.shape[:-1], 1000.0))
    starts = torch.tensor([3, 15, 25])
    targets, known = agent._window_targets(starts, *agent.windows(starts))
    assert known.sum(1).tolist() == [7, 4, 7]
    for i, (start, last, end) in enumerate([(3, 10, 1000.0), (15, 19, 1000.0), (25, 31, 31.0)]):
        for t in range(start, last + (end == 31)):
            expected = sum(0.9 ** (row - t) * row for row in range(t, last)) + 0.9 ** (last - t) * end
            assert known[i, t - start]
            assert float(targets[i, t - start]) == pytest.approx(expected, rel=1e-5)


def test_values_learn_in_a_stage_of_their_own(dataset: OfflineDataset) -> None:
    """Q is untouched by the VAE's stage; the values' stage moves Q and V alone; a stopped one goes on bit by bit."""
    agent = make(dataset, **EXPECTILE)
    assert [stage.name for stage in agent.stages()] == ["vae", "values", "prior", "energy"]
    fresh = weights(agent)
    after_vae = weights(agent.learn(callback=StopAt(12)))
    assert not [name for name in differing(fresh, after_vae) if "q_function" in name or name.startswith("value")]
    resumed = LatentDiffuser.load(io.BytesIO(saved(agent)), dataset=dataset)
    resumed.learn(callback=StopAt(22), reset_num_timesteps=False)
    moved = {name.removeprefix("vae.").split(".")[0] for name in differing(after_vae, weights(resumed))}
    assert moved == {"q_function", "value", "value_average"}
    resumed.learn(reset_num_timesteps=False)
    whole = make(dataset, **EXPECTILE).learn()
    assert not differing(weights(whole), weights(resumed))
    again = whole.with_energy(inverse_temperature=2.0)
    assert again.stage_steps["values"] == 10
    assert torch.equal(again.policy.value.net[0].weight, whole.policy.value.net[0].weight)


def test_upper_expectile_follows_the_better_branch() -> None:
    """From one state, half of the episodes earn 0 and half 1: the mean is .5, the .9 expectile .9."""
    n = 200
    observations = np.tile(np.array([[0.0], [1.0]], np.float32), (n, 1))
    rewards = np.zeros(2 * n, np.float32)
    rewards[1::4] = 1.0
    ends = np.tile([False, True], n)
    actions = np.random.default_rng(0).uniform(-1, 1, (2 * n, 1)).astype(np.float32)
    data = OfflineDataset(observations, actions, rewards, ends, np.zeros(2 * n, bool))
    settings = {"normalize_observations": False, "standardize": False, "discount": 1.0, "value_steps": 400}
    for expectile in (0.5, 0.9):
        agent = prepared(data, **{**EXPECTILE, **settings, "expectile": expectile})
        assert len(list(agent.train_values())) == 400
        assert float(agent.policy.value(torch.zeros(1)).detach()) == pytest.approx(expectile, abs=0.06)


# ---------------------------------------------------------------- actions decoded from the state they are taken in


def test_actions_of_a_plan_follow_the_state(dataset: OfflineDataset) -> None:
    """Between two plans the same plan answers other observations with other actions, those of the action module."""
    agent = make(dataset, action_decoder="state", n_candidates=2).learn()
    policy, observations = agent.policy, dataset.observations[[0, 40, 80]]
    _, state = agent.predict(observations.numpy(), deterministic=True)
    found, after = agent.predict(observations.flip(0).numpy(), state, np.zeros(3, bool), deterministic=True)
    np.testing.assert_array_equal(after[0], state[0])
    features = torch.as_tensor(state[0]).view(3, 3, 16)[:, 1]
    actions = policy.vae.actions(features, policy.normalize(observations.flip(0))).detach()
    expected = policy.unscale(actions * policy.token_std[:2] + policy.token_mean[:2])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other, _ = agent.predict(observations.numpy(), state, np.zeros(3, bool), deterministic=True)
    assert np.abs(other - found)[[0, 2]].max() > 1e-5
    # the module learns from the states of the data
    tokens, inside = torch.randn(5, T, 3 + 2 + 3), torch.ones(5, T, dtype=torch.bool)
    seen: list[Tensor] = []
    policy.vae.modules_of["actions"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    policy.vae.losses(tokens, inside, torch.randn(5, N, 3))
    assert torch.equal(seen[0][..., -3:], tokens[..., :3])


def test_switches_that_do_not_fit(dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match="return_inputs"):
        make(dataset, return_targets="expectile", return_inputs="trunk")
    with pytest.raises(ValueError, match="latent_space"):
        make(dataset, action_decoder="state", latent_space=False)


def test_energy_by_the_exponential_loss(dataset: OfflineDataset) -> None:
    agent = make(dataset, energy_loss="exponential", weight_limit=16.0).learn()
    other = agent.with_energy(energy_loss="contrastive").learn(reset_num_timesteps=False)
    assert {name.split(".")[0] for name in differing(weights(agent), weights(other))} == {"energy", "energy_average"}


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("horizon", 10),
        ("steps_per_latent", 3),
        ("heads", 3),
        ("denoiser_width", 12),
        ("denoiser_multipliers", ()),
        ("exec_horizon", 9),
        ("return_steps", 9),
        ("guidance", "exakt"),
        ("weights", "none"),
        ("plan_return", "max"),
        ("solver", "euler"),
        ("inverse_temperature", -1.0),
        ("dropout", 1.5),
        ("latent_space", "no"),
        ("support_states", 0),
        ("terminal_reward", float("nan")),
    ],
)
def test_settings_out_of_range(dataset: OfflineDataset, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        make(dataset, **{setting: value})


def test_families_and_presets_fit() -> None:
    for preset in PRESETS.values():
        for changes in FAMILY.values():
            dataclasses.replace(preset, **changes)
    assert set(ENERGY_SETTINGS) < {field.name for field in dataclasses.fields(PAPER)}
    assert set(TINY_LATENT_DIFFUSER) - {"preset"} < {field.name for field in dataclasses.fields(PAPER)}


# ---------------------------------------------------------------- a task that only guided plans solve

TWO_WAYS: dict[str, Any] = {
    **TINY_LATENT_DIFFUSER,
    "width": 32,
    "denoiser_width": 16,
    "energy_hidden": 128,
    "return_scale": "all",
    "weight_limit": 16.0,
    "vae_batch_size": 64,
    "vae_steps": 500,
    "vae_learning_rate": 3e-3,
    "prior_batch_size": 128,
    "prior_steps": 800,
    "prior_learning_rate": 3e-3,
    "support_states": 2048,
    "scale_states": 512,
    "support_size": 16,
    "energy_batch_size": 64,
    "energy_steps": 800,
    "energy_learning_rate": 5e-3,
    "inverse_temperature": 4.0,
    "solver_steps": 15,
    "discount": 0.9,
}


@pytest.mark.slow
def test_guided_plans_go_the_way_that_pays() -> None:
    """`TwoWays` of test_learning.py: the data go left in 70 % of the episodes, and only the right end pays."""
    agent = LatentDiffuser("MlpPolicy", walks(), seed=0, **TWO_WAYS).learn()
    policy = agent.policy
    # plans at the start: mostly to the left without guidance, to the right with it
    middle = torch.zeros(1, 1)
    to_the_right = {
        guided: float((policy.propose_plans(middle, 256, guided).states[0, :, -1, 0] > 0).float().mean())
        for guided in (True, False)
    }
    assert 0.15 < to_the_right[False] < 0.45
    assert to_the_right[True] > 0.75
    returns = np.mean(evaluate(agent, TwoWays, 40, seed=1, n_envs=40).returns)
    assert returns > 0.75
    policy.settings = dataclasses.replace(policy.settings, guidance="none")
    assert np.mean(evaluate(agent, TwoWays, 40, seed=1, n_envs=40).returns) < 0.6
