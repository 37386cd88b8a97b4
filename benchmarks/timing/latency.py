"""How long a decision takes: milliseconds of `predict` for one environment and for many.

A planner decides every `exec_horizon` environment steps, for all environments in one call; in between it only decodes
what it holds. So there are two numbers: the time of a call that decides, and the mean time of a call divided by the
environments, which spreads a decision over the actions that follow from it. Network calls are per decision. Fresh
networks are untrained: that changes what is decided, not how long it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ld_agents
from ld_agents.common import agent_file
from timing.harness import Result, Timing, clock_of, in_turn, milliseconds, preset_settings, random_dataset

# agents, and what is set otherwise than in their presets
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("LDCQ", "fast", {}),
    ("LDCQ", "fast", {"solver": "ddim"}),
    ("LDCQ", "fast", {"solver": "ddpm"}),
    ("LDCQ", "fast", {"horizon": 10, "exec_horizon": 10}),
    ("LDCQ", "fast", {"prior": "gaussian"}),
    ("LDCQ", "fast", {"candidates_acting": 32}),
    ("LDCQ", "paper", {}),
    ("LDCQ", "paper", {"solver_steps": 10}),
    ("LatentDiffuser", "fast", {}),
    ("BC", "fast", {}),
)
ACTIONS = 10  # of a turn, at least


def measure(envs: Sequence[int], candidates: int, repetitions: int, agent: Path | None = None) -> Result:
    """Of fresh agents with `candidates` per decision of LDCQ, or of the agent in a file, as it is."""
    rows = []
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        agents = [(agent.stem, saved_agent(agent, device))] if agent else fresh_agents(candidates, device)
        for n in envs:
            calls: list[list[float]] = [[] for _ in agents]
            turns = {i: turn(agents[i][1], n, calls[i], clock_of(device)) for i in range(len(agents))}
            in_turn(turns, repetitions)
            for (name, timed), of_agent in zip(agents, calls, strict=True):
                counted = of_agent[actions_of_turn(timed) :]  # without the warm-up
                decisions = counted[:: exec_horizon(timed)]
                rows.append(
                    described(timed, name)
                    | {"device": device, "n_envs": n, "n_decisions": len(decisions)}
                    | {"decision_ms": milliseconds(decisions), "action_ms": 1000 * float(np.mean(counted)) / n}
                )
    presets = dict.fromkeys(f"{name} {preset}" for name, preset, _ in VARIANTS)
    return {"rows": rows, "settings": {} if agent else preset_settings(*presets)}


def exec_horizon(agent: Any) -> int:
    return getattr(agent.settings, "exec_horizon", 1)


def actions_of_turn(agent: Any) -> int:
    """At least `ACTIONS`, and all that follow from their decisions."""
    return exec_horizon(agent) * -(-ACTIONS // exec_horizon(agent))


def turn(agent: Any, n_envs: int, calls: list[float], clock: Callable[[], float]) -> Callable[[], None]:
    """Decisions and all actions that follow from them, on new observations; the seconds of each end up in `calls`."""
    generator = np.random.default_rng(0)

    def act() -> None:
        state = None
        for _ in range(actions_of_turn(agent)):
            observations = generator.standard_normal((n_envs, agent.state_dim), np.float32)
            started = clock()
            _, state = agent.predict(observations, state, deterministic=True)
            calls.append(clock() - started)

    return act


def described(agent: Any, name: str) -> Result:
    """What a row says of an agent; None where it has no such thing."""
    s = agent.settings
    sampler = getattr(s, "solver", None) if getattr(s, "prior", "diffusion") == "diffusion" else None
    ancestral = sampler == "ddpm"
    return {
        "agent": name,
        "prior": getattr(s, "prior", None),
        "sampler": sampler,
        "network_calls": s.diffusion_steps + s.extra_steps if ancestral else s.solver_steps if sampler else None,
        "candidates": getattr(s, "candidates_acting", None) or getattr(s, "n_candidates", None),
        "horizon": getattr(s, "horizon", None),
        "exec_horizon": exec_horizon(agent),
    }


def fresh_agents(candidates: int, device: str) -> list[tuple[str, Any]]:
    """Untrained agents on random data, with their names in the table."""
    agents = []
    for name, preset, settings in VARIANTS:
        changed = {"candidates_acting": candidates, **settings} if name == "LDCQ" else settings
        cls = getattr(ld_agents, name)
        agent = cls("MlpPolicy", random_dataset(1600), preset=preset, seed=0, device=device, **changed)
        agents.append((f"{name} {preset}", agent))
    return agents


def saved_agent(path: Path, device: str) -> Any:
    """An agent of one of ld_agents' classes from its file."""
    return getattr(ld_agents, agent_file.read(path)[0]["class"]).load(path, device=device)


def cells(result: Result) -> Iterable[Result]:
    for row in result["rows"]:
        yield {
            **{key.replace("_", " "): row[key] for key in ("agent", "prior", "sampler", "network_calls")},
            "candidates": row["candidates"],
            "horizon": row["horizon"],
            "steps per decision": row["exec_horizon"],
            "device": row["device"],
            "environments": row["n_envs"],
            "decision ms, median": row["decision_ms"]["median"],
            "95 %": row["decision_ms"]["p95"],
            "ms per action": row["action_ms"],
        }


LATENCY = Timing(
    name="latency",
    file="latency",
    doc=__doc__,
    sizes={"envs": [1, 64], "candidates": 100, "repetitions": 20},
    quick={"envs": [1, 2], "candidates": 2, "repetitions": 1},
    measure=measure,
    cells=cells,
)
