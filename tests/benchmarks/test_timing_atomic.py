"""Guidance on atoms: what it reaches on made-up ones, and its page for those of a saved agent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import time_agents
from conftest import TINY_LATENT_DIFFUSER
from ld_agents import LatentDiffuser, OfflineDataset
from timing import atomic
from timing.atomic import ATOMIC
from timing.worker import random_arrays

QUICK = {"atoms": 6, "betas": [2.0], "samples": 300, "solver_steps": 10, "gradient_steps": 3}


def dataset() -> OfflineDataset:
    return OfflineDataset(*random_arrays(400))


def made_up_atoms(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents [A, 16] and standardized returns [A] with smooth and random parts."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, 16, generator=generator)
    returns = latents[:, 0] + torch.sin(2 * latents[:, 1]) + 0.5 * torch.randn(n, generator=generator)
    return latents, (returns - returns.mean()) / returns.std()


def test_guidance_on_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """What exact guidance reaches, a fitted network nearly does."""
    latents, returns = made_up_atoms(16, 0)
    for constant, value in (("HIDDEN", 64), ("LAYERS", 2), ("SETS", 64)):
        monkeypatch.setattr(atomic, constant, value)
    result = atomic.total_variations(latents, returns, 3.0, n_samples=2000, n_steps=30, gradient_steps=300)
    distance = result["total_variation"]
    assert distance["prior"] > 0.5
    assert distance["draws"] < 0.03
    assert distance["unguided"] < 0.08
    assert distance["exact"] < 0.06
    assert distance["exact"] < distance["contrastive"] < 0.3
    assert distance["exact"] < distance["exponential"] < 0.3
    assert 1 < result["target_atoms"] < 8


def test_measures_the_latents_of_a_saved_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = LatentDiffuser("MlpPolicy", dataset(), seed=0, device="cpu", **TINY_LATENT_DIFFUSER)
    agent.save(tmp_path / "mine.zip")
    monkeypatch.setattr(atomic, "load_dataset", lambda name: dataset())
    monkeypatch.setattr(atomic, "SIZES", atomic.SIZES | QUICK)
    arguments = ["--latents", str(tmp_path / "mine.zip"), "made/up-v0", "--out", str(tmp_path)]
    assert time_agents.main(arguments) == 0
    rows = json.loads((tmp_path / "atomic_guidance.json").read_text())["rows"]
    assert [(row["state"], row["atoms"], row["latent_dim"]) for row in rows] == [(0, 6, 12), (1, 6, 12)]
    assert "Latents of mine at states of made/up-v0." in (tmp_path / "atomic_guidance.md").read_text()
    # the settings are those of the agent in the file, which are not its preset's
    problems = ATOMIC.problems(tmp_path)
    assert problems
    assert all("LatentDiffuser fast: " in problem for problem in problems)


def test_atoms_are_draws_of_the_prior_with_their_returns() -> None:
    agent = LatentDiffuser("MlpPolicy", dataset(), seed=0, device="cpu", **TINY_LATENT_DIFFUSER)
    observations = agent.dataset.observations[:2]  # type: ignore[union-attr]
    for observation, (latents, returns) in zip(observations, atomic.atoms_of(agent, observations, 5), strict=True):
        assert latents.shape == (5, 12)
        states = agent.policy.normalize(observation).expand(5, -1)
        expected = agent.policy.standard_returns(latents.view(5, 4, 3), states)
        torch.testing.assert_close(returns, expected)
        assert float(latents.std(0).min()) > 0
