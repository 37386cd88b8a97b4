"""What every agent owes SB3's users: learn, callbacks, logs, predict, seeds, and going on after a stop."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import (
    AGENTS,
    BOX,
    TINY_LDCQ,
    Drift,
    GoalDrift,
    StopAt,
    differing,
    make_agent,
    record,
    saved,
    weights,
)
from ld_agents import BC, LDCQ, OfflineDataset, evaluate
from ld_agents.common.offline_algorithm import Losses, OfflineAlgorithm, Stage

Trained = Callable[[str], OfflineAlgorithm]
STAGES = {
    "LDCQ": ["vae", "prior", "q"],
    "LDCQ-gaussian": ["vae", "q"],
    "LatentDiffuser": ["vae", "prior", "energy"],
    **{baseline: ["train"] for baseline in ("BC", "TD3BC", "ReBRAC", "IQL", "CQL")},
}
_TD3_PARTS = {"actor", "target_actor", "critics", "target_critics"}
LAST_STAGE_PARTS = {
    "LDCQ": {"critics", "target_critics"},
    "LDCQ-gaussian": {"critics", "target_critics"},
    "LatentDiffuser": {"energy", "energy_average"},
    "BC": {"actor"},
    "TD3BC": _TD3_PARTS,
    "ReBRAC": _TD3_PARTS,
    "IQL": {"actor", "value", "critics", "target_critics"},
    "CQL": {"actor", "critics", "target_critics", "log_entropy", "log_multiplier"},
}
EARLIER_PARTS: dict[str, set[str]] = {
    "LDCQ": {"vae", "denoiser", "latent_mean", "latent_std", "reward_scale"},
    "LDCQ-gaussian": {"vae", "latent_mean", "latent_std", "reward_scale"},
    "LatentDiffuser": {
        *("vae", "denoiser", "denoiser_average", "latent_mean", "latent_std", "token_mean", "token_std"),
        *("q_average", "return_mean", "return_std", "scale_of_state"),
    },
}


def steps_of(agent: OfflineAlgorithm) -> dict[str, int]:
    return {stage.name: stage.gradient_steps for stage in agent.stages()}


def seen_by(agent: OfflineAlgorithm, n: int, seed: int = 0) -> np.ndarray:
    """Observations like those of the data, float32 [n, S]."""
    assert agent.dataset is not None
    rows = np.random.default_rng(seed).choice(agent.dataset.n_steps, n, replace=False)
    return agent.dataset.observations.numpy()[rows]


# ---------------------------------------------------------------- learn


def test_learn_counts_gradient_steps(name: str, dataset: OfflineDataset) -> None:
    agent = make_agent(name, dataset)
    before = weights(agent)
    assert isinstance(agent, BaseAlgorithm)
    assert list(steps_of(agent)) == STAGES[name]
    assert agent.full_budget == sum(steps_of(agent).values())
    assert agent.learn() is agent
    assert agent.num_timesteps == agent.full_budget
    assert agent.stage_steps == agent.stage_budget == steps_of(agent)
    assert list(agent.stage_seconds) == STAGES[name]
    assert all(0 < seconds < 60 for seconds in agent.stage_seconds.values())
    trained = {key.split(".")[0] for key in differing(before, weights(agent))}
    assert trained == LAST_STAGE_PARTS[name] | EARLIER_PARTS.get(name, set())
    assert all(torch.isfinite(value).all() for value in weights(agent).values())


@pytest.mark.parametrize("total", [0, 1, 2, 7, 20, 100])
def test_total_timesteps_are_shared_out(name: str, dataset: OfflineDataset, total: int) -> None:
    agent = make_agent(name, dataset).learn(total)
    assert agent.num_timesteps == total
    assert sum(agent.stage_steps.values()) == total
    for stage, steps in steps_of(agent).items():
        assert abs(agent.stage_steps[stage] - total * steps / agent.full_budget) <= 1


def test_a_second_learn_starts_the_count_again(name: str, dataset: OfflineDataset) -> None:
    agent = make_agent(name, dataset).learn(20)
    first = weights(agent)
    agent.learn(10)
    assert agent.num_timesteps == sum(agent.stage_steps.values()) == 10
    assert differing(first, weights(agent))


def test_a_second_learn_starts_with_fresh_optimisers_and_priorities(name: str, dataset: OfflineDataset) -> None:
    last = STAGES[name][-1]
    agent = make_agent(name, dataset).learn()
    resumed = type(agent).load(io.BytesIO(saved(agent)), dataset=dataset)
    for again in (agent, resumed):
        again.learn(10)
        state = again._optimizers[last].state_dict()["state"]
        assert {float(values["step"]) for values in state.values()} == {again.stage_steps[last]}
        if last == "q":
            again.learn(callback=StopAt(again.full_budget - 19))  # one step of Q-learning: 32 draws among 262 windows
            assert int(again._resumable["q.priorities"].isinf().sum()) >= 230


def test_streams_of_different_purposes_differ(name: str, dataset: OfflineDataset) -> None:
    agent, other = make_agent(name, dataset), make_agent(name, dataset, seed=1)
    streams = [
        torch.rand(5, generator=a.derived_generator(purpose)).tolist()
        for a, purpose in ((agent, "a"), (agent, "b"), (other, "a"), (agent, "a"))
    ]
    assert streams[0] == streams[3]
    assert streams[0] != streams[1]
    assert streams[0] != streams[2]


def test_more_steps_go_to_the_last_stage(name: str, dataset: OfflineDataset) -> None:
    agent = make_agent(name, dataset).learn()
    steps, first = dict(agent.stage_steps), weights(agent)
    agent.learn(5, reset_num_timesteps=False)
    last = STAGES[name][-1]
    assert agent.num_timesteps == agent.full_budget + 5
    assert agent.stage_steps == {**steps, last: steps[last] + 5}
    changed = {key.split(".")[0] for key in differing(first, weights(agent))}
    assert changed == LAST_STAGE_PARTS[name]
    untouched = weights(agent)
    agent.learn(reset_num_timesteps=False)
    assert not differing(untouched, weights(agent))


def test_negative_total_is_refused(name: str, dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        make_agent(name, dataset).learn(-1)


def test_actions_are_learned_in_units_of_the_box() -> None:
    constant = np.array([1.7, -2.5], np.float32)
    rng = np.random.default_rng(0)
    n = 300
    data = OfflineDataset(
        rng.normal(5, 3, (n, 3)),
        np.tile(constant, (n, 1)),
        np.zeros(n),
        np.zeros(n),
        np.arange(n) % 30 == 29,
        action_space=BOX,
    )
    bc = BC("MlpPolicy", data, preset="fast", seed=0, hidden=(16, 16), learning_rate=1e-2, steps=300).learn()
    np.testing.assert_allclose(bc.predict(data.observations.numpy()[:20])[0], np.tile(constant, (20, 1)), atol=0.05)
    ldcq = LDCQ("MlpPolicy", data, seed=0, **{**TINY_LDCQ, "vae_steps": 300, "vae_learning_rate": 1e-2}).learn()
    actions = ldcq.predict(data.observations.numpy()[:20], deterministic=True)[0]
    np.testing.assert_allclose(actions, np.tile(constant, (20, 1)), atol=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_type_of_action_space(name: str, dataset: OfflineDataset, dtype: Any) -> None:
    data = record()
    data.action_space = spaces.Box(BOX.low.astype(dtype), BOX.high.astype(dtype), dtype=dtype)
    agent = make_agent(name, data).learn(6)
    action = agent.predict(data.observations[0].numpy())[0]
    assert action.dtype == dtype
    assert data.action_space.contains(action)
    assert not differing(weights(agent), weights(make_agent(name, dataset).learn(6)))


# ---------------------------------------------------------------- callbacks and logs


class Calls(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.events: Counter[str] = Counter()

    def _on_training_start(self) -> None:
        self.events["start"] += 1

    def _on_step(self) -> bool:
        assert self.n_calls == self.num_timesteps == self.model.num_timesteps
        assert torch.isfinite(self.locals["losses"]["loss"])
        self.steps.append(self.num_timesteps)
        return True

    def _on_training_end(self) -> None:
        self.events["end"] += 1


def test_callbacks_are_called_after_every_gradient_step(name: str, dataset: OfflineDataset) -> None:
    one, two, every = Calls(), Calls(), Counter[int]()
    agent = make_agent(name, dataset)

    def note(*_: Any) -> bool:
        every[agent.num_timesteps] += 1
        return True

    agent.learn(20, callback=[one, CallbackList([two]), EveryNTimesteps(6, ConvertCallback(note))])
    assert one.steps == two.steps == list(range(1, 21))
    assert one.events == {"start": 1, "end": 1}
    assert dict(every) == {6: 1, 12: 1, 18: 1}


def test_callback_stops_training(name: str, dataset: OfflineDataset) -> None:
    calls = Calls()
    agent = make_agent(name, dataset).learn(callback=[StopAt(17), calls])
    assert agent.num_timesteps == sum(agent.stage_steps.values()) == 17
    assert sum(agent.stage_budget.values()) == agent.full_budget
    assert calls.events == {"start": 1, "end": 1}


def test_checkpoint_callback(name: str, dataset: OfflineDataset, tmp_path: Path) -> None:
    agent = make_agent(name, dataset).learn(20, callback=CheckpointCallback(8, str(tmp_path), name_prefix="agent"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent_16_steps.zip", "agent_8_steps.zip"]
    loaded = type(agent).load(tmp_path / "agent_16_steps.zip", dataset=dataset)
    assert loaded.num_timesteps == 16
    loaded.learn(reset_num_timesteps=False)
    assert not differing(weights(agent), weights(loaded))


def test_eval_callback_with_a_real_environment(name: str, dataset: OfflineDataset, tmp_path: Path) -> None:
    callback = EvalCallback(
        Monitor(Drift()),
        n_eval_episodes=2,
        eval_freq=10,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        deterministic=True,
        verbose=0,
    )
    agent = make_agent(name, dataset).learn(25, callback=callback)
    log = np.load(tmp_path / "evaluations.npz")
    assert log["timesteps"].tolist() == [10, 20]
    assert log["results"].shape == (2, 2)
    assert np.isfinite(log["results"]).all()
    best = type(agent).load(tmp_path / "best_model.zip")
    assert best.num_timesteps in (10, 20)
    # looking must not change what is learned
    assert not differing(weights(agent), weights(make_agent(name, dataset).learn(25)))


def test_logger_writes_the_losses_of_every_stage(name: str, dataset: OfflineDataset, tmp_path: Path) -> None:
    agent = make_agent(name, dataset)
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(log_interval=2)
    rows = list(csv.DictReader((tmp_path / "progress.csv").open()))
    assert len(rows) == agent.full_budget // 2
    for stage, steps in steps_of(agent).items():
        losses = [float(row[f"{stage}/loss"]) for row in rows if row.get(f"{stage}/loss")]
        assert len(losses) == steps // 2
        assert np.isfinite(losses).all()
        assert len(set(losses)) > 1


def test_tensorboard(name: str, dataset: OfflineDataset, tmp_path: Path) -> None:
    agent = make_agent(name, dataset, tensorboard_log=str(tmp_path)).learn(20, log_interval=1)
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"{type(agent).__name__}_1"
    events = EventAccumulator(str(folder)).Reload()
    for stage in STAGES[name]:
        points = events.Scalars(f"{stage}/loss")
        assert len(points) == agent.stage_steps[stage]
    assert points[-1].step == 20
    agent.learn(10, log_interval=1, tb_log_name="other")
    assert (tmp_path / "other_1").is_dir()


def test_progress_bar(name: str, dataset: OfflineDataset, capsys: pytest.CaptureFixture[str]) -> None:
    agent = make_agent(name, dataset).learn(20, progress_bar=True)
    assert agent.num_timesteps == 20
    assert "20/20" in "".join(capsys.readouterr())
    agent.set_env(DummyVecEnv([Drift, Drift]))
    calls: list[int] = []
    agent.learn(10, callback=lambda _, __: bool(calls.append(1) or True), progress_bar=True)
    assert len(calls) == 10
    assert "10/10" in "".join(capsys.readouterr())  # gradient steps, however many environments are attached


def test_log_interval(name: str, dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match="log_interval must be at least 1, or None"):
        make_agent(name, dataset).learn(2, log_interval=0)
    assert make_agent(name, dataset).learn(2, log_interval=None).num_timesteps == 2


def test_budget_of_nothing(name: str, dataset: OfflineDataset) -> None:
    nothing = {f"{stage}_steps" if stage != "train" else "steps": 0 for stage in STAGES[name]}
    agent = make_agent(name, dataset, **nothing)
    assert agent.learn().num_timesteps == 0
    assert agent.learn(3).num_timesteps == 3
    assert agent.stage_steps[STAGES[name][-1]] == 3


def test_environment_can_be_attached(name: str, dataset: OfflineDataset, trained: Trained) -> None:
    agent = trained(name)
    env = DummyVecEnv([Drift, Drift])
    agent.set_env(env)
    assert agent.get_env() is env
    assert agent.n_envs == 2
    with pytest.raises(ValueError, match="spaces do not match"):
        agent.set_env(GoalDrift())
    assert type(agent).load(io.BytesIO(saved(agent)), env=Drift()).get_env() is not None


# ---------------------------------------------------------------- predict


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
    for other in (batch.astype(np.float64), batch.tolist()):
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
    """A joint that is fixed at 2: the box is inferred as that of the data."""
    rng = np.random.default_rng(0)
    actions = np.stack([rng.uniform(-3, 3, 60), np.full(60, 2.0)], 1)
    data = OfflineDataset(rng.normal(size=(60, 3)), actions, np.zeros(60), np.zeros(60), np.arange(60) % 20 == 19)
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


# ---------------------------------------------------------------- the latent that is held


def test_bc_keeps_no_state(trained: Trained) -> None:
    assert trained("BC").predict(np.zeros(3))[1] is None


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
    observations = seen_by(trained(name), 12 * 8).reshape(12, 8, 3)
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
    # equal observations get equal noise: the price of not depending on the row
    np.testing.assert_allclose(first[0], first[1], atol=1e-5)
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


# ---------------------------------------------------------------- seeds


def test_seed_makes_training_and_acting_repeatable(name: str, dataset: OfflineDataset) -> None:
    def train(seed: int, disturb: int) -> OfflineAlgorithm:
        torch.manual_seed(disturb)
        np.random.seed(disturb)
        return make_agent(name, dataset, seed=seed).learn()

    one, same, other = train(0, 1), train(0, 2), train(1, 1)
    assert not differing(weights(one), weights(same))
    observation = seen_by(one, 4)
    for deterministic in (True, False):
        np.testing.assert_array_equal(
            one.predict(observation, deterministic=deterministic)[0],
            same.predict(observation, deterministic=deterministic)[0],
        )
    changed = differing(weights(one), weights(other))
    assert changed == [key for key in weights(one) if not key.startswith(("observation_", "token_", "reward_scale"))]


def test_seeds_differ_in_training_and_not_only_in_the_first_weights(name: str, dataset: OfflineDataset) -> None:
    one, other = make_agent(name, dataset, seed=0), make_agent(name, dataset, seed=1)
    other.policy.load_state_dict(one.policy.state_dict())
    assert differing(weights(one.learn(20)), weights(other.learn(20)))


def test_no_seed_draws_one_and_keeps_it(name: str, dataset: OfflineDataset) -> None:
    agents = [AGENTS[name][0]("MlpPolicy", dataset, **AGENTS[name][1]) for _ in range(2)]
    assert agents[0].seed != agents[1].seed
    assert agents[0].config()["seed"] == agents[0].seed
    assert type(agents[0]).load(io.BytesIO(saved(agents[0]))).seed == agents[0].seed


@pytest.mark.parametrize("deterministic", [True, False])
def test_global_random_state_does_not_matter(name: str, trained: Trained, deterministic: bool) -> None:
    observation = seen_by(trained(name), 4)
    actions = []
    for disturb in (1, 2):
        agent = trained(name)
        torch.manual_seed(disturb)
        np.random.seed(disturb)
        actions.append([agent.predict(observation, deterministic=deterministic)[0] for _ in range(3)])
        assert torch.initial_seed() == disturb
    np.testing.assert_array_equal(actions[0], actions[1])


# ---------------------------------------------------------------- going on after a stop


@pytest.mark.parametrize("stop", [1, 6, 12, 13, 17, 20, 21, 30, 39, 40])
def test_resumed_training_is_bit_equal(dataset: OfflineDataset, stop: int) -> None:
    """Stages end after 12, 20 and 40 gradient steps."""
    check_resumption("LDCQ", dataset, stop)


@pytest.mark.parametrize("stop", [1, 12, 13, 31])
def test_resumed_training_is_bit_equal_with_the_gaussian_prior(dataset: OfflineDataset, stop: int) -> None:
    check_resumption("LDCQ-gaussian", dataset, stop)


@pytest.mark.parametrize("stop", [1, 2, 15, 30])
@pytest.mark.parametrize("baseline", ["BC", "TD3BC", "ReBRAC", "IQL", "CQL"])
def test_resumed_training_of_baselines_is_bit_equal(dataset: OfflineDataset, baseline: str, stop: int) -> None:
    check_resumption(baseline, dataset, stop)


@pytest.mark.parametrize("learning_rates", ["cosine", "released"])
@pytest.mark.parametrize("stop", [21, 30, 50])
def test_resumed_q_learning_is_bit_equal_for_any_batch_size(
    dataset: OfflineDataset, stop: int, learning_rates: str
) -> None:
    """Sizes that are no multiple of a vector register, and fewer candidates per target than are stored."""
    settings = {"q_batch_size": 37, "q_steps": 60, "candidates_per_target": 4, "learning_rates": learning_rates}
    check_resumption("LDCQ", dataset, stop, **settings)


def check_resumption(name: str, dataset: OfflineDataset, stop: int, **settings: Any) -> None:
    whole = make_agent(name, dataset, **settings).learn()
    stopped = make_agent(name, dataset, **settings).learn(callback=StopAt(stop))
    assert stopped.num_timesteps == stop
    resumed = type(stopped).load(io.BytesIO(saved(stopped)), dataset=dataset)
    assert not differing(weights(stopped), weights(resumed))
    finished = [stage for stage, steps in steps_of(resumed).items() if resumed.stage_steps[stage] == steps]
    seconds = dict(resumed.stage_seconds)
    calls = Calls()
    calls.n_calls = stop
    resumed.learn(callback=calls, reset_num_timesteps=False)
    assert calls.steps == list(range(stop + 1, whole.full_budget + 1))
    assert resumed.num_timesteps == whole.full_budget
    assert {stage: resumed.stage_seconds[stage] for stage in finished} == {s: seconds[s] for s in finished}
    assert differing(weights(whole), weights(resumed)) == []
    # without the detour through a file
    stopped.learn(reset_num_timesteps=False)
    assert differing(weights(whole), weights(stopped)) == []
    batch = seen_by(whole, 3)
    np.testing.assert_array_equal(whole.predict(batch)[0], resumed.predict(batch)[0])


def test_training_can_be_stopped_again_and_again(name: str, dataset: OfflineDataset) -> None:
    whole = make_agent(name, dataset).learn()
    agent = make_agent(name, dataset).learn(callback=StopAt(5))
    while agent.num_timesteps < whole.full_budget:
        agent = type(agent).load(io.BytesIO(saved(agent)), dataset=dataset)
        agent.learn(callback=StopAt(agent.num_timesteps + 5), reset_num_timesteps=False)
    assert not differing(weights(whole), weights(agent))


def test_resumed_with_a_further_budget(name: str, dataset: OfflineDataset) -> None:
    agent = make_agent(name, dataset).learn(callback=StopAt(7))
    agent.learn(9, reset_num_timesteps=False)
    assert agent.num_timesteps == sum(agent.stage_steps.values()) == sum(agent.stage_budget.values()) == 16


def test_other_data_are_refused(name: str, trained: Trained) -> None:
    blob = io.BytesIO(saved(trained(name)))
    other = record(seed=1)
    with pytest.raises(ValueError, match=rf"not on user arrays \(hash {other.content_hash[:12]}\)"):
        AGENTS[name][0].load(blob, dataset=other)


def test_learn_without_data_is_refused(name: str, trained: Trained, dataset: OfflineDataset) -> None:
    agent = AGENTS[name][0].load(io.BytesIO(saved(trained(name))))
    with pytest.raises(
        ValueError, match=rf"no data set. Load it with one: {type(agent).__name__}.load\(path, dataset="
    ):
        agent.learn(1)
    assert np.isfinite(agent.predict(np.zeros(3))[0]).all()


# ---------------------------------------------------------------- arguments


def test_configuration(name: str, dataset: OfflineDataset) -> None:
    agent = make_agent(name, dataset, seed=5)
    config = agent.config()
    agent_class, tiny = AGENTS[name]
    assert (config["class"], config["policy"], config["seed"]) == (agent_class.__name__, "MlpPolicy", 5)
    assert config["preset"] == "fast"
    assert config["settings"].items() >= {key: value for key, value in tiny.items() if key != "preset"}.items()


def test_presets(name: str, dataset: OfflineDataset) -> None:
    agent_class = AGENTS[name][0]
    fast, paper = (agent_class("MlpPolicy", dataset, preset=preset) for preset in ("fast", "paper"))
    assert fast.full_budget < paper.full_budget
    assert agent_class("MlpPolicy", dataset, device="cpu").preset == "fast"
    with pytest.raises(ValueError, match=r"Unknown preset 'quick'. \w+ has \['fast', 'paper'\]"):
        agent_class("MlpPolicy", dataset, preset="quick")


def test_wrong_policy_names(name: str, dataset: OfflineDataset, goal_dataset: OfflineDataset) -> None:
    agent_class, tiny = AGENTS[name]
    with pytest.raises(ValueError, match="encode images first"):
        agent_class("CnnPolicy", dataset, **tiny)
    with pytest.raises(ValueError, match="Policy LstmPolicy unknown"):
        agent_class("LstmPolicy", dataset, **tiny)
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        agent_class("MlpPolicy", goal_dataset, **tiny)
    with pytest.raises(ValueError, match="use 'MlpPolicy'"):
        agent_class("MultiInputPolicy", dataset, **tiny)


def test_unknown_settings_name_the_known_ones(name: str, dataset: OfflineDataset) -> None:
    with pytest.raises(TypeError, match=r"has no setting batchsize. It has: .*batch_size"):
        make_agent(name, dataset, batchsize=3)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("denoiser_widths", "ab"),
        ("denoiser_widths", (8.5, 8)),
        ("denoiser_widths", 8),
        ("reward_stops_bootstrap", "no"),
        ("latent_dim", 0),
        ("latent_dim", 2.5),
        ("latent_dim", 10**6),
        ("vae_hidden", 10**9),
        ("vae_batch_size", 0),
        ("vae_steps", -1),
        ("vae_steps", True),
        ("horizon", 0),
        ("horizon", None),
        ("q_windows", 0),
        ("extra_steps", -1),
        ("decoded_steps", 0),
        ("bootstrap_exponent", 0),
        ("discount", 1.5),
        ("discount", float("nan")),
        ("q_learning_rate", -1e-3),
        ("priority_alpha", -0.1),
        ("encoder", "lstm"),
        ("prior", "flow"),
        ("solver", "euler"),
        ("next_state", "s_t"),
        ("denoiser_widths", (8,)),
        ("denoiser_widths", (8, 0)),
    ],
)
def test_ldcq_settings_out_of_range(dataset: OfflineDataset, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        make_agent("LDCQ", dataset, **{setting: value})


def test_ldcq_settings_that_do_not_fit_together(dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match=r"exec_horizon \(6\) must not exceed horizon \(5\)"):
        make_agent("LDCQ", dataset, exec_horizon=6)
    with pytest.raises(ValueError, match=r"candidates_per_target \(7\) must not exceed candidates_stored"):
        make_agent("LDCQ", dataset, candidates_per_target=7)
    with pytest.raises(ValueError, match="diffusion_steps must be at least 30"):
        make_agent("LDCQ", dataset, diffusion_steps=20)
    with pytest.raises(ValueError, match=r"solver_steps \(31\) must not exceed diffusion_steps \(30\)"):
        make_agent("LDCQ", dataset, solver_steps=31)


@pytest.mark.parametrize(
    ("setting", "value"), [("batch_size", 0), ("steps", -1), ("learning_rate", 2.0), ("hidden", ())]
)
def test_bc_settings_out_of_range(dataset: OfflineDataset, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        make_agent("BC", dataset, **{setting: value})


def test_windows_longer_than_episodes(dataset: OfflineDataset) -> None:
    with pytest.raises(ValueError, match=r"longest episode has 20 steps\. Use a shorter horizon"):
        make_agent("LDCQ", dataset, horizon=50).learn(1)


# ---------------------------------------------------------------- bfloat16


def cpu_precision() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


def test_bfloat16_is_for_training_alone(name: str, dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(name, dataset, cpu_bf16=True)
    before, stages = cpu_precision(), agent.stages
    in_training, in_callbacks = set(), set()

    def spied(stage: Stage) -> Stage:
        def train() -> Iterator[Losses]:
            for losses in stage.train():
                in_training.add(cpu_precision())
                yield losses

        return dataclasses.replace(stage, train=train)

    def note(*_: Any) -> bool:
        in_callbacks.add(cpu_precision())
        return True

    monkeypatch.setattr(agent, "stages", lambda: [spied(stage) for stage in stages()])
    agent.learn(20, callback=note)
    assert in_training == {"bf16"}
    assert in_callbacks == {before} == {cpu_precision()}
    loaded = type(agent).load(io.BytesIO(saved(agent)), dataset=dataset)
    assert loaded.cpu_bf16
    assert loaded.config()["cpu_bf16"] is True
    assert not make_agent(name, dataset).cpu_bf16


def test_bfloat16_ends_with_an_error_in_training(dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cpu_precision()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    agent = make_agent("BC", dataset, cpu_bf16=True)
    monkeypatch.setattr("torch.optim.Adam.step", fail)
    with pytest.raises(RuntimeError, match="broken"):
        agent.learn(2)
    assert cpu_precision() == before
