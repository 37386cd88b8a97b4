"""Make an agent that comes with the package: shrink a trained one, evaluate it as it is shipped, write it and its card.

    python benchmarks/make_pretrained.py ldcq-pointmaze-large results/maze2d/models/LDCQ__...__seed0.zip

The file keeps what acting needs, with matrices in half precision; the card goes into
`ld_agents/pretrained/manifest.json`. Nothing is replaced before the evaluation is over.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import provenance
from files import write_json
from ld_agents import evaluate, zoo
from ld_agents.common.inference_file import save_for_inference
from ld_agents.data.minari import local_info
from ld_agents.data.storage import whole
from ld_agents.evaluation.scores import normalise

EVALUATION_SEED = 7_000_000
N_ENVS = 25


def make(name: str, source: Path, episodes: int, folder: Path) -> zoo.Card:
    """Shrink, evaluate and write one agent.

    Raises:
        ValueError: its dataset is not on this machine, so nothing tells whether D4RL's scale applies.
    """
    trained = zoo.load_file(source, device="cpu")
    identity = trained._dataset_identity
    info = local_info(identity["id"])
    if info is None:
        raise ValueError(f"{identity['id']} is not on this machine; its replay check and reference scores are needed.")
    with tempfile.TemporaryDirectory() as place:
        small = Path(place) / f"{name}.zip"
        save_for_inference(trained, small)
        content = small.read_bytes()
        agent = zoo.load_file(small, device="cpu")
    outcome = evaluate(agent, agent.eval_env_spec().make, episodes, seed=EVALUATION_SEED, n_envs=N_ENVS)
    passed = info.reference_scores is not None and (info.replay_check or {}).get("passed") is True
    ends = [float(np.mean(outcome.returns)), *outcome.interval()]
    points = normalise(ends, identity["id"], info.replay_check).tolist() if passed else ends
    card = zoo.Card(
        name=name,
        agent=type(agent).__name__,
        dataset=identity["id"],
        dataset_hash=identity["hash"],
        seed=int(trained.seed or 0),
        preset=trained.preset,
        settings=json.loads(json.dumps(zoo.chosen_settings(trained))),  # tuples as the manifest returns them
        returns=[round(value, 4) for value in outcome.returns],
        evaluation_seed=EVALUATION_SEED,
        reference_scores=list(info.reference_scores) if passed and info.reference_scores else None,
        score=round(points[0], 2),
        interval=[round(end, 2) for end in points[1:]],
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        commit=provenance.source_commit(),
    )
    cards = {known.name: known for known in zoo.pretrained(folder)} | {name: card}
    manifest = {key: dataclasses.asdict(cards[key]) for key in sorted(cards)}
    for entry in manifest.values():
        del entry["name"]
    with whole(folder / f"{name}.zip") as unfinished:
        unfinished.write_bytes(content)
        json.dumps(manifest, allow_nan=False)  # before the file appears
    write_json(folder / "manifest.json", manifest)
    return card


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("name", help="what ld_agents.load will take, for example ldcq-pointmaze-large")
    parser.add_argument("agent", type=Path, help="file of the trained agent")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=zoo.FOLDER, help="where the agents and their manifest lie")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    card = make(options.name, options.agent, options.episodes, options.folder)
    print(f"{card}; {card.bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
