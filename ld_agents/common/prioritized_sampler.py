"""Prioritized sampling (Schaul et al. 2016) in a few batched operations, whatever the number of items."""

import torch
from torch import Tensor

_GROUP = 128


class PrioritizedSampler:
    """Draws item i with probability p_i^alpha / sum p^alpha.

    An item that has never been updated stands at the highest priority of those that have, whatever that is by now
    (Schaul et al., algorithm 1), so that every item is seen before any is seen often. Nothing has to be rewritten when
    the highest changes, and the priorities alone are the state.

    A tree of two levels: items stand in groups of 128 whose sums are kept. A draw picks the groups from the cumulative
    sum of the N / 128 group sums, and the items from short cumulative sums within the picked groups, for the whole
    batch at once. An update renews the sums of the groups it touched.

    Args:
        priorities: starting p_i >= 0, infinite for items that have not been seen yet. Shape [N].
        alpha: 0 draws uniformly, 1 in proportion to the priorities.
    """

    def __init__(self, priorities: Tensor, alpha: float) -> None:
        self.n_items = len(priorities)
        self.alpha = alpha
        n_groups = -(-self.n_items // _GROUP)
        # p^alpha, padded with zeros; -1 where an item has not been seen
        self._items = torch.zeros(n_groups, _GROUP, device=priorities.device)
        unseen = priorities.isinf()
        self._items.view(-1)[: self.n_items] = self._power(priorities.masked_fill(unseen, 1.0)).masked_fill(unseen, -1)
        self._sums, self._tops, self._n_unseen = self._of_groups(self._items)  # [groups]

    def _power(self, priorities: Tensor) -> Tensor:
        # in float64: a float32 power depends in its last bit on how many are computed at once
        return (priorities.double() ** self.alpha).float()

    def _of_groups(self, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum and maximum of the seen items, and the number of the others. Shapes [n, 128] -> three of [n]."""
        return items.clamp(min=0).sum(1), items.amax(1), (items < 0).sum(1)

    def _highest(self) -> Tensor:
        """p^alpha of an item that has not been seen. Shape []."""
        highest = self._tops.amax()
        return torch.where(highest > 0, highest, 1.0)

    @property
    def weights(self) -> Tensor:
        """p_i^alpha. Shape [N]."""
        items = self._items.view(-1)[: self.n_items]
        return torch.where(items < 0, self._highest(), items)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws with replacement. Returns indices [n] int64 and their probabilities [n]."""
        # a number of its own for each level: one that is stretched over both would run out of bits
        uniform = torch.rand(2, n, 1, generator=generator, device=self._sums.device)
        highest = self._highest()
        group_ends = (self._sums + self._n_unseen * highest).cumsum(0, dtype=torch.float64)
        groups = torch.searchsorted(group_ends, uniform[0, :, 0] * group_ends[-1], right=True)
        groups = groups.clamp_(max=len(group_ends) - 1)
        weights = self._items.index_select(0, groups)  # [n, 128]
        weights = torch.where(weights < 0, highest, weights)
        item_ends = weights.cumsum(1)
        items = torch.searchsorted(item_ends, uniform[1] * item_ends[:, -1:], right=True)
        # rounding can step behind the last item of a group, and onto the padding
        last = self.n_items - 1 - _GROUP * groups[:, None]
        items = torch.minimum(items, last.clamp_(max=_GROUP - 1))
        probabilities = weights.gather(1, items)[:, 0] / group_ends[-1].float()
        return items[:, 0] + _GROUP * groups, probabilities

    def update(self, indices: Tensor, priorities: Tensor) -> None:
        """Sets the priorities of some items. Shapes [n], [n]. For a repeated index one of its values is kept."""
        self._items.view(-1).index_copy_(0, indices, self._power(priorities))
        groups = indices // _GROUP
        renewed = self._of_groups(self._items.index_select(0, groups))
        for kept, values in zip((self._sums, self._tops, self._n_unseen), renewed, strict=True):
            kept.index_copy_(0, groups, values)
