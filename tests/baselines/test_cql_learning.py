"""CQL: its settings, and tasks with a known optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from echo import BEST, Echo, echo_states, echoes, one_state_data
from numpy.typing import NDArray

from ld_agents import OfflineDataset, evaluate
from ld_agents.baselines.cql import CQL, PAPER

# ---------------------------------------------------------------- settings


def test_settings_of_families(dataset: OfflineDataset) -> None:
    assert list(CQL.family_settings("paper")) == ["maze2d", "antmaze", "locomotion", "kitchen", "adroit"]
    for settings in CQL.family_settings("paper").values():
        assert CQL("MlpPolicy", dataset, preset="paper", seed=0, **settings).full_budget == 1_000_000
    assert (PAPER.conservative_weight, PAPER.n_actions, PAPER.critic_hidden) == (10.0, 10, (256, 256, 256))
    antmaze = CQL("MlpPolicy", dataset, preset="paper", seed=0, **CQL.family_settings("paper")["antmaze"])
    assert len(antmaze.policy.critics[0].net) == 11
    fast = CQL("MlpPolicy", dataset, preset="fast", family="antmaze", seed=0)
    assert (len(fast.policy.critics[0].net), fast.settings.max_target_backup) == (5, True)
    cloning = CQL.presets()["fast"].steps * 40_000 / PAPER.steps
    assert CQL.family_settings("fast")["kitchen"]["cloning_steps"] == cloning


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("conservative_weight", -1.0),
        ("n_actions", 0),
        ("target_action_gap", "large"),
        ("gap_floor", float("-inf")),
        ("max_target_backup", 1),
        ("cloning_steps", -1),
        ("critic_hidden", ()),
        ("orthogonal_critics", None),
        ("actor_learning_rate", 2.0),
        ("steps", 1.5),
    ],
)
def test_settings_out_of_range(dataset: OfflineDataset, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        CQL("MlpPolicy", dataset, **{setting: value})


# ---------------------------------------------------------------- what is learned


LEARNING: dict[str, Any] = {
    "hidden": (32, 32),
    "critic_hidden": (32, 32),
    "batch_size": 64,
    "n_actions": 4,
    "actor_learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "target_rate": 0.05,
}


@pytest.mark.parametrize(("ends", "value"), [("terminals", 1.0), ("timeouts", 2.0)])
def test_timeouts_are_not_terminals(ends: str, value: float) -> None:
    """Episodes of one step with reward 1. With a discount of 0.5, going on for ever is worth 2, stopping 1."""
    always, never = np.ones(64, bool), np.zeros(64, bool)
    data = one_state_data(always, never) if ends == "terminals" else one_state_data(never, always)
    settings = {**LEARNING, "hidden": (8,), "critic_hidden": (8,), "conservative_weight": 0.0, "discount": 0.5}
    agent = CQL("MlpPolicy", data, seed=0, steps=300, **settings).learn()
    q = agent.q_values(agent.policy.critics, torch.zeros(1, 1), torch.zeros(1, 1, 1))
    np.testing.assert_allclose(q.detach(), value, atol=0.1)


def test_cql_finds_the_best_actions_and_their_values() -> None:
    agent = CQL("MlpPolicy", echoes(), seed=0, steps=1600, conservative_weight=0.1, discount=0.9, **LEARNING).learn()
    observations, best = echo_states()
    np.testing.assert_allclose(agent.predict(observations, deterministic=True)[0][:, 0], best, atol=0.25)
    assert evaluate(agent, Echo, 1, seed=0).returns[0] > 4.5  # the best is 4.64, cloning gets 3.48
    first = agent.policy.normalize(torch.zeros(1, 2))
    q = agent.q_values(agent.policy.critics, first, torch.full((1, 1, 1), float(BEST[1]))).flatten()
    exact = 0.9 ** np.arange(5) @ (1 - np.array([BEST[0] ** 2, 0, 0, 0, 0]))  # 3.74
    assert ((0.9 * exact < q) & (q < exact)).all()


def narrow_data() -> OfflineDataset:
    """One state, one step, actions between -0.8 and 0, paid with 1 + a: it looks as if larger ones paid more."""
    actions = np.random.default_rng(0).uniform(-0.8, 0.0, (512, 1))
    return OfflineDataset(
        np.zeros((512, 1)),
        actions,
        1 + actions[:, 0],
        np.ones(512),
        np.zeros(512),
        action_space=Echo.action_space,
        final_observations=np.zeros((512, 1)),
    )


def test_q_is_pushed_down_where_the_data_have_no_actions() -> None:
    def learned(conservative_weight: float) -> tuple[NDArray[np.float32], float]:
        """The smaller Q of the actions -0.4, 0 and 0.9, and the actor's action."""
        settings = {**LEARNING, "conservative_weight": conservative_weight}
        agent = CQL("MlpPolicy", narrow_data(), seed=0, steps=500, **settings).learn()
        actions = torch.tensor([[[-0.4], [0.0], [0.9]]])
        q = agent.q_values(agent.policy.critics, torch.zeros(1, 1), actions).amin(0)[0]
        return q.detach().numpy(), float(agent.predict(np.zeros(1), deterministic=True)[0][0])

    q, action = learned(0.0)
    assert q[0] == pytest.approx(0.6, abs=0.1)
    assert q[2] > q[1] > q[0]
    assert action > 0.3
    q, action = learned(1.0)
    assert q[2] < q[0] - 2
    assert -0.8 < action < 0.1
