"""LDGC and GCBC: where goals come from, how they are given, and that guidance acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from conftest import GoalDrift, Trained, make_agent, seen_by
from ld_agents import OfflineDataset
from ld_agents.common.goals import GoalAgent
from ld_agents.diffusion.sampling import linear_schedule

GOAL_AGENTS = ("LDGC", "GCBC")


def walk(goals: list[float] | None = None) -> OfflineDataset:
    """Three episodes of 12 steps, whose first column is the row number, the second the episode; perhaps with goals."""
    rows, episodes = np.arange(36.0), np.repeat(np.arange(3.0), 12)
    parts = {"observation": np.stack([rows, episodes], 1)}
    if goals is not None:
        parts["desired_goal"] = np.tile(np.array(goals)[:, None], (3, 2))
    space = spaces.Dict({k: spaces.Box(-np.inf, np.inf, v.shape[1:], np.float32) for k, v in parts.items()})
    return OfflineDataset(
        np.concatenate(list(parts.values()), 1),
        np.linspace(-1, 1, 36)[:, None],
        np.zeros(36),
        np.zeros(36),
        rows % 12 == 11,
        observation_space=space if goals else None,
        observation_keys=tuple(parts) if goals else None,
        final_observations=np.array([[100.0 + e, e, *[0, 0] * bool(goals)] for e in range(3)]),
    )


# ---------------------------------------------------------------- where goals come from


def drawn_goals(agent: GoalAgent, start: int, horizon: int, n: int = 4000) -> torch.Tensor:
    """What `with_goals` draws for one start: raw states and goals, and whether there is one. [n, S+G+1]."""
    assert agent.dataset is not None
    agent._prepare_data(agent.dataset)
    return agent.with_goals(torch.full((n,), start), horizon)


@pytest.mark.parametrize("name", GOAL_AGENTS)
def test_hindsight_goals_lie_ahead_in_the_same_episode(name: str) -> None:
    """From step 3 of the second episode, at least five steps on: rows 20 to 23 and the final state, evenly."""
    agent: Any = make_agent(name, walk(), goal_dropout=0.0, normalize_observations=False)
    found = drawn_goals(agent, 15, 5)
    assert (found[:, :2] == torch.tensor([15.0, 1.0])).all()
    values, counts = found[:, 2].unique(return_counts=True)
    assert values.tolist() == [20, 21, 22, 23, 101]
    assert (found[:, 3] == 1).all(), "of the same episode"
    assert (counts / len(found) - 0.2).abs().max() < 0.03
    late = drawn_goals(agent, 22, 5, 20)
    assert late[:, 2].unique().tolist() == [101], "where the episode ends before, its last state"
    agent.settings = type(agent.settings)(**{**vars(agent.settings), "goal_steps": 6})
    assert drawn_goals(agent, 15, 5)[:, 2].unique().tolist() == [20, 21]


@pytest.mark.parametrize("name", GOAL_AGENTS)
def test_share_of_goals_that_are_dropped(name: str) -> None:
    for rate in (0.0, 0.1, 0.5):
        agent: Any = make_agent(name, walk(), goal_dropout=rate, normalize_observations=False)
        found = drawn_goals(agent, 3, 2)
        kept = found[:, -1]
        assert abs(float(1 - kept.mean()) - rate) < 0.025
        assert (found[kept == 0][:, 2:] == 0).all()
        assert (found[kept == 1][:, 2] >= 5).all()


def test_commanded_goals_are_those_of_windows_in_which_they_stay() -> None:
    """The goal changes at step 7 of each episode: windows of 4 steps that begin at 0 to 3 and at 7 and 8 are left."""
    data = walk([1.0] * 7 + [2.0] * 5)
    settings = {"goals": "commanded", "goal_dropout": 0.0, "normalize_observations": False, "exec_horizon": 2}
    agent: Any = make_agent("LDGC", data, horizon=4, **settings)
    agent._prepare_data(data)
    starts = agent.prior_starts()
    assert starts.tolist() == [12 * episode + t for episode in range(3) for t in (0, 1, 2, 3, 7, 8)]
    found = agent.conditions(starts.long())
    assert found[:, 2].tolist() == found[:, 3].tolist() == [1.0, 1.0, 1.0, 1.0, 2.0, 2.0] * 3
    assert found.shape == (18, 5)
    with pytest.raises(ValueError, match="stays the same for 8 steps"):
        make_agent("LDGC", data, **{**settings, "horizon": 8}).learn(24)


def test_the_vae_sees_no_goals() -> None:
    """Trainings on data that differ in their goals alone have the same VAE, and commanded ones another prior."""
    settings = {"goals": "commanded", "horizon": 4}
    one, other = (
        make_agent("LDGC", walk(goals), **settings).learn().policy.state_dict()
        for goals in ([1.0] * 7 + [2.0] * 5, [1.0] * 7 + [5.0] * 5)
    )
    assert all(torch.equal(one[key], other[key]) for key in one if key.startswith(("vae.", "latent_")))
    assert not all(torch.equal(one[key], other[key]) for key in one if key.startswith("denoiser."))


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match=r'hold no goals to be commanded.*goal="keep"'):
        make_agent("LDGC", walk(), goals="commanded")
    with pytest.raises(ValueError, match=r"goal_dim \(2\) columns from goal_start \(1\) on are more than the 2"):
        make_agent("GCBC", walk(), goal_start=1)
    with pytest.raises(ValueError, match="hold goals of 2 numbers, and goal_dim is 1"):
        make_agent("LDGC", walk([1.0] * 12), goal_dim=1)


# ---------------------------------------------------------------- how goals are given


@pytest.mark.parametrize("name", GOAL_AGENTS)
def test_set_goal_is_the_same_as_a_goal_in_the_dictionary(name: str, goal_dataset: OfflineDataset) -> None:
    """With and without noise, for one environment and three, whatever goal the dictionary holds."""
    agent: Any = make_agent(name, goal_dataset).learn()
    single = GoalDrift().reset(seed=3)[0]
    batch = {key: np.stack([value, value + 0.2, value - 0.4]) for key, value in single.items()}
    for observation in (single, batch):
        wanted = {**observation, "desired_goal": np.full_like(observation["desired_goal"], [0.5, -0.25])}
        without = {key: value for key, value in observation.items() if key != "desired_goal"}
        agent.set_goal(None)
        expected, own = (agent.predict(each, deterministic=True)[0] for each in (wanted, observation))
        assert np.abs(expected - own).max() > 1e-5
        agent.set_goal([0.5, -0.25])
        for given in (observation, without, observation["observation"]):
            np.testing.assert_array_equal(agent.predict(given, deterministic=True)[0], expected)
    agent.set_goal(None)
    with pytest.raises(ValueError, match="lacks the keys"):
        agent.predict(without)


@pytest.mark.parametrize("name", GOAL_AGENTS)
def test_goals_of_environments_for_data_without_goals(name: str, dataset: OfflineDataset) -> None:
    """As on AntMaze: the data are vectors, and each environment has a goal of its own."""
    agent: Any = make_agent(name, dataset)
    agent.policy.observation_keys = ("observation",)
    rows, goals = seen_by(agent, 3), np.array([[0.0, 1.0], [1.0, 0.0], [0.3, 0.3]], np.float32)
    together = agent.predict({"observation": rows, "desired_goal": goals}, deterministic=True)[0]
    for row, goal, action in zip(rows, goals, together, strict=True):
        agent.set_goal(goal)
        np.testing.assert_allclose(agent.predict(row, deterministic=True)[0], action, atol=1e-5)


@pytest.mark.parametrize("goal", [[1.0], [1.0, 2.0, 3.0], [np.nan, 0.0], [[1.0, 2.0]]])
def test_wrong_goals_are_refused(trained: Trained, goal: Any) -> None:
    agent: Any = trained("GCBC")
    with pytest.raises(ValueError, match="A goal has 2 finite numbers"):
        agent.set_goal(goal)


def test_a_new_goal_holds_from_the_next_plan_on(trained: Trained) -> None:
    agent: Any = trained("LDGC")
    agent.set_goal([1.0, 0.0])
    observation, state, latents = seen_by(agent, 1), None, []
    for t in range(4):  # plans are held for three steps
        if t == 1:
            agent.set_goal([-1.0, 0.0])
        _, state = agent.predict(observation, state, np.array([False]), deterministic=True)
        latents.append(state[0][0])
    assert np.array_equal(latents[0], latents[2])
    assert not np.array_equal(latents[0], latents[3])


def test_a_graph_has_the_goal_that_was_set_or_takes_it(
    trained: Trained, goal_dataset: OfflineDataset, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    for agent in (trained("GCBC"), make_agent("GCBC", goal_dataset).learn()):
        rows = seen_by(agent, 4)
        agent.export(tmp_path / "told.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "told.onnx")
        expected = agent.predict(rows)[0]
        np.testing.assert_allclose(session.run(None, {"observation": rows})[0], expected, atol=1e-5)
        agent.set_goal([1.5, -2.0])  # type: ignore[attr-defined]
        assert np.abs(agent.predict(rows)[0] - expected).max() > 1e-4
        agent.export(tmp_path / "set.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "set.onnx")
        np.testing.assert_allclose(session.run(None, {"observation": rows})[0], agent.predict(rows)[0], atol=1e-5)


# ---------------------------------------------------------------- guidance


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guided_draws_are_those_of_the_closed_form(
    scale: float, dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p(z) = N(0, 1) and p(z | g) = N(g, 1), with exact denoisers E[z | z_j] = m + alpha_j (z_j - alpha_j m).

    Their scores at any noise are -z and -(z - alpha g), so the guided one is that of N(scale g, 1), which is drawn.
    """
    settings = {"guidance_scale": scale, "diffusion_steps": 200, "solver_steps": 40, "latent_dim": 4}
    policy: Any = make_agent("LDGC", dataset, **settings).policy
    signal, goal = linear_schedule(200).signal.float(), torch.tensor([0.8, -0.5, 0.0, 2.0])

    def denoise(z: torch.Tensor, is_told: torch.Tensor, alpha: torch.Tensor, weights: Any) -> torch.Tensor:
        mean = goal * is_told
        return mean + alpha * (z - alpha * mean)

    monkeypatch.setattr(policy.denoiser, "state_terms", lambda states: states[..., -1:])
    monkeypatch.setattr(policy.denoiser, "time_terms", lambda j: [(signal[j], signal[j])])
    monkeypatch.setattr(policy.denoiser, "denoise", lambda z, s, t, w: denoise(z, s, t[0][0], w))
    n, generator = 4000, torch.Generator().manual_seed(0)
    states = torch.cat([torch.zeros(n, policy.state_dim - 1), torch.ones(n, 1)], 1)
    plans = policy.plan_from(states, lambda k: torch.randn(n, 1, 4, generator=generator))
    torch.testing.assert_close(plans.mean(0), scale * goal, atol=0.06, rtol=0)
    torch.testing.assert_close(plans.std(0), torch.ones(4), atol=0.05, rtol=0)
    states[:, -1] = 0
    plans = policy.plan_from(states, lambda k: torch.randn(n, 1, 4, generator=generator))
    torch.testing.assert_close(plans.mean(0), torch.zeros(4), atol=0.06, rtol=0)


def test_guidance_of_a_trained_prior_acts_towards_the_goal(dataset: OfflineDataset) -> None:
    """In the drift every action is worth as much; goals four ways, and the way that actions go on average there."""
    budgets = {"vae_steps": 400, "prior_steps": 600, "vae_batch_size": 64, "prior_batch_size": 64}
    agent: Any = make_agent("LDGC", dataset, **budgets, goal_dropout=0.3, denoiser_widths=(32, 16)).learn()
    progress = []
    rows = np.tile(np.array([[0.5, -0.5, 100.5]], np.float32), (200, 1))
    rows[:, 0] += np.linspace(0, 1e-3, 200)  # of their own noise each
    for scale in (0.0, 1.0, 3.0):
        agent.policy.settings = type(agent.settings)(**{**vars(agent.settings), "guidance_scale": scale})
        actions = []
        for goal in ([1.6, -0.5], [0.5, 0.4], [0.5, -2.0]):
            agent.set_goal(goal)
            actions.append(agent.predict(rows, deterministic=True)[0].mean(0))
        right, up, down = actions
        progress.append((right[0] - (up[0] + down[0]) / 2, up[1] - down[1]))
    none, plain, guided = np.array(progress)
    assert np.abs(none).max() < 0.05
    assert (plain > 0.05).all()
    assert (guided > 1.3 * plain).all()
