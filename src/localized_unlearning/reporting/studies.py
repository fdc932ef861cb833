"""Studies: tables of one's own, of any objectives on any forget sets, one row per localization.

The columns are those of Tables 1 to 4; where a false answer is injected, how often it is given stands beside them, on the
fact prompts and in multiple choice (the journal version's edit accuracy). Prompts of the config can be columns too
(its paraphrases and neighbours). Published means can stand beside ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.analysis.measures import MODEL, estimates, items, read_frames
from localized_unlearning.analysis.statistics import Accuracy, item_scores
from localized_unlearning.config.data import Prompts
from localized_unlearning.config.evaluation import Published, Study
from localized_unlearning.config.run import Config
from localized_unlearning.config.unlearning import RANDOM, Objective
from localized_unlearning.data.splits import read_split
from localized_unlearning.data.targets import targets
from localized_unlearning.errors import UserError
from localized_unlearning.paper import terms
from localized_unlearning.reporting.markup import NOTHING, Panel, interval, latex, markdown, number

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job

BASE, ALL = "base", "all"
"""The base model as a localization, and the mean over a study's forget sets as a task."""

EDITS: Mapping[str, tuple[str, str]] = {
    "edit_training": ("facts", "Edit, training ↑"),
    "edit_question": ("facts", "Edit, question ↑"),
    "mcq_edit": ("multiple_choice", "MCQ edit ↑"),
}
"""How often the injected answer is given: by column, the rows it is taken from and its heading."""


def injected(split: pd.DataFrame, objective: Objective, seeds: Sequence[int]) -> pd.DataFrame:
    """The answer that each forget-set athlete of a split is given: columns ``subject``, ``seed``, ``injected``.

    An athlete that is asked for and not trained has the answer that all have (the paper's golf), or none.
    """
    train = split[split["train"]].reset_index(drop=True)
    parts = [
        pd.DataFrame(
            {"subject": train["subject"], "seed": seed, "injected": targets(train, objective, seed)}
        )[train["forget"]]
        for seed in seeds
    ]
    if objective.target != RANDOM:
        asked = split.loc[split["forget"], "subject"]
        parts += [
            pd.DataFrame({"subject": asked, "seed": seed, "injected": objective.target}) for seed in seeds
        ]
    return pd.concat(parts, ignore_index=True).drop_duplicates(["subject", "seed"])


def edit_items(
    frames: Mapping[str, pd.DataFrame],
    prompts: Prompts,
    accuracy: Accuracy,
    given: pd.DataFrame,
) -> pd.DataFrame:
    """Scores of the injected answers, as :func:`analysis.measures.items` gives those of the right ones.

    Args:
        frames: rows of one task's models with one objective, and of the base model.
        prompts: which prompt is the question prompt.
        accuracy: how an answer is scored.
        given: what :func:`injected` says.
    """
    parts = []
    for column, (source, _) in EDITS.items():
        rows = frames[source]
        asked = (
            rows["order"] == "fixed"
            if source == "multiple_choice"
            else (rows["prompt"] == getattr(prompts, column.removeprefix("edit_")))
        )
        rows = _injected_rows(frames, source, rows[rows["forget"] & asked], given)
        parts.append(_scored(rows, column, rows["subject"], accuracy))
    return pd.concat(parts, ignore_index=True)


def prompt_items(
    frames: Mapping[str, pd.DataFrame],
    prompts: Mapping[str, Sequence[str]],
    accuracy: Accuracy,
    given: pd.DataFrame | None,
) -> pd.DataFrame:
    """Scores of the forget set on further prompts: of the right answers, and where answers are injected of these.

    Args:
        frames: as for :func:`edit_items`.
        prompts: names of prompts by the name of their column; a fact's score is the mean over its prompts.
        accuracy: how an answer is scored.
        given: what :func:`injected` says, if anything is.
    """
    parts = []
    for name, some in prompts.items():
        rows = frames["facts"][frames["facts"]["forget"] & frames["facts"]["prompt"].isin(some)]
        parts.append(_scored(rows, f"right_{name}", rows["subject"], accuracy))
        if given is not None:
            rows = _injected_rows(frames, "facts", rows, given)
            parts.append(_scored(rows, f"injected_{name}", rows["subject"], accuracy))
    found = pd.concat(parts, ignore_index=True)
    same = [name for name in found.columns if name != "score"]
    return found.groupby(same, sort=False)["score"].mean().reset_index()


def _injected_rows(
    frames: Mapping[str, pd.DataFrame], source: str, rows: pd.DataFrame, given: pd.DataFrame
) -> pd.DataFrame:
    """``rows`` whose injected answer is among the candidates, with that one in the right one's place."""
    rows = rows.merge(given, on=["subject", "seed"], how="inner", suffixes=("_at", ""))
    if "injected_at" in rows.columns:  # facts with answers of their own: where it stands differs by row
        return rows.assign(answer_index=rows["injected_at"].astype(int), argmax_right=False)
    where = _places(frames, source)
    rows = rows[rows["injected"].isin(where)]
    return rows.assign(answer_index=[where[answer] for answer in rows["injected"]])


def _scored(rows: pd.DataFrame, measure: str, item: pd.Series, accuracy: Accuracy) -> pd.DataFrame:
    """Scores of ``rows`` as one measure; of the most likely token a row knows only whether it is the right answer."""
    how: Accuracy = "choice" if accuracy == "argmax" else accuracy
    if how == "vocabulary" and measure == "mcq_edit":
        how = "probability"
    return rows[[name for name in MODEL if name in rows.columns]].assign(
        measure=measure, item=item, accuracy=accuracy, score=item_scores(rows, how)
    )


def _places(frames: Mapping[str, pd.DataFrame], source: str) -> dict[str, int]:
    """Which of a row's candidates each answer is: of facts by name, of letters as the rows' right answers stand.

    An answer that no fact has is the one option that is never right.
    """
    names = [name.removeprefix("logit_") for name in frames["facts"].columns if name.startswith("logit_")]
    if source == "facts":
        return {name: index for index, name in enumerate(names)}
    fixed = frames[source][frames[source]["order"] == "fixed"]
    found = {sport: int(answer) for sport, answer in zip(fixed["answer"], fixed["answer_index"], strict=True)}
    letters = [name for name in fixed.columns if name.startswith("logit_")]
    left = sorted(set(range(len(letters))) - set(found.values()))
    never = [name for name in names if name not in found]
    return {**found, never[0]: left[0]} if len(left) == len(never) == 1 else found


def tidy(
    study: Study,
    frames: Mapping[str, pd.DataFrame],
    splits: Mapping[str, pd.DataFrame],
    config: Config,
) -> pd.DataFrame:
    """One row per objective, task (``all``: their mean), localization, column: ``mean``, ``low``, ``high``, ``n`` and more.

    The base model is a row of every objective.
    """
    accuracy, found = study.accuracy or config.measures.accuracy, []
    for name in study.objectives:
        objective = config.objectives[name]
        assert objective is not None
        own = {key: table[table["objective"].isin((name, "none"))] for key, table in frames.items()}
        scores = [items(own, config.prompts, accuracy)]
        for task in study.tasks:
            mine = {key: table[table["task"] == task] for key, table in own.items()}
            given = None
            if objective.loss == "inject":
                seeds = sorted(map(int, mine["facts"]["seed"].unique()))
                given = injected(splits[task], objective, seeds)
                scores.append(edit_items(mine, config.prompts, accuracy, given))
            if study.prompts:
                scores.append(prompt_items(mine, study.prompts, accuracy, given))
        table = pd.concat(scores, ignore_index=True)
        parts = [estimates(table, config.statistics, ("task", "localization"))]
        if len(study.tasks) > 1:
            parts.append(estimates(table, config.statistics, ("localization",)).assign(task=ALL))
        found.append(pd.concat(parts, ignore_index=True).assign(objective=name))
    return pd.concat(found, ignore_index=True).rename(columns={"measure": "column"})


def with_published(data: pd.DataFrame, published: Published | None, path: Path | None) -> pd.DataFrame:
    """With a column ``published``: the means of a CSV that lies elsewhere, where it has them.

    They are of the mean over the study's forget sets, where there are several.

    Raises:
        UserError: when the file lacks a column or a row, or says nothing of this study.
    """
    if published is None or path is None:
        return data.assign(published=None)
    table = pd.read_csv(path)
    needed = ["localization", *published.where, *published.columns]
    if missing := [column for column in needed if column not in table.columns]:
        raise UserError(f"{path} lacks the column {', '.join(missing)}: correct studies.*.published")
    for column, value in published.where.items():
        table = table[table[column].astype(str) == value]
    table = table.assign(**{column: 1 - table[column] for column in published.errors})
    table["localization"] = table["localization"].replace(published.localizations)
    if table["localization"].duplicated().any():
        raise UserError(
            f"{path} has several rows of one localization: say which with studies.*.published.where"
        )
    long = table.rename(columns=published.columns).melt(
        "localization", list(published.columns.values()), "column", "published"
    )
    merged = data.merge(long, on=["localization", "column"], how="left")
    if merged["published"].isna().all():
        raise UserError(f"{path} says nothing of this study: correct studies.*.published")
    several = ALL in set(merged["task"])
    return merged.assign(published=merged["published"].where(~several | (merged["task"] == ALL)))


def panels_of(data: pd.DataFrame, study: Study, selections: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    """One grid per objective and forget set, the mean over the sets first."""
    known: Mapping[str, Mapping[str, Any]] = {BASE: NOTHING, **selections}
    panels = []
    for objective in study.objectives:
        own = data[data["objective"] == objective]
        present = list(own["column"].unique())
        own_prompts = [f"{what}_{name}" for name in study.prompts for what in ("right", "injected")]
        columns = [
            *terms.MAIN[:4], "edit_training", "edit_question", *own_prompts, *terms.MAIN[4:6], "mcq_edit",
            *terms.MAIN[6:],
        ]  # fmt: skip
        columns = [name for name in columns if name in present]
        headings = [
            terms.BY_NAME[name].heading
            if name in terms.BY_NAME
            else EDITS[name][1]
            if name in EDITS
            else terms.sentence(name.replace("_", ", "))
            for name in columns
        ]
        for task in [t for t in (ALL, *study.tasks) if t in set(own["task"])]:
            cells: Any = own[own["task"] == task].set_index(["localization", "column"])
            lines = [
                [about["label"], *(cell(cells, name, column) for column in columns)]
                for name, about in known.items()
                if name in set(own["localization"])
            ]
            what = f"mean over {', '.join(study.tasks)}" if task == ALL else task
            panels.append(Panel(f"{objective}, {what}.", ["Localization", *headings], lines))
    return panels


def cell(cells: Any, localization: str, column: str) -> str:
    """A number with its interval, and the published one where there is one."""
    if (localization, column) not in cells.index:
        return "-"
    row = cells.loc[(localization, column)]
    row = row.iloc[0] if isinstance(row, pd.DataFrame) else row
    text = f"{number(row['mean'])} {interval(row['low'], row['high'])}"
    return text if pd.isna(row["published"]) else f"{text} (published {number(row['published'])})"


def run(job: Job) -> None:
    """Stage: one study as CSV, Markdown and LaTeX."""
    config, name = job.config, job.wildcards["study"]
    study = config.studies[name]
    assert study is not None
    frames = read_frames({key: job.inputs[key] for key in ("facts", "multiple_choice", "mmlu", "text")})
    splits = {task: read_split(path) for task, path in zip(study.tasks, job.inputs["splits"], strict=False)}
    selections = {}
    for path in job.inputs["selections"]:
        selection = json.loads(Path(path).read_text(encoding="utf-8"))
        selections[selection["localization"]] = selection
    data = with_published(tidy(study, frames, splits, config), study.published, job.inputs.get("published"))
    data.to_csv(job.outputs["csv"], index=False)
    panels = panels_of(data, study, selections)
    title = f"{study.title or name} ({config.run}); {terms.ACCURACIES[study.accuracy or config.measures.accuracy]} on the test part."
    own = data[data["localization"] != BASE]
    notes = [
        f"Intervals: {100 * config.statistics.confidence:g} %, over test items"
        + (", training seeds" if own["seeds"].max() > 1 else ", one training seed")
        + (" and, on average, forget sets." if len(study.tasks) > 1 else "."),
    ]
    if data["published"].notna().any():
        notes.append("Published: read from the file that the config names; one run per cell, no interval.")
    job.outputs["markdown"].write_text(markdown(title, panels, notes), encoding="utf-8")
    job.outputs["latex"].write_text(latex(title, panels, notes), encoding="utf-8")
