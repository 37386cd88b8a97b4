"""Agents on the Hugging Face Hub: one safetensors-based file with a model card. Nothing that is fetched is executed."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ld_agents import zoo
from ld_agents.common.offline_algorithm import OfflineAlgorithm
from ld_agents.evaluation.rollouts import Evaluation

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

AGENT_FILE, VIDEO_FILE = "agent.zip", "video.mp4"
MAX_BYTES = 1 << 30
MAX_FILES = 1000  # of a repository

_CARD = """---
{metadata}
---

# {agent} on {dataset}

An agent of [ld_agents](https://pypi.org/project/ld-agents/), trained offline on `{dataset}` (content hash
`{hash}`), preset `{preset}`, seed {seed}, {steps:,} gradient steps.

```python
import ld_agents

agent = ld_agents.load("{repo_id}")
action, state = agent.predict(observation, deterministic=True)
```

The file holds JSON and safetensors; loading it executes nothing.

## Scores

{scores}
{video}
## Settings

Those that differ from the preset:

```json
{settings}
```
"""


def download(
    repo_id: str, *, revision: str | None = None, token: str | None = None, max_bytes: int = MAX_BYTES
) -> Path:
    """Fetch the file of an agent into the hub's cache, or find it there. Its size is checked before.

    Raises:
        FileNotFoundError: the hub does not deliver it.
        ValueError: the repository holds no agent, or more than `max_bytes` or a thousand files.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
    except Exception as error:
        raise _not_delivered(repo_id, error) from error
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    if AGENT_FILE not in sizes:
        raise ValueError(
            f"{repo_id} has no {AGENT_FILE}: it is not an agent that push_to_hub uploaded. Download its files and give "
            "their path, if they are of ld_agents."
        )
    size = sizes[AGENT_FILE]
    if len(sizes) > MAX_FILES or size is None or size > max_bytes:
        raise ValueError(
            f"{repo_id} holds {len(sizes)} files and an agent of {size} bytes; the limits are {MAX_FILES} and "
            f"{max_bytes:,}. If you trust it, download the agent yourself and give its path."
        )
    try:
        path = Path(api.hf_hub_download(repo_id, AGENT_FILE, revision=info.sha))
    except Exception as error:
        raise _not_delivered(repo_id, error) from error
    if path.stat().st_size != size:
        raise ValueError(f"{path} has {path.stat().st_size} bytes instead of {size}. Delete it and try again.")
    return path


def _not_delivered(repo_id: str, error: Exception) -> FileNotFoundError:
    reason = (str(error).strip().splitlines() or [""])[0]
    return FileNotFoundError(
        f"The hub did not deliver {repo_id} ({type(error).__name__}: {reason}). Check the id, and for a private "
        "repository `hf auth login`."
    )


def push_to_hub(
    agent: OfflineAlgorithm,
    repo_id: str,
    *,
    evaluation: Evaluation | None = None,
    video: str | Path | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload agent",
) -> str:
    """Upload an agent with a model card to the Hugging Face Hub, and return the address of its repository.

    Args:
        agent: what to upload.
        repo_id: such as "someone/ldcq-hopper"; made if it does not exist.
        evaluation: of `ld_agents.evaluate` in the environment of the agent's dataset; its scores go into the card.
        video: an mp4 that goes with it (`ld_agents.rendering.record_video`).
        private: of a repository that is made.
        token: None: the one of `hf auth login`.
        commit_message: of the upload.

    Example:
        ld_agents.push_to_hub(agent, "someone/ldcq-hopper", evaluation=evaluate(agent, make_env, 100, seed=0))
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agent.save(folder / AGENT_FILE)
        if video is not None:
            shutil.copy(video, folder / VIDEO_FILE)
        card = model_card(agent, repo_id, evaluation, with_video=video is not None)
        (folder / "README.md").write_text(card, encoding="utf-8")
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    return f"{api.endpoint}/{repo_id}"


def model_card(
    agent: OfflineAlgorithm, repo_id: str, evaluation: Evaluation | None = None, *, with_video: bool = False
) -> str:
    """The text of a model card: metadata with a valid model index, dataset, code to load, scores with intervals."""
    from huggingface_hub import ModelCardData

    identity = agent._dataset_identity
    dataset, name = str(identity.get("id")), type(agent).__name__
    rows = [] if evaluation is None else _scores(agent, evaluation)
    data = ModelCardData(
        library_name="ld-agents",
        pipeline_tag="reinforcement-learning",
        tags=["reinforcement-learning", "offline-reinforcement-learning", name],
        model_name=name,
        eval_results=[_result(dataset, *row) for row in rows] or None,
    )
    table = ["| metric | mean | 95 % interval | episodes |", "| --- | --- | --- | --- |"]
    table += [f"| {metric} | {mean:.2f} | [{low:.2f}, {high:.2f}] | {n} |" for _, metric, mean, (low, high), n in rows]
    note = "\nOne training; the interval is over its episodes (bootstrap)."
    return _CARD.format(
        metadata=data.to_yaml(),
        agent=name,
        dataset=dataset,
        hash=str(identity.get("hash"))[:16],
        preset=agent.preset,
        seed=agent.seed,
        steps=agent.num_timesteps,
        repo_id=repo_id,
        scores="\n".join(table) + "\n" + note if rows else "Not evaluated.",
        video=f"\n![Seeded episodes]({VIDEO_FILE})\n" if with_video else "",
        settings=json.dumps(zoo.chosen_settings(agent), indent=1),
    )


Row = tuple[str, str, float, tuple[float, float], int]  # type and name of the metric, mean, interval, episodes


def _scores(agent: OfflineAlgorithm, evaluation: Evaluation) -> list[Row]:
    n, ends = len(evaluation.returns), evaluation.interval()
    rows: list[Row] = [("mean_reward", "mean return", float(np.mean(evaluation.returns)), ends, n)]
    scores = zoo.scores(agent, [rows[0][2], *ends])
    if scores is not None:
        rows.append(("d4rl_score", "D4RL score", float(scores[0]), (float(scores[1]), float(scores[2])), n))
    return rows


def _result(dataset: str, metric: str, name: str, mean: float, interval: tuple[float, float], n: int) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="reinforcement-learning",
        task_name="offline reinforcement learning",
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=metric,
        metric_name=name,
        metric_value=round(mean, 4),
        metric_args={"interval_95": [round(end, 4) for end in interval], "episodes": n},
        verified=False,
    )
