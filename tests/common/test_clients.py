"""Programs that know nothing of ld_agents, run as they are on its agents. Those that are not installed are skipped."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from conftest import Drift, Trained, seen_by
from ld_agents import LDCQ


class Drawn(Drift):
    """With pictures, for videos."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.full((32, 32, 3), 20 * self.steps, np.uint8)


@pytest.fixture
def drawn() -> Iterator[str]:
    gym.register("Drawn-v0", Drawn)
    yield "Drawn-v0"
    gym.registry.pop("Drawn-v0")


Script = Callable[..., None]


@pytest.fixture
def zoo(drawn: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Runs a script of RL Baselines3 Zoo on an LDCQ that its table knows and that lies in its folder of logs."""
    utils = pytest.importorskip("rl_zoo3.utils")
    monkeypatch.setitem(utils.ALGOS, "ldcq", LDCQ)
    run = tmp_path / "ldcq" / f"{drawn}_1"
    (run / drawn).mkdir(parents=True)
    (run / drawn / "args.yml").write_text("env_kwargs: null\n")
    (run / drawn / "config.yml").write_text("{}\n")
    trained("LDCQ").save(run / f"{drawn}.zip")
    monkeypatch.chdir(tmp_path)

    def script(name: str, *arguments: str) -> None:
        given = ["--algo", "ldcq", "--env", drawn, "-f", str(tmp_path), "--seed", "3", *arguments]
        monkeypatch.setattr(sys, "argv", [name, *given])
        monkeypatch.delitem(sys.modules, f"rl_zoo3.{name}", raising=False)
        runpy.run_module(f"rl_zoo3.{name}", run_name="__main__")

    return script


def test_rl_zoo3_enjoy(zoo: Script, capsys: pytest.CaptureFixture[str]) -> None:
    zoo("enjoy", "-n", "25", "--no-render", "--device", "cpu")
    text = capsys.readouterr().out
    assert text.count("Episode Reward:") == 2
    assert "Mean episode length: 10.00" in text


def test_rl_zoo3_record_video(zoo: Script, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    zoo("record_video", "-n", "20")
    (video,) = tmp_path.rglob("*.mp4")
    assert video.stat().st_size > 1000


def test_rl_zoo3_push_to_hub(zoo: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    pushed = tmp_path / "pushed"

    class Hub:
        def create_repo(self, repo_id: str, **_: Any) -> str:
            return repo_id

        def snapshot_download(self, local_dir: Path, **_: Any) -> None:
            local_dir.mkdir(parents=True)

        def upload_folder(self, folder_path: Path, **_: Any) -> None:
            shutil.copytree(folder_path, pushed)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    zoo("push_to_hub", "-orga", "me", "--no-render", "-n", "20")
    assert LDCQ.load(pushed / "ldcq-Drawn-v0").num_timesteps == 40
    assert np.isfinite(json.loads((pushed / "results.json").read_text())["mean_reward"])
    assert "LDCQ" in (pushed / "README.md").read_text()


# -- Stable-Baselines3's guide to exporting models -------------------------------------------------------------------


class OnnxableSB3Policy(torch.nn.Module):
    """As it stands in the guide."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: torch.Tensor) -> Any:
        return self.policy(observation, deterministic=True)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", ["BC", "IQL"])
def test_the_guide_to_onnx(name: str, dynamo: bool, trained: Trained, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    agent = trained(name)
    observations = seen_by(agent, 2)
    example = torch.randn(1, *agent.observation_space.shape)  # type: ignore[misc]
    path = str(tmp_path / "policy.onnx")
    torch.onnx.export(OnnxableSB3Policy(agent.policy), (example,), path, input_names=["input"], dynamo=dynamo)
    session = onnxruntime.InferenceSession(path)
    for row in observations:
        actions = session.run(None, {"input": row[None]})[0]
        np.testing.assert_allclose(actions, agent.predict(row[None], deterministic=True)[0], atol=1e-5)


def test_an_agent_that_holds_plans_is_not_traced_in_silence(trained: Trained) -> None:
    for name in ("LDCQ", "LatentDiffuser"):
        agent = trained(name)
        with (
            torch.no_grad(),
            pytest.raises(RuntimeError, match=r"holds plans.*agent.export"),
        ):
            torch.jit.trace(agent.policy.eval(), torch.from_numpy(seen_by(agent, 2)), check_trace=False)


def test_the_zoo_loads_with_these_arguments(trained: Trained, tmp_path: Path) -> None:
    agent = trained("LDCQ")
    agent.save(tmp_path / "agent")
    objects = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = LDCQ.load(str(tmp_path / "agent.zip"), env=Drift(), custom_objects=objects, device="auto", seed=0)
    observations = seen_by(agent, 3)
    again = agent.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], again)
