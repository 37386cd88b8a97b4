"""From an `OfflineDataset` to a Minari dataset."""

from __future__ import annotations

from ld_agents.data.dataset import OfflineDataset
from ld_agents.data.storage import dataset_folder


def to_minari(dataset: OfflineDataset, dataset_id: str) -> None:
    """Store a dataset in the local Minari folder, so that `load_dataset(dataset_id)` gives the same content.

    Dictionaries are not built again: observations are stored flat, as agents learn from them.

    Args:
        dataset: what to store.
        dataset_id: such as "me/hopper-medium-v0".

    Raises:
        FileExistsError: there is a dataset of that id.
        ValueError: the id is malformed, or belongs to this package.
    """
    import gymnasium as gym
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    if dataset_id.startswith("ld-agents/"):
        raise ValueError(
            f"ld-agents/ is the namespace of the recipes of this project. Choose another id than {dataset_id}."
        )
    if dataset_folder(dataset_id).exists():
        raise FileExistsError(f"{dataset_folder(dataset_id)} exists. Choose another id, or delete it.")
    buffers, begin = [], 0
    for episode, end in enumerate(dataset.episode_ends.tolist()):
        rows = [*range(begin, end)]
        if bool(dataset._final_known[episode]):
            rows.append(dataset.n_steps + episode)
        terminals = dataset.terminals[begin:end].numpy()
        truncations = terminals & False
        truncations[-1] = not terminals[-1]
        buffers.append(
            EpisodeBuffer(
                observations=dataset.observation_rows[rows].numpy(),
                actions=dataset.actions[begin:end].numpy(),
                rewards=dataset.rewards[begin:end].numpy(),
                terminations=terminals,
                truncations=truncations,
            )
        )
        begin = end
    space, spec = dataset.observation_space, dataset.info.eval_env
    flat = spaces.flatten_space(space) if isinstance(space, spaces.Dict) else space
    env: gym.Env | None = dataset.make_eval_env() if spec is not None else None
    minimum, maximum = dataset.info.reference_scores or (None, None)
    minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        eval_env=env,
        observation_space=flat,
        action_space=dataset.action_space,
        ref_min_score=minimum,
        ref_max_score=maximum,
        description=dataset.info.description or f"Converted from {dataset.info.id}.",
    )
    if env is not None:
        env.close()
