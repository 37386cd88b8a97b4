"""The table of a suite, for people, machines and terminals: one frame of scores, rendered three times."""

from __future__ import annotations

import functools
import json
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ld_agents.evaluation.environments import has_new_contacts
from reporting import references
from reporting.intervals import FEW, MEAN, STUDENT, Estimate, covers, mean_interval, student_interval
from reporting.runs import ENV, FIRST_CONTACT, PROTOCOLS, SUCCESS, by_dataset, measures, scores
from specs import differing, settings_today

# What rows of one dataset may differ in, and the column of the frame of runs that shows it.
MIXTURES = {
    "data (hash)": "data",
    "simulators": "simulator",
    "commits": "commit",
    "budgets": "budget",
    "presets": "preset",
    "numbers of evaluation episodes": "episodes",
    "hardware": "hardware",
}
DIVERGED = 1e6  # a loss that is this many times its first value, or this much where it began below 1
CSV_FORMATS = {
    "budget_share": "{:g}",
    "gradient_steps": "{:.0f}",
    "ms_per_action": "{:.4f}",
    "peak_memory_mb": "{:.0f}",
}
STUDENTS = "Student's t, env"
BEFORE = ["dataset", "made by", "agent", "preset", "budget", "seeds", "episodes"]
AFTER = ["ms per action", "minutes", STUDENTS, "published, env", "source"]
ELSEWHERE = (
    "; OGBench's are of agents that did not run here, on its own data from the same maze and with five pairs of start "
    "and goal, and so no comparison"
)
MEASURES = {
    ENV: ("env", ""),
    FIRST_CONTACT: ("first contact", "credits every step from the first one at the goal, from the same rollouts"),
    SUCCESS: ("success %", "is the share of episodes in which the task was solved"),
}
HEAD = """{description}

`env` is the environment's return{explained}. D4RL scores: 0 and 100 are D4RL's constants for random actions and for \
its reference policy. Rows in italics are reference policies measured here. Published numbers are other people's, on \
D4RL's own data{elsewhere}. Data that are `regenerated` follow D4RL's recipe, a `stand-in` does not.

"""


def number(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{value:z.{digits}f}"


def bracketed(estimate: Estimate, digits: int = 1) -> str:
    """`12.3 [10.0, 14.5]`, without the brackets where there is no interval."""
    value, *ends = (number(part, digits) for part in estimate)
    return value if math.isnan(estimate[1]) else f"{value} [{', '.join(ends)}]"


def digits_of(runs: pd.DataFrame, measure: str) -> int:
    """Decimals that tell the scores of one dataset apart: raw returns may be shares of 1."""
    raw = measure != SUCCESS and runs["unit"].iloc[0] == "raw return"
    return 3 if raw and runs[measure].abs().max() <= 1 else 1


def ranged(value: float, values: Sequence[float], digits: int = 1) -> str:
    """`12.3 (10.0 to 14.5)`: a value with the range of few seeds."""
    return f"{number(value, digits)} ({number(min(values), digits)} to {number(max(values), digits)})"


def _cell(cell: pd.DataFrame, measure: str, estimate: Estimate) -> str:
    """A mean, with what its number of seeds allows: standard error of the evaluation, range, bootstrap interval."""
    run, digits = cell.iloc[0], digits_of(cell, measure)
    if len(cell) >= FEW or (run["added"] and len(cell) == 1):
        return bracketed(estimate, digits)
    if len(cell) > 1:
        return ranged(estimate[0], cell[measure].tolist(), digits)
    file = run["file"]
    episodes = scores(file, measure) if measure in PROTOCOLS else 100 * np.array(file["successes"], dtype=np.float64)
    if len(episodes) < 2:
        return number(estimate[0], digits)
    if episodes.std() == 0:  # a share of 0 or 1, say: no error can be told from equal episodes
        return f"{number(estimate[0], digits)} (all episodes)"
    return f"{number(estimate[0], digits)} ± {number(episodes.std(ddof=1) / len(episodes) ** 0.5, digits)}"


def markdown(table: pd.DataFrame) -> str:
    """A frame of texts in Markdown; pandas' own `to_markdown` needs one more package, and pads every column."""
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    cells = ([escaped(str(text)).replace("|", "\\|") for text in line] for line in lines)
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)


def escaped(text: str) -> str:
    """Text from a run file for a page: on one line, without HTML and links."""
    return " ".join(text.split()).replace("<", "&lt;").replace("](", "]\\(")


def score_tables(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores as numbers, one row per dataset, agent and measure, and as texts, one row per dataset and agent.

    Reference policies (`is_policy`; in italics) stand below the agents of each dataset, and as texts what is published
    of agents on other data.
    """
    numbers: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    for dataset, members in by_dataset(runs):
        for label, cell in members.items():
            run = cell.iloc[0]
            published = references.published(run)
            costs = cell[["ms_per_action", "minutes"]].mean()
            estimates = {measure: mean_interval(cell[measure].to_numpy()) for measure in measures(cell)}
            setting = {"dataset": dataset, "dataset_hash": run["hash"], "provenance": run["provenance"]}
            setting |= run[["agent", "preset", "budget_share", "gradient_steps"]].to_dict()
            setting |= {"seeds": " ".join(map(str, cell["seed"])), "episodes": run["episodes"]}
            for measure, (mean, low, high) in estimates.items():
                row = {"protocol": measure, "unit": "%" if measure == SUCCESS else run["unit"], "mean": mean}
                row |= {"low": low, "high": high, **costs, "peak_memory_mb": cell["peak_memory_mb"].max()}
                row |= dict(zip(("t_low", "t_high"), student_interval(cell[measure].to_numpy()), strict=True))
                row |= published if measure == ENV else {}
                numbers.append(setting | row | {"label": label, "is_policy": False})
            row = {"dataset": dataset, "made by": run["provenance"], "agent": label, "preset": run["preset"]}
            row |= {"budget": "–" if run["added"] else f"{run['budget']} = {run['gradient_steps']:,} steps"}
            row |= {measure: _cell(cell, measure, estimate) for measure, estimate in estimates.items()}
            row |= {"ms per action": number(costs["ms_per_action"], 2), "minutes": number(costs["minutes"])}
            ends = student_interval(cell[ENV].to_numpy())
            digits = digits_of(cell, ENV)
            row |= {STUDENTS: "–" if len(cell) == 1 else f"[{', '.join(number(end, digits) for end in ends)}]"}
            texts.append(row | {"seeds": len(cell), "episodes": run["episodes"]} | published)
        for name, episodes, means in references.policies(next(iter(members.values()))):
            setting = {key: numbers[-1][key] for key in ("dataset", "dataset_hash", "provenance")}
            for measure, mean in means.items():
                row = {"agent": name, "episodes": episodes, "protocol": measure, "mean": mean}
                row |= {"unit": "%" if measure == SUCCESS else run["unit"], "label": name, "is_policy": True}
                numbers.append(setting | row)
            row = {"dataset": dataset, "made by": run["provenance"], "agent": f"*{name}*", "episodes": episodes}
            row |= {measure: number(mean) for measure, mean in means.items()}
            texts.append(row | {"published, env": "", "source": ""})
        texts += [{"dataset": dataset, **row} for row in references.on_other_data(run)]
    shown = [measure for measure in MEASURES if any(measure in row for row in texts)]
    table = pd.DataFrame(texts, columns=[*BEFORE, *shown, *AFTER], dtype=object)
    table = table.where(table.notna(), "–")  # fillna would warn of downcasting
    return pd.DataFrame(numbers), table.rename(columns={SUCCESS: "success %"})


def with_failures(texts: pd.DataFrame, failures: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """The texts with a row for each agent that failed on a dataset, with how many seeds."""
    counts = Counter((run["dataset"], run["agent"], run["preset"]) for run in failures)
    rows = [
        {"dataset": dataset, "agent": agent, "preset": preset, "seeds": f"{n} failed", "env": "failed"}
        for (dataset, agent, preset), n in counts.items()
    ]
    return pd.concat([texts, pd.DataFrame(rows, columns=texts.columns, dtype=object).fillna("–")]) if rows else texts


def reasons(failures: Sequence[Mapping[str, str]]) -> list[str]:
    """Why runs failed, for the notes."""
    return [f"FAILED: {run['agent']} on {run['dataset']}, seed {run['seed']}: {run['reason']}" for run in failures]


def table_csv(numbers: pd.DataFrame) -> str:
    """The table for machines."""
    shown = numbers.drop(columns=["label", "is_policy", "published, env", "source"])
    for name, form in CSV_FORMATS.items():
        shown[name] = [form.format(value) if pd.notna(value) else "" for value in shown[name]]
    return str(shown.to_csv(index=False, float_format="%.3f", lineterminator="\n"))


def table_markdown(
    texts: pd.DataFrame, runs: pd.DataFrame, failures: Sequence[Mapping[str, str]] = (), missing: Sequence[str] = ()
) -> str:
    """The table for people, with its head and notes; `missing` says what has not run yet."""
    explained = "".join(f"; `{name}` {text}" for name, text in MEASURES.values() if name in texts and text)
    elsewhere = ELSEWHERE * bool(texts["source"].str.startswith("OGBench").any())
    head = HEAD.format(description=describe(runs), explained=explained, elsewhere=elsewhere)
    lines = [*missing, *coverage(runs), *notes(runs), *reasons(failures), origin(runs)]
    return head + markdown(texts) + "\nNotes:\n" + "".join(f"- {escaped(line)}\n" for line in lines)


def table_terminal(texts: pd.DataFrame, runs: pd.DataFrame, width: int = 120) -> str:
    """The table for a terminal of that width; names that are too long lose their beginning."""
    shown = texts[texts["env"] != "–"]  # without what is published alone
    shown = shown.drop(columns=["preset", "budget", "seeds", "episodes", STUDENTS, "published, env", "source"])
    shown["dataset"] = [_short(name.removeprefix("ld-agents/"), 28) for name in shown["dataset"]]
    shown["agent"] = [f"({name.strip('*')})" if name.startswith("*") else name for name in shown["agent"]]
    shown.insert(1, "agent", shown.pop("agent"))
    shown = shown.rename(columns={"ms per action": "ms/action", "minutes": "min"})
    widths = {name: max(len(name), shown[name].str.len().max()) for name in shown}
    room = width - sum(widths.values()) + widths["agent"] - 2 * len(widths)
    widths["agent"] = min(widths["agent"], max(12, room))
    for name in ("dataset", "agent"):  # to the left, numbers to the right
        shown[name] = [_short(text, widths[name]).ljust(widths[name]) for text in shown[name]]
        shown = shown.rename(columns={name: name.ljust(widths[name])})
    lines = [describe(runs), "", shown.to_string(index=False), "", *coverage(runs), *notes(runs), origin(runs)]
    wrap = functools.partial(textwrap.fill, width=width, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(wrap(line) if len(line) > width and "\n" not in line else line for line in lines)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[-(width - 1) :]


def describe(runs: pd.DataFrame) -> str:
    """What the numbers of a table are: scale, seeds, episodes."""
    runs = runs[~runs["added"]]
    seeds = sorted(set(runs.groupby(["dataset", "label"]).size()))
    return (
        f"Mean {' or '.join(sorted(set(runs['unit'])))} of the last checkpoint. [a, b]: 95 % bootstrap interval "
        f"over seeds; (a to b): the range of fewer than {FEW} seeds; ± with one seed: standard error of episodes "
        f"(none where all are equal), which says nothing of how trainings differ. "
        f"{' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])}, "
        f"{' or '.join(map(str, sorted(set(runs['episodes']))))} evaluation episodes per seed."
    )


def coverage(runs: pd.DataFrame) -> list[str]:
    """How often intervals of so few seeds contain the truth, by simulation."""
    counts = [int(n) for n in sorted(set(runs.groupby(["dataset", "label"]).size())) if n > 1]
    cases = (f"with {n} seeds {covers(MEAN, n)} and {covers(STUDENT, n)}" for n in counts)
    return [
        "a 95 % bootstrap interval of the mean and Student's t contain the truth in this share of cases, by simulation "
        f"with normal scores (results/coverage.md): {', '.join(cases)}"
    ] * bool(counts)


def notes(runs: pd.DataFrame) -> list[str]:
    """What a reader must know before comparing rows: mixtures, missing intervals, missing scales and their defects."""
    added = ", ".join(sorted(set(runs[runs["added"]]["label"])))
    lines = [f"{added}: scores that were added, not measured here"] if added else []
    defects: dict[str, list[str]] = {}
    single = []
    for dataset, members in by_dataset(runs):
        of_data = runs[(runs["dataset"] == dataset) & ~runs["added"]]
        first = next(iter(members.values())).iloc[0]
        if first["raw_because"] is not None:
            lines.append(f"{dataset}: raw returns, because {first['raw_because']}")
        for defect in references.known_defects(first["file"]):
            defects.setdefault(defect, []).append(dataset)
        lines += [f"{dataset}: {line}" for line in _notes_on_data(of_data)]
        for label, cell in members.items():
            used = {run["versions"]["mujoco"] for run in cell["file"]} - {None}  # not everybody has it installed
            sides = {has_new_contacts(version) for version in used}
            if len(sides) > 1:
                lines.append(
                    f"{label} on {dataset}: NOT ONE SCORE: its seeds ran on both sides of mujoco 3.5.0, where contacts "
                    "changed; run them again on one"
                )
            lines += [f"{label} on {dataset}: {line}" for line in (*settings_notes(cell), *_diverged(cell))]
            wall, cpu = cell["learn_minutes"], cell["learn_cpu_minutes"]
            stretched = (wall >= 1) & (cpu <= 0.8 * wall)
            if stretched.any():
                took = f"{number(cpu[stretched].mean())} minutes of processor time in {number(wall[stretched].mean())}"
                lines.append(f"{label} on {dataset}: learned beside other work on the same cores, {took} minutes")
        single += [f"{label} on {dataset}" for label, cell in members.items() if len(cell) == 1]
    if single:
        all_rows = len(single) == len(runs.drop_duplicates(["dataset", "label"]))
        lines.append(f"1 seed, so there is no interval: {'all rows' if all_rows else '; '.join(single)}")
    return lines + [f"D4RL's scale on {', '.join(datasets)}: {defect}" for defect, datasets in defects.items()]


def _notes_on_data(runs: pd.DataFrame) -> list[str]:
    """What must be known of the data and simulators of one dataset's runs."""
    lines = []
    for what, column in MIXTURES.items():
        values = sorted(set(runs[column].astype(str)))
        if len(values) > 1:
            lines.append(f"rows mix {what}: {', '.join(values)}")
    changes = {versions for run in runs["file"] if (versions := references.changed_simulator(run)) is not None}
    lines += [f"replayed under mujoco {made}, evaluated under {ran}" for made, ran in sorted(changes)]
    measured = {version for run in runs["file"] if (version := references.other_simulator(run)) is not None}
    lines += [f"reference policies measured under mujoco {version}" for version in sorted(measured)]
    elsewhere = runs["label"][runs["file"].map(references.is_of_another_recording)]
    if not elsewhere.empty:
        names = ", ".join(dict.fromkeys(elsewhere))
        lines.append(f"{names}: learned from another recording than the one in results/datasets.md")
    return lines


def settings_notes(cell: pd.DataFrame) -> list[str]:
    """Whether the seeds of a cell had one setting, and whether it is the one that the agent has today."""
    told = [run.get("settings", {}) for run in cell["file"][~cell["added"]]]
    mixed = list(dict.fromkeys(name for settings in told for name in differing(told[0], settings)))
    lines = [f"NOT ONE AGENT: its seeds differ in {', '.join(mixed)}; run them again"] if mixed else []
    changes = [f"{name} {json.dumps(then)} (now {json.dumps(now)})" for name, (then, now) in outdated(cell).items()]
    return lines + [f"learned with an older preset: {', '.join(changes)}"] * bool(changes)


def _diverged(cell: pd.DataFrame) -> list[str]:
    """A line about the seeds whose loss grew beyond all that learns: they were scored, but say little of the method."""
    ends = dict[int, float]()
    for run in cell["file"][~cell["added"]]:
        for points in run.get("losses", {}).values():
            if points and points[-1][1] > DIVERGED * max(1.0, points[0][1]):
                ends[run["seed"]] = max(points[-1][1], ends.get(run["seed"], 0.0))
    return [f"diverged with seed {seed}: its loss ended at {end:.1e}" for seed, end in ends.items()]


def outdated(cell: pd.DataFrame) -> dict[str, tuple[Any, Any]]:
    """Settings of a cell's runs that their agent would not have today: name -> (then, now)."""
    found = dict[str, tuple[Any, Any]]()
    for run in cell["file"][~cell["added"]]:
        found |= differing(run.get("settings", {}), settings_today(run))
    return found


def origin(runs: pd.DataFrame) -> str:
    """Where all the runs came from: hardware, versions, commits."""
    versions = []
    for package in ("python", "torch", "stable-baselines3", "gymnasium-robotics", "mujoco"):
        versions.append(f"{package} {' and '.join(sorted({str(run['versions'][package]) for run in runs['file']}))}")
    machines, commits = (" and ".join(sorted(set(runs[column]))) for column in ("hardware", "commit"))
    return f"Ran on {machines}; {', '.join(versions)}; commit {commits}."
