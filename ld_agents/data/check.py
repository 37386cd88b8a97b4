"""What a dataset was understood as, and what looks wrong with it: `print(check_dataset(data))` before training."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.load import load_dataset
from ld_agents.data.returns import episode_returns
from ld_agents.evaluation import scores

_COLUMNS = 12  # that are listed one by one
_PAIRS = 10_000  # of rows that are compared


@dataclass(frozen=True)
class DatasetReport:
    """What `check_dataset` found; as text, one line each.

    Attributes:
        facts: what was understood, by topic.
        errors: why nothing can be learned from the data; empty if something can.
        warnings: what looks wrong, and what to do.
    """

    facts: dict[str, str]
    errors: list[str]
    warnings: list[str]

    def __str__(self) -> str:
        lines = [f"{name:<14}{text}" for name, text in self.facts.items()]
        lines += [f"error: {text}" for text in self.errors]
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines if self.errors or self.warnings else [*lines, "Nothing looks wrong."])


def check_dataset(source: Any, **options: Any) -> DatasetReport:
    """Describe a dataset, and what looks wrong with it. Data that nothing can be learned from are reported, not raised.

    Args:
        source: an `OfflineDataset`, or whatever `load_dataset` takes.
        options: of `load_dataset`, such as `env`.

    Raises:
        FileNotFoundError: there is no such dataset.
    """
    errors: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            data = load_dataset(source, **options)
        except (ValueError, TypeError) as error:
            errors.append(str(error))
    told = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    if errors:
        return DatasetReport({}, errors, told)
    return DatasetReport(_facts(data), [], list(dict.fromkeys([*told, *_suspicions(data)])))


def _facts(data: OfflineDataset) -> dict[str, str]:
    lengths, terminals = _lengths(data), int(data.terminals.sum())
    known = int(data._final_known.sum())
    rewards, returns = data.rewards.numpy(), episode_returns(data).numpy()
    info, family = data.info, scores.family(data.info.id)
    facts = {
        "dataset": f"{info.id} ({info.provenance}){f', settings of the family {family}' if family else ''}",
        "steps": f"{data.n_steps:,} in {data.n_episodes:,} episodes of {_range(lengths)} steps, median "
        f"{np.median(lengths):g}",
        "ends": f"{terminals:,} terminals, {data.n_episodes - terminals:,} timeouts",
        "last states": f"known after {known:,} of {data.n_episodes:,} episodes",
        "observations": "frames of {} x {} pixels, {} channels, uint8".format(*data.observation_rows.shape[1:])
        if data.has_frames
        else f"{data.observation_dim} numbers, {_range(data.observations.numpy())}",
        "actions": f"{data.action_dim} numbers, {_range(data.actions.numpy())}, in {data.action_space}",
        "rewards": f"{_range(rewards)}, mean {rewards.mean():.4g}, {100 * (rewards != 0).mean():.3g} % not zero",
        "returns": f"{_range(returns)}, mean {returns.mean():.4g} per episode",
        "environment": info.eval_env.id if info.eval_env else "none: evaluate(agent, env) needs one",
    }
    for name, columns in _columns(data).items():
        for i, column in enumerate(columns.T[:_COLUMNS]):
            facts[f"{name[:-1]} {i}"] = (
                f"{_range(column)}, mean {column.mean(dtype=float):.4g}, std {column.std(dtype=float):.4g}"
            )
    return facts


def _suspicions(data: OfflineDataset) -> list[str]:
    found: list[str] = []
    actions, lengths, ends = data.actions.numpy(), _lengths(data), data.episode_ends - 1
    if data.n_episodes == 1 and data.n_steps > 1:
        found.append(
            "All rows are one episode. If the environment was reset in between, mark the last row of each episode in "
            "timeouts, or windows run across resets."
        )
    elif data.terminals[ends[:-1]].all() and data.n_episodes > 1 and lengths[-1] > 2 * lengths[:-1].max():
        found.append("Only terminals end an episode, and a long piece has none. Are timeouts all false?")
    elif not data.terminals.any() and len(set(lengths[:-1])) > 1:
        found.append(
            "No episode ends in a terminal, yet their lengths differ. If the environment ended them for good (a fall, "
            "a goal), mark those rows in terminals."
        )
    for name, array in _columns(data).items():
        if constant := np.flatnonzero(array.min(0) == array.max(0)).tolist():
            found.append(f"Columns of {name} that never change: {constant}.")
    low, high = data.action_space.low, data.action_space.high
    if data.action_dim == 1 and (actions == np.rint(actions)).all() and len(np.unique(actions[:_PAIRS])) > 1:
        found.append("All actions are whole numbers in one column. No agent here learns from discrete actions.")
    elif (used := (actions.max(0) - actions.min(0)) / np.maximum(high - low, 1e-12)).max() < 0.1:
        found.append(
            f"Actions use {100 * used.max():.2g} % of the action space [{low.min():g}, {high.max():g}]. Are they in "
            "its units?"
        )
    bound = (np.abs(actions) >= np.where(actions > 0, high, -low) - 1e-5).mean()
    if bound > 0.5:
        found.append(f"{100 * bound:.0f} % of the actions lie at the bounds of the action space: were they clipped?")
    if data.n_steps > 1 and data.rewards.min() == data.rewards.max():
        found.append(f"All rewards are {float(data.rewards[0]):g}: there is nothing to prefer.")
    paid = np.abs(data.rewards.numpy()[data.rewards.numpy() != 0])
    if len(paid) and not 1e-3 <= (size := float(paid.mean())) <= 1e3:
        found.append(
            f"Rewards are of the size {size:.2g}. LDCQ and LatentDiffuser scale them by themselves; give the others "
            f"reward_scale={1 / size:.1g}, or they learn at another pace than they were tuned for."
        )
    if (short := (lengths == 1).mean()) > 0.5 and data.n_episodes > 1:
        found.append(f"{100 * short:.0f} % of the episodes are one step long. Are the flags those of ends?")
    if not data.has_frames and _shuffled(data):
        found.append(
            "Consecutive observations differ as much as random ones. Rows must be in the order of time, one episode "
            "after the other."
        )
    return found


def _columns(data: OfflineDataset) -> dict[str, NDArray[Any]]:
    """What is looked at column by column, [N, .]: not the pixels of frames."""
    observations = {} if data.has_frames else {"observations": data.observations.numpy()}
    return {**observations, "actions": data.actions.numpy()}


def _shuffled(data: OfflineDataset) -> bool:
    """Whether steps of an episode are as far apart as rows drawn at random, in standard deviations."""
    inside = np.setdiff1d(np.arange(data.n_steps - 1), data.episode_ends.numpy() - 1)
    if len(inside) < 100:
        return False
    rng, rows = np.random.default_rng(0), data.observations.numpy()
    rows = rows / np.maximum(rows.std(0, dtype=float), 1e-6)
    first = rng.choice(inside, _PAIRS)
    step = np.abs(rows[first + 1] - rows[first]).mean()
    apart = np.abs(rows[rng.choice(data.n_steps, _PAIRS)] - rows[first]).mean()
    return bool(step > 0.9 * apart)


def _lengths(data: OfflineDataset) -> NDArray[np.int64]:
    return np.diff(data.episode_ends.numpy(), prepend=0)


def _range(values: NDArray[Any]) -> str:
    return f"{values.min():.4g} to {values.max():.4g}"
