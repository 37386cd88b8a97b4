"""The timing of the baselines runs, its two sides have the same losses, and it can tell when they do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ld_agents.common.offline_algorithm import in_bfloat16
from timing.baselines import BASELINES, PAIRS, Batches, Log, Pair, numpy_arrays, numpy_batches, same_losses
from timing.harness import random_dataset


def test_writes_its_files(tmp_path: Path) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    result = BASELINES.run(BASELINES.quick)
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]
    rows = [(row["name"], row["precision"], row["required"]) for row in result["rows"]]
    assert rows == [
        ("TD3+BC", "float32", 1.3),
        ("TD3+BC", "bfloat16", None),
        ("IQL", "float32", 1.4),
        ("IQL", "bfloat16", None),
        ("CQL", "float32", 1.3),
        ("CQL", "bfloat16", None),
    ]
    assert len(result["checks"]) == 7
    assert all(row["passed"] for row in result["checks"])
    BASELINES.write(result, tmp_path)
    assert BASELINES.problems(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baseline_speed.json", "baseline_speed.md"]


def test_page_gives_steps_per_second() -> None:
    seconds = {"straightforward": [0.02, 0.5, 0.01], "ours": [0.01, 0.02, 0.005]}
    row = {"name": "IQL", "precision": "float32", "seconds": seconds, "ratio": 2.0, "required": 1.4}
    (cells,) = BASELINES.cells({"rows": [row]})
    assert list(cells.values()) == ["IQL", "float32", 50.0, 100.0, 2.0, 1.4]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_slip_on_either_side_is_found(pair: Pair) -> None:
    def slipped(agent: Any, batches: Batches) -> Iterator[Log]:
        with torch.no_grad():
            agent.policy.actor.net[-1].bias.add_(0.5)
        return pair.plain(agent, batches)

    data = random_dataset(3000, 17, 6, 1000)
    assert all(row["passed"] for row in same_losses(pair, data))
    assert not all(row["passed"] for row in same_losses(replace(pair, plain=slipped), data))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_straightforward_steps_move_all_networks(pair: Pair) -> None:
    """The targets by `target_rate` of what the critics have moved, the rest by its optimizer."""
    data = random_dataset(3000, 17, 6, 1000)
    agent = pair.agent(data)
    policy = agent.policy
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    log = [log for _, log in zip(range(2), pair.plain(agent, numpy_batches(numpy_arrays(data), 256)), strict=False)]
    assert all(np.isfinite(list(numbers.values())).all() for numbers in log)
    moved = {name for name, parameter in policy.named_parameters() if not torch.equal(parameter, before[name])}
    unmoved = {name for name in before.keys() - moved if not name.startswith("target_")}
    assert unmoved <= {"log_multiplier"}
    weight = "target_critics.0.net.0.weight"
    online, target = dict(policy.named_parameters()), before[weight]
    step = (online[weight] - target).abs().max() / (online[weight.removeprefix("target_")] - target).abs().max()
    assert 0 < float(step) < 2 * agent.settings.target_rate


def test_batches_hold_the_transitions() -> None:
    data = random_dataset(2500, 17, 6, 1000)
    np.random.seed(0)
    observations, actions, rewards, masks, next_observations = next(numpy_batches(numpy_arrays(data), 500))
    assert [tuple(part.shape) for part in (observations, actions, rewards)] == [(500, 17), (500, 6), (500,)]
    rows = [int((data.observations == observation).all(1).nonzero()) for observation in observations[:20]]
    for i, row in enumerate(rows):
        after = (
            data.observation_rows[2500 + row // 1000]
            if row % 1000 == 999 or row == 2499
            else data.observations[row + 1]
        )
        assert torch.equal(next_observations[i], after)
        assert torch.equal(actions[i], data.actions[row])
        assert rewards[i] == data.rewards[row]
    assert masks.all()


def test_bfloat16_is_restored_and_matters() -> None:
    def products() -> Iterator[torch.Tensor]:
        x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
        yield x @ x
        yield x @ x
        raise RuntimeError

    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, exact, rounded = matmul.fp32_precision, products(), in_bfloat16(products())
    first = next(rounded)
    assert matmul.fp32_precision == before
    error = float((first - next(exact)).abs().max() / first.abs().max())
    # without bfloat16 only the order of summation differs, by a few units in the last place
    assert error < 1e-5 or 1e-4 < error < 1e-2
    assert torch.equal(next(rounded), first)
    with pytest.raises(RuntimeError):
        next(rounded)
    assert matmul.fp32_precision == before
    assert list(in_bfloat16(iter([1, 2]))) == [1, 2]
