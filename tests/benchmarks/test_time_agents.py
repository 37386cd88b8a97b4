"""Versions take turns, each in a process; ratios are right, and a page is that of its numbers. No times are tested."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import time_agents
from conftest import TINY_LATENT_DIFFUSER, TINY_LDCQ
from ld_agents import LDCQ
from timing import PAGES, check_pages, pages, speed, worker
from timing.speed import SPEED, THIS, Ask, cells, in_turns, started, tree_at

AGENTS = ("LDCQ", "LatentDiffuser", "BC", "TD3BC", "ReBRAC", "IQL", "CQL")
TINY: dict[str, Any] = {
    "planner_rows": 300,
    "baseline_rows": 200,
    "gradient_steps": {"LDCQ": 40, "LatentDiffuser": 40, "BC": 4},
    "plans": {1: 1, 3: 2},
    "memory": {"BC": [200_000]},
    "overrides": {"LDCQ": TINY_LDCQ, "LatentDiffuser": TINY_LATENT_DIFFUSER, "BC": {"hidden": (8,), "batch_size": 4}},
}
NOTHING = TINY | {"gradient_steps": {}, "memory": {}}  # but the start-up


# ---------------------------------------------------------------- worker


class Clock:
    now = 0.0

    def process_time(self) -> float:
        return self.now


def test_steps_are_timed_without_what_a_stage_does_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, agent = Clock(), SimpleNamespace(stage_steps={"vae": 0, "q": 0})

    def learn(steps: int, callback: Any, log_interval: None) -> None:
        for stage, set_up, step, end in (("vae", 7, 1, 2), ("q", 30, 5, 0)):
            clock.now += set_up
            for i in range(steps // 2):
                clock.now += step + end * (i == steps // 2 - 1)
                agent.stage_steps[stage] += 1
                callback({}, {})

    agent.learn = learn
    monkeypatch.setattr(worker, "time", clock)
    timed = worker.LdAgents.__new__(worker.LdAgents)
    timed.agent = lambda name, rows: agent  # type: ignore[assignment]
    seconds = timed.train("LDCQ", rows=1, steps=8)
    assert seconds == {"gradient step of vae": 1, "gradient step of q": 5, "once, before q": 32}


def test_mean_of_a_step() -> None:
    assert worker.per_step([10.0, 11.0, 13.0, 20.0]) == 1.5
    with pytest.raises(ValueError, match="it takes 3"):
        worker.per_step([1.0, 2.0])


def test_d3rlpy_gets_the_same_networks_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    class Algorithm:
        def fit(self, dataset: list[Any], n_steps: int, callback: Any, **_: Any) -> None:
            made["rows"] = len(dataset[0])
            for step in range(n_steps):
                clock.now += 2
                callback(self, 1, step)

    @dataclass
    class IQLConfig:
        batch_size: int
        actor_encoder_factory: tuple[int, ...]
        critic_encoder_factory: tuple[int, ...]
        value_encoder_factory: tuple[int, ...]
        tau: float = 0.0

        def create(self, device: str) -> Algorithm:
            made["config"] = (*vars(self).values(), device)
            return Algorithm()

    clock = Clock()
    library = SimpleNamespace(
        __version__="2",
        algos=SimpleNamespace(IQLConfig=IQLConfig),
        dataset=SimpleNamespace(MDPDataset=lambda *arrays: arrays),
        logging=SimpleNamespace(NoopAdapterFactory=lambda: None),
        models=SimpleNamespace(VectorEncoderFactory=tuple),
    )
    monkeypatch.setitem(sys.modules, "d3rlpy", library)
    monkeypatch.setattr(worker, "time", clock)
    timed = worker.D3rlpy({}, {"IQL": {"hidden": [8, 9], "critic_hidden": [7], "batch_size": 5}})
    assert timed.about["version"] == "2"
    assert timed.train("IQL", rows=30, steps=6) == {"gradient step": 2}
    assert made == {"rows": 30, "config": (5, (8, 9), (7,), (7,), 0.0, "cpu:0")}
    assert timed.train("ReBRAC", rows=30, steps=6) == {}
    assert not hasattr(timed, "act")


@pytest.fixture
def ask() -> Iterator[Ask]:
    """This tree in a process."""
    with started(THIS, "ld_agents", sys.executable, speed.ROOT) as ask:
        about = ask(overrides=TINY["overrides"], networks={})
        assert about["presets"].keys() == {f"{agent} fast" for agent in (*AGENTS, "LDGC", "GCBC")}
        assert about["presets"]["LDCQ fast"]["horizon"] == LDCQ.presets()["fast"].horizon
        yield ask


def test_a_process_answers_and_outlives_a_failure(ask: Ask) -> None:
    with pytest.raises(SystemExit, match=r"this tree fails at .*'IQ'(.|\n)*has no attribute 'IQ'"):
        ask(do="train", agent="IQ", rows=200, steps=4)
    with pytest.raises(SystemExit, match="it takes 3"):
        ask(do="train", agent="BC", rows=200, steps=2)
    assert ask(do="train", agent="BC", rows=200, steps=4).keys() == {"gradient step"}
    assert ask(do="fly") == {}


def test_a_process_that_ends_is_named() -> None:
    with started("old", "no_library", sys.executable) as ask, pytest.raises(SystemExit, match="old fails at"):
        ask(overrides={}, networks={})
    with started("old", "d3rlpy", "false") as ask, pytest.raises(SystemExit, match=r"old: .* ended with exit code 1"):
        ask(overrides={}, networks={})


# ---------------------------------------------------------------- turns


def test_versions_take_turns_after_warming_up() -> None:
    calls: list[str] = []

    def version(name: str) -> Any:
        def ask(do: str) -> dict[str, float]:
            calls.append(name + do)
            return {"step": len(calls)} if (name, do) != ("c", "2") else {}

        return ask

    rows = in_turns({name: version(name) for name in "abc"}, [("X", {"do": "1"}), ("Y", {"do": "2"})], 2)
    assert calls == ["a1", "b1", "c1"] * 3 + ["a2", "b2", "c2"] * 3
    assert rows == [
        {"what": "X: step", "seconds": {"a": [4, 7], "b": [5, 8], "c": [6, 9]}},
        {"what": "Y: step", "seconds": {"a": [13, 16], "b": [14, 17]}},
    ]


def test_ratio_is_one_of_medians() -> None:
    first = {THIS: [0.003, 0.002, 0.001], "old": [0.008, 0.1, 0.009]}
    rows = [{"what": "plan", "seconds": first}, {"what": "new", "seconds": {THIS: [2.0]}}]
    rows.append({"what": "gone", "seconds": {"old": [3.0]}})
    assert list(cells({"rows": rows})) == [
        {"what": "plan", THIS: "2 ms", "old": "9 ms", "times as fast as old": 4.5},
        {"what": "new", THIS: "2 s", "old": "–", "times as fast as old": None},
        {"what": "gone", THIS: "–", "old": "3 s", "times as fast as old": None},
    ]


def test_other_presets_are_named() -> None:
    now = pages.preset_settings("LDCQ fast", "BC fast")
    assert pages.differences(now, now) == []
    then = now | {"LDCQ fast": now["LDCQ fast"] | {"horizon": 7}, "BC fast": {"batch_size": 256}}
    expected = ["LDCQ fast: horizon was 7, is 30", "BC fast: hidden was None, is [256, 256]"]
    assert pages.differences(then, now) == expected


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose tag `broken` cannot be imported, while `old` and the tree can; it stands in for this one."""
    root = tmp_path / "repository"
    (root / "ld_agents").mkdir(parents=True)

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e", *arguments], check=True)

    git("init", "-q")
    (root / "stable_baselines3.py").touch()  # imported in no time
    texts = {"broken": "raise ImportError('half a version')", "old": "__all__ = []", "new": "__all__ = list()"}
    for tag, text in texts.items():
        (root / "ld_agents" / "__init__.py").write_text(text)
        git("add", ".")
        git("commit", "-qm", tag)
        git("tag", tag)
    monkeypatch.setattr(speed, "ROOT", root)
    return root


def worktrees(root: Path) -> int:
    listed = subprocess.run(["git", "-C", str(root), "worktree", "list"], check=True, capture_output=True, text=True)
    return len(listed.stdout.splitlines())


def test_tree_of_a_commit_goes_when_it_is_not_needed(repository: Path) -> None:
    with tree_at("old") as tree:
        assert (tree / "ld_agents" / "__init__.py").read_text() == "__all__ = []"
        assert worktrees(repository) == 2
    assert not tree.exists()
    assert worktrees(repository) == 1
    with pytest.raises(SystemExit, match="no-such-commit"), tree_at("no-such-commit"):
        pass


def test_versions_beside_each_other(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = speed.measure(["old"], None, 1, tmp_path, NOTHING)
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["start-up: the library", "start-up: Stable-Baselines3 alone"]
    assert all({name: len(s) for name, s in row["seconds"].items()} == {THIS: 1, "old": 1} for row in rows)
    assert "old is commit " in page
    assert worktrees(repository) == 1


def test_a_version_that_fails_is_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"broken fails at (.|\n)*half a version"):
        speed.measure(["old", "broken"], None, 1, tmp_path, NOTHING)
    assert worktrees(repository) == 1
    assert not (tmp_path / "speed.json").exists()


def test_a_part_is_no_page(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        time_agents.main(["--only=start"])
    assert "--out" in capsys.readouterr().err
    speed.measure([], None, 1, tmp_path, TINY, only="start")  # no agent is asked for: these trees have none
    assert "| start-up: the library | " in (tmp_path / "speed.md").read_text()


def test_a_version_from_elsewhere_is_not_timed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a tree lacks the library, an installed one would be timed in its name."""
    (repository / "ld_agents" / "__init__.py").write_text("__all__ = []; __file__ = '/elsewhere'")
    with pytest.raises(SystemExit, match=r"this tree is to be timed from .*, but imports /elsewhere"):
        speed.measure([], None, 1, tmp_path, NOTHING)


# ---------------------------------------------------------------- page


@pytest.mark.slow
def test_this_tree_on_tiny_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SIZES", TINY)
    assert time_agents.main(["--repetitions=1", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    steps = [("LDCQ", ("vae", "prior", "q")), ("LatentDiffuser", ("vae", "values", "prior", "energy"))]
    expected = {f"{agent}: gradient step of {stage}" for agent, stages in steps for stage in stages}
    expected |= {f"{agent}: once, before {stages[-1]}" for agent, stages in steps} | {"BC: gradient step"}
    expected |= {"BC: memory, 200,000 rows"}
    what_of_plans = ("plan", "plan after speed_up", "step of a plan")
    for envs in ("1 environment", "3 environments"):
        expected |= {f"{agent}: {what}, {envs}" for agent, _ in steps for what in what_of_plans}
    assert {row["what"] for row in rows if not row["what"].startswith("start-up")} == expected
    assert all(row["seconds"][THIS][0] > 0 for row in rows if "once" not in row["what"])
    (memory,) = (row["seconds"][THIS][0] for row in rows if "memory" in row["what"])
    assert 1e5 < memory < 3e8  # the arrays have 12 MB
    assert "| BC: memory, 200,000 rows | " in (tmp_path / "speed.md").read_text()
    assert SPEED.problems(tmp_path) == []
    page = (tmp_path / "speed.md").read_text()
    assert "- `LDCQ fast`: latent_dim 16, horizon 30," in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.json", "speed.md"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A page with made-up numbers and true settings."""
    rows = [{"what": "plan", "seconds": {THIS: [2.0], "old": [4.0]}}]
    settings = pages.preset_settings("LDCQ fast")
    SPEED.write(tmp_path, commit="c" * 40, how="CPU time.", rows=rows, sizes={"repetitions": 1}, settings=settings)
    return tmp_path


def test_page_is_checked_against_its_numbers(folder: Path) -> None:
    assert SPEED.problems(folder) == []
    source, page = folder / "speed.json", folder / "speed.md"
    assert f"Measured at commit {'c' * 12} on 20" in page.read_text()
    page.write_text(page.read_text().replace("| 4 s | 2 |", "| 4 s | 3 |"))
    (problem,) = SPEED.problems(folder)
    assert problem == "speed.md is not that of speed.json: run `python benchmarks/time_agents.py --render`"
    SPEED.render(folder)
    assert SPEED.problems(folder) == []
    source.write_text(source.read_text().replace('"old": [4.0]', '"old": [5.0]'))
    assert len(SPEED.problems(folder)) == 1


@pytest.mark.parametrize("damage", ["", "[]", '{"schema": 2}', '{"schema": 2, "settings": {"LDCQ huge": {}}}'])
def test_damaged_numbers_are_a_problem(folder: Path, damage: str) -> None:
    (folder / "speed.json").write_text(damage)
    (problem,) = SPEED.problems(folder)
    assert "time_agents.py --against COMMIT --d3rlpy PYTHON`" in problem
    (folder / "speed.json").unlink()
    assert len(SPEED.problems(folder)) == 1


def test_page_is_checked_against_the_presets(folder: Path) -> None:
    source = folder / "speed.json"
    result = json.loads(source.read_text())
    result["settings"]["LDCQ fast"]["horizon"] = 20
    source.write_text(json.dumps(result))
    SPEED.render(folder)
    (problem,) = SPEED.problems(folder)
    assert problem.startswith("speed.json: LDCQ fast: horizon was 20, is 30: run `")


def test_committed_pages_hold() -> None:
    assert check_pages() == []


def test_check_pages_looks_at_all(tmp_path: Path) -> None:
    assert len(check_pages(tmp_path)) == len(PAGES) == 2


def test_pages_are_rendered_anew(tmp_path: Path) -> None:
    for page in PAGES:
        (tmp_path / f"{page.file}.json").write_bytes((speed.ROOT / "results" / f"{page.file}.json").read_bytes())
    assert len(check_pages(tmp_path)) == 2
    assert time_agents.main(["--render", "--out", str(tmp_path)]) == 0
    assert check_pages(tmp_path) == []


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.00123456, "1.23 ms"), (12.0, "12 s"), (1234.0, "1,230 s"), (2.5e-8, "25 ns")]
)
def test_durations(seconds: float, expected: str) -> None:
    assert pages.duration([seconds]) == expected


def test_table() -> None:
    rows = [
        {"what": "loop", "ms": 5441.03, "n": 10, "ratio": None},
        {"what": "gather", "ms": 0.0123456, "n": 20, "ratio": 2.0},
    ]
    assert pages.markdown(rows).splitlines() == [
        "| what | ms | n | ratio |",
        "| --- | ---: | ---: | ---: |",
        "| loop | 5,440 | 10 | – |",
        "| gather | 0.0123 | 20 | 2 |",
    ]


def test_timed_settings_are_settings() -> None:
    """A renamed setting must be renamed there, too."""
    settings = pages.preset_settings(*(f"{agent} fast" for agent in AGENTS))
    assert set().union(*settings.values()) == pages.TIMED_SETTINGS
    assert settings["LDCQ fast"]["denoiser_widths"] == list(LDCQ.presets()["fast"].denoiser_widths)


@pytest.mark.parametrize(
    "arguments",
    [
        ["speed"],
        ["--repetitions=0"],
        ["--latents", "a.zip"],
        ["--latents", "a.zip", "d", "--against", "HEAD"],
        ["--latents", "a.zip", "d", "--d3rlpy", "python"],
        ["--latents", "a.zip", "d", "--render"],
    ],
)
def test_command_refuses_what_makes_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        time_agents.main(arguments)
    assert "error" in capsys.readouterr().err
