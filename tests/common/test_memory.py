"""Room for what a stage keeps: told of before training, and in a file where memory has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conftest import make_agent, weights
from ld_agents import OfflineDataset
from ld_agents.common import memory, staged_training

CPU = torch.device("cpu")


def test_free_memory_of_this_machine() -> None:
    assert memory.free_memory(CPU) > 1e6


def test_latents_go_to_a_file_when_memory_is_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    assert memory.half_precision_bytes(100, 8, 4, device=CPU) == 6400
    monkeypatch.setattr(memory, "free_memory", lambda device: 12_799)
    assert memory.half_precision_bytes(100, 8, 4, device=CPU) == 0
    stored = memory.half_precision(100, 8, 4, device=CPU)
    assert stored.dtype == torch.float16
    stored[3] = 2.5
    assert float(stored[[3, 4]].float().sum()) == 2.5 * 32
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 6399}))
    with pytest.raises(ValueError, match="q_windows"):
        memory.half_precision_bytes(100, 8, 4, device=CPU)


@pytest.mark.parametrize("name", ["LDCQ", "LatentDiffuser"])
def test_an_agent_learns_the_same_from_a_file(
    name: str, dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = weights(make_agent(name, dataset).learn())
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    outside = weights(make_agent(name, dataset).learn())
    assert all(torch.equal(inside[key], outside[key]) for key in inside)


@pytest.mark.parametrize(("name", "stage"), [("LDCQ", "q"), ("LatentDiffuser", "prior")])
def test_a_stage_that_does_not_fit_is_told_of_first(
    name: str, stage: str, dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(name, dataset)
    monkeypatch.setattr(staged_training, "free_memory", lambda device: 100)
    with pytest.raises(ValueError, match=f'The stage "{stage}" keeps'):
        agent.learn()
    assert agent.num_timesteps == 0


@pytest.mark.parametrize(
    ("name", "setting", "stage"), [("LDCQ", "q_windows", "q"), ("LatentDiffuser", "prior_windows", "prior")]
)
def test_a_stage_needs_no_more_than_there_are_data(
    name: str, setting: str, stage: str, dataset: OfflineDataset
) -> None:
    def needs(rows: int) -> int:
        agent = make_agent(name, dataset, **{setting: rows})
        agent._plan_budget(None, reset=True)
        agent._prepare_data(dataset)
        return next(each.needs() for each in agent.stages() if each.name == stage)

    rows = dataset.n_steps
    assert needs(100 * rows) == needs(rows)
    assert needs(rows // 2) == pytest.approx(needs(rows) / 2, rel=0.01)
