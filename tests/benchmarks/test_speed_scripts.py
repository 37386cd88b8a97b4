"""The two timing scripts run, check what they time, and write their files. No times are tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ld_agents import BC, LDCQ, OfflineDataset
from timing import latency, speed

TINY_SPEED = [
    "--steps=800",
    "--loop-windows=64",
    "--states=2",
    "--candidates=3",
    "--solver-steps=2",
    "--draws=2000",
    "--repetitions=1",
]
TINY_LATENCY = ["--candidates=2", "--envs", "1", "2", "--seconds=0", "--decisions=1"]
TINY_AGENT: dict[str, Any] = {
    "preset": "fast",
    "latent_dim": 3,
    "horizon": 4,
    "exec_horizon": 3,
    "vae_hidden": 8,
    "decoded_steps": 2,
    "denoiser_hidden": 8,
    "denoiser_widths": (8, 4),
    "critic_hidden": 8,
    "critic_latent_hidden": 8,
    "solver_steps": 2,
    "candidates_acting": 5,
}


def tiny_agent() -> LDCQ:
    return LDCQ("MlpPolicy", speed.synthetic_dataset(160), seed=0, device="cpu", **TINY_AGENT)


def test_speed_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main([*TINY_SPEED, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "speed.json").read_text())
    assert [row["name"] for row in result["comparisons"] if row["required"]] == [
        "windows: build all",
        "prioritised sampling",
        "candidate latents",
    ]
    assert result["sizes"]["steps"] == 800
    assert all(row["passed"] for row in result["checks"])
    page = (tmp_path / "speed.md").read_text()
    assert page == speed.table(result)
    assert page in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.json", "speed.md"]


def test_speed_fails_where_the_two_sides_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(data: OfflineDataset, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        observations, actions = data.windows(starts, speed.HORIZON)
        return observations, actions, data.window_rewards(starts, speed.HORIZON) + 1

    monkeypatch.setattr(speed, "gathered_windows", wrong)
    assert speed.main([*TINY_SPEED, "--out", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "speed.json").read_text())
    assert [row["name"] for row in result["checks"] if not row["passed"]] == [
        "windows: numbers that differ in any bit",
    ]


def test_plain_denoiser_is_the_denoiser() -> None:
    network = tiny_agent().policy.denoiser
    x, j, states = torch.randn(6, 3), torch.tensor([1, 2, 3, 50, 100, 200]), torch.randn(6, speed.STATE_DIM)
    torch.testing.assert_close(speed.plain_denoise(network, x, j, states), network(x, j, states))


@pytest.mark.parametrize("arguments", [["--steps=10"], ["--repetitions=0"]])
def test_speed_refuses_sizes_that_measure_nothing(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(arguments)


def test_latency_of_fresh_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert latency.main([*TINY_LATENCY, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "latency.json").read_text())
    rows = result["rows"]
    assert {row["n_envs"] for row in rows} == {1, 2}
    assert {row["sampler"] for row in rows} == {"dpm++2m", "ddim", "ddpm", None}
    assert {row["agent"] for row in rows} == {"LDCQ fast", "LDCQ paper", "BC fast"}
    assert not any(row["trained"] for row in rows)
    assert (tmp_path / "latency.md").read_text() == latency.table(result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latency.json", "latency.md"]


@pytest.mark.parametrize(
    ("make", "class_name", "candidates"),
    [
        (tiny_agent, "LDCQ", 2),
        (lambda: BC("MlpPolicy", speed.synthetic_dataset(160), preset="fast", seed=0, device="cpu"), "BC", None),
    ],
)
def test_latency_of_a_saved_agent(
    tmp_path: Path, make: Callable[[], Any], class_name: str, candidates: int | None
) -> None:
    make().save(tmp_path / "mine.zip")
    arguments = ["--agent", str(tmp_path / "mine.zip"), "--agent-class", class_name, "--out", str(tmp_path)]
    assert latency.main([*TINY_LATENCY, *arguments]) == 0
    rows = json.loads((tmp_path / "latency.json").read_text())["rows"]
    assert [(row["agent"], row["trained"], row["candidates"]) for row in rows[:2]] == [("mine", True, candidates)] * 2


def test_each_timed_decision_is_a_decision() -> None:
    agent = tiny_agent()
    planned = []
    choose_latent = agent.policy.choose_latent

    def counted(states: Tensor, *arguments: Any) -> Tensor:
        planned.append(len(states))
        return choose_latent(states, *arguments)

    agent.policy.choose_latent = counted  # type: ignore[method-assign]
    decisions, cycles = latency.decision_times(agent, n_envs=2, seconds=0.0, at_least=4)
    assert len(decisions) == len(cycles) == 4
    assert planned == [2] * 5
    assert (cycles >= decisions).all()
