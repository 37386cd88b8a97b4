"""The table of a suite, for people, machines and terminals: one frame of scores, rendered three times."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import pandas as pd

from reporting import references
from reporting.intervals import Estimate, mean_interval
from reporting.runs import ENV, FIRST_CONTACT, SUCCESS, by_dataset, measures

# What rows of one dataset may differ in, and the column of the frame of runs that tells.
MIXTURES = {
    "data (hash)": "data",
    "simulators": "simulator",
    "commits": "commit",
    "budgets": "budget",
    "presets": "preset",
    "numbers of evaluation episodes": "episodes",
    "hardware": "hardware",
}
CSV_COLUMNS = {
    **dict.fromkeys(("dataset", "dataset_hash", "provenance", "agent", "preset"), "{}"),
    "budget_share": "{:g}",
    "gradient_steps": "{:.0f}",
    "seeds": "{}",
    "episodes": "{}",
    "protocol": "{}",
    "unit": "{}",
    "mean": "{:.3f}",
    "low": "{:.3f}",
    "high": "{:.3f}",
    "ms_per_action": "{:.4f}",
    "minutes": "{:.3f}",
    "peak_memory_mb": "{:.0f}",
    "published_score": "{}",
    "published_spread": "{}",
    **dict.fromkeys(("published_protocol", "published_source", "published_confidence"), "{}"),
}
HEADERS = {
    "provenance": "made by",
    "n_seeds": "seeds",
    "success": "success %",
    "ms_per_action": "ms per action",
    "published": "published, env",
}
MEASURES = {
    ENV: "",
    FIRST_CONTACT: "`first contact` credits every step from the first one at the goal, from the same rollouts",
    SUCCESS: "`success %` is the share of episodes in which the task was solved",
}
HEAD = """{description}

`env` is the environment's return{explained}. D4RL scores: 0 and 100 are D4RL's constants for random actions and for \
its reference policy. Rows in italics are reference policies measured here. Published numbers are other people's, on \
D4RL's own data. Data that are `regenerated` follow D4RL's recipe, a `stand-in` does not.

"""


def number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}".replace("-0.0", "0.0")


def bracketed(estimate: Estimate) -> str:
    """`12.3 [10.0, 14.5]`, without the brackets where there is no interval."""
    value, low, high = estimate
    return number(value) if math.isnan(low) else f"{number(value)} [{number(low)}, {number(high)}]"


def markdown(table: pd.DataFrame) -> str:
    """A frame of texts in Markdown; pandas' own `to_markdown` needs one more package, and pads every column."""
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "".join("| " + " | ".join(str(text).replace("|", "\\|") for text in line) + " |\n" for line in lines)


def csv(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """These columns of a frame as CSV, each in its format; what is missing is empty."""
    shown = table.reindex(columns=list(columns)).astype(object)
    for name, form in columns.items():
        shown[name] = [form.format(value) if pd.notna(value) else "" for value in shown[name]]
    return str(shown.to_csv(index=False, lineterminator="\n"))


def score_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per dataset, agent and measure: mean over runs with its 95 % interval, costs and published numbers.

    Reference policies (`is_policy`) stand below the agents of each dataset.
    """
    rows: list[dict[str, Any]] = []
    for dataset, members in by_dataset(runs):
        run = next(iter(members.values())).iloc[0]
        data = {"dataset": dataset, "dataset_hash": run["hash"], "provenance": run["provenance"]}
        for label, cell in members.items():
            run = cell.iloc[0]
            for measure in measures(cell):
                mean, low, high = mean_interval(cell[measure].to_numpy())
                row = {
                    **data,
                    "agent": run["agent"],
                    "label": label,
                    "is_policy": False,
                    "preset": run["preset"],
                    "budget_share": run["budget_share"],
                    "budget": f"{run['budget']} = {run['gradient_steps']:,} steps",
                    "gradient_steps": run["gradient_steps"],
                    "seeds": " ".join(map(str, cell["seed"])),
                    "n_seeds": str(len(cell)),
                    "episodes": str(run["episodes"]),
                    "protocol": measure,
                    "unit": "%" if measure == SUCCESS else run["unit"],
                    "mean": mean,
                    "low": low,
                    "high": high,
                    "ms_per_action": cell["ms_per_action"].mean(),
                    "minutes": cell["minutes"].mean(),
                    "peak_memory_mb": cell["peak_memory_mb"].max(),
                }
                rows.append(row | (references.published(run) if measure == ENV else {}))
        rows += [data | policy for policy in references.policies(next(iter(members.values())))]
    return pd.DataFrame(rows)


def _wide(table: pd.DataFrame, missing: str) -> tuple[pd.DataFrame, list[str]]:
    """One row of texts per agent or policy with a column for each measure, and the names of these measures."""
    keys = ["dataset", "label", "is_policy"]
    texts = [bracketed(estimate) for estimate in zip(table["mean"], table["low"], table["high"], strict=True)]
    by_measure = table.assign(text=texts).pivot(index=keys, columns="protocol", values="text").reset_index()
    rows = table.drop_duplicates(keys).merge(by_measure, on=keys)
    for name, form in (("ms_per_action", "{:.2f}"), ("minutes", "{:.1f}")):
        rows[name] = [form.format(value) if pd.notna(value) else missing for value in rows[name]]
    rows = rows.fillna(dict.fromkeys((*MEASURES, "preset", "budget", "n_seeds"), missing)).fillna("")
    return rows, [measure for measure in MEASURES if measure in rows]


def table_csv(table: pd.DataFrame) -> str:
    """The table for machines: one row per agent or policy and measure."""
    return csv(table, CSV_COLUMNS)


def table_markdown(table: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The table for people, with its head and notes."""
    rows, shown = _wide(table, missing="–")
    rows["agent"] = rows["label"].where(~rows["is_policy"], "*" + rows["label"] + "*")
    columns = ["dataset", "provenance", "agent", "preset", "budget", "n_seeds", "episodes", *shown]
    rows = rows.reindex(columns=[*columns, "ms_per_action", "minutes", "published", "source"], fill_value="")
    explained = "".join(f"; {text}" for measure, text in MEASURES.items() if text and measure in shown)
    head = HEAD.format(description=describe(runs), explained=explained)
    notes_ = "".join(f"- {line}\n" for line in [*notes(runs), origin(runs)])
    return f"{head}{markdown(rows.rename(columns=HEADERS))}\nNotes:\n{notes_}"


def table_terminal(table: pd.DataFrame, runs: pd.DataFrame, width: int = 120) -> str:
    """The table for a terminal of that width; names that are too long lose their beginning."""
    rows, shown = _wide(table, missing="")
    rows["dataset"] = [_short(name.removeprefix("ld-agents/"), 28) for name in rows["dataset"]]
    rows["agent"] = rows["label"].where(~rows["is_policy"], "(" + rows["label"] + ")")
    rows = rows[["dataset", "agent", "provenance", *shown, "ms_per_action", "minutes"]]
    rows = rows.rename(columns={**HEADERS, "ms_per_action": "ms/action", "minutes": "min"})
    widths = {name: max(len(name), rows[name].str.len().max()) for name in rows}
    others = sum(widths.values()) - widths["agent"]
    widths["agent"] = min(widths["agent"], max(12, width - others - 2 * len(widths)))
    for name in ("dataset", "agent"):  # to the left, numbers to the right
        rows[name] = [_short(text, widths[name]).ljust(widths[name]) for text in rows[name]]
        rows = rows.rename(columns={name: name.ljust(widths[name])})
    foot = [
        textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False)
        for line in [*notes(runs), origin(runs)]
    ]
    return "\n\n".join([textwrap.fill(describe(runs), width), rows.to_string(index=False), "\n".join(foot)])


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[-(width - 1) :]


def describe(runs: pd.DataFrame) -> str:
    """What the numbers of a table are: scale, seeds, episodes."""
    seeds = sorted(set(runs.groupby(["dataset", "label"]).size()))
    return (
        f"Mean {' or '.join(sorted(set(runs['unit'])))} of the last checkpoint with a 95 % stratified bootstrap "
        f"interval over seeds; {' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])}, "
        f"{' or '.join(map(str, sorted(set(runs['episodes']))))} evaluation episodes per seed."
    )


def notes(runs: pd.DataFrame) -> list[str]:
    """What a reader must know before comparing rows: mixtures, missing intervals, missing scales and their defects."""
    lines = []
    defects: dict[str, list[str]] = {}
    single = []
    for dataset, members in by_dataset(runs):
        of_data = runs[runs["dataset"] == dataset]
        first = next(iter(members.values())).iloc[0]
        if first["raw_because"] is not None:
            lines.append(f"{dataset}: raw returns, because {first['raw_because']}")
        for defect in references.known_defects(first["file"]):
            defects.setdefault(defect, []).append(dataset)
        for what, column in MIXTURES.items():
            values = sorted(set(of_data[column].astype(str)))
            if len(values) > 1:
                lines.append(f"{dataset}: rows mix {what}: {', '.join(values)}")
        changes = {versions for run in of_data["file"] if (versions := references.changed_simulator(run)) is not None}
        lines += [f"{dataset}: replayed under mujoco {made}, evaluated under {ran}" for made, ran in sorted(changes)]
        single += [f"{label} on {dataset}" for label, cell in members.items() if len(cell) == 1]
    if single:
        all_rows = len(single) == len(runs.drop_duplicates(["dataset", "label"]))
        lines.append(f"1 seed, so there is no interval: {'all rows' if all_rows else '; '.join(single)}")
    return lines + [f"D4RL's scale on {', '.join(datasets)}: {defect}" for defect, datasets in defects.items()]


def origin(runs: pd.DataFrame) -> str:
    """Where all the runs came from: hardware, versions, commits."""
    versions = []
    for package in ("python", "torch", "stable-baselines3", "gymnasium-robotics", "mujoco"):
        versions.append(f"{package} {' and '.join(sorted({str(run['versions'][package]) for run in runs['file']}))}")
    machines, commits = (" and ".join(sorted(set(runs[column]))) for column in ("hardware", "commit"))
    return f"Ran on {machines}; {', '.join(versions)}; commit {commits}."
