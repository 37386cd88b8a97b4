"""The sum tree draws what the definition says, whatever the number of items."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ld_agents.common.prioritized_sampler import PrioritizedSampler

SIZES = [1, 5, 127, 128, 129, 1000, 16_384, 16_385, 300_000]


def random_priorities(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) ** 3 + 1e-3


def exact(priorities: Tensor, alpha: float) -> Tensor:
    weights = priorities.double() ** alpha
    return weights / weights.sum()


def agrees(sampler: PrioritizedSampler, expected: Tensor, seed: int = 0) -> None:
    """Chi-square over at most 50 groups of neighboring items, and over the items modulo 50."""
    n, draws = len(expected), 200_000
    indices, probabilities = sampler.draw(draws, torch.Generator().manual_seed(seed))
    assert indices.shape == probabilities.shape == (draws,)
    assert indices.dtype == torch.int64
    assert 0 <= int(indices.min()) <= int(indices.max()) < n
    torch.testing.assert_close(probabilities.double(), expected[indices], rtol=1e-4, atol=0)
    items = torch.arange(n)
    for group in (items * min(n, 50) // n, items % min(n, 50)):
        mass = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add_(0, group, expected)
        counts = group[indices].bincount(minlength=len(mass)).double()
        chi_square = float(((counts - draws * mass) ** 2 / (draws * mass)).sum())
        freedom = len(mass) - 1
        assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 1e-9


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("n", SIZES)
def test_frequencies_and_probabilities(n: int, alpha: float) -> None:
    priorities = random_priorities(n)
    sampler = PrioritizedSampler(priorities, alpha)
    agrees(sampler, exact(priorities, alpha))
    assert sampler.n_items == n
    torch.testing.assert_close(sampler.weights, priorities**alpha)


@pytest.mark.parametrize("n", SIZES)
def test_updates_reach_the_root(n: int) -> None:
    priorities = random_priorities(n)
    sampler = PrioritizedSampler(priorities, 0.6)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        indices = torch.randint(n, (max(1, n // 4),), generator=generator)
        values = random_priorities(n, seed=2)[indices] * 4  # equal for a repeated index
        sampler.update(indices, values)
        priorities[indices] = values
    agrees(sampler, exact(priorities, 0.6))


def test_one_large_priority_takes_over_and_lets_go() -> None:
    sampler = PrioritizedSampler(torch.ones(20_000), 1.0)
    generator = torch.Generator().manual_seed(0)
    item = torch.tensor([12_345])
    sampler.update(item, torch.tensor([20_000.0 * 99]))
    indices, probabilities = sampler.draw(10_000, generator)
    assert float((indices == item).float().mean()) == pytest.approx(0.99, abs=0.005)
    assert float(probabilities[indices == item][0]) == pytest.approx(0.99, abs=1e-4)
    sampler.update(item, torch.tensor([1.0]))
    indices, probabilities = sampler.draw(10_000, generator)
    assert int((indices == item).sum()) < 10
    torch.testing.assert_close(probabilities, torch.full((10_000,), 1 / 20_000))


def test_items_without_weight_are_never_drawn() -> None:
    priorities = torch.zeros(1000)
    priorities[[3, 500, 998]] = torch.tensor([1.0, 2.0, 3.0])
    indices, _ = PrioritizedSampler(priorities, 1.0).draw(20_000, torch.Generator().manual_seed(0))
    assert indices.unique().tolist() == [3, 500, 998]


def test_the_last_item_is_not_favoured() -> None:
    """129 items leave 127 empty places behind the last one."""
    indices, _ = PrioritizedSampler(torch.ones(129), 1.0).draw(129_000, torch.Generator().manual_seed(0))
    counts = indices.bincount(minlength=129)
    assert abs(int(counts[-1]) - 1000) < 5 * 1000**0.5


def test_repeated_index_keeps_one_of_its_values_and_a_consistent_tree() -> None:
    sampler = PrioritizedSampler(torch.ones(300), 1.0)
    sampler.update(torch.tensor([7, 7, 7, 290]), torch.tensor([2.0, 3.0, 5.0, 4.0]))
    kept = float(sampler.weights[7])
    assert kept in (2.0, 3.0, 5.0)
    expected = torch.ones(300)
    expected[7], expected[290] = kept, 4.0
    agrees(sampler, exact(expected, 1.0))


def test_generator_alone_decides() -> None:
    sampler = PrioritizedSampler(random_priorities(1000), 0.7)
    torch.manual_seed(1)
    one = sampler.draw(100, torch.Generator().manual_seed(5))
    torch.manual_seed(2)
    same = sampler.draw(100, torch.Generator().manual_seed(5))
    other = sampler.draw(100, torch.Generator().manual_seed(6))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])
    generator = torch.Generator().manual_seed(5)
    sampler.draw(100, generator)
    assert not torch.equal(sampler.draw(100, generator)[0], one[0])


def test_priorities_that_are_given_are_not_changed() -> None:
    priorities = torch.ones(10)
    sampler = PrioritizedSampler(priorities, 1.0)
    sampler.update(torch.tensor([0]), torch.tensor([9.0]))
    assert priorities.tolist() == [1.0] * 10


# ---------------------------------------------------------------- items that have not been seen


def test_unseen_items_stand_at_the_highest_priority_of_the_others() -> None:
    """Of 300 items in three groups, also after the highest has risen and has fallen."""
    priorities = torch.full((300,), torch.inf)
    sampler = PrioritizedSampler(priorities, 0.7)
    agrees(sampler, torch.full((300,), 1 / 300, dtype=torch.float64))  # nothing is known: uniform
    for item, priority, highest in ((5, 1e-6, 1e-6), (200, 4e4, 4e4), (299, 3.0, 4e4), (200, 0.5, 3.0)):
        sampler.update(torch.tensor([item]), torch.tensor([priority]))
        priorities[item] = priority
        known = torch.where(priorities.isinf(), highest, priorities)
        agrees(sampler, exact(known, 0.7))
        torch.testing.assert_close(sampler.weights, known**0.7)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_all_items_are_seen_within_little_more_than_a_pass(scale: float) -> None:
    """Squared errors of a heavy tail, small or large. A fixed priority of 100 left 38 % unseen after 15 passes."""
    n, batch = 17_000, 128
    generator = torch.Generator().manual_seed(0)
    priorities = (scale * torch.randn(n, generator=generator).mul(1.5).exp()) ** 2
    sampler, unseen = PrioritizedSampler(torch.full((n,), torch.inf), 0.7), torch.ones(n, dtype=torch.bool)
    for step in range(15 * n // batch):
        indices, _ = sampler.draw(batch, generator)
        sampler.update(indices, priorities[indices])
        unseen[indices] = False
        if step == int(1.2 * n / batch):
            assert float(unseen.float().mean()) < 0.01
    assert not unseen.any()


def test_priorities_are_the_whole_state() -> None:
    priorities = torch.full((1000,), torch.inf)
    sampler, generator = PrioritizedSampler(priorities, 0.7), torch.Generator().manual_seed(0)
    for _ in range(10):
        indices, _ = sampler.draw(64, generator)
        values = random_priorities(1000)[indices]
        sampler.update(indices, values)
        priorities[indices] = values
    again = PrioritizedSampler(priorities, 0.7)
    for drawn, resumed in zip(
        sampler.draw(64, torch.Generator().manual_seed(1)),
        again.draw(64, torch.Generator().manual_seed(1)),
        strict=True,
    ):
        assert torch.equal(drawn, resumed)
