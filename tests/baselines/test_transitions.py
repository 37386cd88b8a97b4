"""Single steps for Q-learning: which steps there are, what each row holds, and how batches are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ld_agents import OfflineDataset
from ld_agents.baselines.transitions import STEPS_PER_BLOCK, Transitions, scaled_rewards
from ld_agents.data.returns import episode_of_steps, episode_returns

NAN = float("nan")


def four_episodes(final: bool = True) -> OfflineDataset:
    """Observation 10 t, action 0.1 t, reward t at step t. Episodes end after steps 2, 4, 7 and 8.

    0-2: a terminal. 3-4: a timeout, the observation after it is 41. 5-7: a timeout, unknown after it. 8: the data stop,
    unknown after it.
    """
    t = np.arange(9.0)
    return OfflineDataset(
        10 * t[:, None],
        0.1 * t[:, None],
        t,
        t == 2,
        (t == 4) | (t == 7),
        final_observations=np.array([[NAN], [41.0], [NAN], [NAN]]) if final else None,
    )


def transitions_of(data: OfflineDataset, rewards: Tensor | None = None, **kwargs: bool) -> Transitions:
    return Transitions(
        data,
        rewards,
        states=lambda rows: data.observation_rows[rows],
        actions=lambda rows: data.actions[rows],
        **kwargs,
    )


def rows_of(*args: Any, **kwargs: Any) -> Tensor:
    """All columns of all steps side by side."""
    transitions = transitions_of(*args, **kwargs)
    columns = transitions.gather(torch.arange(len(transitions)))
    return torch.cat([column.reshape(len(transitions), -1) for column in columns], 1)


def seeded(purpose: str) -> torch.Generator:
    block = int(purpose.removeprefix("batches "))
    return torch.Generator().manual_seed(1000 + block)


def test_rows() -> None:
    rows = rows_of(four_episodes())
    # s, a, r, bootstrap mask, s'
    expected = [
        [0, 0.0, 0, 1, 10],
        [10, 0.1, 1, 1, 20],
        [20, 0.2, 2, 0, 20],  # terminal: nothing is bootstrapped, so any s' will do
        [30, 0.3, 3, 1, 40],
        [40, 0.4, 4, 1, 41],  # a timeout is not a terminal
        [50, 0.5, 5, 1, 60],
        [60, 0.6, 6, 1, 70],  # not 80: step 7 is the last one of its episode, and step 8 begins another
    ]
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-6)
    assert rows.dtype == torch.float32
    unknown = rows_of(four_episodes(final=False))
    np.testing.assert_allclose(unknown.numpy(), [row for row in expected if row[0] != 40], rtol=1e-6)


def test_rows_with_next_actions() -> None:
    """A step that ends in a timeout has none, known observation or not; after a terminal it is zero."""
    expected = [
        [0, 0.0, 0, 1, 10, 0.1],
        [10, 0.1, 1, 1, 20, 0.2],
        [20, 0.2, 2, 0, 20, 0.0],
        [30, 0.3, 3, 1, 40, 0.4],
        [50, 0.5, 5, 1, 60, 0.6],
        [60, 0.6, 6, 1, 70, 0.7],
    ]
    for final in (True, False):
        rows = rows_of(four_episodes(final), next_actions=True)
        np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-6)


def test_terminal_at_the_very_end() -> None:
    data = OfflineDataset(np.zeros((2, 1)), np.ones((2, 1)), np.zeros(2), [False, True], [False, False])
    assert rows_of(data, next_actions=True)[:, -1].tolist() == [1, 0]
    assert rows_of(data)[:, 3].tolist() == [1, 0]


def test_terminal_that_is_also_a_timeout_is_a_terminal() -> None:
    data = OfflineDataset(np.zeros((2, 1)), np.ones((2, 1)), np.zeros(2), [False, True], [False, True])
    assert rows_of(data, next_actions=True)[:, 3].tolist() == [1, 0]


def test_other_rewards() -> None:
    data = four_episodes()
    assert rows_of(data, 5 - data.rewards)[:, 2].tolist() == [5, 4, 3, 2, 1, 0, -1]


@pytest.mark.parametrize("next_actions", [False, True])
def test_data_without_a_successor(next_actions: bool) -> None:
    ones = np.ones(3)
    data = OfflineDataset(ones[:, None], ones[:, None], ones, 0 * ones, ones)
    with pytest.raises(ValueError, match="what comes after it is unknown"):
        transitions_of(data, next_actions=next_actions)
    known = OfflineDataset(ones[:, None], ones[:, None], ones, 0 * ones, ones, final_observations=np.zeros((3, 1)))
    assert len(transitions_of(known)) == 3
    with pytest.raises(ValueError, match="the action after it is unknown"):
        transitions_of(known, next_actions=True)


def drawn(transitions: Transitions, steps: range, batch_size: int = 4) -> Tensor:
    """All columns of all batches side by side, [steps, B, columns]."""
    batches = transitions.batches(steps, batch_size, seeded)
    return torch.stack([torch.cat([part.reshape(batch_size, -1) for part in batch], 1) for batch in batches])


@pytest.mark.parametrize("next_actions", [False, True])
def test_batches_hold_rows(next_actions: bool) -> None:
    transitions = transitions_of(four_episodes(), next_actions=next_actions)
    batch = next(transitions.batches(range(1), 5, seeded))
    assert [tuple(part.shape) for part in batch] == [(5, 1), (5, 1), (5,), (5,), (5, 1), (5, 1)][: 5 + next_actions]
    rows = {tuple(row) for row in rows_of(four_episodes(), next_actions=next_actions).tolist()}
    assert {tuple(row) for row in drawn(transitions, range(200)).flatten(0, 1).tolist()} == rows


def test_what_a_step_draws_depends_on_its_number_alone() -> None:
    """So a run that was interrupted anywhere draws what an uninterrupted one draws."""
    transitions = transitions_of(four_episodes())
    whole = drawn(transitions, range(2 * STEPS_PER_BLOCK + 5))
    assert len(whole) == 2 * STEPS_PER_BLOCK + 5
    for start in (0, 1, 999, 1000, 1001, 1500, 2000, 2004):
        part = drawn(transitions, range(start, len(whole)))
        assert torch.equal(part, whole[start:])
    assert not torch.equal(whole[:1000], whole[1000:2000])
    assert list(transitions.batches(range(3, 3), 4, seeded)) == []


def test_every_step_is_drawn_equally_often() -> None:
    transitions = transitions_of(four_episodes())
    observations = drawn(transitions, range(3000), 7)[..., 0].flatten()
    counts = np.unique(observations.numpy(), return_counts=True)[1]
    assert len(counts) == 7
    # 21,000 draws, 3,000 of each, standard deviation 51
    assert np.abs(counts - 3000).max() < 250
    # with replacement: the chance that 7 draws out of 7 all differ is 0.6 %
    distinct = [len(set(batch.tolist())) for batch in observations.reshape(-1, 7)]
    assert np.mean(distinct) == pytest.approx(7 * (1 - (6 / 7) ** 7), abs=0.1)


# ---------------------------------------------------------------- rewards and returns

LAST = [3, 5, 8, 9]


def by_hand(rewards: list[float], discount: float) -> list[float]:
    returns, begin = [], 0
    for end in LAST:
        returns.append(sum(discount**k * reward for k, reward in enumerate(rewards[begin:end])))
        begin = end
    return returns


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
def test_episode_returns(discount: float) -> None:
    data = four_episodes()
    assert episode_of_steps(data).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3]
    expected = by_hand(data.rewards.tolist(), discount)
    np.testing.assert_allclose(episode_returns(data, discount).numpy(), expected, rtol=1e-12)
    if discount == 1:
        assert expected == [3, 7, 18, 8]


def test_episode_returns_do_not_lose_digits() -> None:
    n = 2_000_000
    data = OfflineDataset(np.zeros((n, 1)), np.zeros((n, 1)), np.full(n, 0.1), np.zeros(n), np.zeros(n))
    assert float(episode_returns(data)[0]) == pytest.approx(n * float(np.float32(0.1)), rel=1e-9)


@pytest.mark.parametrize(
    ("scale", "shift", "by_range", "change"),
    [
        (1.0, 0.0, False, lambda r: r),
        (1.0, -1.0, False, lambda r: r - 1),
        (100.0, 0.0, False, lambda r: 100 * r),
        (4.0, -2.0, False, lambda r: 4 * r - 2),
        (1.0, 0.0, True, lambda r: r / 15 * 1000),  # returns of 3 to 18
        (2.0, 1.0, True, lambda r: 2 * (r / 15 * 1000) + 1),
    ],
)
def test_scaled_rewards(scale: float, shift: float, by_range: bool, change: Callable[[float], float]) -> None:
    data = four_episodes()
    rewards = scaled_rewards(data, scale, shift, by_range)
    np.testing.assert_allclose(rewards.numpy(), [change(r) for r in range(9)], rtol=1e-6)
    assert rewards.dtype == torch.float32


def test_rewards_that_cannot_be_normalised() -> None:
    data = OfflineDataset(np.zeros((4, 1)), np.zeros((4, 1)), np.ones(4), [0, 1, 0, 1], np.zeros(4))
    with pytest.raises(ValueError, match="All episodes have the same return"):
        scaled_rewards(data, 1.0, 0.0, by_return_range=True)
