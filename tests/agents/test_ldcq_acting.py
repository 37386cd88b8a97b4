"""LDCQ: how it acts, and the switches between the paper and the released code."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from agent_blobs import with_description
from gymnasium import spaces
from torch import Tensor

from conftest import TINY_LDCQ, make_agent, saved, weights
from ld_agents import LDCQ, OfflineDataset
from ld_agents.common.keyed_noise import keyed_normal, observation_keys
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.diffusion.sampling import linear_schedule, solver_steps
from ld_agents.ldcq_settings import FAMILY, FAST, PAPER, RELEASED_CODE

Trained = Callable[[str], OfflineAlgorithm]


# ---------------------------------------------------------------- acting


def test_joint_critics_see_latents_as_the_vae_has_them(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset, critic="joint", critic_hidden=12, standardize_latents=True).learn()
    policy = agent.policy
    assert float((policy.latent_std - 1).abs().max()) > 0.05
    latents, scores = policy.propose(dataset.observations[:7])
    states = policy.normalize(dataset.observations[:7])[:, None]
    raw = latents * policy.latent_std + policy.latent_mean
    with torch.no_grad():
        wanted = torch.stack([critic(states, raw) for critic in policy.critics])
        targets = agent.q_targets(torch.zeros(7), torch.ones(7), states[:, 0], latents)
        next_values = torch.stack([critic(states, raw) for critic in policy.target_critics])
    torch.testing.assert_close(scores, wanted.amin(0) / policy.reward_scale)
    # the first critic's target is the least value of the second critic's choice
    best = next_values[1].argmax(1, keepdim=True)
    torch.testing.assert_close(targets[0], next_values.amin(0).gather(1, best)[:, 0])
    errors = agent.td_errors(states[:, 0], latents[:, 0], torch.zeros(2, 7)).detach()
    torch.testing.assert_close(errors, wanted[:, :, 0])
    copy = LDCQ.load(io.BytesIO(saved(agent)), device="cpu")
    assert torch.equal(copy.policy.propose(dataset.observations[:7])[1], scores)


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
    torch.testing.assert_close(scores, both.amin(0) / agent.policy.reward_scale)
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


@pytest.mark.parametrize("name", ["LDCQ", "LDCQ-gaussian"])
def test_compiled_plans_are_those_of_plain_torch(
    trained: Trained, dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One graph without a break. Batches of 1, 3 and 5 environments are padded to 1, 4 and 8."""
    agent, observations, sizes = trained(name), dataset.observations[::40].numpy(), []
    compiled = torch.compile

    def eager(plan: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
        assert options == {"fullgraph": True, "dynamic": False}
        traced = compiled(plan, backend="eager", **options)
        return lambda states, start: sizes.append((len(states), *start.shape)) or traced(states, start)

    monkeypatch.setattr(torch, "compile", eager)
    plain = [agent.predict(observations[:n], deterministic=True) for n in (1, 3, 5)]
    agent.speed_up("compile")
    try:
        for n, expected in zip((1, 3, 5), plain, strict=True):
            found = agent.predict(observations[:n], deterministic=True)
            np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
            np.testing.assert_allclose(found[1][0], expected[1][0], atol=1e-5)
        assert sizes == [(1, 1, 8, 3), (4, 4, 8, 3), (8, 8, 8, 3)]
    finally:
        agent.speed_up(None)
    assert agent.policy.fast is None


def test_many_agents_are_compiled_in_one_process(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten sizes: more than the eight programs that torch makes of one code object."""
    compiled, observations = torch.compile, dataset.observations[:2].numpy()
    monkeypatch.setattr(torch, "compile", lambda plan, **options: compiled(plan, backend="eager", **options))
    for n in range(4, 14):
        agent = make_agent("LDCQ", dataset, prior="gaussian", candidates_acting=n)
        expected = agent.predict(observations, deterministic=True)[0]
        agent.speed_up("compile")
        np.testing.assert_allclose(agent.predict(observations, deterministic=True)[0], expected, atol=1e-5)
    np.testing.assert_allclose(agent.predict(observations[0], deterministic=True)[0], expected[0], atol=1e-5)


def test_a_chain_that_draws_noise_is_not_compiled(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset, solver="ddpm")
    with pytest.raises(ValueError, match="'ddpm', which draws noise at each of its 30 steps, are not compiled"):
        agent.speed_up()


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


def test_a_noise_scale_that_the_solver_forgets_is_refused(dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match=r'noise_scale \(1.5\) has no effect with solver="ddpm".*noise_scale=1.0'):
        LDCQ("MlpPolicy", dataset, preset="fast", solver="ddpm", family=None)
    with pytest.raises(ValueError, match="has no effect"):
        make_agent("LDCQ", dataset, solver="ddpm", noise_scale=2.0)
    # The released chain does not begin at noise and keeps it; without a chain there is nothing to forget it.
    dataclasses.replace(PAPER, solver="ddpm", schedule="released", noise_scale=2.0)
    dataclasses.replace(PAPER, solver="ddpm", prior="gaussian", noise_scale=2.0)
    for code in RELEASED_CODE.values():
        assert dataclasses.replace(FAST, **code).noise_scale == 1.0

    def older(description: dict[str, Any]) -> None:
        description["settings"]["noise_scale"] = 1.5

    agent = make_agent("LDCQ", dataset, solver="ddpm").learn(10)
    loaded = LDCQ.load(io.BytesIO(with_description(saved(agent), older)))
    assert loaded.settings.noise_scale == 1.0
    observation = dataset.observations[0].numpy()
    expected = agent.predict(observation, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)


@pytest.mark.parametrize(("schedule", "kept"), [("rescaled", 0.006), ("released", 0.603)])
def test_what_the_full_chain_keeps_of_its_start(schedule: str, kept: float) -> None:
    made = linear_schedule(500 if schedule == "rescaled" else 100, rescaled=schedule == "rescaled")
    steps = solver_steps(made, "ddpm", 0)
    # The best prediction of standard normal x0 from x is signal * x.
    assert np.prod([s.a + s.b * float(made.signal[s.j]) for s in steps]) == pytest.approx(kept, abs=5e-4)


def test_all_solvers_and_networks_learn_and_act(dataset: OfflineDataset) -> None:
    for settings in (
        {"solver": "ddim"},
        {"solver": "ddpm", "extra_steps": 2},
        {"encoder": "gru", "decoder": "autoregressive", "decoded_steps": None},
        {"candidates_per_target": 3, "denoiser_widths": (16, 12, 8)},
        {"denoiser": "mlp", "denoiser_widths": (16, 12)},
        {"denoiser": "transformer", "denoiser_widths": (16, 16)},
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


def test_families_change_the_fast_preset_alone(dataset: OfflineDataset) -> None:
    ant = LDCQ("MlpPolicy", dataset, preset="fast", family="antmaze").settings
    assert dataclasses.replace(ant, **{name: getattr(FAST, name) for name in FAMILY["antmaze"]}) == FAST
    assert (ant.sample_actions, ant.exec_horizon, ant.candidates_acting) == (True, 5, 30)
    assert LDCQ("MlpPolicy", dataset, preset="paper", family="antmaze").settings == PAPER
