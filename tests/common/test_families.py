"""Settings of a family of datasets apply by themselves, and every setting tells where it comes from."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from typing import Any

import pytest
from agent_blobs import with_description

from conftest import AGENTS, TINY_IQL, TINY_LATENT_DIFFUSER, make_agent, saved
from ld_agents import IQL, LDCQ, LatentDiffuser, OfflineDataset, ReBRAC
from ld_agents.baselines.iql import FAST, PAPER

ANTMAZE = {"expectile": 0.9, "temperature": 10.0, "reward_shift": -1.0, "normalize_observations": False}


def named(dataset: OfflineDataset, name: str) -> OfflineDataset:
    """The same data under another name."""
    renamed = copy.copy(dataset)
    renamed.info = dataclasses.replace(dataset.info, id=name)
    return renamed


@pytest.mark.parametrize(
    ("dataset_id", "family"),
    [
        ("ld-agents/antmaze/umaze-v0", "antmaze"),
        ("D4RL/antmaze/large-play-v1", "antmaze"),
        ("antmaze-medium-diverse-v2", "antmaze"),
        ("ld-agents/pointmaze/large-v0", "maze2d"),
        ("mujoco/hopper/medium-v0", "locomotion"),
        ("D4RL/pen/human-v2", "adroit"),
        ("D4RL/kitchen/complete-v2", "kitchen"),
        ("user arrays", None),
    ],
)
def test_the_name_of_the_data_decides(dataset: OfflineDataset, dataset_id: str, family: str | None) -> None:
    agent = IQL("MlpPolicy", named(dataset, dataset_id), preset="fast", seed=0)
    assert agent.family == family
    assert agent.settings == dataclasses.replace(FAST, **IQL.family_settings().get(family or "", {}))
    assert (agent.settings == dataclasses.replace(FAST, **ANTMAZE)) == (family == "antmaze")


def test_on_the_paper_preset_as_well(dataset: OfflineDataset) -> None:
    agent = IQL("MlpPolicy", named(dataset, "antmaze-umaze-v2"), preset="paper", seed=0)
    assert agent.settings == dataclasses.replace(PAPER, **ANTMAZE)


def test_none_is_the_plain_preset_and_a_name_is_forced(dataset: OfflineDataset) -> None:
    antmaze = named(dataset, "ld-agents/antmaze/umaze-v0")
    plain = IQL("MlpPolicy", antmaze, preset="fast", family=None)
    assert (plain.family, plain.settings) == (None, FAST)
    assert set(plain.settings_origin.values()) == {"preset"}
    forced = IQL("MlpPolicy", antmaze, preset="fast", family="kitchen")
    assert (forced.settings.temperature, forced.settings.dropout, forced.settings.expectile) == (0.5, 0.1, 0.7)
    assert IQL("MlpPolicy", dataset, preset="fast", family="antmaze").settings.temperature == 10.0


def test_an_agent_without_settings_for_a_family_takes_its_name(name: str, dataset: OfflineDataset) -> None:
    assert AGENTS[name][0]("MlpPolicy", dataset, preset="fast", family="kitchen").family == "kitchen"


def test_unknown_families_are_refused(name: str, dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match=r"Unknown family 'mazes'. Choose from \['adroit', 'antmaze', .*'kitchen'"):
        AGENTS[name][0]("MlpPolicy", dataset, family="mazes")


def test_what_the_user_sets_wins(dataset: OfflineDataset) -> None:
    agent = IQL("MlpPolicy", named(dataset, "antmaze-umaze-v2"), preset="fast", temperature=3.0, batch_size=256)
    assert agent.settings == dataclasses.replace(FAST, **{**ANTMAZE, "temperature": 3.0})
    assert agent.settings_origin["temperature"] == "user"
    # set by hand, though to the preset's own value
    assert agent.settings_origin["batch_size"] == "user"
    assert {n for n, origin in agent.settings_origin.items() if origin == "family"} == set(ANTMAZE) - {"temperature"}
    assert list(agent.settings_origin) == [field.name for field in dataclasses.fields(FAST)]
    assert agent.config()["settings_origin"] == agent.settings_origin
    assert agent.config()["family"] == "antmaze"


def test_the_networks_are_those_of_the_family(dataset: OfflineDataset) -> None:
    """AntMaze's observations stay as they are, and its rewards are shifted."""
    antmaze = named(dataset, "antmaze-umaze-v2")
    tiny = {key: value for key, value in TINY_IQL.items() if key != "normalize_observations"}
    assert float(IQL("MlpPolicy", antmaze, **tiny).policy.observation_mean.abs().max()) == 0
    assert float(IQL("MlpPolicy", antmaze, family=None, **tiny).policy.observation_mean.abs().max()) > 90


def test_a_loaded_agent_keeps_them(dataset: OfflineDataset) -> None:
    agent = IQL("MlpPolicy", named(dataset, "antmaze-umaze-v2"), **{**TINY_IQL, "temperature": 2.0})
    loaded = IQL.load(io.BytesIO(saved(agent)))
    assert loaded.settings == agent.settings
    assert loaded.settings_origin == agent.settings_origin
    assert loaded.family == "antmaze"


def test_an_agent_saved_before_origins_were_kept_loads(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset, kl_weight=0.07)

    def older(description: dict[str, Any]) -> None:
        del description["family"], description["settings_origin"]

    loaded = LDCQ.load(io.BytesIO(with_description(saved(agent), older)))
    assert loaded.settings == agent.settings
    assert loaded.family is None
    assert loaded.settings_origin["kl_weight"] == "user"
    assert loaded.settings_origin["critic_latent_hidden"] == "user"  # 16 in tests
    assert loaded.settings_origin["n_critics"] == "preset"


def test_an_agent_saved_before_a_setting_existed_loads(dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", dataset, critic="branches")
    assert agent.settings_origin["critic"] == "user"

    def older(description: dict[str, Any]) -> None:
        del description["settings"]["critic"], description["settings_origin"]["critic"]

    loaded = LDCQ.load(io.BytesIO(with_description(saved(agent), older)))
    assert loaded.settings == agent.settings
    assert loaded.settings_origin == agent.settings_origin | {"critic": "preset"}


@pytest.mark.parametrize("origin", [None, [], {}, {"steps": "preset"}, "preset"])
def test_damaged_origins_are_refused(dataset: OfflineDataset, origin: Any) -> None:
    blob = with_description(saved(make_agent("BC", dataset)), lambda d: d.update(settings_origin=origin))
    with pytest.raises(ValueError, match="not a valid BC file"):
        AGENTS["BC"][0].load(io.BytesIO(blob))


def test_a_fresh_energy_keeps_the_rest(dataset: OfflineDataset) -> None:
    locomotion = named(dataset, "mujoco/hopper/medium-v0")
    tiny = {key: value for key, value in TINY_LATENT_DIFFUSER.items() if key not in ("discount", "terminal_reward")}
    agent = LatentDiffuser("MlpPolicy", locomotion, seed=0, **tiny).learn()
    assert agent.settings.terminal_reward == -100.0
    colder = agent.with_energy(inverse_temperature=5.0, support_size=agent.settings.support_size)
    assert colder.family == "locomotion"
    assert colder.settings_origin["terminal_reward"] == colder.settings_origin["discount"] == "family"
    assert colder.settings_origin["inverse_temperature"] == "user"
    assert colder.settings_origin["gradient_clip"] == "preset"


def test_penalties_of_a_dataset_go_on_top_of_its_family(dataset: OfflineDataset) -> None:
    from ld_agents.baselines.rebrac import PENALTIES

    agent = ReBRAC("MlpPolicy", named(dataset, "mujoco/hopper/medium-v0"), **PENALTIES["hopper-medium-replay"])
    assert (agent.settings.batch_size, agent.settings.actor_penalty, agent.settings.critic_penalty) == (1024, 0.05, 0.5)


def test_origins_are_plain_json(name: str, dataset: OfflineDataset) -> None:
    config = make_agent(name, dataset).config()
    assert json.loads(json.dumps(config))["settings_origin"] == config["settings_origin"]
    assert set(config["settings_origin"].values()) <= {"preset", "family", "user"}
