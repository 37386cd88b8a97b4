"""The checkpoint of a run: damaged in every way it is refused with file and remedy, and the one before it serves."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from agent_blobs import load, members, zipped

import checkpoint
import run_one
import specs
from conftest import StopAt, Trained, differing, make_agent, saved, weights
from ld_agents import BC, OfflineDataset
from ld_agents.data import storage

RUN = specs.Run("BC[hidden=[16,16],batch_size=32,steps=30]", "x/y-v0", 0, "fast", 1.0, 3)


def record(dataset: OfflineDataset) -> dict[str, Any]:
    return {"dataset_hash": dataset.content_hash, "resumes": 0, "total_steps": 30, "curve": [[1, 2.5]]}


@pytest.fixture
def path(tmp_path: Path, dataset: OfflineDataset) -> Path:
    """Checkpoints at steps 3 and 7."""
    path, agent = specs.Files(tmp_path, RUN.name).checkpoint, make_agent("BC", dataset)
    for step in (3, 7):
        agent.learn(callback=StopAt(step), reset_num_timesteps=step == 3)
        checkpoint.write(path, RUN.name, agent, record(dataset))
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, checkpoint.previous(path).name]
    return path


def test_a_checkpoint_gives_back_agent_and_record(path: Path, dataset: OfflineDataset) -> None:
    for file, step in ((path, 7), (checkpoint.previous(path), 3)):
        found, stream = checkpoint.read(file, RUN.name)
        assert found == record(dataset)
        resumed = BC.load(stream, dataset=dataset).learn(reset_num_timesteps=False)
        assert not differing(weights(make_agent("BC", dataset).learn()), weights(resumed)), step


def test_every_flipped_bit_and_cut_is_an_error(path: Path) -> None:
    good, draw = path.read_bytes(), random.Random(0)
    places = [*range(300), *draw.sample(range(300, len(good)), 300)]
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{path.name} is .*Delete it, or copy it anew"):
            checkpoint.read(path, RUN.name)
    for end in [*range(200), *draw.sample(range(200, len(good)), 100)]:
        path.write_bytes(good[:end])
        with pytest.raises(ValueError, match="Delete it, or copy it anew"):
            checkpoint.read(path, RUN.name)
    path.write_bytes(good + b"\0")
    with pytest.raises(ValueError, match="Delete it"):
        checkpoint.read(path, RUN.name)


def test_a_checkpoint_of_another_run_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"belongs to the run .*seed0.*, not to .*seed1"):
        checkpoint.read(path, RUN.name.replace("seed0", "seed1"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "other run"])
def test_the_checkpoint_before_serves(
    path: Path, dataset: OfflineDataset, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = path.read_bytes()
    if damage == "gone":  # killed between two renames
        path.unlink()
    elif damage == "other run":
        agent = make_agent("BC", dataset, seed=1).learn()
        path.unlink()
        before = checkpoint.previous(path).read_bytes()
        checkpoint.write(path, RUN.name.replace("seed0", "seed1"), agent, record(dataset))
        checkpoint.previous(path).write_bytes(before)
    else:
        flipped = good[:-900] + bytes([good[-900] ^ 4]) + good[-899:]
        path.write_bytes({"flip": flipped, "cut": good[:5000], "empty": b""}[damage])
    agent, found = run_one.start_or_resume(RUN, tmp_path, dataset)
    text = capsys.readouterr().out
    assert (agent.num_timesteps, found["resumes"]) == (3, 1)
    assert "resuming from the checkpoint at gradient step 3" in text
    assert (f"the checkpoint is unusable: {path}" in text) == (damage != "gone")


def test_both_damaged_start_over(
    path: Path, dataset: OfflineDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (path, checkpoint.previous(path)):
        file.write_bytes(file.read_bytes()[:-1])
    agent, _ = run_one.start_or_resume(RUN, tmp_path, dataset)
    text = capsys.readouterr().out
    assert agent.num_timesteps == 0
    assert text.count("Delete it") == 2
    assert "starting over" in text


def test_a_kill_at_any_moment_of_a_write_leaves_a_checkpoint(
    path: Path, dataset: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill is simulated by an end of the world at each call that touches the disk."""
    calls: list[str] = []
    agent = make_agent("BC", dataset).learn(callback=StopAt(11))

    class Killed(BaseException):
        pass

    def dying(name: str, module: Any, at: int) -> None:
        real = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if len(calls) == at:
                raise Killed
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for at in range(5):
        calls.clear()
        with monkeypatch.context() as patch:
            monkeypatch.setattr(storage.Path, "unlink", lambda *_, **__: None)
            for name in ("replace", "fsync"):
                dying(name, os, at)
            try:
                checkpoint.write(path, RUN.name, agent, record(dataset))
            except Killed:
                assert len(calls) == at
            else:
                assert calls == ["replace", "fsync", "replace", "fsync"]  # file, then folder
            del patch
        monkeypatch.undo()
        resumed, _ = run_one.start_or_resume(RUN, tmp_path, dataset)
        assert resumed.num_timesteps in (3, 7, 11)
    checkpoint.remove(path)
    assert not list(path.parent.iterdir())


def test_a_mixture_of_two_agents_is_refused(trained: Trained, dataset: OfflineDataset) -> None:
    """Same class, same shapes, valid sums of the zip: on its own such a file would act, differently."""
    first, second = members(saved(trained("BC"))), members(saved(make_agent("BC", dataset, seed=5).learn()))
    for member in ("weights.safetensors", "training.safetensors"):
        with pytest.raises(ValueError, match=f"{member} is not what agent.json belongs to. Copy or save it again"):
            load("BC", zipped({**first, member: second[member]}))
    load("BC", zipped(first))


def test_a_member_that_is_there_twice_is_refused(trained: Trained) -> None:
    import io
    import zipfile

    stream = io.BytesIO(saved(trained("BC")))
    with zipfile.ZipFile(stream, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("agent.json", "{}")
    with pytest.raises(ValueError, match="holds a member twice"):
        load("BC", stream.getvalue())
