"""Names, files and repositories to agents; the agents that come with the package; making one."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from agent_blobs import members
from maze_agents import MAZE, maze_agent, noise

import ld_agents
import make_pretrained
from conftest import Trained, saved
from ld_agents import BC, LDCQ, OfflineDataset, evaluate, zoo
from ld_agents.data.minari import local_info
from ld_agents.evaluation.eval_env import environment_of, file_environment

CARDS = ld_agents.pretrained()


# ---------------------------------------------------------------- shipped agents


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_shipped_agent_is_what_its_card_says(card: zoo.Card) -> None:
    path = zoo.FOLDER / f"{card.name}.zip"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card.sha256
    assert path.stat().st_size == card.bytes
    agent = ld_agents.load(card.name, device="cpu")
    assert type(agent).__name__ == card.agent
    assert agent._dataset_identity == {"id": card.dataset, "hash": card.dataset_hash}
    assert agent.seed == card.seed
    returns = np.array(card.returns)
    points = returns
    if card.reference_scores is not None:
        low, high = card.reference_scores
        points = 100 * (returns - low) / (high - low)
    assert card.score == pytest.approx(points.mean(), abs=0.01)
    assert card.interval[0] <= card.score <= card.interval[1]


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_shipped_agent_scores_what_its_card_says(card: zoo.Card) -> None:
    """The first episodes of the card's evaluation. Simulators differ in the last bits, so returns are not equal."""
    n = 12 if set(card.returns) <= {0, 1} else 4  # with fewer, one that never succeeds could pass
    agent = ld_agents.load(card.name, device="cpu")
    outcome = evaluate(agent, agent.eval_env_spec().make, n, seed=card.evaluation_seed)
    of_card = np.array(card.returns)
    assert abs(np.mean(outcome.returns) - of_card.mean()) < 4 * of_card.std(ddof=1) / np.sqrt(n) + 1e-6


def test_shipped_agent_evaluates_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its dataset nor an environment is given: the name of the dataset tells."""
    agent = ld_agents.load("ldcq-pointmaze-large", device="cpu")
    steps = []
    monkeypatch.setattr(
        "ld_agents.common.acting.evaluate", lambda agent, make_env, *rest, **kw: steps.append(make_env())
    )
    agent.evaluate(n_episodes=1)
    assert steps[0].unwrapped.spec.id.startswith("PointMaze_Large")


def test_wheel_stays_small() -> None:
    assert sum(card.bytes for card in CARDS) < 12e6


# ---------------------------------------------------------------- load


@pytest.mark.parametrize("name", ["LDCQ", "BC"])
def test_load_finds_the_class(name: str, trained: Trained, tmp_path: Path) -> None:
    agent = trained(name)
    agent.save(tmp_path / "agent.zip")
    for source in (tmp_path / "agent.zip", str(tmp_path / "agent"), io.BytesIO(saved(agent))):
        loaded = ld_agents.load(source, device="cpu", seed=3)
        assert type(loaded) is type(agent)
        assert loaded.policy.noise_seed == 3
        assert members(saved(loaded)) == members(saved(type(agent).load(tmp_path / "agent.zip", seed=3)))


def test_own_agents_are_found_once_imported(dataset: OfflineDataset) -> None:
    own = type("MyBC", (BC,), {})
    agent = own("MlpPolicy", dataset, hidden=(8, 8), seed=0)
    assert type(ld_agents.load(io.BytesIO(saved(agent)))) is own


def test_load_says_what_there_is(dataset: OfflineDataset) -> None:
    with pytest.raises(FileNotFoundError, match=r"no pretrained agent \("):
        ld_agents.load("ldcq-nowhere")
    with pytest.raises(FileNotFoundError, match="is no file"):
        ld_agents.load("models/agent.zip")
    stranger = type("Stranger", (BC,), {})
    blob = saved(stranger("MlpPolicy", dataset, hidden=(8, 8), seed=0))
    stranger.__name__ = "Renamed"
    with pytest.raises(ValueError, match="no agent 'Stranger'"):
        ld_agents.load(io.BytesIO(blob))


def test_a_file_comes_before_a_repository(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained("BC").save("me/agent.zip")
    assert isinstance(ld_agents.load("me/agent"), BC)


# ---------------------------------------------------------------- environments and scores without the data


@pytest.mark.parametrize(
    ("dataset_id", "environment", "steps"),
    [
        (MAZE, "PointMaze_UMaze-v3", 300),
        ("ld-agents/pointmaze/large-v0", "PointMaze_Large-v3", 800),
        ("ld-agents/antmaze/medium-diverse-v1", "ld_agents/AntMaze-medium-v0", 1000),
        ("ld-agents/locomotion/hopper-medium-v1", "Hopper-v4", 1000),
        ("ld-agents/adroit/door-human-v0", "ld_agents/AdroitDoor-v0", 200),
        ("folder/maze2d-large-v1.hdf5", "PointMaze_Large-v3", 800),
    ],
)
def test_environment_of_a_name(dataset_id: str, environment: str, steps: int) -> None:
    spec = environment_of(dataset_id)
    assert spec is not None
    assert (spec.id, spec.max_episode_steps) == (environment, steps)
    if dataset_id.endswith(".hdf5"):
        assert spec == file_environment("maze2d-large"), "D4RL's own goal"


def test_unknown_environment(trained: Trained) -> None:
    assert environment_of("me/walk-v0") is None
    with pytest.raises(ValueError, match=r"names an environment\. Pass one"):
        ld_agents.load(io.BytesIO(saved(trained("BC")))).eval_env_spec()


def test_scores_need_a_check_or_a_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = maze_agent()
    returns = [23.85, 161.86]
    np.testing.assert_allclose(zoo.scores(agent, returns), [0, 100])  # type: ignore[arg-type]
    loaded = ld_agents.load(io.BytesIO(saved(agent)))
    assert local_info(MAZE) is None
    monkeypatch.setattr(zoo, "pretrained", list)
    assert zoo.scores(loaded, returns) is None, "nothing here tells whether D4RL's scale applies"
    hash_of_data = loaded._dataset_identity["hash"]
    card = zoo.Card("x", "LDCQ", MAZE, hash_of_data, 0, "fast", {}, [1.0], 0, [23.85, 161.86], 0, [0, 0], "", 0, None)
    monkeypatch.setattr(zoo, "pretrained", lambda: [card])
    np.testing.assert_allclose(zoo.scores(loaded, returns), [0, 100])  # type: ignore[arg-type]
    monkeypatch.setattr(zoo, "pretrained", lambda: [dataclasses.replace(card, dataset_hash="other")])
    assert zoo.scores(loaded, returns) is None


# ---------------------------------------------------------------- making one


def make_small_zoo(folder: Path) -> zoo.Card:
    """One shipped agent in a folder: a tiny LDCQ."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_pretrained, "local_info", lambda _: noise().info)
        maze_agent().save(folder / "trained" / "agent.zip")
        return make_pretrained.make("tiny", folder / "trained" / "agent.zip", 2, folder)


def test_make_writes_file_and_card_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = make_small_zoo(tmp_path)
    assert zoo.pretrained(tmp_path) == [card]
    assert json.loads((tmp_path / "manifest.json").read_text())["tiny"]["sha256"] == card.sha256
    assert hashlib.sha256((tmp_path / "tiny.zip").read_bytes()).hexdigest() == card.sha256
    assert card.settings["horizon"] == 5
    assert "vae_batch_size" in card.settings
    agent = zoo.load_file(tmp_path / "tiny.zip")
    assert isinstance(agent, LDCQ)
    again = evaluate(agent, agent.eval_env_spec().make, 2, seed=card.evaluation_seed)
    np.testing.assert_allclose(again.returns, card.returns, atol=1e-4)
    assert str(card).startswith(f"tiny: LDCQ on {MAZE}, D4RL score {card.score:.1f} [")

    # a damaged file is not loaded
    assert zoo.pretrained_file("tiny", tmp_path) == tmp_path / "tiny.zip"
    assert zoo.pretrained_file("other", tmp_path) is None
    whole = (tmp_path / "tiny.zip").read_bytes()
    (tmp_path / "tiny.zip").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="Install ld_agents again"):
        zoo.pretrained_file("tiny", tmp_path)
    (tmp_path / "tiny.zip").write_bytes(whole)

    # an evaluation that fails changes nothing
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the simulator is gone")

    monkeypatch.setattr(make_pretrained, "evaluate", fail)
    with pytest.raises(RuntimeError, match="simulator"):
        make_small_zoo(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
