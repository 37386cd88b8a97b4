"""What an installation without extras is enough for: a local Minari set is read, BC learns from it, acts and is saved.

`tox run -e bare` runs this file in such an environment, `test_minari.py` with the packages of the extras hidden.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

EXTRAS = {"gymnasium_robotics", "matplotlib", "mujoco", "pandas", "PIL", "rliable", "sb3_contrib", "tensorboard"}


def write_set(root: Path, dataset_id: str) -> None:
    """A set in Minari's layout, which Minari itself only writes where Pillow is: 20 episodes towards 0 on a line."""
    import h5py

    folder = root / dataset_id / "data"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for index in range(20):
            places = rng.uniform(-1, 1) * 0.5 ** np.arange(11)
            episode = file.create_group(f"episode_{index}")
            episode.attrs.update({"id": index, "total_steps": 10, "seed": index})
            episode["observations"] = places[:, None].astype(np.float32)
            episode["actions"] = -places[:10, None].astype(np.float32) / 2
            episode["rewards"] = -np.abs(places[:10])
            episode["terminations"], episode["truncations"] = np.zeros(10, bool), np.arange(10) == 9
            episode.create_group("infos")
    box = {"type": "Box", "dtype": "float32", "shape": [1], "low": [-1.0], "high": [1.0]}
    about = {"dataset_id": dataset_id, "total_episodes": 20, "total_steps": 200, "data_format": "hdf5"}
    spaces = {"observation_space": json.dumps(box), "action_space": json.dumps(box), "minari_version": "0.5.3"}
    (folder / "metadata.json").write_text(json.dumps(about | spaces))
    (root / "me" / "namespace_metadata.json").write_text(json.dumps({"description": ""}))


def main() -> None:
    """Everything that the first line says, with numbers that would be wrong if it did not learn."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        write_set(Path(folder), "me/line-v0")
        from ld_agents import BC, load_dataset

        data = load_dataset("me/line-v0", download=False)
        assert (data.n_steps, data.n_episodes) == (200, 20), data
        agent = BC("MlpPolicy", data, seed=0, steps=400, device="cpu").learn()
        places = np.linspace(-0.8, 0.8, 9, dtype=np.float32)[:, None]
        actions, _ = agent.predict(places, deterministic=True)
        assert np.abs(actions + places / 2).max() < 0.05, actions
        agent.save(Path(folder) / "agent")
        again, _ = BC.load(Path(folder) / "agent", device="cpu").predict(places, deterministic=True)
        assert np.array_equal(again, actions)
    loaded = sorted({name.split(".")[0] for name, module in sys.modules.items() if module is not None} & EXTRAS)
    print(f"200 steps read, largest error of an action {np.abs(actions + places / 2).max():.3f}, of extras: {loaded}")


if __name__ == "__main__":
    if "--hide" in sys.argv:
        sys.modules.update(dict.fromkeys(EXTRAS))  # type: ignore[arg-type]  # None: as if it were not installed
    main()
