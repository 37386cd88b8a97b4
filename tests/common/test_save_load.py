"""Saved agents: bit-equal round trips, and files that are damaged, foreign or made to do harm."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import pickle
import pickletools
import random
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import stable_baselines3
import torch
from agent_blobs import OBSERVATIONS, load, members, with_description

import ld_agents
from conftest import Trained, differing, make_agent, saved, weights
from ld_agents import OfflineDataset

# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("seed", [None, 5])
def test_loading_leaves_the_global_generators_alone(dataset: OfflineDataset, seed: int | None) -> None:
    blob = saved(make_agent("IQL", dataset))

    def drawn(load: bool) -> list[float]:
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        if load:
            ld_agents.load(io.BytesIO(blob), seed=seed)
        return [random.random(), np.random.rand(), float(torch.rand(()))]

    assert drawn(load=True) == drawn(load=False)


def test_an_agent_that_is_loaded_in_inference_mode_acts_and_learns(name: str, trained: Trained) -> None:
    agent = trained(name)
    with torch.inference_mode():
        loaded = type(agent).load(io.BytesIO(saved(agent)), dataset=agent.dataset)
        np.testing.assert_array_equal(
            loaded.predict(OBSERVATIONS, deterministic=True)[0], agent.predict(OBSERVATIONS, deterministic=True)[0]
        )
    loaded.learn(3, reset_num_timesteps=False)


def test_round_trip_is_bit_equal(name: str, trained: Trained, tmp_path: Path) -> None:
    agent = trained(name)
    expected = [trained(name).predict(OBSERVATIONS, deterministic=d)[0] for d in (True, False)]
    stream = io.BytesIO()
    agent.save(stream)
    agent.save(str(tmp_path / "without_suffix"))
    agent.save(tmp_path / "new" / "folder" / "pathlib.zip")
    assert (tmp_path / "without_suffix.zip").is_file()
    stream.seek(0)
    sources: list[Any] = [
        stream,
        str(tmp_path / "without_suffix"),
        tmp_path / "without_suffix",
        str(tmp_path / "without_suffix.zip"),
        tmp_path / "new" / "folder" / "pathlib.zip",
        (tmp_path / "without_suffix.zip").open("rb"),
    ]
    for source in sources:
        loaded = type(agent).load(source)
        assert not differing(weights(agent), weights(loaded))
        for deterministic, actions in zip((True, False), expected, strict=True):
            np.testing.assert_array_equal(loaded.predict(OBSERVATIONS, deterministic=deterministic)[0], actions)
        assert loaded.config() == agent.config()
        assert loaded.observation_space == agent.observation_space
        assert loaded.action_space == agent.action_space
        assert loaded.num_timesteps == agent.num_timesteps
        assert loaded.stage_seconds == agent.stage_seconds
        assert not loaded.policy.training
        assert loaded.dataset is None


def test_untrained_agent(name: str, dataset: OfflineDataset) -> None:
    agent = make_agent(name, dataset)
    loaded = load(name, saved(agent), dataset=dataset)
    assert not differing(weights(agent), weights(loaded))
    assert not differing(weights(agent.learn()), weights(loaded.learn()))


def test_noise_goes_on_where_it_was(trained: Trained) -> None:
    agent = trained("LDCQ")
    for _ in range(3):
        agent.predict(OBSERVATIONS)
    loaded = load("LDCQ", saved(agent))
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS)[0], agent.predict(OBSERVATIONS)[0])


def test_equal_agents_give_equal_weights_on_disk(name: str, dataset: OfflineDataset) -> None:
    files = [members(saved(make_agent(name, dataset).learn(10))) for _ in range(2)]
    for member in ("weights.safetensors", "training.safetensors"):
        one, two = (safetensors.torch.load(file[member]) for file in files)
        assert not differing(one, two)


def test_attached_dataset_may_be_any_source(name: str, trained: Trained, dataset: OfflineDataset) -> None:
    assert load(name, saved(trained(name)), dataset=dataset).dataset is dataset
    with pytest.raises(FileNotFoundError):
        load(name, saved(trained(name)), dataset="/nowhere/maze.hdf5")


def test_weights_can_be_taken_from_another_agent(name: str, trained: Trained, dataset: OfflineDataset) -> None:
    source = trained(name)
    for given in (source.get_parameters(), io.BytesIO(saved(source))):
        agent = make_agent(name, dataset, seed=3)
        agent.set_parameters(given)
        assert not differing(weights(agent), weights(source))


def test_versions_are_printed_on_request(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    load("BC", saved(trained("BC")), print_system_info=True)
    assert torch.__version__ in capsys.readouterr().out


def test_package_tells_its_version() -> None:
    assert ld_agents.__version__ == importlib.metadata.version("ld_agents")
    with pytest.raises(AttributeError, match="'ld_agents' has no attribute 'LDQC'"):
        _ = ld_agents.LDQC  # type: ignore[attr-defined]


# ---------------------------------------------------------------- what is in the file


def test_file_holds_json_and_safetensors_and_no_pickle(name: str, trained: Trained) -> None:
    contents = members(saved(trained(name)))
    assert set(contents) == {"agent.json", "weights.safetensors", "training.safetensors"}
    description = json.loads(contents["agent.json"])
    assert description["class"] == type(trained(name)).__name__
    assert description["versions"]["torch"] == torch.__version__
    assert description["dataset"]["hash"] == trained(name).dataset.content_hash
    for member in ("weights.safetensors", "training.safetensors"):
        safetensors.torch.load(contents[member])
    for content in contents.values():
        assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"))
        assert not is_pickle(content)
    assert is_pickle(pickle.dumps(description))


def is_pickle(content: bytes) -> bool:
    try:
        return list(pickletools.genops(content))[-1][0].name == "STOP"
    except Exception:  # whatever the parser says
        return False


def test_loading_never_unpickles(name: str, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = saved(trained(name))

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "load", forbidden)
    monkeypatch.setattr(pickle, "loads", forbidden)
    monkeypatch.setattr(pickle, "Unpickler", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    load(name, blob)


def test_size_is_that_of_the_weights(trained: Trained) -> None:
    """The data, the candidates and finished optimizers stay out."""
    agent = trained("LDCQ")
    parameters = 4 * sum(value.numel() for value in weights(agent).values())
    critics = 4 * sum(value.numel() for value in agent.policy.critics.parameters())
    assert len(saved(agent)) < parameters + 2 * critics + 60_000


# ---------------------------------------------------------------- whole or not at all


def test_a_failing_save_leaves_the_old_file(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, path = trained("BC"), tmp_path / "agent.zip"
    agent.save(path)
    before = path.read_bytes()

    def broken(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(OSError, match="disk full"):
            agent.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["agent.zip"]
    assert path.read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save", broken)
        with pytest.raises(OSError, match="disk full"):
            agent.save(tmp_path / "new.zip")
    assert [p.name for p in tmp_path.iterdir()] == ["agent.zip"]
    agent.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["agent.zip"]


def test_save_takes_no_exclude(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no exclude"):
        trained("BC").save(tmp_path / "agent", exclude=["policy"])
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- import


@pytest.mark.parametrize("blocked", [True, False])
def test_import_is_light(blocked: bool) -> None:
    """Neither the simulator nor the plotting library is needed; and where they are installed, they are not loaded."""
    heavy = {"mujoco", "gymnasium_robotics", "matplotlib", "rliable", "pandas", "tensorboard"}
    heavy -= set(requires("stable-baselines3") or [])  # before 2.9 it imports matplotlib and pandas itself
    script = f"""
import sys, time
heavy = {heavy}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in heavy:
            raise ImportError(name + " is blocked")
if {blocked}:
    sys.meta_path.insert(0, Blocked())
started = time.perf_counter()
import ld_agents
print(time.perf_counter() - started)
print(*sorted({{name.split(".")[0] for name in sys.modules}} & set(heavy)))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    seconds, loaded = result.stdout.split("\n", 1)
    assert set(loaded.split()) & heavy - {"pandas", "tensorboard"} == set()
    assert float(seconds) < 20  # 5 on a quiet machine


@pytest.mark.parametrize(
    ("name", "setting", "left"),
    [
        ("LatentDiffuser", "latent_targets", "mean"),
        ("TD3BC", "actor_layer_norm", False),
        ("ReBRAC", "normalize_rewards", False),
        ("IQL", "actor", "gaussian"),
    ],
)
def test_files_with_retired_settings_load(trained: Trained, name: str, setting: str, left: Any) -> None:
    """A file of before the switch went, whatever else it says, acts as it did; one with another value is refused."""
    blob = saved(trained(name))

    def older(description: dict[str, Any], value: Any = left) -> None:
        description["settings"][setting] = value
        description["settings_origin"][setting] = "preset"

    agent = load(name, with_description(blob, older))
    assert agent.settings == trained(name).settings
    np.testing.assert_array_equal(
        agent.predict(OBSERVATIONS, deterministic=True)[0], trained(name).predict(OBSERVATIONS, deterministic=True)[0]
    )
    with pytest.raises(ValueError, match=rf"has {setting}='other'; only {left!r} is left"):
        load(name, with_description(blob, lambda d: older(d, "other")))


def test_sb3_version_is_written(trained: Trained) -> None:
    description = json.loads(members(saved(trained("BC")))["agent.json"])
    assert description["versions"]["stable_baselines3"] == stable_baselines3.__version__
