"""The report, from run files that are made up here so that every number in it is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rliable import metrics
from run_files import ANTMAZE, HOPPER, LARGE, PEN, UMAZE, a_plan, a_run, rows_of, score, three_agents, write_runs

import report
from ld_agents.evaluation.eval_env import DRAWN_GOALS
from ld_agents.evaluation.scores import REFERENCE_SCORES
from reporting import figures, intervals, tables
from reporting.aggregates import aggregate, score_matrices
from reporting.runs import alike, frame, measures, read_runs
from suites import SUITES


def markdown(runs: list[dict[str, Any]]) -> str:
    return tables.table_markdown(tables.score_tables(frame(runs))[1], frame(runs))


def mean_of(runs: list[dict[str, Any]], protocol: str = "env") -> float:
    """The only agent's mean."""
    table, _ = tables.score_tables(frame(runs))
    (mean,) = table[~table["is_policy"] & (table["protocol"] == protocol)]["mean"]
    return float(mean)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "REPS", 200)


def test_scores_under_both_protocols(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, three_agents())
    report.build(runs, with_figures=False)
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
        folder = write_runs(tmp_path / name, order)
        np.random.seed(len(outputs))
        report.build(folder, with_figures=False)
        tables = sorted((tmp_path / name / "tables").iterdir())
        assert [path.name for path in tables] == [
            "aggregates.csv", "aggregates.md", "table.csv", "table.md", "where_we_lose.md",
        ]  # fmt: skip
        outputs.append([path.read_bytes() for path in tables])
    assert outputs[0] == outputs[1]


def test_global_random_numbers_are_left_alone() -> None:
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    intervals.aggregates(np.ones((2, 2)))
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_unreadable_files_are_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_runs(tmp_path, three_agents()) / "runs"
    (folder / "broken.json").write_text('{"schema": 1, "agent"')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "old.json").write_text(json.dumps({**a_run(), "schema": 0}))
    without = a_run()
    del without["dataset"]["hash"]
    (folder / "without.json").write_text(json.dumps(without))
    (folder / "short.json").write_text(json.dumps({**a_run(), "returns": [1.0]}))
    (folder / "nan.json").write_text(json.dumps({**a_run(), "returns": [1.0, float("nan"), 1.0, 1.0]}))
    report.build(tmp_path, with_figures=False)
    errors = capsys.readouterr().err
    assert "skipped broken.json: Expecting" in errors
    assert "skipped list.json: " in errors
    assert "skipped old.json: schema 0, this report reads schema 1" in errors
    assert "skipped without.json: 'hash' is missing" in errors
    assert "skipped short.json: 'returns' has 1 entries for 4 episodes" in errors
    assert "skipped nan.json: 'returns' has an entry that is not finite" in errors
    assert len(read_runs(folder)[0]) == 9


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished run"):
        report.build(tmp_path)


def test_aggregates(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, three_agents((UMAZE, LARGE)))
    report.build(folder, with_figures=False)
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


def test_aggregates_are_over_what_all_agents_have() -> None:
    runs = [
        *three_agents((UMAZE, LARGE)),
        *(a_run("IQL", UMAZE, seed, 60) for seed in range(3)),
        *(a_run("BC", "ld-agents/pointmaze/medium-v0", seed, 60) for seed in range(3)),
    ]
    env, contact = aggregate(frame(runs))
    # Three agents on two mazes are more than four on one.
    assert env.datasets == contact.datasets == (f"{LARGE} (regenerated)", f"{UMAZE} (regenerated)")
    assert {label: matrix.shape for label, matrix in env.matrices.items()} == dict.fromkeys(
        ("BC", "LDCQ", "LDCQ[prior=gaussian]"), (3, 2)
    )
    np.testing.assert_allclose(100 * env.matrices["LDCQ"][:, 1], [score(150), score(155), score(160)])
    assert env.left_out == ("ld-agents/pointmaze/medium-v0 (regenerated)", f"IQL (no run on {LARGE})")
    # Six agents on one maze are as many cells as three on two, which are kept; seven are more.
    more = [a_run(name, UMAZE, 0) for name in ("CQL", "TD3BC", "ReBRAC")]
    assert aggregate(frame([*runs, *more[:2]]))[0].datasets == env.datasets
    assert aggregate(frame([*runs, *more]))[0].datasets == (f"{UMAZE} (regenerated)",)


def test_agents_that_are_wanted_together_choose_the_datasets() -> None:
    wanted = ("LDCQ", "LatentDiffuser")
    umaze = [a_run(name, UMAZE, 0, 60) for name in ("IQL", "CQL", "TD3BC", "ReBRAC")]
    runs = [*three_agents((UMAZE, LARGE), seeds=1), *umaze, *umaze]
    # Where the two have no common runs, the largest block decides: seven agents on one maze, three on both.
    for apart in ([], [a_run("LatentDiffuser", PEN, 0, 50)]):
        group = score_matrices(frame([*runs, *apart]), "env", wanted)
        assert group is not None
        assert (group.datasets, len(group.matrices)) == ((f"{UMAZE} (regenerated)",), 7)
    runs += [a_run("LatentDiffuser", on, 0, 50) for on in (LARGE, "ld-agents/pointmaze/medium-v0")]
    group = score_matrices(frame(runs), "env", wanted)
    assert group is not None
    assert group.datasets == (f"{LARGE} (regenerated)",)
    assert set(group.matrices) == {"LDCQ", "LDCQ[prior=gaussian]", "BC", "LatentDiffuser"}
    assert f"IQL (no run on {LARGE})" in group.left_out
    unasked = score_matrices(frame(runs), "env")
    assert unasked is not None
    assert unasked.datasets == (f"{UMAZE} (regenerated)",)


def test_a_missing_run_costs_its_seed_alone(tmp_path: Path) -> None:
    runs = [
        run
        for run in three_agents((UMAZE, LARGE))
        if not (run["agent"] == "BC" and run["dataset"]["id"] == LARGE and run["seed"] == 1)
    ]
    env = aggregate(frame(runs))[0]
    assert env.left_out == ("BC's seed 1 (not on all of them)",)
    np.testing.assert_allclose(100 * env.matrices["BC"][:, 1], [score(30), score(40)])
    report.build(write_runs(tmp_path, runs), with_figures=False)
    text = (tmp_path / "tables" / "aggregates.md").read_text()
    assert f"- `env`: over {LARGE} (regenerated), {UMAZE} (regenerated). Left out: BC's seed 1" in text
    assert "| env | BC | 2 |" in text
    assert "| BC |" in (tmp_path / "tables" / "table.md").read_text()
    # An agent whose datasets have no seed in common is left out, and says so.
    apart = [a_run("IQL", UMAZE, 0), a_run("IQL", LARGE, 1)]
    assert "IQL (no common seed)" in aggregate(frame(runs + apart))[0].left_out


def test_fast_metrics_are_rliable_s() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 1), (5, 2), (4, 3)):
        first, second = rng.integers(0, 5, shape) / 3, rng.integers(0, 5, (3, shape[1])) / 3
        assert intervals._iqm(first) == pytest.approx(metrics.aggregate_iqm(first), abs=1e-12)
        expected = metrics.probability_of_improvement(first, second)
        assert intervals._improvement(first, second) == pytest.approx(expected, abs=1e-12)


def test_raw_returns_without_replay_check() -> None:
    reasons = {"no replay check is stored": None, "the simulator failed the replay check": {"passed": False}}
    for reason, check in reasons.items():
        runs = [a_run(seed=seed, dataset={"replay_check": check}) for seed in (0, 1)]
        assert mean_of(runs) == pytest.approx(100.0)
        assert "Mean raw return" in markdown(runs)
        assert f"- {UMAZE}: raw returns, because {reason}" in markdown(runs)
        assert score_matrices(frame(runs), "env") is None


def test_raw_returns_where_the_rewards_are_not_d4rl_s() -> None:
    runs = [a_run(on=PEN, dataset={"reference_scores": None})]
    assert list(frame(runs)["unit"]) == ["raw return"]
    assert "because no reference scores are known for its rewards" in markdown(runs)


def test_success_beside_returns(tmp_path: Path) -> None:
    """AntMaze, Adroit and Kitchen: rates of success, and no first contact even where each reward is a success."""
    antmaze = {"controller": None, "reference_scores": [0.0, 1.0]}
    once = {"returns": [1.0, 0.0, 0.0, 1.0], "first_contact": [5, None, None, 300]}
    runs = [
        a_run("BC", ANTMAZE, 0, dataset=antmaze, successes=[True, False, False, True], **once),
        a_run("BC", ANTMAZE, 1, dataset=antmaze, successes=[True, False, False, False], **once),
        a_run("BC", PEN, 0, successes=[True, True, True, False]),
        a_run("BC", HOPPER, 0, successes=[None] * 4),
    ]
    made = frame(runs)
    shown = {str(dataset): measures(cell) for dataset, cell in made.groupby("dataset")}
    assert shown == {PEN: ["env", "success"], ANTMAZE: ["env", "success"], HOPPER: ["env"]}
    assert mean_of(runs[2:3], "success") == 75
    assert mean_of(runs[:2], "success") == pytest.approx(37.5)
    report.build(write_runs(tmp_path, runs), with_figures=False)
    text = (tmp_path / "tables" / "table.md").read_text()
    assert "| env | success % | ms per action |" in text
    assert "| 50.0 (50.0 to 50.0) | 37.5 (25.0 to 50.0) | 0.25 |" in text
    rows = {(row["dataset"], row["agent"], row["protocol"]): row for row in rows_of(tmp_path / "tables" / "table.csv")}
    success = rows[ANTMAZE, "BC", "success"]
    assert (success["mean"], success["unit"]) == ("37.500", "%")
    assert "success %" in tables.table_terminal(tables.score_tables(made)[1], made)
    # In point mazes the first contact says it, and the tables stay as they are.
    assert "success" not in markdown(three_agents())


@pytest.mark.parametrize("made_by", ["stand-in", "regenerated"])
def test_every_table_says_how_the_data_were_made(tmp_path: Path, made_by: str) -> None:
    data = {
        "provenance": made_by,
        "reference_scores": [96.0, 3077.0],
        "controller": {"expert_return": 1.0, "episodes": 9},
    }
    runs = [a_run(agent, PEN, seed, dataset=data) for agent in ("BC", "IQL") for seed in (0, 1)]
    table = report.build(write_runs(tmp_path, runs), with_figures=False)
    assert [line.count(made_by) for line in table.splitlines() if line.startswith("adroit")] == [1, 1, 1]
    text = (tmp_path / "tables" / "table.md").read_text()
    assert text.count(f"| {PEN} | {made_by} |") == 3
    assert {row["provenance"] for row in rows_of(tmp_path / "tables" / "table.csv")} == {made_by}
    assert f"over {PEN} ({made_by});" in (tmp_path / "tables" / "aggregates.md").read_text()
    assert {row["data"] for row in rows_of(tmp_path / "tables" / "aggregates.csv")} == {f"{PEN} ({made_by})"}
    # Published numbers stand beside data of the same recipe only.
    rows = [row for row in rows_of(tmp_path / "tables" / "table.csv") if row["seeds"] and row["protocol"] == "env"]
    published = {row["agent"]: row["published_score"] for row in rows}
    assert published == {"BC": "71.03", "IQL": "78.49"} if made_by == "regenerated" else not any(published.values())


def test_defects_of_the_reference_scores_are_told(tmp_path: Path) -> None:
    shown = frame([a_run(), a_run(on=LARGE), a_run(on=PEN, dataset={"replay_check": None})])
    notes = [line for line in tables.notes(shown) if line.startswith("D4RL's scale")]
    # Two defects of the mazes, told once for both; none of pen, whose returns are raw.
    assert [line.partition(": ")[0] for line in notes] == [f"D4RL's scale on {LARGE}, {UMAZE}"] * 2
    assert {line.partition(": ")[2] for line in notes} == set(REFERENCE_SCORES[UMAZE].known_defects)


def test_stored_reference_scores_of_other_data() -> None:
    assert mean_of([a_run(dataset={"id": "mine/own-v0", "reference_scores": [50.0, 150.0]})]) == pytest.approx(50.0)


def test_another_simulator_than_that_of_the_replay_check_is_told() -> None:
    checks = [{"passed": True, "versions": {"mujoco": version}} for version in ("3.11.0", "3.3.0")]
    same, other = (tables.notes(frame([a_run(dataset={"replay_check": check})])) for check in checks)
    assert f"{UMAZE}: replayed under mujoco 3.3.0, evaluated under 3.11.0" in other
    assert not any("replayed under" in line for line in same)


def test_minutes_beside_other_work_are_told() -> None:
    def lines(wall: float, cpu: float | None, **changes: Any) -> list[str]:
        run = a_run(seconds={"learn": wall, "learn_cpu": cpu}, **changes)
        return [line for line in tables.notes(frame([run, a_run("BC")])) if "processor time" in line]

    (line,) = lines(3600.0, 1260.0)
    assert line.endswith("21.0 minutes of processor time in 60.0 minutes")
    assert line.startswith("LDCQ")
    assert not lines(3600.0, 3400.0)
    assert not lines(50.0, 10.0), "starting up and reading data, of a training of seconds"
    assert not lines(3600.0, None), "runs of older versions do not tell"
    assert not lines(3600.0, 1260.0, hardware={"gpu": "a GPU"}), "where the processor waits for the GPU"


def test_mixtures_are_flagged() -> None:
    runs = [
        a_run(seed=0),
        a_run(seed=1, dataset={"hash": "cd" * 32}),
        a_run("BC", versions={"mujoco": "3.3.0"}, commit="fedcba9876543210+changes", budget_share=0.5),
    ]
    text = "\n".join(tables.notes(frame(runs)))
    assert "rows mix data (hash): abababababab, cdcdcdcdcdcd" in text
    assert "rows mix simulators: mujoco 3.11.0, gymnasium-robotics 1.4.2, mujoco 3.3.0" in text
    assert "rows mix commits: 0123456789ab, fedcba987654+changes" in text
    assert "rows mix budgets: 100 %, 50 %" in text
    assert "1 seed, so there is no interval: BC on ld-agents/pointmaze/umaze-v0" in text
    assert "1 seed, so there is no interval: all rows" in tables.notes(frame([a_run(), a_run("BC")]))
    assert all(line.startswith("D4RL's scale") for line in tables.notes(frame(three_agents())))


def test_seeds_of_other_settings_are_no_seeds_of_one_agent() -> None:
    today = {"horizon": 30, "exec_horizon": 5, "noise_scale": 1.5}
    older = {"horizon": 30, "exec_horizon": 10, "gone": True}
    runs = [a_run(seed=0, settings=today), a_run(seed=1, settings=older), a_run("BC", seed=0)]
    (mixed, changed) = (line for line in tables.notes(frame(runs)) if "AGENT" in line or "preset" in line)
    assert mixed == f"LDCQ on {UMAZE}: NOT ONE AGENT: its seeds differ in exec_horizon; run them again"
    assert changed == f"LDCQ on {UMAZE}: learned with an older preset: exec_horizon 10 (now 5)"
    # The README pools suites: of each agent there, the settings and the data of the newest run.
    dated = [run | {"finished": f"2026-11-0{day}"} for day, run in enumerate(runs, 1)]
    other_data = a_run(seed=2, settings=older, dataset={"hash": "cd" * 32}) | {"finished": "2026-10-01"}
    kept = alike([*dated, other_data, a_run(seed=3, settings={"horizon": 30, "exec_horizon": 10})])
    assert {(run["agent"], run["seed"]) for run in kept} == {("LDCQ", 1), ("LDCQ", 3), ("BC", 0)}


def test_the_agent_of_a_run_file_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_by_a_file.py").write_text("A = None")
    monkeypatch.syspath_prepend(tmp_path)
    tables.notes(frame([a_run("named_by_a_file:A", settings={"x": 1})]))
    assert "named_by_a_file" not in sys.modules


def test_runs_that_diverged_are_told() -> None:
    grown, sound = [[1, 0.01], [2, 5.0], [3, 3.3e8]], [[1, 0.0001], [2, 2000.0]]
    runs = [a_run(seed=0, losses={"train/loss": sound}), a_run(seed=1, losses={"train/loss": grown, "empty": []})]
    told = [line for line in tables.notes(frame(runs)) if "diverged" in line]
    assert told == [f"LDCQ on {UMAZE}: diverged with seed 1: its loss ended at 3.3e+08"]


def test_every_code_that_a_run_learned_with_is_told() -> None:
    part = {"commit": "f" * 40, "versions": {}}
    assert frame([a_run(learned_before=[part])])["commit"].iloc[0] == "ffffffffffff and 0123456789ab"


def test_what_has_not_run_yet_is_told(tmp_path: Path) -> None:
    def line(folder: str, runs: list[dict[str, Any]]) -> list[str]:
        report.build(write_runs(tmp_path / folder, runs), with_figures=False)
        text = (tmp_path / folder / "tables" / "table.md").read_text()
        return [line for line in text.splitlines() if line.startswith("- no run yet on")]

    suite = SUITES["images"]
    runs = [a_run(agent, suite.datasets[0]) for agent in suite.agents]
    assert line("images", runs) == []
    assert line("images/images", runs[:1]) == [f"- no run yet on {suite.datasets[0]} (BC)"]
    assert line("images/images/images", [a_run()]) == [f"- no run yet on {suite.datasets[0]} (all agents)"]
    assert line("mine", runs[:1]) == [], "it is no suite of ours"


def test_failed_runs_count_in_no_aggregate_and_are_told_there(tmp_path: Path) -> None:
    failed = {"agent": "CQL", "dataset": UMAZE, "seed": 0, "preset": "fast", "reason": "it diverged"}
    (tmp_path / "failures").mkdir()
    for seed in (0, 1):
        (tmp_path / "failures" / f"{seed}.json").write_text(json.dumps(failed | {"seed": seed}))
    report.build(write_runs(tmp_path, three_agents()), with_figures=False)
    assert f"- Failed runs count nowhere: 2 of CQL on {UMAZE}.\n" in (tmp_path / "tables" / "aggregates.md").read_text()


def test_shares_of_one_have_three_decimals_and_equal_episodes_no_error() -> None:
    raw = {"reference_scores": None, "controller": None}
    runs = [a_run(on=PEN, dataset=raw, returns=[1.0, 0.0, 0.0, 0.0]), a_run("BC", PEN, dataset=raw, returns=[0.0] * 4)]
    texts = tables.score_tables(frame(runs))[1]
    assert list(texts["env"])[:2] == ["0.250 ± 0.250", "0.000 (all episodes)"]
    several = [a_run(on=PEN, seed=seed, dataset=raw, returns=[1.0, 0.0, 0.0, seed]) for seed in (0, 1)]
    assert list(tables.score_tables(frame(several))[1]["env"])[:1] == ["0.375 (0.250 to 0.500)"]


def test_budgets_of_one_agent_are_rows_of_their_own() -> None:
    runs = [a_run(budget_share=share, seed=seed) for share in (1.0, 0.25) for seed in (0, 1)]
    assert set(frame(runs)["label"]) == {"LDCQ (fast, 100 %)", "LDCQ (fast, 25 %)"}


def test_first_contact_only_where_reward_means_success() -> None:
    assert measures(frame([a_run(successes=[None] * 4)])) == ["env"]
    assert measures(frame([a_run(successes=[False] * 4)])) == ["env", "success"]
    assert measures(frame([a_run(successes=[False] * 4, first_contact=[None] * 4)])) == ["env", "first contact"]


def test_rates_of_success_of_drawn_goals_have_no_first_contact() -> None:
    """An episode ends there: what is paid from then on is nothing."""
    data = {"name": f"{LARGE}{DRAWN_GOALS}cells", "reference_scores": None}
    solved, contacts = [True, True, False, True], [101, 101, None, 101]
    runs = frame([a_run(dataset=data, returns=[1.0, 1.0, 0.0, 1.0], successes=solved, first_contact=contacts)])
    assert measures(runs) == ["env", "success"]
    assert (runs["env"][0], runs["success"][0], runs["unit"][0]) == (0.75, 75.0, "raw return")


def test_terminal_table_fits() -> None:
    name = "a_module_with_a_long_name:AnAgentWithALongName[setting=value,another=value]"
    made = frame([*three_agents((UMAZE, LARGE)), a_run(name)])
    table = tables.table_terminal(tables.score_tables(made)[1], made)
    assert max(len(line) for line in table.splitlines()) <= 120
    assert "another=value]" in table
    assert "(controller)" in table


@pytest.mark.slow
def test_figures(tmp_path: Path) -> None:
    runs = three_agents((UMAZE, LARGE))
    for run in runs:
        if run["agent"] != "BC" and run["seed"] == 0:
            run["plans"] = a_plan(20 if run["agent"] == "LDCQ" else 24)  # agents plan over horizons of their own
    report.build(write_runs(tmp_path, runs))
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
    report.build(write_runs(tmp_path, [run]))
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"scores.png"}


def test_score_matrix_with_a_hole_is_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        intervals.aggregates(np.array([[1.0, np.nan]]))


def test_every_agent_of_the_suites_has_a_look_of_its_own() -> None:
    # the studies' figures are drawn by dataset
    agents = {agent for name, suite in SUITES.items() if name not in ("smoke", "studies") for agent in suite.agents}
    assert agents <= set(figures.LOOKS)
    assert len({figures.look(agent) for agent in agents}) == len({figures.look(agent)[0] for agent in agents}) == 19
    # Others depend on their name alone; settings are a tint of their agent's color.
    assert figures.look("my_module:MyAgent") == figures.look("my_module:MyAgent") != figures.look("my_module:Other")
    red, green, blue = (int(figures.look("LDCQ[horizon=10]")[0][i : i + 2], 16) for i in (1, 3, 5))
    assert red < green < blue


@pytest.mark.parametrize(
    ("versions", "told"), [(("3.4.0", "3.5.0"), True), (("3.3.7", "4.0.0"), True), (("3.5.0", "3.11.0"), False)]
)
def test_one_row_of_two_simulators_carries_a_note(versions: tuple[str, str], told: bool, tmp_path: Path) -> None:
    runs = [a_run("BC", seed=seed, versions={"mujoco": mujoco}) for seed, mujoco in enumerate(versions)]
    report.build(write_runs(tmp_path, runs))
    text = (tmp_path / "tables" / "table.md").read_text()
    assert ("NOT ONE SCORE: its seeds ran on both sides of mujoco 3.5.0" in text) == told
    assert "rows mix simulators" in text


def test_one_seed_has_no_interval_in_the_aggregates(tmp_path: Path) -> None:
    report.build(write_runs(tmp_path, three_agents((UMAZE, LARGE), seeds=1)))
    text = (tmp_path / "tables" / "aggregates.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| env")]
    assert len(rows) == 3 + 3  # agents and pairs
    assert not any("[" in row.replace("LDCQ[prior=gaussian]", "") for row in rows)
    report.build(write_runs(tmp_path / "more", three_agents((UMAZE, LARGE), seeds=3)))
    assert (tmp_path / "more" / "tables" / "aggregates.md").read_text().count("[") > text.count("[")
