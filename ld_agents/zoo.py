"""The pretrained agents that come with the package, and what evaluates a saved agent without its dataset."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ld_agents.common import agent_file
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.minari import local_info
from ld_agents.data.storage import is_minari_id
from ld_agents.evaluation.scores import normalise

FOLDER = Path(__file__).with_name("pretrained")


@dataclass(frozen=True)
class Card:
    """What is known of a pretrained agent: `benchmarks/make_pretrained.py` writes it.

    Attributes:
        name: what `ld_agents.load` takes.
        agent: name of its class.
        dataset, dataset_hash: what it learned from.
        seed, preset, settings: how it was trained; settings hold what differs from the preset.
        returns: undiscounted returns of the evaluation, one per episode.
        evaluation_seed: of `ld_agents.evaluate`, whose first episodes these are.
        reference_scores: returns of 0 and 100 points; None where D4RL's scale does not apply.
        score, interval: mean D4RL score of the episodes with its 95 % bootstrap interval; without reference scores,
            mean return. One training: the spread between trainings is not in it.
        sha256, bytes: of the file.
        commit: of the sources that evaluated it and wrote the file.
    """

    name: str
    agent: str
    dataset: str
    dataset_hash: str
    seed: int
    preset: str
    settings: dict[str, Any]
    returns: list[float]
    evaluation_seed: int
    reference_scores: list[float] | None
    score: float
    interval: list[float]
    sha256: str
    bytes: int
    commit: str | None

    def __str__(self) -> str:
        unit = "mean return" if self.reference_scores is None else "D4RL score"
        low, high = self.interval
        return (
            f"{self.name}: {self.agent} on {self.dataset}, {unit} {self.score:.1f} [{low:.1f}, {high:.1f}] "
            f"over {len(self.returns)} episodes"
        )


def pretrained(folder: Path = FOLDER) -> list[Card]:
    """The agents that come with the package; `ld_agents.load(card.name)` loads one."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return []
    cards: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    return [Card(name, **card) for name, card in cards.items()]


def pretrained_file(name: str, folder: Path = FOLDER) -> Path | None:
    """The file of a pretrained agent; None if none has that name.

    Raises:
        ValueError: the file is not what its card says.
    """
    card = next((card for card in pretrained(folder) if card.name == name), None)
    if card is None:
        return None
    path = folder / f"{name}.zip"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != card.sha256:
        raise ValueError(f"{path} is missing or not the file that its card describes. Install ld_agents again.")
    return path


def agent_class(name: Any) -> type[OfflineAlgorithm]:
    """The class of agents of that name: of this package, or of your own once its module is imported.

    Raises:
        ValueError: there is none.
    """
    classes: list[Any] = [OfflineAlgorithm]
    for cls in classes:
        classes += cls.__subclasses__()
    known = {cls.__name__: cls for cls in reversed(classes) if not inspect.isabstract(cls)}  # ours before a namesake
    if name not in known:
        raise ValueError(f"There is no agent {name!r}. Known: {', '.join(sorted(known))}; import an own one's module.")
    found: type[OfflineAlgorithm] = known[name]
    return found


def policy_for(dataset: OfflineDataset) -> str:
    """The name of the policy that the observations of a dataset need."""
    if dataset.has_frames:
        return "CnnPolicy"
    return "MultiInputPolicy" if isinstance(dataset.observation_space, spaces.Dict) else "MlpPolicy"


def load_file(path: Any, **options: Any) -> OfflineAlgorithm:
    """The agent in a file that `save` wrote, or in a stream, whatever its class."""
    return agent_class(agent_file.read(path)[0].get("class")).load(path, **options)


def chosen_settings(agent: OfflineAlgorithm) -> dict[str, Any]:
    """The settings that are not the preset's, as they are stored."""
    settings = agent.config()["settings"]
    return {key: settings[key] for key, origin in agent.settings_origin.items() if origin != "preset"}


def scores(agent: OfflineAlgorithm, returns: Any) -> NDArray[np.float64] | None:
    """D4RL scores of returns [E]; None where the scale does not apply, or it is not known whether it does.

    Datasets that ld_agents makes prove that it does by a check that is stored with the data: the agent's dataset, or
    the copy on this machine, is asked, or the card of a pretrained agent that learned from the same data.
    """
    identity = agent._dataset_identity
    dataset_id = str(identity.get("id"))
    for card in pretrained():
        if card.reference_scores is not None and card.dataset_hash == identity.get("hash"):
            low, high = card.reference_scores
            return 100 * (np.asarray(returns) - low) / (high - low)
    info = agent.dataset.info if agent.dataset is not None else None
    if info is None and is_minari_id(dataset_id):
        info = local_info(dataset_id)
    try:
        return normalise(returns, dataset_id, None if info is None else info.replay_check)
    except (KeyError, ValueError):
        return None
