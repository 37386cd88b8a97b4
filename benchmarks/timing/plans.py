"""How long LatentDiffuser takes for a plan, and what each way to speed up its sampling loop is worth.

A plan is one call of `predict` that plans for all environments with exact guidance, decoding included. The loop calls
two networks per solver step, the denoiser and the gradient of the energy. Versions:

- naive: the networks as one reads them in a paper, embeddings of time and state made at every step, convolutions by
  torch's routine, the gradient by autograd;
- hoisted: what the agent does. Everything that depends on the weights, the time or the state alone is computed before
  the loop, and the gradient is written out;
- compiled, bf16, and both: `policy.speed_up`.

Required: hoisted 1.8 times as fast as naive, and at most 25 ms for one environment.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ld_agents import LatentDiffuser
from ld_agents.diffusion.sampling import VPSchedule, sample, vp_solver_steps, x0_from_noise
from ld_agents.latent_diffuser_policy import LatentDiffuserPolicy
from ld_agents.networks.denoisers import PositionConv, TemporalBlock, TemporalUNet, sinusoids
from timing.harness import Result, Timing, check, clock_of, in_turn, milliseconds, preset_settings, random_dataset

VERSIONS: dict[str, dict[str, Any] | None] = {
    "naive": None,
    "hoisted": {},
    "hoisted, bf16": {"precision": "bf16"},
    "hoisted, compiled": {"compile": True},
    "hoisted, compiled, bf16": {"compile": True, "precision": "bf16"},
}


def measure(
    versions: Sequence[str], envs: Sequence[int], repetitions: int, settings: Mapping[str, Any] | None = None
) -> Result:
    """Of the fast preset, with some `settings` in place of its own."""
    rows, checks = [], []
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        policies = {name: version_of(fresh_policy(device, settings or {}), VERSIONS[name]) for name in versions}
        for n in envs:
            observations = np.random.default_rng(0).standard_normal((n, 4), np.float32)
            plan = {
                name: functools.partial(policy.predict, observations, deterministic=True)
                for name, policy in policies.items()
            }
            seconds = in_turn(plan, repetitions, clock_of(device), warm_up=2)  # compiles
            for name, times in seconds.items():
                ratio = float(np.median(seconds[versions[0]]) / np.median(times))
                row = {"device": device, "n_envs": n, "version": name, "plan_ms": milliseconds(times), "ratio": ratio}
                rows.append(row)
            checks += differences(policies, torch.as_tensor(observations, device=device), device)
    return {"rows": rows, "checks": checks, "settings": preset_settings("LatentDiffuser fast")}


def fresh_policy(device: str, settings: Mapping[str, Any]) -> LatentDiffuserPolicy:
    """Untrained, with weights that are not those of a fresh network where that would hide mistakes."""
    agent = LatentDiffuser("MlpPolicy", random_dataset(1600), preset="fast", seed=0, device=device, **settings)
    policy, generator = agent.policy, torch.Generator().manual_seed(0)
    policy.set_training_mode(False)
    with torch.no_grad():
        for parameter in (*policy.denoiser_average.parameters(), *policy.energy_average.parameters()):
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.add_(0.5 * parameter.std(correction=0) * noise)
    return policy


def version_of(policy: LatentDiffuserPolicy, how: Mapping[str, Any] | None) -> LatentDiffuserPolicy:
    if how is None:
        policy.draw_latents = functools.partial(naive_latents, policy)  # type: ignore[method-assign]
    else:
        policy.speed_up(**how)
    return policy


def differences(policies: Mapping[str, LatentDiffuserPolicy], states: Tensor, device: str) -> list[Result]:
    """Root mean square differences of latents to those of the first version, in root mean squares of these."""
    start = torch.randn(len(states), *next(iter(policies.values())).latent_shape, device=states.device)
    (first, expected), *others = [(name, policy.draw_latents(states, start)) for name, policy in policies.items()]
    return [
        check(
            f"{device}, {len(states)} environments: relative difference of the latents, {name} to {first}",
            float((latents - expected).norm() / expected.norm()),
            0.1 if "bf16" in name else 1e-3,
        )
        for name, latents in others
    ]


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


def cells(result: Result) -> Iterable[Result]:
    for row in result["rows"]:
        yield {
            "device": row["device"],
            "environments": row["n_envs"],
            "version": row["version"],
            "ms, median": row["plan_ms"]["median"],
            "95 %": row["plan_ms"]["p95"],
            "times as fast as naive": row["ratio"],
        }


PLANS = Timing(
    name="plans",
    file="plan_speed",
    doc=__doc__,
    sizes={"versions": list(VERSIONS), "envs": [1, 64], "repetitions": 100},
    quick={"versions": ["naive", "hoisted", "hoisted, bf16"], "envs": [1, 3], "repetitions": 2},
    measure=measure,
    cells=cells,
)
