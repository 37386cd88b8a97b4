"""What every agent owes SB3's users beside `learn` and `predict`: seeds, going on after a stop, arguments."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from test_learn import Calls

from conftest import (
    AGENTS,
    StopAt,
    Trained,
    differing,
    make_agent,
    record,
    saved,
    seen_by,
    steps_of,
    weights,
)
from ld_agents import BC, LDCQ, OfflineDataset
from ld_agents.common.offline_algorithm import OfflineAlgorithm

# ---------------------------------------------------------------- seeds


def test_seed_makes_training_and_acting_repeatable(name: str, dataset: OfflineDataset) -> None:
    def train(seed: int, disturb: int) -> OfflineAlgorithm:
        torch.manual_seed(disturb)
        np.random.seed(disturb)
        return make_agent(name, dataset, seed=seed).learn()

    one, same, other = train(0, 1), train(0, 2), train(1, 1)
    assert not differing(weights(one), weights(same))
    observation = seen_by(one, 4)
    for deterministic in (True, False):
        np.testing.assert_array_equal(
            one.predict(observation, deterministic=deterministic)[0],
            same.predict(observation, deterministic=deterministic)[0],
        )
    changed = differing(weights(one), weights(other))
    assert changed == [key for key in weights(one) if not key.startswith(("observation_", "token_", "reward_scale"))]


def test_seeds_differ_in_training_and_not_only_in_the_first_weights(name: str, dataset: OfflineDataset) -> None:
    one, other = make_agent(name, dataset, seed=0), make_agent(name, dataset, seed=1)
    other.policy.load_state_dict(one.policy.state_dict())
    assert differing(weights(one.learn(20)), weights(other.learn(20)))


def test_no_seed_draws_one_and_keeps_it(name: str, dataset: OfflineDataset) -> None:
    agents = [AGENTS[name][0]("MlpPolicy", dataset, **AGENTS[name][1]) for _ in range(2)]
    assert agents[0].seed != agents[1].seed
    assert agents[0].config()["seed"] == agents[0].seed
    assert type(agents[0]).load(io.BytesIO(saved(agents[0]))).seed == agents[0].seed


@pytest.mark.parametrize("deterministic", [True, False])
def test_global_random_state_does_not_matter(name: str, trained: Trained, deterministic: bool) -> None:
    observation = seen_by(trained(name), 4)
    actions = []
    for disturb in (1, 2):
        agent = trained(name)
        torch.manual_seed(disturb)
        np.random.seed(disturb)
        actions.append([agent.predict(observation, deterministic=deterministic)[0] for _ in range(3)])
        assert torch.initial_seed() == disturb
    np.testing.assert_array_equal(actions[0], actions[1])


# ---------------------------------------------------------------- going on after a stop


@pytest.mark.parametrize("stop", [1, 6, 12, 13, 17, 20, 21, 30, 39, 40])
def test_resumed_training_is_bit_equal(dataset: OfflineDataset, stop: int) -> None:
    """Stages end after 12, 20 and 40 gradient steps."""
    check_resumption("LDCQ", dataset, stop)


@pytest.mark.parametrize("stop", [1, 12, 13, 31])
def test_resumed_training_is_bit_equal_with_the_gaussian_prior(dataset: OfflineDataset, stop: int) -> None:
    check_resumption("LDCQ-gaussian", dataset, stop)


@pytest.mark.parametrize("stop", [1, 11, 12, 13, 19])
def test_resumed_training_with_goals_is_bit_equal(dataset: OfflineDataset, stop: int) -> None:
    check_resumption("LDGC", dataset, stop)


@pytest.mark.parametrize("stop", [1, 2, 15, 30])
@pytest.mark.parametrize("baseline", ["BC", "GCBC", "TD3BC", "ReBRAC", "IQL", "CQL"])
def test_resumed_training_of_baselines_is_bit_equal(dataset: OfflineDataset, baseline: str, stop: int) -> None:
    check_resumption(baseline, dataset, stop)


@pytest.mark.parametrize("learning_rates", ["cosine", "released"])
@pytest.mark.parametrize("stop", [21, 30, 50])
def test_resumed_q_learning_is_bit_equal_for_any_batch_size(
    dataset: OfflineDataset, stop: int, learning_rates: str
) -> None:
    """Sizes that are no multiple of a vector register, and fewer candidates per target than are stored."""
    settings = {"q_batch_size": 37, "q_steps": 60, "candidates_per_target": 4, "learning_rates": learning_rates}
    check_resumption("LDCQ", dataset, stop, **settings)


def check_resumption(name: str, dataset: OfflineDataset, stop: int, **settings: Any) -> None:
    whole = make_agent(name, dataset, **settings).learn()
    stopped = make_agent(name, dataset, **settings).learn(callback=StopAt(stop))
    assert stopped.num_timesteps == stop
    resumed = type(stopped).load(io.BytesIO(saved(stopped)), dataset=dataset)
    assert not differing(weights(stopped), weights(resumed))
    finished = [stage for stage, steps in steps_of(resumed).items() if resumed.stage_steps[stage] == steps]
    seconds = dict(resumed.stage_seconds)
    calls = Calls()
    calls.n_calls = stop
    resumed.learn(callback=calls, reset_num_timesteps=False)
    assert calls.steps == list(range(stop + 1, whole.full_budget + 1))
    assert resumed.num_timesteps == whole.full_budget
    assert {stage: resumed.stage_seconds[stage] for stage in finished} == {s: seconds[s] for s in finished}
    assert differing(weights(whole), weights(resumed)) == []
    # without the detour through a file
    stopped.learn(reset_num_timesteps=False)
    assert differing(weights(whole), weights(stopped)) == []
    batch = seen_by(whole, 3)
    np.testing.assert_array_equal(whole.predict(batch)[0], resumed.predict(batch)[0])


def test_training_can_be_stopped_again_and_again(name: str, dataset: OfflineDataset) -> None:
    whole = make_agent(name, dataset).learn()
    agent = make_agent(name, dataset).learn(callback=StopAt(5))
    while agent.num_timesteps < whole.full_budget:
        agent = type(agent).load(io.BytesIO(saved(agent)), dataset=dataset)
        agent.learn(callback=StopAt(agent.num_timesteps + 5), reset_num_timesteps=False)
    assert not differing(weights(whole), weights(agent))


def test_resumed_with_a_further_budget(name: str, dataset: OfflineDataset) -> None:
    agent = make_agent(name, dataset).learn(callback=StopAt(7))
    agent.learn(9, reset_num_timesteps=False)
    assert agent.num_timesteps == sum(agent.stage_steps.values()) == sum(agent.stage_budget.values()) == 16


def test_other_data_are_refused(name: str, trained: Trained) -> None:
    blob = io.BytesIO(saved(trained(name)))
    other = record(seed=1)
    with pytest.raises(ValueError, match=rf"not on user arrays \(hash {other.content_hash[:12]}\)"):
        AGENTS[name][0].load(blob, dataset=other)


def test_learn_without_data_is_refused(name: str, trained: Trained, dataset: OfflineDataset) -> None:
    agent = AGENTS[name][0].load(io.BytesIO(saved(trained(name))))
    with pytest.raises(ValueError, match=rf"no dataset. Load it with one: {type(agent).__name__}.load\(path, dataset="):
        agent.learn(1)
    assert np.isfinite(agent.predict(np.zeros(3))[0]).all()


# ---------------------------------------------------------------- arguments


def test_configuration(name: str, dataset: OfflineDataset) -> None:
    agent = make_agent(name, dataset, seed=5)
    config = agent.config()
    agent_class, tiny = AGENTS[name]
    assert (config["class"], config["policy"], config["seed"]) == (agent_class.__name__, "MlpPolicy", 5)
    assert config["preset"] == "fast"
    assert config["settings"].items() >= {key: value for key, value in tiny.items() if key != "preset"}.items()


def test_presets(name: str, dataset: OfflineDataset) -> None:
    agent_class = AGENTS[name][0]
    fast, paper = (agent_class("MlpPolicy", dataset, preset=preset) for preset in ("fast", "paper"))
    assert fast.full_budget < paper.full_budget
    assert agent_class("MlpPolicy", dataset, device="cpu").preset == "fast"
    known = ["fast", "minutes", "paper"] if name in ("LDCQ", "LDCQ-gaussian", "IQL", "BC") else ["fast", "paper"]
    with pytest.raises(ValueError, match=rf"Unknown preset 'quick'. \w+ has {re.escape(str(known))}"):
        agent_class("MlpPolicy", dataset, preset="quick")


def test_wrong_policy_names(name: str, dataset: OfflineDataset, goal_dataset: OfflineDataset) -> None:
    agent_class, tiny = AGENTS[name]
    learns_from_images = agent_class in (LDCQ, BC)
    with pytest.raises(ValueError, match="use 'MlpPolicy'" if learns_from_images else "encode images first"):
        agent_class("CnnPolicy", dataset, **tiny)
    with pytest.raises(ValueError, match=r"has no policy 'LstmPolicy'\. Use one of"):
        agent_class("LstmPolicy", dataset, **tiny)
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        agent_class("MlpPolicy", goal_dataset, **tiny)
    with pytest.raises(ValueError, match="use 'MlpPolicy'"):
        agent_class("MultiInputPolicy", dataset, **tiny)


def test_unknown_settings_name_the_known_ones(name: str, dataset: OfflineDataset) -> None:
    with pytest.raises(TypeError, match=r"has no setting batchsize. It has: .*batch_size"):
        make_agent(name, dataset, batchsize=3)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("denoiser_widths", "ab"),
        ("denoiser_widths", (8.5, 8)),
        ("denoiser_widths", 8),
        ("reward_stops_bootstrap", "no"),
        ("latent_dim", 0),
        ("latent_dim", 2.5),
        ("latent_dim", 10**6),
        ("vae_hidden", 10**9),
        ("vae_batch_size", 0),
        ("vae_steps", -1),
        ("vae_steps", True),
        ("horizon", 0),
        ("horizon", None),
        ("q_windows", 0),
        ("extra_steps", -1),
        ("decoded_steps", 0),
        ("bootstrap_exponent", 0),
        ("discount", 1.5),
        ("discount", float("nan")),
        ("q_learning_rate", -1e-3),
        ("priority_alpha", -0.1),
        ("encoder", "lstm"),
        ("prior", "flow"),
        ("solver", "euler"),
        ("next_state", "s_t"),
        ("denoiser_widths", (8,)),
        ("denoiser_widths", (8, 0)),
        ("denoiser", "gru"),
    ],
)
def test_ldcq_settings_out_of_range(dataset: OfflineDataset, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        make_agent("LDCQ", dataset, **{setting: value})


def test_ldcq_settings_that_do_not_fit_together(dataset: OfflineDataset) -> None:
    for widths in ((16, 8), (6, 6)):
        with pytest.raises(ValueError, match="denoiser_widths must be one multiple of 4"):
            make_agent("LDCQ", dataset, denoiser="transformer", denoiser_widths=widths)
    with pytest.raises(ValueError, match=r"exec_horizon \(6\) must not exceed horizon \(5\)"):
        make_agent("LDCQ", dataset, exec_horizon=6)
    with pytest.raises(ValueError, match=r"candidates_per_target \(7\) must not exceed candidates_stored"):
        make_agent("LDCQ", dataset, candidates_per_target=7)
    with pytest.raises(ValueError, match="diffusion_steps must be at least 30"):
        make_agent("LDCQ", dataset, diffusion_steps=20)
    with pytest.raises(ValueError, match=r"solver_steps \(31\) must not exceed diffusion_steps \(30\)"):
        make_agent("LDCQ", dataset, solver_steps=31)


@pytest.mark.parametrize(
    ("setting", "value"), [("batch_size", 0), ("steps", -1), ("learning_rate", 2.0), ("hidden", ())]
)
def test_bc_settings_out_of_range(dataset: OfflineDataset, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        make_agent("BC", dataset, **{setting: value})


def test_windows_longer_than_episodes(dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match=r"longest episode has 20 steps\. Use a shorter horizon"):
        make_agent("LDCQ", dataset, horizon=50, windows_past_terminals=False).learn(1)
