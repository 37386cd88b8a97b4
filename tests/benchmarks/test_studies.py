"""The studies: what is run for them, and their tables, figures and answers."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_files import a_run, write_runs

import report
import run_suite
import specs
from ld_agents.evaluation.scores import family
from reporting import figures, intervals
from reporting import studies as pages
from reporting.runs import read_runs
from studies import HAND, KITCHEN, MAZE, PAIRS, STUDIES


def resolved(agent: str, dataset: str) -> Any:
    """All settings that an agent has on a dataset."""
    name, settings = specs.parse_spec(agent)
    return name, str(specs.agent_class(name)._resolve("fast", family(dataset), settings)[0])


def test_no_agent_is_trained_twice() -> None:
    assert len(PAIRS) == len(set(PAIRS))
    assert len({(resolved(*pair), pair[1]) for pair in PAIRS}) == len(PAIRS)
    assert resolved("LDCQ[latent_dim=16]", HAND) == resolved("LDCQ", HAND), "the comparison sees defaults"
    for study in STUDIES.values():
        assert len({(cell.value, cell.line) for cell in study.cells}) == len(study.cells)
        assert set(study.measures) <= set(pages.MEASURES)


def test_one_seed_of_all_then_the_next_and_nothing_before_what_it_takes_over() -> None:
    runs = run_suite.grid(run_suite.SUITES["studies"])
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len(runs) == 3 * len(PAIRS)
    position = {run: i for i, run in enumerate(runs)}
    depend = [(position[base], i) for i, run in enumerate(runs) for base in specs.bases(run)[:1] if base in position]
    assert len(depend) > 30
    assert all(before < after for before, after in depend)
    assert (runs[0].agent, runs[0].dataset) == ("LDCQ", MAZE)


def test_options_choose_among_the_studies() -> None:
    options = run_suite.parse(
        ["--suite", "studies", "--datasets", HAND, "--agents", "LDCQ[ latent_dim=2 ]", "IQL", "X"]
    )
    runs = run_suite.grid(run_suite.suite_from(options))
    assert {(run.agent, run.dataset) for run in runs} == {("LDCQ[latent_dim=2]", HAND), ("IQL", HAND)}
    assert len(runs) == 6


def test_bases() -> None:
    def names(agent: str, budget: float = 1.0) -> list[str]:
        run = specs.Run(agent, MAZE, 0, "fast", budget, 100)
        found = specs.bases(run)
        assert all(dataclasses.replace(base, agent=agent) == run for base in found)
        return [base.agent for base in found]

    assert names("LDCQ") == names("BC[best_fraction=0.1]") == names("m:LDCQ[candidates_acting=1]") == []
    assert names("LDCQ[candidates_acting=1,horizon=5]", 0.1) == ["LDCQ[horizon=5]"]
    assert names("LatentDiffuser[guidance_scale=2]") == ["LatentDiffuser", "LatentDiffuser[guidance=none]"]
    assert names("LatentDiffuser[guidance_scale=2]", 0.1) == ["LatentDiffuser"]
    assert names("LatentDiffuser[inverse_temperature=1]") == ["LatentDiffuser[guidance=none]"]
    assert names("LatentDiffuser[guidance=none]") == []


def measured(level: float, **more: Any) -> dict[str, Any]:
    """What a run has measured, in shares of a hundred."""
    of_draws = {"outside": level / 100, "unlikely": level / 200, "covered": 1.0}
    return {"action_error": level / 400, "plan_ms": 1.5, **of_draws, "draws": {"uniform": {"outside": 0.875}}, **more}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the studies of the latent's size and of the batch constraint, two seeds of each."""
    root = tmp_path_factory.mktemp("repository")
    begin, end = report.BLOCK
    (root / "README.md").write_text(f"{begin}{end}")
    runs = [
        a_run(agent, MAZE, seed, level + 10 * seed) | {"measured": measured(level + seed)}
        for agent, level in (("LDCQ", 90.0), ("LDCQ[latent_dim=2]", 60.0), ("IQL", 40.0))
        for seed in (0, 1)
    ]
    runs[-1]["measured"] = None  # a run that measured nothing
    write_runs(root / "results" / "studies", runs)
    write_runs(root / "results" / "maze2d", [a_run("BC")])
    shutil.copytree(report.ROOT / "results" / "datasets", root / "results" / "datasets")
    for name in ("simulators.json", "ray.json"):
        shutil.copy(report.ROOT / "results" / name, root / "results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "REPS", 20)
        patch.setattr(report, "OTHER_CHECKS", ())
        patch.setitem(figures.STYLE, "savefig.dpi", 30)
        report.all_pages(root).write()
    return root


@pytest.fixture
def repository(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(intervals, "REPS", 20)
    monkeypatch.setattr(report, "OTHER_CHECKS", ())
    monkeypatch.setitem(figures.STYLE, "savefig.dpi", 30)
    return Path(shutil.copytree(built, tmp_path / "repository"))


def score(value: float) -> float:
    """D4RL's score of a return in the large maze."""
    return 100 * (value - 6.7) / (273.99 - 6.7)


def rows(table: Path) -> list[list[str]]:
    lines = [line for line in table.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_table_has_scores_and_measures_by_value(repository: Path) -> None:
    folder = repository / "results" / "studies"
    head, _, *found = rows(folder / "tables" / "latent_dim.md")
    assert [row[0] for row in found] == ["2", "16"]
    assert head[:4] == ["numbers in a latent of LDCQ", "dataset", "agent", "seeds"]
    small = dict(zip(head, found[0], strict=True))
    low, high = score(60), score(70)
    assert small["env"] == f"{(low + high) / 2:.1f} ({low:.1f} to {high:.1f})"
    assert small["actions unexplained, %"] == "15.1 (15.0 to 15.2)"
    assert small["outside the data, %"] == "60.5 (60.0 to 61.0)"
    head, _, *found = rows(folder / "tables" / "batch_constraint.md")
    by_value = {row[0]: dict(zip(head, row, strict=True)) for row in found}
    assert by_value["uniform latents"]["outside the data, %"] == "87.5 (87.5 to 87.5)"
    assert by_value["uniform latents"]["env"] == by_value["uniform latents"]["unlikely when decoded, %"] == "–"
    assert by_value["IQL"]["outside the data, %"] == "–", "one of two seeds did not measure it"


def test_studies_with_less_than_two_values_are_open_and_have_no_figure(repository: Path) -> None:
    folder = repository / "results" / "studies"
    text = (folder / "README.md").read_text()
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert drawn == {path.stem for path in (folder / "tables").iterdir()} == {"latent_dim", "batch_constraint"}
    assert set(re.findall(r"^- `(\w+)`: ", text, re.MULTILINE)) == STUDIES.keys() - drawn != set()
    for path in (folder / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    cells = len(STUDIES["latent_dim"].cells)
    assert f"[Table](tables/latent_dim.md). {cells - 2} of {cells} cells have no run yet." in text
    assert "| `LDCQ`" not in (repository / "README.md").read_text(), "studies are no part of the overview"


def test_answers_rest_on_the_numbers_of_their_tables(repository: Path) -> None:
    answers = repository / "results" / "studies" / "answers.md"
    assert report.check(repository) == []
    value = f"{score(65):.1f}"
    answers.write_text(f"## latent_dim\nA latent of 2 numbers scores\n{value} and leaves 15.1 % unexplained.\n")
    (problem,) = (line for line in report.check(repository) if "README" in line)
    assert "+A latent of 2 numbers scores" in problem
    report.all_pages(repository).write(with_figures=False)
    assert report.check(repository) == []
    for text, told in (
        ("## latent_dim\nIt scores 99.9.\n", "latent_dim: 99.9 is not in its table"),
        ("## latent_dim\nSmall ones do.\n", "latent_dim: names no number of its table, such as a score"),
        ("## kl_weight\nAbout 1.5.\n", "kl_weight: no runs to compare; delete its answer"),
        ("## luck\nAbout 1.5.\n", "luck: no study of that name; delete its answer"),
    ):
        answers.write_text(text)
        assert f"{answers}: {told}" in report.check(repository)


def test_check_finds_a_measure_that_changed(repository: Path) -> None:
    folder = repository / "results" / "studies"
    path = next(path for path in (folder / "runs").iterdir() if '"LDCQ[latent_dim=2]"' in path.read_text())
    run = json.loads(path.read_text())
    run["measured"]["action_error"] = 0.25
    path.write_text(json.dumps(run))
    problems = "\n".join(report.check(repository))
    assert f"--- {folder / 'tables' / 'latent_dim.md'}" in problems
    assert f"{folder / 'figures' / 'latent_dim.png'}: drawn from other run files" in problems
    assert "batch_constraint" not in problems
    run["measured"]["draws"]["uniform"] = 3
    path.write_text(json.dumps(run))
    assert "'int' object has no attribute 'items'" in read_runs(folder / "runs")[1][0]


def test_maps_of_latents_are_drawn_where_runs_have_them(repository: Path) -> None:
    folder = repository / "results" / "studies"
    plane = [[0.0, 1.0], [1.0, 0.0]]
    places = {"places": plane, "tsne": plane, "variance": [0.6, 0.3], "tasks": [0, 1], "names": ["kettle", "none"]}
    runs = [
        a_run(agent, KITCHEN, 0, level) | {"measured": measured(level, same_task=level / 100, **more)}
        for agent, level, more in (("LDCQ", 2.0, {"latent_map": places}), ("LDCQ[latent_dim=2]", 1.0, {}))
    ]
    write_runs(repository / "results" / "kitchens", runs)
    for path in (repository / "results" / "kitchens" / "runs").iterdir():
        shutil.move(path, folder / "runs" / f"kitchen{path.name}")
    report.build(folder)
    assert (folder / "figures" / "latent_space_map.png").read_bytes().startswith(b"\x89PNG")
    assert "(figures/latent_space_map.png)" in (folder / "README.md").read_text()
    assert not (folder / "figures" / "latent_dim_map.png").exists()
    head, _, *found = rows(folder / "tables" / "latent_space.md")
    assert [row[head.index("neighbors before the same task, %")] for row in found] == ["1.0", "2.0"]


def test_a_suite_of_studies_is_reported_with_its_page(repository: Path) -> None:
    folder = repository / "results" / "studies"
    table = report.build(folder)
    assert "LDCQ[latent_dim=2]" in table
    assert "latent_dim=2" in (folder / "report.html").read_text()
    shutil.rmtree(folder / "runs")
    for name in ("tables", "figures"):
        shutil.rmtree(folder / name)
    report.all_pages(repository).write()
    page = (folder / "README.md").read_text()
    assert "`latent_dim`" in page, "all are open"
    assert "| antmaze-medium | HiGoC | 79.3 ± 2.5 | primary | Hierarchical Diffuser" in page
    assert "| single-task-average | LatentDiffuser | 78.9 | second-hand |" in page
