"""The simulated schedule of a suite on many machines, against schedules by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reporting.schedule import ideal, makespan, page, simulated


@pytest.mark.parametrize(
    ("durations", "workers", "costs", "expected"),
    [
        ([3, 1, 2], 1, {}, 6),
        ([3, 1, 2], 2, {}, 3),
        ([1, 2, 3], 2, {}, 4),  # the longest run last: one worker has nothing left to do
        ([3, 1, 2], 2, {"later": 0.5}, 4.0),  # 1.5 and 2.5 in a row
        ([3, 1, 2], 2, {"first": 5}, 8),
        ([1, 1, 1], 5, {"submit": 0.25}, 1.5),  # the third starts after half a second
    ],
)
def test_free_workers_take_the_next_run(
    durations: list[float], workers: int, costs: dict[str, float], expected: float
) -> None:
    assert makespan(durations, workers, **costs) == expected


def test_the_ideal_knows_the_longest_run() -> None:
    assert ideal([4, 1, 1], 2) == 4
    assert ideal([4, 4, 4], 2) == 6


def test_long_runs_first_never_take_more_than_a_third_longer_than_ideal() -> None:
    """Graham's bound of 4/3 for longest first; a random order only keeps 2."""
    found = simulated([10.0, 100.0, 400.0], first=0.0, later=0.0, submit=0.0)
    assert list(found["workers"]) == ["10", "10", "100", "100", "1,000", "1,000"]
    efficiency = [float(cell.removesuffix(" %")) for cell in found["efficiency"]]
    assert all(share >= 75 for share in efficiency[1::2])
    assert all(share >= 50 for share in efficiency)
    assert efficiency[4] == efficiency[5] == 100, "each run has a worker of its own"
    with_overhead = simulated([10.0, 100.0, 400.0], first=60.0, later=40.0, submit=0.0)
    assert with_overhead["efficiency"].iloc[5] == "80.0 %"


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    ray, here = [12.0, 12.5, 24.0, 24.5, 36.0, 36.5], [10.5, 10.5, 21.0, 21.0, 31.5, 31.5]
    measured = [{"seconds": 10.0, "runs": 6, "places": 2, "ray": ray, "here": here, "load": 1.0}]
    record = {"commit": "0123456789abcdef", "ray": "2.60.0", "hardware": {"cpu": "a CPU", "cores": 2}}
    record |= {"checkpoint_bytes": 4 << 20, "model_bytes": 2 << 20, "submit_seconds": 0.004}
    record |= {"measured": measured, "durations": [60.0, 600.0]}
    (tmp_path / "ray.json").write_text(json.dumps(record))
    text = page(tmp_path / "ray.json")
    assert "| 10 s | 2 | 2.25 s | 0.50 s | 2.00 s | 0.50 s | 36.5 s | 31.5 s | 2.8 % | 1.0 |" in text
    assert "each worker is there\nafter 1.8 s, each run takes 1.50 s longer" in text
    assert "within 4.0 ms" in text
