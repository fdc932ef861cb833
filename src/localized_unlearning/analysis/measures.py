"""What is measured of a model, from its per-item rows: the columns of the tables.

:func:`items` turns rows into one long frame of scores, and :func:`estimates` turns that into tidy estimates by
any of task, objective, localization and seed. Tables, comparisons and claims start from these two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from localized_unlearning.analysis.statistics import (
    Accuracy,
    design_of,
    item_names,
    item_scores,
    over_draws,
    pooled,
)
from localized_unlearning.config.data import Prompts
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.paper.terms import MEASURES, Measure

Frames = Mapping[str, pd.DataFrame]
"""Row tables by the name of their file: ``facts``, ``multiple_choice``, ``mmlu``, ``text``."""

MODEL = ("task", "objective", "localization", "base_seed", "seed")
"""Columns that say which model a row is about; the base model is localization ``base``, objective ``none``, seed 0."""

POINT = ("iteration", "ranking", "edit_size")
"""Columns that say which point of a series a row is about, where it is about one."""


def read_frames(paths: Mapping[str, Iterable[Path]]) -> dict[str, pd.DataFrame]:
    """Row tables by name, each put together from the files of several models."""
    return {
        name: pd.concat([pd.read_parquet(path) for path in files], ignore_index=True)
        for name, files in paths.items()
    }


def rows_of(frames: Frames, measure: Measure, prompts: Prompts) -> pd.DataFrame:
    """The rows that a measure is taken from."""
    rows = frames[measure.source]
    if measure.forget is not None:
        rows = rows[rows["forget"] == measure.forget]
    if measure.prompt is not None:
        rows = rows[rows["prompt"] == getattr(prompts, measure.prompt)]
    if measure.order is not None:
        rows = rows[rows["main"] == (measure.order == "main")]
    return rows


def items(frames: Frames, prompts: Prompts, accuracy: Accuracy = "choice") -> pd.DataFrame:
    """Every score of every model: one row per model, measure and item.

    Args:
        frames: row tables; measures of an absent table are left out.
        prompts: which prompts of the file are the training and the question prompt.
        accuracy: how an answer is scored; multiple choice by text and held-out text have one way only.

    Returns:
        Columns ``task``, ``objective``, ``localization``, ``seed`` (and ``iteration`` or ``edit_size`` for a
        series), ``measure``, ``item``, ``accuracy`` (``choice``, ``argmax``, ``probability`` or ``loss``) and ``score``.
    """
    tables = []
    for measure in MEASURES:
        if measure.source not in frames:
            continue
        rows = rows_of(frames, measure, prompts)
        how: Accuracy = "choice" if measure.by_text else accuracy
        if how == "vocabulary" and measure.source != "facts":  # of letters, always among these
            how = "probability"
        if measure.source == "text":
            scores = text_scores(rows, measure.name)
        else:
            scores = item_scores(rows, how, "text_" if measure.by_text else "logit_")
        names = item_names(rows)
        table = rows[[name for name in (*MODEL, *POINT) if name in rows.columns]].assign(
            measure=measure.name,
            item=names.astype(str),
            accuracy=how if measure.accuracy else "loss",
            score=scores,
            draw=rows["draw"] if "draw" in rows.columns else 0,
        )
        tables.append(over_draws(table))
    return pd.concat(tables, ignore_index=True)


def text_scores(rows: pd.DataFrame, measure: str) -> np.ndarray:
    """A text measure's score of each window ``[row]``: in nats per token, or whether the loss rose."""
    change = rows["loss"] - rows["base_loss"]
    found = {
        "text_loss": rows["loss"],
        "text_change": change,
        "text_worse": change > 0,
        "text_kl": rows["kl"],
    }
    return found[measure].to_numpy(dtype=np.float64)


def estimates(scores: pd.DataFrame, settings: Statistics, by: Sequence[str] = MODEL) -> pd.DataFrame:
    """Tidy estimates, by measure and by any columns of :func:`items`.

    ``by=MODEL`` gives one row per model, over its items. Leave ``seed`` out and the mean is over seeds, with an
    interval over seeds and items; leave ``task`` out as well and it is over forget sets too.

    Returns:
        The columns of ``by``, ``measure``, ``accuracy``, ``mean``, ``low``, ``high``, ``n`` (items), ``seeds``,
        ``sets``, and ``seed_sd``, the standard deviation of the seeds' means (0 for one seed; of several sets,
        the mean of theirs).
    """
    found = []
    keys = [*(name for name in by if name in scores.columns), "measure", "accuracy"]
    for key, group in scores.groupby(keys, sort=False):
        design = design_of(group, group["score"])
        share = key[-1] != "loss" or key[-2] == "text_worse"
        value = pooled(design, settings, share)
        spread = [float(a.scores.mean(1).std(ddof=1)) if len(a.scores) > 1 else 0.0 for a in design]
        found.append(
            {**dict(zip(keys, key, strict=True)), **value._asdict(), "seed_sd": float(np.mean(spread))}
        )
    return pd.DataFrame(found)
