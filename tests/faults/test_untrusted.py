"""Text and numbers of files that come from others: bounded, escaped, never taken for the name of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from run_files import HOPPER, a_run, write_runs

import report
from ld_agents.evaluation import environments
from ld_agents.evaluation.eval_env import EvalEnvSpec, _harmless
from reporting import runs as runs_module
from reporting.runs import read_runs

PLANTED = "<mujoco><worldbody/></mujoco>"


@pytest.mark.parametrize(
    "kwargs",
    [
        {"xml_file": "/tmp/evil.xml"},
        {"xml_file": "evil"},
        {"model_path": ["a"]},
        {"reward_type": "../../etc/passwd"},
        {"maze_map": [["evil.xml"]]},
        {"maze_map": [[0] * 200] * 100},
        {"default_camera_config": {"distance": 3}},
    ],
)
def test_arguments_of_environments_name_no_files(kwargs: dict[str, Any], tmp_path: Path) -> None:
    spec = EvalEnvSpec.from_json(json.dumps({"id": "HalfCheetah-v5", "kwargs": kwargs}))
    assert spec is not None
    (name,) = kwargs
    with pytest.raises(ValueError, match=f"HalfCheetah-v5 cannot be built with {name}: .*never names of files"):
        spec.make()


def test_own_environments_pass_with_all_their_arguments() -> None:
    """Recordings name the arguments that an environment was registered with, such as AntMaze's maze."""
    environments.register()
    own = [spec for name, spec in gym.registry.items() if name.startswith("ld_agents/")]
    assert {"ld_agents/AntMaze-medium-v0", "ld_agents/Kitchen-mixed-v0"} <= {spec.id for spec in own}
    for spec in own:
        assert not [key for key, value in spec.kwargs.items() if not _harmless(key, value)], spec.id
    EvalEnvSpec("ld_agents/AntMaze-umaze-v0", {"maze": "umaze"}, 10).make().close()
    with pytest.raises(ValueError, match="cannot be built with maze"):
        EvalEnvSpec("ld_agents/AntMaze-umaze-v0", {"maze": "../umaze.xml"}, 10).make()


def test_a_planted_model_is_never_compiled(tmp_path: Path) -> None:
    """On a file that MuJoCo can read, the environment would be built: with other physics."""
    (tmp_path / "evil.xml").write_text(PLANTED)
    spec = EvalEnvSpec("Hopper-v5", {"xml_file": str(tmp_path / "evil.xml")})
    with pytest.raises(ValueError, match="never names of files"):
        spec.make()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("FrameStackObservation", {"stack_size": 10**9}),
        ("DelayObservation", {"delay": 10**9}),
        ("MaxAndSkipObservation", {"skip": 10**9}),
        ("FilterObservation", {"filter_keys": ["../x"]}),
        ("TimeLimit", {"max_episode_steps": "evil.xml"}),
    ],
)
def test_arguments_of_wrappers_are_bounded(name: str, arguments: dict[str, Any]) -> None:
    spec = EvalEnvSpec("Pendulum-v1", wrappers=((name, arguments),))
    with pytest.raises(ValueError, match=f"may not give {name} {next(iter(arguments))}.*Make the environment yourself"):
        spec.make()


def test_a_count_of_an_environment_is_bounded() -> None:
    with pytest.raises(ValueError, match="cannot be built with frame_skip"):
        EvalEnvSpec("Hopper-v5", {"frame_skip": 10**9}).make()
    stacked = EvalEnvSpec("Pendulum-v1", wrappers=(("FrameStackObservation", {"stack_size": 3}),)).make()
    assert stacked.observation_space.shape == (3, 3)


def test_numbers_and_names_of_tasks_are_taken() -> None:
    spec = EvalEnvSpec("Hopper-v5", {"forward_reward_weight": 2.0, "healthy_z_range": [0.5, 9.0]}, 7)
    env = spec.make()
    assert env.unwrapped._forward_reward_weight == 2.0
    env.close()
    maze = [[1, 1, 1, 1], [1, "r", "g", 1], [1, 1, 1, 1]]
    EvalEnvSpec("PointMaze_UMaze-v3", {"maze_map": maze, "reward_type": "dense"}, 7).make().close()


def test_text_of_run_files_is_escaped(tmp_path: Path) -> None:
    agent = "m:A[x=<script>alert(1)</script>]"
    folder = write_runs(tmp_path, [a_run(agent, HOPPER), a_run("B[x=1](javascript:f())|\n# head", HOPPER)])
    report.build(folder, with_figures=False)
    page = (tmp_path / "tables" / "table.md").read_text()
    assert "<script" not in page
    assert "&lt;script>alert(1)&lt;/script>" in page
    assert "](" not in page
    assert not any(line.startswith("# head") for line in page.splitlines())
    assert r"\| # head" in page


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"schema": 1, "agent": ' + "1" * 5000 + "}",
        json.dumps({**a_run(), "budget_share": 1e400}),
        json.dumps({**a_run(), "more": [1.0, float("nan")]}),
        json.dumps({**a_run(), "seconds": {"total": []}}),
        json.dumps({**a_run(), "seconds": {"total": 90.0, "learn": 80.0, "learn_cpu": "12"}}),
        json.dumps({**a_run(), "seconds": {"total": 90.0, "learn": "80", "learn_cpu": 12.0}}),
        json.dumps({**a_run(), "versions": 3}),
        json.dumps({**a_run(), "hardware": None}),
        json.dumps({**a_run(), "successes": [[], 1, 1, 1]}),
        json.dumps({**a_run(), "first_contact": ["x", 1, 1, 1]}),
        json.dumps({**a_run(), "seed": 10**400}),
        json.dumps({**a_run(), "returns": [1e308, -1e308, 1e308, 1e308]}),
        json.dumps({**a_run(), "peak_memory_mb": "x"}),
        json.dumps({**a_run(), "dataset": {**a_run()["dataset"], "controller": 3}}),
        json.dumps({**a_run(), "dataset": {**a_run()["dataset"], "controller": {"episodes": 1, "a_return": []}}}),
        json.dumps({**a_run(), "peak_memory_mb": 10**400}),
        json.dumps({**a_run(), "first_contact": [1e308, 1, 1, 1]}),
        json.dumps({**a_run(), "versions": {"mujoco": "3", "gymnasium-robotics": "1"}}),
        json.dumps({**a_run(), "versions": {**a_run()["versions"], "mujoco": 10**400}}),
        "\0\1\2",
        "",
    ],
)
def test_a_bad_run_file_is_named_and_skipped(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_runs(tmp_path, [a_run()])
    (folder / "runs" / "evil.json").write_text(content)
    report.build(folder, with_figures=False)
    assert "skipped evil.json: " in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"skipped evil\.json(.|\n)*nothing is written"):
        report.main([str(folder), "--strict"])


def test_runs_of_machines_without_mujoco_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run()
    folder = write_runs(tmp_path, [run, {**a_run(seed=1), "versions": {**run["versions"], "mujoco": None}}])
    assert "LDCQ" in report.build(folder, with_figures=False)
    assert "skipped" not in capsys.readouterr().err


def test_files_are_bounded_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_runs(tmp_path, [a_run()]) / "runs"
    with (folder / "large.json").open("wb") as stream:
        stream.truncate(1 << 40)  # takes no place on the disk, and could not be read
    (folder / "link.json").symlink_to("/dev/zero")
    found, skipped = read_runs(folder)
    assert len(found) == 1
    assert [line.split(":")[0] for line in skipped] == ["large.json", "link.json"]
    monkeypatch.setattr(runs_module, "MAX_FILES", 2)
    with pytest.raises(SystemExit, match="more than 2 run files"):
        read_runs(folder)
