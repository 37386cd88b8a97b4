"""Damaged and hostile data: each case is loaded as it should, or refused with a sentence that says what to do.

The cases run in a child process with little memory, so that a crash in C code, a hang and a huge allocation are caught
and named. All damage comes from fixed seeds.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damage import EITHER, LOADED, REFUSED, Case, damaged_folders, damaged_structure, what_is_wrong
from good_data import write_good

from ld_agents.data.load import load_dataset

SECONDS_PER_CASE = 10.0
MEMORY = 1_500_000_000  # bytes, beyond what the process has when the cases begin


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good datasets, which are copied and damaged."""
    pytest.importorskip("gymnasium_robotics")
    folder = tmp_path_factory.mktemp("good")
    write_good(folder)
    return folder


# -- the child process ---------------------------------------------------------------------------------------------


def verdict(source: str) -> str:
    """What came of loading: "loaded", "refused", or what is wrong with the way in which it failed."""
    try:
        data = load_dataset(source, download=False)
    except (ValueError, FileNotFoundError, TypeError) as error:
        return what_is_wrong(error, source) or REFUSED
    except BaseException as error:
        return f"escaped: {type(error).__name__}: {error}"
    return LOADED if data.n_steps > 0 else "empty"


def work(cases: list[Case], folder: Path, pipe: int) -> None:
    """Do the cases and write a line before and after each."""
    warnings.simplefilter("ignore")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # HDF5 prints where it stumbles
    for index, (_, make, _) in enumerate(cases):
        place = folder / str(index)
        place.mkdir()
        os.environ["MINARI_DATASETS_PATH"] = str(place)
        source = make(place)
        os.write(pipe, b"begin\n")
        os.write(pipe, (json.dumps(verdict(source)) + "\n").encode())
        shutil.rmtree(place)


def run_cases(cases: list[Case], folder: Path) -> list[str]:
    """The verdicts, in a child process; a crash or a hang counts as one and ends the run."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            work(cases, folder, writing)
        except BaseException:
            os.write(writing, (json.dumps(traceback.format_exc()) + "\n").encode())
        finally:
            os._exit(0)
    os.close(writing)
    verdicts: list[str] = []
    with os.fdopen(reading, "rb", buffering=0) as lines:
        buffer = b""
        while True:
            ready, _, _ = select.select([lines], [], [], SECONDS_PER_CASE)
            piece = lines.read(65_536) if ready else b""
            if not piece:
                break
            buffer += piece
            *whole, buffer = buffer.split(b"\n")
            verdicts += [json.loads(line) for line in whole if line != b"begin"]
        if not ready:
            os.kill(child, signal.SIGKILL)
            verdicts.append(f"still busy after {SECONDS_PER_CASE:g} s")
    _, status = os.waitpid(child, 0)
    if ready and os.WIFSIGNALED(status):
        verdicts.append(f"crashed with signal {os.WTERMSIG(status)}")
    return verdicts


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize(("generate", "at_least"), [(damaged_structure, 350), (damaged_folders, 150)])
def test_damaged_data_are_loaded_or_refused(
    good: Path, tmp_path: Path, generate: Callable[[Path], Iterator[Case]], at_least: int
) -> None:
    cases = list(generate(good))
    assert len(cases) >= at_least
    verdicts = run_cases(cases, tmp_path)
    bad = [
        f"{name}: {found}, not {wanted}"
        for (name, _, wanted), found in zip(cases, verdicts, strict=False)
        if found not in ((LOADED, REFUSED) if wanted == EITHER else (wanted,))
    ]
    assert not bad, "\n".join(bad)
    assert len(verdicts) == len(cases)
    assert verdicts.count(REFUSED) > len(cases) / 4
