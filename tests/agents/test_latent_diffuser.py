"""LatentDiffuser: its windows, the losses of its stages, and the return of a plan."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from latent_diffuser_data import N, T, counting, make, prepared
from torch import Tensor

from conftest import StopAt, differing, saved, weights
from ld_agents import LatentDiffuser, OfflineDataset
from ld_agents import latent_diffuser as module
from ld_agents.data.returns import returns_to_go
from ld_agents.diffusion.guidance import EnergyNet
from ld_agents.diffusion.sampling import VPSchedule
from ld_agents.networks.denoisers import TemporalUNet
from ld_agents.networks.trajectory_transformer import Decoded

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
    every = torch.arange(dataset.n_steps)
    tokens = agent.tokens(every)
    assert tokens.shape == (dataset.n_steps, 3 + 2 + 2)
    torch.testing.assert_close(tokens.mean(0), torch.zeros(7), atol=1e-3, rtol=0)
    torch.testing.assert_close(tokens.std(0, correction=0), torch.ones(7), atol=1e-3, rtol=0)
    back = tokens[:, 3:] * agent.policy.token_std + agent.policy.token_mean
    torch.testing.assert_close(back[:, 2], dataset.rewards, atol=1e-4, rtol=1e-4)
    returns = returns_to_go(dataset.rewards, dataset.episode_ends, 0.9)
    torch.testing.assert_close(back[:, 3], returns, atol=1e-3, rtol=1e-4)
    plain = prepared(dataset, standardize=False, normalize_observations=False)
    torch.testing.assert_close(plain.tokens(every)[:, :3], dataset.observations)
    torch.testing.assert_close(plain.payments[:, 0], dataset.rewards)


def test_episodes_of_one_step_are_refused() -> None:
    with pytest.raises(ValueError, match="No episode has two steps"):
        make(counting([(1, True)] * 30)).learn(1)


def test_data_are_dropped_after_learning(dataset: OfflineDataset) -> None:
    agent = make(dataset).learn(3)
    assert not {"data", "tokens", "window_starts", "row_ends"} & set(vars(agent))


# ---------------------------------------------------------------- stages 1 and 2


def test_loss_of_the_vae_is_the_weighted_sum(dataset: OfflineDataset) -> None:
    factors = {"state_weight": 2.0, "action_weight": 3.0, "reward_weight": 5.0, "return_weight": 7.0, "kl_weight": 11.0}
    trunk = {"return_inputs": "trunk", "return_targets": "data"}
    losses = next(prepared(dataset, **trunk, **factors).train_vae())
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
    rows = torch.cdist(states, agent.states(torch.arange(agent.data.n_steps))).argmin(1)
    latents = (agent._encode(rows) - policy.latent_mean) / policy.latent_std
    schedule = VPSchedule()
    signal, noise = schedule.signal(tau).float()[:, None, None], schedule.noise(tau).float()[:, None, None]
    epsilon = (x - signal * latents) / noise  # is noise, if x is these latents made noisy
    informative = tau > 0.05
    assert abs(float(epsilon[informative].std()) - 1) < 0.1
    shifted = (x - signal * latents.roll(1, 0)) / noise
    assert float(shifted[tau < 0.3].std()) > 1.2


def test_prior_targets(dataset: OfflineDataset) -> None:
    agent = make(dataset).learn(12)
    agent._prepare_data(dataset)
    starts = agent.window_starts[:64]
    mean, log_variance = (x.detach() for x in agent.policy.vae.encode(agent.windows(starts)[0]))
    assert ((agent._encode(starts) - mean) / (log_variance / 2).exp()).abs().max() < 1e-4


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
        states = agent.states(start).expand(3, -1)
        decoded = policy.vae.decode(raw, states)
        torch.testing.assert_close(returns[i], policy.plan_returns(decoded), atol=0.02, rtol=0.02)  # stored in float16


def test_returns_are_standardised_over_the_prior(dataset: OfflineDataset) -> None:
    agent = make(dataset, scale_states=500, return_scale="all").learn()
    agent._prepare_data(dataset)
    starts = agent._some_starts(500, "return scale")
    _, returns = agent._draw_support(starts, 1)
    returns = agent.policy.standardized(returns, agent.states(starts)[:, None])
    assert abs(float(returns.mean())) < 1e-3
    assert float(returns.std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_returns_are_standardised_at_each_state(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Returns of mean 5 x and standard deviation exp(x) - but for the overall scale, which the second step undoes."""
    agent = prepared(dataset)
    states = agent.states(torch.arange(agent.data.n_steps))
    generator = torch.Generator().manual_seed(0)

    def draw(starts: Tensor, size: int) -> tuple[Tensor, Tensor]:
        x = states[starts, :1]
        return torch.empty(0), 40 + 5 * x + x.exp() * torch.randn(len(starts), size, generator=generator)

    monkeypatch.setattr(agent, "_draw_support", draw)
    agent._fit_return_scale()
    starts = agent._some_starts(2000, "elsewhere")
    x = states[starts, 0]
    chosen = starts[(x.abs() < 1.5)]
    returns = agent.policy.standardized(draw(chosen, 400)[1], states[chosen][:, None])
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
    torch.testing.assert_close(states[:, 0], agent.states(starts))
    energies = 2.0 * agent.policy.standardized(returns[rows], states).view(16, n_sets, 4).detach()
    expected = {
        "independent": lambda: energies.exp() / energies.flip(1).exp().mean(-1, keepdim=True),
        "softmax": lambda: energies.exp() / energies.exp().sum(-1, keepdim=True),
        "unnormalised": energies.exp,
    }[kind]()
    torch.testing.assert_close(omega, expected, rtol=1e-4, atol=1e-5)


def test_regression_for_mse_guidance(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    mse: dict[str, Any] = {"guidance": "mse", "inverse_temperature": 2.0, "support_size": 64, "energy_batch_size": 2000}
    agent = make(dataset, **mse, return_scale="all").learn(20)
    agent._prepare_data(dataset)
    agent._plan_budget(None, reset=True)
    monkeypatch.setattr(EnergyNet, "forward", lambda self, z, states, tau: 3 + 0 * self.from_latent(z).sum(-1))
    loss = float(next(agent.train_energy())["loss"])
    starts = agent._some_starts(64, "support states")
    _, returns = agent._draw_support(starts, 128)
    returns = agent.policy.standardized(returns, agent.states(starts)[:, None])
    assert loss == pytest.approx(float(((2.0 * returns - 3) ** 2).mean()), rel=0.1)


@pytest.mark.parametrize(("guidance", "stages"), [("posterior-mean", 3), ("none", 3), ("mse", 4), ("exact", 4)])
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
