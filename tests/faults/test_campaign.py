"""A bounded share of the campaign: nothing is lost, silently different, executed, hanging, or a traceback."""

from __future__ import annotations

import sys

import campaign
import pytest

from ld_agents import OfflineDataset

SHARES = {
    "kills": 10,
    "models": 60,
    "checkpoints": 40,
    "run_files": 12,
    "datasets": 285,
    "full_disk": 20,
    "read_only": 6,
}


@pytest.mark.skipif(sys.platform != "linux", reason="processes and limits of Linux")
@pytest.mark.parametrize("name", SHARES)
def test_share(name: str, dataset: OfflineDataset) -> None:
    n = SHARES[name]
    found = campaign.Child(lambda tell: campaign.CAMPAIGNS[name](n, dataset, tell)).verdicts()
    assert [verdict for verdict in found if verdict not in campaign.SOUND] == []
    assert len(found) == n
    assert found.count("refused") + found.count("fell back") > (n / 3 if name != "kills" else -1), "damage is noticed"
