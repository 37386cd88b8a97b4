"""What a new user once stumbled over, a test for each; those of data are in tests/data/test_data_stumbles.py."""

from __future__ import annotations

import csv
import inspect
import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    CallbackList,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from torch import nn

from conftest import AGENTS, BOX, Drift, StopAt, Trained, differing, make_agent, saved, seen_by, weights
from ld_agents import BC, LDCQ, OfflineDataset, evaluate
from ld_agents.evaluation.rollouts import Evaluation

# -- 1. On a GPU the default preset was "paper": millions of gradient steps, unannounced -----------------------------


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_the_default_preset_is_fast_on_every_device(device: str, name: str, dataset: OfflineDataset) -> None:
    agent_class = AGENTS[name][0]
    assert agent_class("MlpPolicy", dataset, device=device).preset == "fast"
    assert agent_class("MlpPolicy", dataset, device=device, preset="paper").preset == "paper"


def test_the_steps_to_come_are_announced(dataset: OfflineDataset, capsys: pytest.CaptureFixture[str]) -> None:
    make_agent("LDCQ", dataset, verbose=1).learn(20)
    assert "LDCQ learns for 20 gradient steps: vae 6, prior 4, q 10\n" in capsys.readouterr().out
    make_agent("LDCQ", dataset).learn(20)
    assert capsys.readouterr().out == ""


# -- 2. EvalCallback called an agent "best" before it could act ------------------------------------------------------


def evaluations(agent: Any, callback: Any, folder: Path, steps: int | None = None) -> Any:
    callback = EvalCallback(
        Monitor(Drift()), n_eval_episodes=3, eval_freq=5, log_path=str(folder), verbose=0, **(callback or {})
    )
    agent.learn(steps, callback=[CallbackList([callback])])
    return np.load(folder / "evaluations.npz")


def test_nothing_is_best_before_the_agent_can_act(name: str, dataset: OfflineDataset, tmp_path: Path) -> None:
    agent = make_agent(name, dataset)
    assert not agent.can_act
    best = {"best_model_save_path": str(tmp_path)}
    timesteps = evaluations(agent, best, tmp_path)["timesteps"]
    assert agent.can_act
    earlier = agent.full_budget - list(agent.stage_budget.values())[-1]
    assert timesteps.tolist() == [step for step in range(5, agent.full_budget + 1, 5) if step > earlier]
    loaded = type(agent).load(tmp_path / "best_model", dataset=dataset)
    assert loaded.num_timesteps in timesteps
    assert loaded.can_act


def test_evaluations_begin_from_the_same_seeds(dataset: OfflineDataset, tmp_path: Path) -> None:
    results = evaluations(make_agent("BC", dataset, learning_rate=0.0), None, tmp_path)["results"]
    assert results.shape == (6, 3)
    assert (results == results[0]).all(), "the agent stays the same, and so must its score"
    assert len(set(results[0])) == 3, "but the episodes of one evaluation differ"
    other = evaluations(make_agent("BC", dataset, learning_rate=0.0, seed=0), None, tmp_path, steps=5)["results"]
    np.testing.assert_array_equal(other[0], results[0])


def test_evaluations_within_other_callbacks_wait_too(dataset: OfflineDataset, tmp_path: Path) -> None:
    agent, counted = make_agent("LDCQ", dataset), []

    class Counting(EvalCallback):
        def _on_step(self) -> bool:
            counted.append(agent.num_timesteps)
            return super()._on_step()

    callback = Counting(Monitor(Drift()), n_eval_episodes=1, eval_freq=1, verbose=0)
    for times in (1, 2):
        agent.learn(callback=EveryNTimesteps(7, callback))
        assert counted == [21, 28, 35] * times  # of 40 steps; Q-learning begins after 20


# -- 3. Budgets did not scale everything -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_dataset() -> OfflineDataset:
    n, rng = 8000, np.random.default_rng(0)
    actions = rng.uniform(BOX.low, BOX.high, (n, 2))
    ends = np.arange(n) % 100 == 99
    return OfflineDataset(
        rng.normal(size=(n, 3)), actions, rng.normal(size=n), np.zeros(n), ends, action_space=BOX
    )  # 80 episodes: 7,600 windows of 5 steps


def test_what_is_prepared_scales_with_the_budget(long_dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent("LDCQ", long_dataset)
    drawn, encoded = [], []
    draw, encode = agent.draw_candidates, agent._encode  # type: ignore[attr-defined]
    monkeypatch.setattr(agent, "draw_candidates", lambda states: [drawn.append(len(states)), draw(states)][1])
    monkeypatch.setattr(agent, "_encode", lambda starts: [encoded.append(len(starts)), encode(starts)][1])
    agent.learn(20)  # of 40: half of everything
    assert (drawn, encoded) == ([3800], [3800, 3800, 3800])
    agent.learn(1)
    assert drawn == [3800, 1000], "but never fewer than a thousand"
    agent.learn()
    agent.learn(80)
    assert drawn[2:] == [7600, 7600], "and never more than all"


def test_a_partial_training_goes_on_with_more_windows(long_dataset: OfflineDataset) -> None:
    agent = make_agent("LDCQ", long_dataset).learn(20)
    seen = agent._resumable["q.priorities"].isfinite()
    loaded = LDCQ.load(io.BytesIO(saved(agent)), dataset=long_dataset)
    for each in (agent, loaded):
        each.learn(10, reset_num_timesteps=False)
        assert each.stage_steps == {"vae": 6, "prior": 4, "q": 20}
        assert each._resumable["q.priorities"].isfinite()[seen].all(), "what was learned of a window is kept"
    assert not differing(weights(agent), weights(loaded))
    stopped = make_agent("LDCQ", long_dataset).learn(20, callback=StopAt(15))
    resumed = LDCQ.load(io.BytesIO(saved(stopped)), dataset=long_dataset).learn(reset_num_timesteps=False)
    assert not differing(weights(make_agent("LDCQ", long_dataset).learn(20)), weights(resumed))


@pytest.mark.parametrize(("verbose", "progress_bar"), [(0, False), (1, False), (0, True)])
def test_drawing_candidates_is_shown(
    verbose: int, progress_bar: bool, dataset: OfflineDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    make_agent("LDCQ", dataset, verbose=verbose).learn(20, progress_bar=progress_bar)
    assert ("draw candidates" in capsys.readouterr().err) == (verbose > 0 or progress_bar)


# -- 7. Silence, and seeds that did not repeat -----------------------------------------------------------------------


def test_logs_hold_step_speed_stage_and_time_left(name: str, dataset: OfflineDataset, tmp_path: Path) -> None:
    agent = make_agent(name, dataset)
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(log_interval=5)
    rows = list(csv.DictReader((tmp_path / "progress.csv").open()))
    steps = [int(row["time/total_timesteps"]) for row in rows]
    ends = np.cumsum(list(agent.stage_budget.values())).tolist()
    assert steps == sorted({*range(5, agent.full_budget + 1, 5), *ends})
    stages = [next(stage for stage, end in zip(agent.stage_budget, ends, strict=True) if step <= end) for step in steps]
    assert [row["time/stage"] for row in rows] == stages
    assert all(float(row["time/fps"]) > 0 for row in rows)
    for row, step in zip(rows, steps, strict=True):
        left = (agent.full_budget - step) / float(row["time/fps"])
        assert abs(float(row["time/eta_seconds"]) - left) <= 0.5 + 0.06 * left / float(row["time/fps"])


def test_a_short_training_prints_its_losses(
    name: str, dataset: OfflineDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = make_agent(name, dataset, verbose=1).learn(20)  # far below log_interval
    text = " ".join(capsys.readouterr().out.split())
    for stage in agent.stage_budget:
        assert text.count(f"| {stage}/ |") == 1
    assert "| total_timesteps | 20 |" in text


def test_the_same_seed_twice_gives_equal_actions(name: str, trained: Trained) -> None:
    agent = trained(name)
    observations, drawn = seen_by(agent, 4), []
    for seed in (1, 1, 2):
        agent.set_random_seed(seed)
        drawn.append([agent.predict(observations)[0] for _ in range(2)])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    if not np.array_equal(drawn[0][0], drawn[0][1]):  # an agent that draws when it acts
        assert not np.array_equal(drawn[0], drawn[2])


def test_an_agent_evaluates_itself_and_prints_the_mean(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    agent = trained("BC")
    outcome = agent.evaluate(Drift, 8, seed=3)
    text = capsys.readouterr().out
    assert text == f"{outcome}\n"
    assert text.startswith(f"mean return {np.mean(outcome.returns):.4g} [")
    same = evaluate(agent, Drift, 8, seed=3)
    assert (same.returns, same.lengths) == (outcome.returns, outcome.lengths)
    assert agent.evaluate(Drift(), 2, seed=3).returns == pytest.approx(outcome.returns[:2])
    with pytest.raises(ValueError, match="names no evaluation environment"):
        agent.evaluate()
    with pytest.raises(ValueError, match=r"no dataset that names an environment.*agent.evaluate\(env\)"):
        type(agent).load(io.BytesIO(saved(agent))).evaluate()
    assert inspect.signature(agent.evaluate).parameters.keys() >= {"env", "n_episodes", "seed", "n_envs"}


def test_the_interval_of_a_mean() -> None:
    def made(returns: list[float], successes: list[bool | None]) -> Evaluation:
        n = len(returns)
        return Evaluation(returns, [10] * n, [None] * n, successes, {}, 1.0)

    rng = np.random.default_rng(0)
    wide = made(rng.normal(50, 10, 100).tolist(), [True] * 25 + [False] * 75)
    low, high = wide.interval()
    mean = np.mean(wide.returns)
    spread = np.std(wide.returns) / 10  # the normal interval of a mean is 1.96 standard errors to each side
    np.testing.assert_allclose([mean - low, high - mean], 1.96 * spread, rtol=0.1)
    assert str(wide).endswith("(95 % interval of 100 episodes), success 25 %, mean length 10")
    assert str(made([3.0], [None])) == "mean return 3 (1 episode), mean length 10"


def test_an_environment_is_made_for_rendering() -> None:
    from ld_agents.evaluation.eval_env import EvalEnvSpec

    class Drawn(Drift):
        metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

        def __init__(self, render_mode: str | None = None) -> None:
            super().__init__()
            self.render_mode = render_mode

        def render(self) -> Any:
            return np.zeros((4, 4, 3), np.uint8)

    gym.register("Drawn-v0", Drawn, max_episode_steps=10)
    data = OfflineDataset(np.zeros((4, 3)), np.zeros((4, 2)), np.zeros(4), np.zeros(4), np.eye(4)[3], action_space=BOX)
    object.__setattr__(data.info, "eval_env", EvalEnvSpec("Drawn-v0"))
    env = data.make_eval_env(render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (4, 4, 3)  # type: ignore[union-attr]
    gym.registry.pop("Drawn-v0")


# -- With float64 as the default of torch, some agents failed in a product and others computed in it without a word ----


def test_another_default_of_torch_is_refused(trained: Trained, dataset: OfflineDataset, tmp_path: Path) -> None:
    agent = trained("BC")
    agent.save(tmp_path / "agent.zip")
    torch.set_default_dtype(torch.float64)
    try:
        for attempt in (lambda: type(agent)("MlpPolicy", dataset), lambda: type(agent).load(tmp_path / "agent.zip")):
            with pytest.raises(ValueError, match=r"default\. Call torch\.set_default_dtype\(torch\.float32\)"):
                attempt()
    finally:
        torch.set_default_dtype(torch.float32)


# -- What was found out late, or never: environments of callbacks, classes of policies, episodes that are too short ---


def test_environments_of_callbacks_are_checked_before_training(dataset: OfflineDataset) -> None:
    agent = make_agent("BC", dataset)
    with pytest.raises(ValueError, match="The environment takes actions in"):
        agent.learn(callback=EvalCallback(Monitor(gym.make("Pendulum-v1"))))
    with pytest.raises(ValueError, match="counts episodes, and offline training has none"):
        agent.learn(callback=[StopTrainingOnMaxEpisodes(3)])
    assert agent.num_timesteps == 0


def test_the_class_of_a_policy_is_as_good_as_its_name(dataset: OfflineDataset, tmp_path: Path) -> None:
    agent = BC(BC.policy_aliases["MlpPolicy"], dataset, hidden=(8,)).learn(2)
    agent.save(tmp_path / "bc.zip")
    assert BC.load(tmp_path / "bc.zip").policy_name == "MlpPolicy"
    for wrong in (None, "MLPPolicy", nn.Linear):
        with pytest.raises(ValueError, match=r"BC has no policy .*\. Use one of \['CnnPolicy', 'MlpPolicy', 'Mul"):
            BC(wrong, dataset)


def test_without_a_seed_the_global_one_decides(dataset: OfflineDataset) -> None:
    agents = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        agents.append(BC("MlpPolicy", dataset, hidden=(8,)))
    assert agents[0].seed == agents[1].seed != agents[2].seed
    assert not differing(weights(agents[0]), weights(agents[1]))


def test_episodes_without_a_window_are_told_where_they_are_many(
    dataset: OfflineDataset, long_dataset: OfflineDataset, recwarn: pytest.WarningsRecorder
) -> None:
    def short(lengths: list[int]) -> OfflineDataset:
        n, ends = sum(lengths), np.cumsum(lengths) - 1
        timeouts = np.isin(np.arange(n), ends)
        return OfflineDataset(np.zeros((n, 3)), np.zeros((n, 2)), np.zeros(n), np.zeros(n), timeouts, action_space=BOX)

    make_agent("LDCQ", short([60, *[4] * 27])).learn(4)
    (told,) = (str(warning.message) for warning in recwarn if "horizon" in str(warning.message))
    assert told == (
        "27 of 28 episodes (108 of 168 steps) are shorter than horizon=5, and nothing is learned from them. Set a "
        "shorter horizon."
    )
    recwarn.clear()
    make_agent("LDCQ", short([60, 60, 4])).learn(4)
    make_agent("LDCQ", long_dataset).learn(4)
    assert not [warning for warning in recwarn if "horizon" in str(warning.message)]


def test_the_environment_of_ones_own_data_is_known_after_loading(tmp_path: Path) -> None:
    n = 200
    arrays: Any = (np.zeros((n, 3)), np.zeros((n, 1)), np.zeros(n), np.zeros(n), np.arange(n) % 100 == 99)
    BC("MlpPolicy", OfflineDataset(*arrays, env="Pendulum-v1"), hidden=(8,)).save(tmp_path / "bc")
    assert len(BC.load(tmp_path / "bc").evaluate(n_episodes=2).returns) == 2
    shorter = gym.make("Pendulum-v1", max_episode_steps=20)  # the id would not say so
    BC("MlpPolicy", OfflineDataset(*arrays, env=shorter), hidden=(8,)).save(tmp_path / "bc")
    with pytest.raises(ValueError, match=r"Pass one to agent\.evaluate\(env\)"):
        BC.load(tmp_path / "bc").evaluate()
