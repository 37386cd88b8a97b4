"""report.html: self-contained, escaped, sortable, as wide as a phone; and what its tables say."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from run_files import LARGE, UMAZE, a_plan, a_run, three_agents, write_runs

import report
from reporting import aggregates, figures, intervals, page
from reporting.runs import frame

EVIL = "m:A[x=</svg><script>alert(1)</script>$x$\"'&]"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "REPS", 20)


def built(folder: Path, runs: list[dict[str, Any]]) -> str:
    """The page of these runs."""
    pages = report.Pages()
    report.add_suite(pages, write_runs(folder, runs))
    return pages.uncommitted[folder / "report.html"]()


@pytest.fixture(scope="module")
def maze_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("suite")
    runs = three_agents((UMAZE, LARGE), seeds=2)
    runs[0] |= {
        "plans": a_plan(),
        "settings": {"horizon": 30, "widths": [128, 64]},
        "settings_origin": {"horizon": "user"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "REPS", 20)
        text = built(folder, [*runs, a_run(EVIL, UMAZE, 0, 20)])
    (folder / "report.html").write_text(text)
    return folder / "report.html", text


def test_it_needs_nothing_else(maze_page: tuple[Path, str]) -> None:
    text = maze_page[1]
    assert text.isascii() or 'charset="utf-8"' in text
    # A link of the page leads into the page; nothing is fetched. Names of XML's vocabularies are no addresses.
    links = re.findall(r'(?:href|src)="([^"]*)"', text)
    assert links
    assert all(link.startswith(("#", "data:,", "data:image/png;base64,")) for link in links)
    assert not re.search(r"@import|url\((?!#)", text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    allowed = re.search(r"script-src 'sha256-([^']+)'", text)
    assert allowed is not None
    assert base64.b64decode(allowed[1]) == hashlib.sha256(script.encode()).digest()
    assert text.count("default-src 'none'") == 1
    assert len(text) < 500_000


def test_text_of_run_files_is_escaped(maze_page: tuple[Path, str]) -> None:
    text = maze_page[1]
    assert text.count("<script") == 1
    assert "alert(1)</script>" not in text
    assert text.count("<svg") == text.count("</svg>")
    assert html.escape(EVIL, quote=False).split("$")[0] in text
    assert "on" not in {attribute[:2] for attribute in re.findall(r"<\w+[^>]*? (\w+)=", text)}


def test_ids_are_unique(maze_page: tuple[Path, str]) -> None:
    ids = re.findall(r' id="([^"]*)"', maze_page[1])
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:xlink:href="|url\()#([^")]*)', maze_page[1])
    assert set(used) <= set(ids)


def test_sections_and_settings(maze_page: tuple[Path, str]) -> None:
    text = maze_page[1]
    sections = re.findall(r'<section id="(\w+)">', text)
    assert sections == ["overall", "scores", "curves", "plans", "runs", "settings", "notes"]
    assert re.findall(r'<a href="#(\w+)">', text) == sections
    rows = re.findall(r"<tr><td>(\w+)</td><td><code>(.*?)</code></td><td>(\w+)</td></tr>", text)
    assert rows == [("horizon", "30", "user"), ("widths", "[128, 64]", "preset")]
    assert 'style="background: var(--c0072b2)"></span>LDCQ' in text
    assert f'style="background: {figures.look("LDCQ[prior=gaussian]")[0]}"></span>LDCQ[prior=gaussian]' in text
    css = (Path(page.__file__).parent / "page.css").read_text()
    for color in page.THEMED.pattern.strip("#()").split("|"):
        assert css.count(f"--c{color}:") == 2, "once for each background"


def test_sections_without_content_are_left_out(tmp_path: Path) -> None:
    text = built(tmp_path, [a_run("A", UMAZE, dataset={"replay_check": None}, curve=[])])
    assert re.findall(r'<section id="(\w+)">', text) == ["scores", "runs", "notes"]
    assert "raw return" in text


def test_reasons_show_code_and_no_markup() -> None:
    assert page._with_code("set `a<b>` & go") == "set <code>a&lt;b&gt;</code> &amp; go"


def test_numbers_are_sorted_as_numbers() -> None:
    found = page.table(
        pd.DataFrame(
            {
                "agent": ["A", "*random*", "B"],
                "env": ["108.8 [95.5, 120.5]", "-1.5", "–"],
                "steps": ["100 % = 18,000 steps", "1,200", ""],
                "commit": ["01ab", "99", "77"],
            }
        )
    )
    assert found.numeric == [False, True, True, False]
    assert [row[1].key for row in found.rows] == [108.8, -1.5, None]
    assert [row[2].key for row in found.rows] == [100.0, 1200.0, None]
    assert [row[0].text for row in found.rows] == ["A", "random", "B"]
    assert [row[0].color is None for row in found.rows] == [False, True, False]


def test_bars_and_probabilities() -> None:
    """LDCQ's runs all beat BC's, so one direction is 1 and the other its complement."""
    (group,) = aggregates.aggregate(frame(three_agents((UMAZE, LARGE), seeds=2)))[:1]
    metrics = page._metrics(group)
    first, *_ = metrics.rows
    iqm = group.metrics["LDCQ"]["IQM"]
    assert first[0].text == "LDCQ"
    assert first[1].text == "{:.1f} [{:.1f}, {:.1f}]".format(*iqm)
    assert first[2].key == iqm[0]
    assert first[2].bar is not None
    low, high = min(0.0, group.metrics["BC"]["IQM"][1]), max(100.0, iqm[2])
    assert first[2].bar[0] == pytest.approx(100 * (iqm[0] - low) / (high - low), abs=0.01)
    matrix = {label: dict(zip(group.metrics, cells, strict=True)) for label, cells in page._improvements(group)}
    assert matrix["LDCQ"]["LDCQ"] is None
    assert matrix["LDCQ"]["BC"] == {"value": "1.00", "interval": "8 of 8", "tint": 50, "side": "more"}
    assert matrix["BC"]["LDCQ"] == {"value": "0.00", "interval": "0 of 8", "tint": 50, "side": "less"}


def test_thinned_plans_keep_both_ends() -> None:
    plan = a_plan(horizon=20)
    (start,), (thin,) = plan["starts"], page._thinned(plan)["starts"]
    assert [len(path) for path in thin["paths"]] == [11] * 12
    assert all(
        path[0] == whole[0] and path[-1] == whole[-1] for path, whole in zip(thin["paths"], start["paths"], strict=True)
    )
    odd = page._thinned({"starts": [{"paths": [[0, 1, 2, 3]]}]})
    assert odd["starts"][0]["paths"] == [[0, 2, 3]]


def test_the_page_is_written_but_not_checked(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "results" / "mine", [a_run()])
    pages = report.Pages()
    report.add_suite(pages, folder)
    assert pages.uncommitted.keys() == {folder / "report.html"}
    report.build(folder, with_figures=False)
    assert not (folder / "report.html").exists()
    assert not [line for line in pages.differences() if "figures" not in line]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(maze_page: tuple[Path, str]) -> None:
    """No message on the console; nothing wider than 360 pixels but in a box of its own; clicks sort."""
    frame_page = Path(__file__).resolve().parent / "frame_360.html"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--allow-file-access-from-files",
    ]
    address = f"{frame_page.as_uri()}#{maze_page[0].as_uri()}"
    command = [str(CHROMIUM), *flags, "--virtual-time-budget=5000", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout)
    assert found is not None
    shown = json.loads(html.unescape(found[1]))
    assert shown["width"] == 360
    down, up, by_agent = shown["clicks"]
    assert (down[0], up[0], by_agent[0]) == ("descending", "ascending", "ascending")
    values = [float(text.split(" ")[0]) for text in down[1:]]
    assert values == sorted(values, reverse=True)
    assert [float(text.split(" ")[0]) for text in up[1:]] == sorted(values)
    assert values[0] >= 100 > values[2] > 10 > 0 > values[-1], "as numbers, not as text"
    assert by_agent[1:3] == ["BC", "BC"]
