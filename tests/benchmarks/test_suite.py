"""The suite: specs, grids, and real runs in processes of their own with an agent of the user's own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import checkpoint
import provenance
import run_one
import run_suite
import specs
from files import write_json
from ld_agents.evaluation import scores
from ld_agents.evaluation.scores import D4RL_TASKS, TASKS
from reporting import figures, intervals, tables
from reporting.runs import frame, read_runs
from suites import SUITES, Suite

TESTS = Path(__file__).resolve().parent
RUN_SUITE = TESTS.parents[1] / "benchmarks" / "run_suite.py"
DATASET = "ld-agents/pointmaze/umaze-10k-v0"


@pytest.mark.parametrize(
    ("spec", "name", "settings"),
    [
        ("LDCQ", "LDCQ", {}),
        ("LDCQ[]", "LDCQ", {}),
        ("LDCQ[prior=gaussian,horizon=10]", "LDCQ", {"prior": "gaussian", "horizon": 10}),
        (" LDCQ[ prior = gaussian , discount=1e-2 ] ", "LDCQ", {"prior": "gaussian", "discount": 0.01}),
        ("my_module:MyAgent[hidden=[64,32],on=true]", "my_module:MyAgent", {"hidden": [64, 32], "on": True}),
        ('A[text="1,2",nothing=null]', "A", {"text": "1,2", "nothing": None}),
        ("A[next_state=s_{t+H-1}]", "A", {"next_state": "s_{t+H-1}"}),
    ],
)
def test_parse_spec(spec: str, name: str, settings: dict[str, Any]) -> None:
    assert specs.parse_spec(spec) == (name, settings)
    canonical = specs.canonical_spec(spec)
    assert specs.parse_spec(canonical) == (name, settings)
    assert specs.canonical_spec(canonical) == canonical


def test_canonical_spec_has_one_spelling() -> None:
    spellings = ["A[b=1,c=x]", "A[c=x, b=1]", " A[ b = 1,c=x ]"]
    assert {specs.canonical_spec(spelling) for spelling in spellings} == {"A[b=1,c=x]"}
    # A string that looks like a number is not that number.
    assert specs.canonical_spec('A[b="1"]') == 'A[b="1"]'


@pytest.mark.parametrize("spec", ["", "A[b]", "A[b=1", "A[b=1,b=2]", "A[1=2]", "A[b=1]c"])
def test_unreadable_spec(spec: str) -> None:
    with pytest.raises(ValueError, match=r"cannot read|given twice"):
        specs.parse_spec(spec)


def test_agent_class() -> None:
    assert specs.agent_class("LDCQ").__name__ == "LDCQ"
    assert specs.agent_class("goal_seeker:GoalSeeker").__name__ == "GoalSeeker"
    with pytest.raises(ValueError, match=r"no agent 'Nonesuch'; agents of your own are given as module:Class"):
        specs.agent_class("Nonesuch")
    with pytest.raises(ValueError, match="goal_seeker has no agent 'Nonesuch'"):
        specs.agent_class("goal_seeker:Nonesuch")


def test_names_of_different_runs_differ() -> None:
    agents = ["A", "A[x=1]", "A[x=-1]", "A[x=1.5]", "A[x=[1,5]]", "A[x=s_{t}]", "m:A", "LDCQ[prior=gaussian]"]
    names = {
        specs.Run(agent, dataset, seed, preset, budget, 100).name
        for agent in agents
        for dataset in ("a/b-v0", "a/c-v0", "a/b-v0[goal=keep]")
        for seed in (0, 1)
        for preset in ("fast", "paper")
        for budget in (1.0, 0.25)
    }
    assert len(names) == len(agents) * 3 * 2 * 2 * 2
    assert all(set(name).isdisjoint('/\\:*?"<>| []{}') for name in names)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("BC", "me/walk-v0"), ("BC", "me-walk-v0")),
        (("BC", "a/b-c-v0"), ("BC", "a-b/c-v0")),
        (("BC", "x__fast"), ("BC__x", "fast")),
        (("m.a:X", "d"), ("m:a.X", "d")),
        (("BC[a=/x]", "hopper-medium-v2"), ("BC[a=-x]", "hopper-medium-v2")),
        (("BC", "ld-agents/pointmaze/umaze-v0"), ("BC", "ld-agents-pointmaze-umaze-v0")),
    ],
)
def test_names_that_look_alike_in_a_file_name_differ(one: tuple[str, str], other: tuple[str, str]) -> None:
    first, second = (specs.Run(agent, dataset, 0, "fast", 1.0, 100).name for agent, dataset in (one, other))
    assert first.lower() != second.lower()
    assert specs.Run(*one, 0, "fast", 0.1, 100).name != specs.Run(*one, 0, "fast", 0.10000000001, 100).name


def test_committed_runs_keep_their_names() -> None:
    files = sorted(Path(run_suite.RESULTS).glob("*/runs/*.json"))
    assert len(files) > 50
    for file in files:
        run = json.loads(file.read_text())
        made = specs.Run(run["agent"], run["dataset"]["id"], run["seed"], run["preset"], run["budget_share"], 100)
        assert made.name == file.stem


def test_grid_and_replacements() -> None:
    options = run_suite.parse(
        ["--suite", "maze2d", "--agents", "BC", "m:A[x=1]", "--seeds", "7", "8", "--budget", "0.5", "--episodes", "3"]
    )
    suite = run_suite.suite_from(options)
    assert suite == Suite(("BC", "m:A[x=1]"), SUITES["maze2d"].datasets, (7, 8), "fast", 0.5, 3)
    runs = run_suite.grid(suite)
    assert len(runs) == 2 * 3 * 2
    assert [run.seed for run in runs] == [7] * 6 + [8] * 6, "one seed of everything, then the next"
    assert [run.agent for run in runs[:6]] == ["BC"] * 3 + ["m:A[x=1]"] * 3
    assert len({run.name for run in runs}) == len(runs)


def test_bfloat16_is_a_setting_of_every_agent() -> None:
    options = run_suite.parse(["--agents", "BC", "LDCQ[prior=gaussian]", "m:A[]", "--cpu-bf16"])
    assert options.suite == "quick"
    found = [specs.parse_spec(run.agent) for run in run_suite.grid(run_suite.suite_from(options))[:3]]
    assert found == [
        ("BC", {"cpu_bf16": True}),
        ("LDCQ", {"prior": "gaussian", "cpu_bf16": True}),
        ("m:A", {"cpu_bf16": True}),
    ]


def test_settings_of_images_are_settings_of_their_agents() -> None:
    runs = [
        specs.Run(agent, "ld-agents/carracing/driver-v0", 0, "fast", 1.0, 5)
        for agent in ("LDCQ[image_code=32]", "BC[image_code=32]", "IQL[image_code=32]")
    ]
    assert list(run_suite.check_agents(runs)) == runs[2:], "IQL sees no images"


def test_the_suite_without_options_is_the_first_one() -> None:
    suite = run_suite.suite_from(run_suite.parse([]))
    assert suite == SUITES["first"]
    assert len(run_suite.grid(suite)) == 8
    assert run_suite.check_agents(run_suite.grid(suite)) == {}, "its agents have its preset"
    assert run_suite.suite_from(run_suite.parse(["--seeds", "5", "--jobs", "1"])).preset == "minutes"
    assert run_suite.parse(["--full"]).suite == "quick"
    # agents of one's own need not have that preset
    for given in (["--agents", "m:A"], ["--datasets", "x.hdf5"], ["--budget", "0.1"], ["--preset", "paper"]):
        assert run_suite.parse(given).suite == "quick"
        assert run_suite.parse(["--suite", "first", *given]).suite == "first"


def test_pairs_that_a_suite_leaves_out() -> None:
    def pairs(*arguments: str) -> list[tuple[str, str]]:
        runs = run_suite.grid(run_suite.suite_from(run_suite.parse(["--suite", "goals", "--seeds", "1", *arguments])))
        return [(run.agent, run.dataset) for run in runs]

    ant, large, _ = SUITES["goals"].datasets
    of_ant = [agent for agent, dataset in pairs() if dataset == ant]
    assert of_ant == ["LDGC", "GCBC"]  # its data command no goals
    assert len(pairs()) == 2 + 5 * 2
    # what the suite does not name itself goes with everything
    own = "GCBC[hidden=64]"
    assert pairs("--agents", own, "LDCQ", "--datasets", large, ant) == [(own, large), (own, ant), ("LDCQ", large)]


def test_suites_are_sound() -> None:
    families = {"maze2d", "antmaze", "locomotion", "adroit", "kitchen"}
    benchmarks = {f"{name}{hub}" for name in (*families, "core") for hub in ("", "-minari", "-d4rl")}
    assert {"first", "quick", "smoke"} | benchmarks <= set(SUITES)
    for name, suite in SUITES.items():
        assert len({run.name for run in run_suite.grid(suite)}) == len(run_suite.grid(suite))
        assert max(suite.seeds) < 100, "seeds from 100 on are for tuning"
        # Every dataset is known to the table of scores, which gives it its family, and through it agents' settings.
        assert {dataset.partition("[")[0] for dataset in suite.datasets} <= set(TASKS)
        found = {scores.family(dataset) for dataset in suite.datasets}
        # one of every family
        mixed = {"core": families, "core-minari": families, "core-d4rl": families, "families": families - {"maze2d"}}
        mixed |= {"goals": {"antmaze", "maze2d"}, "images": {"carracing"}, "studies": families - {"antmaze"}}
        assert found == mixed.get(name, {name.partition("-")[0]} & families or {"maze2d"})
        made_here = not name.endswith(("-minari", "-d4rl"))
        assert {dataset.startswith("ld-agents/") for dataset in suite.datasets} == {made_here}
        assert {dataset in D4RL_TASKS for dataset in suite.datasets} == {name.endswith("-d4rl")}
    assert len(SUITES["core"].datasets) == len(SUITES["core-d4rl"].datasets) == 10
    assert len(SUITES["core-minari"].datasets) == 9
    assert len(SUITES["locomotion"].datasets) == len(SUITES["adroit"].datasets) == 12
    assert SUITES["maze2d"].agents[:3] == ("CQL", "LDCQ", "LatentDiffuser")


@pytest.mark.parametrize("agent", [specs.parse_spec(agent)[0] for agent in SUITES["core"].agents])
def test_settings_of_a_family_belong_to_a_family(agent: str) -> None:
    known = {scores.family(task) for task in TASKS.values()}
    assert set(specs.agent_class(agent).family_settings()) <= known


def test_json_is_written_whole_and_compact(tmp_path: Path) -> None:
    content = {"text": "a [ b\n c ]", "numbers": [1, 2.5, None], "nested": [[1, 2], [3, 4]], "settings": {"x": []}}
    path = tmp_path / "sub" / "file.json"
    write_json(path, content)
    assert json.loads(path.read_text()) == content
    assert '"numbers": [1, 2.5, null]' in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["file.json"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == content


def test_evaluation_seeds_are_all_different() -> None:
    points = [None, *range(run_one.CURVE_POINTS)]
    seeds = {run_one.evaluation_seed(seed, point) for seed in range(1000) for point in points}
    assert len(seeds) == 1000 * len(points)


def test_thin() -> None:
    points = [[i, i] for i in range(1000)]
    assert run_one.thin(points[:60]) == points[:60]
    thinned = run_one.thin(points)
    assert len(thinned) == 60
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])


@pytest.fixture(scope="module", autouse=True)
def minari_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        yield


@pytest.fixture
def suite_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for results; runs find `goal_seeker` where they are started."""
    monkeypatch.chdir(TESTS)
    monkeypatch.setenv("GOAL_SEEKER_KILLED", str(tmp_path / "killed"))
    # The report has tests of its own.
    monkeypatch.setattr(intervals, "REPS", 40)
    monkeypatch.setattr(figures, "save", lambda *_: None)
    previous = signal.getsignal(signal.SIGTERM)
    yield tmp_path / "results"
    signal.signal(signal.SIGTERM, previous)


def arguments(out: Path, *agents: str, seeds: str = "0") -> list[str]:
    fixed = ["--datasets", DATASET, "--budget", "1", "--episodes", "3", "--jobs", "2", "--out", str(out)]
    return ["--suite", "smoke", *fixed, "--seeds", *seeds.split(), "--agents", *agents]


@pytest.mark.slow
def test_failures_stay_alone_and_a_second_call_does_what_is_missing(
    suite_environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = suite_environment
    good, raising, killed = (f"goal_seeker:GoalSeeker{fail}" for fail in ("", "[fail=raise]", "[fail=kill]"))
    assert run_suite.main(arguments(out, good, raising, killed)) == 1
    text = capsys.readouterr().out
    assert f"FAILED: {raising} on {DATASET}, seed 0: RuntimeError: this agent always fails" in text
    assert (
        f"FAILED: {killed} on {DATASET}, seed 0: killed by signal 9 (SIGKILL); perhaps the machine ran out of memory"
        in text
    )
    assert "2 of 3 runs failed" in text
    assert f"Report: {out / 'report.html'}" in text
    assert "this agent always fails" in (out / "report.html").read_text()
    rows = [line.split() for line in text.splitlines() if line.startswith("pointmaze/umaze-10k-v0")]
    assert {row[1]: row[3] for row in rows if row[3] == "failed"} == {raising: "failed", killed: "failed"}
    (row,) = (row for row in rows if row[1] == good)
    assert row[1:3] == [good, "regenerated"], "the table shows what is finished"
    (path,) = (out / "runs").iterdir()
    first = path.read_bytes()
    check_result(json.loads(first), out)
    assert row[3] == tables.number(float(frame([json.loads(first)])["env"].iloc[0]))

    assert run_suite.main(arguments(out, good, raising, killed)) == 1
    text = capsys.readouterr().out
    assert "3 runs, 1 finished before" in text
    assert "1 of 3 runs failed" in text
    assert path.read_bytes() == first, "a result is never touched again"
    (resumed,) = (json.loads(other.read_text()) for other in (out / "runs").iterdir() if other != path)
    assert resumed["agent"] == killed
    assert resumed["resumes"] == 1
    assert resumed["gradient_steps"] == 40
    assert resumed["returns"] == json.loads(first)["returns"], "a run that was resumed ends where others end"
    assert [point["gradient_steps"] for point in resumed["curve"]] == [8, 16, 24, 32, 40]
    # Only the run that never got through is still to be done.
    leftovers = {file.name.split("__")[0] for file in (out / "checkpoints").iterdir()}
    assert leftovers == {specs.slug(raising)}
    assert {file.name.split("__")[0] for file in (out / "models").iterdir()} == {
        specs.slug(good),
        specs.slug(killed),
    }

    with pytest.raises(SystemExit, match="3 evaluation episodes, not 5; give another --out"):
        run_suite.main([*arguments(out, good), "--episodes", "5"])


def check_result(result: dict[str, Any], out: Path) -> None:
    """What a result must hold, and that the report reads it."""
    assert result["schema"] == 1
    assert result["agent_class"] == "goal_seeker.GoalSeeker"
    assert result["settings"]["steps"] == 20
    assert result["dataset"]["id"] == DATASET
    assert len(result["dataset"]["hash"]) == 64
    assert result["dataset"]["provenance"] == "regenerated"
    assert (result["budget_share"], result["gradient_steps"], result["resumes"]) == (1.0, 40, 0)
    assert result["protocol"]["episode_steps"] == 300
    assert all(len(result[key]) == 3 for key in ("returns", "lengths", "first_contact", "successes"))
    assert all(length == 300 for length in result["lengths"])
    assert [point["gradient_steps"] for point in result["curve"]] == [8, 16, 24, 32, 40]
    assert all(point["returns"] != result["returns"] for point in result["curve"]), "the curve has seeds of its own"
    assert {"first/loss", "second/loss"} <= set(result["losses"])
    assert set(result["seconds"]["stages"]) == {"first", "second"}
    seconds = result["seconds"]
    assert seconds["learn"] < seconds["evaluate"], "the curve's evaluations, five of ten episodes, are not learning"
    assert result["hardware"]["threads"] == 1
    assert result["versions"]["mujoco"]
    assert result["peak_memory_mb"] > 50
    assert read_runs(out / "runs") == ([result], [])


@pytest.mark.slow
def test_interrupted_suite_goes_on(suite_environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = suite_environment
    slow = "goal_seeker:GoalSeeker[pause=0.05,steps=40]"
    process = subprocess.Popen(
        [sys.executable, str(RUN_SUITE), *arguments(out, slow)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=TESTS,
        # a shell that starts the tests in the background leaves SIGINT ignored, for all that they start too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("checkpoints/*.ckpt")):  # written when the second stage starts
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted with 0 of 1 runs finished; run the same command again to resume" in text
    assert not (out / "runs").exists()

    assert run_suite.main(arguments(out, slow)) == 0
    (path,) = (out / "runs").iterdir()
    result = json.loads(path.read_text())
    assert (result["resumes"], result["gradient_steps"]) == (1, 80)
    assert result["seconds"]["learn"] > 80 * 0.05, "the time before the interruption counts too"
    assert 0 < result["seconds"]["learn_cpu"] < result["seconds"]["learn"], "it slept for most of it"
    assert not list((out / "checkpoints").iterdir())


def test_unusable_checkpoint_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = specs.load_dataset(DATASET)
    run = specs.Run("goal_seeker:GoalSeeker", DATASET, 0, "fast", 1.0, 3)
    files = specs.Files(tmp_path, run.name)
    files.checkpoint.parent.mkdir()
    files.checkpoint.write_bytes(b"half a file")
    agent, record = run_one.start_or_resume(run, tmp_path, dataset)
    assert "starting over, the checkpoint is unusable" in capsys.readouterr().out
    assert agent.num_timesteps == 0
    assert (record["total_steps"], record["resumes"]) == (40, 0)


def test_a_resumed_run_tells_the_code_that_began_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = specs.Run("goal_seeker:GoalSeeker", DATASET, 0, "fast", 1.0, 3)
    commits = iter(["a" * 40, "b" * 40, "b" * 40, "c" * 40])
    monkeypatch.setattr(provenance, "source_commit", lambda: next(commits))

    def stopped(agent: Any, progress: run_one.Progress) -> None:
        checkpoint.write(progress.files.checkpoint, run.name, agent, progress.record)
        raise SystemExit(143)

    with monkeypatch.context() as patched:
        patched.setattr(run_one, "learn", stopped)
        for _ in range(3):
            with pytest.raises(SystemExit):
                run_one.run_and_write(run, tmp_path)
    result = json.loads(run_one.run_and_write(run, tmp_path).read_text())
    assert result["commit"] == "c" * 40
    assert [part["commit"][0] for part in result["learned_before"]] == ["a", "b"]
    assert result["learned_before"][0]["versions"] == result["versions"]
    assert frame([result])["commit"].iloc[0] == "aaaaaaaaaaaa and bbbbbbbbbbbb and cccccccccccc"


def test_unavailable_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    previous = signal.getsignal(signal.SIGTERM)
    missing = str(tmp_path / "nowhere.hdf5")
    assert run_suite.main(["--agents", "BC", "--seeds", "0", "--datasets", missing, "--out", str(tmp_path)]) == 1
    signal.signal(signal.SIGTERM, previous)
    text = capsys.readouterr().out
    assert f"FAILED: BC on {missing}, seed 0: " in text
    assert "1 of 1 runs failed" in text


def test_result_of_another_version_is_not_overwritten(tmp_path: Path) -> None:
    run = specs.Run("BC", DATASET, 0, "fast", 1.0, 3)
    assert not run_suite.is_finished(run, tmp_path)
    path = specs.Files(tmp_path, run.name).result
    write_json(path, {"schema": 0})
    with pytest.raises(SystemExit, match="not a result that this version can read"):
        run_suite.is_finished(run, tmp_path)
