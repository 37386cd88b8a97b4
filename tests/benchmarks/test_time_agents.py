"""The command runs, its pages are those of its numbers, and what it compares does the same. No times are tested."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import time_agents
from ld_agents import BC, LDCQ, OfflineDataset
from ld_agents.networks.denoisers import ResidualMLPUNet
from timing import TIMINGS, check_pages, harness, latency, speed
from timing.harness import Timing, random_dataset
from timing.latency import LATENCY
from timing.speed import SPEED

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
    return LDCQ("MlpPolicy", random_dataset(160), seed=0, device="cpu", **TINY_AGENT)


# ---------------------------------------------------------------- harness


def test_variants_take_turns_after_warming_up() -> None:
    now, calls = [0.0], []

    def run(name: str, cost: float) -> Callable[[], None]:
        def work() -> None:
            calls.append(name)
            now[0] += cost * len(calls)

        return work

    seconds = harness.in_turn({"a": run("a", 1), "b": run("b", 10)}, 2, clock=lambda: now[0], warm_up=1)
    assert "".join(calls) == "ab" * 3
    assert seconds == {"a": [3, 5], "b": [40, 60]}


def test_ratio_is_one_of_medians() -> None:
    row = harness.versus("loop", "item", [8.0, 100.0, 9.0], [3.0, 2.0, 1.0], required=4)
    assert row["ratio"] == 4.5
    assert row["seconds"] == {"straightforward": [8.0, 100.0, 9.0], "ours": [3.0, 2.0, 1.0]}


def test_quantiles_in_milliseconds() -> None:
    assert harness.milliseconds([i / 1000 for i in range(101)]) == pytest.approx({"median": 50, "p95": 95})


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.00123456, "1.23 ms"), (12.0, "12 s"), (1234.0, "1,230 s"), (2.5e-8, "25 ns")]
)
def test_durations(seconds: float, expected: str) -> None:
    assert harness.duration([seconds]) == expected


def test_table() -> None:
    rows = [
        {"what": "loop", "ms": 5441.03, "n": 10, "ratio": None, "passed": True},
        {"what": "gather", "ms": 0.0123456, "n": 20, "ratio": 2.0, "passed": False},
    ]
    assert harness.markdown(rows).splitlines() == [
        "| what | ms | n | ratio | passed |",
        "| --- | ---: | ---: | ---: | --- |",
        "| loop | 5,440 | 10 | – | yes |",
        "| gather | 0.0123 | 20 | 2 | NO |",
    ]


def test_timed_settings_are_settings() -> None:
    """A renamed setting must be renamed there, too."""
    presets = ("LDCQ fast", "LatentDiffuser fast", "BC fast", "TD3BC paper", "IQL paper", "CQL paper")
    settings = harness.preset_settings(*presets)
    assert set().union(*settings.values()) == harness.TIMED_SETTINGS
    assert settings["LDCQ fast"]["denoiser_widths"] == list(LDCQ.presets()["fast"].denoiser_widths)


# ---------------------------------------------------------------- pages


def test_quick_run_of_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert time_agents.main(["speed", "--quick", "--repetitions=2", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "speed.json").read_text())
    assert [row["name"] for row in result["rows"] if row["required"]] == [
        "windows: build all",
        "prioritized sampling",
        "candidate latents",
    ]
    assert {len(row["seconds"]["ours"]) for row in result["rows"]} == {2, 6}
    assert result["sizes"]["steps"] == SPEED.quick["steps"]
    assert all(row["passed"] for row in result["checks"])
    page = (tmp_path / "speed.md").read_text()
    assert page in capsys.readouterr().out
    assert result["commit"][:12] in page
    assert "- `LDCQ paper`: latent_dim 16, horizon 30," in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.json", "speed.md"]


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A page with made-up numbers and true settings."""
    versions = {"python": "3", "torch": "2", "numpy": "2"}
    result: dict[str, Any] = {"schema": harness.SCHEMA, "made": "2026-01-02T03:04:05", "commit": "c" * 40, "how": "."}
    result |= {"hardware": {"cpu": "C", "threads": 1, "gpu": None}, "versions": versions, "sizes": {"repetitions": 1}}
    rows = [harness.versus("loop", "item", [4.0], [2.0])]
    SPEED.write(result | {"rows": rows, "settings": harness.preset_settings("LDCQ paper")}, tmp_path)
    return tmp_path


def test_page_is_checked_against_its_numbers(pages: Path) -> None:
    assert SPEED.problems(pages) == []
    source, page = pages / "speed.json", pages / "speed.md"
    page.write_text(page.read_text().replace("| 2 s | 2 |", "| 2 s | 3 |"))
    (problem,) = SPEED.problems(pages)
    assert problem.startswith("speed.md is not the page of speed.json")
    assert "time_agents.py speed --render" in problem
    assert time_agents.main(["speed", "--render", "--out", str(pages)]) == 0
    assert SPEED.problems(pages) == []
    source.write_text(source.read_text().replace('"straightforward": [4.0]', '"straightforward": [5.0]'))
    assert len(SPEED.problems(pages)) == 1


@pytest.mark.parametrize("damage", ["", "[]", '{"schema": 2}', '{"schema": 2, "settings": {"LDCQ huge": {}}}'])
def test_damaged_numbers_are_a_problem(pages: Path, damage: str) -> None:
    (pages / "speed.json").write_text(damage)
    (problem,) = SPEED.problems(pages)
    assert "time_agents.py speed`" in problem
    (pages / "speed.json").unlink()
    assert len(SPEED.problems(pages)) == 1


def test_page_is_checked_against_the_presets(pages: Path) -> None:
    source = pages / "speed.json"
    result = json.loads(source.read_text())
    result["settings"]["LDCQ paper"]["horizon"] = 20
    SPEED.write(result, pages)
    (problem,) = SPEED.problems(pages)
    assert problem.startswith("speed.json: LDCQ paper was measured with horizon 20, now 30: run `python")
    del result["settings"]["LDCQ paper"]["horizon"]
    SPEED.write(result, pages)
    assert "horizon None, now 30" in SPEED.problems(pages)[0]


@pytest.mark.parametrize("timing", TIMINGS, ids=lambda timing: timing.name)
def test_committed_pages_are_those_of_their_numbers(timing: Timing) -> None:
    folder = Path(__file__).resolve().parents[2] / "results"
    result = json.loads((folder / f"{timing.file}.json").read_text())
    assert (folder / f"{timing.file}.md").read_bytes() == timing.page(result).encode()
    commit = re.search(r"at commit ([0-9a-f]{12})(\+changes)? on", timing.page(result))
    assert commit is not None
    assert result["settings"]


def test_check_pages_looks_at_all(tmp_path: Path) -> None:
    assert len(check_pages(tmp_path)) == len(TIMINGS) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ["slowness"],
        ["--quick"],
        ["speed", "--repetitions=0"],
        ["latency", "--agent", "a.zip"],
        ["speed", "--agent", "a.zip", "--out", "b"],
        ["latency", "speed", "--agent", "a.zip", "--out", "b"],
        ["speed", "--latents", "a.zip", "d"],
        ["atomic", "--latents", "a.zip"],
    ],
)
def test_command_refuses_what_makes_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        time_agents.main(arguments)
    assert "error" in capsys.readouterr().err


# ---------------------------------------------------------------- speed


def test_command_fails_where_the_two_sides_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(data: OfflineDataset, starts: Tensor) -> tuple[Tensor, ...]:
        observations, actions = data.windows(starts, speed.HORIZON)
        return observations, actions, data.window_rewards(starts, speed.HORIZON) + 1

    monkeypatch.setattr(speed, "gathered_windows", wrong)
    assert time_agents.main(["speed", "--quick", "--out", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "speed.json").read_text())
    assert [row["name"] for row in result["checks"] if not row["passed"]] == [
        "windows: numbers that differ in any bit",
    ]
    assert "| NO |" in (tmp_path / "speed.md").read_text()


def test_copied_windows_are_the_windows() -> None:
    data = random_dataset(160)
    arrays = data.observations.numpy(), data.actions.numpy(), data.rewards.numpy()
    states, actions, rewards = speed.copied_windows(arrays, [0, 5, 100])
    assert (states.shape, actions.shape, rewards.shape) == ((3, 30, 4), (3, 30, 2), (3, 30))
    torch.testing.assert_close(states[1, 7], data.observations[12])
    torch.testing.assert_close(rewards[2, 29], data.rewards[129])


def test_candidates_with_a_wrong_hoisted_term_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, checks = speed.compare_candidates(2, 3, repetitions=1)
    assert [row["required"] for row in rows] == [20, None]
    assert checks[0]["passed"]
    time_terms = ResidualMLPUNet.time_terms

    def reversed_steps(network: ResidualMLPUNet, j: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Changes nothing where all rows have one step, as in the straightforward version."""
        return time_terms(network, j.flip(0))

    monkeypatch.setattr(ResidualMLPUNet, "time_terms", reversed_steps)
    assert not speed.compare_candidates(2, 3, repetitions=1)[1][0]["passed"]


# ---------------------------------------------------------------- latency


def test_latency_of_fresh_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = LATENCY.run(LATENCY.quick)
    rows = result["rows"]
    assert [row["n_envs"] for row in rows] == [1] * 10 + [2] * 10
    fresh = {(row["agent"], row["sampler"], row["network_calls"], row["candidates"], row["horizon"]) for row in rows}
    horizon = LDCQ.presets()["fast"].horizon
    assert ("LDCQ fast", "dpm++2m", 10, 2, horizon) in fresh
    assert ("LDCQ fast", "ddpm", 200, 2, horizon) in fresh
    assert ("LDCQ fast", None, None, 2, horizon) in fresh
    assert ("LDCQ paper", "dpm++2m", 10, 2, 30) in fresh
    assert ("BC fast", None, None, None, None) in fresh
    LATENCY.write(result, tmp_path)
    assert LATENCY.problems(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latency.json", "latency.md"]


@pytest.mark.parametrize(
    ("make", "candidates"),
    [
        (tiny_agent, 5),
        (lambda: BC("MlpPolicy", random_dataset(160), preset="fast", seed=0, device="cpu"), None),
    ],
)
def test_latency_of_a_saved_agent(tmp_path: Path, make: Callable[[], Any], candidates: int | None) -> None:
    make().save(tmp_path / "mine.zip")
    arguments = ["latency", "--quick", "--agent", str(tmp_path / "mine.zip"), "--out", str(tmp_path)]
    assert time_agents.main(arguments) == 0
    rows = json.loads((tmp_path / "latency.json").read_text())["rows"]
    assert [(row["agent"], row["candidates"]) for row in rows[:2]] == [("mine", candidates)] * 2
    assert LATENCY.problems(tmp_path) == []


def test_each_timed_decision_is_a_decision() -> None:
    agent = tiny_agent()
    planned = []
    choose_latent = agent.policy.choose_latent

    def counted(states: Tensor, *arguments: Any) -> Tensor:
        planned.append(len(states))
        return choose_latent(states, *arguments)

    agent.policy.choose_latent = counted  # type: ignore[method-assign]
    ticks = iter(range(10_000))

    def clock() -> float:
        """A call that decides takes 1000 ticks more."""
        return next(ticks) + 1000.0 * len(planned)

    calls: list[float] = []
    act = latency.turn(agent, 2, calls, clock)
    act()
    assert latency.actions_of_turn(agent) == 12  # at least 10, and three for each decision
    assert calls == [1001, 1, 1] * 4
    act()
    assert len(calls) == 24
    assert planned == [2] * 8
