"""Policies whose values are known, evaluated from data alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from conftest import AGENTS
from ld_agents import OfflineDataset, evaluate_offline

LENGTH, DISCOUNT = 5, 0.9


class Constant:
    """A policy that always takes the same action."""

    def __init__(self, action: float) -> None:
        self.action = action

    def predict(self, observation: Any, deterministic: bool = False) -> tuple[Any, None]:
        assert deterministic
        return np.full((len(observation), 1), self.action, np.float32), None


@pytest.fixture(scope="module")
def chain() -> OfflineDataset:
    """Episodes of five steps that end in terminals; a step pays its action, and random actions were recorded."""
    rng = np.random.default_rng(0)
    episodes = 400
    actions = rng.uniform(-1, 1, (episodes * LENGTH, 1)).astype(np.float32)
    positions = np.tile(np.arange(LENGTH, dtype=np.float32), episodes)[:, None]
    last = positions[:, 0] == LENGTH - 1
    return OfflineDataset(positions, actions, actions[:, 0], last, np.zeros_like(last))


SMALL: dict[str, Any] = {"discount": DISCOUNT, "gradient_steps": 1500, "batch_size": 128, "hidden": (32, 32)}


def test_values_are_discounted_returns(chain: OfflineDataset) -> None:
    steps = sum(DISCOUNT**t for t in range(LENGTH))
    estimates = evaluate_offline([Constant(action) for action in (-0.5, 0.5, 0.0)], chain, **SMALL)
    values = [estimate.value for estimate in estimates]
    assert values == pytest.approx([-0.5 * steps, 0.5 * steps, 0.0], abs=0.25)
    assert values[0] < values[2] < values[1]
    assert all(0 <= estimate.td_error < 0.3 for estimate in estimates)


def test_estimates_repeat_and_leave_the_generator_alone(chain: OfflineDataset) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two = (evaluate_offline([Constant(0.5)], chain, **{**SMALL, "gradient_steps": 20}) for _ in range(2))
    assert one == two
    assert torch.equal(torch.get_rng_state(), before)
    # alone or beside others, an agent gets the same estimate
    assert evaluate_offline([Constant(0.1), Constant(0.5)], chain, **{**SMALL, "gradient_steps": 20})[1:] == one


def test_the_error_is_that_of_the_policy_s_own_actions() -> None:
    """Rewards of actions above 0 are noise: that is none of the business of a policy that goes the other way."""
    rng = np.random.default_rng(0)
    actions = np.sign(rng.uniform(-1, 1, (3000, 1))).astype(np.float32)
    rewards = np.where(actions[:, 0] > 0, rng.normal(0, 3, 3000), 1.0)
    ends = np.ones(3000, bool)
    data = OfflineDataset(np.zeros((3000, 1)), actions, rewards, ends, ~ends)
    down, up = evaluate_offline([Constant(-1.0), Constant(1.0)], data, **{**SMALL, "gradient_steps": 300})
    assert up.td_error > 1.2 * down.td_error


@pytest.mark.parametrize("name", ["LDCQ", "LatentDiffuser", "BC"])
def test_agents_of_all_kinds(name: str, dataset: OfflineDataset, goal_dataset: OfflineDataset) -> None:
    """Planners decide anew at each step; states are flat vectors also where the environment has dictionaries."""
    for data in (dataset, goal_dataset):
        agent_class, tiny = AGENTS[name]
        agent = agent_class("MlpPolicy" if data is dataset else "MultiInputPolicy", data, seed=0, **tiny)
        (found,) = evaluate_offline([agent], data, n_steps=40, gradient_steps=3, batch_size=8, hidden=(8,))
        assert np.isfinite([found.value, found.td_error]).all()


def test_one_agent_on_arrays_with_a_step_held_out(chain: OfflineDataset) -> None:
    arrays = {
        "observations": chain.observations[:25],
        "actions": chain.actions[:25],
        "rewards": chain.rewards[:25],
        "terminals": chain.terminals[:25],
        "timeouts": np.zeros(25, bool),
    }
    (found,) = evaluate_offline(Constant(0.5), arrays, **{**SMALL, "held_out": 0.01, "gradient_steps": 1})
    assert found.td_error > 0, "of the step that is held out"


@pytest.mark.parametrize(
    "wrong", [{"discount": 1.0}, {"held_out": 0.0}, {"n_steps": 5}, {"gradient_steps": 0}, {"batch_size": 0}]
)
def test_numbers_out_of_range(chain: OfflineDataset, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Give a discount from 0 to below 1"):
        evaluate_offline([], chain, **wrong)
