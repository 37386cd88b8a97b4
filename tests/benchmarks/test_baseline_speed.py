"""The timing script of the baselines runs, its two sides have the same losses, and it can tell when they do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from timing.baseline_speed import PAIRS, NumpyBuffer, Pair, same_losses, synthetic_dataset

from ld_agents.common.offline_algorithm import in_bfloat16
from timing import baseline_speed

TINY = ["--transitions=3000", "--steps=2", "--cql-steps=1", "--repetitions=1"]


def test_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    assert baseline_speed.main([*TINY, "--out", str(tmp_path)]) == 0
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]
    result = json.loads((tmp_path / "baseline_speed.json").read_text())
    rows = [(row["name"], row["precision"], row["required"]) for row in result["comparisons"]]
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
    page = (tmp_path / "baseline_speed.md").read_text()
    assert page == baseline_speed.table(result)
    assert page in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baseline_speed.json", "baseline_speed.md"]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_slip_on_either_side_is_found(pair: Pair) -> None:
    class Slip(pair.plain_class):  # type: ignore[name-defined,misc]
        def restart_targets(self) -> None:
            super().restart_targets()
            baseline_speed.linear_layers(self.actor)[-1].bias.data.add_(0.5)

    data = synthetic_dataset(3000)
    slipped = Pair(pair.name, pair.agent_class, Slip, pair.required, pair.fixed, pair.tolerance)
    assert not all(row["passed"] for row in same_losses(slipped, data))


def test_buffer_holds_the_transitions() -> None:
    data = synthetic_dataset(2500)
    buffer = NumpyBuffer(data)
    np.random.seed(0)
    observations, actions, rewards, next_observations, terminals = buffer.sample(500)
    assert [tuple(part.shape) for part in (observations, actions, rewards)] == [(500, 17), (500, 6), (500, 1)]
    rows = [int((data.observations == observation).all(1).nonzero()) for observation in observations[:20]]
    for i, row in enumerate(rows):
        after = (
            data.observation_rows[2500 + row // 1000]
            if row % 1000 == 999 or row == 2499
            else data.observations[row + 1]
        )
        assert torch.equal(next_observations[i], after)
        assert torch.equal(actions[i], data.actions[row])
    assert not terminals.any()


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


def test_sizes_must_be_positive() -> None:
    with pytest.raises(SystemExit):
        baseline_speed.main(["--steps=0"])
