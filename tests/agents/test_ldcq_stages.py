"""LDCQ: candidates, latents, losses and learning rates of each stage, and which pieces meet in a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ldcq_by_hand import BY_HAND, STARTS, prepared, trained_up_to_q
from torch import Tensor

from conftest import TINY_LDCQ, StopAt, make_agent, weights
from ld_agents import LDCQ, OfflineDataset
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.diffusion.sampling import Diffuser

Trained = Callable[[str], OfflineAlgorithm]


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
    torch.testing.assert_close(agent.states(torch.arange(dataset.n_steps)), states)
    assert not torch.equal(dataset.observations, states)  # the dataset itself is left alone
    raw = make_agent("LDCQ", dataset, normalize_observations=False)
    assert torch.equal(raw.policy.normalize(dataset.observations), dataset.observations)


def test_actions_are_scaled_to_the_unit_box(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset)
    agent._prepare_data(dataset)
    expected = (dataset.actions - torch.tensor([1.0, -1.0])) / torch.tensor([1.0, 2.0])  # BOX is [0, 2] x [-3, 1]
    scaled = agent.actions(torch.arange(dataset.n_steps))
    torch.testing.assert_close(scaled, expected)
    assert float(scaled.abs().max()) <= 1 + 1e-6


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
    """Standardized posterior means by the first row of their window."""
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
