"""From a name, a file or a repository of the Hugging Face Hub to an agent."""

import re
from typing import Any

from ld_agents import hub, zoo
from ld_agents.common import agent_file
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.zoo import load_file


def load(source: Any, **options: Any) -> OfflineAlgorithm:
    """Load an agent of whatever class. Executes nothing from what it reads.

    Args:
        source: the name of a pretrained agent (`ld_agents.pretrained()`), the path of a file that `save` wrote or a
            stream of one, or the id of a repository on the Hugging Face Hub such as "someone/ldcq-hopper". Names come
            before files, files before repositories.
        **options: of the agent's `load`: device, dataset, seed, env, verbose, tensorboard_log.

    Example:
        agent = ld_agents.load("ldcq-pointmaze-large")

    Raises:
        FileNotFoundError: there is no such agent, or the hub cannot be reached.
        ValueError: the file is damaged or holds an agent of a class that is not imported.
    """
    if isinstance(source, str):
        if (file := zoo.pretrained_file(source)) is not None:
            return load_file(file, **options)
        if agent_file.find(source) is None:
            if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.endswith(".zip"):
                try:
                    return load_from_hub(source, **options)
                except FileNotFoundError as error:
                    raise FileNotFoundError(f"There is no file {source!r}, nor {source + '.zip'!r}. {error}") from None
            names = ", ".join(card.name for card in zoo.pretrained()) or "none"
            raise FileNotFoundError(
                f"{source!r} is no file, no repository of the hub (owner/name) and no pretrained agent ({names})."
            )
    return load_file(source, **options)


def load_from_hub(
    repo_id: str, *, revision: str | None = None, token: str | None = None, **options: Any
) -> OfflineAlgorithm:
    """Load an agent that `push_to_hub` uploaded. At most a gigabyte is fetched, and kept in the hub's cache.

    Args:
        repo_id: such as "someone/ldcq-hopper".
        revision: branch, tag or commit; None: the newest.
        token: for private repositories; None: the one of `hf auth login`.
        **options: of the agent's `load`.
    """
    return load_file(hub.download(repo_id, revision=revision, token=token), **options)
