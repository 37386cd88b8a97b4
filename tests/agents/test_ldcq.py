"""LDCQ: what a window is worth, the Bellman target, one step of Q-learning; the numbers are computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ldcq_by_hand import BY_HAND, STARTS, Table, prepared, trained_up_to_q
from torch import Tensor, nn

import ld_agents.ldcq
from conftest import StopAt, differing, make_agent, weights
from ld_agents import LDCQ, OfflineDataset
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.common.prioritized_sampler import PrioritizedSampler
from ld_agents.data.returns import returns_to_go

Trained = Callable[[str], OfflineAlgorithm]


# ---------------------------------------------------------------- what a window is worth


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
            {"reward_scale": 1e-30, "reward_stops_bootstrap": True},  # the rule looks at the reward before its scale
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
    states, actions = agent._windows(starts[-2:])
    assert states[..., 0].tolist() == [[8, 9, 10], [9, 10, 12]]
    assert actions[..., 0].tolist() == [pytest.approx([0.6, 0.8, 1]), pytest.approx([0.8, 1, 0])]
    assert agent.data.window_steps(starts, 3).tolist() == [3] * 7 + [2]


def test_actions_past_a_terminal_have_no_likelihood(by_hand: OfflineDataset) -> None:
    agent = prepared(by_hand, windows_past_terminals=True)
    starts = torch.tensor([8, 9])
    states, actions = agent._windows(starts)
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
    np.testing.assert_allclose(returns_to_go(data.rewards, data.episode_ends, 0.9), to_go * scale, rtol=1e-5)
    agent = trained_up_to_q(data, reward_scale=None)
    agent.learn(reset_num_timesteps=False)
    assert float(agent.policy.reward_scale) == pytest.approx(1 / (to_go.std(ddof=1) * scale), rel=1e-5)
    agent._prepare_data(data)
    returns, _ = agent._window_returns(torch.tensor([2]))
    assert returns.item() == pytest.approx(1.5 / to_go.std(ddof=1), rel=1e-5)


@pytest.mark.parametrize("scale", [2.0**-12, 2.0**12])
def test_the_size_of_the_rewards_does_not_matter(dataset: OfflineDataset, scale: float) -> None:
    """A power of two changes no mantissa, so the critics come out the same bit for bit."""
    timeouts = torch.zeros(dataset.n_steps, dtype=torch.bool)
    timeouts[dataset.episode_ends - 1] = True
    scaled = OfflineDataset(
        dataset.observations,
        dataset.actions,
        dataset.rewards * scale,
        dataset.terminals,
        timeouts & ~dataset.terminals,
        action_space=dataset.action_space,
        final_observations=dataset.observation_rows[dataset.n_steps :],
    )
    one, other = (make_agent("LDCQ", data).learn() for data in (dataset, scaled))
    assert float(other.policy.reward_scale * scale) == float(one.policy.reward_scale)
    assert differing(weights(one), weights(other)) == ["reward_scale"]
    fixed = [make_agent("LDCQ", data, reward_scale=1.0).learn() for data in (dataset, scaled)]
    assert len(differing(*map(weights, fixed))) > 20


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
    clip = ld_agents.ldcq.clip_norm
    size = len(list(agent.policy.critics[0].parameters()))
    norms: list[tuple[float, float]] = []

    def recorded(gradients: tuple[Tensor, ...], largest: float) -> None:
        assert len(gradients) == size
        norms.append((norm(gradients), 0.0))
        clip(gradients, largest)
        norms[-1] = norms[-1][0], norm(gradients)

    def norm(gradients: tuple[Tensor, ...]) -> float:
        return float(sum((gradient**2).sum() for gradient in gradients)) ** 0.5

    monkeypatch.setattr(ld_agents.ldcq, "clip_norm", recorded)
    agent.learn(reset_num_timesteps=False)
    assert len(norms) == 6
    assert min(before for before, _ in norms) > 10
    assert all(after == pytest.approx(1, abs=1e-3) for _, after in norms)


def test_more_critics(by_hand: OfflineDataset) -> None:
    """Three critics: each target is taken where the next critic is highest, and is the lowest of the three there."""
    agent = prepared(by_hand, n_critics=3)
    agent.policy.target_critics = nn.ModuleList(
        [Table([[1, 5, 3]]), Table([[4, 2, 3.5]]), Table([[0, 2, 6]])]  # highest at candidates 1, 0, 2
    )
    targets = agent.q_targets(torch.tensor([10.0]), torch.tensor([0.5]), torch.zeros(1, 1), torch.zeros(1, 3, 3))
    assert targets.tolist() == [[10.0], [11.5], [11.0]]
    assert len(trained_up_to_q(by_hand, n_critics=3).policy.critics) == 3
