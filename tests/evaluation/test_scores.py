"""Normalization and the two maze protocols."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ld_agents.evaluation.scores import (
    D4RL_TASKS,
    MEASURED_SCORES,
    REFERENCE_SCORES,
    TASKS,
    d4rl_name,
    family,
    first_contact_return,
    normalise,
    why_not_normalised,
)

PASSED = {"passed": True}


@pytest.mark.parametrize(
    ("maze", "minimum", "maximum"), [("umaze", 23.85, 161.86), ("medium", 13.13, 277.39), ("large", 6.7, 273.99)]
)
def test_reference_scores_are_d4rl_s(maze: str, minimum: float, maximum: float) -> None:
    for name in (f"maze2d-{maze}-v1", f"ld-agents/pointmaze/{maze}-v0"):
        assert (REFERENCE_SCORES[name].minimum, REFERENCE_SCORES[name].maximum) == (minimum, maximum)
        assert normalise([minimum, maximum], name, PASSED).tolist() == [0.0, 100.0]
    assert normalise((minimum + maximum) / 2, f"maze2d-{maze}-v1") == pytest.approx(50)


@pytest.mark.parametrize(
    ("name", "minimum", "maximum"),
    [
        ("halfcheetah-medium-replay-v2", -280.178953, 12135.0),
        ("mujoco/hopper/expert-v0", -20.272305, 3234.3),
        ("ld-agents/locomotion/walker2d-medium-expert-v0", 1.629008, 4592.3),
        ("ant-full-replay-v1", -325.6, 3879.7),
        ("D4RL/pen/cloned-v2", 96.262799, 3076.8331017826877),
        ("hammer-human-v0", -274.856578, 12794.134825156867),
        ("ld-agents/adroit/door-human-v0", -56.512833, 2880.5693087298737),
        ("relocate-expert-v1", -6.425911, 4233.877797728884),
        ("D4RL/antmaze/large-play-v1", 0.0, 1.0),
        ("ld-agents/kitchen/mixed-v0", 0.0, 4.0),
        ("maze2d-medium-dense-v1", 44.264742, 297.4552547777125),
        ("carla-lane-v0", -0.8503839912088142, 1023.5784385429523),
    ],
)
def test_reference_scores_of_the_families(name: str, minimum: float, maximum: float) -> None:
    assert (REFERENCE_SCORES[name].minimum, REFERENCE_SCORES[name].maximum) == (minimum, maximum)


def test_d4rl_s_table_is_whole() -> None:
    assert len(D4RL_TASKS) == 114
    count = {name: sum(family(other) == name for other in D4RL_TASKS) for name in map(family, D4RL_TASKS)}
    assert count == {"maze2d": 6, "antmaze": 12, "locomotion": 68, "adroit": 24, "kitchen": 3, "carla": 1}
    assert "hopper-full-replay-v0" not in D4RL_TASKS


def test_every_reference_has_a_source_and_its_known_defects() -> None:
    for name, reference in REFERENCE_SCORES.items():
        assert reference.minimum < reference.maximum
        assert f"task {TASKS[name]}:" in reference.source
        # Beside what is wrong with D4RL's numbers: what today's simulators do differently.
        # Hub data, and the mazes and kitchens of everybody, are evaluated in other simulators than D4RL's.
        other = name.startswith(("D4RL/", "mujoco/")) or family(name) in ("maze2d", "kitchen")
        assert len(reference.known_defects) == (2 if other else 1)


@pytest.mark.parametrize("task", ["halfcheetah", "door", "hammer", "pen", "relocate"])
def test_random_actions_return_here_what_they_returned_for_d4rl(task: str) -> None:
    random = MEASURED_SCORES[task]["random"]
    error = random.std_return / math.sqrt(random.episodes)
    minimum = next(reference.minimum for name, reference in REFERENCE_SCORES.items() if TASKS[name] == task)
    assert abs(random.mean_return - minimum) < 4 * error


def test_measured_experts_are_experts() -> None:
    for task, policies in MEASURED_SCORES.items():
        if task == "carracing":  # which is not of D4RL
            continue
        reference = next(reference for name, reference in REFERENCE_SCORES.items() if TASKS[name] == task)
        (best,) = (score for name, score in policies.items() if name != "random")
        span = reference.maximum - reference.minimum
        assert 0.5 < (best.mean_return - reference.minimum) / span < 1.3
        assert abs(policies["random"].mean_return - reference.minimum) < 0.05 * span


def test_the_driver_of_carracing_returns_what_its_recipe_says_and_random_actions_lose() -> None:
    driver, random = (MEASURED_SCORES["carracing"][name] for name in ("driver", "random"))
    error = math.hypot(driver.std_return / math.sqrt(driver.episodes), 53 / math.sqrt(8))  # 862 +- 53, 8 episodes
    assert abs(driver.mean_return - 862) < 2 * error
    assert -100 <= random.mean_return < 0


def test_no_d4rl_score_of_our_data_without_a_replay_check() -> None:
    name = "ld-agents/locomotion/hopper-medium-v0"
    for check in (None, {}, {"passed": False}, {"passed": "yes"}):
        with pytest.raises(ValueError, match="has no passed replay check"):
            normalise([1.0], name, check)
    assert normalise([3234.3], name, PASSED).tolist() == [100.0]
    assert normalise([3234.3], "hopper-medium-v2").tolist() == [100.0]
    with pytest.raises(ValueError, match="has no passed replay check"):
        normalise([3234.3], "hopper-medium-v2", {"passed": False})


@pytest.mark.parametrize(
    ("name", "check", "stored", "reason"),
    [
        ("ld-agents/adroit/pen-human-v0", PASSED, (96.0, 3077.0), None),
        ("ld-agents/adroit/pen-human-v0", None, (96.0, 3077.0), "no replay check"),
        ("ld-agents/adroit/pen-human-v0", {"passed": False}, (96.0, 3077.0), "failed the replay check"),
        # Who made the data did not claim D4RL's rewards for them.
        ("ld-agents/adroit/pen-human-v0", PASSED, None, "no reference scores"),
        ("D4RL/pen/human-v2", PASSED, None, None),
        ("D4RL/pen/human-v2", None, (96.0, 3077.0), "no replay check"),
        ("mine/own-v0", PASSED, (0.0, 1.0), None),
        ("mine/own-v0", PASSED, None, "no reference scores"),
    ],
)
def test_why_not_normalised(name: str, check: dict | None, stored: tuple | None, reason: str | None) -> None:
    found = why_not_normalised(name, check, stored)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("hopper-medium-v2.hdf5", "hopper-medium-v2"),
        ("/data/kitchen/halfcheetah_medium_expert-v2.hdf5", "halfcheetah-medium-expert-v2"),
        ("walker_mixed.hdf5", "walker2d-medium-replay-v0"),
        ("maze2d-large-sparse-v1.hdf5", "maze2d-large-v1"),
        ("maze2d-large-dense-v1.hdf5", "maze2d-large-dense-v1"),
        ("Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse.hdf5", "antmaze-umaze-diverse-v0"),
        ("Ant_maze_big-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5", "antmaze-medium-diverse-v2"),
        ("pen-v0_demos_clipped.hdf5", "pen-human-v0"),
        ("relocate-demos-v0-bc-combined.hdf5", "relocate-cloned-v0"),
        ("mini_kitchen_microwave_kettle_light_slider-v0.hdf5", "kitchen-complete-v0"),
        ("kitchen_microwave_kettle_light_slider-v0.hdf5", "kitchen-partial-v0"),
        ("hopper-medium-v9.hdf5", None),
        ("maze2d.hdf5", None),
    ],
)
def test_names_of_files(file: str, name: str | None) -> None:
    assert d4rl_name(file) == name


def test_shape_is_kept() -> None:
    assert normalise(np.zeros((5, 3)), "maze2d-large-v1").shape == (5, 3)


def test_unknown_dataset() -> None:
    with pytest.raises(KeyError, match=r"no reference scores for 'mine/own-v0'.*maze2d-large-v1"):
        normalise([1.0], "mine/own-v0")


def test_first_contact_return() -> None:
    # 300 steps: contact at the first step earns all, at the last step one, none without contact.
    assert first_contact_return([1, 300, None], 300).tolist() == [300.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ld-agents/pointmaze/umaze-v0", "maze2d"),
        ("/data/maze2d-large-sparse-v1.hdf5", "maze2d"),
        ("D4RL/antmaze/umaze-diverse-v1", "antmaze"),
        ("/data/Ant_maze_big-maze_noisy.hdf5", "antmaze"),
        ("mujoco/halfcheetah/medium-v0", "locomotion"),
        ("/data/walker2d_medium_expert-v2.hdf5", "locomotion"),
        ("D4RL/pen/human-v2", "adroit"),
        ("/data/door-cloned-v1.hdf5", "adroit"),
        ("D4RL/kitchen/partial-v2", "kitchen"),
        ("/data/kitchen/hopper-medium-v2.hdf5", "locomotion"),
        ("/home/pen/maze2d.h5", "maze2d"),
        ("/data/walker_mixed.hdf5", "locomotion"),
        ("ld-agents/locomotion/walker2d-medium-replay-v0", "locomotion"),
        ("ld-agents/adroit/relocate-cloned-v0", "adroit"),
        ("mine/opening/doors-v0", None),
        ("mujoco/humanoid/medium-v0", None),
    ],
)
def test_families(name: str, expected: str | None) -> None:
    assert family(name) == expected
