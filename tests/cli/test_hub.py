"""Agents on the hub: a bit-equal round trip, valid metadata, and downloads that are refused before they begin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_blobs import members
from hub_stub import Hub, serving
from huggingface_hub import ModelCard
from maze_agents import MAZE, maze_agent

import ld_agents
from conftest import differing, saved, weights
from ld_agents import Evaluation, hub
from ld_agents.common.offline_algorithm import OfflineAlgorithm


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    with serving(tmp_path / "cache") as stub:
        yield stub


@pytest.fixture(scope="module")
def agent() -> OfflineAlgorithm:
    return maze_agent()


EVALUATION = Evaluation([50.0, 100.0, 150.0, 0.0], [300] * 4, [None] * 4, [None] * 4, {"per_action": 1.0}, 1.0)


def test_round_trip_is_bit_equal(server: Hub, agent: OfflineAlgorithm, tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"frames")
    address = ld_agents.push_to_hub(agent, "me/agent", evaluation=EVALUATION, video=tmp_path / "v.mp4")
    assert address == f"{server.url}/me/agent"
    assert set(server.files) == {"agent.zip", "README.md", "video.mp4"}
    for loaded in (ld_agents.load("me/agent"), ld_agents.load_from_hub("me/agent", seed=agent.seed)):
        assert type(loaded) is type(agent)
        assert not differing(weights(loaded), weights(agent))
    assert members(saved(ld_agents.load("me/agent"))) == members(saved(agent)) == members(server.files["agent.zip"])
    fetched = [path for verb, path in server.asked if verb == "GET" and "/resolve/" in path]
    assert len(fetched) == 1, "the second time it is in the cache"
    assert fetched[0].endswith("/agent.zip"), "nothing but the agent is fetched"


def test_card_is_valid_and_says_what_was_measured(agent: OfflineAlgorithm) -> None:
    text = hub.model_card(agent, "me/agent", EVALUATION, with_video=True)
    data = ModelCard(text).data
    results = {result.metric_type: result for result in data.eval_results or []}
    assert results["mean_reward"].metric_value == 75
    assert results["mean_reward"].dataset_type == MAZE
    assert results["d4rl_score"].metric_value == pytest.approx(100 * (75 - 23.85) / (161.86 - 23.85), abs=1e-3)
    low, high = results["mean_reward"].metric_args["interval_95"]  # type: ignore[index]
    assert (low, high) == EVALUATION.interval()
    assert data.library_name == "ld-agents"
    assert 'ld_agents.load("me/agent")' in text
    assert f"| mean return | 75.00 | [{low:.2f}, {high:.2f}] | 4 |" in text
    assert "video.mp4" in text
    assert '"horizon": 5' in text


def test_card_without_scores(agent: OfflineAlgorithm) -> None:
    text = hub.model_card(agent, "me/agent")
    assert ModelCard(text).data.eval_results is None
    assert "Not evaluated." in text
    assert "mp4" not in text


@pytest.mark.parametrize("claimed", [1 << 31, None])
def test_size_and_number_of_files_are_checked_before(claimed: int | None, server: Hub, agent: OfflineAlgorithm) -> None:
    ld_agents.push_to_hub(agent, "me/agent")
    server.claimed = claimed
    if claimed is None:
        server.files |= {f"file{i}": b"" for i in range(1000)}
    with pytest.raises(ValueError, match="limits"):
        ld_agents.load_from_hub("me/agent")
    assert not [path for _, path in server.asked if "/resolve/" in path]


def test_a_size_that_was_not_true(server: Hub, agent: OfflineAlgorithm) -> None:
    ld_agents.push_to_hub(agent, "me/agent")
    server.claimed = 10
    with pytest.raises((ValueError, FileNotFoundError)):
        ld_agents.load_from_hub("me/agent")


def test_what_is_not_there(server: Hub) -> None:
    with pytest.raises(ValueError, match=r"no agent\.zip"):
        ld_agents.load_from_hub("me/agent")
    with pytest.raises(FileNotFoundError, match="hf auth login"):
        ld_agents.load("you/nothing")
