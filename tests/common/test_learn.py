"""Learning as SB3's users know it, for every agent: `learn`, callbacks, logs, bfloat16."""

from __future__ import annotations

import csv
import dataclasses
import io
import sys
from collections import Counter
from collections.abc import Iterator
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
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import (
    BOX,
    TINY_LDCQ,
    Drift,
    GoalDrift,
    StopAt,
    Trained,
    differing,
    make_agent,
    record,
    saved,
    steps_of,
    weights,
)
from ld_agents import BC, LDCQ, OfflineDataset
from ld_agents.common.offline_algorithm import Losses, Stage, in_bfloat16

STAGES = {
    "LDCQ": ["vae", "prior", "q"],
    "LDCQ-gaussian": ["vae", "q"],
    "LDGC": ["vae", "prior"],
    "LatentDiffuser": ["vae", "values", "prior", "energy"],
    **{baseline: ["train"] for baseline in ("BC", "GCBC", "TD3BC", "ReBRAC", "IQL", "CQL")},
}
_TD3_PARTS = {"actor", "target_actor", "critics", "target_critics"}
LAST_STAGE_PARTS = {
    "LDCQ": {"critics", "target_critics"},
    "LDCQ-gaussian": {"critics", "target_critics"},
    "LDGC": {"denoiser"},
    "LatentDiffuser": {"energy", "energy_average"},
    "BC": {"actor"},
    "GCBC": {"actor"},
    "TD3BC": _TD3_PARTS,
    "ReBRAC": _TD3_PARTS,
    "IQL": {"actor", "value", "critics", "target_critics"},
    "CQL": {"actor", "critics", "target_critics", "log_entropy", "log_multiplier"},
}
EARLIER_PARTS: dict[str, set[str]] = {
    "LDCQ": {"vae", "denoiser", "latent_mean", "latent_std", "reward_scale"},
    "LDCQ-gaussian": {"vae", "latent_mean", "latent_std", "reward_scale"},
    "LDGC": {"vae", "latent_mean", "latent_std"},
    "LatentDiffuser": {
        *("vae", "denoiser", "denoiser_average", "latent_mean", "latent_std", "token_mean", "token_std"),
        *("q_function", "q_average", "return_mean", "return_std", "scale_of_state"),
    },
}


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


@pytest.mark.parametrize("total", [-1, float("nan")])
def test_negative_total_is_refused(name: str, dataset: OfflineDataset, total: Any) -> None:
    with pytest.raises(ValueError, match=f"is not negative, got {total}"):
        make_agent(name, dataset).learn(total)


@pytest.mark.parametrize("total", [sys.maxsize, float("inf")])
def test_learning_without_end_ends_with_a_callback(dataset: OfflineDataset, total: Any) -> None:
    agent = make_agent("BC", dataset).learn(total, callback=StopAt(7))
    assert agent.num_timesteps == 7
    again = type(agent).load(io.BytesIO(saved(agent)), dataset=dataset)
    again.learn(reset_num_timesteps=False, callback=StopAt(9))
    assert again.num_timesteps == 9


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
    able = agent.stage_steps[STAGES[name][-1]] > 15  # of 25 steps, so that the last stage has begun at the tenth
    assert log["timesteps"].tolist() == ([10, 20] if able else [20])
    assert log["results"].shape == (1 + able, 2)
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
    names = {"train": "steps", "values": "value_steps"}
    nothing = {names.get(stage, f"{stage}_steps"): 0 for stage in STAGES[name]}
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
    assert in_training == {"bf16", before}  # both are timed
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


def test_bfloat16_is_restored_and_matters() -> None:
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    before, exact = cpu_precision(), x @ x
    with in_bfloat16():
        rounded = x @ x
    assert cpu_precision() == before
    error = float((rounded - exact).abs().max() / exact.abs().max())
    # without bfloat16 only the order of summation differs, by a few units in the last place
    assert error < 1e-5 or 1e-4 < error < 1e-2
    with pytest.raises(RuntimeError), in_bfloat16():
        raise RuntimeError
    assert cpu_precision() == before


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_bfloat16_stays_where_it_is_faster(
    factor: float, dataset: OfflineDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, now, used = cpu_precision(), [0.0], list[str]()

    def train(agent: Any) -> Iterator[Losses]:
        for _ in agent.remaining_steps("train"):
            used.append(cpu_precision())
            # the first steps are slow, every other one waits for the actor, and bfloat16 takes `factor` of the time
            now[0] += (100 if len(used) <= 2 else 2 + len(used) % 2) * (factor if used[-1] == "bf16" else 1)
            yield {"loss": torch.zeros(())}

    def ready(agent: Any) -> Any:
        monkeypatch.setattr(agent, "stages", lambda: [Stage("train", 60, lambda: train(agent))])
        used.clear()
        return agent

    monkeypatch.setattr("ld_agents.common.staged_training.time.perf_counter", lambda: now[0])
    agent = ready(make_agent("BC", dataset, cpu_bf16=True, verbose=1))
    agent.learn(60)
    chosen = "bf16" if factor < 1 else before
    assert used[:48] == (["bf16"] * 6 + [before] * 6) * 4
    assert used[48:] == [chosen] * 12
    assert agent.stage_in_bfloat16 == {"train": factor < 1}
    assert f"a step takes {factor:.2f} of its time" in capsys.readouterr().out

    resumed = ready(type(agent).load(io.BytesIO(saved(agent)), dataset=dataset))
    resumed.learn(12, reset_num_timesteps=False)
    assert used == [chosen] * 12  # not measured again
    ready(resumed).learn(12)
    assert used == ["bf16"] * 6 + [before] * 6
