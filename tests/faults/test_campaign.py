"""A bounded share of the campaign: nothing is lost, silently different, hanging, or a traceback."""

from __future__ import annotations

import os

import campaign
import pytest

from ld_agents import OfflineDataset


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills and alarms are POSIX")
@pytest.mark.parametrize(("name", "n"), [("kills", 10), ("models", 60), ("checkpoints", 40), ("run_files", 12)])
def test_share(name: str, n: int, dataset: OfflineDataset) -> None:
    found = list(campaign.CAMPAIGNS[name](n, dataset))
    assert [verdict for verdict in found if verdict not in campaign.SOUND] == []
    assert len(found) == n
    if name != "kills":
        assert len(set(found) - {"same"}) == 1, "most damage is noticed"
