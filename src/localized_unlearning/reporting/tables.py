"""Tables 1 to 4: one row per localization, from per-item rows alone.

Every number carries its interval, over items and, where there are several, over seeds and forget sets. A
column in which the base model itself is at chance or below is marked, because nothing can be read from it, and so
is a cell of a model that answers everything alike. For a Gemma-7B run the paper's value stands beside ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.analysis.measures import estimates, items, read_frames
from localized_unlearning.analysis.standing import standings
from localized_unlearning.analysis.statistics import ACCURACIES, covers
from localized_unlearning.config.evaluation import Measures
from localized_unlearning.config.run import Config
from localized_unlearning.data.tasks import in_words
from localized_unlearning.errors import UserError
from localized_unlearning.paper import terms
from localized_unlearning.paper.artefacts import TABLES
from localized_unlearning.paper.published import PAPER
from localized_unlearning.paper.terms import BY_NAME, MAIN, MARKS, MEASURES, Measure
from localized_unlearning.reporting import captions
from localized_unlearning.reporting.markup import NOTHING, Panel, interval, is_shown, latex, markdown, number

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job

PAPER_COLUMNS = ("forget_question", "retain_question", "mcq_forget", "mmlu")
"""Our columns that the paper's four columns are comparable with: its FORGET and RETAIN are, in the
released code, the question prompt's."""

BASE, GOLD = "base", "gold"

KNOWERS = {name: {**NOTHING, "label": label} for name, label in terms.KNOWERS.items()}
"""The models that were not unlearned, as if they were selections of nothing."""

ALL_SETS = "all"
"""What stands for the task where an estimate is the mean over a task's forget sets."""


def tidy(
    table: str,
    frames: Mapping[str, pd.DataFrame],
    selections: Mapping[str, Mapping[str, Any]],
    config: Config,
) -> pd.DataFrame:
    """One row per forget set, localization, column and accuracy, with what is known of its uncertainty.

    ``task`` names the forget set; ``all`` is the mean over a task's forget sets, where there are several.
    ``covers`` says what the interval covers. ``recall``, ``modal`` and ``base_standing`` are of the whole group of
    measures that a column belongs to (see :mod:`localized_unlearning.analysis.standing`). For Gemma-7B the paper's value
    stands beside ours.
    """
    main, statistics = TABLES[table][0], config.statistics
    paper = PAPER[table] if is_gemma_7b(config) else {}
    parts = []
    for accuracy in ACCURACIES:
        scores = items(frames, config.prompts, accuracy)
        parts.append(estimates(scores, statistics, ("task", "localization")))
        if scores["task"].nunique() > 1:
            parts.append(estimates(scores, statistics, ("localization",)).assign(task=ALL_SETS))
    data = pd.concat(parts, ignore_index=True)
    data = data.drop_duplicates(["task", "localization", "measure", "accuracy"], ignore_index=True)
    counts = data[["seeds", "sets", "bases"]].itertuples(index=False, name=None)
    data["covers"] = [covers(*count) for count in counts]
    data["paper"] = [
        paper[name][PAPER_COLUMNS.index(column)]
        if task == main and name in paper and column in PAPER_COLUMNS
        else None
        for task, name, column in zip(data["task"], data["localization"], data["measure"], strict=True)
    ]
    data = with_distance(_with_standing(data, standings(frames, config.prompts, statistics)))
    there = set(frames["facts"]["localization"])
    known: Mapping[str, Mapping[str, Any]] = {
        **{name: found for name, found in KNOWERS.items() if name in there},
        **selections,
    }
    sizes = pd.DataFrame(
        [
            {
                "localization": name,
                "label": found["label"],
                "components": len(found["components"]),
                "parameters": found["parameters"],
                "share_of_parameters": found["share_of_parameters"],
                "order": order,
            }
            for order, (name, found) in enumerate(known.items())
        ]
    )
    tasks = [main, *(t for t in data["task"].unique() if t not in (main, ALL_SETS)), ALL_SETS]
    columns = [measure.name for measure in MEASURES]
    data = data.rename(columns={"measure": "column"}).merge(sizes, on="localization", how="left")
    data = data.sort_values(
        ["task", "order", "accuracy", "column"],
        key=lambda values: (
            values.map({name: i for i, name in enumerate([*tasks, *columns, *ACCURACIES, "loss"])})
            if values.name != "order"
            else values
        ),
        kind="stable",
        ignore_index=True,
    )
    first = [
        "task", "localization", "label", "components", "parameters", "share_of_parameters", "column", "accuracy"
    ]  # fmt: skip
    return data[[*first, *(c for c in data.columns if c not in (*first, "order"))]]


def with_distance(data: pd.DataFrame) -> pd.DataFrame:
    """With ``distance``, how far a mean is from gold's in either direction; NaN of losses, and where there is no gold.

    Gold, not guessing, is the aim of unlearning: below it a model has learned to avoid the answer.
    """
    keys = ["task", "measure", "accuracy"]
    gold = data.loc[(data["localization"] == GOLD) & (data["accuracy"] != "loss"), [*keys, "mean"]]
    data = data.merge(gold.rename(columns={"mean": "gold"}), on=keys, how="left")
    return data.assign(distance=(data["mean"] - data["gold"]).abs()).drop(columns="gold")


DISTANCES = ("forget_training", "forget_question", "mcq_forget", "teachers_mcq")
"""Columns of which the distance from gold is shown."""


def distances(data: pd.DataFrame, accuracy: str, columns: Sequence[str]) -> Panel | None:
    """|accuracy - gold| of one forget set (or of the mean); None without gold."""
    own = data[(data["accuracy"] == accuracy) & data["column"].isin(columns) & (data["localization"] != GOLD)]
    if own["distance"].isna().all():
        return None
    shown = [BY_NAME[name] for name in columns if name in set(own["column"])]
    lines = []
    for _, group in own.groupby("localization", sort=False):
        by_column = group.set_index("column")["distance"]
        lines.append([str(group["label"].iloc[0]), *[number(by_column[measure.name]) for measure in shown]])
    caption = "Distance from gold, the absolute difference of accuracies: 0 is the model that never learned the forget set."
    return Panel(caption, ["Localization", *[measure.short for measure in shown]], lines)


def _with_standing(data: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """With ``chance``, the model's mean ``recall`` and ``modal`` share, and the base model's ``base_standing``."""
    worst = {"below chance": 0, "at chance": 1, "above chance": 2}
    mean = found.groupby(["localization", "group"], sort=False).agg(
        mean=("mean", "mean"), modal=("modal", "mean"), chance=("chance", "mean"), standing=("standing", lambda s: min(s, key=worst.__getitem__))
    )  # fmt: skip
    found = pd.concat([found, mean.reset_index().assign(task=ALL_SETS)], ignore_index=True)
    keys = ["task", "localization", "group"]
    model = found[[*keys, "mean", "modal", "chance"]].rename(columns={"mean": "recall"})
    base = found.loc[found["localization"] == BASE, ["task", "group", "standing"]]
    data = data.assign(group=data["measure"].map({m.name: m.group for m in MEASURES}))
    data = data.merge(model, on=keys, how="left")
    data = data.merge(base.rename(columns={"standing": "base_standing"}), on=["task", "group"], how="left")
    return data.drop(columns="group")


def is_gemma_7b(config: Config) -> bool:
    """Whether a run uses the paper's model, so that its numbers may stand beside ours."""
    return config.model.kind == "huggingface" and config.model.name == "google/gemma-7b"


def wide(
    data: pd.DataFrame, accuracy: str, columns: Sequence[str]
) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings, cells and footnotes of a readable table of one forget set (or of their mean)."""
    one_way = [measure.name for measure in MEASURES if measure.by_text]
    chosen = data[data["accuracy"].isin((accuracy, "loss")) | data["column"].isin(one_way)]
    measures: list[Measure] = [m for m in MEASURES if m.name in columns]
    stands = chosen.drop_duplicates("column").set_index("column")["base_standing"]
    used = []
    headings = ["Localization", "Components", "Parameters"]
    for measure in measures:
        mark = MARKS.get(str(stands[measure.name]), ("", ""))[0]
        used += [str(stands[measure.name])] if mark else []
        headings.append(f"{measure.heading} {mark}".strip())
    lines = []
    for name, group in chosen.groupby("localization", sort=False):
        first = group.iloc[0]
        share = (
            "" if name in KNOWERS else f"{first['parameters']:,} ({100 * first['share_of_parameters']:.1f} %)"
        )
        line = [first["label"], "" if name in KNOWERS else str(first["components"]), share]
        by_column: Any = group.set_index("column")
        for measure in measures:
            row = by_column.loc[measure.name]
            text = f"{number(row['mean'])} {interval(row['low'], row['high'])}"
            if pd.notna(row["paper"]):
                text += f" (paper {number(row['paper'])})"
            if name != BASE and row["modal"] >= terms.CONSTANT:
                text += f" {MARKS['constant'][0]}"
                used.append("constant")
            line.append(text)
        lines.append(line)
    notes = [f"{mark} {text}" for kind, (mark, text) in MARKS.items() if kind in used]
    return headings, lines, notes


def title_of(table: str, config: Config) -> str:
    """What a table shows, in one sentence."""
    task, objective = TABLES[table]
    what = in_words(config.tasks[task].forget)  # type: ignore[union-attr]
    goal = "erasing" if objective == "erase" else "replacing the answers of"
    number_ = table.split("_")[1]
    return f"Table {number_}. Localized fine-tuning, {goal} {what} ({config.run}); {terms.ACCURACIES[config.measures.accuracy]} on the test part."


def panels_of(data: pd.DataFrame, task: str, measures: Measures) -> tuple[list[Panel], list[str]]:
    """The panels of a readable table and their footnotes: the paper's columns, other scorings, the mean over sets."""
    measured = set(data["column"])
    asked = [m.name for m in MEASURES if is_shown(m, measures.prompts) and m.name in measured]
    main = [name for name in asked if name in MAIN]
    other = [name for name in asked if name not in MAIN]
    own, mean = data[data["task"] == task], data[data["task"] == ALL_SETS]
    sets = [name for name in data["task"].unique() if name != ALL_SETS]
    grids = [
        ("", own, main),
        *([(f"Mean over {len(sets)} forget sets: {', '.join(sets)}.", mean, main)] if len(mean) else []),
        ("Multiple choice scored by the option's words, and in the other option order; text.", own, other),
    ]
    panels, notes = [], []
    for caption, part, columns in grids:
        headings, lines, found = wide(part, measures.accuracy, columns)
        panels.append(Panel(caption, headings, lines))
        notes += [note for note in found if note not in notes]
    far = distances(own, measures.accuracy, [name for name in DISTANCES if name in asked])
    return [*panels[:1], *([far] if far else []), *panels[1:]], notes


def reading(data: pd.DataFrame, task: str, config: Config) -> str:
    """What the intervals of a readable table cover, and how many items, seeds and sets stand behind them."""
    own = data[(data["task"] == task) & ~data["localization"].isin(KNOWERS)]
    by_column = own.drop_duplicates("column").set_index("column")
    sizes, guessed = by_column["n"], by_column["chance"]
    seeds, bases, level = (
        int(own["seeds"].max()),
        int(own["bases"].max()),
        f"{100 * config.statistics.confidence:g}",
    )
    if seeds > 1:
        how = (
            f"over {covers(seeds, 1, bases)} (hierarchical bootstrap; Wilson at the effective number of items, t for text), "
            f"{terms.runs(seeds, bases)}"
        )
    else:
        how = (
            "over test items (Wilson, at the effective number of items where answers are averaged over option orders; "
            "bootstrap for text), one training seed"
        )
    if bases > 1:
        how += "; components and parameters are of the first"
    text = (
        f"Intervals: {level} %, {how}. Items: {sizes['forget_training']} forget, {sizes['retain_training']} retain, "
        f"{sizes['mmlu']} {BY_NAME['mmlu'].short} questions (drawn within their subjects, which are fixed), "
        f"{sizes['text_change']} windows of held-out text. Text: change of the loss against the base model, and KL divergence of "
        "the base model from it, nats per token. Guessing gives at most "
        f"{guessed['forget_training']:.2f} of the facts and {guessed['mmlu']:.2f} of the questions; whether the base "
        "model is above it is tested on both parts together, by mean recall over the right answers."
    )
    mean = data[(data["task"] == ALL_SETS) & ~data["localization"].isin(KNOWERS)]
    if len(mean):
        text += (
            f" The mean over forget sets: {covers(*(int(mean[name].max()) for name in ('seeds', 'sets', 'bases')))}; "
            "so few sets make wide intervals."
        )
    return text


def run(job: Job) -> None:
    """Stage: one table as CSV (tidy, all three accuracies), Markdown and LaTeX (one accuracy, see ``measures``)."""
    import json

    config = job.config
    table, task = job.wildcards["table"], job.wildcards["task"]
    names = ("facts", "multiple_choice", "mmlu", "text", "teachers")
    frames = read_frames({name: job.inputs[name] for name in names if job.inputs[name]})
    selections: dict[str, dict[str, Any]] = {}
    for path in job.inputs["selections"]:
        selection = json.loads(Path(path).read_text(encoding="utf-8"))
        selections.setdefault(selection["localization"], selection)  # of the first base model
    missing = {BASE, *selections} - set(frames["facts"]["localization"])
    if missing:
        raise UserError(
            f"{table} lacks the evaluation of {', '.join(sorted(missing))}: rerun the evaluate rule"
        )
    data = tidy(table, frames, selections, config)
    panels, notes = panels_of(data, task, config.measures)
    notes += [reading(data, task, config), captions.mode(config.finetune.equal_disruption)]
    title = title_of(table, config)
    data.to_csv(job.outputs["csv"], index=False)
    job.outputs["markdown"].write_text(markdown(title, panels, notes), encoding="utf-8")
    job.outputs["latex"].write_text(latex(title, panels, notes), encoding="utf-8")
