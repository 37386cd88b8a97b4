"""Files of agents that are damaged, old or made to do harm: refused with a reason, and nothing runs or fills up."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_blobs import OBSERVATIONS, load, members, packed, with_description, with_tensors
from gymnasium import spaces
from torch import Tensor

from conftest import AGENTS, Drift, Trained, differing, saved, weights
from ld_agents import BC, LDCQ, OfflineDataset
from ld_agents.common import agent_file

# ---------------------------------------------------------------- files that are not right


def test_missing_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no saved agent at .*nothing\.zip"):
        AGENTS[name][0].load(tmp_path / "nothing")


def test_folder_of_the_same_name(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    trained("BC").save(tmp_path / "agent")
    BC.load(tmp_path / "agent")


def test_file_of_another_class(trained: Trained) -> None:
    with pytest.raises(ValueError, match=r"holds an agent of class 'BC': load it with that class, not with LDCQ"):
        load("LDCQ", saved(trained("BC")))
    with pytest.raises(ValueError, match="holds an agent of class 'LDCQ'"):
        load("BC", saved(trained("LDCQ")))


def test_ldcq_file_without_the_diffusion_prior(trained: Trained) -> None:
    """One class, other networks: the description and the weights are both needed."""
    gaussian, diffusion = members(saved(trained("LDCQ-gaussian"))), members(saved(trained("LDCQ")))
    mixed = packed({**diffusion, "weights.safetensors": gaussian["weights.safetensors"]})
    with pytest.raises(ValueError, match="weights and settings do not fit together"):
        load("LDCQ", mixed)


def test_truncated_files(name: str, trained: Trained) -> None:
    blob = saved(trained(name))
    places = [*range(60), *np.linspace(60, len(blob) - 400, 60).astype(int), *range(len(blob) - 400, len(blob), 3)]
    for end in places:
        with pytest.raises(ValueError, match="The stream"):
            load(name, blob[:end])


def test_flipped_bytes_never_change_the_agent(blob: bytes) -> None:
    """Every byte of the zip's own records, and a sample of the contents: a clear error or the very same agent."""
    good = weights(load("LDCQ", blob))
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        records = list(range(archive.start_dir, len(blob)))
        for info in archive.infolist():
            records += range(info.header_offset, info.header_offset + 30 + len(info.filename))
    rng = np.random.default_rng(0)
    # bit 0 of the flags says "encrypted": see the next test
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        flags = {record + 8 for record in find_all(blob, b"PK\x01\x02")}
        assert len(flags) == len(archive.infolist())
    accepted = 0
    for place in [*records, *rng.integers(0, len(blob), 300)]:
        damaged = bytearray(blob)
        damaged[place] ^= 0xFE if place in flags else int(rng.integers(1, 256))
        try:
            loaded = load("LDCQ", bytes(damaged))
        except ValueError:
            continue
        accepted += 1
        assert not differing(good, weights(loaded))
    assert 0 < accepted < len(records)  # time stamps, for example


def find_all(blob: bytes, pattern: bytes) -> list[int]:
    places, start = [], blob.find(pattern)
    while start >= 0:
        places.append(start)
        start = blob.find(pattern, start + 1)
    return places


def test_encrypted_members(blob: bytes) -> None:
    damaged = bytearray(blob)
    damaged[blob.find(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ValueError, match="The stream"):
        load("LDCQ", bytes(damaged))


def test_empty_and_foreign_files(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"PK\x05\x06" + bytes(18), pickle.dumps({"agent": 1})):
        with pytest.raises(ValueError, match=r"not a complete zip file|not an ld_agents file"):
            load("BC", content)
    from stable_baselines3 import PPO

    PPO("MlpPolicy", Drift(), n_steps=2, batch_size=2, policy_kwargs={"net_arch": [4]}).save(tmp_path / "ppo")
    for agent_class in (BC, LDCQ):
        with pytest.raises(ValueError, match=r"Stable-Baselines3 contain pickles and are not read here"):
            agent_class.load(tmp_path / "ppo")


def test_unknown_format_version(blob: bytes) -> None:
    for version in (0, 2, "1", None):
        with pytest.raises(ValueError, match="not of format 1, the one this version of ld_agents reads"):
            load("LDCQ", with_description(blob, lambda d, v=version: d.update(format=v)))


@pytest.mark.parametrize("missing", ["agent.json", "weights.safetensors"])
def test_missing_members(blob: bytes, missing: str) -> None:
    contents = members(blob)
    del contents[missing]
    with pytest.raises(ValueError, match=rf"lacks \['{missing}'\]"):
        load("LDCQ", packed(contents))


def test_file_without_training_state_still_acts(blob: bytes) -> None:
    contents = members(blob)
    del contents["training.safetensors"]
    np.testing.assert_array_equal(
        load("LDCQ", packed(contents)).predict(OBSERVATIONS)[0], load("LDCQ", blob).predict(OBSERVATIONS)[0]
    )


@pytest.mark.parametrize("member", ["weights.safetensors", "training.safetensors"])
def test_damaged_tensors(blob: bytes, member: str) -> None:
    contents = members(blob)
    good = contents[member]
    for bad in (b"", b"\0" * 8, good[:-4], good + b"\0" * 4, b"\xff" * 8 + good[8:], good[:8] + b"[" + good[9:]):
        with pytest.raises(ValueError, match="the weights are damaged"):
            load("LDCQ", packed({**contents, member: bad}))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"x"', "1", "\xff", "1" * 5000, '{"format": 1}'])
def test_damaged_json(blob: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=r".{20}"):
        load("LDCQ", packed({**members(blob), "agent.json": text.encode("latin-1")}))


def test_deeply_nested_json(blob: bytes) -> None:
    with pytest.raises(ValueError, match=r"agent\.json"):
        load("LDCQ", packed({**members(blob), "agent.json": b"[" * 100_000}))


def paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a JSON tree but the root."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [p for key, child in children for p in [(*path, key), *paths(child, (*path, key))]]


def test_any_value_of_the_description_may_be_wrong(blob: bytes) -> None:
    """Every number, name and list in turn is removed or replaced by nonsense: a ValueError, or nothing happens."""
    contents = members(blob)
    description = json.loads(contents["agent.json"])
    nonsense = [None, -1, 10**20, float("nan"), "x", [], {}, [[1], 2], "remove"]
    refused, places = 0, paths(description)
    for i, path in enumerate(places):
        for value in nonsense[i % 3 :: 3]:  # a third each, for the sake of time
            changed = copy.deepcopy(description)
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            if value == "remove":
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
            try:
                load("LDCQ", packed({**contents, "agent.json": json.dumps(changed).encode()}))
            except ValueError:
                refused += 1
    assert refused > len(places)


def test_unbounded_action_space(blob: bytes) -> None:
    with pytest.raises(ValueError, match="The stream"):
        load("LDCQ", with_description(blob, lambda d: d["action_space"].update(high=[1, float("inf")])))


# ---------------------------------------------------------------- files made to do harm


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_crafted_pickles_are_not_run(blob: bytes, tmp_path: Path) -> None:
    sign = tmp_path / "harm"
    harm = pickle.dumps(Harm(sign))
    pickle.loads(harm)
    assert sign.exists()
    sign.rmdir()
    contents = members(blob)
    for member in ("data.pkl", "data", "pytorch_variables.pth", "policy.pth", "archive/data.pkl", "agent.json/x"):
        with pytest.raises(ValueError, match=r"it holds \['"):
            load("LDCQ", packed({**contents, member: harm}))
    for member in contents:
        with pytest.raises(ValueError, match="The stream"):
            load("LDCQ", packed({**contents, member: harm}))
    with pytest.raises(ValueError, match="not a complete zip"):
        load("LDCQ", harm)
    torch.save({"harm": Harm(sign)}, tmp_path / "torch.zip")
    with pytest.raises(ValueError, match="not an ld_agents file"):
        LDCQ.load(tmp_path / "torch.zip")
    assert not sign.exists()


@pytest.mark.parametrize("member", ["../escaped.json", "/tmp/escaped.json", "..\\escaped.json", "a/../agent.json"])
def test_member_names_outside_the_file(blob: bytes, member: str, tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (inside / "agent.zip").write_bytes(packed({**members(blob), member: b"{}"}))
    with pytest.raises(ValueError, match="not an ld_agents file"):
        LDCQ.load(inside / "agent.zip")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["agent.zip"]


@pytest.mark.parametrize("member", ["agent.json", "weights.safetensors", "training.safetensors"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_not_read(blob: bytes, member: str, compression: int) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members(blob).items():
            archive.writestr(name, content, compression if name == member else zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match=rf"{member} is compressed, which save never does\. Not read"):
        load("LDCQ", stream.getvalue())


def test_compressed_member_that_lies_about_its_size(blob: bytes) -> None:
    """Deflated, and the directory gives the packed size twice."""
    crafted = bytearray(packed(members(blob), zipfile.ZIP_DEFLATED))
    for record in find_all(bytes(crafted), b"PK\x01\x02"):
        crafted[record + 24 : record + 28] = crafted[record + 20 : record + 24]
    with pytest.raises(ValueError, match=r"agent\.json is compressed"):
        load("LDCQ", bytes(crafted))


@pytest.fixture(scope="module")
def gigabyte() -> bytes:
    """1 GB of zeros, deflated to a megabyte."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("weights.safetensors", "w", force_zip64=True) as member:
            for _ in range(1024):
                member.write(bytes(1 << 20))
        archive.writestr("agent.json", b"{}", zipfile.ZIP_STORED)
    return stream.getvalue()


def refused_quickly(blob: bytes, match: str) -> None:
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=match):
            load("LDCQ", blob)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - started < 10
    assert peak < 4 * len(blob) + (1 << 24)


def test_zip_bomb(gigabyte: bytes) -> None:
    assert len(gigabyte) < 1 << 23
    refused_quickly(gigabyte, "weights.safetensors is compressed")


def test_zip_bomb_that_says_it_is_stored(gigabyte: bytes) -> None:
    """The directory says "stored", and then a size that the file cannot have."""
    for record in (b"PK\x01\x02", b"PK\x03\x04"):
        place = gigabyte.find(record) + (10 if record == b"PK\x01\x02" else 8)
        assert gigabyte[place] == zipfile.ZIP_DEFLATED
        gigabyte = gigabyte[:place] + b"\0" + gigabyte[place + 1 :]
    refused_quickly(gigabyte, "weights.safetensors is compressed")


def test_large_json_is_not_read(blob: bytes) -> None:
    with pytest.raises(ValueError, match=r"agent\.json is larger than 1048576 bytes"):
        load("LDCQ", packed({**members(blob), "agent.json": b" " * ((1 << 20) + 1)}))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("vae_hidden", 10**9),
        ("vae_hidden", 8192),
        ("latent_dim", 10**9),
        ("critic_hidden", 10**18),
        ("horizon", 10**12),
        ("denoiser_widths", [10**9, 10**9]),
    ],
)
def test_huge_sizes_are_refused_without_memory(blob: bytes, setting: str, value: Any) -> None:
    crafted = with_description(blob, lambda d: d["settings"].update({setting: value}))
    refused_quickly(crafted, r"do not fit together|has shape|should be less than|is not a valid")


def test_huge_states_are_refused_without_memory(blob: bytes) -> None:
    for size in (10**9, 10**12, 10**18):
        crafted = with_description(blob, lambda d, size=size: d.update(state_dim=size))
        refused_quickly(crafted, r"has shape|is not a valid|do not fit")


def test_number_of_blocks_is_limited(blob: bytes) -> None:
    """A module is built for each, and the JSON has room for 300,000: minutes, and gigabytes."""
    crafted = with_description(blob, lambda d: d["settings"].update(denoiser_widths=[1] * 200))
    with pytest.raises(ValueError, match="denoiser_widths: Tuple should have at most 16 items"):
        load("LDCQ", crafted)


def test_ldcq_of_before_its_rewards_were_scaled_loads_and_acts(blob: bytes) -> None:
    """Windows ended at terminals, and the scale was a setting alone."""

    def older(description: dict[str, Any]) -> None:
        for added in ("windows_past_terminals", "sample_actions", "acting_critics", "n_critics"):
            del description["settings"][added]
        description["settings"]["reward_scale"] = 0.25

    old = with_tensors(with_description(blob, older), "weights.safetensors", lambda t: t.pop("reward_scale"))
    agent, today = load("LDCQ", old), load("LDCQ", blob)
    assert not agent.settings.windows_past_terminals
    assert float(agent.policy.reward_scale) == 0.25
    np.testing.assert_array_equal(
        agent.predict(OBSERVATIONS, deterministic=True)[0], today.predict(OBSERVATIONS, deterministic=True)[0]
    )


@pytest.mark.parametrize("name_of", ["vae.prior.mean.0.weight", "latent_mean", "critics.1.head.3.bias"])
def test_weights_that_do_not_fit(blob: bytes, name_of: str) -> None:
    def crafted(change: Callable[[dict[str, Tensor]], Any]) -> bytes:
        return with_tensors(blob, "weights.safetensors", change)

    for replacement in (
        lambda v: torch.zeros(*v.shape, 1),
        lambda v: torch.zeros(0),
        lambda v: torch.zeros(v.shape[0] + 1, *v.shape[1:]),
        lambda v: v.double(),
        lambda v: v.half(),
        lambda v: v.long(),
    ):
        with pytest.raises(ValueError, match=rf"{name_of} has shape .* expected"):
            load("LDCQ", crafted(lambda t, r=replacement: t.update({name_of: r(t[name_of]).contiguous()})))
    with pytest.raises(ValueError, match=rf"do not fit together: \['{name_of}'\]"):
        load("LDCQ", crafted(lambda t: t.pop(name_of)))
    with pytest.raises(ValueError, match=r"do not fit together: \['one_more'\]"):
        load("LDCQ", crafted(lambda t: t.update(one_more=torch.zeros(1))))


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(5056, dtype=torch.uint8), torch.zeros(5056)])
def test_wrong_state_of_the_generator(blob: bytes, bad: Tensor) -> None:
    with pytest.raises(ValueError, match="not a valid LDCQ file"):
        load("LDCQ", with_tensors(blob, "training.safetensors", lambda t: t.update(generator=bad)))


WRONG_TRAINING_STATE: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "wrong shape": lambda t: t.update({"q.optimizer.0.exp_avg": torch.zeros(1)}),
    "wrong type": lambda t: t.update({"q.optimizer.0.exp_avg": t["q.optimizer.0.exp_avg"].half()}),
    "missing": lambda t: t.pop("q.optimizer.0.exp_avg"),
    "extra": lambda t: t.update({"q.optimizer.1000.step": torch.zeros(())}),
    "odd name": lambda t: t.update({"q.optimizer.x": torch.zeros(())}),
    "short priorities": lambda t: t.update({"q.priorities": torch.ones(2)}),
    "zero priorities": lambda t: t["q.priorities"].zero_(),
    "negative priorities": lambda t: t["q.priorities"].neg_(),
    "priorities of nan": lambda t: t["q.priorities"].fill_(float("nan")),
}


@pytest.mark.parametrize("case", WRONG_TRAINING_STATE)
def test_wrong_training_state(blob: bytes, dataset: OfflineDataset, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by load or by learn, before any gradient step."""
    steps: list[int] = []
    # the fused optimizer must not see these tensors, not even in this test: it would write outside of them
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: steps.append(1))
    crafted = with_tensors(blob, "training.safetensors", WRONG_TRAINING_STATE[case])
    with pytest.raises(ValueError, match=r"The stream|training state"):
        load("LDCQ", crafted, dataset=dataset).learn(reset_num_timesteps=False)
    assert not steps


def test_progress_of_unknown_stages(blob: bytes, dataset: OfflineDataset) -> None:
    crafted = with_description(blob, lambda d: d["progress"].update(stage_steps={"x": 1}))
    with pytest.raises(ValueError, match="stage"):
        load("LDCQ", crafted, dataset=dataset).learn(reset_num_timesteps=False)


@pytest.mark.parametrize("steps", [-1, 10**6])
def test_progress_beyond_the_budget(blob: bytes, steps: int) -> None:
    def wrong(description: dict[str, Any]) -> None:
        description["progress"]["stage_steps"]["vae"] = steps

    with pytest.raises(ValueError, match="steps of the stage vae are done"):
        load("LDCQ", with_description(blob, wrong))


def test_too_many_action_dimensions(blob: bytes) -> None:
    def wide(description: dict[str, Any]) -> None:
        space = spaces.Box(-1.0, 1.0, (5000,), np.float32)
        description["action_space"] = agent_file.space_to_json(space)

    with pytest.raises(ValueError, match="at most 1,000 action dimensions"):
        load("LDCQ", with_description(blob, wide))


@pytest.mark.parametrize("name", AGENTS)
def test_what_is_trained_stays_the_same(name: str, trained: Trained) -> None:
    """A target network takes no gradients, before and after a round trip."""
    agent = trained(name)
    flags = {key: parameter.requires_grad for key, parameter in agent.policy.named_parameters()}
    again = load(name, saved(agent)).policy
    assert flags == {key: parameter.requires_grad for key, parameter in again.named_parameters()}
    assert all(not flag for key, flag in flags.items() if key.startswith("target"))


def test_counter_of_the_noise_that_is_no_64_bit_number(blob: bytes) -> None:
    with pytest.raises(ValueError, match="The stream"):
        load("LDCQ", with_description(blob, lambda d: d["progress"].update(noise_calls=10**20)))


def test_the_environment_that_a_file_names_imports_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named_by_a_file.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    blob = with_description(saved(trained("BC")), lambda d: d["dataset"].update(env="named_by_a_file:Pendulum-v1"))
    with pytest.raises(ValueError, match="would load code that the dataset names"):
        BC.load(io.BytesIO(blob)).evaluate(n_episodes=1)
    assert "named_by_a_file" not in sys.modules
