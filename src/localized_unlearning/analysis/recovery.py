"""How much of what unlearning took away an attack brings back, with its interval.

*Recovered share* = (attacked - gold attacked alike) / (base - gold), accuracies on the same items. Gold must be attacked
like the rest: retraining on a sport makes a model that never knew the athletes say the sport. Without gold (a real
model) the share of the base model's accuracy is given instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from localized_unlearning.config.evaluation import Statistics

BASE, GOLD, NONE = "base", "gold", "asked"
"""The localizations of the ceiling and the floor, and the attack that does nothing."""

MODEL = ["base_seed", "seed"]
"""Columns that tell models of one localization apart."""


@dataclass(frozen=True)
class Scores:
    """Accuracies of one localization under one cell of an attack: an array per model, by item."""

    by_model: Mapping[tuple[int, ...], pd.Series]

    def mean(self) -> float:
        """Mean over models of the mean over items."""
        return float(np.mean([scores.mean() for scores in self.by_model.values()]))


def item_scores(rows: pd.DataFrame) -> Scores:
    """Accuracy of each forget-set item, averaged over option orders; one array per model."""
    rows = rows[rows["forget"]]
    keys = [name for name in MODEL if name in rows.columns]
    return Scores(
        {
            tuple(int(str(k)) for k in key): group.groupby("subject")["choice"].mean().sort_index()
            for key, group in rows.groupby(keys)
        }
    )


def worst(rows: pd.DataFrame) -> tuple[str, Scores]:
    """The cell of an attack that gives the highest accuracy, and its scores."""
    found = {str(cell): item_scores(group) for cell, group in rows.groupby("cell", sort=False)}
    name = max(found, key=lambda cell: found[cell].mean())
    return name, found[name]


def resampled(parts: Mapping[str, Scores], samples: int, seed: int) -> dict[str, np.ndarray]:
    """Bootstrap means ``[sample]`` of every part: models are drawn anew, and items anew within each model.

    Every part sees the same draws, so that differences are paired. An item or a model that one part lacks is left out.
    """
    rng = np.random.default_rng(seed)
    models = sorted(set.intersection(*(set(part.by_model) for part in parts.values())))
    counts = rng.multinomial(len(models), np.full(len(models), 1 / len(models)), size=samples)
    total = {name: np.zeros(samples) for name in parts}
    for index, model in enumerate(models):
        shared = sorted(set.intersection(*(set(part.by_model[model].index) for part in parts.values())))
        weights = rng.multinomial(len(shared), np.full(len(shared), 1 / len(shared)), size=samples) / len(
            shared
        )
        for name, part in parts.items():
            total[name] += counts[:, index] * (weights @ part.by_model[model][shared].to_numpy())
    return {name: value / len(models) for name, value in total.items()}


def by_seed_of_unlearning(reference: Scores, like: Scores) -> Scores:
    """A base model's or gold's scores, repeated for every unlearning seed of ``like`` with the same base model."""
    found = {}
    for model in like.by_model:
        same = [m for m in reference.by_model if m == model] or [
            m for m in reference.by_model if m[:-1] == model[:-1]
        ]
        if same:
            found[model] = reference.by_model[same[0]]
    return Scores(found)


def recovered(rows: pd.DataFrame, settings: Statistics) -> pd.DataFrame:
    """One row per task, objective, localization, attack and format of the question.

    Args:
        rows: those of the attack stage, of all models: base model, gold and unlearned ones.
        settings: level of the interval, bootstrap samples and seed.

    Returns:
        Columns ``task``, ``objective``, ``localization``, ``attack``, ``cell`` (the worst one), ``cells`` (how many were
        tried), ``format``, ``accuracy``, ``before`` (without the attack), ``ceiling`` (the base model), ``floor`` (gold
        attacked alike; NaN without gold), ``kept`` (what the attack leaves of the base model's own knowledge: where that is
        little the attack only breaks models, and says nothing about unlearning), ``recovered``, ``low``, ``high`` and
        ``n`` (items per model).
    """
    found = []
    for (task, form), group in rows.groupby(["task", "format"], sort=False):
        plain = group[group["attack"] == NONE]
        base, gold = (plain[plain["localization"] == name] for name in (BASE, GOLD))
        for key, attacked in group[~group["localization"].isin((BASE, GOLD))].groupby(
            ["objective", "localization", "attack"], sort=False
        ):
            objective, localization, attack = key
            cell, scores = worst(attacked)
            parts = {"attacked": scores, "base": by_seed_of_unlearning(item_scores(base), scores)}
            attacked_gold = group[(group["localization"] == GOLD) & (group["attack"] == attack)]
            known = len(gold) and len(attacked_gold)
            if known:
                parts["gold"] = by_seed_of_unlearning(item_scores(gold), scores)
                parts["floor"] = by_seed_of_unlearning(worst(attacked_gold)[1], scores)
            own = group[(group["localization"] == BASE) & (group["attack"] == attack)]
            left = by_seed_of_unlearning(worst(own)[1], scores).mean() if len(own) else float("nan")
            known_before = parts["gold"].mean() if known else 0.0
            draws = resampled(parts, settings.bootstrap, settings.seed)
            value = _share({name: np.array([part.mean()]) for name, part in parts.items()})[0]
            alpha = (1 - settings.confidence) / 2
            low, high = np.nanquantile(_share(draws), [alpha, 1 - alpha])
            before = plain[(plain["localization"] == localization) & (plain["objective"] == objective)]
            found.append(
                {
                    "task": task,
                    "objective": objective,
                    "localization": localization,
                    "attack": attack,
                    "cell": cell,
                    "cells": attacked["cell"].nunique(),
                    "format": form,
                    "accuracy": scores.mean(),
                    "before": item_scores(before).mean() if len(before) else float("nan"),
                    "ceiling": parts["base"].mean(),
                    "floor": parts["floor"].mean() if known else float("nan"),
                    "kept": (left - known_before) / span
                    if (span := parts["base"].mean() - known_before) > 0
                    else float("nan"),
                    "recovered": value,
                    "low": low,
                    "high": high,
                    "n": min(len(s) for s in scores.by_model.values()),
                }
            )
    return pd.DataFrame(found)


def _share(means: Mapping[str, np.ndarray]) -> np.ndarray:
    """The recovered share; NaN where there was nothing to recover."""
    floor = means.get("floor", np.zeros_like(means["attacked"]))
    span = means["base"] - means.get("gold", np.zeros_like(means["base"]))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(span > 0, (means["attacked"] - floor) / span, np.nan)


def worst_cases(table: pd.DataFrame) -> pd.DataFrame:
    """The attack that recovers most, for each task, objective, localization and format."""
    known = table[(table["attack"] != NONE) & table["recovered"].notna()]
    keys = ["task", "objective", "localization", "format"]
    return known.loc[known.groupby(keys, sort=False)["recovered"].idxmax()].reset_index(drop=True)
