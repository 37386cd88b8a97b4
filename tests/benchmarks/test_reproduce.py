"""Runs that are done again and compared with what is stored, and the matrix of versions that this is done on."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from run_files import a_run

import reproduce

ROOT = Path(reproduce.__file__).parents[1]


@pytest.mark.parametrize(
    ("changes", "told", "agrees"),
    [
        ({}, "equal to the last bit, on the same data; other versions: none", True),
        (
            {"versions": {"mujoco": "4.0.0"}},
            "equal to the last bit, on the same data; other versions: mujoco 4.0.0",
            True,
        ),
        # Returns of 90, 100, 110 and 100: a standard error of 7.07 / 2, and 5 of the difference.
        ({"returns": [104.0, 114.0, 124.0, 114.0]}, "14 apart, on the same data", True),
        ({"returns": [106.0, 116.0, 126.0, 116.0]}, "16 apart, on the same data", False),
        ({"dataset": {"hash": "cd" * 32}}, "on data of another hash", True),
    ],
)
def test_a_run_again(
    changes: dict[str, Any],
    told: str,
    agrees: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def run_and_write(run: Any, out: Path) -> Path:
        asked.append(run)
        (out / "again.json").write_text(json.dumps(a_run("BC", seed=3, **changes)))
        return out / "again.json"

    monkeypatch.setattr(reproduce, "run_and_write", run_and_write)
    (tmp_path / "stored.json").write_text(json.dumps(a_run("BC", seed=3)))
    assert reproduce.main([str(tmp_path / "stored.json")]) == int(not agrees)
    text = capsys.readouterr().out
    assert text.startswith("stored 100 ± 3.5, again 1")
    assert told in text
    assert (asked[0].agent, asked[0].dataset, asked[0].seed, asked[0].episodes) == (
        "BC",
        "ld-agents/pointmaze/umaze-v0",
        3,
        4,
    )


def test_the_oldest_versions_of_the_matrix_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    known = [*project["project"]["dependencies"], *extras["bench"], *extras["crosscheck"]]
    bounds = {}
    for requirement in map(Requirement, known):
        bounds[requirement.name] = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    chosen = {
        r.name: Version(next(iter(r.specifier)).version)
        for r in map(Requirement, project["tool"]["tox"]["env"]["oldest"]["deps"])
    }
    # installed with newer ones: by typer and by torch
    assert set(bounds) - set(chosen) == {"rich", "jinja2"}
    above = {name for name in chosen if [chosen[name]] != bounds[name]}
    assert above == {"gymnasium", "pandas"}
    assert all(chosen[name] > bounds[name][0] for name in above)


def test_every_python_of_the_matrix_is_a_classifier() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pythons = {text.rpartition(" ")[2] for text in project["project"]["classifiers"] if "Python :: 3." in text}
    tox = project["tool"]["tox"]
    tested = {
        *tox["env_run_base"]["base_python"],
        *(p for env in tox["env"].values() for p in env.get("base_python", ())),
    }
    assert {f"python{number}" for number in pythons} == tested
    assert set(tox["env_list"]) == set(tox["env"])
