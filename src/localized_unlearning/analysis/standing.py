"""Where a model stands against guessing: mean recall over the classes, and answers that no longer read the question.

A forget set is one sport and the retain set two, so that a model which answers everything alike is right for all
of one part and for none or half of the other. Both parts are therefore judged together, by the mean over the right
answers that occur of how often each is given (balanced accuracy): a model that does not read the question gets 1/k of it
at most, whatever the answer, or as much as drawing one of the options gives, whichever is more. Marks of tables and refusals of claims both rest on this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from localized_unlearning.analysis.measures import Frames, rows_of
from localized_unlearning.analysis.statistics import candidates, item_names, score_interval
from localized_unlearning.config.data import Prompts
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.paper.terms import CONSTANT, MEASURES, Standing

MODELS = ("task", "objective", "localization")


class Recall(NamedTuple):
    """Mean recall over classes, with its interval.

    Attributes:
        mean, low, high: the estimate and the ends of its interval.
        n: items, all classes together.
        classes: right answers that occur.
        modal: share of the commonest answer, mean over models.
        drawn: recall of drawing one of the candidates that an item has.
    """

    mean: float
    low: float
    high: float
    n: int
    classes: int
    modal: float
    drawn: float

    @property
    def chance(self) -> float:
        """The most that guessing gets (:func:`guessed`)."""
        return guessed(self.drawn, self.classes)

    @property
    def standing(self) -> Standing:
        """Whether the interval lies above all guessing, or below it."""
        if self.low > self.chance:
            return "above chance"
        return "below chance" if self.high < self.drawn else "at chance"

    @property
    def constant(self) -> bool:
        """Whether nearly every item gets the same answer."""
        return self.modal >= CONSTANT


def guessed(drawn: float, classes: int) -> float:
    """The most that guessing gets: naming one of the answers that occur, or drawing one of those that are offered.

    Of three sports a third, also where golf is a fourth option; of fifty places, four in each question, a quarter. Facts
    that bring their own answers, all of them called right, have none that could be named whoever is asked about.
    """
    return max(drawn, 1 / classes if classes > 1 else 0.0)


def answers_of(rows: pd.DataFrame) -> pd.Series:
    """Each row's class: of multiple choice the answer, wherever its option stands; of other questions the letter."""
    return rows["answer"] if "answer" in rows.columns else rows["answer_index"]


def chance(rows: pd.DataFrame) -> float:
    """What guessing gets of the accuracy of ``rows``, forget and retain set together."""
    drawn = float((1 / np.isfinite(candidates(rows)).sum(1)).mean())
    return guessed(drawn, answers_of(rows).nunique())


def recall(rows: pd.DataFrame, prefix: str, confidence: float) -> Recall:
    """Mean recall of one model's answers, forget and retain set together.

    The variance is that of a stratified share, each class smoothed by one right and one wrong item; the interval
    is Wilson's at the number of items which that variance amounts to.

    Args:
        rows: one per seed and item, with ``answer_index`` and the candidates' columns.
        prefix: of the candidates' columns, ``logit_`` or ``text_``.
        confidence: level of the interval.
    """
    from scipy.stats import norm

    logits = candidates(rows, prefix)
    chosen = logits.argmax(1)
    table = pd.DataFrame(
        {
            "item": item_names(rows).astype(str),
            "answer": answers_of(rows),
            "right": chosen == rows["answer_index"],
            "drawn": 1 / np.isfinite(logits).sum(1),
        }
    )
    by_item = table.groupby(["answer", "item"])["right"].mean()
    by_class = by_item.groupby("answer").agg(["sum", "count"])
    means = by_class["sum"] / by_class["count"]
    smooth = (by_class["sum"] + 1) / (by_class["count"] + 2)
    centre, mean = float(smooth.mean()), float(means.mean())
    variance = float((smooth * (1 - smooth) / (by_class["count"] + 2)).sum()) / len(by_class) ** 2
    reach = float(norm.ppf((1 + confidence) / 2))
    low, high = score_interval(mean, min(centre * (1 - centre) / variance, len(by_item)), reach)
    runs = [name for name in ("task", "base_seed", "seed") if name in rows.columns]
    models = rows.groupby(runs, sort=False).indices.values() if runs else [np.arange(len(rows))]
    modal = [float(np.bincount(chosen[model]).max() / len(model)) for model in models]
    share = round(math.fsum(modal) / len(modal), 12)  # 19 of 20 is 95 %
    drawn = float(table.groupby("answer")["drawn"].mean().mean())
    return Recall(mean, low, high, len(by_item), len(by_class), share, drawn)


def standings(frames: Frames, prompts: Prompts, settings: Statistics) -> pd.DataFrame:
    """Mean recall of every model in every group of measures.

    Args:
        frames: row tables; groups of an absent table are left out.
        prompts: which prompts of the file are the training and the question prompt.
        settings: level of the intervals.

    Returns:
        Columns ``task``, ``objective``, ``localization``, ``group``, those of :class:`Recall`, ``chance`` and
        ``standing``.
    """
    records = []
    for measure in {measure.group: measure for measure in reversed(MEASURES)}.values():
        if not measure.accuracy or measure.source not in frames:
            continue
        rows = rows_of(frames, replace(measure, forget=None), prompts)
        prefix = "text_" if measure.by_text else "logit_"
        for model, own in rows.groupby(list(MODELS), sort=False):
            found = recall(own, prefix, settings.confidence)
            records.append(
                {
                    **dict(zip(MODELS, model, strict=True)), "group": measure.group, **found._asdict(),
                    "chance": found.chance, "standing": found.standing,
                }
            )  # fmt: skip
    names = [*MODELS, "group", *Recall._fields, "chance", "standing"]
    return pd.DataFrame(records, columns=names)


def of_base(found: pd.DataFrame, task: str | None = None) -> Mapping[str, Standing]:
    """How the base model stands in each group: of one task, or the worst over several forget sets."""
    base = found[found["localization"] == "base"]
    base = base if task is None else base[base["task"] == task]
    worst = ("below chance", "at chance", "above chance")
    return {
        str(group): min(own["standing"], key=worst.index) for group, own in base.groupby("group", sort=False)
    }


def constant_cells(found: pd.DataFrame, task: str | None = None) -> frozenset[tuple[str, str]]:
    """Localization and group of models that give nearly every item one answer; of one task, or of any."""
    own = found if task is None else found[found["task"] == task]
    return frozenset(
        (str(name), str(group))
        for name, group in own.loc[own["modal"] >= CONSTANT, ["localization", "group"]].itertuples(
            index=False
        )
    )
