"""Noise that is a function of keys: distribution, independence, golden numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ld_agents.common.keyed_noise import keyed_normal, observation_keys, told_apart

# ---------------------------------------------------------------- keyed noise


@pytest.fixture(scope="module")
def observations() -> Tensor:
    return torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))


def test_keyed_noise_is_standard_normal(observations: Tensor) -> None:
    keys = observation_keys(observations, seed=0, call=0)
    x = keyed_normal(keys, (10, 7))
    assert x.shape == (2000, 10, 7)
    assert x.dtype == torch.float32
    n = x.numel()
    assert float(x.mean()) == pytest.approx(0, abs=4 / n**0.5)
    assert float(x.var()) == pytest.approx(1, abs=4 * (2 / n) ** 0.5)
    assert float((x**3).mean()) == pytest.approx(0, abs=4 * (15 / n) ** 0.5)
    assert float((x**4).mean()) == pytest.approx(3, abs=4 * (96 / n) ** 0.5)
    uniform = 0.5 * (1 + torch.erf(x.double() / 2**0.5))
    counts = torch.histc(uniform, 50, 0, 1)
    chi_square = float(((counts - n / 50) ** 2 / (n / 50)).sum())
    assert chi_square < 49 + 4 * (2 * 49) ** 0.5
    # every position of the block, over the keys
    assert float(x.mean(0).abs().max()) < 5 / 2000**0.5
    assert float((x.var(0) - 1).abs().max()) < 5 * (2 / 2000) ** 0.5


def correlation(x: Tensor, y: Tensor) -> float:
    x, y = x.flatten().double(), y.flatten().double()
    return float(((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std()))


def test_keyed_noise_is_independent_of_key_position_stream_seed_and_call(observations: Tensor) -> None:
    shape = (6, 5)
    x = keyed_normal(observation_keys(observations, 3, 5), shape)
    others = {
        "neighboring key": x.roll(1, 0),
        "neighboring position": x.roll(1, 2),
        "cosine and sine half": x.roll(3, 1),
        "seed": keyed_normal(observation_keys(observations, 4, 5), shape),
        "call": keyed_normal(observation_keys(observations, 3, 6), shape),
        "stream": keyed_normal(observation_keys(observations, 3, 5), shape, stream=1),
        "far stream": keyed_normal(observation_keys(observations, 3, 5), shape, stream=1 << 17),
        "columns": keyed_normal(observation_keys(observations.flip(1), 3, 5), shape),
    }
    for name, other in others.items():
        assert abs(correlation(x, other)) < 4.5 / x.numel() ** 0.5, name
    squares = x**2
    assert abs(correlation(squares, others["cosine and sine half"] ** 2)) < 4.5 / x.numel() ** 0.5


def test_seed_and_call_are_not_interchangeable(observations: Tensor) -> None:
    """The first call of seed 1 must not draw what the second call of seed 0 draws."""
    assert not torch.equal(observation_keys(observations, 0, 1), observation_keys(observations, 1, 0))


def test_keyed_noise_does_not_depend_on_the_batch(observations: Tensor) -> None:
    whole = keyed_normal(observation_keys(observations, 1, 2), (3, 3))
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(keyed_normal(observation_keys(observations[order], 1, 2), (3, 3)), whole[order])
    assert torch.equal(keyed_normal(observation_keys(observations[7:8], 1, 2), (3, 3)), whole[7:8])
    # a longer block of the same key is another draw, but an odd one is fine
    assert keyed_normal(observation_keys(observations[:2], 1, 2), (5,)).shape == (2, 5)


def test_keys_of_many_similar_observations_are_different() -> None:
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 60)] * 3)
    keys = observation_keys(grid, 0, 0)
    assert len(keys.unique()) == len(grid)
    zero = torch.zeros(1, 3)
    assert torch.equal(observation_keys(zero, 0, 0), observation_keys(-zero, 0, 0))


def test_golden_numbers_of_the_keyed_noise() -> None:
    """The same on every machine: a saved agent goes on acting as it did."""
    expected = [[1.153392, -0.707082, 1.310593], [-2.746561, 0.852373, 0.180633]]
    torch.testing.assert_close(keyed_normal(torch.tensor([1, -5]), (3,), stream=4), torch.tensor(expected))


def test_equal_keys_are_told_apart_and_the_others_stay() -> None:
    keys = torch.tensor([5, 7, 5, -3, 5, 7])
    apart = told_apart(keys)
    assert len(apart.unique()) == 6
    assert (apart == keys).tolist() == [True, True, False, True, False, False]
    assert told_apart(keys[:2]).tolist() == [5, 7]
    numbers = keyed_normal(told_apart(torch.full((300,), 77)), (9,)).flatten()
    assert len(numbers.unique()) > 0.99 * len(numbers), "copies share no number, not even in other places"
    noise = keyed_normal(told_apart(torch.zeros(4000, dtype=torch.int64)), (2,))
    assert abs(float(torch.corrcoef(noise.T)[0, 1])) < 0.06
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.04
