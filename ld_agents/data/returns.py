"""Returns and statistics of recorded steps."""

import torch
from torch import Tensor

from ld_agents.data.dataset import OfflineDataset

_ROWS_PER_BLOCK = 262_144


def returns_to_go(rewards: Tensor, episode_ends: Tensor, discount: float) -> Tensor:
    """G_t = r_t + discount r_{t+1} + ... to the end of the episode, reward of step t included.

    Sums over 1, 2, 4, 8, ... steps, each from the one before it: as many passes as the longest episode has binary
    digits. A timeout ends the sum like a terminal does.

    Args:
        rewards: [rows].
        episode_ends: exclusive end row of each episode, [E] int64.
        discount: gamma, per environment step.

    Returns:
        [rows], of the type of `rewards`; summed in float64.
    """
    lengths = episode_ends.diff(prepend=episode_ends.new_zeros(1))
    ends = episode_ends.repeat_interleave(lengths)
    rows = torch.arange(len(rewards), device=rewards.device)
    returns, span, longest = rewards.double(), 1, int(lengths.max())
    while span < longest:
        later = returns[(rows + span).clamp(max=len(rewards) - 1)]
        returns = returns + discount**span * torch.where(rows + span < ends, later, 0.0)
        span *= 2
    return returns.to(rewards.dtype)


def episode_returns(data: OfflineDataset, discount: float = 1.0, ends: Tensor | None = None) -> Tensor:
    """Sum of discount^t r_t over each episode (or what ends at `ends`), t counted from its start. Shape [E] float64."""
    ends = data.episode_ends if ends is None else ends
    episode = episode_of_steps(data, ends)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    t = torch.arange(data.n_steps, device=episode.device) - begins[episode]
    returns = torch.zeros(len(ends), dtype=torch.float64, device=episode.device)
    return returns.index_add_(0, episode, data.rewards * discount ** t.double())


def episode_of_steps(data: OfflineDataset, ends: Tensor | None = None) -> Tensor:
    """The number of the episode that each step belongs to, or of what ends at `ends` [E]. Shape [N] int64."""
    ends = data.episode_ends if ends is None else ends
    return torch.searchsorted(ends, torch.arange(data.n_steps, device=ends.device), right=True)


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each column, summed in float64 without a copy of the whole. Shapes [N, S] -> [S], [S].

    Where float32 sums are right to 1e-4 of the spread they are taken: trainings with a seed keep every bit they had.
    """
    blocks = rows.split(_ROWS_PER_BLOCK)
    mean = sum((block.sum(0, dtype=torch.float64) for block in blocks), torch.zeros(())) / len(rows)
    squares = sum(((block - mean).square().sum(0) for block in blocks), torch.zeros(()))
    std = (squares / len(rows)).sqrt()
    short = rows.mean(0), rows.std(0, correction=0)
    right = ((short[0] - mean).abs() <= 1e-4 * std) & ((short[1] - std).abs() <= 1e-4 * std)
    return torch.where(right, short[0].double(), mean), torch.where(right, short[1].double(), std)
