"""Diffusion without networks: noise schedules, the training loss, and one sampling loop for every solver.

Notation, as in DDPM and DPM-Solver. Diffusion steps are j = 1..T; j = T is noise, j = 1 is almost clean.

| here                | paper                                                  |
| ------------------- | ------------------------------------------------------ |
| `alpha_bar[j]`      | product of (1 - beta_i) for i <= j                     |
| `signal[j]`         | alpha_j = sqrt(alpha_bar_j)                            |
| `noise[j]`          | sigma_j = sqrt(1 - alpha_bar_j)                        |
| `snr[j]`            | alpha_bar_j / (1 - alpha_bar_j)                        |
| `x0`                | the clean sample that the network predicts             |

Every network here predicts x0, so every solver is a chain of multiply-adds,

    x <- a x + b x0(x, j) + c x0(previous) + s N(0, I),

whose four numbers are worked out once (`solver_steps`). Sampling is then one short loop (`sample`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Solver = Literal["ddpm", "ddim", "dpm++2m"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The linear variance-preserving schedule. All arrays are float64 of shape [T + 1], indexed by j."""

    n_steps: int
    alpha_bar: Tensor
    beta: Tensor

    @property
    def signal(self) -> Tensor:
        return self.alpha_bar.sqrt()

    @property
    def noise(self) -> Tensor:
        return (1 - self.alpha_bar).sqrt()

    @property
    def snr(self) -> Tensor:
        return self.alpha_bar / (1 - self.alpha_bar)


def linear_schedule(n_steps: int, *, rescaled: bool = True) -> NoiseSchedule:
    """Linear betas from 1e-4 to 0.02 (Ho et al. 2020).

    Those two numbers were made for T = 1000. `rescaled=True` multiplies them by 1000 / T, so that the last step is
    noise for every T (alpha_bar_T = 4e-5). `rescaled=False` is what LDCQ's released code does: the same betas for
    every T, with entry 0 counted in the product. Its chain then ends far from noise (alpha_bar_100 = 0.364), and
    sampling from N(0, I) flattens the weights of the modes.

    Args:
        n_steps: T. At least 30 when rescaled, since beta_T = 20 / T must stay below 1.
        rescaled: see above.
    """
    if rescaled and n_steps < 30:
        raise ValueError(f"A rescaled linear schedule needs at least 30 diffusion steps, got {n_steps}.")
    scale = 1000 / n_steps if rescaled else 1.0
    beta = torch.zeros(n_steps + 1, dtype=torch.float64)
    beta[1:] = torch.linspace(1e-4 * scale, 0.02 * scale, n_steps, dtype=torch.float64)
    if not rescaled:
        beta = torch.linspace(1e-4, 0.02, n_steps, dtype=torch.float64)
        beta = torch.cat([beta[:1], beta])
    return NoiseSchedule(n_steps, torch.cumprod(1 - beta, 0), beta)


class Diffuser:
    """The forward process and the x0 loss of one schedule, as float32 tables on one device."""

    def __init__(self, schedule: NoiseSchedule, device: torch.device | str = "cpu") -> None:
        self.schedule = schedule
        self.signal = schedule.signal.float().to(device)
        self.noise = schedule.noise.float().to(device)
        self.snr = schedule.snr.clamp(max=1e12).float().to(device)

    def random_steps(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws j uniformly from {1..T}. Shape [n], int64."""
        return torch.randint(1, self.schedule.n_steps + 1, (n,), generator=generator, device=self.signal.device)

    def add_noise(self, x0: Tensor, j: Tensor, epsilon: Tensor) -> Tensor:
        """z_j = sqrt(alpha_bar_j) x0 + sqrt(1 - alpha_bar_j) epsilon. Shapes [B, D], [B], [B, D] -> [B, D]."""
        return self.signal[j, None] * x0 + self.noise[j, None] * epsilon

    def min_snr_loss(self, x0: Tensor, prediction: Tensor, j: Tensor, gamma: float) -> Tensor:
        """Mean over batch and dimensions of min(SNR_j, gamma) (x0 - prediction)^2 (Hang et al. 2023; LDCQ eq. 5)."""
        weight = self.snr[j].clamp(max=gamma)
        return (weight[:, None] * (x0 - prediction) ** 2).mean()


class SolverStep(NamedTuple):
    """One step of a solver: evaluate x0 at diffusion step `j`, then x <- a x + b x0 + c x0_previous + s noise."""

    j: int
    a: float
    b: float
    c: float
    s: float


def solver_steps(schedule: NoiseSchedule, solver: Solver, n_steps: int, *, extra_steps: int = 0) -> list[SolverStep]:
    """The coefficients of a solver's whole chain, from noise to a clean sample.

    Args:
        schedule: the schedule the network was trained with.
        solver: "ddpm", the full ancestral chain (variance beta_j); "ddim" (Song et al. 2021, eta = 0); "dpm++2m",
            second-order multistep DPM-Solver++ (Lu et al. 2022, algorithm 2).
        n_steps: network evaluations of a few-step solver. Ignored by "ddpm", which takes all T.
        extra_steps: "ddpm" only: further steps with j pinned to 1, as LDCQ's released code does.
    """
    if solver == "ddpm":
        return _ancestral_steps(schedule, extra_steps)
    if solver not in ("ddim", "dpm++2m"):
        raise ValueError(f"Unknown solver {solver!r}. Use 'ddpm', 'ddim' or 'dpm++2m'.")
    if not 1 <= n_steps <= schedule.n_steps:
        raise ValueError(f"n_steps must lie in 1..{schedule.n_steps} (the trained diffusion steps), got {n_steps}.")
    grid = _step_grid(schedule, n_steps)
    signal, noise = schedule.signal.tolist(), schedule.noise.tolist()
    steps: list[SolverStep] = []
    previous_h = 0.0
    for k, j in enumerate(grid):
        if k + 1 == len(grid):  # to a clean sample: sigma = 0, so x becomes the prediction itself
            steps.append(SolverStep(j, 0.0, 1.0, 0.0, 0.0))
            break
        to = grid[k + 1]
        a = noise[to] / noise[j]
        weight = signal[to] - signal[j] * a
        h = _log_ratio(signal[to], noise[to]) - _log_ratio(signal[j], noise[j])
        # extrapolates x0 from the previous evaluation; the first step has none
        slope = h / previous_h / 2 if solver == "dpm++2m" and k > 0 else 0.0
        steps.append(SolverStep(j, a, weight * (1 + slope), -weight * slope, 0.0))
        previous_h = h
    return steps


def _ancestral_steps(schedule: NoiseSchedule, extra_steps: int) -> list[SolverStep]:
    steps = []
    for j in [*range(schedule.n_steps, 0, -1), *([1] * extra_steps)]:
        beta, alpha_bar = float(schedule.beta[j]), float(schedule.alpha_bar[j])
        alpha = 1 - beta
        a = (1 - beta / (1 - alpha_bar)) / alpha**0.5
        b = beta * alpha_bar**0.5 / ((1 - alpha_bar) * alpha**0.5)
        steps.append(SolverStep(j, a, b, 0.0, beta**0.5 if j > 1 else 0.0))
    return steps


def _log_ratio(signal: float, noise: float) -> float:
    return float(torch.log(torch.tensor(signal / noise, dtype=torch.float64)))


def _step_grid(schedule: NoiseSchedule, n_steps: int) -> list[int]:
    """T = j_0 > j_1 > ... > j_{n-1} >= 1, equally spaced in log SNR, as DPM-Solver advises.

    Equal spacing in j leaves one huge last step in log SNR, where the second-order term overshoots.
    """
    log_snr = schedule.snr[1:].log()
    targets = torch.linspace(float(log_snr[-1]), float(log_snr[0]), n_steps, dtype=torch.float64)
    nearest = (log_snr - targets[:, None]).abs().argmin(1) + 1
    grid: list[int] = []
    for k, j in enumerate(nearest.tolist()):
        below_last = grid[-1] - 1 if grid else schedule.n_steps
        grid.append(max(min(j, below_last), n_steps - k))  # strictly falling, also where the schedule is coarse
    return grid


def sample(
    denoise: Callable[[Tensor, int], Tensor],
    steps: Sequence[SolverStep],
    start: Tensor,
    noise: Callable[[int], Tensor],
) -> Tensor:
    """Runs the chain of `steps`. No autograd, no host synchronisation.

    Args:
        denoise: predicts x0 from (x, k), where k is the position in `steps`. What depends on the step alone, such as
            a time embedding, can so be worked out for all steps before the loop.
        steps: from `solver_steps`.
        start: the noise that the chain starts from.
        noise: standard normal noise of the sample's shape, asked for by stochastic steps with k = 1..len(steps).
    """
    x = previous = start
    with torch.no_grad():
        for k, (_, a, b, c, s) in enumerate(steps):
            x0 = denoise(x, k)
            x = x0 * b if a == 0.0 else torch.add(x0 * b, x, alpha=a)
            if c:
                x = torch.add(x, previous, alpha=c)
            if s:
                x = torch.add(x, noise(k + 1), alpha=s)
            previous = x0
    return x
