"""LatentDiffuser: values, actions that see the state, settings, and a task that only guided plans solve."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from latent_diffuser_data import N, T, counting, make, prepared
from test_learning import TwoWays, walks
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import TINY_LATENT_DIFFUSER, StopAt, differing, saved, weights
from ld_agents import LatentDiffuser, OfflineDataset, evaluate
from ld_agents.latent_diffuser_settings import ENERGY_SETTINGS, FAMILIES, PAPER, PRESETS
from ld_agents.networks.critics import QFunction
from ld_agents.networks.window_values import StateValue

# ---------------------------------------------------------------- returns of the step alone


def reach(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Every target looks n steps ahead."""
    monkeypatch.setattr(torch, "randint", lambda low, high, size, **_: torch.full(size, n))


@pytest.mark.parametrize("n", [1, 4, 7])
def test_bootstrapped_returns_by_hand(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Rewards of n steps, then Q there; at a timeout Q of the last step, after a terminal nothing."""
    agent = prepared(counting([(20, False), (12, True)]), standardize=False)
    monkeypatch.setattr(QFunction, "forward", lambda self, states, actions: torch.full(states.shape[:-1], 1000.0))
    reach(monkeypatch, n)
    rows = torch.tensor([3, 15, 18, 20, 30, 31])
    targets = agent._value_targets(rows)
    # rows are rewards; the timeout is in row 19, the terminal in row 31
    for row, found in zip(rows.tolist(), targets.tolist(), strict=True):
        later = min(row + n, 19 if row < 20 else 31)
        expected = sum(0.9 ** (k - row) * k for k in range(row, later))
        expected += 0.9 ** (later - row) * (31 if later == 31 else 1000)
        assert found == pytest.approx(expected, rel=1e-5), row


def test_values_ahead_of_every_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """n is drawn from 1..T-1, each as often."""
    agent = prepared(counting([(20, False), (12, True)]), standardize=False)
    drawn: list[Tensor] = []
    draw = torch.randint

    def kept(*args: Any, **kwargs: Any) -> Tensor:
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(torch, "randint", kept)
    agent._value_targets(torch.zeros(7000, dtype=torch.long))
    counts = torch.bincount(drawn[0], minlength=T)
    assert counts[0] == 0
    assert len(counts) == T
    assert (counts[1:] - 1000).abs().max() < 150


def test_q_learns_from_the_steps_of_the_data(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """With "step" no latent reaches the returns: R is Q of the decoded states and actions, and Q learns from the data.

    The last step before a timeout is left out, since nothing is known of what follows it.
    """
    agent = prepared(counting([(20, False), (12, True)]), return_targets="data", value_batch_size=4000, value_steps=1)
    policy, seen = agent.policy, []
    forward = QFunction.forward
    monkeypatch.setattr(QFunction, "forward", lambda self, s, a: seen.append((s, a)) or forward(self, s, a))
    before = weights(agent)
    (losses,) = list(agent.train_values())
    assert {name.split(".")[0] for name in differing(before, weights(agent))} == {"q_function", "q_average"}
    states, actions = seen[0]
    assert len(states.unique(dim=0)) == 31
    rows = torch.cdist(states, agent.states(torch.arange(agent.data.n_steps))).argmin(1)
    assert 19 not in rows
    torch.testing.assert_close(actions, agent.tokens(rows)[:, policy.state_dim : -2])
    policy.load_state_dict(before)
    expected = F.mse_loss(policy.q_function(states, actions), agent.tokens(rows)[:, -1])
    assert float(losses["q"]) == pytest.approx(float(expected), rel=1e-4)
    latents, at = torch.randn(5, N, 3), agent.states(torch.arange(5))
    decoded = policy.decode(latents, at)
    assert decoded.returns is None
    going_on = torch.sigmoid(-decoded.end_logits)
    q = policy.q_function(decoded.states, decoded.actions) * policy.token_std[-1] + policy.token_mean[-1]
    torch.testing.assert_close(policy.plan_returns(decoded), (going_on * q).sum(1))


def test_bootstrapping_needs_q(dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match="return_inputs"):
        make(dataset, return_inputs="trunk")


EXPECTILE: dict[str, Any] = {"return_targets": "expectile", "value_learning_rate": 1e-2}


def test_expectile_targets_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards of n steps, then V of the state there; a terminal's own reward is all that is left."""
    agent = prepared(counting([(20, False), (12, True)]), standardize=False, **EXPECTILE)
    monkeypatch.setattr(StateValue, "forward", lambda self, states: torch.full(states.shape[:-1], 1000.0))
    reach(monkeypatch, 7)
    rows = torch.tensor([3, 15, 25, 31])
    targets = agent._value_targets(rows)
    for i, (row, later, end) in enumerate([(3, 10, 1000.0), (15, 19, 1000.0), (25, 31, 31.0), (31, 31, 31.0)]):
        expected = sum(0.9 ** (k - row) * k for k in range(row, later)) + 0.9 ** (later - row) * end
        assert float(targets[i]) == pytest.approx(expected, rel=1e-5)


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


@pytest.mark.parametrize("hidden", [None, 24])
def test_actions_of_a_plan_follow_the_state(hidden: int | None, dataset: OfflineDataset) -> None:
    """Between two plans the same plan answers other observations with other actions, those of the action module."""
    agent = make(dataset, action_decoder="state", action_hidden=hidden, n_candidates=2).learn()
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
    linear = [module for module in policy.vae.modules_of["actions"] if isinstance(module, nn.Linear)]
    assert [layer.out_features for layer in linear] == ([16, 2] if hidden is None else [24, 24, 2])
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
    with pytest.raises(ValueError, match="latent_space"):
        make(dataset, action_hidden=24, latent_space=False)


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
    for name, preset in PRESETS.items():
        for family, changes in FAMILIES[name].items():
            dataclasses.replace(preset, **changes)
            assert changes.items() >= FAMILIES["paper"].get(family, {}).items()
    # robots that fall: actions follow the state, and latents keep no noise
    closed = {family for family, changes in FAMILIES["fast"].items() if changes.get("action_decoder") == "state"}
    assert closed == {"locomotion", "antmaze"}
    assert all(FAMILIES["fast"][family]["kl_weight"] > PRESETS["fast"].kl_weight for family in closed)
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
    "value_batch_size": 256,
    "value_steps": 500,
    "value_learning_rate": 3e-3,
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
    returns = np.mean(evaluate(agent, TwoWays, 400, seed=1, n_envs=400).returns)  # standard error 0.02
    assert returns > 0.75
    policy.settings = dataclasses.replace(policy.settings, guidance="none")
    assert np.mean(evaluate(agent, TwoWays, 40, seed=1, n_envs=40).returns) < 0.6
