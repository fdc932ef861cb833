"""Localizers against the truth: how well does a localization find the matrices that hold the injected facts?"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from localized_unlearning.config.model import FactsIn

ATTENTION = ("q", "k", "v", "o")


def name_of_place(facts_in: FactsIn) -> str:
    """A place in words: ``mlp 0+1``, ``attention 1``."""
    kinds = set(facts_in.kinds)
    where = "attention" if kinds <= set(ATTENTION) else "mlp" if not kinds & set(ATTENTION) else "block"
    return f"{where} {'+'.join(map(str, sorted(set(facts_in.layers))))}"


def auroc(score: np.ndarray, true: np.ndarray) -> float:
    """Probability that a true component scores above another one, ties counting half; NaN when all or none are true."""
    inside, outside = score[true], score[~true]
    if not len(inside) or not len(outside):
        return float("nan")
    return float(np.mean((inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)))


def graded(scores: Mapping[str, float], truth: Collection[str]) -> dict[str, float]:
    """AUROC, precision at k (k: how many are true; ties counting their share) and share of the score in the truth.

    Args:
        scores: absolute score of every component, by name; of a localization without scores 1 for what it selects.
        truth: names of the components that hold the facts; those that are not counted as components are left out.
    """
    names = list(scores)
    value = np.array([abs(scores[name]) for name in names])
    true = np.array([name in set(truth) for name in names], dtype=bool)
    k = int(true.sum())
    ranked = np.sort(value)[::-1]
    limit = ranked[k - 1] if k else np.inf
    above, tied = value > limit, value == limit
    left = k - int(above.sum())
    hits = float(true[above].sum() + (left * true[tied].mean() if left and tied.any() else 0.0))
    total = float(value.sum())
    return {
        "auroc": auroc(value, true),
        "precision": hits / k if k else float("nan"),
        "share": float(value[true].sum()) / total if total else float("nan"),
    }


def grade(
    scores: Mapping[tuple[str, int], Mapping[str, float]], truth: Collection[str], place: str
) -> pd.DataFrame:
    """One row per localization and base model: ``place``, ``localization``, ``base_seed`` and the three grades."""
    return pd.DataFrame(
        [
            {"place": place, "localization": name, "base_seed": seed, **graded(values, truth)}
            for (name, seed), values in scores.items()
        ]
    )
