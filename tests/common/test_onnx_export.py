"""Agents as ONNX graphs act as `predict` does, and so do plans that were sped up."""

from __future__ import annotations

import io
import json
import pickle
import re
import subprocess
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import AGENTS, BOX, StopAt, Trained, make_agent, saved, seen_by
from ld_agents import LDCQ, OfflineDataset
from ld_agents.common import onnx_export, planning_policy
from ld_agents.common.inference_file import save_for_inference
from ld_agents.common.keyed_noise import keyed_normal
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.common.offline_policy import OfflinePolicy

onnxruntime = pytest.importorskip("onnxruntime")

# Two steps of a solver make small graphs. Beyond AGENTS: a second draw, sampled actions; several candidates, actions
# decoded from the state.
SHORT: dict[str, Any] = {"solver_steps": 2}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "LDCQ": ("LDCQ", SHORT),
    "LDCQ-mlp": ("LDCQ", {**SHORT, "denoiser": "mlp"}),
    "LDCQ-transformer": ("LDCQ", {**SHORT, "denoiser": "transformer", "denoiser_widths": (8, 8)}),
    "LDCQ-redraw": ("LDCQ", {**SHORT, "redraw_at_predicted_state": True, "sample_actions": True}),
    "LatentDiffuser": ("LatentDiffuser", SHORT),
    "LatentDiffuser-state": (
        "LatentDiffuser",
        {**SHORT, "n_candidates": 3, "action_decoder": "state", "action_hidden": 8},
    ),
}


def session_of(path: Path) -> tuple[Any, dict[str, Any]]:
    session = onnxruntime.InferenceSession(path)
    return session, json.loads(session.get_modelmeta().custom_metadata_map["ld_agents"])


def begin(about: dict[str, Any], n: int) -> dict[str, Any]:
    return {name: np.zeros((n, *shape), dtype) for name, (dtype, shape) in about["state"].items()}


def noise_of(agent: OfflineAlgorithm, about: dict[str, Any], keys: Any, deterministic: bool) -> dict[str, Any]:
    """What `predict` drew from the keys that it returned."""
    noise: dict[str, Tensor] = {}
    if "noise" in about["noise"]:
        noise["noise"] = agent.policy.draw_noise(torch.as_tensor(keys))
    if "action_noise" in about["noise"]:
        stream = 1 << 17 if about["state"] else 0
        noise["action_noise"] = keyed_normal(torch.as_tensor(keys), (2,), stream)
        if deterministic and not about["samples_actions"]:
            noise["action_noise"].zero_()
    for name, value in noise.items():
        assert list(value.shape[1:]) == about["noise"][name]
    return {name: value.numpy() for name, value in noise.items()}


@pytest.mark.parametrize("which", sorted({*AGENTS, *VARIANTS}))
def test_graph_acts_as_predict(trained: Trained, dataset: OfflineDataset, tmp_path: Path, which: str) -> None:
    """One environment and five, over plans that run out, an episode that begins in between, and fresh noise."""
    name, settings = VARIANTS.get(which, (which, {}))
    agent = make_agent(name, dataset, **settings).learn() if settings else trained(name)
    agent.export(tmp_path / "policy")
    session, about = session_of(tmp_path / "policy.onnx")
    assert about["agent"] == type(agent).__name__
    assert ("noise" in about["noise"], about["exec_horizon"]) == ((True, 3) if about["state"] else (False, None))
    for n, deterministic in ((1, True), (5, True), (5, False)):
        state: Any = None
        held = begin(about, n)
        for t in range(5):
            observations, starts = seen_by(agent, n, seed=t), np.arange(n) == (2 if t == 2 else -1)
            expected, state = agent.predict(observations, state, starts, deterministic)
            if held:
                held["step"][starts] = 0
            noise = noise_of(agent, about, state[-1] if state else None, deterministic)
            found, *after = session.run(None, {"observation": observations, **noise, **held})
            held = dict(zip(about["state"], after, strict=True))
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert ((found >= BOX.low) & (found <= BOX.high)).all()


@pytest.mark.parametrize("name", ["LDCQ", "LDCQ-gaussian", "LatentDiffuser", "IQL", "CQL", "TD3BC"])
def test_files_for_acting_alone_are_exported_and_sped_up(trained: Trained, tmp_path: Path, name: str) -> None:
    save_for_inference(trained(name), tmp_path / "small.zip")
    small, seen = AGENTS[name][0].load(tmp_path / "small.zip"), seen_by(trained(name), 5)
    expected = small.predict(seen, deterministic=True)[0]
    small.export(tmp_path / "small.onnx")
    assert session_of(tmp_path / "small.onnx")[1]["agent"] == type(small).__name__
    small.speed_up("onnxruntime")
    np.testing.assert_allclose(small.predict(seen, deterministic=True)[0], expected, atol=1e-4)


def test_a_program_that_cannot_be_made_leaves_the_agent_as_it_was(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = trained("LDCQ")
    seen = seen_by(agent, 3)
    expected = agent.predict(seen, deterministic=True)[0]

    def fails(self: planning_policy.PlanningPolicy) -> Any:
        raise RuntimeError("no program")

    with monkeypatch.context() as patched:
        patched.setattr(planning_policy.PlanningPolicy, "_make_program", fails)
        with pytest.raises(RuntimeError, match="no program"):
            agent.speed_up("onnxruntime")
        np.testing.assert_array_equal(agent.predict(seen, deterministic=True)[0], expected)


def test_example_acts_without_torch(trained: Trained, tmp_path: Path) -> None:
    """The example of the module's docstring, in an interpreter that never imports torch or this library."""
    trained("LDCQ-gaussian").export(tmp_path / "policy.onnx")
    example = re.search(r"\n\n((    .*)?\n)+", onnx_export.__doc__ or "")
    assert example is not None
    steps = """
    state, actions = begin(3), []
    for t in range(7):
        action, state = act(np.full((3, 3), t / 10), state)
        actions.append(action.tolist())
    import sys
    assert not {"torch", "ld_agents"} & set(sys.modules)
    print(json.dumps([actions, state["step"].tolist()]))
    """
    code = textwrap.dedent(example[0]) + textwrap.dedent(steps)
    assert len([line for line in textwrap.dedent(example[0]).splitlines() if line]) <= 20
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)
    actions, step = json.loads(ran.stdout)
    assert step == [1, 1, 1]  # seven steps of plans of three
    assert np.shape(actions) == (7, 3, 2)
    assert np.abs(np.diff(actions, axis=1)).max() > 1e-3  # environments have noise of their own


def test_graph_of_dictionaries_and_integers(goal_dataset: OfflineDataset, tmp_path: Path) -> None:
    agent = make_agent("BC", goal_dataset)
    agent.export(tmp_path / "goal.onnx")
    session, about = session_of(tmp_path / "goal.onnx")
    assert about["observation_keys"] == ["observation", "desired_goal"]
    observation = np.full((1, 5), 0.3, np.float32)
    parts = {"observation": observation[:, :3], "desired_goal": observation[:, 3:]}
    np.testing.assert_allclose(session.run(None, {"observation": observation})[0], agent.predict(parts)[0], atol=1e-5)


def test_what_is_not_exported(dataset: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'ddpm', which draws noise at each of its 30 steps"):
        make_agent("LDCQ", dataset, solver="ddpm").export(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="guidance='exact'"):
        make_agent("LatentDiffuser", dataset, guidance="posterior-mean").export(tmp_path / "b.onnx")
    agent = make_agent("BC", dataset)

    class OfMyOwn(OfflinePolicy):
        def act(self, *of_rows: Any) -> Any: ...

    own = OfMyOwn(dataset.observation_space, BOX, observation_keys=None, state_dim=3, seed=0)
    monkeypatch.setattr(agent, "_make_policy", lambda: own)
    monkeypatch.setattr(agent, "policy", own)
    with pytest.raises(TypeError, match="OfMyOwn is neither an ActorPolicy nor a PlanningPolicy"):
        agent.export(tmp_path / "c.onnx")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'ld-agents[onnx]'")):
        agent.export(tmp_path / "d.onnx")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- speed_up


def members(agent: OfflineAlgorithm) -> dict[str, bytes]:
    """Of the saved file, which itself holds the time."""
    with zipfile.ZipFile(io.BytesIO(saved(agent))) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.mark.parametrize("name", ["LDCQ", "LDGC", "LatentDiffuser"])
def test_faster_plans_are_the_same(dataset: OfflineDataset, name: str) -> None:
    """They follow weights that change, are not saved, and can be given up again."""
    agent = make_agent(name, dataset, **SHORT).learn()
    file, observations = members(agent), [seen_by(agent, n) for n in (1, 6)]

    def actions() -> list[Any]:
        return [agent.predict(o, deterministic=True)[0] for o in observations]

    plain = actions()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.speed_up()
    assert agent.policy.fast == "onnxruntime"
    fast = actions()
    assert members(agent) == file
    for again, expected in zip(pickle.loads(pickle.dumps([agent.policy])), fast[:1], strict=True):
        np.testing.assert_allclose(again.predict(observations[0], deterministic=True)[0], expected, atol=1e-5)
    with torch.no_grad():
        for parameter in agent.policy.vae.parameters():
            parameter *= 1.2
    moved = actions()
    agent.speed_up(None)
    for before, same, after, expected in zip(plain, fast, moved, actions(), strict=True):
        np.testing.assert_allclose(same, before, atol=1e-5)
        np.testing.assert_allclose(after, expected, atol=1e-5)
        assert np.abs(after - before).max() > 1e-3


@pytest.mark.parametrize("name", ["LDCQ", "LDGC", "LatentDiffuser"])
def test_what_an_agent_learns_later_is_in_its_faster_plans(name: str, trained: Trained) -> None:
    agent = trained(name)
    seen = seen_by(agent, 40)
    agent.speed_up("onnxruntime")
    before = agent.predict(seen, deterministic=True)[0]
    agent.learn()
    after = agent.predict(seen, deterministic=True)[0]
    agent.speed_up(None)
    np.testing.assert_allclose(after, agent.predict(seen, deterministic=True)[0], atol=1e-4)
    assert np.abs(after - before).max() > 1e-3


def test_what_a_stage_goes_on_to_learn_is_in_faster_plans(dataset: OfflineDataset) -> None:
    """LDGC's last stage steps its denoiser alone, with a fused optimizer, which hides that from autograd's counters."""
    agent = make_agent("LDGC", dataset, prior_learning_rate=0.05)
    agent.learn(callback=StopAt(agent.full_budget - 8))
    seen = seen_by(agent, 60)
    agent.speed_up("onnxruntime")
    before = agent.predict(seen, deterministic=True)[0]
    agent.learn(reset_num_timesteps=False)
    after = agent.predict(seen, deterministic=True)[0]
    agent.speed_up(None)
    np.testing.assert_allclose(after, agent.predict(seen, deterministic=True)[0], atol=1e-4)
    assert np.abs(after - before).max() > 1e-3


def test_the_fastest_that_is_installed(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = trained("LDCQ")
    assert isinstance(agent, LDCQ)
    monkeypatch.setattr(planning_policy, "find_spec", lambda name: None if name == "onnxscript" else name)
    agent.speed_up()
    assert agent.policy.fast == "compile"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'ld-agents[onnx]'")):
        agent.speed_up("onnxruntime")
    with pytest.raises(ValueError, match="Unknown way 'tensorrt' to plan"):
        agent.speed_up("tensorrt")  # type: ignore[arg-type]
    trained("BC").speed_up()  # nothing to plan
