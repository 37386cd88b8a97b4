"""Normalisation and the two maze protocols."""

from __future__ import annotations

import numpy as np
import pytest

from ld_agents.scores import REFERENCE_SCORES, family, first_contact_return, normalise


@pytest.mark.parametrize(
    ("maze", "minimum", "maximum"), [("umaze", 23.85, 161.86), ("medium", 13.13, 277.39), ("large", 6.7, 273.99)]
)
def test_reference_scores_are_d4rl_s(maze: str, minimum: float, maximum: float) -> None:
    for name in (f"maze2d-{maze}-v1", f"ld-agents/pointmaze/{maze}-v0"):
        assert (REFERENCE_SCORES[name].minimum, REFERENCE_SCORES[name].maximum) == (minimum, maximum)
        assert normalise([minimum, maximum], name).tolist() == [0.0, 100.0]
    assert normalise((minimum + maximum) / 2, f"maze2d-{maze}-v1") == pytest.approx(50)


def test_every_reference_has_a_source() -> None:
    assert all(reference.source and reference.minimum < reference.maximum for reference in REFERENCE_SCORES.values())


def test_shape_is_kept() -> None:
    assert normalise(np.zeros((5, 3)), "maze2d-large-v1").shape == (5, 3)


def test_unknown_data_set() -> None:
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
        ("mine/opening/doors-v0", None),
        ("mujoco/humanoid/medium-v0", None),
    ],
)
def test_families(name: str, expected: str | None) -> None:
    assert family(name) == expected
