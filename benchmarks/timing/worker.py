"""One version of a library, timed in turns with others: each is a process of this script.

    python worker.py ld_agents    # or d3rlpy; which version is up to the interpreter and PYTHONPATH

The first line of standard input holds the arguments of the class, in JSON, and is answered with what it is about. Each
other line, {"do": "train", "agent": "BC", ...}, is a method, and its answer, a line of standard output, is seconds by
what took them, or bytes: {} where the library has no such thing, {"error": traceback} where it fails.

Seconds are CPU time of one thread, to which other programs add nothing. Uses API that all versions have, and nothing of
this repository beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Seconds = dict[str, float]
STATE_DIM, ACTION_DIM, EPISODE_STEPS = 11, 3, 1000  # Hopper


def random_arrays(rows: int) -> list[NDArray[Any]]:
    """Observations, actions, rewards, terminals and timeouts of synthetic full episodes that end by timeout."""
    generator = np.random.default_rng(0)
    timeouts = np.arange(1, rows + 1) % EPISODE_STEPS == 0
    timeouts[-1] = True
    return [
        generator.standard_normal((rows, STATE_DIM), np.float32),
        generator.random((rows, ACTION_DIM), np.float32) * 2 - 1,
        generator.standard_normal(rows, np.float32),
        np.zeros(rows, bool),
        timeouts,
    ]


def per_step(marks: Sequence[float]) -> float:
    """Mean seconds of a step from the clock after each. The first and the last hold what else a stage does."""
    if len(marks) < 3:
        raise ValueError(f"a stage of {len(marks)} gradient steps cannot be timed: it takes 3")
    return (marks[-2] - marks[0]) / (len(marks) - 2)


def start_up(module: str) -> float:
    """Seconds of a fresh interpreter that imports a module, whose bytecode is kept as an installer keeps it."""
    code = f"import time, {module}; print(time.process_time())"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, env=environment)
    return float(done.stdout.split()[-1])


def peak_memory(library: str, arguments: str, agent: str, rows: int, steps: int) -> float:
    """Bytes that gradient steps add to what a fresh process holds before them, data included. Linux alone tells."""
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import worker
memory = lambda name: 1024 * int(open("/proc/self/status").read().split(name + ":")[1].split()[0])
worker.torch.set_num_threads(1)
version = worker.{library}(**json.loads({arguments!r}))
version.dataset({rows})
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here on
version.train({agent!r}, {rows}, {steps})
print(memory("VmHWM") - before)"""
    return float(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout.split()[-1])


class Library:
    """What is timed of any library: `train` by its own means, and the memory that takes."""

    def __init__(self, overrides: dict[str, dict[str, Any]], networks: dict[str, dict[str, Any]]) -> None:
        self.arguments = json.dumps({"overrides": overrides, "networks": networks})

    def memory(self, agent: str, rows: int, steps: int) -> Seconds:
        return {f"memory, {rows:,} rows": peak_memory(type(self).__name__, self.arguments, agent, rows, steps)}


class LdAgents(Library):
    """Agents of the fast preset, but for `overrides`: settings by agent."""

    def __init__(self, overrides: dict[str, dict[str, Any]], networks: dict[str, dict[str, Any]]) -> None:
        super().__init__(overrides, networks)
        self.library = importlib.import_module("ld_agents")
        self.overrides = overrides
        self.sped_up: set[str] = set()
        self.agent = functools.cache(self.make_agent)
        self.dataset = functools.cache(lambda rows: self.library.OfflineDataset(*random_arrays(rows)))
        agents = {name: getattr(self.library, name) for name in self.library.__all__}
        presets = {f"{name} fast": a.presets()["fast"] for name, a in agents.items() if hasattr(a, "presets")}
        settings = {preset: dataclasses.asdict(values) for preset, values in presets.items()}
        self.about = {"file": self.library.__file__, "presets": settings}

    def make_agent(self, name: str, rows: int) -> Any:
        settings = {"seed": 0, "preset": "fast", "device": "cpu", **self.overrides.get(name, {})}
        return getattr(self.library, name)("MlpPolicy", self.dataset(rows), **settings)

    def train(self, agent: str, rows: int, steps: int) -> Seconds:
        """A gradient step of each stage, among which `steps` are shared out; and what comes once before the last."""
        trained = self.agent(agent, rows)
        marks: dict[str, list[float]] = {}

        def mark(*_: Any) -> bool:
            stage = [name for name, done in trained.stage_steps.items() if done][-1]
            marks.setdefault(stage, []).append(time.process_time())
            return True

        trained.learn(steps, callback=mark, log_interval=None)
        if len(marks) == 1:
            return {"gradient step": per_step(*marks.values())}
        seconds = {f"gradient step of {stage}": per_step(of_stage) for stage, of_stage in marks.items()}
        before, last = list(marks)[-2:]
        steps_between = per_step(marks[before]) + per_step(marks[last])
        return seconds | {f"once, before {last}": marks[last][0] - marks[before][-2] - steps_between}

    def act(self, agent: str, rows: int, envs: int, plans: int, fast: bool = False) -> Seconds:
        """A call of `predict` that plans, and one that goes on with its plan; of `fast` plans the former alone."""
        planner, generator = self.agent(agent, rows), np.random.default_rng(0)
        if fast != (agent in self.sped_up) and hasattr(planner, "speed_up"):
            planner.speed_up("fastest" if fast else None)
            self.sped_up ^= {agent}
        plan: list[float] = []
        held: list[float] = []
        for _ in range(plans):
            state = None
            for step in range(1 if fast else planner.settings.exec_horizon):
                observations = generator.standard_normal((envs, STATE_DIM), np.float32)
                started = time.process_time()
                _, state = planner.predict(observations, state, deterministic=True)
                (held if step else plan).append(time.process_time() - started)
        of = f"{envs} environments" if envs > 1 else "1 environment"
        if fast:
            return {f"plan after speed_up, {of}": float(np.median(plan))}
        return {f"plan, {of}": float(np.median(plan)), f"step of a plan, {of}": float(np.median(held))}

    def start(self) -> Seconds:
        return {"the library": start_up("ld_agents"), "Stable-Baselines3 alone": start_up("stable_baselines3")}


class D3rlpy(Library):
    """Its baselines, with `networks`: `hidden`, `critic_hidden`, `batch_size` and CQL's `n_actions` by agent."""

    def __init__(self, overrides: dict[str, dict[str, Any]], networks: dict[str, dict[str, Any]]) -> None:
        super().__init__(overrides, networks)
        self.library = importlib.import_module("d3rlpy")
        self.networks = networks
        self.agent = functools.cache(self.make_agent)
        self.dataset = functools.cache(lambda rows: self.library.dataset.MDPDataset(*random_arrays(rows)))
        self.about = {"version": self.library.__version__, "presets": {}}

    def make_agent(self, config: str, name: str) -> Any:
        made, networks = getattr(self.library.algos, config), self.networks[name]
        encoders = {
            field.name: self.library.models.VectorEncoderFactory(
                networks["critic_hidden" if "critic" in field.name or "value" in field.name else "hidden"]
            )
            for field in dataclasses.fields(made)
            if field.name.endswith("encoder_factory")
        }
        drawn = {"n_action_samples": networks["n_actions"]} if config == "CQLConfig" else {}
        return made(batch_size=networks["batch_size"], **encoders, **drawn).create(device="cpu:0")

    def train(self, agent: str, rows: int, steps: int) -> Seconds:
        configs = {"BC": "BCConfig", "TD3BC": "TD3PlusBCConfig", "IQL": "IQLConfig", "CQL": "CQLConfig"}
        if agent not in configs:
            return {}
        marks: list[float] = []
        self.agent(configs[agent], agent).fit(
            self.dataset(rows),
            n_steps=steps,
            n_steps_per_epoch=steps,
            logger_adapter=self.library.logging.NoopAdapterFactory(),
            show_progress=False,
            callback=lambda *_: marks.append(time.process_time()),
        )
        return {"gradient step": per_step(marks)}

    def start(self) -> Seconds:
        return {"the library": start_up("d3rlpy")}


def main(name: str) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    torch.set_num_threads(1)
    version: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if version is None:
                version = {"ld_agents": LdAgents, "d3rlpy": D3rlpy}[name](**request)
                answer = version.about
            else:
                operation = getattr(version, request.pop("do"), None)
                answer = operation(**request) if operation else {}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
