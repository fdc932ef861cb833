"""From per-item rows to the points of a figure: what stands in the CSV beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from localized_unlearning.analysis.statistics import grouped, item_scores
from localized_unlearning.config.evaluation import Statistics

Frames = Mapping[str, pd.DataFrame]
"""Row tables by the name of their file: facts, multiple_choice, mmlu, probes, ..."""


def points(rows: pd.DataFrame, right: pd.Series, by: Sequence[str], settings: Statistics) -> pd.DataFrame:
    """Share of right items for each group, over seeds and forget sets: columns ``by`` and those of an estimate."""
    return grouped(rows, right.astype(float), by, settings)


def answered(rows: pd.DataFrame) -> pd.Series:
    """Which answers are right among the candidates (accuracy ``choice``)."""
    return pd.Series(item_scores(rows, "choice") > 0.5, index=rows.index)


def sweep(frames: Frames, question: str, settings: Statistics) -> pd.DataFrame:
    """Accuracies along the edit sizes, with ``masked``, the weights that are zero then.

    A mask whose training moved fewer weights than asked for gives the same edit again; such points are left out.
    Of several seeds' masks ``masked`` is the mean.
    """
    points = series(frames, question, "edit_size", settings)
    by = ["localization", "edit_size"]
    masked = frames["facts"].groupby(by, sort=False)["masked"].mean().round().astype(int).reset_index()
    points = points.merge(masked, on=by, how="left", validate="many_to_one")
    return points.drop_duplicates(["panel", "localization", "masked"], ignore_index=True)


def series(frames: Frames, question: str, x: str, settings: Statistics) -> pd.DataFrame:
    """Accuracies along a series: relearning iterations or edit sizes.

    Panels: ``forget`` and ``retain`` (question prompt), ``mcq_forget`` and ``mcq_retain`` (fixed order), each
    for forget sets also without the relearned athletes (``forget_others``, ``mcq_forget_others``), and ``mmlu``.
    """
    facts = frames["facts"]
    facts = facts[facts["prompt"] == question]
    choice, mmlu = frames["multiple_choice"], frames["mmlu"]
    tables = []
    for prefix, rows in (("", facts), ("mcq_", choice[choice["order"] == "fixed"])):
        parts = {
            "forget": rows[rows["forget"]],
            "forget_others": rows[rows["forget"] & ~rows["relearn"]],
            "retain": rows[~rows["forget"]],
        }
        for name, part in parts.items():
            table = points(part, answered(part), ["localization", x], settings)
            tables.append(table.assign(panel=prefix + name))
    tables.append(points(mmlu, answered(mmlu), ["localization", x], settings).assign(panel="mmlu"))
    return pd.concat(tables, ignore_index=True)
