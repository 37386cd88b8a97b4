"""Seeded trainings end with the weights and actions that `golden.json` holds, and a dataset made here with its hash.

A change of structure must not move a number. `PYTHONPATH=tests python tests/agents/test_golden.py` prints the SHA-256
of every agent's weights and actions, to be compared bit by bit on one machine before and after a change; the test
compares the numbers themselves, because products of matrices differ in their last bits between processors. A change
that is meant to move them writes the file anew: `--write`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import AGENTS, make_agent, record
from ld_agents import load_dataset

GOLDEN = Path(__file__).parent / "golden.json"
MAZE = "ld-agents/pointmaze/umaze-10k-v0"
# LatentDiffuser's denoiser, and what learns from its draws, ends up to 0.006 apart on two processors, in weights and in
# actions, with the same code; all else agrees to the tolerances below.
FROM_THE_DENOISER = re.compile(r"(denoiser|energy|scale_of_state|return_)")


def trained_numbers(name: str) -> tuple[dict[str, Any], str]:
    """Mean and spread of each weight tensor, some actions, and the hash of all bits."""
    agent = make_agent(name, record()).learn()
    observations = record(seed=1).observations[::100].numpy()
    actions, _ = agent.predict(observations, deterministic=True)
    weights = {k: v.double().numpy() for k, v in sorted(agent.policy.state_dict().items())}
    digest = hashlib.sha256(actions.tobytes())
    for _, value in sorted(agent.policy.state_dict().items()):
        digest.update(value.numpy().tobytes())
    moments = {key: [float(f"{x:.6g}") for x in (value.mean(), value.std())] for key, value in weights.items()}
    return {"weights": moments, "actions": actions.astype(float).round(6).tolist()}, digest.hexdigest()


@pytest.mark.parametrize("name", AGENTS)
def test_weights_and_actions(name: str) -> None:
    expected = json.loads(GOLDEN.read_text())[name]
    found, _ = trained_numbers(name)
    assert found["weights"].keys() == expected["weights"].keys()
    planner = name == "LatentDiffuser"
    for key, moments in expected["weights"].items():
        atol = 1e-2 if planner and FROM_THE_DENOISER.match(key) else 1e-5
        np.testing.assert_allclose(found["weights"][key], moments, rtol=1e-3, atol=atol, err_msg=key)
    np.testing.assert_allclose(found["actions"], expected["actions"], rtol=1e-3, atol=1e-2 if planner else 1e-3)


@pytest.mark.slow
def test_data_set() -> None:
    assert load_dataset(MAZE).content_hash == json.loads(GOLDEN.read_text())[MAZE]


if __name__ == "__main__":
    numbers: dict[str, Any] = {MAZE: load_dataset(MAZE).content_hash}
    print(numbers[MAZE], MAZE)
    for agent_name in AGENTS:
        numbers[agent_name], bits = trained_numbers(agent_name)
        print(bits, agent_name)
    if "--write" in sys.argv:
        GOLDEN.write_text(re.sub(r"\s+(?=[-\d\]])", "", json.dumps(numbers, indent=1)) + "\n")
