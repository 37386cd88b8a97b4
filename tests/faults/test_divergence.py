"""Training that diverges stops, says where, and leaves nothing behind that could be taken for a result."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_files import HOPPER, a_run, write_runs

import report
from conftest import AGENTS, StopAt, Trained, differing, make_agent, saved, weights
from ld_agents import OfflineDataset
from ld_agents.common import divergence
from ld_agents.common.divergence import DivergedError
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.common.staged_training import Losses
from ld_agents.evaluation.rollouts import evaluate

STAGES = [(name, stage) for name, stages in {
    "LDCQ": ("vae", "prior", "q"), "LatentDiffuser": ("vae", "values", "prior", "energy"),
    **dict.fromkeys(("BC", "TD3BC", "ReBRAC", "IQL", "CQL"), ("train",)),
}.items() for stage in stages]  # fmt: skip


def with_rate(agent: OfflineAlgorithm, rate: float, monkeypatch: pytest.MonkeyPatch) -> OfflineAlgorithm:
    """The agent with one learning rate everywhere, whatever its settings allow."""
    optimizer = agent.optimizer
    monkeypatch.setattr(agent, "optimizer", lambda stage, parameters, _: optimizer(stage, parameters, rate))
    monkeypatch.setattr(agent, "set_learning_rate", lambda *_: None)
    return agent


def test_every_agent_fails_at_a_learning_rate_of_1000(
    name: str, dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = with_rate(make_agent(name, dataset), 1e3, monkeypatch)
    where = (
        rf"{type(agent).__name__} diverged in stage (vae|train) (at|by) gradient step \d+.*first bad tensor: \S+ holds"
    )
    with pytest.raises(DivergedError, match=where):
        agent.learn()
    with pytest.raises(DivergedError, match="is not saved"):
        saved(agent)


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_a_loss_that_is_not_a_number_is_told_with_its_place(
    name: str, stage: str, dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(name, dataset)
    steps = getattr(agent, f"train_{stage}" if stage != "train" else "train")

    def one_is_bad() -> Iterator[Losses]:
        for step, losses in enumerate(steps()):
            yield losses | {"extra": torch.tensor(torch.nan if step == 3 else 0.0)}

    monkeypatch.setattr(agent, f"train_{stage}" if stage != "train" else "train", one_is_bad)
    with pytest.raises(DivergedError, match=f"stage {stage} at gradient step 4: extra is nan; first bad tensor: none"):
        agent.learn()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 2e3])
def test_a_bad_weight_is_named_and_the_last_checkpoint_kept(
    name: str, value: float, dataset: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ld_agents.common.staged_training.CHECK_STEPS", 1)
    agent = make_agent(name, dataset).learn(callback=StopAt(3))
    agent.save(tmp_path / "agent")
    good = (tmp_path / "agent.zip").read_bytes()
    bad, parameter = next((n, p) for n, p in agent.policy.named_parameters() if p.requires_grad)
    parameter.data.view(-1)[-1] = value
    with pytest.raises(
        DivergedError, match=rf"first bad tensor: {bad} holds" if abs(value) < 1e9 else "first bad tensor"
    ):
        agent.learn(reset_num_timesteps=False)
    with pytest.raises(DivergedError, match="is not saved"):
        agent.save(tmp_path / "agent")
    assert [path.name for path in tmp_path.iterdir()] == ["agent.zip"]
    assert (tmp_path / "agent.zip").read_bytes() == good


def test_an_optimizer_that_is_not_finite_is_not_saved(dataset: OfflineDataset) -> None:
    """An infinite second moment freezes its weight, and nothing else shows it."""
    agent = make_agent("BC", dataset).learn(callback=StopAt(3))
    state = next(iter(agent._optimizers["train"].state.values()))
    state["exp_avg_sq"].view(-1)[0] = torch.inf
    with pytest.raises(DivergedError, match=r"train\.optimizer\.0\.exp_avg_sq holds inf"):
        saved(agent)


def test_actions_and_observations_that_are_not_finite(name: str, trained: Trained) -> None:
    agent = trained(name)
    with pytest.raises(ValueError, match="The observation holds nan"):
        agent.predict(np.array([0.0, np.nan, 0.0], np.float32))
    for parameter in agent.policy.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"Actions hold nan.*Train it anew"):
        agent.predict(np.zeros(3, np.float32))


class _Constant:
    def __init__(self, action: float) -> None:
        self.action = action

    def predict(self, observation: Any, state: Any = None, **_: Any) -> Any:
        return np.full((len(observation), 2), self.action, np.float32), state


def test_nothing_that_is_not_finite_is_scored() -> None:
    from conftest import BOX, Drift

    class Unpaid(Drift):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, float("nan"), *rest

    with pytest.raises(ValueError, match="an action that is not finite"):
        evaluate(_Constant(np.nan), Drift, 2, seed=0)
    with pytest.raises(ValueError, match="returned the reward nan"):
        evaluate(_Constant(float(BOX.low.max())), Unpaid, 2, seed=0)


def test_checks_change_no_bit_of_training(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    rare = make_agent("BC", dataset).learn()
    monkeypatch.setattr("ld_agents.common.staged_training.CHECK_STEPS", 1)
    assert not differing(weights(rare), weights(make_agent("BC", dataset).learn()))


def test_places() -> None:
    steps = [{"a": torch.tensor(1.0), "b": torch.tensor(x)} for x in (0.0, torch.inf, torch.nan)]
    assert divergence.bad_loss(steps) == (1, "b is inf")
    assert divergence.bad_loss(steps[:1]) is None
    assert divergence.bad_loss([]) is None
    tensors = {"w": torch.tensor([1.0, -5.0]), "n": torch.tensor([1 << 40]), "empty": torch.zeros(0)}
    assert divergence.bad_tensor(tensors) is None
    assert divergence.bad_tensor(tensors, {"w": 5.0}) is None
    assert divergence.bad_tensor(tensors, {"w": 4.9}) == "w holds 5"
    assert divergence.bad_tensor({"x": torch.tensor([1.0, torch.nan, 2.0])}) == "x holds nan"


def test_a_failed_run_is_in_the_tables(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, [a_run("BC", HOPPER, seed) for seed in (0, 1)])
    reason = "DivergedError: LDCQ diverged in stage q at gradient step 4: loss is nan <b>|"
    failed = {"agent": "LDCQ", "dataset": HOPPER, "preset": "fast", "budget": 1.0, "episodes": 4}
    (tmp_path / "failures").mkdir()
    for seed in (0, 1):
        (tmp_path / "failures" / f"{seed}.json").write_text(json.dumps(failed | {"seed": seed, "reason": reason}))
    (tmp_path / "failures" / "damaged.json").write_text("{")
    text = report.build(runs, with_figures=False)
    page = (tmp_path / "tables" / "table.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("|") and "LDCQ" in line]
    assert "| 2 failed |" in row
    assert "| failed |" in row
    assert f"- FAILED: LDCQ on {HOPPER}, seed 1: {reason.replace('<', '&lt;')}" in page
    assert "failed" in text
    # a result that came later counts
    name = next((tmp_path / "runs").iterdir()).name
    (tmp_path / "failures" / "0.json").rename(tmp_path / "failures" / name)
    report.build(runs, with_figures=False)
    assert "| 1 failed |" in (tmp_path / "tables" / "table.md").read_text()


def test_a_stored_agent_that_is_not_finite_is_refused(trained: Trained) -> None:
    from agent_blobs import members, packed
    from safetensors.torch import load, save

    contents = members(saved(trained("BC")))
    tensors = load(contents["weights.safetensors"])
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=f"{name} holds nan"):
        AGENTS["BC"][0].load(io.BytesIO(packed({**contents, "weights.safetensors": save(tensors)})))
