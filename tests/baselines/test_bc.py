"""Which episodes 10 % BC clones, and that cloning the best beats cloning all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from conftest import differing, weights
from ld_agents import BC, OfflineDataset

TINY: dict[str, Any] = {"preset": "fast", "hidden": (16, 16), "batch_size": 32, "steps": 30, "learning_rate": 3e-3}


def episodes(rewards: list[list[float]], actions: list[float] | None = None) -> OfflineDataset:
    """Episodes that end by timeout, with these rewards, each with one action all along."""
    lengths = [len(episode) for episode in rewards]
    actions = actions or [0.1 * (i % 10) for i in range(len(rewards))]
    n = sum(lengths)
    return OfflineDataset(
        np.random.default_rng(0).normal(size=(n, 2)),
        np.repeat(actions, lengths)[:, None],
        np.concatenate(rewards),
        np.zeros(n),
        np.isin(np.arange(n), np.cumsum(lengths) - 1),
    )


def kept(data: OfflineDataset, **settings: float) -> list[int]:
    agent = BC("MlpPolicy", data, seed=0, device="cpu", **{**TINY, **settings})
    agent._prepare_data(data)
    return agent.best_rows().tolist()


def test_best_episodes_by_discounted_return() -> None:
    # returns 3, 3.1, 2, 2; discounted with 0.5: 3, 0.775, 1.75, 2
    data = episodes([[3], [0, 0, 3.1], [1, 1, 0, 0], [2, 0]])
    assert kept(data) == list(range(10))
    assert kept(data, best_fraction=0.25, return_discount=0.5) == [0]
    assert kept(data, best_fraction=0.25, return_discount=1.0) == [1, 2, 3]
    assert kept(data, best_fraction=0.5, return_discount=0.5) == [0, 8, 9]
    assert kept(data, best_fraction=0.75, return_discount=0.5) == [0, 4, 5, 6, 7, 8, 9]
    assert kept(data, best_fraction=0.74, return_discount=0.5) == [0, 8, 9]  # rounded down, as in CORL
    assert kept(data, best_fraction=0.0, return_discount=0.5) == [0]  # one at least


def test_default_discount_is_that_of_corl() -> None:
    late, early = [0.0] * 50 + [1.0], [0.8] + [0.0] * 50  # 0.99^50 is 0.605
    assert kept(episodes([late, early]), best_fraction=0.5) == list(range(51, 102))


def test_clones_the_best_alone() -> None:
    generator = np.random.default_rng(1)
    rewards = generator.uniform(0, 1, 40)
    rewards[[7, 11, 20, 33]] += 10
    actions = np.where(rewards > 5, 0.6, -0.4)
    data = episodes([[reward] * 5 for reward in rewards], actions.tolist())
    observations = data.observations.numpy()

    def mean_action(**settings: Any) -> float:
        agent = BC("MlpPolicy", data, seed=0, **{**TINY, "steps": 300, **settings}).learn()
        return float(agent.predict(observations)[0].mean())

    assert mean_action(best_fraction=0.1) == pytest.approx(0.6, abs=0.05)
    assert mean_action() == pytest.approx(-0.3, abs=0.1)


def test_all_episodes_are_plain_cloning() -> None:
    """The rows that are drawn do not depend on how they are listed."""
    data = episodes([[1.0, 2.0, 3.0]] * 20)
    agent = BC("MlpPolicy", data, seed=0, device="cpu", **TINY)
    other = BC("MlpPolicy", data, seed=0, device="cpu", **{**TINY, "return_discount": 0.3})
    assert not differing(weights(agent.learn()), weights(other.learn()))
    assert torch.equal(torch.tensor(kept(data)), torch.arange(60))


@pytest.mark.parametrize(
    ("setting", "value"), [("best_fraction", 1.1), ("best_fraction", -0.1), ("return_discount", 2)]
)
def test_settings_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        BC("MlpPolicy", episodes([[1.0]]), **{**TINY, setting: value})
