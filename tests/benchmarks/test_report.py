"""The report, from run files that are made up here so that every number in it is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import report
from ld_agents.evaluation.scores import REFERENCE_SCORES, MeasuredScore
from reporting import cells, intervals

UMAZE = "ld-agents/pointmaze/umaze-v0"
LARGE = "ld-agents/pointmaze/large-v0"
ANTMAZE = "ld-agents/antmaze/umaze-v0"
PEN = "ld-agents/adroit/pen-human-v0"
MINIMUM, MAXIMUM = 23.85, 161.86


def a_run(agent: str = "LDCQ", on: str = UMAZE, seed: int = 0, level: float = 100.0, **changes: Any) -> dict[str, Any]:
    """A run file whose mean return is `level`; on each episode first contact is at step 101 of 300."""
    returns = [level - 10, level, level + 10, level]
    curve = [
        {"gradient_steps": 100 * k, "seconds": 6.0 * k, "returns": [level * k / 5] * 2, "first_contact": [101, 101]}
        for k in range(1, 6)
    ]
    run: dict[str, Any] = {
        "schema": 1,
        "agent": agent,
        "preset": "fast",
        "dataset": {
            "id": on,
            "hash": "ab" * 32,
            "provenance": "regenerated",
            "replay_check": {"passed": True},
            "reference_scores": [0.0, 1.0],
            "controller": {
                "controller_return": MAXIMUM,
                "controller_first_contact_return": MAXIMUM,
                "random_return": MINIMUM,
                "random_first_contact_return": MINIMUM,
                "episodes": 100,
            },
        },
        "seed": seed,
        "budget_share": 1.0,
        "gradient_steps": 500,
        "protocol": {"episodes": 4, "episode_steps": 300},
        "returns": returns,
        "lengths": [300] * 4,
        "first_contact": [101] * 4,
        "successes": [True] * 4,
        "curve": curve,
        "seconds": {"total": 90.0},
        "predict_ms": {"per_action": 0.25},
        "peak_memory_mb": 700.0,
        "plans": None,
        "hardware": {"cpu": "a cpu", "threads": 1, "gpu": None},
        "versions": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "stable-baselines3": "2.9.2",
            "gymnasium-robotics": "1.4.2",
            "mujoco": "3.11.0",
        },
        "commit": "0123456789abcdef",
    }
    for key, value in changes.items():
        run[key] = {**run[key], **value} if isinstance(value, dict) and run[key] else value
    return run


def a_plan(horizon: int = 20) -> dict[str, Any]:
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    paths = [[[0.5 + 0.02 * t * np.cos(a), 0.02 * t * np.sin(a)] for t in range(horizon + 1)] for a in angles]
    start = {"position": [0.5, 0.0], "paths": paths, "scores": list(np.cos(angles)), "chosen": 0}
    maze = [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    route = [[0.5, 0.0], [-0.5, 0.0]]
    return {
        "maze_map": maze,
        "cell_size": 1.0,
        "goal": [-0.5, 0.0],
        "horizon": horizon,
        "starts": [{**start, "route": route}],
    }


def write_runs(folder: Path, runs: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(runs):
        (folder / f"{number:03d}.json").write_text(json.dumps(run))
    return folder


def three_agents(datasets: tuple[str, ...] = (UMAZE,), seeds: int = 3) -> list[dict[str, Any]]:
    levels = {"LDCQ": 150.0, "LDCQ[prior=gaussian]": 120.0, "BC": 30.0}
    return [
        a_run(agent, dataset, seed, level + 5 * seed)
        for agent, level in levels.items()
        for dataset in datasets
        for seed in range(seeds)
    ]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "REPS", 200)


def score(value: float) -> float:
    return 100 * (value - MINIMUM) / (MAXIMUM - MINIMUM)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_under_both_protocols(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", three_agents())
    report.build(runs, tmp_path, with_figures=False)
    rows = {(row["agent"], row["protocol"]): row for row in rows_of(tmp_path / "tables" / "table.csv")}
    env = rows["LDCQ", "env"]
    assert float(env["mean"]) == pytest.approx(score(155), abs=1e-3)
    assert score(149.9) < float(env["low"]) < float(env["mean"]) < float(env["high"]) < score(160.1)
    # First contact at step 101 of 300 credits 200 steps.
    assert float(rows["LDCQ", "first contact"]["mean"]) == pytest.approx(score(200), abs=1e-3)
    assert (env["unit"], env["seeds"], env["episodes"]) == ("D4RL score", "0 1 2", "4")
    assert float(rows["controller", "env"]["mean"]) == pytest.approx(100)
    assert float(rows["random", "env"]["mean"]) == pytest.approx(0)


def test_interval_is_a_bootstrap_over_seeds() -> None:
    scores = np.array([10.0, 20.0, 35.0, 60.0, 61.0])
    mean, low, high = intervals.mean_interval(scores)
    samples = np.random.default_rng(0).choice(scores, (20_000, 5)).mean(1)
    assert mean == pytest.approx(scores.mean())
    assert (low, high) == pytest.approx(tuple(np.percentile(samples, [2.5, 97.5])), abs=4)


def test_same_files_in_same_tables_out(tmp_path: Path) -> None:
    runs = three_agents((UMAZE, LARGE))
    outputs = []
    for name, order in (("a", runs), ("b", runs[::-1])):
        folder = write_runs(tmp_path / name / "runs", order)
        np.random.seed(len(outputs))
        report.build(folder, tmp_path / name, with_figures=False)
        tables = sorted((tmp_path / name / "tables").iterdir())
        assert [path.name for path in tables] == ["aggregates.csv", "aggregates.md", "table.csv", "table.md"]
        outputs.append([path.read_bytes() for path in tables])
    assert outputs[0] == outputs[1]


def test_global_random_numbers_are_left_alone() -> None:
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    intervals.aggregates(np.ones((2, 2)))
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_unreadable_files_are_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_runs(tmp_path / "runs", three_agents())
    (folder / "broken.json").write_text('{"schema": 1, "agent"')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "old.json").write_text(json.dumps({**a_run(), "schema": 0}))
    without = a_run()
    del without["dataset"]["hash"]
    (folder / "without.json").write_text(json.dumps(without))
    (folder / "short.json").write_text(json.dumps({**a_run(), "returns": [1.0]}))
    (folder / "nan.json").write_text(json.dumps({**a_run(), "returns": [1.0, float("nan"), 1.0, 1.0]}))
    report.build(folder, tmp_path, with_figures=False)
    errors = capsys.readouterr().err
    assert "skipped broken.json: Expecting" in errors
    assert "skipped list.json: " in errors
    assert "skipped old.json: schema 0, this report reads schema 1" in errors
    assert "skipped without.json: 'hash' is missing" in errors
    assert "skipped short.json: 'returns' has 1 entries for 4 episodes" in errors
    assert "skipped nan.json: 'returns' has an entry that is not finite" in errors
    assert len(cells.read_runs(folder)[0]) == 9


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished run"):
        report.build(tmp_path, tmp_path)


def test_aggregates(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "runs", three_agents((UMAZE, LARGE)))
    report.build(folder, tmp_path, with_figures=False)
    rows = rows_of(tmp_path / "tables" / "aggregates.csv")
    values = {(row["protocol"], row["agent"], row["other_agent"], row["metric"]): row for row in rows}
    large = [100 * (level - 6.7) / (273.99 - 6.7) for level in (150, 155, 160)]
    umaze = [score(level) for level in (150, 155, 160)]
    mean = values["env", "LDCQ", "", "mean"]
    assert float(mean["value"]) == pytest.approx(np.mean(large + umaze), abs=1e-2)
    assert float(mean["low"]) < float(mean["value"]) < float(mean["high"])
    gap = values["env", "LDCQ", "", "optimality gap"]
    assert float(gap["value"]) == pytest.approx(np.mean([max(0, 100 - s) for s in large + umaze]), abs=1e-2)
    assert float(values["env", "LDCQ", "BC", "probability of improvement"]["value"]) == 1
    # The same first contacts in every run.
    assert float(values["first contact", "BC", "LDCQ", "probability of improvement"]["value"]) == 0.5


def test_missing_run_stops_the_aggregates_but_not_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        run
        for run in three_agents((UMAZE, LARGE))
        if not (run["agent"] == "BC" and run["dataset"]["id"] == LARGE and run["seed"] == 1)
    ]
    with pytest.raises(ValueError, match=rf"missing: BC on {LARGE}, seeds 1"):
        report.aggregate(cells.make_cells(runs))
    report.build(write_runs(tmp_path / "runs", runs), tmp_path, with_figures=False)
    assert f"BC on {LARGE}, seeds 1" in (tmp_path / "tables" / "aggregates.md").read_text()
    assert f"BC on {LARGE}, seeds 1" in capsys.readouterr().err
    assert "| BC |" in (tmp_path / "tables" / "table.md").read_text()


def test_raw_returns_without_replay_check() -> None:
    reasons = {"no replay check is stored": None, "the simulator failed the replay check": {"passed": False}}
    for reason, check in reasons.items():
        (cell,) = cells.make_cells([a_run(seed=seed, dataset={"replay_check": check}) for seed in (0, 1)])
        assert cell.estimates["env"][0] == pytest.approx(100.0)
        text = report.table_markdown([cell])
        assert "Mean raw return" in text
        assert f"- {UMAZE}: raw returns, because {reason}" in text
        assert report.score_matrices([cell], "env") == {}


def test_raw_returns_where_the_rewards_are_not_d4rl_s() -> None:
    (cell,) = cells.make_cells([a_run(on=PEN, dataset={"reference_scores": None})])
    assert not cell.normalised
    assert "because no reference scores are known for its rewards" in report.table_markdown([cell])


def test_success_beside_returns(tmp_path: Path) -> None:
    """AntMaze, Adroit and Kitchen: rates of success, and no first contact even where each reward is a success."""
    antmaze = {"controller": None, "reference_scores": [0.0, 1.0]}
    once = {"returns": [1.0, 0.0, 0.0, 1.0], "first_contact": [5, None, None, 300]}
    runs = [
        a_run("BC", ANTMAZE, 0, dataset=antmaze, successes=[True, False, False, True], **once),
        a_run("BC", ANTMAZE, 1, dataset=antmaze, successes=[True, False, False, False], **once),
        a_run("BC", PEN, 0, successes=[True, True, True, False]),
        a_run("BC", "ld-agents/locomotion/hopper-medium-v0", 0, successes=[None] * 4),
    ]
    made = cells.make_cells(runs)
    assert all(cell.protocols == ("env",) for cell in made)
    rates = {cell.dataset: cell.success for cell in made}
    assert rates["ld-agents/locomotion/hopper-medium-v0"] is None
    assert rates[PEN] is not None
    assert rates[PEN][0] == 75
    assert rates[ANTMAZE] is not None
    assert rates[ANTMAZE][0] == pytest.approx(37.5)
    report.build(write_runs(tmp_path / "runs", runs), tmp_path, with_figures=False)
    text = (tmp_path / "tables" / "table.md").read_text()
    assert "| env | success % | ms per action |" in text
    assert "| 50.0 [50.0, 50.0] | 37.5 [25.0, 50.0] | 0.25 |" in text
    rows = {(row["dataset"], row["agent"], row["protocol"]): row for row in rows_of(tmp_path / "tables" / "table.csv")}
    success = rows[ANTMAZE, "BC", "success"]
    assert (success["mean"], success["unit"]) == ("37.500", "%")
    assert "success %" in report.table_terminal(made)
    # In point mazes the first contact says it, and the tables stay as they are.
    assert "success" not in report.table_markdown(cells.make_cells(three_agents()))


@pytest.mark.parametrize("made_by", ["stand-in", "regenerated"])
def test_every_table_says_how_the_data_were_made(tmp_path: Path, made_by: str) -> None:
    data = {
        "provenance": made_by,
        "reference_scores": [96.0, 3077.0],
        "controller": {"expert_return": 1.0, "episodes": 9},
    }
    runs = [a_run(agent, PEN, seed, dataset=data) for agent in ("BC", "IQL") for seed in (0, 1)]
    table = report.build(write_runs(tmp_path / "runs", runs), tmp_path, with_figures=False)
    assert [line.count(made_by) for line in table.splitlines() if line.startswith("adroit")] == [1, 1, 1]
    text = (tmp_path / "tables" / "table.md").read_text()
    assert text.count(f"| {PEN} | {made_by} |") == 3
    assert {row["provenance"] for row in rows_of(tmp_path / "tables" / "table.csv")} == {made_by}
    assert f"Over {PEN} ({made_by});" in (tmp_path / "tables" / "aggregates.md").read_text()
    assert {row["data"] for row in rows_of(tmp_path / "tables" / "aggregates.csv")} == {f"{PEN} ({made_by})"}
    # Published numbers stand beside data of the same recipe only.
    rows = [row for row in rows_of(tmp_path / "tables" / "table.csv") if row["seeds"] and row["protocol"] == "env"]
    published = {row["agent"]: row["published_score"] for row in rows}
    assert published == {"BC": "71.03", "IQL": "78.49"} if made_by == "regenerated" else not any(published.values())


def test_measured_policies_stand_beside_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {
        "pen": {
            "expert": MeasuredScore(3076.8331017826877, 5.0, 0.7, 100, "e"),
            "random": MeasuredScore(96.262799, 1.0, 0.0, 50, "e"),
        }
    }
    monkeypatch.setattr(cells, "MEASURED_SCORES", measured)
    stored_none = {"controller": None}
    report.build(write_runs(tmp_path / "runs", [a_run(on=PEN, dataset=stored_none)]), tmp_path, with_figures=False)
    rows = {(row["agent"], row["protocol"]): row for row in rows_of(tmp_path / "tables" / "table.csv")}
    assert [rows[name, "env"]["mean"] for name in ("expert", "random")] == ["100.000", "0.000"]
    assert [rows[name, "success"]["mean"] for name in ("expert", "random")] == ["70.000", "0.000"]
    assert [rows[name, "env"]["episodes"] for name in ("expert", "random")] == ["100", "50"]
    text = (tmp_path / "tables" / "table.md").read_text()
    assert "| *expert* | – | – | – | 100 | 100.0 | 70.0 |" in text
    # Data that carry their own measurements show those alone, and data that are not ours show none.
    (own,) = cells.make_cells([a_run(on=PEN)])
    assert sorted(reference.name for reference in cells.references([own])) == ["controller", "random"]
    (hub,) = cells.make_cells([a_run(on="D4RL/pen/human-v2", dataset=stored_none)])
    assert cells.references([hub]) == []


def test_defects_of_the_reference_scores_are_told(tmp_path: Path) -> None:
    shown = cells.make_cells([a_run(), a_run(on=LARGE), a_run(on=PEN, dataset={"replay_check": None})])
    notes = [line for line in report.notes(shown) if line.startswith("D4RL's scale")]
    # Two defects of the mazes, told once for both; none of pen, whose returns are raw.
    assert [line.partition(": ")[0] for line in notes] == [f"D4RL's scale on {LARGE}, {UMAZE}"] * 2
    assert {line.partition(": ")[2] for line in notes} == set(REFERENCE_SCORES[UMAZE].known_defects)


def test_stored_reference_scores_of_other_data() -> None:
    (cell,) = cells.make_cells([a_run(dataset={"id": "mine/own-v0", "reference_scores": [50.0, 150.0]})])
    assert cell.estimates["env"][0] == pytest.approx(50.0)


def test_published_numbers_have_their_own_columns(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "runs", [*three_agents(), a_run("my_module:BC"), a_run("BC[steps=1]")])
    report.build(folder, tmp_path, with_figures=False)
    rows = rows_of(tmp_path / "tables" / "table.csv")
    with_published = [row for row in rows if row["published_score"]]
    assert [(row["agent"], row["protocol"], row["published_score"]) for row in with_published] == [
        ("BC", "env", "0.36")
    ]
    assert with_published[0]["published_source"] == "github corl-team/CORL README.md"
    assert float(with_published[0]["mean"]) == pytest.approx(score(35), abs=1e-3)
    text = (tmp_path / "tables" / "table.md").read_text()
    assert "0.36 ± 8.69 | CORL, last checkpoint (maze2d-umaze-v1)" in text


def test_another_simulator_than_that_of_the_replay_check_is_told() -> None:
    checks = [{"passed": True, "versions": {"mujoco": version}} for version in ("3.11.0", "3.3.0")]
    same, other = (report.notes(cells.make_cells([a_run(dataset={"replay_check": check})])) for check in checks)
    assert f"{UMAZE}: replayed under mujoco 3.3.0, evaluated under 3.11.0" in other
    assert not any("replayed under" in line for line in same)


def test_the_papers_own_numbers_stand_beside_ours() -> None:
    large = "ld-agents/antmaze/large-diverse-v0"
    text = report.table_markdown(cells.make_cells([a_run(on=large)]))
    assert "| 57.7 ± 1.8 | the paper, second-hand (antmaze-large-diverse-v2) |" in text
    file = a_run("BC", "maze2d-umaze-v1", dataset={"provenance": "d4rl-file"})
    assert "0.36 ± 8.69 | CORL" in report.table_markdown(cells.make_cells([file]))
    stand_in = a_run(on=large, dataset={"provenance": "stand-in"})
    assert "57.7" not in report.table_markdown(cells.make_cells([stand_in]))


def test_mixtures_are_flagged() -> None:
    runs = [
        a_run(seed=0),
        a_run(seed=1, dataset={"hash": "cd" * 32}),
        a_run("BC", versions={"mujoco": "3.3.0"}, commit="fedcba9876543210+changes", budget_share=0.5),
    ]
    text = "\n".join(report.notes(cells.make_cells(runs)))
    assert "rows mix data (hash): abababababab, cdcdcdcdcdcd" in text
    assert "rows mix simulators: mujoco 3.11.0, gymnasium-robotics 1.4.2, mujoco 3.3.0" in text
    assert "rows mix commits: 0123456789ab, fedcba987654+changes" in text
    assert "rows mix budgets: 100 %, 50 %" in text
    assert "1 seed, so there is no interval: BC on ld-agents/pointmaze/umaze-v0" in text
    assert "1 seed, so there is no interval: all rows" in report.notes(cells.make_cells([a_run(), a_run("BC")]))
    assert all(line.startswith("D4RL's scale") for line in report.notes(cells.make_cells(three_agents())))


def test_budgets_of_one_agent_are_rows_of_their_own() -> None:
    runs = [a_run(budget_share=share, seed=seed) for share in (1.0, 0.25) for seed in (0, 1)]
    assert {cell.label for cell in cells.make_cells(runs)} == {"LDCQ (fast, 100 %)", "LDCQ (fast, 25 %)"}


def test_first_contact_only_where_reward_means_success() -> None:
    (cell,) = cells.make_cells([a_run(successes=[None] * 4)])
    assert cell.protocols == ("env",)
    (cell,) = cells.make_cells([a_run(successes=[False] * 4)])
    assert cell.protocols == ("env",)
    (cell,) = cells.make_cells([a_run(successes=[False] * 4, first_contact=[None] * 4)])
    assert cell.protocols == ("env", "first contact")


def test_terminal_table_fits() -> None:
    name = "a_module_with_a_long_name:AnAgentWithALongName[setting=value,another=value]"
    table = report.table_terminal(cells.make_cells([*three_agents((UMAZE, LARGE)), a_run(name)]))
    assert max(len(line) for line in table.splitlines()) <= 120
    assert "another=value]" in table
    assert "(controller)" in table


def test_paste_into_readme(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    begin, end = report.readme_markers(tmp_path)
    readme.write_text(f"before\n\n{begin}\nold\n{end}\n\nafter\n")
    folder = write_runs(tmp_path / "runs", three_agents())
    for _ in range(2):
        report.build(folder, tmp_path, readme, with_figures=False)
        text = readme.read_text()
        assert text.startswith(f"before\n\n{begin}\nMean D4RL score")
        assert text.endswith(f"\n{end}\n\nafter\n")
        assert "old" not in text
    readme.write_text("no markers")
    with pytest.raises(SystemExit, match="lacks the two lines"):
        report.build(folder, tmp_path, readme, with_figures=False)


@pytest.mark.slow
def test_figures(tmp_path: Path) -> None:
    runs = three_agents((UMAZE, LARGE))
    for run in runs:
        if run["agent"] != "BC" and run["seed"] == 0:
            run["plans"] = a_plan(20 if run["agent"] == "LDCQ" else 24)  # agents plan over horizons of their own
    report.build(write_runs(tmp_path / "runs", runs), tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    mazes = {f"plans_ld-agents-pointmaze-{maze}-v0.png" for maze in ("umaze", "large")}
    assert names == {
        "scores.png",
        "curves_env.png",
        "curves_first_contact.png",
        "intervals.png",
        "profiles.png",
        *mazes,
    }
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000


def test_figures_of_a_single_raw_run(tmp_path: Path) -> None:
    run = a_run(dataset={"replay_check": None, "controller": None}, successes=[None] * 4, curve=[])
    report.build(write_runs(tmp_path / "runs", [run]), tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"scores.png"}


def test_score_matrix_with_a_hole_is_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        intervals.aggregates(np.array([[1.0, np.nan]]))
