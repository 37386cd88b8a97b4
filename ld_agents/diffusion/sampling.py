"""Diffusion without networks: noise schedules, the training loss, and one sampling loop for every solver.

Notation, as in DDPM and DPM-Solver. The discrete chain has steps j = 1..T; j = T is noise, j = 1 is almost clean. The
continuous schedule has a time tau in (0, 1]; tau = 1 is noise.

| here                | paper                                                  | continuous         |
| ------------------- | ------------------------------------------------------ | ------------------ |
| `alpha_bar[j]`      | product of (1 - beta_i) for i <= j                     |                    |
| `signal[j]`         | alpha_j = sqrt(alpha_bar_j)                            | `signal(tau)`      |
| `noise[j]`          | sigma_j = sqrt(1 - alpha_bar_j)                        | `noise(tau)`       |
| `snr[j]`            | alpha_bar_j / (1 - alpha_bar_j)                        | exp(`log_snr(tau)`)|
| `x0`                | the clean sample, predicted from x                     |                    |

Every solver works on a prediction of x0, so it is a chain of multiply-adds,

    x <- a x + b x0(x, time) + c x0(previous) + s N(0, I),

whose four numbers are worked out once (`solver_steps`, `vp_solver_steps`). Sampling is then one short loop (`sample`).
A network that predicts noise, and guidance, enter through `x0_from_noise`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Solver = Literal["ddpm", "ddim", "dpm++2m"]
VPSolver = Literal["ddim", "dpm++2m", "dpm++2s"]


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


@dataclass(frozen=True)
class VPSchedule:
    """The linear variance-preserving schedule in continuous time, beta(tau) = beta_0 + tau (beta_1 - beta_0).

    Song et al. 2021. Times tau lie in (0, 1], of any shape; all results are float64 of the same shape. Its two
    numbers are those of `linear_schedule` for an infinite T.
    """

    beta_0: float = 0.1
    beta_1: float = 20.0

    def log_signal(self, tau: Tensor) -> Tensor:
        """log alpha = -tau^2 (beta_1 - beta_0) / 4 - tau beta_0 / 2."""
        tau = tau.double()
        return -0.25 * tau**2 * (self.beta_1 - self.beta_0) - 0.5 * tau * self.beta_0

    def signal(self, tau: Tensor) -> Tensor:
        return self.log_signal(tau).exp()

    def noise(self, tau: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_signal(tau))).sqrt()

    def log_snr(self, tau: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2)."""
        return 2 * (self.log_signal(tau) - self.noise(tau).log())

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""
        x = torch.logaddexp(torch.zeros_like(log_snr), -log_snr)  # -2 log alpha
        return 2 * x / (self.beta_0 + (self.beta_0**2 + 2 * (self.beta_1 - self.beta_0) * x).sqrt())

    def add_noise(self, x0: Tensor, tau: Tensor, epsilon: Tensor) -> Tensor:
        """z_tau = alpha x0 + sigma epsilon. Shapes [B, ...], [B], [B, ...] -> [B, ...]; one tau for each row."""
        rows = (-1, *[1] * (x0.dim() - 1))
        signal, noise = self.signal(tau).to(x0.dtype).view(rows), self.noise(tau).to(x0.dtype).view(rows)
        return signal * x0 + noise * epsilon


def x0_from_noise(
    z: Tensor, epsilon: Tensor, signal: float, noise: float, gradient: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Predicted noise and guidance to predicted x0: (z - sigma epsilon) / alpha + scale sigma^2 / alpha gradient.

    By Tweedie's formula that is E[x0 | z] under the guided density, if `gradient` is that of the log ratio of the
    guided to the unguided density at z, as it is with exact guidance (`guidance.py`).

    Args:
        z: noisy sample.
        epsilon: noise that the network predicts at z; of the same shape, as is `gradient`.
        signal: alpha at the time of z.
        noise: sigma at the time of z.
        gradient: of the guidance, in z; None is no guidance.
        scale: of the guidance. Only 1 samples the guided density; others do not sample it at another temperature.
    """
    x0 = torch.sub(z, epsilon, alpha=noise)
    if gradient is not None:
        x0 = torch.add(x0, gradient, alpha=scale * noise**2)
    return x0 / signal


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
    """One step of a solver: evaluate x0 at `time`, then x <- a x + b x0 + c x0_previous + s noise."""

    time: float  # j of a discrete chain, tau of the continuous schedule
    a: float
    b: float
    c: float
    s: float

    @property
    def j(self) -> int:
        """The diffusion step of a discrete chain."""
        return int(self.time)


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
    signal, noise = schedule.signal[grid].tolist(), schedule.noise[grid].tolist()
    return _few_steps(grid, [*signal, 1.0], [*noise, 0.0], solver)


def vp_solver_steps(
    schedule: VPSchedule,
    n_steps: int,
    *,
    solver: VPSolver = "dpm++2m",
    grid: Literal["log-snr", "time"] = "log-snr",
    tau_end: float = 1e-3,
    final_denoise: bool = False,
) -> list[SolverStep]:
    """The coefficients of a whole chain in continuous time, from tau = 1 to `tau_end`.

    Args:
        schedule: the schedule the network was trained with.
        n_steps: network evaluations.
        solver: "ddim" (first order); "dpm++2m", multistep DPM-Solver++ of second order; "dpm++2s", its single-step
            form, whose middle points are those of the grid (Lu et al. 2022, algorithms 2 and 1).
        grid: of the times. Equally spaced in log SNR, or in tau, which is much less accurate with few steps.
        tau_end: where the chain ends.
        final_denoise: spend the last evaluation at `tau_end` on a clean sample, instead of ending with the little
            noise that is left there.
    """
    if solver not in ("ddim", "dpm++2m", "dpm++2s"):
        raise ValueError(f"Unknown solver {solver!r}. Use 'ddim', 'dpm++2m' or 'dpm++2s'.")
    if grid not in ("log-snr", "time"):
        raise ValueError(f"Unknown grid {grid!r}. Use 'log-snr' or 'time'.")
    if n_steps < 1 or not 0 < tau_end < 1:
        raise ValueError(f"n_steps must be at least 1 and tau_end in (0, 1), got {n_steps} and {tau_end}.")
    tau = torch.tensor([1.0, tau_end], dtype=torch.float64)
    first, last = (schedule.log_snr(tau) if grid == "log-snr" else tau).tolist()
    tau = torch.linspace(first, last, n_steps + (not final_denoise), dtype=torch.float64)
    if grid == "log-snr":
        tau = schedule.time(tau)
    signal, noise = schedule.signal(tau).tolist(), schedule.noise(tau).tolist()
    if final_denoise:
        signal, noise = [*signal, 1.0], [*noise, 0.0]
    return _few_steps(tau.tolist(), signal, noise, solver)


def _few_steps(
    times: Sequence[float], signal: list[float], noise: list[float], solver: Solver | VPSolver
) -> list[SolverStep]:
    """Steps along the points of a grid; one evaluation each, but none at the last point."""
    steps: list[SolverStep] = []
    previous_h = previous_weight = 0.0
    for k in range(len(signal) - 1):
        if noise[k + 1] == 0:  # to a clean sample: x becomes the prediction itself
            steps.append(SolverStep(times[k], 0.0, 1.0, 0.0, 0.0))
            break
        a = noise[k + 1] / noise[k]
        weight = signal[k + 1] - signal[k] * a
        h = _log_ratio(signal[k + 1], noise[k + 1]) - _log_ratio(signal[k], noise[k])
        b, c = weight, 0.0
        if solver == "dpm++2m" and k > 0:  # extrapolates x0 from the previous evaluation; the first step has none
            slope = h / previous_h / 2
            b, c = weight * (1 + slope), -weight * slope
        elif solver == "dpm++2s" and k % 2:  # undoes the half step before it, and makes the whole one
            whole = signal[k + 1] - signal[k - 1] * noise[k + 1] / noise[k - 1]
            share = (1 + h / previous_h) / 2
            b, c = whole * share, whole * (1 - share) - previous_weight * a
        steps.append(SolverStep(times[k], a, b, c, 0.0))
        previous_h, previous_weight = h, weight
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
        steps: from `solver_steps` or `vp_solver_steps`.
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
