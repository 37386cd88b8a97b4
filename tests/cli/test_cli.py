"""Every command of `ld-agents`, run as one types it."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import typer.main
from agent_blobs import members
from hub_stub import serving
from maze_agents import maze_agent
from test_rendering import Screen, decoded, needs_renderer
from typer.testing import CliRunner

import ld_agents
from ld_agents import BC, cli, zoo
from ld_agents.common.offline_algorithm import OfflineAlgorithm


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LDCQ of a point maze."""
    path = tmp_path_factory.mktemp("agents") / "ldcq.zip"
    maze_agent().save(path)
    return path


@pytest.fixture
def screen() -> Iterator[str]:
    """The id of an environment that renders without a simulator."""
    gym.register("tests/Screen-v0", Screen, disable_env_checker=True)
    yield "tests/Screen-v0"
    del gym.registry["tests/Screen-v0"]


def commands() -> dict[str, Any]:
    group = typer.main.get_command(cli.app)
    found: dict[str, Any] = dict(group.commands)  # type: ignore[attr-defined]
    of_data = found.pop("data").commands
    return found | {f"data {name}": command for name, command in of_data.items()}


def test_commands() -> None:
    alone = "list train eval play video plans report export push pull"
    of_data = "list show check convert record"
    assert set(commands()) == {*alone.split(), *(f"data {name}" for name in of_data.split())}


@pytest.mark.parametrize("command", commands())
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: ld-agents {command}" in run(*command.split(), "--help").replace("\n", " ")


# ---------------------------------------------------------------- agents


def test_list() -> None:
    text = run("list")
    for card in ld_agents.pretrained():
        assert card.name in text
        assert f"{card.score:.1f}" in text
    assert ld_agents.pretrained() or "No agent" in text


def test_eval(agent: Path) -> None:
    expected = ld_agents.evaluate(ld_agents.load(agent), ld_agents.load(agent).eval_env_spec().make, 2, seed=5)
    text = run("eval", agent, "--episodes", 2, "--seed", 5, "--device", "cpu")
    assert str(expected) in text
    assert "ms per action" in text


def test_eval_elsewhere(screen: str) -> None:
    """An environment may be named; D4RL's scale does not apply there."""
    with pytest.raises(FileNotFoundError, match="no pretrained agent"):
        run("eval", "nobody", "--env", screen)


def test_play(screen: str, agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str | None] = []
    monkeypatch.setattr(Screen, "render", lambda self: shown.append(self.render_mode))
    monkeypatch.setenv("DISPLAY", ":0")
    path = agent.with_name("bc.zip")
    maze_agent("BC").save(path)
    run("play", path, "--env", screen, "--episodes", 2)
    assert shown == ["human"] * 10


@needs_renderer
@pytest.mark.parametrize("name", ["LDCQ", "LatentDiffuser"])
def test_video_of_a_maze(name: str, tmp_path: Path) -> None:
    maze_agent(name).save(tmp_path / "agent.zip")
    run("video", tmp_path / "agent.zip", tmp_path / "v.mp4", "--frames", 5)
    frames = decoded(tmp_path / "v.mp4")
    assert len(frames) == 5
    assert all((one != two).any() for one, two in itertools.pairwise(frames)), "the frames differ"
    red = [(frame[..., 0] > 200) & (frame[..., 1:].max(-1) < 60) for frame in frames]
    assert min(int(marked.sum()) for marked in red) > 5, "the executed plan is drawn in red"


def test_plans(agent: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    run("plans", agent, tmp_path / "plans.png", "--starts", 2)
    picture = imread(tmp_path / "plans.png")
    red = (picture[..., 0] > 0.75) & (picture[..., 1:3].max(-1) < 0.1)
    left, right = np.array_split(red, 2, axis=1)
    assert min(int(half.sum()) for half in (left, right)) > 20, "in each panel a plan and a goal"


@pytest.mark.skipif(not hasattr(OfflineAlgorithm, "export"), reason="agents have no export yet")
def test_export(agent: Path, tmp_path: Path) -> None:
    run("export", agent, tmp_path / "policy.onnx")
    assert (tmp_path / "policy.onnx").stat().st_size > 1000


def test_no_card_has_d4rl_scores_of_another_environment(screen: str) -> None:
    with pytest.raises(ValueError, match="Leave out --env"):
        run("push", "ldcq-pointmaze-large", "me/agent", "--env", screen, "--episodes", 1)


def test_push_and_pull(agent: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "cache") as hub:
        assert f"{hub.url}/me/agent" in run("push", agent, "me/agent", "--episodes", 1)
        assert b"| mean return |" in hub.files["README.md"]
        out = tmp_path / "ldcq[prior=gaussian].zip"  # a name that rich's markup would swallow
        assert f"saved to {out}" in run("pull", "me/agent", out)
        assert out.read_bytes() == hub.files["agent.zip"]
    assert members(out.read_bytes()) == members(agent.read_bytes())


# ---------------------------------------------------------------- data, and training on it


@pytest.fixture
def d4rl_file(folder: Path) -> Path:
    """Three episodes of Hopper in D4RL's format: two time out, the last one falls."""
    path, rng, n = folder / "hopper-medium-v2.hdf5", np.random.default_rng(0), 60
    terminals, timeouts = np.zeros(n, bool), np.zeros(n, bool)
    terminals[-1], timeouts[[19, 39]] = True, True
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(n, 11)).astype(np.float32)
        file["next_observations"] = rng.normal(size=(n, 11)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
        file["rewards"] = rng.uniform(0, 3, n).astype(np.float32)
        file["terminals"], file["timeouts"] = terminals, timeouts
    return path


def test_from_a_file_to_an_evaluated_agent(d4rl_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("data", "convert", d4rl_file, "me/hop-v0")
    before, after = ld_agents.load_dataset(d4rl_file), ld_agents.load_dataset("me/hop-v0")
    for name in ("observation_rows", "actions", "rewards", "terminals", "episode_ends", "_final_known"):
        assert bool((getattr(before, name) == getattr(after, name)).all()), name
    assert after.info.eval_env is not None
    assert after.info.eval_env.id == "Hopper-v4"
    assert after.info.reference_scores == before.info.reference_scores
    with pytest.raises(FileExistsError, match="Choose another id"):
        run("data", "convert", d4rl_file, "me/hop-v0")
    listed = run("data", "list")
    assert "me/hop-v0" in listed
    assert "ld-agents/pointmaze/umaze-v0" in listed
    shown = run("data", "show", "me/hop-v0")
    assert "3 with 60 steps, 1 terminals" in shown
    assert "Hopper-v4" in shown
    out = folder / "bc.zip"
    run("train", "BC", "me/hop-v0", "hidden=[8,8]", "batch_size=16", "--steps", 7, "--seed", 3, "--out", out)
    agent = ld_agents.load(out)
    assert (type(agent).__name__, agent.seed, agent.num_timesteps) == ("BC", 3, 7)
    assert agent.settings.hidden == (8, 8)
    assert "mean return" in run("eval", out, "--episodes", 1)
    python = ("normalize_observations=False", "hidden=(8,8)", "family=None", "--verbose")
    assert "loss" in run("train", "BC", "me/hop-v0", *python, "--steps", 3, "--out", folder / "python.zip")
    assert ld_agents.load(folder / "python.zip").family is None
    with pytest.raises(ValueError, match="setting=value"):
        run("train", "BC", "me/hop-v0", "hidden")
    with pytest.raises(ValueError, match="Write --seed VALUE"):
        run("train", "BC", "me/hop-v0", "seed=3")
    short = ("train", "BC", "me/hop-v0", "hidden=[8,8]", "--steps", 1, "--out")
    assert f"Saved to {folder / 'other.zip'}" in run(*short, folder / "other")
    monkeypatch.setattr(BC, "learn", None)  # nothing is learned that could not be kept
    (folder / "models.zip").mkdir()
    for wrong in (folder / "models", out / "agent.zip"):
        with pytest.raises(OSError, match=r"Name a file in it|Choose another folder"):
            run(*short, wrong)


def test_ctrl_c_keeps_what_is_learned(d4rl_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("data", "convert", d4rl_file, "me/hop-v0")
    learning = ("train", "BC", "me/hop-v0", "hidden=[8,8]", "batch_size=16", "--steps", 20)
    run(*learning, "--out", folder / "whole.zip")
    loss_of = BC.actor_loss

    def interrupted(self: Any, *arguments: Any) -> Any:
        if self.num_timesteps == 6:
            signal.raise_signal(signal.SIGINT)
        return loss_of(self, *arguments)

    monkeypatch.setattr(BC, "actor_loss", interrupted)
    text = run(*learning, "--out", folder / "part.zip", code=130)
    again = f"ld-agents train BC me/hop-v0 --out {folder / 'part.zip'} --resume"
    assert f"BC learned for 7 gradient steps. Saved to {folder / 'part.zip'}, unfinished; to go on: {again}" in text
    with pytest.raises(ValueError, match="--resume goes on with the settings and steps"):
        run(*learning, "--out", folder / "part.zip", "--resume")
    text = run("train", "BC", "me/hop-v0", "--out", folder / "part.zip", "--resume")
    assert "BC learned for 20 gradient steps" in text
    whole, part = (ld_agents.load(folder / name).policy.state_dict() for name in ("whole.zip", "part.zip"))
    assert all(bool((whole[name] == part[name]).all()) for name in whole)


@pytest.mark.skipif(not hasattr(ld_agents, "check_dataset"), reason="there is no check_dataset yet")
def test_data_check(d4rl_file: Path) -> None:
    assert "3" in run("data", "check", d4rl_file)
    with h5py.File(d4rl_file, "a") as file:
        file["timeouts"][file["terminals"][:]] = True
    assert "warning: 1 rows have both flags" in run("data", "check", d4rl_file)
    with h5py.File(d4rl_file, "a") as file:
        file["rewards"][0] = np.nan
    assert "error: " in run("data", "check", d4rl_file, code=1)


# ---------------------------------------------------------------- in a clone, and without one


def test_commands_of_the_clone_get_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def note(command: list[str], check: bool) -> Any:
        calls.append((Path(command[1]).name, command[2:]))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", note)
    run("report", "results/maze2d", "--check", code=3)
    run("data", "record", "hopper-medium", "--steps", "5", code=3)
    expected = [["results/maze2d", "--check"], ["hopper-medium", "--steps", "5"]]
    assert calls == list(zip(["report.py", "make_datasets.py"], expected, strict=True))


def test_record_runs() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ld_agents", "data", "record", "no-such-set"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "There is no recipe for 'no-such-set'" in result.stderr


def test_without_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(zoo, "__file__", str(tmp_path / "site-packages" / "ld_agents" / "zoo.py"))
    monkeypatch.chdir(tmp_path)
    for command in (["report"], ["data", "record", "hopper-medium"]):
        monkeypatch.setattr(sys, "argv", ["ld-agents", *command])
        with pytest.raises(SystemExit, match="run this command in a clone") as exit:
            cli.main()
        assert "\n" not in str(exit.value), "one sentence, no traceback"
