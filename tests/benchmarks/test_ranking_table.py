"""The page of `rank_policies.py`: rank correlations by hand."""

from __future__ import annotations

import json
from pathlib import Path

from reporting import ranking_table


def test_rank_correlation(tmp_path: Path) -> None:
    """Ranks of values 1 2 3 4 beside ranks of scores 2 1 3 4: Spearman is 1 - 6 * 2 / (4 * 15) = 0.8."""
    values, scores = (1.0, 2.5, 30.0, 400.0), (20.0, 10.0, 55.0, 90.0)
    policies = [
        {"agent": "<b>", "gradient_steps": 1000 * k, "score": score, "value": value, "td_error": 0.5}
        for k, (value, score) in enumerate(zip(values, scores, strict=True))
    ]
    record = {"dataset": "a/b-v0", "episodes": 20, "seed": 101, "estimate": {"gradient_steps": 3000}}
    (tmp_path / "a.json").write_text(json.dumps(record | {"policies": policies}))
    page = ranking_table.page(tmp_path)
    assert "over 4 policies: 0.80. The policy with the highest value scores 90.0, the best one 90.0." in page
    rows = [line for line in page.splitlines() if line.startswith("| &lt;b>")]
    assert rows[0] == "| &lt;b> | 3,000 | 400.000 | 0.500 | 90.0 |"
    assert len(rows) == 4
    assert ranking_table.page(tmp_path / "empty") == ranking_table.HEAD
