"""Damaged and hostile datasets of every format that is read: the campaign's cases, drawn by Hypothesis."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from damage import ABSURD, KEPT_FIELDS, READ_FIELDS, Case, damaged_folders, damaged_structure, what_is_wrong
from good_data import FLAT, write_good, write_others
from hypothesis import strategies as st

from ld_agents.data.load import load_dataset
from ld_agents.data.storage import digest

SEALED = "test/sealed-v0"  # as recorded here, with a checksum
FILES = {
    **{
        name: name for name in ("packed.hdf5", "plain.hdf5", "stored.npz", "compressed.npz", "robomimic.hdf5", "mdp.h5")
    },
    "mdp1.h5": "mdp1.h5",
    **{f"{name}/data/{file}": name for name in (FLAT, SEALED) for file in ("main_data.hdf5", "metadata.json")},
    f"{FLAT}/.ld-agents-arrays.npz": FLAT,
}
"""Files that are damaged, with the source that is loaded then."""
CHECKED = ("stored.npz", "compressed.npz", f"{SEALED}/data/main_data.hdf5", f"{FLAT}/.ld-agents-arrays.npz")
"""Those with a checksum, so that other data are never loaded from them. The other formats have none."""
EXECUTION = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class")


def write_all(folder: Path) -> None:
    """Good data in every format."""
    write_good(folder)
    write_others(folder)
    shutil.copytree(folder / FLAT, folder / SEALED)
    metadata = folder / SEALED / "data" / "metadata.json"
    main = metadata.with_name("main_data.hdf5")
    with_changes(metadata, {"episodes_bytes": main.stat().st_size, "episodes_sha256": digest(main)})
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    load_dataset(FLAT)  # writes the cache


def what_is_loaded(folder: Path, source: str) -> tuple[Any, ...]:
    """All of a dataset that a run depends on. Its evaluation environment is built, too.

    Raises:
        ValueError: one clear error.
        RuntimeError: an error that is not, with what is wrong with it.
    """
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    local = source if source.startswith("test/") else str(folder / source)
    try:
        data = load_dataset(local, download=False)
        info = data.info
        if info.eval_env is not None:
            info.eval_env.make().close()
    except (ValueError, TypeError, FileNotFoundError) as error:
        named = "environment" if "environment" in str(error) else local
        if wrong := what_is_wrong(error, named):
            raise RuntimeError(wrong) from error
        raise ValueError from error
    return data.content_hash, repr(data.action_space), repr(info.eval_env), info.reference_scores, info.mujoco


def copied(good: Path, folder: Path, file: str) -> Path:
    """A copy of what belongs to one of the good files; its place in the copy."""
    source = FILES[file]
    if source == file:
        shutil.copyfile(good / file, folder / file)
    else:
        shutil.copytree(good / source, folder / source)
    return folder / file


values = st.recursive(
    st.sampled_from(ABSURD) | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = ("xml_file", "model_path", "maze_map", "reward_type", "render_mode", "g", "default_camera_config", "x")
PLACES = ("os:system", "subprocess:run", "gymnasium.wrappers.common:TimeLimit", "gymnasium.wrappers:RecordVideo", "")


def environments(planted: Path) -> st.SearchStrategy[dict[str, Any]]:
    """Specifications of evaluation environments as somebody would write them who means harm."""
    ids = st.sampled_from(["Hopper-v5", "PointMaze_UMaze-v3", "Pendulum-v1", "os:system", "GymV21Environment-v0", ""])
    hostile = values | st.sampled_from([str(planted), [str(planted)], "../evil", "human", [[1, 1], [1, "r"]]])
    kwargs = st.dictionaries(st.sampled_from(ARGUMENTS), hostile, max_size=2)
    wrapper = st.fixed_dictionaries({"entry_point": st.sampled_from(PLACES) | values, "kwargs": kwargs | values})
    return st.fixed_dictionaries(
        {"id": ids},
        optional={
            "kwargs": kwargs | values,
            "max_episode_steps": values,
            "additional_wrappers": st.lists(wrapper, max_size=2) | values,
            "entry_point": st.sampled_from(PLACES),
        },
    )


def metadata(planted: Path) -> st.SearchStrategy[dict[str, Any]]:
    """Changes to metadata.json."""
    written = environments(planted).map(json.dumps)
    names = (*READ_FIELDS, *KEPT_FIELDS, "episodes_bytes", "episodes_sha256")
    fields = st.dictionaries(st.sampled_from(names), values, max_size=3)
    return fields | st.fixed_dictionaries({"eval_env_spec": written}) | st.fixed_dictionaries({"env_spec": written})


def with_changes(file: Path, changes: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def traps() -> dict[str, tuple[str, Callable[[Path], None]]]:
    """Files that would fill the memory, block or lead elsewhere: name -> the file and what is done to it."""

    def sparse(file: Path) -> None:
        with file.open("r+b") as stream:
            stream.truncate(1 << 40)

    def linked(file: Path) -> None:
        file.unlink()
        file.symlink_to("/dev/zero")

    def pipe(file: Path) -> None:
        file.unlink()
        os.mkfifo(file)

    def bomb(file: Path) -> None:
        header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
        header += b"{'descr': '<f4', 'fortran_order': False, 'shape': (4194304, 256), }".ljust(117) + b"\n"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("observations.npy", "w", force_zip64=True) as member:
                member.write(header)
                for _ in range(64):
                    member.write(bytes(1 << 20))
            archive.writestr("actions.npy", b"")

    def claim(file: Path) -> None:
        header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
        header += b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 3), }".ljust(117) + b"\n"
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("observations", "actions", "terminals"):
                archive.writestr(f"{name}.npy", header)

    places = {"a terabyte of holes": sparse, "a link to a device": linked, "a pipe": pipe}
    made = {f"{file}: {name}": (file, trap) for file in FILES for name, trap in places.items()}
    return made | {f"stored.npz: {f.__name__}": ("stored.npz", f) for f in (bomb, claim)}


def structural(good: Path) -> list[Case]:
    return [*damaged_structure(good), *damaged_folders(good)]


def forbid_execution(found: list[str]) -> None:
    """From now on, whatever this process executes or unpickles is noted."""
    sys.addaudithook(lambda event, _: found.append(event) if event in EXECUTION else None)
