"""Acting as SB3's users know it, for every agent: `predict` on single observations and batches, with state."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    EvalCallback,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from conftest import (
    BOX,
    TINY_LDCQ,
    Drift,
    GoalDrift,
    Trained,
    make_agent,
    record,
    saved,
    seen_by,
)
from ld_agents import BC, OfflineDataset, evaluate
from ld_agents.common.goals import GoalAgent
from ld_agents.common.offline_algorithm import OfflineAlgorithm

# ---------------------------------------------------------------- predict


def test_device_of_the_policy_follows_its_weights(name: str, trained: Trained) -> None:
    policy = copy.deepcopy(trained(name).policy)
    assert policy.device == torch.device("cpu")
    assert policy.to("meta").device == torch.device("meta") == next(policy.parameters()).device


def test_single_and_batched_observations(name: str, trained: Trained) -> None:
    agent = trained(name)
    batch = seen_by(agent, 5)
    actions, state = agent.predict(batch, deterministic=True)
    assert actions.shape == (5, 2)
    assert actions.dtype == np.float32
    assert all(agent.action_space.contains(action) for action in actions)
    assert len(np.unique(actions[:, 0])) == 5
    single, single_state = agent.predict(batch[2], deterministic=True)
    assert single.shape == (2,)
    np.testing.assert_allclose(single, actions[2], atol=1e-5)
    if state is not None:
        assert {len(part) for part in state} == {5}
        assert single_state is not None
        assert {len(part) for part in single_state} == {1}
    read_only = batch.copy()
    read_only.setflags(write=False)
    for other in (batch.astype(np.float64), batch.tolist(), batch[::-1].copy()[::-1], read_only):
        np.testing.assert_array_equal(agent.predict(other, deterministic=True)[0], actions)


def test_actions_stay_in_the_box_however_far_the_observation(name: str, trained: Trained) -> None:
    agent = trained(name)
    agent.policy.set_training_mode(True)
    far = np.random.default_rng(0).normal(0, 1e4, (200, 3))
    for deterministic in (True, False):
        actions = agent.predict(far, deterministic=deterministic)[0]
        assert np.isfinite(actions).all()
        assert all(BOX.contains(action) for action in actions)
    assert not agent.policy.training
    if name != "LatentDiffuser":  # layer norms keep what it decodes in range
        assert (actions == BOX.low).any()
        assert (actions == BOX.high).any()


@pytest.mark.parametrize(
    ("bounds", "dtype"),
    [
        ((-4.3311253, 0.122793116), np.float32),
        ((-0.1, 0.1), np.float32),
        ((-0.1, 0.1), np.float64),
        ((-0.3, 0.7), np.float64),
    ],
)
def test_saturated_actions_stay_in_a_box_with_unround_bounds(bounds: tuple[float, float], dtype: Any) -> None:
    box = spaces.Box(*np.array(bounds, dtype), (1,), dtype)
    data = OfflineDataset(np.zeros((40, 2)), np.zeros((40, 1)), np.zeros(40), np.zeros(40), np.zeros(40), None, box)
    agent = BC("MlpPolicy", data, preset="fast", seed=0)
    for bias in (-50.0, 50.0):
        torch.nn.init.constant_(agent.policy.actor.net[-1].bias, bias)
        action = agent.predict(np.zeros(2))[0]
        assert box.contains(action)
        np.testing.assert_allclose(action, bounds[bias > 0], rtol=1e-6)


def test_action_dimension_that_never_moves(name: str) -> None:
    """A joint that is fixed at 2, also in the box."""
    rng = np.random.default_rng(0)
    actions = np.stack([rng.uniform(-3, 3, 60), np.full(60, 2.0)], 1)
    box = spaces.Box(np.array([-3, 2], np.float32), np.array([3, 2], np.float32))
    arrays = rng.normal(size=(60, 3)), actions, np.zeros(60), np.zeros(60), np.arange(60) % 20 == 19
    data = OfflineDataset(*arrays, action_space=box)
    action = make_agent(name, data).learn(10).predict(np.zeros(3))[0]
    assert np.isfinite(action).all()
    assert action[1] == 2


def test_goal_in_the_dictionary(name: str, goal_dataset: OfflineDataset) -> None:
    agent = make_agent(name, goal_dataset).learn(20)
    env = GoalDrift()
    observation = env.reset(seed=1)[0]
    flat = np.concatenate([observation["observation"], observation["desired_goal"]])
    action, _ = agent.predict(observation, deterministic=True)
    assert env.action_space.contains(action)
    np.testing.assert_array_equal(action, agent.predict(flat, deterministic=True)[0])
    moved = {**observation, "desired_goal": observation["desired_goal"] + 1}
    assert not np.array_equal(action, agent.predict(moved, deterministic=True)[0])
    batch = {key: np.stack([value, value + 0.1, value]) for key, value in observation.items()}
    actions, _ = agent.predict(batch, deterministic=True)
    assert actions.shape == (3, 2)
    np.testing.assert_allclose(actions[0], action, atol=1e-5)
    returns, lengths = evaluate_policy(agent, Monitor(env), 2, return_episode_rewards=True)
    assert len(returns) == len(lengths) == 2
    loaded = type(agent).load(io.BytesIO(saved(agent)))
    np.testing.assert_array_equal(action, loaded.predict(observation, deterministic=True)[0])
    assert loaded.observation_space == env.observation_space


def test_dictionaries_are_accepted_where_the_goal_was_relabelled(name: str) -> None:
    agent = make_agent(name, record(keys=("observation",))).learn(10)
    env = GoalDrift()
    observation = env.reset(seed=1)[0]
    action, _ = agent.predict(observation, deterministic=True)
    if isinstance(agent, GoalAgent):  # takes the dictionary's goal, which a vector does not hold
        agent.set_goal(observation["desired_goal"])
    np.testing.assert_array_equal(action, agent.predict(observation["observation"], deterministic=True)[0])
    agent.set_env(DummyVecEnv([GoalDrift]))
    agent.learn(10, callback=EvalCallback(Monitor(env), n_eval_episodes=1, eval_freq=5, verbose=0))
    assert len(evaluate(agent, GoalDrift, 3, seed=0).returns) == 3


def test_wrong_observations_are_explained(name: str, trained: Trained, goal_dataset: OfflineDataset) -> None:
    agent = trained(name)
    for wrong in (np.zeros(4), np.zeros((2, 4)), np.zeros((1, 2, 3)), np.zeros(())):
        with pytest.raises(ValueError, match=r"Expected one observation of shape \(3,\) or a batch of shape \(n, 3\)"):
            agent.predict(wrong)
    with pytest.raises(ValueError, match="given a dictionary, but this agent learned from vectors of size 3"):
        agent.predict({"observation": np.zeros(3)})
    with pytest.raises(ValueError, match=r"env.reset\(\) of Gymnasium returns"):
        agent.predict(Drift().reset())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="episode_start has 2 entries for 3 observations"):
        agent.predict(np.zeros((3, 3)), episode_start=np.ones(2, bool))
    with pytest.raises(ValueError, match=r"lacks the keys \['desired_goal'\]"):
        make_agent(name, goal_dataset).predict({"observation": np.zeros(3)})


def test_policy_is_neither_saved_nor_loaded_alone(name: str, trained: Trained, tmp_path: Path) -> None:
    agent = trained(name)
    with pytest.raises(RuntimeError, match=r"agent\.save"):
        agent.policy.save(str(tmp_path / "policy"))
    with pytest.raises(RuntimeError, match="Load the agent"):
        type(agent.policy).load(str(tmp_path / "policy"))
    assert not list(tmp_path.iterdir())


def test_policy_forward_pass_is_predict(name: str, trained: Trained) -> None:
    agent = trained(name)
    batch = seen_by(agent, 4)
    actions = agent.policy._predict(torch.as_tensor(batch), deterministic=True)
    np.testing.assert_array_equal(actions.numpy(), agent.predict(batch, deterministic=True)[0])
    if name in ("IQL", "CQL", "LDCQ"):
        equal = torch.as_tensor(batch[[0, 0]])
        drawn, alone = (agent.policy(rows, deterministic=False).detach() for rows in (equal, equal[:1]))
        np.testing.assert_allclose(drawn[:1], alone, atol=1e-5)
        assert (drawn[0] - drawn[1]).abs().max() > 1e-3


# ---------------------------------------------------------------- the latent that is held


def test_bc_keeps_no_state(trained: Trained) -> None:
    assert trained("BC").predict(np.zeros(3))[1] is None


@pytest.mark.parametrize("stochastic", ["LDCQ", "IQL"])
def test_episodes_from_one_start_are_independent_draws(trained: Trained, stochastic: str) -> None:
    """Else an interval over episodes that run side by side is over copies of one."""

    class FixedStart(Drift):
        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            return super().reset(seed=0, options=options)

    returns = evaluate(trained(stochastic), FixedStart, 6, seed=0, n_envs=6, deterministic=False).returns
    assert len(set(returns)) == 6
    first = evaluate(trained(stochastic), FixedStart, 1, seed=0, n_envs=1, deterministic=False).returns
    np.testing.assert_allclose(first[0], returns[0], atol=1e-5)
    assert len(set(evaluate(trained(stochastic), FixedStart, 3, seed=0, n_envs=3).returns)) == 1


@pytest.mark.parametrize("ldcq", ["LDCQ", "LDCQ-gaussian"])
def test_latent_is_held_for_exec_horizon_steps(trained: Trained, ldcq: str) -> None:
    agent = trained(ldcq)
    observations = seen_by(agent, 7)
    state: Any = None
    latents, left = [], []
    for observation in observations:
        _, state = agent.predict(observation, state, np.array([False]), deterministic=True)
        latents.append(state[0][0])
        left.append(int(state[1][0]))
    held = TINY_LDCQ["exec_horizon"]
    assert left == [2, 1, 0, 2, 1, 0, 2]
    for step in range(1, 7):
        assert np.array_equal(latents[step], latents[step - 1]) == (step % held != 0)


@pytest.mark.parametrize("ldcq", ["LDCQ", "LDCQ-gaussian"])
def test_episode_start_replans_that_row_alone(trained: Trained, ldcq: str) -> None:
    agent = trained(ldcq)
    observations = seen_by(agent, 6)
    _, state = agent.predict(observations[:3], deterministic=True)
    assert state is not None
    before = [part.copy() for part in state]
    _, after = agent.predict(observations[3:], state, np.array([False, True, False]), deterministic=True)
    assert after is not None
    assert after[1].tolist() == [1, 2, 1]
    assert (after[0] != before[0]).any(1).tolist() == [False, True, False]
    for part, unchanged in zip(state, before, strict=True):
        np.testing.assert_array_equal(part, unchanged)
    # the new plan is the one that this observation gets by itself
    alone = agent.predict(observations[4], deterministic=True)[1]
    assert alone is not None
    np.testing.assert_allclose(after[0][1], alone[0][0], atol=1e-5)


def test_state_of_other_environments_is_refused(trained: Trained) -> None:
    agent = trained("LDCQ")
    _, state = agent.predict(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="state has 3 rows for 2 observations"):
        agent.predict(np.zeros((2, 3)), state)


# ---------------------------------------------------------------- no environment depends on the others


def roll_out(
    agent: OfflineAlgorithm, observations: np.ndarray, starts: np.ndarray, rows: list[int], deterministic: bool
) -> np.ndarray:
    """Actions [steps, rows, A] on given observations [steps, n, S], of the environments `rows` only."""
    state: Any = None
    actions = []
    for observation, start in zip(observations[:, rows], starts[:, rows], strict=True):
        action, state = agent.predict(observation, state, start, deterministic)
        actions.append(action)
    return np.array(actions)


@pytest.mark.parametrize("deterministic", [True, False])
def test_environments_do_not_depend_on_each_other(name: str, trained: Trained, deterministic: bool) -> None:
    seen = seen_by(trained(name), 12 * 8)
    observations = seen.reshape(12, 8, *seen.shape[1:])
    # episodes begin at different steps, so that the environments plan at different steps
    starts = np.random.default_rng(1).random((12, 8)) < 0.2
    starts[0] = True
    together = roll_out(trained(name), observations, starts, list(range(8)), deterministic)
    shuffled = [5, 2, 7, 0, 3, 6, 1, 4]
    # fresh copies of the agent: without `deterministic` the noise also depends on the number of calls so far
    in_other_order = roll_out(trained(name), observations, starts, shuffled, deterministic)
    np.testing.assert_allclose(in_other_order, together[:, shuffled], atol=1e-5)
    for row in range(8):
        alone = roll_out(trained(name), observations, starts, [row], deterministic)
        np.testing.assert_allclose(alone[:, 0], together[:, row], atol=1e-5)


@pytest.mark.parametrize("stochastic", ["LDCQ", "LDCQ-gaussian", "LatentDiffuser", "IQL", "CQL"])
def test_stochastic_actions_are_fresh_in_every_call_and_differ_between_rows(trained: Trained, stochastic: str) -> None:
    agent = trained(stochastic)
    batch = np.stack([seen_by(agent, 1)[0]] * 3) + np.array([[0], [0], [1e-4]], np.float32)
    first, again = (agent.predict(batch)[0] for _ in range(2))
    assert (np.abs(first - again) > 1e-3).any(1).all()
    assert np.abs(first[0] - first[1]).max() > 1e-3, "equal observations get noise of their own, too"
    assert np.abs(first[0] - first[2]).max() > 1e-3
    certain = agent.predict(batch, deterministic=True)[0]
    agent.predict(batch)
    np.testing.assert_array_equal(agent.predict(batch, deterministic=True)[0], certain)


@pytest.mark.parametrize("ldcq", ["LDCQ", "LDCQ-gaussian"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_last_bits_of_later_observations_do_not_matter(trained: Trained, ldcq: str, deterministic: bool) -> None:
    """They depend on the size of the batch; a plan that hung on them would too."""
    observations = seen_by(trained(ldcq), 10 * 4).reshape(10, 4, 3)
    nearly = np.nextafter(observations, np.float32(1000))
    nearly[0] = observations[0]
    starts = np.zeros((10, 4), bool)
    exact, near = (roll_out(trained(ldcq), o, starts, [0, 1, 2, 3], deterministic) for o in (observations, nearly))
    np.testing.assert_allclose(near, exact, atol=1e-3)


@pytest.mark.parametrize("ldcq", ["LDCQ", "LDCQ-gaussian"])
def test_every_step_has_its_own_noise(trained: Trained, ldcq: str) -> None:
    """On one observation, while a latent is held: the action is sampled anew, and a state that is reused repeats it."""
    agent = trained(ldcq)
    observation = seen_by(agent, 1)
    first, state = agent.predict(observation)
    second, later = agent.predict(observation, state)
    assert state is not None
    assert later is not None
    np.testing.assert_array_equal(state[0], later[0])
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(agent.predict(observation, state)[0], second)
    # plans too: the same observation again, when the latent has run out
    for _ in range(2):
        _, later = agent.predict(observation, later)
    assert later is not None
    assert np.abs(later[0] - state[0]).max() > 1e-3


STARTS = [(0.1 * i, 0.3 - 0.07 * i) for i in range(8)]


@pytest.mark.parametrize("n_envs", [1, 8])
def test_sb3_evaluation_agrees_exactly_on_fixed_starts(name: str, trained: Trained, n_envs: int) -> None:
    """Environment i begins at its own place and ends after its own number of steps."""
    agent = trained(name)
    envs = [lambda i=i: Monitor(Drift(STARTS[i], max_steps=5 + 2 * i)) for i in range(8)]
    ours = [evaluate(agent, env, 1, seed=0).returns[0] for env in envs]
    if n_envs == 1:
        theirs = [evaluate_policy(agent, DummyVecEnv([env]), 1)[0] for env in envs]
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
    else:
        theirs = evaluate_policy(agent, DummyVecEnv(envs), 16, return_episode_rewards=True)[0]
        np.testing.assert_allclose(sorted(theirs), sorted([*ours, *ours]), atol=1e-4)


@pytest.mark.parametrize("n_envs", [1, 8])
def test_sb3_evaluation_agrees_within_noise_on_drawn_starts(name: str, trained: Trained, n_envs: int) -> None:
    agent = trained(name)
    ours = np.array(evaluate(agent, Drift, 80, seed=0, n_envs=8).returns)
    envs = DummyVecEnv([lambda: Monitor(Drift())] * n_envs)
    envs.seed(7)
    theirs, error = evaluate_policy(agent, envs, 80)
    assert abs(theirs - ours.mean()) < 4 * float(np.hypot(error, ours.std())) / 80**0.5
    assert 0 < error < 10


def test_our_evaluation_does_not_depend_on_the_number_of_environments(name: str, trained: Trained) -> None:
    agent = trained(name)
    one, many = (evaluate(agent, Drift, 40, seed=3, n_envs=n) for n in (1, 16))
    np.testing.assert_allclose(one.returns, many.returns, atol=1e-4)
    assert len(set(np.round(one.returns, 3))) > 20
