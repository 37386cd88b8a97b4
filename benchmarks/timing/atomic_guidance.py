"""Does the guided sampler draw from the tilted density, also on the latents of a trained model?

    python benchmarks/atomic_guidance.py --agent results/models/mine.zip --dataset ld-agents/pointmaze/medium-v0
    python benchmarks/atomic_guidance.py        # made-up latents and returns

For the prior of a model there is no exact answer. For a prior that consists of finitely many latents there is: a latent
z^i with weight v_i and return R_i gets the weight v_i exp(beta R_i) / Z, whatever the decoder. The score of this prior
and the intermediate energy are sums over the atoms. So the latents that a model draws at one state are taken as the
prior, and the sampler is guided by the exact energy, by an energy network that the contrastive loss fits to draws of
these atoms, and by one that is fitted by regression ("mse"). The table has the total variation distance between the
shares of the atoms that samples end at and the exact weights; "draws" is what as many exact draws have on average.
Writes atomic_guidance.json and atomic_guidance.md.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import provenance
from ld_agents.diffusion.guidance import EnergyNet, contrastive_loss, support_weights
from ld_agents.diffusion.sampling import VPSchedule, sample, vp_solver_steps, x0_from_noise
from ld_agents.latent_diffuser_settings import FAST
from run_one import agent_class, load_dataset, write_json
from timing.speed import write_text

SCHEMA = 1
SCHEDULE = VPSchedule()
TAU_END = 1e-3
CHUNK = 4096  # samples at a time

Gradient = Callable[[Tensor, int], Tensor]


def atomic_guidance(
    network: EnergyNet,
    latents: Tensor,
    returns: Tensor,
    beta: float,
    *,
    n_samples: int = 20_000,
    n_steps: int = 100,
    gradient_steps: int = 4_000,
    sets: int = 256,
    support_size: int = 16,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> dict[str, Any]:
    """Total variation distances of guided samples to the exact weights of atoms.

    Args:
        network: fresh; copies of it are trained. Its state is held at 0.
        latents: the atoms, with equal weights in the prior. Shape [A, D].
        returns: R of the atoms, in any order. Shape [A].
        beta: inverse temperature.
        n_samples: of the sampler, for each kind of guidance.
        n_steps: network evaluations of the solver. Many, since this is no test of the solver.
        gradient_steps: of the two networks, with cosine learning rate.
        sets: support sets per gradient step.
        support_size: M, latents per set.
        learning_rate: where the cosine starts.
        seed: of noise and batches.

    Returns:
        a JSON-able dictionary: what was asked for, `target_atoms` (exp of the target's entropy), and
        `total_variation` with the keys `prior` (the exact weights against those of the prior), `draws`, `unguided`,
        `exact`, `learned` and `mse`. `unguided` is against the prior, all others against the tilted weights.
    """
    generator = torch.Generator().manual_seed(seed)
    atoms = latents.double()
    target = torch.softmax(beta * returns.double(), 0)
    prior = torch.full_like(target, 1 / len(target))
    draws = torch.stack(
        [
            _distance(torch.multinomial(target, n_samples, replacement=True, generator=generator), target)
            for _ in range(20)
        ]
    )
    steps = vp_solver_steps(SCHEDULE, n_steps, tau_end=TAU_END, final_denoise=True)
    tau = torch.tensor([step.time for step in steps], dtype=torch.float64)
    signal, noise = SCHEDULE.signal(tau).tolist(), SCHEDULE.noise(tau).tolist()

    def shares(z: Tensor, k: int, tilt: Tensor | float = 0.0) -> Tensor:
        """Posterior weights of the atoms at z. Shapes [n, D] -> [n, A]."""
        distances = signal[k] * z @ atoms.T - 0.5 * signal[k] ** 2 * (atoms**2).sum(1)
        return torch.softmax(distances / noise[k] ** 2 + tilt, 1)

    def exact_gradient(z: Tensor, k: int) -> Tensor:
        """-grad E_tau = alpha / sigma^2 times the shift of E[z_0 | z] by the tilt."""
        shift = (shares(z, k, beta * returns.double()) - shares(z, k)) @ atoms
        return signal[k] / noise[k] ** 2 * shift

    def learned_gradient(net: EnergyNet) -> Gradient:
        with torch.no_grad():
            state_terms = net.state_terms(torch.zeros(1, net.from_state.in_features))
            time_terms = net.time_terms(tau)
        return lambda z, k: net.gradient(z, state_terms, time_terms[k]).double()

    def total_variation(weights: Tensor, gradient: Gradient | None) -> float:
        def denoise(z: Tensor, k: int) -> Tensor:
            epsilon = (z - signal[k] * shares(z, k) @ atoms) / noise[k]
            return x0_from_noise(z, epsilon, signal[k], noise[k], gradient(z, k) if gradient else None)

        ends = [
            torch.cdist(sample(denoise, steps, start, _no_noise), atoms).argmin(1)
            for start in torch.randn(n_samples, atoms.shape[1], generator=generator, dtype=torch.float64).split(CHUNK)
        ]
        return float(_distance(torch.cat(ends), weights))

    def fitted(loss: Literal["contrastive", "mse"]) -> EnergyNet:
        net = copy.deepcopy(network)
        fit_energy(
            net, latents.float(), beta * returns.float(), loss, gradient_steps, sets, support_size, learning_rate, seed
        )
        return net

    return {
        "atoms": len(atoms),
        "latent_dim": atoms.shape[1],
        "beta": beta,
        "target_atoms": math.exp(float(torch.special.entr(target).sum())),
        "n_samples": n_samples,
        "solver_steps": n_steps,
        "gradient_steps": gradient_steps,
        "total_variation": {
            "prior": float(0.5 * (target - prior).abs().sum()),
            "draws": float(draws.mean()),
            "unguided": total_variation(prior, None),
            "exact": total_variation(target, exact_gradient),
            "learned": total_variation(target, learned_gradient(fitted("contrastive"))),
            "mse": total_variation(target, learned_gradient(fitted("mse"))),
        },
    }


def fit_energy(
    net: EnergyNet,
    atoms: Tensor,
    energies: Tensor,
    kind: Literal["contrastive", "mse"],
    gradient_steps: int,
    sets: int,
    support_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Trains an energy network on draws of atoms [A, D] with beta R [A]; independent weights, one time per set."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), learning_rate, fused=True)
    state = torch.zeros(1, net.from_state.in_features)
    shape = (max(1, sets // 2), 2, support_size)
    for step in tqdm(range(gradient_steps), desc=f"{kind} energy", leave=False, disable=not sys.stderr.isatty()):
        optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / gradient_steps))
        indices = torch.randint(len(atoms), shape, generator=generator)
        z0 = atoms[indices]  # [B, 2, M, D]
        tau = TAU_END + (1 - TAU_END) * torch.rand(shape[:2], generator=generator)
        epsilon = torch.randn(z0.shape, generator=generator)
        z = SCHEDULE.add_noise(z0.flatten(0, 1), tau.flatten(), epsilon.flatten(0, 1)).view_as(z0)
        f = net(z, state, tau[..., None])  # [B, 2, M]
        if kind == "mse":
            loss = F.mse_loss(f, energies[indices])
        else:
            loss = contrastive_loss(f, support_weights(energies[indices]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _distance(indices: Tensor, weights: Tensor) -> Tensor:
    """Total variation between the shares of drawn atoms and their weights."""
    return 0.5 * (indices.bincount(minlength=len(weights)) / len(indices) - weights).abs().sum()


def _no_noise(k: int) -> Tensor:
    raise AssertionError("the solver is deterministic")


def made_up_atoms(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents [A, 16] and standardised returns [A] with smooth and random parts."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, 16, generator=generator)
    returns = latents[:, 0] + torch.sin(2 * latents[:, 1]) + 0.5 * torch.randn(n, generator=generator)
    return latents, (returns - returns.mean()) / returns.std()


def atoms_of(agent: Any, observations: Tensor, n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """What the prior of a LatentDiffuser draws at each state, flattened, with standardised returns. [A, D], [A]."""
    policy = agent.policy
    policy.set_training_mode(False)
    generator = torch.Generator().manual_seed(seed)
    atoms = []
    with torch.no_grad():
        for observation in observations.to(agent.device):
            states = policy.normalize(observation).expand(n, -1)
            start = torch.randn(n, *policy.latent_shape, generator=generator).to(agent.device)
            latents = policy.draw_latents(states, start, guided=False)
            atoms.append((latents.flatten(1).cpu(), policy.standard_returns(latents, states).cpu()))
    return atoms


def table(result: Mapping[str, Any]) -> str:
    """The Markdown page of a result."""
    hardware, versions = result["hardware"], result["versions"]
    lines = [
        "# Guidance on finitely many latents",
        "",
        f"Made by `python benchmarks/atomic_guidance.py` on {result['made'][:10]}: {hardware['cpu']}, torch "
        f"{versions['torch']}. Latents of {result['agent'] or 'nobody: made up'}. Total variation distance between the "
        f"shares of the latents that {result['rows'][0]['n_samples']:,} samples end at and the exact tilted weights. "
        "`prior`: the prior's own weights. `draws`: as many exact draws, on average. `unguided`: samples without "
        "guidance, against the prior's weights. `exact`, `learned`, `mse`: guided by the exact energy, by a network "
        "fitted with the contrastive loss, by one fitted by regression. Latents in the target: exp of its entropy.",
        "",
        "| state | beta | latents | latents in the target | prior | draws | unguided | exact | learned | mse |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        cells = [row["state"], f"{row['beta']:g}", row["atoms"], f"{row['target_atoms']:.1f}"]
        cells += [f"{value:.3f}" for value in row["total_variation"].values()]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", type=Path, help="file of a saved LatentDiffuser")
    parser.add_argument("--dataset", help="its data set, for states to plan from")
    parser.add_argument("--states", type=int, default=3, help="states, each with latents of its own")
    parser.add_argument("--atoms", type=int, default=64, help="latents per state")
    parser.add_argument("--betas", type=float, nargs="+", default=[1.0, 3.0, 10.0], help="inverse temperatures")
    parser.add_argument("--samples", type=int, default=20_000, help="samples per row and kind of guidance")
    parser.add_argument("--solver-steps", type=int, default=100, help="network evaluations of the solver")
    parser.add_argument("--gradient-steps", type=int, default=4_000, help="of the fitted networks")
    parser.add_argument("--hidden", type=int, default=128, help="width of the fitted networks")
    parser.add_argument("--layers", type=int, default=3, help="hidden layers of the fitted networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the two files")
    options = parser.parse_args(arguments)
    if min(options.states, options.samples, options.solver_steps, options.gradient_steps) < 1 or options.atoms < 2:
        parser.error("--states, --samples, --solver-steps and --gradient-steps must be at least 1, --atoms at least 2")
    if (options.agent is None) != (options.dataset is None):
        parser.error("--agent and --dataset go together")
    torch.set_num_threads(1)
    if options.agent:
        agent = agent_class("LatentDiffuser").load(options.agent)
        observations = load_dataset(options.dataset).observations
        generator = torch.Generator().manual_seed(options.seed)
        chosen = torch.randint(len(observations), (options.states,), generator=generator)
        problems = atoms_of(agent, observations[chosen], options.atoms, options.seed)
    else:
        problems = [made_up_atoms(options.atoms, options.seed + i) for i in range(options.states)]
    cases = [(i, beta) for i in range(len(problems)) for beta in options.betas]
    rows = []
    for i, beta in tqdm(cases, desc="states and betas", disable=not sys.stderr.isatty()):
        latents, returns = problems[i]
        torch.manual_seed(options.seed)
        network = EnergyNet(
            1, latents.shape[1], options.hidden, options.layers, frequency_scale=FAST.energy_frequency_scale
        )
        sizes = {
            "n_samples": options.samples,
            "n_steps": options.solver_steps,
            "gradient_steps": options.gradient_steps,
        }
        rows.append({"state": i, **atomic_guidance(network, latents, returns, beta, **sizes, seed=options.seed)})
    result = {
        "schema": SCHEMA,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": provenance.source_commit(),
        "hardware": provenance.hardware(torch.device("cpu")),
        "versions": provenance.versions(),
        "agent": options.agent.stem if options.agent else None,
        "dataset": options.dataset,
        "rows": rows,
    }
    write_json(options.out / "atomic_guidance.json", result)
    page = table(json.loads((options.out / "atomic_guidance.json").read_text()))
    write_text(options.out / "atomic_guidance.md", page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
