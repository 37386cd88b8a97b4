"""Prioritised sampling (Schaul et al. 2016) in a few batched operations, whatever the number of items."""

import torch
from torch import Tensor

_FANOUT = 128


class PrioritizedSampler:
    """Draws item i with probability p_i^alpha / sum p^alpha, and updates priorities, in O(B log N) time.

    A sum tree whose nodes have 128 children: three levels hold two million items. A whole batch walks down together,
    so a draw is three gathers and three short cumulative sums.

    Args:
        priorities: starting p_i > 0. Shape [N].
        alpha: 0 draws uniformly, 1 in proportion to the priorities.
    """

    def __init__(self, priorities: Tensor, alpha: float) -> None:
        self.n_items = len(priorities)
        self.alpha = alpha
        level = priorities.to(torch.float32) ** alpha
        self._levels = []  # from the leaves up; each padded to whole groups of 128, shape [groups, 128]
        while True:
            groups = -(-len(level) // _FANOUT)
            padded = level.new_zeros(groups * _FANOUT)
            padded[: len(level)] = level
            self._levels.append(padded.view(groups, _FANOUT))
            if groups == 1:
                break
            level = self._levels[-1].sum(1)

    @property
    def weights(self) -> Tensor:
        """p_i^alpha. Shape [N]."""
        return self._levels[0].view(-1)[: self.n_items]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws with replacement. Returns indices [n] int64 and their probabilities [n]."""
        device = self._levels[0].device
        group = torch.zeros(n, dtype=torch.int64, device=device)
        # a fresh number per level: one float32 stretched over three levels would run out of bits
        uniform = torch.rand(len(self._levels), n, 1, generator=generator, device=device)
        total = self._levels[-1].sum()
        for level, u in zip(reversed(self._levels), uniform, strict=True):
            cumulative = level.index_select(0, group).cumsum(1)
            child = (cumulative <= u * cumulative[:, -1:]).sum(1).clamp_(max=_FANOUT - 1)
            group = group * _FANOUT + child
        # rounding can step onto an empty leaf behind the last item
        indices = group.clamp_(max=self.n_items - 1)
        return indices, self.weights[indices] / total

    def update(self, indices: Tensor, priorities: Tensor) -> None:
        """Sets the priorities of some items. Shapes [n], [n]. For a repeated index one of its values is kept."""
        self._levels[0].view(-1)[indices] = priorities.to(torch.float32) ** self.alpha
        group = indices
        for below, above in zip(self._levels[:-1], self._levels[1:], strict=True):
            group = group // _FANOUT
            above.view(-1)[group] = below.index_select(0, group).sum(1)
