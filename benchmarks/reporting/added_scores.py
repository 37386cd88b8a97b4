"""Scores of agents that did not run here, from a CSV file, as rows beside a suite's runs."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pandas as pd

from reporting.runs import ENV, MEASURED

COLUMNS = ("agent", "dataset", "seed", "score")
MAX_BYTES = 1 << 20
MAX_ROWS = 10_000
MAX_NAME = 100  # characters of an agent's name


def with_added(runs: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The frame of a suite's runs with a row for each score of a CSV file.

    Args:
        runs: as `runs.frame` makes it.
        path: columns agent, dataset, seed, score; `score` is the mean return of the last checkpoint in the unit of the
            suite's table (D4RL scores where it has them), `dataset` one of the suite's, with or without `ld-agents/`.

    Raises:
        ValueError: the file cannot be read or a row cannot be taken; the message names the row and what to write.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file; write one with the columns {','.join(COLUMNS)}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 20} MiB; keep one row per agent, dataset and seed")
    try:
        text = path.read_text(encoding="utf-8-sig")
        head, *given = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), strict=True) if row]
    except (ValueError, csv.Error) as error:  # an empty file, another encoding
        raise ValueError(f"{path} is no CSV file of UTF-8 text: {error}") from None
    if tuple(head) != COLUMNS:
        raise ValueError(f"{path} has the columns {', '.join(head)[:200]}; write {','.join(COLUMNS)}")
    if not 1 <= len(given) <= MAX_ROWS:
        raise ValueError(f"{path} has {len(given)} rows; write 1 to {MAX_ROWS:,}")
    rows = []
    for number, row in enumerate(given, start=1):
        try:
            if len(row) != len(COLUMNS):
                raise ValueError(f"{len(row)} cells; write {','.join(COLUMNS)}")
            rows.append(_row(runs, *row))
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
    added = pd.DataFrame(rows)
    if (twice := added.duplicated(["dataset", "label", "seed"])).any():
        which = added[twice].iloc[0]
        raise ValueError(f"{path}: {which['label']} on {which['dataset']} has seed {which['seed']} twice; keep one")
    table = pd.concat([runs.astype(object), added.astype(object)], ignore_index=True).astype({"added": bool})
    table = table.astype(dict.fromkeys((ENV, *MEASURED), float))
    return table.sort_values(["dataset", "label", "seed"], ignore_index=True, kind="stable")


def _row(runs: pd.DataFrame, agent: str, dataset: str, seed: str, score: str) -> pd.Series:
    if not 1 <= len(agent) <= MAX_NAME or not agent.isprintable():
        raise ValueError(f"agent {agent[:MAX_NAME]!r}; write a name of 1 to {MAX_NAME} printable characters")
    if agent in set(runs["label"]) | set(runs["agent"]):
        raise ValueError(f"agent {agent!r} is in the suite already; give yours another name")
    names = [dataset, f"ld-agents/{dataset}"]
    if (of_data := runs[runs["dataset"].isin(names)]).empty:
        known = ", ".join(sorted(set(runs["dataset"])))
        raise ValueError(f"the suite has no dataset {dataset[:200]!r}; write one of {known}")
    if not (seed.isascii() and seed.isdecimal() and len(seed) <= 18):
        raise ValueError(f"seed {seed[:40]!r}; write a whole number, 0 or above")
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e6:
        raise ValueError(f"score {score[:40]!r}; write a number between -1e6 and 1e6")
    # What belongs to the dataset is that of a run on it; nothing is known of what belongs to the run.
    base = of_data.iloc[0]
    file = base["file"] | {"agent": agent, "seed": int(seed), "added_score": value, "curve": [], "plans": None}
    unknown = dict.fromkeys(MEASURED, math.nan)
    given = {"agent": agent, "label": agent, "seed": int(seed), ENV: value, "added": True, "file": file}
    setting = {"preset": "–", "budget": "–", "budget_share": math.nan, "gradient_steps": math.nan, "episodes": "–"}
    return pd.Series({**base.to_dict(), **unknown, **setting, **given})
