"""Prioritised sampling (Schaul et al. 2016) in a few batched operations, whatever the number of items."""

import torch
from torch import Tensor

_GROUP = 128


class PrioritizedSampler:
    """Draws item i with probability p_i^alpha / sum p^alpha.

    A tree of two levels: items stand in groups of 128 whose sums are kept. A draw picks the groups from the cumulative
    sum of the N / 128 group sums, and the items from short cumulative sums within the picked groups, for the whole
    batch at once. An update renews the sums of the groups it touched.

    Args:
        priorities: starting p_i > 0. Shape [N].
        alpha: 0 draws uniformly, 1 in proportion to the priorities.
    """

    def __init__(self, priorities: Tensor, alpha: float) -> None:
        self.n_items = len(priorities)
        self.alpha = alpha
        n_groups = -(-self.n_items // _GROUP)
        self._items = torch.zeros(n_groups, _GROUP, device=priorities.device)  # p^alpha, padded with zeros
        self._items.view(-1)[: self.n_items] = self._power(priorities)
        self._sums = self._items.sum(1)  # [groups]

    def _power(self, priorities: Tensor) -> Tensor:
        # in float64: a float32 power depends in its last bit on how many are computed at once
        return (priorities.double() ** self.alpha).float()

    @property
    def weights(self) -> Tensor:
        """p_i^alpha. Shape [N]."""
        return self._items.view(-1)[: self.n_items]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws with replacement. Returns indices [n] int64 and their probabilities [n]."""
        # a number of its own for each level: one that is stretched over both would run out of bits
        uniform = torch.rand(2, n, 1, generator=generator, device=self._sums.device)
        group_ends = self._sums.cumsum(0, dtype=torch.float64)
        groups = torch.searchsorted(group_ends, uniform[0, :, 0] * group_ends[-1], right=True)
        groups = groups.clamp_(max=len(group_ends) - 1)
        item_ends = self._items.index_select(0, groups).cumsum_(1)  # [n, 128]
        items = torch.searchsorted(item_ends, uniform[1] * item_ends[:, -1:], right=True)[:, 0]
        # rounding can step behind the last item of a group, and onto the padding
        indices = items.clamp_(max=_GROUP - 1).add_(groups, alpha=_GROUP).clamp_(max=self.n_items - 1)
        return indices, self.weights.index_select(0, indices).div_(group_ends[-1].float())

    def update(self, indices: Tensor, priorities: Tensor) -> None:
        """Sets the priorities of some items. Shapes [n], [n]. For a repeated index one of its values is kept."""
        self.weights.index_copy_(0, indices, self._power(priorities))
        groups = indices // _GROUP
        self._sums.index_copy_(0, groups, self._items.index_select(0, groups).sum(1))
