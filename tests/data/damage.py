"""Kinds of damage to the structure of good data: all are loaded by `test_damaged_data.py`, some by the campaign."""

from __future__ import annotations

import json
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from good_data import FLAT, GOALS, d4rl_arrays, write_d4rl

import ld_agents

# A name, a function that damages a copy of good data in a folder of its own and returns what to load, and what must
# come of it: LOADED, REFUSED, or EITHER.
Case = tuple[str, Callable[[Path], str], str]
LOADED, REFUSED, EITHER = "loaded", "refused", "either"
OURS = str(Path(ld_agents.__file__).parent)
# A sentence, or a part of one, that begins with what to do.
WHAT_TO_DO = re.compile(
    r"[.,;] (or )?(call|check|choose|clip|copy|delete|download|drop|flatten|give|import|install|leave|make|pass|repair|"
    r"replace|reshape|store|take|use|write)\b",
    re.IGNORECASE,
)
ABSURD: tuple[Any, ...] = (
    None,
    -1,
    10**18,
    1e308,
    float("nan"),
    "x",
    [],
    {},
    [[[[]]]],
    True,
    "\x00",
    [-5],
    {"type": 3},
)


def what_is_wrong(error: Exception, source: str) -> str:
    """With the way in which loading failed; empty for one clear error of our own with the file and what to do."""
    text = f"{type(error).__name__}: {error}"
    if not traceback.extract_tb(error.__traceback__)[-1].filename.startswith(OURS):
        return f"raised elsewhere: {text}"
    if error.__context__ is not None and not error.__suppress_context__:
        return f"shows another traceback: {text}"
    if "memory" in text or "allocate" in text:
        return f"asked for more memory than there is: {text}"
    if source not in text:
        return f"names no file: {text}"
    return "" if WHAT_TO_DO.search(text) else f"says not what to do: {text}"


def in_set(good: Path, name: str, file: str, change: Callable[[bytearray], bytearray]) -> Callable[[Path], str]:
    """Damage the bytes of a file of a Minari dataset."""

    def make(folder: Path) -> str:
        shutil.copytree(good / name, folder / name)
        path = folder / name / file
        path.write_bytes(change(bytearray(path.read_bytes())))
        return name

    return make


# -- damage to the structure of HDF5 files -------------------------------------------------------------------------


def put(file: h5py.File, place: str, value: Any, **settings: Any) -> None:
    if place in file:
        del file[place]
    file.create_dataset(place, data=value, **settings)


def bad_arrays(good: np.ndarray) -> dict[str, Callable[[h5py.File, str], None]]:
    """What may stand where an array of such a shape is expected: name -> function that puts it there."""
    n = len(good)
    hole = good.astype(np.float64)
    hole.flat[good.size // 2] = np.nan

    def values(array: Any, **settings: Any) -> Callable[[h5py.File, str], None]:
        return lambda file, place: put(file, place, array, **settings)

    def removed(file: h5py.File, place: str) -> None:
        del file[place]

    def linked(link: Callable[[str], Any]) -> Callable[[h5py.File, str], None]:
        def put_link(file: h5py.File, place: str) -> None:
            file.move(place, "elsewhere")
            file[place] = link(file.filename)

        return put_link

    def empty_space(file: h5py.File, place: str) -> None:
        put(file, place, h5py.Empty("f"))

    def claims(
        shape: tuple[int, ...], chunks: tuple[int, ...] | bool | None = None
    ) -> Callable[[h5py.File, str], None]:
        def put_claim(file: h5py.File, place: str) -> None:
            del file[place]
            file.create_dataset(
                place, shape, np.float32, chunks=chunks, maxshape=(None,) * len(shape) if chunks else None
            )

        return put_claim

    def unwritten(dtype: Any) -> Callable[[h5py.File, str], None]:
        def put_type(file: h5py.File, place: str) -> None:
            del file[place]
            file.create_dataset(place, (n,), dtype)

        return put_type

    def virtual(file: h5py.File, place: str) -> None:
        del file[place]
        layout = h5py.VirtualLayout(good.shape, np.float32)
        layout[...] = h5py.VirtualSource("/etc/hostname", "data", good.shape)
        file.create_virtual_dataset(place, layout)

    def stored_outside(file: h5py.File, place: str) -> None:
        del file[place]
        file.create_dataset(place, good.shape, np.float32, external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])

    def group(file: h5py.File, place: str) -> None:
        del file[place]
        file.create_group(place)

    return {
        "missing": removed,
        "a group": group,
        "a soft link": linked(lambda _: h5py.SoftLink("/elsewhere")),
        "a soft link to itself": linked(lambda _: h5py.SoftLink("/observations")),
        "a dangling link": linked(lambda _: h5py.SoftLink("/gone")),
        "an external link": linked(lambda path: h5py.ExternalLink(path, "/elsewhere")),
        "a dangling external link": linked(lambda _: h5py.ExternalLink("/gone.h5", "/x")),
        "virtual": virtual,
        "stored outside": stored_outside,
        "no space": empty_space,
        "strings": values(np.full(good.shape, b"a")),
        "text": values(np.full(good.shape, "a", dtype=h5py.string_dtype())),
        "complex": values(good.astype(np.complex64)),
        "compound": values(np.zeros(good.shape, [("a", "f4"), ("b", "i4")])),
        "ragged": unwritten(h5py.vlen_dtype(np.float32)),
        "references": unwritten(h5py.ref_dtype),
        "opaque": values(np.zeros(good.shape, "V4")),
        "a scalar": values(1.0),
        "one axis more": values(good[..., None]),
        "one axis less": values(good.reshape(-1)) if good.ndim > 1 else values(np.float32(1)),
        "one row less": values(good[:-1]),
        "no rows": values(good[:0]),
        "no columns": values(good[:, :0]) if good.ndim > 1 else values(good[:0]),
        "nan": values(hole),
        "infinite": values(np.where(np.isnan(hole), np.inf, hole)),
        "too large for float32": values(np.where(np.isnan(hole), 1e300, hole)),
        "sevens": values(np.full(good.shape, 7.0, np.float64)),
        "huge integers": values(np.full(good.shape, 2**64 - 1, np.uint64)),
        "minus one": values(np.full(good.shape, -1, np.int8)),
        "half precision": values(good.astype(np.float16)),
        "long doubles": values(good.astype(np.longdouble)),
        "big endian": values(good.astype(">f8")),
        "a huge claim": claims((2**33, *good.shape[1:])),
        "a huge claim in chunks": claims((2**40, *good.shape[1:]), True),
        "a huge chunk": claims(good.shape, tuple(2**28 if i == 0 else 1 for i in range(good.ndim))),
    }


# What may stand in a file and be read all the same, though not everywhere; all else is refused wherever it stands.
OTHER_NUMBERS = ("half precision", "long doubles", "big endian")
SOMETIMES = (
    "missing",
    "one row less",
    "nan",
    "infinite",
    "too large for float32",
    "sevens",
    "huge integers",
    "minus one",
)


def expected(kind: str) -> str:
    return LOADED if kind in OTHER_NUMBERS else EITHER if kind in SOMETIMES else REFUSED


def damaged_structure(good: Path) -> Iterator[Case]:
    for key, array in d4rl_arrays().items():
        for kind, spoil in bad_arrays(array).items():

            def make(folder: Path, key: str = key, spoil: Any = spoil) -> str:
                with write_d4rl(folder / "data.hdf5") as file:
                    spoil(file, key)
                return str(folder / "data.hdf5")

            yield f"{key}: {kind}", make, expected(kind)
    keys = [(FLAT, key) for key in ("observations", "actions", "rewards", "terminations")]
    for name, key in [*keys, (GOALS, "observations/achieved_goal")]:
        with h5py.File(good / name / "data" / "main_data.hdf5") as file:
            array = file["episode_1"][key][()]
        for kind, spoil in bad_arrays(array).items():

            def make_set(folder: Path, name: str = name, key: str = key, spoil: Any = spoil) -> str:
                shutil.copytree(good / name, folder / name)
                with h5py.File(folder / name / "data" / "main_data.hdf5", "a") as file:
                    spoil(file, f"episode_1/{key}")
                return name

            yield f"{name} {key}: {kind}", make_set, expected(kind)


READ_FIELDS = ("total_episodes", "observation_space", "action_space", "data_format", "eval_env_spec", "env_spec")
KEPT_FIELDS = ("ref_min_score", "ref_max_score", "ld_agents", "description")


def damaged_folders(good: Path) -> Iterator[Case]:
    for index, value in enumerate(ABSURD):
        for field in READ_FIELDS:
            # Building a maze takes its time: the set with goals only where it matters.
            name = GOALS if field in ("observation_space", "eval_env_spec") else FLAT
            yield f"{name} metadata {field} {index}", with_metadata(good, name, {field: value}), EITHER
        for field in KEPT_FIELDS:
            yield f"metadata {field} {index}", with_metadata(good, FLAT, {field: value}), LOADED
    box = {"type": "Box", "dtype": "float64", "shape": [4], "low": [0.0] * 4, "high": [1.0] * 4}
    for index, change in enumerate(
        [
            {"shape": [10**12]},
            {"shape": [-4]},
            {"shape": ["4"]},
            {"shape": []},
            {"shape": [5]},
            {"low": [float("nan")] * 4},
            {"dtype": "object"},
            {"dtype": "U8"},
            {"dtype": "float64, float64"},
            {"low": [9.0] * 4},
            {"type": "Discrete", "n": 3, "start": 0},
            {"type": "Text", "max_length": 10**9, "min_length": 0, "charset": "ab"},
            {"type": "Dict", "subspaces": {}},
            {"type": "Tuple", "subspaces": [{}]},
            {"type": "MultiBinary", "n": 10**12},
        ]
    ):
        for which in ("observation_space", "action_space"):
            text = json.dumps({**box, **change})
            yield f"{which} {index}", with_metadata(good, FLAT, {which: text}), REFUSED
    for index, spec in enumerate(
        [
            {"id": "Pendulum-v1"},
            {"id": "AntMaze_UMaze-v5"},
            {"id": "PointMaze_UMaze-v3", "kwargs": {"maze_map": 3}},
            {"id": "PointMaze_UMaze-v3", "kwargs": {"maze_map": [[]]}},
            {"id": "PointMaze_UMaze-v3", "kwargs": {"reward_type": "gift"}},
            {"id": "os:system"},
            {"id": "../../x"},
            {"id": "PointMaze_UMaze-v3", "max_episode_steps": -7},
            {"id": "PointMaze_UMaze-v3", "additional_wrappers": 7},
            {"id": "PointMaze_UMaze-v3", "kwargs": [1]},
        ]
    ):
        yield f"eval_env_spec {index}", with_metadata(good, GOALS, {"eval_env_spec": json.dumps(spec)}), EITHER
    brackets = in_set(good, FLAT, "data/metadata.json", lambda _: bytearray(b"[" * 5_000))
    yield "metadata of 5,000 brackets", brackets, REFUSED
    deep = '{"type": "Dict", "subspaces": {"x": ' * 1_500
    yield "a space of 1,500 dictionaries", with_metadata(good, FLAT, {"observation_space": deep}), REFUSED
    for kind in ("no hdf5", "hdf5 is a folder", "a dangling symlink", "a loop of symlinks", "a missing episode"):
        yield kind, damaged_folder(good, kind), REFUSED
    for kind in ("a link out of the folder", "a pipe"):
        yield kind, damaged_folder(good, kind), REFUSED
    for kind in ("an extra file", "symlinked data"):
        yield kind, damaged_folder(good, kind), LOADED


def with_metadata(good: Path, name: str, changes: dict[str, Any]) -> Callable[[Path], str]:
    def change(content: bytearray) -> bytearray:
        metadata = {**json.loads(content), **changes}
        return bytearray(json.dumps({key: value for key, value in metadata.items() if value is not None}).encode())

    return in_set(good, name, "data/metadata.json", change)


def damaged_folder(good: Path, kind: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        shutil.copytree(good / FLAT, folder / FLAT)
        data = folder / FLAT / "data"
        main = data / "main_data.hdf5"
        if kind in ("no hdf5", "hdf5 is a folder"):
            main.unlink()
        if kind == "hdf5 is a folder":
            main.mkdir()
        elif kind == "a dangling symlink":
            (data / "more").symlink_to(folder / "nowhere")
        elif kind == "a loop of symlinks":
            (data / "loop").symlink_to(data / "loop")
        elif kind == "a missing episode":
            with h5py.File(main, "a") as file:
                file.move("episode_1", "episode_one")
        elif kind == "an extra file":
            (data / "notes.txt").write_text("mine")
        elif kind in ("symlinked data", "a link out of the folder"):
            place = (data if kind == "symlinked data" else folder) / "elsewhere.hdf5"
            main.rename(place)
            main.symlink_to(place)
        elif kind == "a pipe":
            main.unlink()
            os.mkfifo(main)
        return FLAT

    return make
