"""Recording: behaviours by hand, chunks that do not depend on processes or interruptions, what ends up in Minari."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium import spaces

import make_datasets
from ld_agents import OfflineDataset, load_dataset
from ld_agents.baselines import bc
from ld_agents.evaluation import environments
from ld_agents.evaluation.scores import TASKS, MeasuredScore
from make_datasets import make
from recording import recorder, reference_policies
from recording.behaviours import AntNavigator, Behaviour, DapgPolicy, LocomotionActor, SavedAgent
from recording.kitchen_script import KitchenScript
from recording.recipes import Clone, Copy, Recipe, recipes
from recording.recorder import Demonstrations, Episode, Recording
from reporting import datasets_table

ROBOTICS = pytest.importorskip("gymnasium_robotics")


class Walk(gym.Env[Any, Any]):
    """A point on a line. Every step moves it by the first action; beyond 1 it ends with reward 1, as often as it likes.

    `unseeded` adds noise that no seed reaches.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(np.array([-2, -1], np.float32), np.array([2, 1], np.float32))

    def __init__(self, unseeded: bool = False) -> None:
        self.unseeded = np.random.default_rng() if unseeded else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-0.5, 0.5), 0
        if options is not None and "initial_state_dict" in options:
            self.x = float(options["initial_state_dict"]["x"])
        return np.array([self.x, 0.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.x += 0.25 * float(action[0])
        if self.unseeded is not None:
            self.x += 0.01 * float(self.unseeded.normal())
        self.t += 1
        done = self.x > 1
        return np.array([self.x, self.t / 10]), float(done), done, False, {"success": done}


gym.register("test/Walk-v0", f"{__name__}:Walk", max_episode_steps=12)
gym.register("test/UnseededWalk-v0", f"{__name__}:Walk", max_episode_steps=12, kwargs={"unseeded": True})

WALK = Recipe("test/Walk-v0", "stand-in", "A walk.", [Behaviour(2)], steps=1_000, original_steps=5_000)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()
    return tmp_path


def quiet(dataset_id: str, recipe: Recipe = WALK, steps: int | None = None, **settings: Any) -> OfflineDataset:
    make(dataset_id, recipe, steps, **{"chunk_steps": 200, "show_progress": False, **settings})
    return load_dataset(dataset_id, download=False)


def metadata(folder: Path, dataset_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "minari" / dataset_id / "data" / "metadata.json").read_text())
    return found


def streams(n: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(n)]


# -- behaviours ----------------------------------------------------------------------------------------------------


def test_locomotion_actor_by_hand(tmp_path: Path) -> None:
    weights: dict[str, Any] = {
        "w0": np.array([[1.0, 2.0], [-1.0, 0.5]]),
        "b0": np.array([0.1, -0.2]),
        "w1": np.array([[0.5, -1.0]]),
        "b1": np.array([0.3]),
        "n_layers": 2,
        "activation": "relu",
        "squash": True,
        "obs_mean": np.array([1.0, 0.0]),
        "obs_var": np.array([4.0, 1.0]),
        "epsilon": 0.0,
        "clip_obs": 3.0,
    }
    np.savez(tmp_path / "a.npz", **weights)
    # Normalised: ((3 - 1) / 2, clip(9)) = (1, 3); hidden: relu(7.1), relu(0.3); output 0.5 * 7.1 - 0.3 + 0.3 = 3.55.
    actor = LocomotionActor(1, file=tmp_path / "a.npz")
    assert actor.act(np.array([[3.0, 9.0]]), streams(1), [{}])[0, 0] == pytest.approx(math.tanh(3.55), abs=1e-6)
    np.savez(tmp_path / "b.npz", **weights | {"activation": "tanh", "squash": False, "log_std": np.array([-1.0])})
    mean = 0.5 * math.tanh(7.1) - math.tanh(0.3) + 0.3
    actor = LocomotionActor(1, file=tmp_path / "b.npz")
    assert actor.act(np.array([[3.0, 9.0]]), streams(1), [{}])[0, 0] == pytest.approx(mean, abs=1e-6)
    # Its own noise and the added noise are independent: variances add up (away from the clip).
    noisy = LocomotionActor(1, 0.1, tmp_path / "b.npz", stochastic=True)
    actions = noisy.act(np.full((20_000, 2), [3.0, 9.0]), streams(20_000), [{}] * 20_000)
    median_deviation = np.quantile(np.abs(actions - mean), 0.5)
    assert median_deviation == pytest.approx(0.6745 * math.hypot(math.exp(-1), 0.1), rel=0.04)
    gaussian = {"log_std_w": np.array([[0.0, 1.0]]), "log_std_b": np.array([-9.0])}
    np.savez(tmp_path / "c.npz", **weights | gaussian)
    squashed = LocomotionActor(1, file=tmp_path / "c.npz", stochastic=True)
    actions = np.arctanh(squashed.act(np.full((20_000, 2), [3.0, 9.0]), streams(20_000), [{}] * 20_000))
    assert actions.std() == pytest.approx(math.exp(0.3 - 9.0), rel=0.03)


def test_dapg_policy_by_hand(tmp_path: Path) -> None:
    one = np.ones((1, 1))
    np.savez(
        tmp_path / "p.npz",
        w0=2 * one, b0=np.array([0.1]), w1=one, b1=np.array([0.0]), w2=0.5 * one, b2=np.array([0.2]),
        log_std=np.array([-2.0]), in_shift=np.array([1.0]), in_scale=np.array([2.0]),
        out_shift=np.array([0.05]), out_scale=np.array([0.5]),
    )  # fmt: skip
    mean = (0.5 * math.tanh(math.tanh(2 * (2.0 - 1.0) / 2.0 + 0.1)) + 0.2) * 0.5 + 0.05
    still = DapgPolicy(1, file=tmp_path / "p.npz", spread=0.0)
    assert still.act(np.array([[2.0]]), streams(1), [{}])[0, 0] == pytest.approx(mean)
    twice = DapgPolicy(1, file=tmp_path / "p.npz", spread=2.0)
    actions = twice.act(np.full((20_000, 1), 2.0), streams(20_000), [{}] * 20_000)
    assert actions.std() == pytest.approx(2 * math.exp(-2), rel=0.03)
    assert actions.mean() == pytest.approx(mean, abs=0.01)


def test_ant_navigator_follows_shortest_paths() -> None:
    umaze = AntNavigator(8, maze="umaze")
    episode = umaze.begin(np.random.default_rng(0))
    assert (episode["cell"], episode["start"]) == ((3, 1), (0.0, 0.0))
    assert 0 < episode["goal"][0] < 1.5
    assert 8 < episode["goal"][1] < 9.5
    route, path = umaze.next_cells[(3, 1)], [(1, 1)]
    while path[-1] != (3, 1):
        path.append(route[path[-1]])
    assert path == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    rng = np.random.default_rng(0)
    directions = np.array([umaze._direction(0.0, 0.0, episode, rng) for _ in range(500)])
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 10)
    angles = np.arctan2(directions[:, 1], directions[:, 0])
    # Towards (4, 0) and up to a metre beyond it on either axis.
    assert 0 <= angles.min() < 0.02
    assert 0.2 < angles.max() <= math.atan2(1, 4)
    # In the goal's cell: straight to the goal.
    x, y = episode["goal"]
    assert umaze._direction(x + 0.1, y + 0.1, episode, rng) == pytest.approx((-10 / math.sqrt(2), -10 / math.sqrt(2)))
    # A position inside a wall counts as the nearest cell.
    x, y = umaze._direction(2.1, 2.5, episode, rng)
    assert math.hypot(x, y) == pytest.approx(10)


def test_diverse_starts_and_goals() -> None:
    large = AntNavigator(8, maze="large", random_cells=True)
    assert len(large.free_cells) == 46
    rng = np.random.default_rng(0)
    episodes = [large.begin(rng) for _ in range(2_000)]
    assert {e["cell"] for e in episodes} == set(large.free_cells)
    for e in episodes:
        offset = np.array(e["goal"]) - environments.cell_position(e["cell"])
        assert (offset >= 0).all()
        assert (offset <= 1.5).all()
        start = round(e["start"][1] / 4) + 1, round(e["start"][0] / 4) + 1
        assert start in large.free_cells
        assert start != e["cell"]


def test_ant_navigator_network_by_hand(tmp_path: Path) -> None:
    # Input: 27 numbers of the ant and 2 of the direction. The first layer passes the direction on, (10, 0) here.
    fc0 = np.zeros((256, 29))
    fc0[0, 27], fc0[1, 28], fc0[2, 0] = 1, 1, 1
    fc1 = np.eye(256)
    last = np.zeros((8, 256))
    last[0, 0], last[1, 1], last[2, 2] = 0.1, 0.1, 1.0
    np.savez(
        tmp_path / "ant.npz",
        fc0_weight=fc0, fc0_bias=np.zeros(256), fc1_weight=fc1, fc1_bias=np.zeros(256), last_fc_weight=last,
        last_fc_bias=np.zeros(8), last_fc_log_std_weight=np.zeros((8, 256)), last_fc_log_std_bias=np.full(8, -30.0),
    )  # fmt: skip
    ant = AntNavigator(8, file=tmp_path / "ant.npz")
    observation = np.zeros((1, 29))
    observation[0, :3] = [-1.0, 8.0, 0.4]
    actions = ant.act(observation, streams(1), [{"cell": (3, 1), "goal": (1.0, 8.0)}])
    np.testing.assert_allclose(actions[0], [math.tanh(1), 0, math.tanh(0.4), 0, 0, 0, 0, 0], atol=1e-6)


def test_missing_policies_are_reported(tmp_path: Path) -> None:
    recipe = recipes(tmp_path)["ld-agents/adroit/pen-expert-v0"]
    with pytest.raises(FileNotFoundError, match=r"no file .*pen_dapg_policy\.npz.*--policies"):
        quiet("ld-agents/adroit/pen-expert-v0", recipe)


# -- reference policies --------------------------------------------------------------------------------------------


def test_played_episodes_do_not_depend_on_their_number() -> None:
    few = recorder.play("test/Walk-v0", Behaviour(2), 3, (5,))
    many = recorder.play("test/Walk-v0", Behaviour(2), 25, (5,))
    assert len(many) == 25
    for a, b in zip(few, many, strict=False):
        np.testing.assert_array_equal(a.observations, b.observations)
    for episode in many:
        assert episode.terminals[:-1].sum() == 0
        assert episode.terminals[-1] or len(episode.actions) == 12
    assert len({float(episode.observations[0, 0]) for episode in many}) == 25


def test_reference_policies_are_measured_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "walk": ("test/Walk-v0", "expert", Behaviour(2, noise=9.0)),
        "other": ("test/Walk-v0", "expert", Behaviour(2)),
    }
    monkeypatch.setattr(reference_policies, "reference_policies", lambda _: known)
    out = folder / "measured.json"
    arguments = ["--policies", "p", "--episodes", "40", "--processes", "1", "--out", str(out)]
    reference_policies.main([*arguments, "--tasks", "walk"])
    found = json.loads(out.read_text())
    assert list(found) == ["walk"]
    assert set(found["walk"]) == {"random", "expert"}
    for entry in found["walk"].values():
        assert (entry["environment"], entry["episodes"]) == ("test/Walk-v0", 40)
        # One reward, at the terminal.
        assert entry["mean_return"] == entry["success_rate"]
        assert entry["std_return"] == pytest.approx(math.sqrt(entry["mean_return"] * (1 - entry["mean_return"])))
    assert found["walk"]["random"]["policy"]["noise"] == 0.0
    assert 0.05 < found["walk"]["random"]["mean_return"] < found["walk"]["expert"]["mean_return"]
    out.write_text(out.read_text().replace("0.", "7."))
    reference_policies.main(arguments)
    again = json.loads(out.read_text())
    assert again["walk"]["random"]["mean_return"] > 7
    assert again["other"]["random"]["mean_return"] < 1
    with pytest.raises(SystemExit):
        reference_policies.main([*arguments, "--tasks", "nothing"])


def test_reference_policies_act_in_the_environments_of_the_data() -> None:
    known = reference_policies.reference_policies(Path("policies"))
    for dataset_id, recipe in recipes(Path("policies")).items():
        env_id, _, behaviour = known[TASKS[dataset_id]]
        assert env_id == recipe.env_id
        for part in recipe.parts:
            if isinstance(part, Behaviour):
                assert behaviour.action_size == part.action_size


# -- recording -----------------------------------------------------------------------------------------------------


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
    behaviour = about["ld_agents"]["behaviour"]
    assert behaviour["episodes"] == len(whole)
    assert behaviour["mean_return"] == behaviour["success_rate"] == pytest.approx(np.mean([returns[i] for i in whole]))
    assert 0.05 < behaviour["success_rate"] < 0.9
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
    recipe = dataclasses.replace(WALK, env_id="Pendulum-v1", parts=[Behaviour(1)], steps=5_000)
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
    record, recorded = recorder.record_chunk, []

    def killed_in_chunk_3(part: Recording, entropy: tuple[int, ...], file: Path) -> None:
        recorded.append(entropy[-1])
        if recorded == [0, 1, 2, 3]:
            file.with_suffix(".1.tmp").write_bytes(b"half a chunk")
            raise KeyboardInterrupt
        record(part, entropy, file)

    monkeypatch.setattr(recorder, "record_chunk", killed_in_chunk_3)
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
        patch.setattr(recorder.os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            quiet("test/walk-v0")
    assert minari.list_local_datasets() == {}
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "record_chunk", killed)
        assert quiet("test/walk-v0").n_steps == 1_000
    # Is there: nothing happens, but a record that is missing is written; and nothing else can take its place.
    quiet("test/walk-v0", records=folder)
    for change, what in (
        ({"seed": 5}, "seed"),
        ({"steps": 900}, "steps"),
        ({"recipe": dataclasses.replace(WALK, parts=[Behaviour(2, noise=0.1)])}, "parts"),
        ({"recipe": dataclasses.replace(WALK, env_id="test/UnseededWalk-v0")}, "env"),
        ({"recipe": dataclasses.replace(WALK, past_terminals=True)}, "past_terminals"),
    ):
        with pytest.raises(FileExistsError, match=rf"test/walk-v0 is there, but made with other {what}\. Delete it"):
            quiet("test/walk-v0", **change)
    assert metadata(folder, "test/walk-v0")["ld_agents"]["seed"] == 0
    record = json.loads((folder / "test-walk-v0.json").read_text())
    assert record["seed"] == 0
    assert record["episodes"] == len(minari.load_dataset("test/walk-v0"))
    assert sorted(path.name for path in (folder / "minari").iterdir()) == ["test"]


def test_a_killed_recording_does_not_go_on_in_another_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorder.record_chunk

    def killed_in_chunk_3(part: Recording, entropy: tuple[int, ...], file: Path) -> None:
        if entropy[-1] == 3:
            raise KeyboardInterrupt
        record(part, entropy, file)

    monkeypatch.setattr(recorder, "record_chunk", killed_in_chunk_3)
    with pytest.raises(KeyboardInterrupt):
        quiet("test/walk-v0", dataclasses.replace(WALK, env_kwargs=(("max_episode_steps", 30),)))
    monkeypatch.setattr(recorder, "record_chunk", record)
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
    behaviour = metadata(folder, "test/past-v0")["ld_agents"]["behaviour"]
    assert behaviour["mean_return"] == np.mean([e.rewards.max() for e in episodes])
    assert data.terminals.sum() > len(inside)


class Tired(Behaviour):
    """Random actions for five steps."""

    def begin(self, rng: np.random.Generator) -> dict[str, Any]:
        return {"left": 5}

    def finished(self, episode: dict[str, Any]) -> bool:
        return episode["left"] == 0

    def mean_actions(self, observations: Any, rngs: Any, episodes: Any) -> Any:
        for episode in episodes:
            episode["left"] -= 1
        return super().mean_actions(observations, rngs, episodes)


def test_an_episode_ends_when_its_behaviour_has_finished() -> None:
    episodes, check = Recording("test/Walk-v0", Tired(2), 200).record((0,))
    lengths = {len(e.actions) for e in episodes if not e.terminals[-1]}
    assert lengths == {5}
    assert max(len(e.actions) for e in episodes) == 5
    assert recorder.merge_checks([check])["passed"]


def test_the_step_limit_of_a_recording(folder: Path) -> None:
    for limit, expected in ((None, 12), (7, 7), (20, 20)):
        part = Recording("test/Walk-v0", Behaviour(2), 400, env_kwargs=(("max_episode_steps", limit),))
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
    part = Recording("test/Walk-v0", Behaviour(2), 240)
    episodes, check = part.record((0, 1))
    assert recorder.merge_checks([check])["passed"]
    env = part.make_env()
    for change, name in (
        ({"rewards": episodes[0].rewards + 0.01}, "max_reward_error"),
        ({"observations": episodes[0].observations + np.float32(0.01)}, "max_next_state_error"),
        ({"terminals": ~episodes[0].terminals}, "terminal_mismatches"),
        ({"rewards": episodes[0].rewards * np.nan}, "max_reward_error"),
    ):
        wrong = recorder.replay(env, [dataclasses.replace(episodes[0], **change)])
        assert wrong[name] >= 0.009 or math.isnan(wrong[name])
        assert not recorder.merge_checks([check, wrong])["passed"]
    assert not recorder.merge_checks([recorder.replay(env, [])])["passed"]


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
    behaviours, seconds = ([about[key] for about in abouts] for key in ("behaviour", "seconds"))
    counts = [behaviour["episodes"] for behaviour in behaviours]
    assert counts[2] == counts[0] + counts[1]
    for name in ("mean_return", "success_rate"):
        values = [behaviour[name] for behaviour in behaviours]
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


# -- the recipes and the command line ------------------------------------------------------------------------------


def test_recipes_fit_environments_scores_and_labels() -> None:
    environments.register()
    known = recipes(Path("policies"))
    assert len(known) == 3 + 12 + 12 + 3
    for dataset_id, recipe in known.items():
        assert dataset_id in TASKS
        assert recipe.env_id in gym.registry
        assert recipe.original_steps is not None
        for part in recipe.parts:
            if isinstance(part, Copy | Clone):
                assert part.dataset_id in known
            elif type(part) not in (Behaviour, KitchenScript):
                assert part.file.parts[0] == "policies"  # type: ignore[union-attr]
    stand_ins = {i for i, recipe in known.items() if recipe.provenance == "stand-in"}
    assert {i for i in known if "/locomotion/" in i or "/kitchen/" in i} < stand_ins
    assert {i for i in stand_ins if "/adroit/" in i} == {
        f"ld-agents/adroit/{task}-{level}-v0" for task in ("pen", "hammer", "relocate") for level in ("human", "cloned")
    }
    real = [i for i, recipe in known.items() if recipe.demonstrations == "real"]
    assert real == ["ld-agents/adroit/door-human-v0"]


def test_names_on_the_command_line(capsys: Any) -> None:
    select = make_datasets.select
    assert select(["pen-expert"]) == ["ld-agents/adroit/pen-expert-v0"]
    assert select(["antmaze-umaze", "ld-agents/antmaze/umaze-v0"]) == ["ld-agents/antmaze/umaze-v0"]
    assert select(["hopper-medium-expert"]) == [
        f"ld-agents/locomotion/hopper-{level}-v0" for level in ("medium", "expert", "medium-expert")
    ]
    assert select(["door-cloned"]) == [f"ld-agents/adroit/door-{level}-v0" for level in ("human", "cloned")]
    assert len(select(["locomotion"])) == 12
    assert sorted(select(["all"])) == sorted(recipes())
    with pytest.raises(ValueError, match=r"no recipe for 'pen-mixed'. Choose from: ld-agents/antmaze/umaze-v0"):
        select(["pen-mixed"])
    for arguments in (
        [],
        ["all"],
        ["all", "--policies", "p", "--env", "Hopper-v5"],
        ["--env", "Hopper-v5"],
        ["all", "--policies", "p", "--steps", "0"],
        ["all", "--policies", "p", "--seed", "-1"],
        ["all", "--policies", "p", "--noise", "0.1"],
        ["all", "--policies", "p", "--trust"],
    ):
        with pytest.raises(SystemExit):
            make_datasets.main(arguments)
    told = capsys.readouterr().err
    for message in ("belong together", "--seed and --noise must be at least 0", "belong to an agent of your own"):
        assert message in told


def saved_agent(folder: Path, algorithm: str) -> Path:
    import sb3_contrib
    import stable_baselines3

    cls = getattr(stable_baselines3 if algorithm == "SAC" else sb3_contrib, algorithm)
    agent = cls("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [16]}, learning_starts=80, seed=0, device="cpu")
    agent.learn(100)
    agent.save(folder / f"{algorithm}.zip")
    return folder / f"{algorithm}.zip"


@pytest.mark.parametrize("algorithm", ["SAC", "TQC"])
def test_recording_from_a_saved_agent(folder: Path, algorithm: str) -> None:
    file = saved_agent(folder, algorithm)
    command = ["--env", "Pendulum-v1", "--agent", str(file), "--algo", algorithm, "--steps", "450", "--processes", "1"]
    with pytest.raises(SystemExit, match=r"holds pickled objects.*run any code.*--trust"):
        make_datasets.main([*command, "--id", "me/pendulum/plain-v0"])
    assert minari.list_local_datasets() == {}
    make_datasets.main([*command, "--id", "me/pendulum/plain-v0", "--trust"])
    make_datasets.main([*command, "--id", "me/pendulum/noisy-v0", "--trust", "--noise", "0.25"])
    plain, noisy = load_dataset("me/pendulum/plain-v0"), load_dataset("me/pendulum/noisy-v0")
    assert plain.n_steps == noisy.n_steps == 450
    agent = SavedAgent(1, file=file, algorithm=algorithm, trusted=True).agent
    for data, deviation in ((plain, 0.0), (noisy, 0.5)):  # a quarter of half the range, which is 2
        expected, _ = agent.predict(data.observations.numpy(), deterministic=True)
        offset = data.actions.numpy() - expected
        inside = (np.abs(data.actions.numpy()) < 2) & (np.abs(expected) < 1)
        assert inside.mean() > 0.1
        if deviation:
            assert offset[inside].std() == pytest.approx(deviation, rel=0.25)
        assert np.abs(offset).max() <= (1e-5 if not deviation else 4)
    about = metadata(folder, "me/pendulum/noisy-v0")
    assert about["ld_agents"]["replay_check"]["passed"]
    assert about["ref_min_score"] is None
    assert list(about["ld_agents"]["policy_sha256"]) == [file.name]
    assert "standard deviation 0.25" in about["description"]
    assert plain.make_eval_env().reset(seed=0)[0].shape == (3,)


def test_agents_that_do_not_fit(folder: Path) -> None:
    file = saved_agent(folder, "SAC")
    for env, agent, message in (
        ("Hopper-v5", file, "was trained with .*Hopper-v5 has"),
        ("Nowhere-v0", file, "knows no environment 'Nowhere-v0'"),
        ("CartPole-v1", file, "Only flat observations and continuous actions"),
        ("Pendulum-v1", folder / "none.zip", "There is no file"),
        ("no_such_module:X-v0", file, "The module 'no_such_module' of the environment 'X-v0' cannot be imported"),
    ):
        with pytest.raises(SystemExit, match=message):
            make_datasets.main(["--env", env, "--agent", str(agent), "--algo", "SAC", "--id", "me/x-v0", "--trust"])
    command = ["--env", "Pendulum-v1", "--agent", str(file), "--algo", "PPO", "--id", "me/x-v0", "--trust"]
    with pytest.raises(SystemExit, match=r"SAC.zip cannot be read as a zip of PPO \(TypeError"):
        make_datasets.main(command)
    for wrong in ("../me/x-v0", "me/x"):
        with pytest.raises(SystemExit, match="is not a Minari id"):
            make_datasets.main(
                ["--env", "Pendulum-v1", "--agent", str(file), "--algo", "SAC", "--id", wrong, "--trust"]
            )
    assert minari.list_local_datasets() == {}


def test_an_environment_of_ones_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own_pendulum.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('OwnPendulum-v0', 'gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=30)\n"
    )
    monkeypatch.chdir(folder)
    file = saved_agent(folder, "SAC")
    command = ["--env", "own_pendulum:OwnPendulum-v0", "--agent", str(file), "--algo", "SAC", "--trust"]
    make_datasets.main([*command, "--id", "me/own-v0", "--steps", "90", "--processes", "1"])
    data = load_dataset("me/own-v0")
    assert data.episode_ends.tolist() == [30, 60, 90]
    assert data.make_eval_env().spec.id == "OwnPendulum-v0"  # type: ignore[union-attr]


# -- the table -----------------------------------------------------------------------------------------------------


@pytest.fixture
def records(folder: Path) -> Path:
    name = "ld-agents/adroit/{}-v0"
    quiet(name.format("door-human"), dataclasses.replace(WALK, demonstrations="real", provenance="regenerated"),
          records=folder / "records")  # fmt: skip
    quiet(name.format("pen-human"), dataclasses.replace(WALK, env_id="test/UnseededWalk-v0"),
          records=folder / "records")  # fmt: skip
    return folder / "records"


def test_the_table(records: Path) -> None:
    text = datasets_table.page(records)
    header, door = (
        next(
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith(start)
        )
        for start in ("| dataset |", "| ld-agents/adroit/door-human")
    )
    cells = dict(zip(header, door, strict=True))
    record = json.loads((records / "ld-agents-adroit-door-human-v0.json").read_text())
    mean = record["behaviour"]["mean_return"]
    assert cells["made by"] == "real"
    assert (cells["steps"], cells["of D4RL's"]) == ("1,000", "5,000")
    assert cells["return"].startswith(f"{mean:.4g} ±")
    assert float(cells["score"]) == pytest.approx(100 * (mean + 56.512833) / (2880.5693 + 56.512833), abs=0.05)
    assert cells["success"] == f"{100 * mean:.0f} %"
    assert cells["SHA-256"] == f"`{load_dataset('ld-agents/adroit/door-human-v0').content_hash[:12]}`"
    pen = next(line for line in text.splitlines() if line.startswith("| ld-agents/adroit/pen-human"))
    assert "| stand-in |" in pen
    assert "| – |" in pen
    assert "FAILED" in pen
    assert "- ld-agents/adroit/door-human-v0, ld-agents/adroit/pen-human-v0: A walk." in text


def test_the_table_of_reference_policies() -> None:
    policies = {
        "random": MeasuredScore(96.262799, 2.0, 0.0, 50, "E-v0"),
        "expert": MeasuredScore(1586.5479510, 9.0, 0.75, 100, "E-v0"),
    }
    expert, random = datasets_table.policies_table({"pen": policies}).splitlines()[-2:]
    assert expert == "| pen | E-v0 | 96.26 | 3077 | expert | 100 | 1587 ± 9 | 50.0 | 75 % |"
    assert random == "| pen | E-v0 | 96.26 | 3077 | random | 50 | 96.26 ± 2 | 0.0 | 0 % |"


def test_no_records(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run make_datasets.py first"):
        datasets_table.page(folder)


def test_cutting_an_episode() -> None:
    episode = Episode(np.zeros((6, 1)), np.zeros((5, 1)), np.arange(5.0), np.zeros(5, bool))
    assert episode.cut(5) is episode
    short = episode.cut(2)
    assert (len(short.observations), len(short.actions), short.rewards.tolist()) == (3, 2, [0, 1])
    assert not short.whole
