"""Behaviors by hand: networks, noise, snapshots, and where the ant is sent."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from walk import WALK, metadata, quiet, streams, write_sac

from ld_agents.evaluation import environments
from ld_agents.evaluation.mazes import free_cells, next_cells
from recording.behaviors import AntNavigator, DapgPolicy, LocomotionActor, SacActor
from recording.recipes import recipes

pytest.importorskip("gymnasium_robotics")
pytestmark = pytest.mark.usefixtures("folder")  # nothing is recorded outside the test's own folder


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
    # Normalized: ((3 - 1) / 2, clip(9)) = (1, 3); hidden: relu(7.1), relu(0.3); output 0.5 * 7.1 - 0.3 + 0.3 = 3.55.
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


def test_snapshots_of_a_sac_actor(folder: Path) -> None:
    write_sac(folder / "walk_sac.npz", [-0.5, 0.25, 1.0])
    for snapshot, bias in ((0, -0.5), (1, 0.25), (-1, 1.0)):
        actor = SacActor(2, file=folder / "walk_sac.npz", snapshot=snapshot)
        assert actor.weights["w0"].dtype == np.float32
        actions = np.arctanh(actor.act(np.ones((4_000, 2)), streams(4_000), [{}] * 4_000))
        assert actions.mean() == pytest.approx(bias, abs=1e-5)
        assert actions.std() == pytest.approx(math.exp(-9), rel=0.03)  # it samples
    assert SacActor(2, file=folder / "walk_sac.npz").snapshot == -1
    # In turn, each for its share of the steps: 320 = 106 + 107 + 107.
    turns = SacActor(2, file=folder / "walk_sac.npz", snapshot=None)
    data = quiet("test/replay-v0", dataclasses.replace(WALK, parts=[turns], steps=320))
    means = np.arctanh(data.actions.numpy() / [2.0, 1.0])
    np.testing.assert_allclose(means, np.repeat([-0.5, 0.25, 1.0], [106, 107, 107])[:, None] * np.ones(2), atol=1e-3)
    about = metadata(folder, "test/replay-v0")["ld_agents"]
    assert [(part["behaviour"], part["snapshot"]) for part in about["parts"]] == [("SacActor", None)]
    assert about["replay_check"]["passed"]
    assert set(about["policy_sha256"]) == {"walk_sac.npz"}


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
    route, path = next_cells("umaze")[(3, 1)], [(1, 1)]
    while path[-1] != (3, 1):
        path.append(route[path[-1]])
    assert path == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    rng = np.random.default_rng(0)
    directions = np.array([umaze._direction(0.0, 0.0, episode, rng) for _ in range(500)])
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 10)
    angles = np.arctan2(directions[:, 1], directions[:, 0])
    # Towards (4, 0) and up to a meter beyond it on either axis.
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
    assert len(free_cells("large")) == 46
    rng = np.random.default_rng(0)
    episodes = [large.begin(rng) for _ in range(2_000)]
    assert {e["cell"] for e in episodes} == set(free_cells("large"))
    for e in episodes:
        offset = np.array(e["goal"]) - environments.cell_position(e["cell"])
        assert (offset >= 0).all()
        assert (offset <= 1.5).all()
        start = round(e["start"][1] / 4) + 1, round(e["start"][0] / 4) + 1
        assert start in free_cells("large")
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
