"""Does the guided sampler draw from the tilted density, also on the latents of a trained model?

For the prior of a model there is no exact answer. For a prior that consists of finitely many latents there is: a latent
z^i with weight v_i and return R_i gets the weight v_i exp(beta R_i) / Z, whatever the decoder. The score of this prior
and the intermediate energy are sums over the atoms. So the latents that a model draws at one state are taken as the
prior, and guided samples of it end at one of them.

A number is the total variation distance between the shares of the latents that samples end at and the exact tilted
weights. `prior`: the prior's own weights. `draws`: as many exact draws, on average. `unguided`: samples without
guidance, against the prior's weights. `exact`: guided by the exact energy; `contrastive`, `exponential`, `mse`: by a
network fitted with one of the two losses that are exact, or by regression. Latents in the target: exp of its entropy.

The energy that the agent itself has learned is compared with the exact one on the same kind of latents: over noisy
latents of a state, the slope of its regression on the exact energy (1: guides as much as it should; 0: not at all) and
their correlation, means over states.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import provenance
from ld_agents import LatentDiffuser, load_dataset
from ld_agents.diffusion.guidance import EnergyNet, contrastive_loss, exponential_loss, support_weights
from ld_agents.diffusion.sampling import VPSchedule, sample, vp_solver_steps, x0_from_noise
from ld_agents.latent_diffuser_settings import FAST
from timing.pages import Page, Result, timed_settings

Loss = Literal["contrastive", "exponential", "mse"]

SCHEDULE = VPSchedule()
TAU_END = 1e-3
CHUNK = 4096  # samples at a time
HIDDEN, LAYERS = 128, 3  # of the fitted networks
SIZES: Result = {
    "states": 2,  # each with latents of its own
    "atoms": 64,  # latents per state
    "betas": [1.0, 3.0],
    "samples": 20_000,  # per row and kind of guidance
    "solver_steps": 100,
    "gradient_steps": 2000,  # of the fitted networks
}
SETS, SUPPORT_SIZE, LEARNING_RATE = 256, 16, 1e-3  # of fitting them: support sets per step, latents per set
SLOPE_STATES, SLOPE_ATOMS, SLOPE_TIMES = 12, 512, (0.02, 0.2, 0.4)


def measure(file: str, dataset: str, folder: Path) -> str:
    """On latents of a saved LatentDiffuser at states of its dataset. Writes and returns the page."""
    commit, sizes, trained = provenance.source_commit(), SIZES, LatentDiffuser.load(file)
    observations = load_dataset(dataset).observations

    def some(n: int) -> Tensor:
        return observations[torch.randint(len(observations), (n,), generator=torch.Generator().manual_seed(0))]

    rows = []
    for i, (drawn, returns) in enumerate(atoms_of(trained, some(sizes["states"]), sizes["atoms"])):
        for beta in sizes["betas"]:
            counts = sizes["samples"], sizes["solver_steps"], sizes["gradient_steps"]
            distances = total_variations(drawn, returns, beta, *counts)
            rows.append({"state": i, "beta": beta, "atoms": len(drawn), "latent_dim": drawn.shape[1], **distances})
    settings = {f"LatentDiffuser {trained.preset}": timed_settings(dataclasses.asdict(trained.settings))}
    slopes = ", ".join(
        f"{slope:.2f} ({correlation:.2f}) at tau {tau}" for tau, slope, correlation in slopes_of(trained, some)
    )
    how = f"Latents of {Path(file).stem} at states of {dataset}. Slope (correlation) of the agent's energy: {slopes}."
    return ATOMIC.write(folder, commit=commit, how=how, rows=rows, sizes=sizes, settings=settings)


def total_variations(
    latents: Tensor, returns: Tensor, beta: float, n_samples: int, n_steps: int, gradient_steps: int
) -> Result:
    """Total variation distances of guided samples to the exact weights of atoms.

    Args:
        latents: the atoms, with equal weights in the prior. Shape [A, D].
        returns: R of the atoms, in any order. Shape [A].
        beta: inverse temperature.
        n_samples: of the sampler, for each kind of guidance.
        n_steps: network evaluations of the solver. Many, since this is no test of the solver.
        gradient_steps: of the fitted networks.

    Returns:
        `target_atoms` (exp of the target's entropy), and `total_variation` with the keys `prior` (the exact weights
        against those of the prior), `draws`, `unguided`, `exact`, `contrastive`, `exponential` and `mse`. `unguided` is
        against the prior, all others against the tilted weights.
    """
    generator = torch.Generator().manual_seed(0)
    atoms, energies = latents.double(), beta * returns.double()
    target, prior = torch.softmax(energies, 0), torch.full((len(latents),), 1 / len(latents), dtype=torch.float64)
    draws = [torch.multinomial(target, n_samples, replacement=True, generator=generator) for _ in range(20)]
    steps = vp_solver_steps(SCHEDULE, n_steps, tau_end=TAU_END, final_denoise=True)
    tau = torch.tensor([step.time for step in steps], dtype=torch.float64)
    signal, noise = SCHEDULE.signal(tau).tolist(), SCHEDULE.noise(tau).tolist()

    def shares(z: Tensor, k: int, tilt: Tensor | float = 0.0) -> Tensor:
        """Posterior weights of the atoms at z. Shapes [n, D] -> [n, A]."""
        distances = signal[k] * z @ atoms.T - 0.5 * signal[k] ** 2 * (atoms**2).sum(1)
        return torch.softmax(distances / noise[k] ** 2 + tilt, 1)

    def exact(z: Tensor, k: int) -> Tensor:
        """-grad E_tau = alpha / sigma^2 times the shift of E[z_0 | z] by the tilt."""
        return signal[k] / noise[k] ** 2 * (shares(z, k, energies) - shares(z, k)) @ atoms

    def fitted(loss: Loss) -> Callable[[Tensor, int], Tensor]:
        net = fitted_energy(latents.float(), beta * returns.float(), loss, gradient_steps)
        with torch.no_grad():
            state_terms, time_terms = net.state_terms(torch.zeros(1, 1)), net.time_terms(tau)
        return lambda z, k: net.gradient(z, state_terms, time_terms[k]).double()

    def distance(weights: Tensor, gradient: Callable[[Tensor, int], Tensor] | None) -> float:
        def denoise(z: Tensor, k: int) -> Tensor:
            epsilon = (z - signal[k] * shares(z, k) @ atoms) / noise[k]
            return x0_from_noise(z, epsilon, signal[k], noise[k], gradient(z, k) if gradient else None)

        ends = [
            torch.cdist(sample(denoise, steps, start, _no_noise), atoms).argmin(1)
            for start in torch.randn(n_samples, atoms.shape[1], generator=generator, dtype=torch.float64).split(CHUNK)
        ]
        return _distance(torch.cat(ends), weights)

    return {
        "target_atoms": math.exp(float(torch.special.entr(target).sum())),
        "total_variation": {
            "prior": float(0.5 * (target - prior).abs().sum()),
            "draws": sum(_distance(indices, target) for indices in draws) / len(draws),
            "unguided": distance(prior, None),
            "exact": distance(target, exact),
            "contrastive": distance(target, fitted("contrastive")),
            "exponential": distance(target, fitted("exponential")),
            "mse": distance(target, fitted("mse")),
        },
    }


def fitted_energy(atoms: Tensor, energies: Tensor, kind: Loss, gradient_steps: int) -> EnergyNet:
    """Fits a network to draws of atoms [A, D] with beta R [A]; independent weights, one time per set, a state of 0."""
    torch.manual_seed(0)
    net = EnergyNet(1, atoms.shape[1], HIDDEN, LAYERS, frequency_scale=FAST.energy_frequency_scale)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, gradient_steps)
    shape = (SETS // 2, 2, SUPPORT_SIZE)
    for _ in tqdm(range(gradient_steps), desc=f"{kind} energy", leave=False, disable=not sys.stderr.isatty()):
        indices = torch.randint(len(atoms), shape, generator=generator)
        z0 = atoms[indices]  # [B, 2, M, D]
        tau = TAU_END + (1 - TAU_END) * torch.rand(shape[:2], generator=generator)
        epsilon = torch.randn(z0.shape, generator=generator)
        z = SCHEDULE.add_noise(z0.flatten(0, 1), tau.flatten(), epsilon.flatten(0, 1)).view_as(z0)
        f = net(z, torch.zeros(1, 1), tau[..., None])  # [B, 2, M]
        if kind == "mse":
            loss = F.mse_loss(f, energies[indices])
        elif kind == "exponential":
            loss, _ = exponential_loss(f, energies[indices], FAST.weight_limit)
        else:
            loss = contrastive_loss(f, support_weights(energies[indices]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def _distance(indices: Tensor, weights: Tensor) -> float:
    """Total variation between the shares of drawn atoms and their weights."""
    return float(0.5 * (indices.bincount(minlength=len(weights)) / len(indices) - weights).abs().sum())


def _no_noise(k: int) -> Tensor:
    raise AssertionError("the solver is deterministic")


def atoms_of(agent: Any, observations: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """What the prior of a LatentDiffuser draws at each state, flattened, with standardized returns. [A, D], [A]."""
    policy = agent.policy
    policy.set_training_mode(False)
    generator = torch.Generator().manual_seed(0)
    atoms = []
    with torch.no_grad():
        for observation in observations.to(agent.device):
            states = policy.normalize(observation).expand(n, -1)
            start = torch.randn(n, *policy.latent_shape, generator=generator).to(agent.device)
            latents = policy.draw_latents(states, start, guided=False)
            atoms.append((latents.flatten(1).cpu(), policy.standard_returns(latents, states).cpu()))
    return atoms


@torch.no_grad()
def slopes_of(agent: LatentDiffuser, some: Callable[[int], Tensor]) -> list[tuple[float, float, float]]:
    """At each of `SLOPE_TIMES`: tau, slope of the agent's energy on the exact one, their correlation."""
    policy, found = agent.policy, []
    observations = some(SLOPE_STATES)
    atoms = atoms_of(agent, observations, SLOPE_ATOMS)
    for time in SLOPE_TIMES:
        tau, of_states = torch.tensor(time), []
        for (z0, returns), observation in zip(atoms, observations, strict=True):
            signal, noise = SCHEDULE.signal(tau), SCHEDULE.noise(tau)
            epsilon = torch.randn(z0.shape, generator=torch.Generator().manual_seed(1))
            z = signal * z0 + noise * epsilon
            log_shares = ((signal * z @ z0.T - 0.5 * signal**2 * (z0**2).sum(1)) / noise**2).log_softmax(1)
            exact = (log_shares + agent.settings.inverse_temperature * returns).logsumexp(1)
            learned = policy.energy_average(z, policy.normalize(observation)[None], tau)
            both = torch.cov(torch.stack([exact, learned]))
            of_states.append([both[0, 1] / both[0, 0], both[0, 1] / (both[0, 0] * both[1, 1]).sqrt()])
        slope, correlation = torch.tensor(of_states).mean(0).tolist()
        found.append((time, slope, correlation))
    return found


def cells(result: Result) -> Iterable[Result]:
    for row in result["rows"]:
        asked = {"state": row["state"], "beta": row["beta"], "latents": row["atoms"]}
        yield {**asked, "latents in the target": row["target_atoms"], **row["total_variation"]}


ATOMIC = Page("atomic_guidance", __doc__, "--latents FILE DATASET", cells)
