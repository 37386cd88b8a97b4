"""How long a decision takes: milliseconds of `predict` for one environment and for many.

    python benchmarks/latency.py                                  # fresh networks of both presets, and BC
    python benchmarks/latency.py --agent results/models/mine.zip  # a saved agent

A planner decides every `exec_horizon` environment steps, for all environments in one call; in between it only decodes
the latent it holds. So there are two numbers: the time of a call that decides, and the mean time of an action, which
spreads a decision over the actions that follow from it. Fresh networks are untrained: that changes what is decided, not
how long it takes. One thread, wall-clock time. Rows for a GPU are added where there is one. Writes latency.json and
latency.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import provenance
from ld_agents import BC, LDCQ
from run_one import agent_class, write_json
from timing.speed import synthetic_dataset, write_text

SCHEMA = 1
# settings that replace those of the fast preset; the first is the preset itself
FAST_VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"solver": "ddim"},
    {"solver": "ddpm"},
    {"horizon": 10, "exec_horizon": 10},
    {"prior": "gaussian"},
    {"candidates_acting": 32},
)
PAPER_VARIANTS: tuple[dict[str, Any], ...] = ({}, {"solver_steps": 10})


def decision_times(
    agent: Any, n_envs: int, seconds: float, at_least: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Milliseconds of each deciding call, and of all calls from one decision to the next.

    Every call sees new observations. The first decision is not counted.
    """
    exec_horizon = getattr(agent.settings, "exec_horizon", 1)
    generator = np.random.default_rng(0)
    decisions: list[float] = []
    cycles: list[float] = []
    state = None
    stop_at = time.perf_counter() + seconds
    while len(decisions) < at_least + 1 or time.perf_counter() < stop_at:
        observations = generator.standard_normal((exec_horizon, n_envs, agent.state_dim), np.float32)
        started = time.perf_counter()
        for k in range(exec_horizon):
            _, state = agent.predict(observations[k], state, deterministic=True)
            if k == 0:
                decisions.append(time.perf_counter() - started)
        cycles.append(time.perf_counter() - started)
    return 1000 * np.array(decisions[1:]), 1000 * np.array(cycles[1:])


def network_calls(agent: Any) -> int | None:
    """Calls of the denoiser per decision; None for an agent without one."""
    if not isinstance(agent, LDCQ) or agent.settings.prior != "diffusion":
        return None
    s = agent.settings
    return s.diffusion_steps + s.extra_steps if s.solver == "ddpm" else s.solver_steps


def measure_row(agent: Any, name: str, trained: bool, n_envs: int, seconds: float, at_least: int) -> dict[str, Any]:
    """One row of the table, ready for JSON."""
    decisions, cycles = decision_times(agent, n_envs, seconds, at_least)
    planner = isinstance(agent, LDCQ)
    exec_horizon = getattr(agent.settings, "exec_horizon", 1)
    return {
        "agent": name,
        "trained": trained,
        "prior": agent.settings.prior if planner else None,
        "sampler": agent.settings.solver if network_calls(agent) is not None else None,
        "network_calls": network_calls(agent),
        "candidates": agent.settings.candidates_acting if planner else None,
        "horizon": agent.settings.horizon if planner else None,
        "exec_horizon": exec_horizon,
        "device": agent.device.type,
        "n_envs": n_envs,
        "n_decisions": len(decisions),
        "decision_ms": {"median": float(np.median(decisions)), "p95": float(np.percentile(decisions, 95))},
        "action_ms": float(cycles.mean() / (exec_horizon * n_envs)),
    }


def fresh_agents(candidates: int, device: str) -> list[tuple[str, Any]]:
    """Untrained agents on made-up data, with their names in the table."""
    data = synthetic_dataset(1600)
    variants = [("fast", variant) for variant in FAST_VARIANTS] + [("paper", variant) for variant in PAPER_VARIANTS]
    agents: list[tuple[str, Any]] = []
    for preset, variant in variants:
        settings: dict[str, Any] = {"candidates_acting": candidates, **variant}
        agents.append((f"LDCQ {preset}", LDCQ("MlpPolicy", data, preset=preset, seed=0, device=device, **settings)))
    agents.append(("BC fast", BC("MlpPolicy", data, preset="fast", seed=0, device=device)))
    return agents


def saved_agent(path: Path, class_name: str, candidates: int, device: str) -> tuple[str, Any]:
    """An agent from its file, with the number of candidates that all rows have."""
    agent = agent_class(class_name).load(path, device=device)
    if isinstance(agent, LDCQ):
        agent.settings = dataclasses.replace(agent.settings, candidates_acting=candidates)
        agent.policy.settings = agent.settings
    return path.stem, agent


def table(result: Mapping[str, Any]) -> str:
    """The Markdown page of a result."""
    hardware, versions = result["hardware"], result["versions"]
    gpu = f", {hardware['gpu']}" if hardware["gpu"] else ""
    lines = [
        "# Latency",
        "",
        f"Made by `python benchmarks/latency.py` on {result['made'][:10]}: {hardware['cpu']}, {hardware['threads']} "
        f"thread{gpu}, Python {versions['python']}, torch {versions['torch']}. Wall-clock time. A decision is one call "
        "of `predict` that plans for all environments; ms per action is the mean over all calls, divided by the "
        "environments. Network calls are per decision. Untrained networks take as long as trained ones.",
        "",
        "| agent | trained | prior | sampler | network calls | candidates | horizon | steps per decision | device "
        "| environments | decision ms, median | 95 % | ms per action |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        cells = [
            row["agent"],
            "yes" if row["trained"] else "no",
            *(row[key] for key in ("prior", "sampler", "network_calls", "candidates", "horizon", "exec_horizon")),
            row["device"],
            row["n_envs"],
            f"{row['decision_ms']['median']:.3g}",
            f"{row['decision_ms']['p95']:.3g}",
            f"{row['action_ms']:.3g}",
        ]
        lines.append(f"| {' | '.join('–' if cell is None else str(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", type=Path, action="append", default=[], help="file of a saved agent; repeatable")
    parser.add_argument("--agent-class", default="LDCQ", help="class of the files: a name in ld_agents or module:Class")
    parser.add_argument("--candidates", type=int, default=100, help="candidates per decision")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 64], help="numbers of environments")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each row")
    parser.add_argument("--decisions", type=int, default=10, help="decisions for each row, at least")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of latency.json and latency.md")
    options = parser.parse_args(arguments)
    if min(options.candidates, options.decisions, *options.envs) < 1:
        parser.error("--candidates, --decisions and --envs must be at least 1")
    torch.set_num_threads(1)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    agents: list[tuple[str, Any]] = []
    for device in devices:
        if options.agent:
            agents += [saved_agent(path, options.agent_class, options.candidates, device) for path in options.agent]
        else:
            agents += fresh_agents(options.candidates, device)
    rows = [
        measure_row(agent, name, bool(options.agent), n_envs, options.seconds, options.decisions)
        for name, agent in tqdm(agents, desc="agents", disable=not sys.stderr.isatty())
        for n_envs in options.envs
    ]
    result = {
        "schema": SCHEMA,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": provenance.source_commit(),
        "hardware": provenance.hardware(torch.device(devices[-1])),
        "versions": provenance.versions(),
        "seconds_per_row": options.seconds,
        "rows": rows,
    }
    write_json(options.out / "latency.json", result)
    page = table(json.loads((options.out / "latency.json").read_text()))
    write_text(options.out / "latency.md", page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
