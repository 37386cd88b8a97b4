"""How long LatentDiffuser takes for a plan, and what the ways to make its sampling loop faster are worth.

    python benchmarks/plan_speed.py

The loop calls two networks per solver step, the denoiser and the gradient of the energy. Versions:

- naive: the networks as one reads them in a paper, embeddings of time and state made at every step, convolutions by
  torch's routine, the gradient by autograd;
- hoisted: what the agent does. Everything that depends on the weights, the time or the state alone is worked out before
  the loop, and the gradient is written out;
- compiled, bf16, and both: `policy.speed_up`.

A plan is one call of `predict` that plans for all environments, decoding included. Fresh networks: that changes what is
planned, not how long it takes. All versions run in one process on one thread, in turn. Times are CPU time; on a GPU,
where there are rows for it, wall-clock time. Next to them stand checks that the versions plan the same. Writes
plan_speed.json and plan_speed.md.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import provenance
from ld_agents import LatentDiffuser
from ld_agents.diffusion.sampling import VPSchedule, sample, vp_solver_steps, x0_from_noise
from ld_agents.latent_diffuser_policy import LatentDiffuserPolicy
from ld_agents.networks.denoisers import PositionConv, TemporalBlock, TemporalUNet, sinusoids
from run_one import write_json
from timing.speed import STATE_DIM, check, synthetic_dataset, write_text

SCHEMA = 1
VERSIONS: dict[str, dict[str, Any] | None] = {
    "naive": None,
    "hoisted": {},
    "hoisted, bf16": {"precision": "bf16"},
    "hoisted, compiled": {"compile": True},
    "hoisted, compiled, bf16": {"compile": True, "precision": "bf16"},
}
REQUIRED_RATIO = 1.8  # hoisted against naive
REQUIRED_MS = 25.0  # hoisted, one environment, fast preset


def plain_convolution(conv: PositionConv, x: Tensor) -> Tensor:
    """Shapes [B, C, n] -> [B, C', m]."""
    _, kernel, stride, transposed = conv.places
    padding = (kernel - 1) // 2
    if transposed:
        return F.conv_transpose1d(x, conv.weight.transpose(0, 1), conv.bias, stride, padding)
    return F.conv1d(x, conv.weight, conv.bias, stride, padding)


def plain_block(block: TemporalBlock, x: Tensor, condition: Tensor) -> Tensor:
    h = block.activation(block.norms[0](plain_convolution(block.first, x)))
    h = h + block.condition(condition)[..., None]
    h = block.activation(block.norms[1](plain_convolution(block.second, h)))
    return h + (x if block.around is None else plain_convolution(block.around, x))


def plain_noise(network: TemporalUNet, z: Tensor, tau: Tensor, states: Tensor) -> Tensor:
    """The denoiser with all its parts in place. Shapes [B, N, Z], [B], [B, S] -> [B, N, Z]."""
    activation = network.activation
    features = sinusoids(1000 * tau, network.embedding)
    embeddings = [
        layers[1](activation(layers[0](x))) for layers, x in ((network.time, features), (network.state, states))
    ]
    condition = activation(torch.cat(embeddings, 1))

    def through(level: Any, h: Tensor) -> Tensor:
        for block in level:
            h = plain_block(block, h, condition)
        return h

    h = z.transpose(1, 2)
    skips = []
    for i, level in enumerate(network.down_levels):
        h = through(level, h)
        skips.append(h)
        if i < len(network.down):
            h = plain_convolution(network.down[i], h)  # type: ignore[arg-type]
    h = through(network.middle, h)
    for level, up in zip(network.up_levels, network.up, strict=True):
        h = plain_convolution(up, through(level, torch.cat([h, skips.pop()], 1)))  # type: ignore[arg-type]
    h = activation(network.last_norm(plain_convolution(network.last, h)))
    return plain_convolution(network.outlet, h).transpose(1, 2)


def naive_latents(policy: LatentDiffuserPolicy, states: Tensor, start: Tensor, guided: bool = True) -> Tensor:
    """What `draw_latents` returns with exact guidance, with nothing hoisted. Shapes [n, S], [n, N, Z] -> [n, N, Z]."""
    s, schedule = policy.settings, VPSchedule()
    steps = vp_solver_steps(schedule, s.solver_steps, solver=s.solver, grid=s.solver_grid)

    def denoise(z: Tensor, k: int) -> Tensor:
        tau = torch.full((len(z),), steps[k].time, device=z.device)
        signal, noise = (float(f(tau[:1])) for f in (schedule.signal, schedule.noise))
        epsilon = plain_noise(policy.denoiser_average, z, tau, states)
        with torch.enable_grad():
            z_flat = z.flatten(1).clone().requires_grad_()
            energy = policy.energy_average(z_flat, states, tau)
            (slope,) = torch.autograd.grad(energy.sum(), z_flat)
        return x0_from_noise(z, epsilon, signal, noise, slope.view_as(z), s.guidance_scale)

    with torch.inference_mode(False), torch.no_grad():
        states, start = states.clone(), start.clone()
        return sample(denoise, steps, start, lambda k: start)


def fresh_policy(preset: str, device: str, settings: Mapping[str, Any]) -> LatentDiffuserPolicy:
    """Untrained, with weights that are not those of a fresh network where that would hide mistakes."""
    agent = LatentDiffuser("MlpPolicy", synthetic_dataset(1600), preset=preset, seed=0, device=device, **settings)
    policy = agent.policy
    policy.set_training_mode(False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (policy.denoiser_average, policy.energy_average):
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(0.5 * parameter.std(correction=0) * noise)
    return policy


def version_of(policy: LatentDiffuserPolicy, how: Mapping[str, Any] | None) -> LatentDiffuserPolicy:
    policy = copy.deepcopy(policy)
    if how is None:
        policy.draw_latents = functools.partial(naive_latents, policy)  # type: ignore[method-assign]
    else:
        policy.speed_up(**how)
    return policy


def measure(
    preset: str, device: str, settings: Mapping[str, Any], names: Sequence[str], envs: Sequence[int], repetitions: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table and checks of one preset on one device."""
    policy = fresh_policy(preset, device, settings)
    policies = {name: version_of(policy, VERSIONS[name]) for name in names}
    clock: Callable[[], float] = time.process_time if device == "cpu" else time.perf_counter
    rows, checks = [], []
    for n in envs:
        observations = np.random.default_rng(0).standard_normal((n, STATE_DIM), np.float32)
        seconds: dict[str, list[float]] = {name: [] for name in policies}
        for repetition in tqdm(range(-2, repetitions), desc=f"{preset}, {device}, {n}", leave=False, disable=None):
            for name, version in policies.items():
                started = clock()
                version.predict(observations, deterministic=True)
                if repetition >= 0:  # compilation and caches come before
                    seconds[name].append(clock() - started)
        for name, times in seconds.items():
            ms = 1000 * np.array(times)
            ratio = float(np.median(seconds["naive"]) / np.median(times)) if "naive" in seconds else None
            plan_ms = {"median": float(np.median(ms)), "p95": float(np.percentile(ms, 95))}
            rows.append(
                {"preset": preset, "device": device, "version": name, "n_envs": n, "plan_ms": plan_ms, "ratio": ratio}
            )
        checks += _differences(policies, torch.as_tensor(observations, device=policy.device), f"{preset}, {device}")
    return rows, checks


def _differences(policies: Mapping[str, LatentDiffuserPolicy], states: Tensor, where: str) -> list[dict[str, Any]]:
    """Root mean square differences of latents to those of the first version, in root mean squares of these."""
    start = torch.randn(len(states), *next(iter(policies.values())).latent_shape, device=states.device)
    (first, expected), *others = [(name, policy.draw_latents(states, start)) for name, policy in policies.items()]
    return [
        check(
            f"{where}, {len(states)} environments: relative difference of the latents, {name} to {first}",
            float((latents - expected).norm() / expected.norm()),
            0.1 if "bf16" in name else 1e-3,
        )
        for name, latents in others
    ]


def table(result: Mapping[str, Any]) -> str:
    """The Markdown page of a result."""
    hardware, versions = result["hardware"], result["versions"]
    gpu = f", {hardware['gpu']}" if hardware["gpu"] else ""
    lines = [
        "# Milliseconds per plan",
        "",
        f"Made by `python benchmarks/plan_speed.py` on {result['made'][:10]}: {hardware['cpu']}, {hardware['threads']} "
        f"thread{gpu}, torch {versions['torch']}. LatentDiffuser with exact guidance; one call of `predict` that plans "
        f"for all environments. {result['repetitions']} repetitions, all versions in turn; CPU time (GPU: wall-clock). "
        f"Required: hoisted {REQUIRED_RATIO}x as fast as naive, and at most {REQUIRED_MS:g} ms for one environment "
        "with the fast preset.",
        "",
        "| preset | device | environments | version | ms, median | 95 % | times as fast as naive |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        ms, ratio = row["plan_ms"], row["ratio"]
        cells = [row["preset"], row["device"], row["n_envs"], row["version"], f"{ms['median']:.3g}", f"{ms['p95']:.3g}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {'–' if ratio is None else f'{ratio:.2f}'} |")
    lines += ["", "| check | value | at most | passed |", "| --- | ---: | ---: | --- |"]
    lines += [
        f"| {row['name']} | {row['value']:.2g} | {row['limit']:g} | {'yes' if row['passed'] else 'NO'} |"
        for row in result["checks"]
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["fast"], choices=["fast", "paper"])
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS), choices=list(VERSIONS))
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 64], help="numbers of environments")
    parser.add_argument("--repetitions", type=int, default=50, help="plans for each row")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON of settings that replace the preset's")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the two files")
    options = parser.parse_args(arguments)
    if min(options.repetitions, *options.envs) < 1:
        parser.error("--repetitions and --envs must be at least 1")
    torch.set_num_threads(1)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows, checks = [], []
    for device in devices:
        for preset in options.presets:
            more = measure(preset, device, options.settings, options.versions, options.envs, options.repetitions)
            rows += more[0]
            checks += more[1]
    result = {
        "schema": SCHEMA,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": provenance.source_commit(),
        "hardware": provenance.hardware(torch.device(devices[-1])),
        "versions": provenance.versions(),
        "settings": options.settings,
        "repetitions": options.repetitions,
        "rows": rows,
        "checks": checks,
    }
    write_json(options.out / "plan_speed.json", result)
    page = table(json.loads((options.out / "plan_speed.json").read_text()))
    write_text(options.out / "plan_speed.md", page)
    print(page)
    failed = [row["name"] for row in checks if not row["passed"]]
    if failed:
        print(f"The versions differ: {'; '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
