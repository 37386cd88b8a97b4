"""Point mazes with wind and action noise: their statistics, their seeds, and datasets that are recorded in them."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ld_agents.data import pointmaze
from ld_agents.data.load import load_dataset
from ld_agents.evaluation.disturbances import DISTURBED, GUST_STEPS, Disturbance, Push, executed
from ld_agents.evaluation.eval_env import EvalEnvSpec, environment_of, evaluation_spec
from ld_agents.evaluation.scores import REFERENCE_SCORES, TASKS

pytest.importorskip("gymnasium_robotics")


def pushes(disturbance: Disturbance, n: int, seed: int = 0) -> np.ndarray:
    """[n, 2 kinds, 2]"""
    return np.array(list(itertools.islice(disturbance.pushes(np.random.default_rng(seed)), n)))


def path(spec: EvalEnvSpec, action: tuple[float, float], n: int = 40, seed: int = 5) -> np.ndarray:
    env = spec.make()
    seen = [env.reset(seed=seed)[0]["observation"]]
    seen += [env.step(np.array(action, np.float32))[0]["observation"] for _ in range(n)]
    env.close()
    return np.array(seen)


def test_wind_keeps_its_strength_and_forgets_slowly_and_noise_at_once() -> None:
    drawn = pushes(Disturbance(wind=0.2, action_noise=0.5), 60_000)
    wind, noise = drawn[:, 0], drawn[:, 1]
    assert wind.std(0) == pytest.approx([0.2, 0.2], rel=0.08)
    assert noise.std(0) == pytest.approx([0.5, 0.5], rel=0.02)
    assert abs(np.corrcoef(wind.T)[0, 1]) < 0.1
    for lag, left in ((1, math.exp(-1 / GUST_STEPS)), (GUST_STEPS, math.exp(-1))):
        assert np.mean(wind[:-lag] * wind[lag:]) / np.mean(wind**2) == pytest.approx(left, abs=0.05)
        assert abs(np.mean(noise[:-lag] * noise[lag:])) < 0.01 * 0.25 * 2
    starts = np.array([next(Disturbance(wind=0.2).pushes(np.random.default_rng(i))).wind for i in range(2000)])
    assert starts.std() == pytest.approx(0.2, rel=0.05), "stationary from the first step on"


def test_ids() -> None:
    assert Disturbance.of("ld-agents/pointmaze/large-wind20-v0") == Disturbance(wind=0.2)
    assert Disturbance.of("ld-agents/pointmaze/large-noise100-v0") == Disturbance(action_noise=1.0)
    assert Disturbance.of("ld-agents/pointmaze/large-v0") is None
    for name in DISTURBED:
        dataset_id = f"ld-agents/pointmaze/{name}-v0"
        assert pointmaze.BUILT_IN[dataset_id] == pointmaze.BUILT_IN["ld-agents/pointmaze/large-v0"]
        assert TASKS[dataset_id] == "maze2d-large"
        assert REFERENCE_SCORES[dataset_id].maximum == 273.99
        spec = environment_of(dataset_id)
        assert spec is not None
        assert spec.disturbance == Disturbance.of(dataset_id) is not None
        assert replace(spec, disturbance=None) == environment_of("ld-agents/pointmaze/large-v0")


def test_a_force_of_one_moves_as_a_full_action_and_noise_is_clipped() -> None:
    plain = evaluation_spec("large")
    env: Any = plain.make().unwrapped
    moved = []
    for action, push in (((1, 0), Push(np.zeros(2), np.zeros(2))), ((0, 0), Push(np.array([1.0, 0]), np.zeros(2)))):
        env.reset(seed=1)
        env.point_env.set_state(np.zeros(2) - (0.5, 0), np.zeros(2))
        moved.append(env.point_env.step(executed(env.point_env, np.array(action), push))[0])
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-12)
    assert moved[0][2] > 0
    assert executed(env.point_env, np.array([0.9, -0.2]), Push(np.zeros(2), np.array([0.5, 0.1]))).tolist() == (
        pytest.approx([1.0, -0.1])
    )


@pytest.mark.parametrize("disturbance", [Disturbance(wind=0.4), Disturbance(action_noise=0.5)])
def test_episodes_repeat_with_their_seed_and_differ_otherwise(disturbance: Disturbance) -> None:
    plain = evaluation_spec("large")
    spec = replace(plain, disturbance=disturbance)
    first = path(spec, (0.3, 0.1))
    assert np.array_equal(first, path(spec, (0.3, 0.1)))
    undisturbed = path(plain, (0.3, 0.1))
    assert np.array_equal(first[0], undisturbed[0]), "starts are the same"
    assert np.abs(first - undisturbed).max() > 0.05
    assert np.array_equal(path(replace(plain, disturbance=Disturbance()), (0.3, 0.1)), undisturbed)
    env = spec.make()
    env.reset(seed=5)
    again = [env.reset()[0]["observation"] for _ in range(2)]
    assert not np.array_equal(again[0], again[1])
    env.close()


def test_specs_survive_storage() -> None:
    spec = replace(evaluation_spec("large"), disturbance=Disturbance(wind=0.4))
    stored = spec.make().spec
    assert stored is not None
    read = EvalEnvSpec.from_json(stored.to_json())
    assert read is not None
    assert (read.disturbance, read.goal, read.wrappers) == (spec.disturbance, spec.goal, ())
    assert np.array_equal(path(read, (0.2, 0.2)), path(spec, (0.2, 0.2)))
    damaged = json.loads(stored.to_json())
    for wrapper in damaged["additional_wrappers"]:
        if wrapper["name"] == "Disturbed":
            wrapper["kwargs"] = {"wind": "strong"}
    found = EvalEnvSpec.from_json(json.dumps(damaged))
    assert found is not None
    assert found.disturbance is None


def test_only_point_mazes_are_disturbed() -> None:
    with pytest.raises(TypeError, match="is no PointMaze, and nothing else is disturbed"):
        EvalEnvSpec("Pendulum-v1", disturbance=Disturbance(wind=0.1)).make()


def test_recordings_hold_the_chosen_actions_and_replay_with_what_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for name in ("large-wind40", "large-noise50"):
        monkeypatch.setitem(pointmaze.BUILT_IN, f"ld-agents/pointmaze/{name}-v0", ("large", 2_000, 1))
        data = load_dataset(f"ld-agents/pointmaze/{name}-v0")
        assert data.info.provenance == "recorded"
        assert data.info.replay_check is not None
        assert data.info.replay_check["passed"]
        assert data.info.replay_check["steps"] == 2_000
        assert "Disturbance(" in data.info.description
        env: Any = data.make_eval_env()
        assert data.info.eval_env is not None
        assert data.info.eval_env.disturbance == Disturbance.of(data.info.id)
        # Without what happened, the same actions lead elsewhere.
        rows = data.observations[:200].numpy()
        env.reset(seed=0)
        env.unwrapped.point_env.set_state(rows[0, :2], rows[0, 2:])
        seen = [env.step(action)[0]["observation"] for action in data.actions[:199].numpy()]
        assert np.abs(np.array(seen) - rows[1:]).max() > 0.1
        env.close()


def test_undisturbed_recordings_are_as_they_were() -> None:
    first = pointmaze._drive("umaze", 0, 0, 300)
    assert first.keys() == {"states", "actions", "goals"}
    calm = pointmaze._drive("umaze", 0, 0, 300, Disturbance())
    assert all(np.array_equal(first[key], calm[key]) for key in first)
