"""From a training that diverges on purpose to the cell of the table, and what looking for it costs."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from run_files import HOPPER, a_run, write_runs
from test_divergence import with_rate

import report
import run_one
import run_suite
import specs
from conftest import make_agent, record
from ld_agents import BC, TD3BC, OfflineDataset
from ld_agents.common.divergence import DivergedError
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.evaluation.eval_env import EvalEnvSpec


def test_a_run_that_diverges_is_failed_in_the_table(
    name: str, dataset: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = with_rate(make_agent(name, dataset), 1e3, monkeypatch)
    run = specs.Run(type(agent).__name__, HOPPER, 0, "fast", 1.0, 4)
    info = DatasetInfo(HOPPER, eval_env=EvalEnvSpec("Pendulum-v1", {}, 10), replay_check={"passed": True})
    fresh = {"total_steps": agent.full_budget, "learn_seconds": 0.0, "curve": [], "losses": {}, "resumes": 0}
    data = record()
    data.info = info
    monkeypatch.setattr(run_one, "load_dataset", lambda _: data)
    monkeypatch.setattr(run_one, "start_or_resume", lambda *_: (agent, fresh))
    monkeypatch.setattr(run_one.Progress, "_add_curve_point", lambda self, _: self.record["curve"].append(0))
    write_runs(tmp_path, [a_run("TD3BC" if name == "BC" else "BC", HOPPER)])

    files = specs.Files(tmp_path, run.name)
    files.log.parent.mkdir()
    with pytest.raises(DivergedError, match=r"diverged in stage (vae|train) (at|by) gradient step \d+") as caught:
        run_one.run_and_write(run, tmp_path)
    files.log.write_text("".join(traceback.format_exception(caught.value)))  # as the process of a run leaves it
    reason = run_suite.why_failed(1, files)
    assert reason is not None
    assert reason.startswith(f"ld_agents.common.divergence.DivergedError: {run.agent} diverged in stage")
    run_suite.keep_failure(run, tmp_path, reason)

    assert not files.result.exists()
    assert not files.model.exists()
    page = built(tmp_path)
    (row,) = [line for line in page.splitlines() if line.startswith("|") and f"| {run.agent} |" in line]
    assert "| 1 failed |" in row
    assert f"- FAILED: {run.agent} on {HOPPER}, seed 0: " in page


def built(folder: Path) -> str:
    report.build(folder, with_figures=False)
    return (folder / "tables" / "table.md").read_text()


@pytest.mark.parametrize("agent_class", [BC, TD3BC])
def test_checks_cost_less_than_one_percent(
    agent_class: type[OfflineAlgorithm], dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the CPU time of the cheapest agents' gradient steps, so that a busy machine counts for nothing."""
    agent = agent_class("MlpPolicy", dataset, preset="fast", seed=0, device="cpu")
    check, spent = agent._check_step, []

    def timed(*arguments: Any) -> None:
        began = time.process_time()
        check(*arguments)
        spent.append(time.process_time() - began)

    agent.learn(100, log_interval=None)  # the first steps of a process are slow
    monkeypatch.setattr(agent, "_check_step", timed)
    began = time.process_time()
    agent.learn(300, log_interval=None, reset_num_timesteps=False)
    assert len(spent) == 3
    assert sum(spent) < 0.01 * (time.process_time() - began)
