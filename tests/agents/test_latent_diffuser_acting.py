"""LatentDiffuser: sampling against a naive loop, acting, other energies on the same prior, raw actions."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from latent_diffuser_data import L, N, T, make, plain_unet
from torch import Tensor

from conftest import StopAt, differing, saved, weights
from ld_agents import LatentDiffuser, OfflineDataset
from ld_agents.common.keyed_noise import keyed_normal, observation_keys
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.diffusion.sampling import VPSchedule, vp_solver_steps

Trained = Callable[[str], OfflineAlgorithm]


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


def test_compiled_plans_are_one_graph(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a break. Batches are padded to powers of two, so that few programs are made."""
    agent, sizes = trained("LatentDiffuser"), []
    compiled = torch.compile

    def eager(plan: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
        traced = compiled(plan, backend="eager", **options)
        return lambda states, noise: sizes.append((len(states), *noise.shape)) or traced(states, noise)

    monkeypatch.setattr(torch, "compile", eager)
    observations = agent.dataset.observations.numpy()[::40]
    plain = [agent.predict(observations[:n], deterministic=True)[0] for n in (1, 2, 3, 5, 8)]
    agent.speed_up("compile")
    for n, expected in zip((1, 2, 3, 5, 8), plain, strict=True):
        np.testing.assert_allclose(agent.predict(observations[:n], deterministic=True)[0], expected, atol=1e-5)
    assert sizes == [(n, n, 1, N, 3) for n in (1, 2, 4, 8, 8)]


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


def test_an_energy_on_the_prior_of_another_agent_is_that_of_a_training_of_its_own(dataset: OfflineDataset) -> None:
    whole, unguided = make(dataset).learn(), make(dataset, guidance="none").learn()
    loaded = LatentDiffuser.load(io.BytesIO(saved(unguided)), dataset=dataset)
    shared = loaded.with_energy(guidance="exact").learn(reset_num_timesteps=False)
    assert not differing(weights(whole), weights(shared))


def test_with_energy_counts_the_steps_that_were_taken(dataset: OfflineDataset) -> None:
    agent = make(dataset)
    agent.learn(agent.full_budget // 2)
    agent.stage_in_bfloat16 = {"vae": True, "energy": False}
    other = agent.with_energy()
    assert other.stage_in_bfloat16 == {"vae": True}
    assert other.stage_steps == agent.stage_steps | {"energy": 0}
    assert other.num_timesteps == sum(other.stage_steps.values())
    other.learn(reset_num_timesteps=False)
    assert other.stage_steps["energy"] == other.settings.energy_steps


def test_regression_learns_from_as_many_latents_as_the_exact_loss(dataset: OfflineDataset) -> None:
    for loss, sets in (("exponential", 1), ("contrastive", 2)):
        for guidance in ("exact", "mse"):
            agent = make(dataset, guidance=guidance, energy_loss=loss, weights="independent")
            assert agent._support_sets() == sets


def test_with_energy_standardizes_another_return_anew(dataset: OfflineDataset) -> None:
    agent = make(dataset).learn()
    other = agent.with_energy(plan_return="mean", guidance="posterior-mean")
    torch.testing.assert_close(other.policy.return_mean * T, agent.policy.return_mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.policy.return_std * T, agent.policy.return_std, rtol=1e-3, atol=1e-4)
    assert list(other.stage_budget) == ["vae", "values", "prior"]


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
