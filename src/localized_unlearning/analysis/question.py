"""Does a localizer that finds the truth better unlearn more robustly? From the rows of stage ``question``.

The outcome is the *recovered share*: (attacked - gold attacked alike) / (base - gold) in multiple choice, of the attack that
recovers most; low is robust. Selections of one place in one base model are a group: they share facts, items and attacker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import spearmanr, t

GROUP = ["place", "base_seed"]

LEFT, RECOVERED, DISTANCE = "left", "recovered", "distance"
"""Share left before the attack, share after it, and distance of the unlearned model's accuracy from gold's."""

PREDICTORS = {"auroc": "AUROC", "precision": "Precision at k", "shared": "Share of the selection in the truth", "ablated": "Facts lost when it is ablated"}  # fmt: skip
OUTCOMES = {
    RECOVERED: "Recovered after the attack",
    LEFT: "Left before the attack",
    DISTANCE: "Distance from gold",
}


TOOK = 0.9
"""Accuracy of the injected facts on the training prompt from which on a place counts as having taken them."""


class Correlation(NamedTuple):
    """Mean of Spearman's rank correlation, with its interval over places (:func:`over_places`), and of how many groups.

    A direction that one place has and another has not is not known, however many base models say it.
    """

    mean: float
    low: float
    high: float
    groups: int


class Rank(NamedTuple):
    """How extreme the truth is among its draws: mean over groups of its rank, 0 (lowest) to 1, and one-sided p.

    ``floor`` is the smallest p that this many draws and groups can give.
    """

    mean_rank: float
    p: float
    floor: float
    groups: int
    draws: int


def with_outcomes(rows: pd.DataFrame, form: str = "multiple_choice") -> pd.DataFrame:
    """The selections' rows with columns ``left``, ``recovered`` and ``distance``, each against its group's references.

    Groups in which the base model knows hardly more than gold (by less than .1) have nothing to recover and are left out.
    """
    tables = []
    for _, group in rows.groupby(GROUP, sort=False):
        reference: Any = group.set_index("selection").loc[["base", "gold"]]
        before, ending = f"forget_{form}", f"_forget_{form}"
        after = [c for c in group.columns if c.startswith("attacked_") and c.endswith(ending)]
        floor = float(reference.at["gold", before])
        span = float(reference.at["base", before]) - floor
        if span < 0.1:
            continue
        own = group[group["kind"] != "reference"]
        tables.append(
            own.assign(
                **{
                    LEFT: (own[before] - floor) / span,
                    RECOVERED: ((own[after] - reference.loc["gold", after].astype(float)) / span).max(axis=1),
                    DISTANCE: (own[before] - floor).abs(),
                }
            )
        )
    return (
        pd.concat(tables, ignore_index=True)
        if tables
        else rows.iloc[:0].assign(**dict.fromkeys(OUTCOMES, 0.0))
    )


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """:func:`with_outcomes` of the groups whose place took the facts."""
    took = rows.groupby(GROUP)["injected_training"].transform("first") >= TOOK
    return with_outcomes(rows[took])


def over_places(values: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean over places of each place's mean over base models, with the 95 % interval of Student's t.

    Of one place alone, over its base models. Resampling five places gives an interval that is too narrow (a claim of no
    effect is then refuted in 16 % of simulations), as few clusters always do; the t interval keeps its level.
    """
    units = np.array([np.mean(each) for each in values] if len(values) > 1 else values[0])
    mean = float(units.mean())
    if len(units) < 2:
        return mean, float("-inf"), float("inf")
    reach = float(t.ppf(0.975, len(units) - 1) * units.std(ddof=1) / np.sqrt(len(units)))
    return mean, mean - reach, mean + reach


def correlation(rows: pd.DataFrame, predictor: str, outcome: str) -> Correlation:
    """Rank correlation within each group, averaged; groups where either does not vary say nothing and are left out."""
    found: dict[Any, list[float]] = {}
    for place, groups in rows.groupby("place", sort=False):
        for _, group in groups.groupby("base_seed", sort=False):
            pair = group[[predictor, outcome]].dropna()
            if len(pair) > 2 and (pair.nunique() > 1).all():
                value = float(spearmanr(pair[predictor], pair[outcome]).statistic)
                found.setdefault(place, []).append(value)
    if not found:
        return Correlation(float("nan"), float("nan"), float("nan"), 0)
    return Correlation(*over_places(list(found.values())), sum(map(len, found.values())))


def truth_among_draws(
    rows: pd.DataFrame, outcome: str, seed: int, kinds: Sequence[str] = ("draw",), samples: int = 20_000
) -> Rank:
    """Whether the truth has a lower outcome than random draws matched in kind and weights.

    In every group the truth's rank among its draws (ties count half) is one of equally likely ranks if the truth is a draw
    like any other; the mean over groups is compared with that null distribution, by simulation.
    """
    ranks, sizes = [], []
    for _, group in rows.groupby(GROUP, sort=False):
        truth = group.loc[group["kind"] == "truth", outcome]
        draws = group.loc[group["kind"].isin(kinds), outcome].to_numpy()
        if len(truth) and len(draws):
            value = float(truth.iloc[0])
            ranks.append(float((draws < value).mean() + 0.5 * (draws == value).mean()))
            sizes.append(len(draws))
    if not ranks:
        return Rank(float("nan"), float("nan"), float("nan"), 0, 0)
    rng = np.random.default_rng(seed)
    null = np.mean([rng.integers(n + 1, size=samples) / n for n in sizes], axis=0)
    mean = float(np.mean(ranks))
    p = (1 + int((null <= mean + 1e-12).sum())) / (1 + samples)
    floor = max(1 / (1 + samples), float(np.prod([1 / (n + 1) for n in sizes])))
    return Rank(mean, max(p, floor), floor, len(ranks), sum(sizes))


DRAWS, GROUPS = 100, 3
"""Random draws, and groups of a place and a base model, below which no claim is judged."""


class Verdict(NamedTuple):
    """A claim about the question, and what the rows say of it: supported, contradicted, undecided or not testable."""

    claim: str
    verdict: str
    why: str


def claims(rows: pd.DataFrame, seed: int, level: float = 0.95) -> list[Verdict]:
    """The claims of the question, written down before any of it was run.

    A correlation supports its claim when its whole interval is below 0 (more of the predictor, less recovered), and
    contradicts it above 0. The truth supports its claim when so low a mean rank among its draws has a probability of at
    most 1 - ``level``, and contradicts it when so high a one has. With fewer than :data:`DRAWS` matched draws, or
    :data:`GROUPS` groups, nothing is judged.
    """
    rank = truth_among_draws(rows, RECOVERED, seed)
    few = (
        f"{rank.draws} matched draws of {DRAWS} in {rank.groups} groups of {GROUPS}"
        if rank.draws < DRAWS or rank.groups < GROUPS
        else ""
    )
    found = []
    for predictor, claim in (
        ("auroc", "A localizer that finds the truth better unlearns more robustly"),
        ("shared", "A selection with more of its matrices in the truth unlearns more robustly"),
        ("ablated", "A selection whose ablation loses more facts unlearns more robustly"),
    ):
        c = correlation(rows, predictor, RECOVERED)
        said = "supported" if c.high < 0 else "contradicted" if c.low > 0 else "undecided"
        why = f"Spearman {c.mean:.2f} [{c.low:.2f}, {c.high:.2f}] over {c.groups} groups"
        found.append(Verdict(claim, "not testable" if few else said, few or why))
    said = "supported" if rank.p <= 1 - level else "contradicted" if 1 - rank.p <= 1 - level else "undecided"
    why = f"mean rank {rank.mean_rank:.2f} among {rank.draws} matched draws, p {'< .001' if rank.p < 0.001 else f'= {rank.p:.3f}'}"
    claim = "The truth unlearns more robustly than random selections of its kind and size"
    return [*found, Verdict(claim, "not testable" if few else said, few or why)]
