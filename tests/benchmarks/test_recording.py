"""Recording: chunks that do not depend on processes or interruptions, and what ends up in Minari."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from walk import WALK, metadata, quiet

from ld_agents.baselines import bc
from ld_agents.data import recording
from ld_agents.data.recording import Episode, merge_checks, replay
from recording import recorder
from recording.behaviors import Behavior
from recording.recipes import Clone, Copy
from recording.recorder import Demonstrations, Recording

pytest.importorskip("gymnasium_robotics")
pytestmark = pytest.mark.usefixtures("folder")  # nothing is recorded outside the test's own folder


def test_episodes_and_statistics(folder: Path) -> None:
    data = quiet("test/walk-v0")
    assert data.n_steps == 1_000
    episodes = list(minari.load_dataset("test/walk-v0").iterate_episodes())
    returns = []
    for e in episodes:
        steps = len(e.rewards)
        assert len(e.observations) == steps + 1 <= 13
        assert e.terminations.tolist() == (e.observations[1:, 0] > 1).tolist()
        assert e.truncations.tolist() == [False] * (steps - 1) + [not e.terminations[-1]]
        np.testing.assert_allclose(np.diff(e.observations[:, 0]), 0.25 * e.actions[:, 0], atol=1e-6)
        returns.append(e.rewards.sum())
    whole = [i for i, e in enumerate(episodes) if e.terminations[-1] or len(e.rewards) == 12]
    assert 0 <= len(episodes) - len(whole) <= 1
    about = metadata(folder, "test/walk-v0")
    behavior = about["ld_agents"]["behaviour"]
    assert behavior["episodes"] == len(whole)
    assert behavior["mean_return"] == behavior["success_rate"] == pytest.approx(np.mean([returns[i] for i in whole]))
    assert 0.05 < behavior["success_rate"] < 0.9
    actions = data.actions.numpy()
    assert actions[:, 0].min() < -1.9
    assert actions[:, 0].max() > 1.9  # scaled to the range of the environment
    assert len(np.unique([e.observations[0, 0] for e in episodes])) == len(episodes)
    assert about["ld_agents"]["provenance"] == "stand-in"
    assert "1,000 steps (D4RL: 5,000), seed 0. A stand-in" in about["description"]
    check = about["ld_agents"]["replay_check"]
    assert check["passed"]
    assert check["max_next_state_error"] <= 1e-6
    assert check["steps"] >= 5 * 200  # five chunks of 200 steps, replayed whole


def test_data_do_not_depend_on_processes_but_on_seed_and_id() -> None:
    recipe = dataclasses.replace(WALK, env_id="Pendulum-v1", parts=[Behavior(1)], steps=5_000)
    one = quiet("test/pendulum-v0", recipe, chunk_steps=2_000)
    minari.delete_dataset("test/pendulum-v0")
    two = quiet("test/pendulum-v0", recipe, chunk_steps=2_000, processes=2)
    assert one.n_steps == two.n_steps == 5_000
    assert one.content_hash == two.content_hash
    seeded = quiet("test/seeded-v0", seed=1)
    same_seed, other = quiet("test/other-v0", seed=1), quiet("test/walk-v0")
    assert len({seeded.content_hash, same_seed.content_hash, other.content_hash}) == 3


def test_a_run_that_was_killed_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quiet("test/walk-v0")
    minari.delete_dataset("test/walk-v0")
    record, recorded = recording.record_chunk, []

    def killed_in_chunk_3(part: Recording, entropy: tuple[int, ...], file: Path) -> None:
        recorded.append(entropy[-1])
        if recorded == [0, 1, 2, 3]:
            file.with_suffix(".1.tmp").write_bytes(b"half a chunk")
            raise KeyboardInterrupt
        record(part, entropy, file)

    monkeypatch.setattr(recording, "record_chunk", killed_in_chunk_3)
    with pytest.raises(KeyboardInterrupt):
        quiet("test/walk-v0")
    assert minari.list_local_datasets() == {}
    again = quiet("test/walk-v0")
    assert recorded == [0, 1, 2, 3, 3, 4]
    assert again.content_hash == whole.content_hash
    assert list((folder / "minari").glob(".ld-agents-recording-*")) == []


def test_killed_while_it_is_stored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            quiet("test/walk-v0")
    assert minari.list_local_datasets() == {}
    with monkeypatch.context() as patch:
        patch.setattr(recording, "record_chunk", killed)
        assert quiet("test/walk-v0").n_steps == 1_000
    # Is there, also where the environment's code has moved since: nothing happens, but a record that is missing is
    # written; and nothing else can take its place.
    about = metadata(folder, "test/walk-v0")
    about["ld_agents"]["made_with"]["env"]["entry_point"] = "earlier:Walk"
    (folder / "minari" / "test/walk-v0" / "data" / "metadata.json").write_text(json.dumps(about))
    quiet("test/walk-v0", records=folder)
    for change, what in (
        ({"seed": 5}, "seed"),
        ({"steps": 900}, "steps"),
        ({"recipe": dataclasses.replace(WALK, parts=[Behavior(2, noise=0.1)])}, "parts"),
        ({"recipe": dataclasses.replace(WALK, env_id="test/UnseededWalk-v0")}, "env"),
        ({"recipe": dataclasses.replace(WALK, past_terminals=True)}, "past_terminals"),
    ):
        message = rf"test/walk-v0 exists, but was made with different {what}\. Delete it"
        with pytest.raises(FileExistsError, match=message):
            quiet("test/walk-v0", **change)
    assert metadata(folder, "test/walk-v0")["ld_agents"]["seed"] == 0
    record = json.loads((folder / "test-walk-v0.json").read_text())
    assert record["seed"] == 0
    assert record["episodes"] == len(minari.load_dataset("test/walk-v0"))
    assert sorted(path.name for path in (folder / "minari").iterdir()) == ["test"]


def test_a_killed_recording_does_not_go_on_in_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    record = recording.record_chunk

    def killed_in_chunk_3(part: Recording, entropy: tuple[int, ...], file: Path) -> None:
        if entropy[-1] == 3:
            raise KeyboardInterrupt
        record(part, entropy, file)

    monkeypatch.setattr(recording, "record_chunk", killed_in_chunk_3)
    with pytest.raises(KeyboardInterrupt):
        quiet("test/walk-v0", dataclasses.replace(WALK, env_kwargs=(("max_episode_steps", 30),)))
    monkeypatch.setattr(recording, "record_chunk", record)
    quiet("test/walk-v0")
    assert max(len(e.rewards) for e in minari.load_dataset("test/walk-v0").iterate_episodes()) == 12


def test_past_terminals(folder: Path) -> None:
    data = quiet("test/past-v0", dataclasses.replace(WALK, past_terminals=True, steps=600))
    episodes = list(minari.load_dataset("test/past-v0").iterate_episodes())
    assert [len(e.rewards) for e in episodes] == [12] * 50
    inside = [e for e in episodes if e.terminations[:-1].any()]
    assert inside
    for e in inside:
        assert e.rewards.tolist() == e.terminations.astype(float).tolist()
    # A return ends at the first terminal.
    behavior = metadata(folder, "test/past-v0")["ld_agents"]["behaviour"]
    assert behavior["mean_return"] == np.mean([e.rewards.max() for e in episodes])
    assert data.terminals.sum() > len(inside)


class Tired(Behavior):
    """Random actions for five steps."""

    def begin(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"left": 5}

    def finished(self, episode: dict[str, Any]) -> bool:
        return episode["left"] == 0

    def mean_actions(self, observations: Any, rngs: Any, episodes: Any) -> Any:
        for episode in episodes:
            episode["left"] -= 1
        return super().mean_actions(observations, rngs, episodes)


def test_an_episode_ends_when_its_behavior_has_finished() -> None:
    episodes, check = Recording("test/Walk-v0", Tired(2), 200).record((0,))
    lengths = {len(e.actions) for e in episodes if not e.terminals[-1]}
    assert lengths == {5}
    assert max(len(e.actions) for e in episodes) == 5
    assert merge_checks([check])["passed"]


def test_the_step_limit_of_a_recording(folder: Path) -> None:
    for limit, expected in ((None, 12), (7, 7), (20, 20)):
        part = Recording("test/Walk-v0", Behavior(2), 400, env_kwargs=(("max_episode_steps", limit),))
        assert max(len(e.actions) for e in part.record((0,))[0]) == expected
    quiet("test/long-v0", dataclasses.replace(WALK, env_kwargs=(("max_episode_steps", 20),)))
    assert max(len(e.rewards) for e in minari.load_dataset("test/long-v0").iterate_episodes()) == 20


def test_an_environment_that_does_not_replay_gets_no_reference_scores(folder: Path, capsys: Any) -> None:
    dataset_id = "ld-agents/locomotion/hopper-medium-v0"
    data = quiet(dataset_id, dataclasses.replace(WALK, env_id="test/UnseededWalk-v0"))
    about = metadata(folder, dataset_id)
    assert about["ld_agents"]["replay_check"]["passed"] is False
    assert about["ld_agents"]["replay_check"]["max_next_state_error"] > 1e-3
    assert about["ref_min_score"] is None
    assert data.info.reference_scores is None
    assert "do not replay" in capsys.readouterr().err
    other = "ld-agents/locomotion/hopper-expert-v0"
    assert quiet(other).info.reference_scores == (-20.272305, 3234.3)
    assert metadata(folder, other)["ref_max_score"] == 3234.3


def test_replay_counts_wrong_rewards_states_and_terminals() -> None:
    part = Recording("test/Walk-v0", Behavior(2), 240)
    episodes, check = part.record((0, 1))
    assert merge_checks([check])["passed"]
    env = part.make_env()
    for change, name in (
        ({"rewards": episodes[0].rewards + 0.01}, "max_reward_error"),
        ({"observations": episodes[0].observations + np.float32(0.01)}, "max_next_state_error"),
        ({"terminals": ~episodes[0].terminals}, "terminal_mismatches"),
        ({"rewards": episodes[0].rewards * np.nan}, "max_reward_error"),
    ):
        wrong = replay(env, [dataclasses.replace(episodes[0], **change)])
        assert wrong[name] >= 0.009 or math.isnan(wrong[name])
        assert not merge_checks([check, wrong])["passed"]
    assert not merge_checks([replay(env, [])])["passed"]


# -- sets made of other sets and of demonstrations -----------------------------------------------------------------


def test_joined_sets(folder: Path) -> None:
    first, second = quiet("test/first-v0", steps=300), quiet("test/second-v0", steps=200, seed=3)
    joined = quiet("test/joined-v0", dataclasses.replace(WALK, parts=[Copy("test/first-v0"), Copy("test/second-v0")],
                                                         steps=None))  # fmt: skip
    assert joined.n_steps == 500
    np.testing.assert_array_equal(joined.actions[:300], first.actions)
    np.testing.assert_array_equal(joined.observations[300:], second.observations)
    check = metadata(folder, "test/joined-v0")["ld_agents"]["replay_check"]
    parts = [metadata(folder, f"test/{name}-v0")["ld_agents"]["replay_check"]["steps"] for name in ("first", "second")]
    assert check["passed"]
    assert check["steps"] == sum(parts)
    # What the parts say of their episodes is kept: which of them are whole, which succeeded.
    abouts = [metadata(folder, f"test/{name}-v0")["ld_agents"] for name in ("first", "second", "joined")]
    behaviors, seconds = ([about[key] for about in abouts] for key in ("behaviour", "seconds"))
    counts = [behavior["episodes"] for behavior in behaviors]
    assert counts[2] == counts[0] + counts[1]
    for name in ("mean_return", "success_rate"):
        values = [behavior[name] for behavior in behaviors]
        assert values[2] == pytest.approx((values[0] * counts[0] + values[1] * counts[1]) / counts[2])
    assert seconds[2] == pytest.approx(seconds[0] + seconds[1], abs=0.11)


def test_cloned_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bc.PRESETS, "fast", dataclasses.replace(bc.FAST, steps=30))
    demonstrations = quiet("test/human-v0", steps=50)
    parts = [Clone("test/human-v0"), Copy("test/human-v0")]
    data = quiet("test/cloned-v0", dataclasses.replace(WALK, parts=parts, steps=260))
    assert data.n_steps == 260
    # The second half repeats the demonstrations: 130 = 50 + 50 + 30.
    expected = demonstrations.actions.numpy()[[*range(50), *range(50), *range(30)]]
    np.testing.assert_array_equal(data.actions[130:], expected)
    # The first half is a deterministic function of the observations, away from the demonstrations.
    assert set(metadata(folder, "test/cloned-v0")["ld_agents"]["policy_sha256"]) == {"clone.zip"}
    assert data.actions[:130].numpy().std() < 0.5 * expected.std()
    assert metadata(folder, "test/cloned-v0")["ld_agents"]["replay_check"]["passed"]


def test_demonstrations_are_replayed_from_their_starts(folder: Path) -> None:
    actions = np.array([[2, 0], [9, 0], [2, 0], [-1, 0.5], [2, 0], [2, 0]], np.float32)
    file = folder / "demos.npz"
    np.savez(file, actions=actions, episode_lengths=np.array([4, 2]), init_x=np.array([0.25, 0.75]))
    part = Demonstrations("test/Walk-v0", file)
    data = quiet("test/demos-v0", dataclasses.replace(WALK, parts=[part], steps=None))
    # Commands are clipped to [-1, 1]; beyond 1 the episode ends: 0.25, 0.5, 0.75, 1.0, 0.75 and 0.75, 1.0, 1.25.
    np.testing.assert_allclose(data.observations[:, 0], [0.25, 0.5, 0.75, 1.0, 0.75, 1.0])
    np.testing.assert_array_equal(data.actions, np.clip(actions, -1, 1))
    assert data.terminals.tolist() == [False] * 5 + [True]
    assert data.episode_ends.tolist() == [4, 6]
    # With more attempts, a demonstration that the environment never ends is left out.
    twice = quiet("test/twice-v0", dataclasses.replace(WALK, parts=[Demonstrations("test/Walk-v0", file, 2)],
                                                       steps=None))  # fmt: skip
    assert twice.n_steps == 2
    assert metadata(folder, "test/twice-v0")["ld_agents"]["replay_check"]["passed"]


def test_played_episodes_do_not_depend_on_their_number() -> None:
    few = recorder.play("test/Walk-v0", Behavior(2), 3, (5,))
    many = recorder.play("test/Walk-v0", Behavior(2), 25, (5,))
    assert len(many) == 25
    for a, b in zip(few, many, strict=False):
        np.testing.assert_array_equal(a.observations, b.observations)
    for episode in many:
        assert episode.terminals[:-1].sum() == 0
        assert episode.terminals[-1] or len(episode.actions) == 12
    assert len({float(episode.observations[0, 0]) for episode in many}) == 25


def test_cutting_an_episode() -> None:
    episode = Episode(np.zeros((6, 1)), np.zeros((5, 1)), np.arange(5.0), np.zeros(5, bool))
    assert episode.cut(5) is episode
    short = episode.cut(2)
    assert (len(short.observations), len(short.actions), short.rewards.tolist()) == (3, 2, [0, 1])
    assert not short.whole
