"""LDCQ's steps against values worked out by hand, and the switches between the paper and the released code."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import ld_agents.ldcq
from conftest import TINY_LDCQ, StopAt, make_agent, weights
from ld_agents import LDCQ, OfflineDataset
from ld_agents.common.keyed_noise import keyed_normal, observation_keys
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.common.prioritized_sampler import PrioritizedSampler
from ld_agents.diffusion.sampling import Diffuser
from ld_agents.ldcq_settings import FAST, PAPER, RELEASED_CODE

Trained = Callable[[str], OfflineAlgorithm]


@pytest.fixture(scope="module")
def by_hand() -> OfflineDataset:
    """Observation = row number. Six steps that time out, then five that end in a terminal. Rows 11 and 12 are final."""
    rewards = [0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 1]
    ends = np.arange(11)
    return OfflineDataset(
        np.arange(11.0)[:, None],
        np.linspace(-1, 1, 11)[:, None],
        rewards,
        ends == 10,
        ends == 5,
        final_observations=[[11.0], [12.0]],
    )


BY_HAND = {
    **TINY_LDCQ,
    "horizon": 3,
    "normalize_observations": False,
    "windows_past_terminals": False,
    "discount": 0.9,
    "reward_discount": 0.5,
    "reward_scale": 1.0,
}


def prepared(dataset: OfflineDataset, **settings: Any) -> LDCQ:
    agent = LDCQ("MlpPolicy", dataset, seed=0, **{**BY_HAND, **settings})
    agent._plan_budget(None, True)
    agent._prepare_data(dataset)
    return agent


# ---------------------------------------------------------------- what a window is worth

STARTS = [0, 1, 2, 3, 6, 7, 8]  # of windows that stay within an episode


@pytest.mark.parametrize(
    ("settings", "returns", "bootstraps"),
    [
        ({}, [0.25, 0.5, 1.5, 1, 0, 0, 0.25], [0.729] * 6 + [0]),
        ({"reward_discount": 1.0}, [1, 1, 3, 2, 0, 0, 1], [0.729] * 6 + [0]),
        ({"bootstrap_exponent": 1}, [0.25, 0.5, 1.5, 1, 0, 0, 0.25], [0.9] * 6 + [0]),
        ({"bootstrap_exponent": 10}, [0.25, 0.5, 1.5, 1, 0, 0, 0.25], [0.9**10] * 6 + [0]),
        ({"reward_stops_bootstrap": True}, [0.25, 0.5, 1.5, 1, 0, 0, 0.25], [0, 0, 0, 0, 0.729, 0.729, 0]),
        ({"success_fills_window": True}, [1.75, 1.75, 1.75, 1.75, 0, 0, 1.75], [0.729] * 6 + [0]),
        ({"reward_scale": 0.1}, [0.025, 0.05, 0.15, 0.1, 0, 0, 0.025], [0.729] * 6 + [0]),
        (
            {"reward_scale": 0.0, "reward_stops_bootstrap": True},  # the rule looks at the reward before its scale
            [0] * 7,
            [0, 0, 0, 0, 0.729, 0.729, 0],
        ),
    ],
)
def test_returns_and_bootstraps(
    by_hand: OfflineDataset, settings: dict[str, Any], returns: list[float], bootstraps: list[float]
) -> None:
    agent = prepared(by_hand, **settings)
    starts = agent._q_windows()
    assert starts.tolist() == STARTS
    found = agent._window_returns(starts)
    assert found[0].tolist() == pytest.approx(returns)
    assert found[1].tolist() == pytest.approx(bootstraps)


@pytest.mark.parametrize(
    ("next_state", "rows"), [("s_{t+H}", [3, 4, 5, 11, 9, 10, 12]), ("s_{t+H-1}", [2, 3, 4, 5, 8, 9, 10])]
)
def test_next_states(by_hand: OfflineDataset, next_state: str, rows: list[int]) -> None:
    agent = prepared(by_hand, next_state=next_state)
    found = agent.data.observation_rows[agent._next_rows(agent._q_windows())]
    assert found[:, 0].tolist() == rows


def test_windows_past_a_terminal(by_hand: OfflineDataset) -> None:
    """Rows 9 and 10 are the episode's last; its terminal pays 1 and leads to observation 12."""
    agent = prepared(by_hand, windows_past_terminals=True)
    starts = agent._q_windows()
    assert starts.tolist() == [*STARTS, 9]
    returns, bootstraps = agent._window_returns(starts)
    assert returns.tolist() == pytest.approx([0.25, 0.5, 1.5, 1, 0, 0, 0.25, 0.5])
    assert bootstraps.tolist() == pytest.approx([0.729] * 6 + [0, 0])
    assert agent.data.observation_rows[agent._next_rows(starts)][:, 0].tolist() == [3, 4, 5, 11, 9, 10, 12, 12]
    states, actions = agent.data.windows(starts[-2:], 3)
    assert states[..., 0].tolist() == [[8, 9, 10], [9, 10, 12]]
    assert actions[..., 0].tolist() == [pytest.approx([0.6, 0.8, 1]), pytest.approx([0.8, 1, 0])]
    assert agent.data.window_steps(starts, 3).tolist() == [3] * 7 + [2]


def test_actions_past_a_terminal_have_no_likelihood(by_hand: OfflineDataset) -> None:
    agent = prepared(by_hand, windows_past_terminals=True)
    starts = torch.tensor([8, 9])
    states, actions = agent.data.windows(starts, 3)
    recorded = agent.data.window_steps(starts, 3)
    final_states, epsilon = torch.zeros(2, 1), torch.zeros(2, 3)
    vae = agent.policy.vae

    def action_loss(steps: Tensor | None, past: float = 0.0) -> float:
        # what stands past the terminal reaches the encoder, but not the likelihood: latents are held fixed here
        encoded = vae.encode(states, actions)
        vae.encode.forward = lambda *_: encoded  # type: ignore[method-assign]
        changed = actions.clone()
        changed[1, 2] = past
        loss = vae.losses(states, changed, final_states, epsilon, steps, recorded)["action"]
        del vae.encode.forward
        return float(loss)

    assert action_loss(None) == action_loss(None, past=1.0)
    # all five recorded steps, each once: the estimate is the sum itself
    each = [action_loss(torch.tensor([[i], [j]])) for i in range(3) for j in range(2)]
    assert np.mean(each) == pytest.approx(action_loss(None), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rewards_are_divided_by_the_spread_of_the_returns(by_hand: OfflineDataset, scale: float) -> None:
    """Discount 0.9; returns-to-go of the six steps that time out, and of the five that end in a terminal."""
    data = OfflineDataset(
        by_hand.observations,
        by_hand.actions,
        by_hand.rewards * scale,
        by_hand.terminals,
        np.arange(11) == 5,
        final_observations=[[11.0], [12.0]],
    )
    to_go = np.array([0.81 + 2 * 0.9**4, 0.9 + 2 * 0.9**3, 1 + 2 * 0.81, 1.8, 2, 0, *(0.9**k for k in (4, 3, 2, 1, 0))])
    np.testing.assert_allclose(data.returns_to_go(0.9), to_go * scale, rtol=1e-5)
    agent = trained_up_to_q(data, reward_scale=None)
    agent.learn(reset_num_timesteps=False)
    assert float(agent.policy.reward_scale) == pytest.approx(1 / (to_go.std(ddof=1) * scale), rel=1e-5)
    agent._prepare_data(data)
    returns, _ = agent._window_returns(torch.tensor([2]))
    assert returns.item() == pytest.approx(1.5 / to_go.std(ddof=1), rel=1e-5)


def test_subset_of_the_windows(by_hand: OfflineDataset) -> None:
    subset = prepared(by_hand, q_windows=4)._q_windows().tolist()
    assert len(set(subset)) == 4
    assert subset == sorted(subset)
    assert set(subset) < set(STARTS)
    assert prepared(by_hand, q_windows=4)._q_windows().tolist() == subset
    subsets = {tuple(prepared_with_seed(by_hand, seed)._q_windows().tolist()) for seed in range(8)}
    assert len(subsets) > 3
    assert prepared(by_hand, q_windows=100)._q_windows().tolist() == STARTS


def prepared_with_seed(dataset: OfflineDataset, seed: int) -> LDCQ:
    agent = LDCQ("MlpPolicy", dataset, seed=seed, **{**BY_HAND, "q_windows": 4})
    agent._prepare_data(dataset)
    return agent


# ---------------------------------------------------------------- the Bellman target


class Table(nn.Module):
    """A critic whose values are given, shifted by the first number of the state."""

    def __init__(self, values: list[list[float]]) -> None:
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, states: Tensor, latents: Tensor) -> Tensor:
        assert states.shape[:2] == (len(self.values), 1)
        return self.values + states[..., 0] + 0 * latents.sum(-1)


def test_each_target_takes_the_latent_that_the_other_critic_likes(by_hand: OfflineDataset) -> None:
    agent = prepared(by_hand)
    agent.policy.target_critics = nn.ModuleList(
        [Table([[1, 5, 3], [0, 0, 1], [9, 9, 9]]), Table([[4, 2, 3.5], [2, 1, 0], [9, 9, 9]])]
    )
    targets = agent.q_targets(
        returns=torch.tensor([10.0, 20.0, 30.0]),
        bootstraps=torch.tensor([0.5, 1.0, 0.0]),
        next_states=torch.tensor([[0.0], [100.0], [0.0]]),
        candidates=torch.zeros(3, 3, 3),
    )
    # row 0: Q'_2 is largest at 0, where the minimum is 1; Q'_1 at 1, where it is 2. Row 1: 0 at latent 0; 0 at 2
    assert targets.tolist() == [[10.5, 120.0, 30.0], [11.0, 120.0, 30.0]]


def test_targets_of_the_online_critics_are_not_used(by_hand: OfflineDataset) -> None:
    agent = prepared(by_hand)
    arguments = (torch.zeros(4), torch.ones(4), torch.randn(4, 1), torch.randn(4, 6, 3))
    before = agent.q_targets(*arguments)
    assert not before.requires_grad
    nn.init.constant_(agent.policy.critics[0].head[-1].bias, 100.0)
    assert torch.equal(agent.q_targets(*arguments), before)
    nn.init.constant_(agent.policy.target_critics[0].head[-1].bias, -100.0)
    assert not torch.equal(agent.q_targets(*arguments), before)


def test_td_errors_and_loss_by_hand(by_hand: OfflineDataset) -> None:
    states, latents = torch.randn(3, 1), torch.randn(3, 3)
    targets = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    agent = prepared(by_hand)
    errors = agent.td_errors(states, latents, targets)
    for i in range(2):
        torch.testing.assert_close(errors[i], agent.policy.critics[i](states, latents) - targets[i])
    errors, weight = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1.0, 0.5])
    # per critic: mean of w e^2 = (1 + 2) / 2 and 9 / 2
    assert float(agent.q_loss(errors, weight)) == 6.0
    # the released code's slip: mean(e^2) mean(w) = 2.5 * 0.75 and 4.5 * 0.75
    assert float(prepared(by_hand, importance_weights="averaged").q_loss(errors, weight)) == 5.25


def test_critics_and_their_targets_start_equal_and_different_from_each_other(dataset: OfflineDataset) -> None:
    policy = make_agent("LDCQ", dataset).policy
    for online, target in zip(policy.critics.parameters(), policy.target_critics.parameters(), strict=True):
        assert torch.equal(online, target)
        assert online.requires_grad
        assert not target.requires_grad
    one, two = (torch.cat([p.flatten() for p in critic.parameters()]) for critic in policy.critics)
    assert not torch.equal(one, two)


# ---------------------------------------------------------------- one step of Q-learning


def trained_up_to_q(dataset: OfflineDataset, **settings: Any) -> LDCQ:
    agent = LDCQ("MlpPolicy", dataset, seed=0, **{**BY_HAND, **settings})
    agent.learn(callback=StopAt(agent.settings.vae_steps + agent.settings.prior_steps))
    return agent


def test_targets_move_by_the_target_rate(by_hand: OfflineDataset) -> None:
    agent = trained_up_to_q(by_hand, target_rate=0.25)
    before = weights(agent)
    agent.learn(callback=StopAt(agent.num_timesteps + 1), reset_num_timesteps=False)
    after = weights(agent)
    moved = 0
    for name in (name for name in before if name.startswith("critics.")):
        target = f"target_{name}"
        torch.testing.assert_close(after[target], 0.75 * before[target] + 0.25 * after[name])
        moved += int(not torch.equal(before[name], after[name]))
    assert moved > 20


def test_sampling_weights_and_priorities(by_hand: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """N = 7 windows and 4 per batch: an epoch, in which the exponent grows by 0.01, is one step."""
    draws: list[tuple[Tensor, Tensor]] = []
    tables: list[Tensor] = []

    class Recording(PrioritizedSampler):
        def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            tables.append(self.weights.clone())
            draws.append(super().draw(n, generator))
            return draws[-1]

    monkeypatch.setattr(ld_agents.ldcq, "PrioritizedSampler", Recording)
    agent = trained_up_to_q(by_hand, q_batch_size=4, q_steps=12, priority_alpha=0.7)
    errors: list[Tensor] = []
    given: list[Tensor] = []
    td_errors, q_loss = agent.td_errors, agent.q_loss
    monkeypatch.setattr(agent, "td_errors", lambda *a: errors.append(td_errors(*a)) or errors[-1])
    monkeypatch.setattr(agent, "q_loss", lambda e, w: given.append(w) or q_loss(e, w))
    agent.learn(reset_num_timesteps=False)
    assert len(errors) == len(given) == len(draws) == 12

    priorities = torch.full((7,), torch.inf)  # never drawn
    for step, ((indices, _), table, weight, error) in enumerate(zip(draws, tables, given, errors, strict=True)):
        drawn = priorities.isfinite()
        standing = torch.where(drawn, priorities, priorities[drawn].max() if drawn.any() else 1.0)
        torch.testing.assert_close(table, standing**0.7)
        probability = standing**0.7 / (standing**0.7).sum()
        expected = (7 * probability[indices]) ** -(0.3 + 0.01 * step)
        torch.testing.assert_close(weight, expected / expected.max())
        priorities[indices] = (error.detach() ** 2).mean(0) + 5e-6
    torch.testing.assert_close(agent._resumable["q.priorities"], priorities)
    assert priorities.isfinite().sum() > 4
    assert len({round(float(w.min()), 4) for w in given}) > 3


def test_gradients_of_each_critic_are_clipped(by_hand: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = trained_up_to_q(by_hand, q_steps=3, reward_scale=1e5)
    clip = nn.utils.clip_grad_norm_
    norms: list[tuple[float, float]] = []

    def recorded(parameters: Any, max_norm: float, **kwargs: Any) -> Tensor:
        parameters = list(parameters)
        before = clip(parameters, max_norm, **kwargs)
        norms.append((float(before), float(sum((p.grad**2).sum() for p in parameters)) ** 0.5))
        return before

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", recorded)
    agent.learn(reset_num_timesteps=False)
    assert len(norms) == 6
    assert min(before for before, _ in norms) > 10
    assert all(after == pytest.approx(1, abs=1e-3) for _, after in norms)


# ---------------------------------------------------------------- candidates


def test_candidates_are_drawn_once_and_depend_on_the_seed_alone(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset).learn(20)
    assert isinstance(agent, LDCQ)
    states = agent.policy.normalize(dataset.observations[:50])
    candidates = agent.draw_candidates(states)
    assert candidates.shape == (50, 6, 3)
    assert candidates.dtype == torch.float16
    torch.rand(10, generator=agent.generator)
    assert torch.equal(agent.draw_candidates(states), candidates)
    assert not torch.equal(candidates[0], candidates[1])
    spread = candidates.float().std(1)
    assert (spread > 0).all()


def test_large_sets_of_candidates_come_in_pieces(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset, candidates_stored=5000, candidates_per_target=10)
    assert isinstance(agent, LDCQ)
    assert agent.draw_candidates(torch.zeros(3, 3)).isfinite().all()


def test_a_random_part_of_the_candidates_is_shared_by_the_batch(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset, candidates_stored=6, candidates_per_target=4)
    assert isinstance(agent, LDCQ)
    stored = torch.arange(6.0)[None, :, None].expand(5, 6, 3).half()
    parts = [agent._some(stored) for _ in range(20)]
    chosen = [tuple(part[0, :, 0].tolist()) for part in parts]
    for part, numbers in zip(parts, chosen, strict=True):
        assert part.shape == (5, 4, 3)
        assert part.dtype == torch.float32
        assert len(set(numbers)) == 4
        assert (part == part[:1]).all()
    assert len(set(chosen)) > 10
    every = make_agent("LDCQ", dataset)
    assert isinstance(every, LDCQ)
    assert torch.equal(every._some(stored), stored.float())


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_gaussian_candidates_are_those_of_the_vae_prior(dataset: OfflineDataset, scale: float) -> None:
    policy = make_agent("LDCQ-gaussian", dataset, noise_scale=scale).learn(20).policy
    states = policy.normalize(dataset.observations[:4])
    noise = torch.randn(4, 5, 3)
    with torch.no_grad():
        latents = policy.draw_latents(states, lambda k: noise)
        prior = policy.vae.prior(states)
    raw = latents * policy.latent_std + policy.latent_mean
    torch.testing.assert_close(raw, prior.mean[:, None] + scale * prior.std[:, None] * noise, rtol=1e-4, atol=1e-5)
    assert not hasattr(policy, "denoiser")


@pytest.mark.parametrize("name", ["LDCQ", "LDCQ-gaussian"])
def test_width_of_the_noise(name: str, dataset: OfflineDataset) -> None:
    spreads = []
    for scale in (0.0, 0.5, 1.0, 2.0):
        agent = make_agent(name, dataset, noise_scale=scale, candidates_acting=200)
        spreads.append(float(agent.policy.propose(dataset.observations[:3])[0].std(1).mean()))
    assert spreads[0] < 1e-6
    assert spreads[0] < spreads[1] < spreads[2] < spreads[3]


# ---------------------------------------------------------------- latents


def test_latents_are_standardized(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset).learn()
    assert isinstance(agent, LDCQ)
    agent._prepare_data(dataset)
    starts = agent._window_starts()
    raw = agent._encode(starts)
    latents = agent._standardized(raw)
    torch.testing.assert_close(latents.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(agent.policy._raw(latents), raw, atol=1e-5, rtol=1e-4)
    plain = make_agent("LDCQ", dataset, standardize_latents=False).learn()
    assert plain.policy.latent_mean.tolist() == [0.0] * 3
    assert plain.policy.latent_std.tolist() == [1.0] * 3


def test_one_window_is_enough_to_learn_from() -> None:
    data = OfflineDataset(np.ones((3, 2)), np.zeros((3, 1)), np.ones(3), [0, 0, 1], np.zeros(3))
    agent = LDCQ("MlpPolicy", data, seed=0, **{**TINY_LDCQ, "horizon": 3})
    try:
        agent.learn()
    except ValueError:
        return  # a clear refusal would do as well
    assert all(value.isfinite().all() for value in weights(agent).values())


def test_observations_are_normalised_on_request(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset)
    states = agent.policy.normalize(dataset.observations)
    torch.testing.assert_close(states.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(states.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    agent._prepare_data(dataset)
    torch.testing.assert_close(agent.data.observations, states)
    assert not torch.equal(dataset.observations, states)  # the data set itself is left alone
    raw = make_agent("LDCQ", dataset, normalize_observations=False)
    assert torch.equal(raw.policy.normalize(dataset.observations), dataset.observations)


def test_actions_are_scaled_to_the_unit_box(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset)
    agent._prepare_data(dataset)
    expected = (dataset.actions - torch.tensor([1.0, -1.0])) / torch.tensor([1.0, 2.0])  # BOX is [0, 2] x [-3, 1]
    torch.testing.assert_close(agent.data.actions, expected)
    assert float(agent.data.actions.abs().max()) <= 1 + 1e-6


# ---------------------------------------------------------------- losses and learning rates


def first_losses(agent: LDCQ, stage: str) -> dict[str, float]:
    seen: list[dict[str, float]] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["stage"].name == stage and not seen:
            seen.append({name: float(value) for name, value in local["losses"].items()})
        return True

    agent.learn(callback=note)
    return seen[0]


@pytest.mark.parametrize("kl_weight", [0.05, 0.5])
def test_loss_of_the_vae_is_its_weighted_terms(dataset: OfflineDataset, kl_weight: float) -> None:
    agent = make_agent("LDCQ", dataset, kl_weight=kl_weight)
    assert isinstance(agent, LDCQ)
    losses = first_losses(agent, "vae")
    assert set(losses) == {"loss", "action", "kl", "final_state"}
    total = losses["action"] + kl_weight * losses["kl"] + losses["final_state"]
    assert losses["loss"] == pytest.approx(total, rel=1e-5)


def test_decoded_steps_are_drawn_from_the_whole_window(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset)
    assert isinstance(agent, LDCQ)
    steps = agent._decoded_steps(torch.full((500,), 5))
    assert steps is not None
    assert steps.shape == (500, 2)
    assert (steps.flatten().bincount(minlength=5) > 120).all()
    steps = agent._decoded_steps(torch.tensor([2, 3] * 500))
    assert steps is not None
    assert [counts.tolist() for counts in (steps[::2].unique(), steps[1::2].unique())] == [[0, 1], [0, 1, 2]]
    for every in (None, 5, 9):
        agent = make_agent("LDCQ", dataset, decoded_steps=every)
        assert isinstance(agent, LDCQ)
        assert agent._decoded_steps(torch.full((500,), 5)) is None


def test_learning_rates(by_hand: OfflineDataset) -> None:
    agent = prepared(by_hand, vae_steps=100, prior_steps=100, q_steps=100, learning_rates="cosine")
    for stage in ("vae", "prior", "q"):
        factors = [agent._decay(stage, step) for step in (0, 25, 50, 99, 100)]
        assert factors == pytest.approx([1, 0.8535534, 0.5, 0.000247, 0], abs=1e-4)
    agent = prepared(by_hand, learning_rates="released")
    assert [agent._decay("vae", step) for step in (0, 10**6)] == [1, 1]
    # a cycle of 150 epochs of 7,600 steps, from twice the rate to none
    for epoch, factor in ((0, 2), (75, 0), (150, 2), (37.5, 1 + math.cos(math.pi * 37 / 75)), (225, 0)):
        assert agent._decay("prior", int(epoch * 7600)) == pytest.approx(factor, abs=1e-9)
    # a third every 50 epochs of the replay buffer
    assert [agent._decay("q", step, 10) for step in (0, 499, 500, 1000)] == pytest.approx([1, 1, 0.3, 0.09])


@pytest.mark.parametrize("stage", ["vae", "prior", "q"])
def test_learning_rate_reaches_the_optimiser(dataset: OfflineDataset, stage: str) -> None:
    agent = make_agent("LDCQ", dataset, **{f"{stage}_learning_rate": 0.0125})
    rates: list[float] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["stage"].name == stage:
            rates.append(agent._optimizers[stage].param_groups[0]["lr"])
        return True

    agent.learn(callback=note)
    steps = {"vae": 12, "prior": 8, "q": 20}[stage]
    expected = [0.0125 * 0.5 * (1 + math.cos(math.pi * k / steps)) for k in range(steps)]
    assert rates == pytest.approx(expected)


def table_of_latents(agent: LDCQ, dataset: OfflineDataset) -> dict[float, Tensor]:
    """Standardised posterior means by the first row of their window."""
    agent._prepare_data(dataset)
    starts = agent.data.window_starts(agent.settings.horizon)
    latents = agent._standardized(agent._encode(starts))
    return dict(zip(starts.tolist(), latents, strict=True))


def test_prior_learns_posterior_means_at_their_own_states(
    by_hand: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = LDCQ("MlpPolicy", by_hand, seed=0, **BY_HAND)
    agent.learn(callback=StopAt(agent.settings.vae_steps))
    table = table_of_latents(agent, by_hand)
    states: list[Tensor] = []
    losses: list[tuple[Tensor, Tensor, float]] = []
    agent.policy.denoiser.register_forward_pre_hook(lambda _, given: states.append(given[2]))
    min_snr_loss = Diffuser.min_snr_loss

    def recorded(self: Diffuser, x0: Tensor, prediction: Tensor, j: Tensor, gamma: float) -> Tensor:
        losses.append((x0, j, gamma))
        return min_snr_loss(self, x0, prediction, j, gamma)

    monkeypatch.setattr(Diffuser, "min_snr_loss", recorded)
    agent.learn(callback=StopAt(agent.num_timesteps + 8), reset_num_timesteps=False)
    assert len(states) == len(losses) == 8
    for given, (x0, j, gamma) in zip(states, losses, strict=True):
        assert gamma == 5
        assert 1 <= int(j.min()) <= int(j.max()) <= 30
        expected = torch.stack([table[row] for row in given[:, 0].tolist()])
        torch.testing.assert_close(x0, expected)
    assert {float(row) for given in states for row in given[:, 0]} == set(STARTS)


def test_q_learning_puts_together_what_belongs_together(
    by_hand: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = trained_up_to_q(by_hand)
    table = table_of_latents(agent, by_hand)
    next_rows = dict(zip(STARTS, [3, 4, 5, 11, 9, 10, 12], strict=True))
    returns = dict(zip(STARTS, [0.25, 0.5, 1.5, 1, 0, 0, 0.25], strict=True))
    candidates = agent.draw_candidates(torch.tensor([[float(next_rows[row])] for row in STARTS])).float()
    drawn = dict(zip(next_rows.values(), candidates, strict=True))
    calls: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []
    q_targets, td_errors = agent.q_targets, agent.td_errors
    given: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(agent, "q_targets", lambda *a: given.append(a) or q_targets(*a))
    monkeypatch.setattr(agent, "td_errors", lambda *a: calls.append((given[-1], a)) or td_errors(*a))
    agent.learn(reset_num_timesteps=False)
    assert len(calls) == 20
    for (reward, bootstrap, next_states, latents_there), (states, latents, targets) in calls:
        rows = states[:, 0].tolist()
        assert set(rows) <= set(STARTS)
        assert next_states[:, 0].tolist() == [next_rows[row] for row in rows]
        assert reward.tolist() == pytest.approx([returns[row] for row in rows])
        assert bootstrap.tolist() == pytest.approx([0.0 if row == 8 else 0.729 for row in rows])
        torch.testing.assert_close(latents, torch.stack([table[row] for row in rows]))
        torch.testing.assert_close(latents_there, torch.stack([drawn[row] for row in next_states[:, 0].tolist()]))
        assert targets.shape == (2, len(rows))


# ---------------------------------------------------------------- acting


@pytest.mark.parametrize("name", ["LDCQ", "LDCQ-gaussian"])
def test_acting_decodes_the_candidate_with_the_highest_score(
    trained: Trained, dataset: OfflineDataset, name: str
) -> None:
    agent = trained(name)
    observations = dataset.observations[::40]
    n = len(observations)
    latents, scores = agent.policy.propose(observations)
    assert latents.shape == (n, 8, 3)
    assert scores.shape == (n, 8)
    states = agent.policy.normalize(observations)
    with torch.no_grad():
        both = torch.stack([critic(states[:, None], latents) for critic in agent.policy.critics])
    torch.testing.assert_close(scores, both.amin(0))
    best = latents[torch.arange(n), scores.argmax(1)]
    actions, state = agent.predict(observations.numpy(), deterministic=True)
    assert state is not None
    np.testing.assert_allclose(state[0], best.numpy(), atol=1e-5)
    decoded = agent.policy.decode_action(observations, best)
    np.testing.assert_allclose(actions, decoded.numpy(), atol=1e-5)
    assert len(set(scores.argmax(1).tolist())) > 1
    assert agent.policy.propose(observations, n=3)[0].shape == (n, 3, 3)
    far = agent.policy.decode_action(observations * 1e4, best).numpy()
    assert (far >= dataset.action_space.low).all()
    assert (far <= dataset.action_space.high).all()
    # candidates that are held are decoded at the present state
    later = dataset.observations[5 : 5 + n]
    actions, state = agent.predict(later.numpy(), state, deterministic=True)
    np.testing.assert_allclose(actions, agent.policy.decode_action(later, best).numpy(), atol=1e-5)


def test_sampled_actions_have_the_spread_of_the_decoder(trained: Trained, dataset: OfflineDataset) -> None:
    agent = trained("LDCQ")
    observation = dataset.observations[:1]
    _, state = agent.predict(observation.numpy(), deterministic=True)
    assert state is not None
    latent, left, *_ = state
    actions = np.zeros((400, 2))
    for i in range(400):  # the same latent, ever more noise
        (actions[i],), state = agent.predict(observation.numpy(), (latent, left, *state[2:]))
        assert state is not None
    with torch.no_grad():
        raw = agent.policy._raw(torch.as_tensor(latent))
        gaussian = agent.policy.vae.action(agent.policy.normalize(observation), raw, None)
    exact = torch.distributions.Normal(*gaussian).sample((20_000,))[:, 0].clamp(-1, 1)
    unit = (actions - [1, -1]) / [1, 2]
    np.testing.assert_allclose(unit.mean(0), exact.mean(0), atol=0.12)
    np.testing.assert_allclose(unit.std(0), exact.std(0), atol=0.12)


def test_redraw_at_the_predicted_state(dataset: OfflineDataset) -> None:
    """The released maze2d evaluation: the second draw is made where the first one's best latent is said to lead."""
    agent = make_agent("LDCQ", dataset, redraw_at_predicted_state=True).learn()
    policy = agent.policy
    observations = dataset.observations[:6]
    latents, scores = policy.propose(observations)
    best = latents[torch.arange(6), scores.argmax(1)]
    with torch.inference_mode():
        states = policy.normalize(observations)
        keys = observation_keys(observations, policy.noise_seed, 0)
        predicted = policy.vae.predict_final_state(states, policy._raw(best)).mean
        again = policy.draw_latents(predicted, lambda k: keyed_normal(keys, (8, 3), (1 << 16) + k))
        expected = again[torch.arange(6), policy.score(predicted[:, None], again).argmax(1)]
    _, state = agent.predict(observations.numpy(), deterministic=True)
    assert state is not None
    np.testing.assert_allclose(state[0], expected.numpy(), atol=1e-5)
    assert np.abs(state[0] - best.numpy()).max() > 1e-2


# ---------------------------------------------------------------- presets and the released code


def test_paper_preset_follows_the_paper_where_it_speaks() -> None:
    assert (PAPER.next_state, PAPER.bootstrap_exponent, PAPER.importance_weights) == ("s_{t+H}", None, "per-sample")
    assert (PAPER.kl_weight, PAPER.latent_dim, PAPER.discount, PAPER.reward_discount) == (0.05, 16, 0.995, 0.995)
    assert (PAPER.encoder, PAPER.decoder, PAPER.vae_hidden) == ("gru", "autoregressive", 256)
    assert (PAPER.target_rate, PAPER.prior, PAPER.schedule) == (0.005, "diffusion", "rescaled")
    for name in ("reward_stops_bootstrap", "success_fills_window", "redraw_at_predicted_state"):
        assert not getattr(PAPER, name)
    for name in ("next_state", "bootstrap_exponent", "importance_weights", "schedule", "prior", "reward_scale"):
        assert getattr(FAST, name) == getattr(PAPER, name)


@pytest.mark.parametrize("family", ["maze2d", "antmaze", "kitchen", "locomotion"])
def test_released_code_is_a_set_of_settings(family: str) -> None:
    code = dataclasses.replace(PAPER, **RELEASED_CODE[family])
    assert (code.next_state, code.importance_weights, code.schedule) == ("s_{t+H-1}", "averaged", "released")
    assert (code.diffusion_steps, code.solver, code.candidates_stored, code.candidates_per_target) == (
        100, "ddpm", 1000, 100,
    )  # fmt: skip
    assert code.bootstrap_exponent == (10 if family == "locomotion" else 1)
    assert code.reward_stops_bootstrap == (family in ("maze2d", "antmaze"))
    assert code.success_fills_window == (family == "antmaze")
    assert code.redraw_at_predicted_state == (family == "maze2d")
    assert code.reward_scale == (0.1 if family == "locomotion" else 1.0)
    assert not code.windows_past_terminals
    assert code.sample_actions
    assert code.extra_steps == (4 if family == "kitchen" else 5)
    assert code.q_learning_rate == 1e-3
    assert code.priority_alpha == 0.6


@pytest.mark.parametrize("family", ["maze2d", "antmaze"])
def test_released_code_runs(dataset: OfflineDataset, family: str) -> None:
    small = {name: TINY_LDCQ[name] for name in TINY_LDCQ if name.endswith(("hidden", "batch_size", "widths", "_steps"))}
    del small["diffusion_steps"], small["solver_steps"], small["decoded_steps"]
    settings = {**RELEASED_CODE[family], **small, "horizon": 10, "q_windows": 6}
    agent = LDCQ("MlpPolicy", dataset, preset="paper", seed=0, **settings)
    assert agent.settings.encoder == "gru"
    assert agent.settings.decoder == "autoregressive"
    before = weights(agent)
    agent.learn()
    assert agent.num_timesteps == agent.full_budget == 40
    assert all(value.isfinite().all() for value in weights(agent).values())
    assert not torch.equal(before["critics.0.join.weight"], weights(agent)["critics.0.join.weight"])
    action, state = agent.predict(dataset.observations[0].numpy(), deterministic=True)
    assert dataset.action_space.contains(action)
    assert state is not None
    assert state[1].tolist() == [9]


def test_all_solvers_and_networks_learn_and_act(dataset: OfflineDataset) -> None:
    for settings in (
        {"solver": "ddim"},
        {"solver": "ddpm", "extra_steps": 2},
        {"encoder": "gru", "decoder": "autoregressive", "decoded_steps": None},
        {"candidates_per_target": 3, "denoiser_widths": (16, 12, 8)},
    ):
        agent = make_agent("LDCQ", dataset, **settings).learn(10)
        action = agent.predict(dataset.observations[0].numpy(), deterministic=True)[0]
        assert dataset.action_space.contains(action)


def test_one_action_dimension_and_one_step_windows() -> None:
    rng = np.random.default_rng(0)
    data = OfflineDataset(
        rng.normal(size=(60, 1)),
        rng.uniform(-1, 1, (60, 1)),
        rng.normal(size=60),
        np.zeros(60),
        np.arange(60) % 10 == 9,
        action_space=spaces.Box(-1, 1, (1,)),
    )
    agent = LDCQ("MlpPolicy", data, seed=0, **{**TINY_LDCQ, "horizon": 1, "exec_horizon": 1, "latent_dim": 1}).learn()
    assert agent.predict(np.zeros(1))[0].shape == (1,)


def test_sampled_actions_repeat_with_the_observation(trained: Trained, dataset: OfflineDataset) -> None:
    agent = trained("LDCQ")
    assert isinstance(agent, LDCQ)
    observations = dataset.observations[::40].numpy()
    means, state = agent.predict(observations, deterministic=True)
    agent.settings = agent.policy.settings = dataclasses.replace(agent.settings, sample_actions=True)
    samples, sampled_state = agent.predict(observations, deterministic=True)
    assert np.abs(samples - means).max() > 1e-3
    np.testing.assert_array_equal(agent.predict(observations, deterministic=True)[0], samples)
    np.testing.assert_allclose(agent.predict(observations[3:4], deterministic=True)[0], samples[3:4], atol=1e-6)
    assert state is not None
    assert sampled_state is not None
    np.testing.assert_array_equal(state[0], sampled_state[0])  # the same latents
    later, _ = agent.predict(observations, sampled_state, np.zeros(len(observations), bool), deterministic=True)
    assert np.abs(later - samples).min(1).max() > 1e-6  # fresh noise at the next step


def test_more_critics(by_hand: OfflineDataset) -> None:
    """Three critics: each target is taken where the next critic is highest, and is the lowest of the three there."""
    agent = prepared(by_hand, n_critics=3)
    agent.policy.target_critics = nn.ModuleList(
        [Table([[1, 5, 3]]), Table([[4, 2, 3.5]]), Table([[0, 2, 6]])]  # highest at candidates 1, 0, 2
    )
    targets = agent.q_targets(torch.tensor([10.0]), torch.tensor([0.5]), torch.zeros(1, 1), torch.zeros(1, 3, 3))
    assert targets.tolist() == [[10.0], [11.5], [11.0]]
    assert len(trained_up_to_q(by_hand, n_critics=3).policy.critics) == 3


def test_averaged_critics_act(trained: Trained, dataset: OfflineDataset) -> None:
    agent = trained("LDCQ")
    assert isinstance(agent, LDCQ)
    states, latents = agent.policy.normalize(dataset.observations[:7]), torch.randn(7, 3)
    online = agent.policy.score(states, latents)
    agent.policy.settings = dataclasses.replace(agent.settings, acting_critics="averaged")
    averaged = agent.policy.score(states, latents)
    assert not torch.equal(online, averaged)
    expected = torch.minimum(*(critic(states, latents) for critic in agent.policy.target_critics))
    torch.testing.assert_close(averaged, expected)
