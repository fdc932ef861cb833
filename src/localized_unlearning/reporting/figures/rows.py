"""From per-item rows to the points of a figure: what stands in the CSV beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from localized_unlearning.analysis.standing import chance
from localized_unlearning.analysis.statistics import Accuracy, grouped, item_scores
from localized_unlearning.config.data import Prompts
from localized_unlearning.config.evaluation import Measures, Statistics
from localized_unlearning.paper import terms

Frames = Mapping[str, pd.DataFrame]
"""Row tables by the name of their file: facts, multiple_choice, mmlu, probes, ..."""


class Asked(NamedTuple):
    """What accuracies in a figure mean, as in tables and claims.

    Attributes:
        prompt: the fact prompt of the forget and retain panels.
        name: its name in the prompts file.
        accuracy: how an answer is scored.
    """

    prompt: terms.Prompt
    name: str
    accuracy: Accuracy


def asked(measures: Measures, prompts: Prompts) -> Asked:
    """What the settings ask for: the first of the tables' prompts, and their accuracy."""
    first = measures.prompts[0]
    return Asked(first, getattr(prompts, first), measures.accuracy)


def points(rows: pd.DataFrame, right: pd.Series, by: Sequence[str], settings: Statistics) -> pd.DataFrame:
    """Share of right items for each group, over seeds and forget sets: columns ``by`` and those of an estimate."""
    return grouped(rows, right.astype(float), by, settings)


def keys_of(frames: Frames) -> list[str]:
    """Columns that tell a series' curves apart: of sweeps also by what the weights were ranked."""
    return ["localization", *(["ranking"] if "ranking" in frames["facts"].columns else [])]


def sweep(frames: Frames, how: Asked, settings: Statistics) -> pd.DataFrame:
    """Accuracies along the edit sizes, with ``masked``, the weights that are zero then.

    A mask whose training moved fewer weights than asked for gives the same edit again; such points are left out.
    Of several seeds' masks ``masked`` is the mean.
    """
    points = series(frames, how, "edit_size", settings)
    by = [*keys_of(frames), "edit_size"]
    masked = frames["facts"].groupby(by, sort=False)["masked"].mean().round().astype(int).reset_index()
    points = points.merge(masked, on=by, how="left", validate="many_to_one").astype({"masked": "Int64"})
    return points.drop_duplicates(["panel", *keys_of(frames), "masked"], ignore_index=True)


def series(frames: Frames, how: Asked, x: str, settings: Statistics) -> pd.DataFrame:
    """Accuracies along a series: relearning iterations or edit sizes.

    Panels: ``forget`` and ``retain`` (the prompt that is asked), ``mcq_forget`` and ``mcq_retain`` (the order of
    options that counts), each
    for forget sets also without the relearned athletes (``forget_others``, ``mcq_forget_others``), and ``mmlu``.
    ``chance`` is what guessing gets.
    Rows of models that stand at no point of the series, the base model and gold, give one point each, without ``x``.
    """
    facts, choice = frames["facts"], frames["multiple_choice"]
    facts = facts[facts["prompt"] == how.name]
    parts, guess = {"mmlu": frames["mmlu"]}, {"mmlu": chance(frames["mmlu"])}
    for prefix, rows in (("", facts), ("mcq_", choice[choice["main"]])):
        guess |= dict.fromkeys(
            (f"{prefix}{part}" for part in ("forget", "forget_others", "retain")), chance(rows)
        )
        parts[f"{prefix}forget"] = rows[rows["forget"]]
        parts[f"{prefix}forget_others"] = rows[rows["forget"] & ~rows["relearn"]]
        parts[f"{prefix}retain"] = rows[~rows["forget"]]
    tables = []
    for panel, rows in parts.items():
        scores = pd.Series(item_scores(rows, how.accuracy), index=rows.index)
        of_series = rows[x].notna()
        table = grouped(rows[of_series], scores[of_series], [*keys_of(frames), x], settings)
        tables.append(table.assign(panel=panel))
        if not of_series.all():
            levels = grouped(rows[~of_series], scores[~of_series], ["localization"], settings)
            ranked = {"ranking": "mask"} if "ranking" in keys_of(frames) else {}
            tables.append(levels.assign(panel=panel, **ranked))
    found = pd.concat(tables, ignore_index=True)
    return found.assign(prompt=how.prompt, accuracy=how.accuracy, chance=found["panel"].map(guess))
