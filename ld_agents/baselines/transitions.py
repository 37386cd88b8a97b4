"""What Q-learning baselines learn from: single steps (s, a, r, s'), drawn uniformly."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.returns import episode_returns

STEPS_PER_BLOCK = 1000  # gradient steps whose indices are drawn at once
_STEPS_PER_GATHER = 50  # gradient steps whose rows are copied at once

Read = Callable[[Tensor], Tensor]  # rows [...] -> [..., S] or [..., A]


class Transitions:
    """The steps of a dataset that Q-learning learns from. Nothing is copied but batches.

    A terminal stops the bootstrap. A timeout does not: its step is left out where the final observation is unknown,
    and is a step like any other where it is known. That is also what D4RL's `qlearning_dataset` does, whose data know
    no final observations.

    Args:
        data: what an agent learns from.
        rewards: used instead of the dataset's rewards, [N]; see `scaled_rewards`. None: the dataset's own.
        states, actions: observations and actions as the networks see them: `OfflineAlgorithm.states`, `.actions`.
        next_actions: add a', the action that the data take at s'. It is unknown after a timeout, and those steps are
            left out then. After a terminal it is zero: nothing is bootstrapped from there.

    Attributes:
        starts: rows of the steps, [N'] int32.

    Raises:
        ValueError: no step has a known successor.
    """

    def __init__(
        self,
        data: OfflineDataset,
        rewards: Tensor | None = None,
        *,
        states: Read,
        actions: Read,
        next_actions: bool = False,
    ) -> None:
        self.data, self.states, self.actions, self.next_actions = data, states, actions, next_actions
        self.rewards = data.rewards if rewards is None else rewards
        # every step whose successor is known, or is not needed because the step ends in a terminal
        try:
            self.starts = data.window_starts(1)
        except ValueError as error:
            raise ValueError(
                "All episodes have one step, and what comes after it is unknown. Mark the steps as terminals if "
                "nothing does, or pass final_observations."
            ) from error
        if next_actions:
            kept = torch.ones_like(data.terminals)
            kept[data.episode_ends - 1] = data.terminals[data.episode_ends - 1]
            self.starts = self.starts[kept[self.starts]]
            if len(self.starts) == 0:
                raise ValueError(
                    "All episodes have one step, and the action after it is unknown. Mark the steps as terminals if "
                    "there is none, or take an agent that does not need next actions."
                )

    def __len__(self) -> int:
        return len(self.starts)

    def batches(
        self, steps: range, batch_size: int, generator_for: Callable[[str], torch.Generator]
    ) -> Iterator[tuple[Tensor, ...]]:
        """One batch per gradient step, drawn with replacement.

        What a gradient step draws depends on its number alone, so that a resumed run draws the same.

        Args:
            steps: the numbers of the gradient steps; see `OfflineAlgorithm.remaining_steps`.
            batch_size: B.
            generator_for: gives the generator of a purpose; see `OfflineAlgorithm.derived_generator`.

        Yields:
            observations [B, S], actions [B, A], rewards [B], masks [B], next observations [B, S], and next actions
            [B, A] if the transitions have them.
        """
        for step in steps:
            block, place = divmod(step, STEPS_PER_BLOCK)
            if place == 0 or step == steps[0]:
                generator, shape = generator_for(f"batches {block}"), (STEPS_PER_BLOCK, batch_size)
                indices = torch.randint(len(self), shape, generator=generator, device=self.starts.device)
            place, column = divmod(place, _STEPS_PER_GATHER)
            if column == 0 or step == steps[0]:
                gathered = self.gather(indices[place * _STEPS_PER_GATHER : (place + 1) * _STEPS_PER_GATHER])
            yield tuple(part[column] for part in gathered)

    def gather(self, indices: Tensor) -> list[Tensor]:
        """The columns of some steps, in the order of `batches`. Shapes [...] -> [..., S], [..., A], [...], ..."""
        data, rows = self.data, self.starts[indices].long()
        masks = 1 - data.terminals[rows].float()
        columns = [
            self.states(rows),
            self.actions(rows),
            self.rewards[rows],
            masks,
            self.states(data.next_rows(rows, 1)),
        ]
        if self.next_actions:
            # the row after a terminal belongs to another episode, and after the last row there is none
            columns.append(self.actions((rows + 1).clamp(max=data.n_steps - 1)) * masks[..., None])
        return columns


def scaled_rewards(data: OfflineDataset, scale: float, shift: float, by_return_range: bool = False) -> Tensor:
    """The rewards that published settings learn from: scale * r + shift. Shape [N].

    Args:
        data: the dataset.
        scale, shift: AntMaze is learned with r - 1 (`shift` -1: IQL, CQL) or with 100 r (`scale` 100: ReBRAC).
        by_return_range: first divide by the difference of the highest and the lowest return of an episode, and
            multiply by 1000, as IQL does for locomotion (Kostrikov et al. 2021, arXiv 2110.06169).

    Raises:
        ValueError: all episodes have the same return, so that there is nothing to divide by.
    """
    rewards = data.rewards
    if by_return_range:
        returns = episode_returns(data)
        difference = float(returns.max() - returns.min())
        if difference == 0:
            raise ValueError("All episodes have the same return: there is nothing to normalize the rewards by.")
        rewards = rewards * (1000 / difference)
    return scale * rewards + shift
