"""Small files of agents that act: what they keep, how exactly they act, and that they no longer learn."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from agent_blobs import members, with_description

from conftest import AGENTS, Trained, make_agent, saved, seen_by, weights
from ld_agents import OfflineDataset
from ld_agents.common import agent_file
from ld_agents.common.inference_file import acting_weights, save_for_inference

# Names that begin so are of training alone.
TRAINING = {
    "LDCQ": {"vae.encode.", "vae.prior.", "vae.final_state.", "target_critics.", "reward_scale"},
    "LDCQ-gaussian": {"vae.encode.", "vae.final_state.", "target_critics.", "reward_scale"},
    "LDGC": {"vae.encode.", "vae.prior.", "vae.final_state."},
    "LatentDiffuser": {"vae.encoder.", "denoiser.", "energy.", "q_average.", "scale_of_state."},
    "IQL": {"critics.", "target_critics.", "value."},
}


def test_acts_as_before_and_no_longer_learns(name: str, trained: Trained, tmp_path: Path) -> None:
    agent, path = trained(name), tmp_path / "small.zip"
    before = members(saved(agent))
    save_for_inference(agent, path)
    assert members(saved(agent)) == before, "the agent itself is as it was"
    small = type(agent).load(path)
    observations = seen_by(agent, 50)
    for deterministic in (True, False):
        expected = agent.predict(observations, deterministic=deterministic)[0]
        actions = small.predict(observations, deterministic=deterministic)[0]
        # a candidate that nearly ties may win, so not every action is the same
        assert np.quantile(np.abs(actions - expected).max(1), 0.8) < 0.02
    assert type(small.policy).__name__ in repr(small.policy)
    assert copy.deepcopy(small.policy).state_dict().keys() == small.policy.state_dict().keys()
    with pytest.raises(ValueError, match="train anew"):
        type(agent).load(path, dataset=agent.dataset)
    with pytest.raises(ValueError, match="no dataset"):
        small.learn(1)


@pytest.mark.parametrize("name", TRAINING)
def test_keeps_what_acting_reads(name: str, trained: Trained) -> None:
    agent = trained(name)
    changed = type(agent).load(io.BytesIO(saved(agent)))
    kept, everything = acting_weights(agent), set(weights(agent))
    dropped = everything - kept
    prefixes = {prefix for prefix in TRAINING[name] if any(key.startswith(prefix) for key in everything)}
    assert prefixes, "the names are those of the networks"
    for prefix in prefixes:
        assert not {key for key in kept if key.startswith(prefix)}, prefix
    # nothing that was dropped changes an action
    with torch.no_grad():
        for key, value in changed.policy.state_dict().items():
            if key in dropped:
                value.fill_(7)
    for deterministic in (True, False):
        observations = seen_by(agent, 20)
        expected = trained(name).predict(observations, deterministic=deterministic)[0]
        np.testing.assert_array_equal(changed.predict(observations, deterministic=deterministic)[0], expected)


def test_saved_again_it_is_the_same(trained: Trained, tmp_path: Path) -> None:
    save_for_inference(trained("LDCQ"), tmp_path / "small.zip")
    small = AGENTS["LDCQ"][0].load(tmp_path / "small.zip")
    small.save(tmp_path / "again.zip")
    again = AGENTS["LDCQ"][0].load(tmp_path / "again.zip")
    observations = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        small.predict(observations, deterministic=True)[0], again.predict(observations, deterministic=True)[0]
    )
    assert set(weights(small)) == set(weights(again))
    assert agent_file.read(tmp_path / "small.zip")[2] == {}


def test_matrices_are_halves_and_vectors_are_not(dataset: OfflineDataset, tmp_path: Path) -> None:
    agent = make_agent("BC", dataset, hidden=(64, 64))
    agent.save(tmp_path / "full.zip")
    save_for_inference(agent, tmp_path / "small.zip")
    sizes = [len(members(path.read_bytes())["weights.safetensors"]) for path in sorted(tmp_path.iterdir())]
    assert 0.5 < sizes[1] / sizes[0] < 0.65
    full, small = (agent_file.read(tmp_path / name)[1] for name in ("full.zip", "small.zip"))
    for key, value in small.items():
        expected = full[key].half().float() if value.ndim > 1 else full[key]
        assert torch.equal(value, expected), key


def test_without_its_mark_an_incomplete_file_is_refused(trained: Trained, tmp_path: Path) -> None:
    save_for_inference(trained("LDCQ"), tmp_path / "small.zip")
    blob = with_description((tmp_path / "small.zip").read_bytes(), lambda d: d.pop("inference_only"))
    with pytest.raises(ValueError, match="do not fit together"):
        AGENTS["LDCQ"][0].load(io.BytesIO(blob))
