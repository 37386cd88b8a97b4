"""Timing plans and testing guidance on atoms run, check what they measure, and write their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import TINY_LATENT_DIFFUSER
from ld_agents import LatentDiffuser
from ld_agents.diffusion.guidance import EnergyNet
from ld_agents.networks.denoisers import TemporalUNet
from timing import atomic, plans
from timing.atomic import ATOMIC
from timing.harness import random_dataset
from timing.plans import PLANS

TINY = {key: value for key, value in TINY_LATENT_DIFFUSER.items() if key != "preset"}


def test_plan_speed_writes_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = PLANS.run(PLANS.quick, settings=TINY)
    cells = [(row["n_envs"], row["version"]) for row in result["rows"]]
    assert cells == [(n, version) for n in (1, 3) for version in ("naive", "hoisted", "hoisted, bf16")]
    for row in result["rows"]:
        assert 0 < row["plan_ms"]["median"] <= row["plan_ms"]["p95"]
    for naive, hoisted, _ in (result["rows"][:3], result["rows"][3:]):
        assert naive["ratio"] == 1
        assert hoisted["ratio"] == pytest.approx(naive["plan_ms"]["median"] / hoisted["plan_ms"]["median"])
    assert len(result["checks"]) == 4
    assert all(row["passed"] for row in result["checks"])
    PLANS.write(result, tmp_path)
    assert PLANS.problems(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan_speed.json", "plan_speed.md"]


def test_plans_that_differ_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gradient = EnergyNet.gradient

    def wrong(net: EnergyNet, *arguments: Tensor) -> Tensor:
        return 10 * gradient(net, *arguments)

    monkeypatch.setattr(EnergyNet, "gradient", wrong)
    checks = PLANS.run(PLANS.quick, settings=TINY)["checks"]
    assert [row["passed"] for row in checks if "bf16" not in row["name"]] == [False, False]


def test_naive_denoiser_is_the_denoiser() -> None:
    torch.manual_seed(0)
    network = TemporalUNet(4, 3, 8, width=16, multipliers=(1, 2, 2), blocks=2)
    z, tau, states = torch.randn(5, 8, 3), torch.linspace(0.01, 1, 5), torch.randn(5, 4)
    torch.testing.assert_close(plans.plain_noise(network, z, tau, states), network(z, tau, states))


# ---------------------------------------------------------------- atoms


def test_guidance_on_atoms() -> None:
    """What exact guidance reaches, a fitted network nearly does."""
    latents, returns = atomic.made_up_atoms(16, 0)
    torch.manual_seed(0)
    network = EnergyNet(1, 16, hidden=64, layers=2, frequency_scale=1.0)
    before = [parameter.clone() for parameter in network.parameters()]
    sizes: dict[str, Any] = {"n_samples": 2000, "n_steps": 30, "gradient_steps": 300, "sets": 64}
    result = atomic.total_variations(network, latents, returns, 3.0, **sizes)
    distance = result["total_variation"]
    assert distance["prior"] > 0.5
    assert distance["draws"] < 0.03
    assert distance["unguided"] < 0.08
    assert distance["exact"] < 0.06
    assert distance["exact"] < distance["learned"] < 0.3
    assert 1 < result["target_atoms"] < 8
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_atomic_guidance_writes_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = LatentDiffuser("MlpPolicy", random_dataset(400), seed=0, device="cpu", **TINY_LATENT_DIFFUSER)
    agent.save(tmp_path / "mine.zip")
    monkeypatch.setattr(atomic, "load_dataset", lambda name: random_dataset(400))
    made_up = ATOMIC.run(ATOMIC.quick)
    trained = ATOMIC.run(ATOMIC.quick, latents=[str(tmp_path / "mine.zip"), "made/up-v0"])
    for result, dim in ((made_up, 16), (trained, 12)):
        assert [row["state"] for row in result["rows"]] == [0, 1]
        assert {row["latent_dim"] for row in result["rows"]} == {dim}
        ATOMIC.write(result, tmp_path)
        page = (tmp_path / "atomic_guidance.md").read_text()
        assert ("Latents of mine at states of made/up-v0." in page) == (result is trained)
    # the settings are those of the agent in the file, which are not its preset's
    problems = ATOMIC.problems(tmp_path)
    assert problems
    assert all("LatentDiffuser fast was measured with" in problem for problem in problems)


def test_atoms_are_draws_of_the_prior_with_their_returns() -> None:
    agent = LatentDiffuser("MlpPolicy", random_dataset(400), seed=0, device="cpu", **TINY_LATENT_DIFFUSER)
    observations = agent.dataset.observations[:2]  # type: ignore[union-attr]
    for observation, (latents, returns) in zip(observations, atomic.atoms_of(agent, observations, 5), strict=True):
        assert latents.shape == (5, 12)
        states = agent.policy.normalize(observation).expand(5, -1)
        expected = agent.policy.standard_returns(latents.view(5, 4, 3), states)
        torch.testing.assert_close(returns, expected)
        assert float(latents.std(0).min()) > 0
