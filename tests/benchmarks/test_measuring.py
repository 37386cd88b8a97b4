"""What is measured beside scores, by numbers that are known; and runs that take over what others have learned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import measuring
import run_one
import specs
from conftest import TINY_LDCQ, Drift, make_agent, record
from ld_agents import LDCQ, OfflineDataset
from ld_agents.data.dataset_info import DatasetInfo
from ld_agents.evaluation.eval_env import EvalEnvSpec
from ld_agents.evaluation.rollouts import episode_seed
from ld_agents.ldcq_settings import PAPER


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> OfflineDataset:
    found = record()
    found.info = DatasetInfo("x/y-v0", eval_env=EvalEnvSpec("Drift-v0", {}, 10), replay_check={"passed": True})
    monkeypatch.setattr(found, "make_eval_env", Drift)
    monkeypatch.setattr(run_one, "load_dataset", lambda _: found)
    monkeypatch.setattr(run_one.provenance, "source_commit", lambda: "0123")
    monkeypatch.setattr(measuring, "EPISODES", 4)
    return found


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """LDCQ's fast preset is tiny."""
    settings = {name: value for name, value in TINY_LDCQ.items() if name != "preset"}
    monkeypatch.setattr(LDCQ, "presets", classmethod(lambda _: {"fast": dataclasses.replace(PAPER, **settings)}))


@pytest.mark.parametrize("changed", ["candidates_acting=2", "exec_horizon=1,sample_actions=true"])
def test_a_run_that_differs_in_acting_alone_learns_nothing_anew(
    data: OfflineDataset, tiny: None, changed: str, tmp_path: Path
) -> None:
    base, other = (specs.Run(f"LDCQ{own}", "x/y-v0", 0, "fast", 1.0, 5) for own in ("", f"[{changed}]"))
    assert specs.bases(other) == [base]
    alone = json.loads(run_one.run_and_write(other, tmp_path / "alone").read_text())
    first = json.loads(run_one.run_and_write(base, tmp_path / "both").read_text())
    shared = json.loads(run_one.run_and_write(other, tmp_path / "both").read_text())
    assert shared["shares_with"] == base.name
    assert alone["shares_with"] is first["shares_with"] is None
    assert shared["returns"] == alone["returns"] != first["returns"]
    assert shared["seconds"]["stages"] == first["seconds"]["stages"]
    assert (shared["gradient_steps"], shared["curve"], shared["losses"]) == (40, [], {})
    assert {key: value for key, value in shared["settings"].items() if value != first["settings"][key]} == {
        key: json.loads(value) for key, value in (item.split("=") for item in changed.split(","))
    }
    trained = [LDCQ.load(specs.Files(tmp_path / "both", run.name).model) for run in (base, other)]
    for name, weight in trained[0].policy.state_dict().items():
        assert torch.equal(weight, trained[1].policy.state_dict()[name])


def test_a_measured_run_has_no_curve_and_the_same_scores(data: OfflineDataset, tiny: None, tmp_path: Path) -> None:
    run = specs.Run("LDCQ", "x/y-v0", 0, "fast", 1.0, 5)
    plain, measured = (
        json.loads(run_one.run_and_write(run, tmp_path / name, with_measures=name == "measured").read_text())
        for name in ("plain", "measured")
    )
    assert [len(run["curve"]) for run in (plain, measured)] == [run_one.CURVE_POINTS, 0]
    assert plain["returns"] == measured["returns"]
    assert plain["measured"] is None
    assert measured["measured"]["plan_ms"] > 0


def test_other_training_is_not_taken_over(data: OfflineDataset, tmp_path: Path) -> None:
    files = specs.Files(tmp_path, "base")
    make_agent("LDCQ", data).learn().save(files.model)
    files.result.parent.mkdir()
    for hash_, horizon, taken in ((data.content_hash, 5, True), (data.content_hash, 4, False), ("ab", 5, False)):
        files.result.write_text(json.dumps({"dataset": {"hash": hash_}}))
        wanted = make_agent("LDCQ", data, horizon=horizon, exec_horizon=1)
        assert (run_one.taken_over(files, wanted, data) is not None) == taken
    files.result.write_text(json.dumps({"dataset": {"hash": data.content_hash}}))
    assert run_one.taken_over(files, make_agent("LDCQ", data, cpu_bf16=True), data) is None
    files.model.write_bytes(files.model.read_bytes()[:-100])
    assert run_one.taken_over(files, make_agent("LDCQ", data), data) is None, "it can learn by itself"
    files.model.unlink()
    assert run_one.taken_over(files, make_agent("LDCQ", data), data) is None


@pytest.mark.parametrize("name", ["LDCQ", "LDCQ-gaussian", "LatentDiffuser", "TD3BC", "IQL", "CQL", "BC"])
def test_every_agent_is_measured(name: str, data: OfflineDataset) -> None:
    agent = make_agent(name, data).learn()
    before = {key: value.clone() for key, value in agent.policy.state_dict().items()}
    found = measuring.measure(agent, data, seed=3)
    assert found == measuring.measure(agent, data, seed=3) | {"plan_ms": found["plan_ms"]}
    json.dumps(found, allow_nan=False)
    assert found["plan_mflop"] > 0
    shares = {
        "LatentDiffuser": set[str](),
        "BC": {"outside"},
        "TD3BC": {"outside"},
        "IQL": {"outside"},
        "CQL": {"outside"},
    }
    for key in shares.get(name, {"outside", "unlikely", "covered"}):
        assert 0 <= found[key] <= 1
    assert ("overestimation" in found) == (name not in ("LatentDiffuser", "BC"))
    assert ("action_error" in found) == (name.startswith(("LDCQ", "Latent")))
    if name == "LDCQ":
        kinds = {"own", "start noise 1", "start noise 1.5", "Gaussian", "uniform", "chosen"}
        assert found["draws"].keys() == kinds
        of_draws = ("outside", "unlikely", "covered", "action_spread")
        assert found["draws"]["own"] == {key: found[key] for key in of_draws}
    assert ("action_spread" in found) == (name.startswith(("LDCQ", "Latent")))
    for key, value in agent.policy.state_dict().items():
        assert torch.equal(value, before[key]), "measuring changes nothing"


def test_operations_are_counted() -> None:
    net = nn.Linear(7, 5)

    class Agent:
        def predict(self, observation: Any, deterministic: bool) -> None:
            with torch.inference_mode():
                net(torch.as_tensor(observation))

    rows = np.zeros((3, 7), np.float32)
    rows_and_ends = rows, np.zeros((3, 1)), np.zeros(3), np.zeros(3), np.array([0, 0, 1])
    cost = measuring.planning_cost(Agent(), OfflineDataset(*rows_and_ends))
    assert cost["plan_mflop"] == pytest.approx(2 * 7 * 5 / 1e6)


class Constant(nn.Module):
    def forward(self, states: Tensor, *_: Tensor) -> Tensor:
        return torch.full(states.shape[:1], 5.0)


def test_overestimation_is_value_less_the_discounted_return(data: OfflineDataset) -> None:
    agent = make_agent("TD3BC", data, discount=0.9)
    agent.policy.critics = nn.ModuleList([Constant(), Constant()])
    returns = []
    for episode in range(4):
        env = Drift()
        observation, done, total, weight = env.reset(seed=episode_seed(7, episode))[0], False, 0.0, 1.0
        while not done:
            action = agent.predict(observation, deterministic=True)[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            total, weight, done = total + weight * reward, 0.9 * weight, terminated or truncated
        returns.append(total)
    found = measuring.value_of_starts(agent, data, seed=7)
    assert found["value"] == 5.0
    assert found["discounted_return"] == pytest.approx(np.mean(returns), rel=1e-6)
    assert found["overestimation"] == pytest.approx(5.0 - np.mean(returns), rel=1e-6)
    assert measuring.value_of_starts(make_agent("TD3BC", data, reward_scale=2.0), data, seed=7) == {}


def test_chosen_values_of_ldcq_are_in_units_of_reward(data: OfflineDataset) -> None:
    agent = make_agent("LDCQ", data).learn()
    assert isinstance(agent, LDCQ)
    observations = data.observations[:3]
    plans = agent.policy.plan(agent.policy.normalize(observations), _keys(agent, observations))
    with torch.no_grad():
        expected = agent.policy.score(agent.policy.normalize(observations), plans) / agent.policy.reward_scale
    torch.testing.assert_close(measuring.chosen_values(agent, observations), expected)


def _keys(agent: LDCQ, observations: Tensor) -> Tensor:
    from ld_agents.common.keyed_noise import observation_keys

    return observation_keys(observations, agent.policy.noise_seed, 0)


def test_support_by_hand() -> None:
    points = torch.arange(10.0)[:, None]
    distances, indices = measuring.nearest(torch.tensor([[2.4], [11.0]]), points)
    assert (distances.tolist(), indices.tolist()) == (pytest.approx([0.4, 2.0]), [2, 9])
    # 19 of 20 lie within 0.25 of a point, one is 1 away
    held_out = torch.cat([torch.full((19, 1), 3.25), torch.tensor([[10.0]])])
    support = measuring.Support.of(points, held_out)
    assert 0.25 < support.limit < 0.4
    assert support.outside(held_out) == pytest.approx(0.05)
    assert support.outside(torch.tensor([[3.2], [3.5], [9.2], [12.0]])) == 0.5


def test_states_and_values_weigh_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    like = torch.randn(4000, 9, generator=generator) * 50 + 7, torch.randn(4000, 2, generator=generator) * 0.01
    points = measuring.beside(*like, like)
    assert points[:, :9].square().sum(1).mean() == pytest.approx(1, abs=0.01)
    assert points[:, 9:].square().sum(1).mean() == pytest.approx(1, abs=0.01)


def test_halves_share_no_episode(data: OfflineDataset) -> None:
    reference, held_out = measuring.halves(torch.arange(data.n_steps), data, torch.Generator().manual_seed(0))
    episodes = [set(data._episodes(rows).tolist()) for rows in (reference, held_out)]
    assert episodes[0] & episodes[1] == set()
    assert episodes[0] | episodes[1] == set(range(data.n_episodes))
    assert len(reference) + len(held_out) == data.n_steps


@pytest.mark.parametrize(
    ("moved", "outside", "covered"), [(0.0, (0.03, 0.07), 1.0), (1e-3, (0.03, 0.07), 1.0), (50.0, (1.0, 1.0), 0.0)]
)
def test_draws_that_are_the_data_lie_inside_and_others_do_not(
    moved: float, outside: tuple[float, float], covered: float, data: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent("LDCQ", data).learn()
    assert isinstance(agent, LDCQ)

    def latents_at(agent: LDCQ, states: Tensor, points: Tensor, rng: Any) -> dict[str, Tensor]:
        _, held_out = measuring.halves(agent._window_starts(), agent.data, torch.Generator().manual_seed(0))
        latents = agent._standardized(agent._encode(held_out))
        return {"own": latents[:, None].expand(-1, measuring.DRAWS, -1) + moved}

    monkeypatch.setattr(measuring, "latents_at", latents_at)
    agent._prepare_data(data)
    with torch.no_grad():
        found = measuring.latent_measures(agent, torch.Generator().manual_seed(0))
    assert outside[0] <= found["outside"] <= outside[1]
    assert found["covered"] == covered
    if not moved:
        assert 0.03 <= found["unlikely"] <= 0.07


def test_unexplained_variance_by_hand() -> None:
    actions = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    assert measuring.unexplained(actions, actions) == 0
    assert measuring.unexplained(actions.mean(0).expand(3, 2), actions) == 1
    assert measuring.unexplained(actions + torch.tensor([1.0, 0.0]), actions) == pytest.approx(3 / 8)


def test_spread_of_actions_by_hand() -> None:
    data = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    same = torch.full((2, 3, 2), 0.7)
    assert measuring.spread(same, data) == 0
    # variances of 1 and 4 in the first state, 0 in the second; the data's is 1
    apart = torch.tensor([[[-1.0, 2.0], [0.0, 0.0], [1.0, -2.0]], [[0.0, 0.0]] * 3])
    assert measuring.spread(apart, data) == pytest.approx(2.5)


def test_latents_that_the_decoder_ignores_leave_nothing_to_choose(data: OfflineDataset) -> None:
    agent = make_agent("LDCQ", data).learn()
    assert isinstance(agent, LDCQ)
    agent._prepare_data(data)
    with torch.no_grad():
        before = measuring.latent_measures(agent, torch.Generator().manual_seed(0))
        first = agent.policy.vae.action.net.trunk[0][0]
        first.weight[:, agent.state_dim :] = 0
        after = measuring.latent_measures(agent, torch.Generator().manual_seed(0))
    assert before["action_spread"] > 0
    assert after["action_spread"] == 0
    assert after["draws"]["uniform"]["action_spread"] == 0


def test_raw_actions_are_their_own_latents_and_tilt_is_what_guidance_adds(
    data: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent("LatentDiffuser", data, latent_space=False).learn()
    policy: Any = agent.policy

    def draw_latents(states: Tensor, start: Tensor, guided: bool = True) -> Tensor:
        return torch.zeros_like(start) + (2.0 if guided else 0.5)

    monkeypatch.setattr(policy, "draw_latents", draw_latents)
    monkeypatch.setattr(policy, "standard_returns", lambda latents, states: latents.flatten(1).mean(1))
    found = measuring.measure(agent, data, seed=0)
    assert found["action_error"] == pytest.approx(0, abs=1e-9)
    assert found["tilt"] == pytest.approx(1.5)
    assert measuring.measure(make_agent("LatentDiffuser", data, guidance="none").learn(), data, seed=0)["tilt"] == 0


@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_spread_of_plans_is_that_of_unguided_ones(
    spread: float, data: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent("LatentDiffuser", data, latent_space=False).learn()
    policy: Any = agent.policy

    def draw_latents(states: Tensor, start: Tensor, guided: bool = True) -> Tensor:
        return start * (3.0 if guided else spread)

    monkeypatch.setattr(policy, "draw_latents", draw_latents)
    agent._prepare_data(data)
    with torch.no_grad():
        found = measuring.plan_measures(agent, torch.Generator().manual_seed(0))
    _, starts = measuring.halves(agent.window_starts, agent.data, torch.Generator().manual_seed(0))
    first = agent.windows(starts)[0][:, 0, policy.state_dim :][:, : policy.action_dim]
    drawn = (spread * policy.latent_std[: policy.action_dim]).square().sum()  # each latent is its steps' actions
    assert found["action_spread"] == pytest.approx(float(drawn / first.var(0, correction=0).sum()), rel=0.1)


def test_next_tasks_of_a_kitchen_and_their_map() -> None:
    kitchen = pytest.importorskip("gymnasium_robotics.envs.franka_kitchen.kitchen_env")
    names = list(kitchen.OBS_ELEMENT_GOALS)
    observations = torch.zeros(9, 59)
    for task in names:  # far from every goal
        observations[:, kitchen.OBS_ELEMENT_INDICES[task] + 9] = 50.0
    for rows, task in ((slice(2, 6), "kettle"), (slice(4, 6), "microwave"), (slice(6, 9), "microwave")):
        goal = torch.as_tensor(kitchen.OBS_ELEMENT_GOALS[task]).float()
        observations[rows, kitchen.OBS_ELEMENT_INDICES[task] + 9] = goal
    found = measuring.next_tasks(observations, torch.tensor([6, 9]))
    kettle, microwave, none = names.index("kettle"), names.index("microwave"), len(names)
    # the second episode begins with its task done
    assert found.tolist() == [kettle, kettle, microwave, microwave, none, none, none, none, none]
    latents = torch.tensor([[3.0, 0, 0], [-3.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]]) + 7
    mapped = measuring.latent_map(latents, torch.tensor([0, 1, 2, 7]))
    assert np.abs(mapped["places"]) == pytest.approx(np.array([[3, 0], [3, 0], [0, 1], [0, 1]]), abs=1e-3)
    assert mapped["variance"] == pytest.approx([0.9, 0.1])
    assert (mapped["tasks"], mapped["names"][-1], len(mapped["names"])) == ([0, 1, 2, 7], "none", 8)


def test_neighbors_stay_neighbors_on_the_map() -> None:
    pytest.importorskip("gymnasium_robotics")
    clusters = torch.arange(60) % 3
    latents = torch.eye(5)[clusters] * 20 + torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    places = torch.tensor(measuring.latent_map(latents, clusters)["tsne"])
    assert places.shape == (60, 2)
    apart = torch.cdist(places, places).fill_diagonal_(torch.inf)
    assert (clusters[apart.argmin(1)] == clusters).all()
