"""Metrics and intervals, computed from rows (never stored instead of them).

Accuracy has three names and is always named: ``argmax`` (the most likely next token of the whole
vocabulary is right), ``choice`` (right among the candidate answers) and ``probability`` (mean
probability of the right answer, renormalised over the candidates: the released code's "accuracy").
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

Accuracy = Literal["choice", "argmax", "probability"]
ACCURACIES: tuple[Accuracy, ...] = ("choice", "argmax", "probability")


class Estimate(NamedTuple):
    """A mean over items with its interval.

    Attributes:
        mean, low, high: the estimate and the interval's ends.
        n: number of items.
    """

    mean: float
    low: float
    high: float
    n: int


def wilson(right: np.ndarray, confidence: float) -> Estimate:
    """Share of true items ``[item]`` with its Wilson interval."""
    from scipy.stats import binomtest

    count = int(right.sum())
    interval = binomtest(count, len(right)).proportion_ci(confidence, method="wilson")
    return Estimate(count / len(right), float(interval.low), float(interval.high), len(right))


def bootstrap_mean(values: np.ndarray, confidence: float, samples: int, seed: int) -> Estimate:
    """Mean of ``values`` ``[item]`` with a percentile bootstrap interval over items."""
    draws = np.random.default_rng(seed).integers(0, len(values), (samples, len(values)))
    means = values[draws].mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def candidates(table: pd.DataFrame, prefix: str = "logit_") -> np.ndarray:
    """Logits of the candidate answers ``[item, candidate]``."""
    return table[[c for c in table.columns if c.startswith(prefix)]].to_numpy(dtype=np.float64)


def item_scores(table: pd.DataFrame, accuracy: Accuracy, prefix: str = "logit_") -> np.ndarray:
    """Score of each item ``[item]``: 0 or 1, or a probability."""
    if accuracy == "argmax":
        return table["argmax_right"].to_numpy(dtype=np.float64)
    logits = candidates(table, prefix)
    answer = table["answer"].to_numpy()
    if accuracy == "choice":
        return np.asarray(logits.argmax(1) == answer, dtype=np.float64)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted[np.arange(len(answer)), answer] / shifted.sum(1))


def estimate(
    table: pd.DataFrame,
    accuracy: Accuracy,
    confidence: float,
    samples: int,
    seed: int,
    prefix: str = "logit_",
) -> Estimate:
    """Accuracy over the rows of ``table``: Wilson for 0/1 items, bootstrap for probabilities."""
    scores = item_scores(table, accuracy, prefix)
    if accuracy == "probability":
        return bootstrap_mean(scores, confidence, samples, seed)
    return wilson(scores > 0.5, confidence)
