"""The scripts that time plans and that test guidance on atoms run, check what they measure, and write their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import TINY_LATENT_DIFFUSER
from ld_agents import LatentDiffuser
from ld_agents.diffusion.guidance import EnergyNet
from ld_agents.networks.denoisers import TemporalUNet
from timing import atomic_guidance, plan_speed
from timing.speed import synthetic_dataset

TINY = {key: value for key, value in TINY_LATENT_DIFFUSER.items() if key != "preset"}
SPEED = ["--versions", "naive", "hoisted", "hoisted, bf16", "--envs", "1", "3", "--repetitions=2"]
SPEED += ["--settings", json.dumps(TINY)]
ATOMS = ["--atoms=6", "--betas", "2", "--samples=300", "--solver-steps=10", "--gradient-steps=3", "--states=2"]


def test_plan_speed_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plan_speed.main([*SPEED, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "plan_speed.json").read_text())
    cells = [(row["n_envs"], row["version"]) for row in result["rows"]]
    assert cells == [(n, version) for n in (1, 3) for version in ("naive", "hoisted", "hoisted, bf16")]
    for row in result["rows"]:
        assert 0 < row["plan_ms"]["median"] <= row["plan_ms"]["p95"]
    for naive, hoisted, _ in (result["rows"][:3], result["rows"][3:]):
        assert naive["ratio"] == 1
        assert hoisted["ratio"] == pytest.approx(naive["plan_ms"]["median"] / hoisted["plan_ms"]["median"])
    assert len(result["checks"]) == 4
    assert all(row["passed"] for row in result["checks"])
    page = (tmp_path / "plan_speed.md").read_text()
    assert page == plan_speed.table(result)
    assert page in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan_speed.json", "plan_speed.md"]


def test_plan_speed_fails_where_versions_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gradient = EnergyNet.gradient

    def wrong(net: EnergyNet, *arguments: Tensor) -> Tensor:
        return 10 * gradient(net, *arguments)

    monkeypatch.setattr(EnergyNet, "gradient", wrong)
    assert plan_speed.main([*SPEED, "--out", str(tmp_path)]) == 1


def test_naive_denoiser_is_the_denoiser() -> None:
    torch.manual_seed(0)
    network = TemporalUNet(4, 3, 8, width=16, multipliers=(1, 2, 2), blocks=2)
    z, tau, states = torch.randn(5, 8, 3), torch.linspace(0.01, 1, 5), torch.randn(5, 4)
    torch.testing.assert_close(plan_speed.plain_noise(network, z, tau, states), network(z, tau, states))


@pytest.mark.parametrize("arguments", [["--repetitions=0"], ["--envs", "0"], ["--versions", "faster"]])
def test_plan_speed_refuses_what_measures_nothing(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        plan_speed.main(arguments)


# ---------------------------------------------------------------- atoms


def test_guidance_on_atoms() -> None:
    """What exact guidance reaches, a fitted network nearly does."""
    latents, returns = atomic_guidance.made_up_atoms(16, 0)
    torch.manual_seed(0)
    network = EnergyNet(1, 16, hidden=64, layers=2, frequency_scale=1.0)
    before = [parameter.clone() for parameter in network.parameters()]
    sizes: dict[str, Any] = {"n_samples": 2000, "n_steps": 30, "gradient_steps": 300, "sets": 64}
    result = atomic_guidance.atomic_guidance(network, latents, returns, 3.0, **sizes)
    distance = result["total_variation"]
    assert distance["prior"] > 0.5
    assert distance["draws"] < 0.03
    assert distance["unguided"] < 0.08
    assert distance["exact"] < 0.06
    assert distance["exact"] < distance["learned"] < 0.3
    assert 1 < result["target_atoms"] < 8
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_atomic_guidance_writes_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = LatentDiffuser("MlpPolicy", synthetic_dataset(400), seed=0, device="cpu", **TINY_LATENT_DIFFUSER)
    agent.save(tmp_path / "mine.zip")
    monkeypatch.setattr(atomic_guidance, "load_dataset", lambda spec: synthetic_dataset(400))
    of_agent = ["--agent", str(tmp_path / "mine.zip"), "--dataset", "made/up-v0"]
    for more, dim in ((of_agent, 12), ([], 16)):
        out = tmp_path / str(dim)
        assert atomic_guidance.main([*ATOMS, *more, "--out", str(out)]) == 0
        result = json.loads((out / "atomic_guidance.json").read_text())
        assert [row["state"] for row in result["rows"]] == [0, 1]
        assert {row["latent_dim"] for row in result["rows"]} == {dim}
        assert (out / "atomic_guidance.md").read_text() == atomic_guidance.table(result)
    assert "mine" not in (tmp_path / "16" / "atomic_guidance.md").read_text()


def test_atoms_are_draws_of_the_prior_with_their_returns() -> None:
    agent = LatentDiffuser("MlpPolicy", synthetic_dataset(400), seed=0, device="cpu", **TINY_LATENT_DIFFUSER)
    observations = agent.dataset.observations[:2]  # type: ignore[union-attr]
    for observation, (latents, returns) in zip(
        observations, atomic_guidance.atoms_of(agent, observations, 5, 0), strict=True
    ):
        assert latents.shape == (5, 12)
        states = agent.policy.normalize(observation).expand(5, -1)
        expected = agent.policy.standard_returns(latents.view(5, 4, 3), states)
        torch.testing.assert_close(returns, expected)
        assert float(latents.std(0).min()) > 0


@pytest.mark.parametrize("arguments", [["--atoms=1"], ["--samples=0"], ["--agent", "a.zip"]])
def test_atomic_guidance_refuses_what_measures_nothing(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        atomic_guidance.main(arguments)
