"""One run: train one agent on one dataset with one seed, evaluate it, and write one JSON file when all is done.

    python benchmarks/run_one.py --agent "LDCQ[horizon=10]" --dataset ld-agents/pointmaze/umaze-v0 --out results/mine

`run_suite.py` starts one such process per run. While the agent learns, a checkpoint is kept up to date in
OUT/checkpoints, with the one before it; a killed run resumes from there when it is started again. The result
OUT/runs/NAME.json is written once and never edited.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

import checkpoint
import claims
import measuring
import provenance
from files import write_json
from ld_agents import zoo
from ld_agents.data.replay import replay_check
from ld_agents.data.storage import NOT_WRITABLE
from ld_agents.evaluation.rollouts import evaluate
from ld_agents.latent_diffuser import LatentDiffuser
from ld_agents.latent_diffuser_settings import ENERGY_SETTINGS
from reporting import maze_plans
from reporting.runs import read_json
from specs import (
    ACTING,
    SCHEMA,
    Files,
    Run,
    agent_class,
    bases,
    canonical_spec,
    import_modules,
    load_dataset,
    parse_spec,
)

N_ENVS = 25
CURVE_POINTS = 5
CURVE_EPISODES = 10
CHECKPOINT_SECONDS = 60.0
LOSS_POINTS = 60


def evaluation_seed(seed: int, curve_point: int | None = None) -> int:
    """Seed of the final evaluation of a run, or of a point of its curve.

    `evaluate` turns it into reset seeds that no training seed below 2**31 can equal.
    """
    return 1_000_000 * (1 if curve_point is None else 2 + curve_point) + seed


class LossHistory(KVWriter):
    """Keeps what the agent logs through Stable-Baselines3's logger, as name -> [[gradient step, value], ...]."""

    def __init__(self, history: dict[str, list[list[float]]]) -> None:
        self.history = history

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        for key, value in key_values.items():
            if not key.startswith("time/") and isinstance(value, int | float) and math.isfinite(value):
                self.history.setdefault(key, []).append([step, float(f"{value:.6g}")])

    def close(self) -> None:
        pass


def thin(points: Sequence[Any], limit: int = LOSS_POINTS) -> list[Any]:
    """At most `limit` of the points, evenly spaced, first and last included."""
    if len(points) <= limit:
        return list(points)
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


class Progress(BaseCallback):
    """Follows a learning agent: learning curve, rolling checkpoint, a line of progress every 5 %.

    A killed run resumes from the agent and `self.record`, which are in the checkpoint together.
    """

    model: Any

    def __init__(
        self, files: Files, record: dict[str, Any], make_env: Callable[[], gym.Env[Any, Any]], run: Run
    ) -> None:
        super().__init__()
        self.files, self.record, self.make_env, self.run = files, record, make_env, run
        self.stop_requested = False
        self.learn_seconds = float(record["learn_seconds"])
        self.learn_cpu = record.get("learn_cpu")
        self._announced = 0

    def _on_training_start(self) -> None:
        self._resume()
        self._saved_at = self._resumed_at
        self._stages = len(self.model.stage_seconds)
        self._told = self.model.num_timesteps, self.learn_seconds

    def _on_step(self) -> bool:
        done = self.model.num_timesteps / self.record["total_steps"]
        points = len(self.record["curve"]) + self.record.get("skipped_points", 0)
        if done >= (points + 1) / CURVE_POINTS:
            self._pause()
            self._add_curve_point(points)
            self._resume()
        if int(20 * done) > self._announced:
            self._announced = int(20 * done)
            self._announce(done)
        stages = len(self.model.stage_seconds)
        if self.stop_requested or stages != self._stages or time.perf_counter() - self._saved_at > CHECKPOINT_SECONDS:
            self._stages = stages
            self.save()
        if self.stop_requested:
            print("stopped; the checkpoint is saved", flush=True)
            raise SystemExit(128 + signal.SIGTERM)
        return True

    def _announce(self, done: float) -> None:
        """Progress, speed since the last such line, and the time that is left at this speed."""
        steps, seconds = self.model.num_timesteps, self.learn_seconds + time.perf_counter() - self._resumed_at
        speed = (steps - self._told[0]) / max(seconds - self._told[1], 1e-9)
        total, self._told = self.record["total_steps"], (steps, seconds)
        left = datetime.timedelta(seconds=round(max(0, total - steps) / speed))
        print(
            f"learning, {100 * done:.0f} % of {total:,} gradient steps, {speed:,.0f} steps/s, {left} left", flush=True
        )

    def _on_training_end(self) -> None:
        self.save()

    def _resume(self) -> None:
        self._resumed_at, self._cpu_at = time.perf_counter(), time.process_time()

    def _pause(self) -> None:
        self.learn_seconds += time.perf_counter() - self._resumed_at
        if self.learn_cpu is not None:
            self.learn_cpu += time.process_time() - self._cpu_at

    def _add_curve_point(self, index: int) -> None:
        episodes, training = min(CURVE_EPISODES, self.run.episodes), self.model.policy.training
        seed = evaluation_seed(self.run.seed, index)
        outcome = evaluate(self.model, self.make_env, episodes, seed=seed, n_envs=episodes)
        self.model.policy.train(training)
        point = {"gradient_steps": self.model.num_timesteps, "seconds": round(self.learn_seconds, 2)}
        self.record["curve"].append(point | {"returns": outcome.returns, "first_contact": outcome.first_contact})
        print(f"curve point {index + 1} of {CURVE_POINTS}: mean return {fmean(outcome.returns):.4g}", flush=True)

    def save(self) -> None:
        """Bring the checkpoint up to date; the time it takes does not count as learning."""
        self._pause()
        self.record |= {"learn_seconds": round(self.learn_seconds, 3), "learn_cpu": self.learn_cpu}
        checkpoint.write(self.files.checkpoint, self.run.name, self.model, self.record)
        self._resume()
        self._saved_at = self._resumed_at


def start_or_resume(run: Run, out: Path, dataset: Any) -> tuple[Any, dict[str, Any]]:
    """The agent of a run and the record of its learning: from the run's checkpoint if there is one, else new."""
    name, settings = parse_spec(run.agent)
    cls, files = agent_class(name), Files(out, run.name)
    for path in (files.checkpoint, checkpoint.previous(files.checkpoint)):
        if not path.exists():
            continue
        try:
            record, stream = checkpoint.read(path, run.name)
            if record["dataset_hash"] != dataset.content_hash:
                raise ValueError(f"{path} was trained on other data")
            agent = cls.load(stream, dataset=dataset)
        except Exception as error:  # whatever is wrong with a checkpoint, the run can go on without it
            print(f"the checkpoint is unusable: {error}", flush=True)
        else:
            record["resumes"] += 1
            print(f"resuming from the checkpoint at gradient step {agent.num_timesteps:,}", flush=True)
            return agent, record
    if files.checkpoint.exists() or checkpoint.previous(files.checkpoint).exists():
        print("starting over, the checkpoint is unusable", flush=True)

    preset = None if run.preset == "default" else run.preset
    agent = cls(zoo.policy_for(dataset), dataset, preset=preset, seed=run.seed, **settings)
    base, sharing, learned_with = None, None, []
    for base in bases(run):
        sharing = taken_over(Files(out, base.name), agent, dataset)
        if sharing is not None:
            print(f"what it can share with {base.name} is learned", flush=True)
            agent, shared = sharing, read_json(Files(out, base.name).result)
            learned_with = [*shared.get("learned_before", []), {key: shared[key] for key in ("commit", "versions")}]
            break
    total_steps = max(1, round(run.budget * agent.full_budget))
    return agent, {
        "total_steps": total_steps,
        "dataset_hash": dataset.content_hash,
        "shares_with": base.name if base and sharing else None,
        "skipped_points": CURVE_POINTS * agent.num_timesteps // total_steps,
        "curve": [],
        "losses": {},
        "learn_seconds": sum(agent.stage_seconds.values()),
        "learn_cpu": 0.0 if sharing is None else None,  # not known of stages that another run did
        "resumes": 0,
        "learned_with": learned_with,
    }


def taken_over(base: Files, agent: Any, dataset: Any) -> Any:
    """An agent like `agent` that has learned what it can share with a finished run.

    That is all where they differ in acting alone, and VAE and prior where LatentDiffusers differ in their energy: they
    are then compared on the same plans, and cost a fraction. None where there is no such run, or one on other data or
    with other settings.
    """
    if not (base.result.exists() and base.model.exists()):
        return None
    if read_json(base.result)["dataset"]["hash"] != dataset.content_hash:
        return None
    try:
        trained = type(agent).load(base.model, dataset=dataset)
    except (OSError, ValueError) as error:  # the run can go on without it
        print(f"nothing is shared with {base.model.name}: {error}", flush=True)
        return None
    if trained.cpu_bf16 != agent.cpu_bf16:
        return None
    of_acting = {name: getattr(agent.settings, name) for name in ACTING[type(agent).__name__]}
    if dataclasses.replace(trained.settings, **of_acting) == agent.settings:
        agent.policy.load_state_dict(trained.policy.state_dict())
        for progress in ("stage_budget", "stage_steps", "stage_seconds", "stage_in_bfloat16", "num_timesteps"):
            setattr(agent, progress, getattr(trained, progress))
        return agent
    if not isinstance(agent, LatentDiffuser):
        return None
    of_energy = {name: getattr(agent.settings, name) for name in ENERGY_SETTINGS}
    if dataclasses.replace(trained.settings, **of_energy) != agent.settings:
        return None
    shared = trained.with_energy(**of_energy)
    shared.settings_origin = agent.settings_origin
    return shared


def learn(agent: Any, progress: Progress) -> None:
    """Let the agent take the gradient steps that are left. SIGTERM ends it after the step, with a checkpoint."""
    record = progress.record
    done, total = agent.num_timesteps, record["total_steps"]
    if done >= total:
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        # In the middle of a gradient step the agent is in no state to be saved: the callback stops after the step.
        progress.stop_requested = True

    print(f"learning, {done:,} of {total:,} gradient steps done", flush=True)
    agent.set_logger(Logger(folder=None, output_formats=[LossHistory(record["losses"])]))
    previous = signal.signal(signal.SIGTERM, stop)
    log_interval = max(1, total // (4 * LOSS_POINTS))
    agent.learn(None if done else total, progress, log_interval, reset_num_timesteps=not done)
    signal.signal(signal.SIGTERM, previous)


def run_and_write(run: Run, out: Path, with_plans: bool = False, with_measures: bool = False) -> Path:
    """Do one run and return the path of its result; nothing is done where the result exists."""
    files = Files(out, run.name)
    if files.result.exists():
        print(f"{files.result} exists")
        return files.result
    torch.set_num_threads(1)
    started = time.perf_counter()
    commit = provenance.source_commit()

    dataset = load_dataset(run.dataset)
    info = dataset.info
    if info.eval_env is None:
        raise ValueError(f"{run.dataset} names no evaluation environment; the suite needs one to score agents")
    if info.eval_env.max_episode_steps is None:
        raise ValueError(f"the evaluation environment of {run.dataset} has no step limit; store one with the dataset")
    check = info.replay_check or replay_check(dataset)
    seconds = {"load": time.perf_counter() - started}

    agent, record = start_or_resume(run, out, dataset)
    if with_measures:  # a third of the evaluation, and no study shows curves
        record["skipped_points"] = CURVE_POINTS
    # Whoever reads a score must know every code that it comes from, also where a run resumed after an update.
    code = {"commit": commit, "versions": provenance.versions()}
    learned_with = record.setdefault("learned_with", [])
    if code not in learned_with:
        learned_with.append(code)
    learn(agent, Progress(files, record, dataset.make_eval_env, run))

    print(f"evaluating, {run.episodes} episodes", flush=True)
    seed = evaluation_seed(run.seed)
    outcome = evaluate(agent, dataset.make_eval_env, run.episodes, seed=seed, n_envs=N_ENVS)
    seconds |= {"learn": record["learn_seconds"], "evaluate": outcome.seconds}
    seconds["total"] = sum(seconds.values())
    if record.get("learn_cpu") is not None:
        seconds["learn_cpu"] = record["learn_cpu"]

    agent.save(files.model)
    measured = None
    if with_measures:
        started = time.perf_counter()
        measured = measuring.measure(agent, dataset, evaluation_seed(run.seed, CURVE_POINTS))
        seconds["measure"] = time.perf_counter() - started
    result = {
        "schema": SCHEMA,
        "agent": run.agent,
        "agent_class": f"{type(agent).__module__}.{type(agent).__qualname__}",
        "settings": {**(config := agent.config())["settings"], **config.get("image_settings", {})},
        "settings_origin": {name: origin for name, origin in agent.settings_origin.items() if origin != "preset"},
        "preset": run.preset,
        "dataset": {
            "id": run.dataset,
            "name": info.id,
            "hash": dataset.content_hash,
            "steps": dataset.n_steps,
            "episodes": dataset.n_episodes,
            "replay_check": check,
            **{key: getattr(info, key) for key in ("provenance", "description", "controller", "reference_scores")},
        },
        "seed": run.seed,
        "budget_share": run.budget,
        "gradient_steps": agent.num_timesteps,
        "shares_with": record.get("shares_with"),
        "protocol": {
            "episodes": run.episodes,
            "episode_steps": int(info.eval_env.max_episode_steps),
            "deterministic": True,
            "n_envs": N_ENVS,
            "evaluation_seed": seed,
        },
        **{key: getattr(outcome, key) for key in ("returns", "lengths", "first_contact", "successes")},
        "curve": record["curve"],
        "losses": {name: thin(points) for name, points in record["losses"].items()},
        "seconds": rounded(seconds, 2) | {"stages": rounded(agent.stage_seconds, 2)},
        "resumes": record["resumes"],
        "predict_ms": rounded(outcome.predict_ms, 4),
        "peak_memory_mb": provenance.peak_memory_mb(),
        "measured": measured,
        "plans": maze_plans.plan_paths(agent, dataset.make_eval_env, seed=seed) if with_plans else None,
        "hardware": provenance.hardware(agent.device),
        **code,
        "learned_before": [other for other in learned_with if other != code],
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_json(files.result, result)
    checkpoint.remove(files.checkpoint)
    solved = "" if None in outcome.successes else f", {sum(map(bool, outcome.successes))} successful,"
    print(f"finished: mean return {fmean(outcome.returns):.4g}{solved} over {run.episodes} episodes", flush=True)
    return files.result


def rounded(values: Mapping[str, float], digits: int) -> dict[str, Any]:
    return {name: round(value, digits) for name, value in values.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--agent", required=True, help="LDCQ, LDCQ[prior=gaussian], my_module:MyAgent[setting=value], ..."
    )
    parser.add_argument("--dataset", required=True, help="a Minari id or the path of a D4RL .hdf5 file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="fast", help="fast, paper, or default (the agent's own choice)")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the preset's gradient steps")
    parser.add_argument("--episodes", type=int, default=100, help="evaluation episodes at the end")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives runs/, models/, checkpoints/")
    parser.add_argument("--imports", nargs="*", default=[], metavar="MODULE", help="modules that register environments")
    parser.add_argument("--plans", action="store_true", help="store the paths of candidate latents (point mazes)")
    parser.add_argument("--measure", action="store_true", help="measure more than scores; see measuring.py")
    parser.add_argument("--claimed", action="store_true", help=argparse.SUPPRESS)  # the suite has passed on the lock
    options = parser.parse_args(arguments)
    import_modules(options.imports)
    what = canonical_spec(options.agent), canonical_spec(options.dataset)
    run = Run(*what, options.seed, options.preset, options.budget, options.episodes)
    try:
        with contextlib.nullcontext() if options.claimed else claims.claimed(Files(options.out, run.name).lock):
            run_and_write(run, options.out, options.plans, options.measure)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise SystemExit(f"stopped: {error}. The same command goes on from the last checkpoint") from None


if __name__ == "__main__":
    main()
