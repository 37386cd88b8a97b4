"""What Q-learning baselines learn from: single steps (s, a, r, s'), drawn uniformly."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ld_agents.data.dataset import OfflineDataset

STEPS_PER_BLOCK = 1000  # gradient steps whose indices are drawn at once


class Transitions:
    """The steps of a dataset, one per row of a single contiguous tensor: a batch is one gather.

    A terminal stops the bootstrap. A timeout does not: its step is left out where the final observation is unknown,
    and is a step like any other where it is known. That is also what D4RL's `qlearning_dataset` does, whose data know
    no final observations.

    Args:
        data: what an agent learns from, with observations and actions as the networks see them.
        rewards: used instead of the dataset's rewards, [N]; see `scaled_rewards`. None: the dataset's own.
        next_actions: add a', the action that the data take at s'. It is unknown after a timeout, and those steps are
            left out then. After a terminal it is zero: nothing is bootstrapped from there.

    Attributes:
        rows: [N', S + A + 1 + 1 + S], or [N', S + A + 1 + 1 + S + A] with `next_actions`. Columns: observation,
            action, reward, bootstrap mask (0 after a terminal, else 1), next observation, next action.

    Raises:
        ValueError: no step has a known successor.
    """

    def __init__(self, data: OfflineDataset, rewards: Tensor | None = None, *, next_actions: bool = False) -> None:
        # every step whose successor is known, or is not needed because the step ends in a terminal
        try:
            starts = data.window_starts(1).long()
        except ValueError as error:
            raise ValueError(
                "All episodes have one step, and what comes after it is unknown. Mark the steps as terminals if "
                "nothing does, or pass final_observations."
            ) from error
        if next_actions:
            cut = torch.zeros_like(data.terminals)
            cut[data.episode_ends - 1] = True
            starts = starts[~(cut & ~data.terminals)[starts]]
            if len(starts) == 0:
                raise ValueError(
                    "All episodes have one step, and the action after it is unknown. Mark the steps as terminals if "
                    "there is none, or take an agent that does not need next actions."
                )
        masks = 1 - data.terminals[starts].float()
        columns = [
            data.observations[starts],
            data.actions[starts],
            (data.rewards if rewards is None else rewards)[starts, None],
            masks[:, None],
            data.observation_rows[data.next_rows(starts, 1)],
        ]
        if next_actions:
            # the row after a terminal belongs to another episode, and after the last row there is none
            after = (starts + 1).clamp(max=data.n_steps - 1)
            columns.append(data.actions[after] * masks[:, None])
        self.rows = torch.cat(columns, dim=1)
        self.widths = [part.shape[1] for part in columns]

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
                indices = torch.randint(len(self.rows), shape, generator=generator, device=self.rows.device)
            batch = self.rows.index_select(0, indices[place]).split(self.widths, dim=1)
            observations, actions, rewards, masks, *after = batch
            yield observations, actions, rewards[:, 0], masks[:, 0], *after


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


def episode_returns(data: OfflineDataset, discount: float = 1.0) -> Tensor:
    """Sum of discount^t r_t over each episode, t counted from its beginning. Shape [E] float64."""
    episode = episode_of_steps(data)
    begins = torch.cat([data.episode_ends.new_zeros(1), data.episode_ends[:-1]])
    t = torch.arange(data.n_steps, device=episode.device) - begins[episode]
    returns = torch.zeros(data.n_episodes, dtype=torch.float64, device=episode.device)
    return returns.index_add_(0, episode, data.rewards * discount ** t.double())


def episode_of_steps(data: OfflineDataset) -> Tensor:
    """The number of the episode that each step belongs to. Shape [N] int64."""
    steps = torch.arange(data.n_steps, device=data.episode_ends.device)
    return torch.searchsorted(data.episode_ends, steps, right=True)
