"""Metrics, intervals and tests, computed from rows (never stored instead of them).

Accuracy has three names and is always named: ``argmax`` (the most likely next token of the whole
vocabulary is right), ``choice`` (right among the candidate answers) and ``probability`` (mean
probability of the right answer, renormalised over the candidates: the released code's "accuracy").

Scores come as *designs*: one matrix ``[seed, item]`` for each forget set, since every seed's model
answers the same items. One seed of one set is read over its items alone. With more, a hierarchical
bootstrap draws sets, within them seeds and, crossed with both, items. Of several base models each counts as a
seed, with the mean over its training seeds: what varies from one pretraining to the next is part of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.errors import UserError

Accuracy = Literal["choice", "argmax", "probability", "vocabulary"]

ACCURACIES: tuple[Accuracy, ...] = ("choice", "argmax", "probability")


class Answers(NamedTuple):
    """The scores of one forget set's models.

    Attributes:
        scores: ``[seed, item]``; every seed's model answers the same items.
        units: what each item is drawn with ``[item]``: its name. Sets may share items.
        bases: how many base models the seeds are; 1: they are training seeds of one.
    """

    scores: np.ndarray
    units: np.ndarray
    bases: int = 1


Design = Sequence[Answers]
"""Answers by forget set."""


class Estimate(NamedTuple):
    """A mean with its interval.

    Attributes:
        mean, low, high: the estimate and the interval's ends.
        n: number of different items, all forget sets together.
        seeds: number of training seeds, or of base models where there are several (of the forget set that has fewest).
        sets: number of forget sets.
        bases: number of base models.
    """

    mean: float
    low: float
    high: float
    n: int
    seeds: int = 1
    sets: int = 1
    bases: int = 1

    @property
    def covers(self) -> str:
        """What the interval covers, in words."""
        return covers(self.seeds, self.sets, self.bases)


def covers(seeds: int, sets: int, bases: int = 1) -> str:
    """What an interval over so many seeds and sets covers, in words."""
    runs = "base models" if bases > 1 else "training seeds"
    parts = [*(["forget sets"] if sets > 1 else []), *([runs] if seeds > 1 else []), "test items"]
    return " and ".join(parts) if len(parts) < 3 else f"forget sets, {runs} and test items"


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


class Spread(NamedTuple):
    """How uncertain a mean is.

    Attributes:
        error: standard error.
        freedom: degrees of freedom behind it, after Satterthwaite; few seeds or sets make few.
    """

    error: float
    freedom: float

    def quantile(self, confidence: float) -> float:
        """How many standard errors an interval reaches to either side (Student's t)."""
        from scipy.stats import t

        return float(t.ppf((1 + confidence) / 2, self.freedom))


def hierarchical_bootstrap(design: Design, samples: int, seed: int) -> np.ndarray:
    """Means of bootstrap samples ``[sample]``: sets drawn, in each its seeds and, crossed with both, the items.

    Of k sets or seeds k - 1 are drawn, so that the variance over a few of them is not too small by (k - 1) / k
    (McCarthy and Snowden 1985). Items get random weights, the same in every set and seed that has them: a
    Bayesian bootstrap (Rubin 1981), crossed as in Owen and Eckles (2012), since the same item has one difficulty.

    Args:
        design: answers by forget set.
        samples: number of bootstrap samples.
        seed: of the draws.
    """
    names, codes = _units(design)
    sums = [  # by unit [seed, unit], and how many items it has in the set
        np.stack([np.bincount(code, row, len(names)) for row in answers.scores])
        for answers, code in zip(design, codes, strict=True)
    ]
    sizes = [np.bincount(code, minlength=len(names)).astype(np.float64) for code in codes]
    means = []
    shape = (len(names), tuple(len(answers.scores) for answers in design), samples, seed)
    for drawn in _kept_draws(*shape) if len(names) * samples <= PART else _draws(*shape):
        by_set = [
            np.einsum("bu,bu->b", by_seed @ total, drawn.items) / (by_seed.sum(1) * (drawn.items @ size))
            for total, size, by_seed in zip(sums, sizes, drawn.seeds, strict=True)
        ]
        means.append((drawn.sets * np.stack(by_set, 1)).sum(1) / drawn.sets.sum(1))
    return np.concatenate(means)


PART = 4_000_000
"""Weights of items that are drawn at a time, which bounds memory: MMLU has 14,042 items."""


class Draws(NamedTuple):
    """Weights of bootstrap samples: of items ``[sample, unit]``, of each set's seeds ``[sample, seed]``, of sets ``[sample, set]``."""

    items: np.ndarray
    seeds: list[np.ndarray]
    sets: np.ndarray


def _draws(units: int, seeds: tuple[int, ...], samples: int, seed: int) -> Iterator[Draws]:
    """The draws of :func:`hierarchical_bootstrap`, part by part."""
    rng = np.random.default_rng(seed)
    gamma = max(0.5, (units - 2) / units)  # makes the variance of a mean unbiased
    step = max(1, PART // units)
    for start in range(0, samples, step):
        count = min(step, samples - start)
        items = rng.standard_gamma(gamma, (count, units))
        yield Draws(items, [_counts(n, count, rng) for n in seeds], _counts(len(seeds), count, rng))


@lru_cache(maxsize=8)
def _kept_draws(units: int, seeds: tuple[int, ...], samples: int, seed: int) -> tuple[Draws, ...]:
    """The same, kept: the points of a figure are all of one shape."""
    return tuple(_draws(units, seeds, samples, seed))


def _units(design: Design) -> tuple[np.ndarray, list[np.ndarray]]:
    """The different units of a design, and the index of each item's unit by set."""
    names, codes = np.unique(np.concatenate([answers.units for answers in design]), return_inverse=True)
    return names, np.split(codes, np.cumsum([len(answers.units) for answers in design])[:-1])


def _counts(units: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of ``units`` is drawn ``[sample, unit]``, in one draw fewer than there are units."""
    drawn = rng.integers(0, units, (samples, max(1, units - 1))) + units * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * units).reshape(samples, units).astype(np.float64)


def spread(design: Design, samples: int, seed: int) -> Spread:
    """Standard error of a design's mean by :func:`hierarchical_bootstrap`, with its degrees of freedom."""
    error = float(hierarchical_bootstrap(design, samples, seed).std())
    names, codes = _units(design)
    sets = len(design)
    means = [float(answers.scores.mean()) for answers in design]
    parts = []  # variance of the mean from one level alone, and how many units that rests on
    if sets > 1:
        parts.append((float(np.var(means, ddof=1)) / sets, sets - 1))
    by_unit = np.zeros(len(names))
    for answers, code, mean in zip(design, codes, means, strict=True):
        seeds, items = answers.scores.shape
        if seeds > 1:
            parts.append((float(answers.scores.mean(1).var(ddof=1)) / seeds / sets**2, seeds - 1))
        by_unit += np.bincount(code, answers.scores.mean(0) - mean, len(names)) / items / sets
    if len(names) > 1:
        parts.append((float((by_unit**2).sum()) * len(names) / (len(names) - 1), len(names) - 1))
    total = sum(v for v, _ in parts)
    return Spread(error, total**2 / sum(v**2 / k for v, k in parts) if total > 0 else math.inf)


def pooled(design: Design, settings: Statistics, share: bool) -> Estimate:
    """Mean of a design with the interval that :class:`Estimate` says.

    Scores from 0 to 1 get Wilson's interval, which stays there: of one seed's right and wrong answers at their number;
    else at the effective number of items, that of right and wrong answers whose mean would be as uncertain (Korn and
    Graubard 1998), with Student's t for few seeds or sets. How uncertain is what the hierarchical bootstrap says. So that
    unanimous answers are not taken for certainty, right and wrong answers count as no more items than there are, and
    scores between (means over option orders, probabilities) get two more items, one of 0 and one of 1, first. Other
    scores: percentile bootstrap over the items of one seed, or else t standard errors to either side.

    Args:
        design: answers by forget set.
        settings: level, bootstrap samples and their seed.
        share: whether scores lie from 0 to 1.
    """
    items, seeds = len(_units(design)[0]), min(len(answers.scores) for answers in design)
    mean = float(np.mean([answers.scores.mean() for answers in design]))
    whole = share and shares(design)
    if len(design) == 1 and seeds == 1 and (whole or not share):
        scores = design[0].scores[0]
        if whole:
            return wilson(scores > 0.5, settings.confidence)
        return bootstrap_mean(scores, settings.confidence, settings.bootstrap, settings.seed)
    if share and not whole:
        smoothed = [_with(answers, index, (0.0, 1.0)) for index, answers in enumerate(design)]
        found = spread(smoothed, settings.bootstrap, settings.seed)
        centre = float(np.mean([answers.scores.mean() for answers in smoothed]))
        effective = centre * (1 - centre) / found.error**2
    else:
        found = spread(design, settings.bootstrap, settings.seed)
        variance = mean * (1 - mean)
        effective = min(items, variance / found.error**2) if variance > 0 < found.error else items
    reach = found.quantile(settings.confidence)
    if share:
        low, high = score_interval(mean, effective, reach)
    else:
        low, high = mean - reach * found.error, mean + reach * found.error
    return Estimate(mean, low, high, items, seeds, len(design), min(answers.bases for answers in design))


def score_interval(mean: float, items: float, reach: float) -> tuple[float, float]:
    """Wilson's interval of a share of ``items`` (not necessarily a whole number), ``reach`` standard errors wide."""
    centre = (mean + reach**2 / (2 * items)) / (1 + reach**2 / items)
    half = reach / (1 + reach**2 / items) * math.sqrt(mean * (1 - mean) / items + reach**2 / (4 * items**2))
    return max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean))


def candidates(table: pd.DataFrame, prefix: str = "logit_") -> np.ndarray:
    """Logits of the candidate answers ``[item, candidate]``."""
    return table[[c for c in table.columns if c.startswith(prefix)]].to_numpy(dtype=np.float64)


def item_scores(table: pd.DataFrame, accuracy: Accuracy, prefix: str = "logit_") -> np.ndarray:
    """Score of each item ``[item]``: 0 or 1, or a probability."""
    if accuracy == "argmax":
        return table["argmax_right"].to_numpy(dtype=np.float64)
    logits = candidates(table, prefix)
    answer = table["answer_index"].to_numpy()
    if accuracy == "vocabulary":
        right = logits[np.arange(len(answer)), answer]
        return np.asarray(np.exp(right - table["log_normalizer"].to_numpy(dtype=np.float64)))
    if accuracy == "choice":
        return np.asarray(logits.argmax(1) == answer, dtype=np.float64)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted[np.arange(len(answer)), answer] / shifted.sum(1))


def item_names(rows: pd.DataFrame) -> pd.Series:
    """What tells the items of one model apart: the athlete, or the question's or window's id.

    Rows without either are one model's answers in their own order.
    """
    for name in ("item", "subject"):
        if name in rows.columns:
            return rows[name]
    return pd.Series(np.arange(len(rows)), index=rows.index)


def over_draws(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with ``score``, and one ``score`` for all ``draw`` of what is else the same row: their mean."""
    if not table["draw"].any():
        return table.drop(columns="draw")
    same = [name for name in table.columns if name not in ("draw", "score")]
    return table.groupby(same, sort=False, observed=True, dropna=False)["score"].mean().reset_index()


def shares(*designs: Design) -> bool:
    """Whether every score is 0 or 1."""
    return all(bool(np.isin(answers.scores, (0, 1)).all()) for design in designs for answers in design)


def design_of(rows: pd.DataFrame, scores: np.ndarray | pd.Series) -> list[Answers]:
    """The design of rows and their scores, one entry per ``task``, items in the order of their names.

    Questions of general knowledge are items like any other: MMLU's subjects are always the same, so that what an
    interval or a test speaks of is other questions of these subjects, never other subjects.

    Args:
        rows: one localization's rows, one per seed and item; columns ``task``, ``seed`` and ``base_seed`` if there are
            several. Where an item was asked in several option orders (``draw``), its score is their mean.
        scores: the score of each row.

    Raises:
        UserError: when two seeds did not answer the same items, or one answered an item twice.
    """
    items, values = item_names(rows).to_numpy(), np.asarray(scores, dtype=np.float64)
    of = {
        name: rows[name].to_numpy() if name in rows.columns else np.zeros(len(rows), dtype=int)
        for name in ("task", "base_seed", "seed", "draw")
    }
    bases, design = len(pd.unique(of["base_seed"])), []
    for task in pd.unique(of["task"]):
        here = of["task"] == task
        item, names = pd.factorize(items[here], sort=True)
        runs, run = np.unique(
            np.stack([of["base_seed"][here], of["seed"][here]]), axis=1, return_inverse=True
        )
        draw = pd.factorize(of["draw"][here])[0]
        cell = run * len(names) + item
        if np.bincount(cell * (draw.max() + 1) + draw).max() > 1:
            where = "a model" if bases > 1 else f"task {task!s}"
            raise UserError(f"an item stands twice among the rows of {where}: rerun its evaluation")
        size = runs.shape[1] * len(names)
        counts = np.bincount(cell, minlength=size).reshape(-1, len(names))
        if not counts.all():
            seed = runs[1, (counts == 0).any(1).argmax()]
            raise UserError(
                f"seed {seed} of task {task!s} was not asked all items that the others were: rerun its evaluation"
            )
        means = np.bincount(cell, values[here], size).reshape(-1, len(names)) / counts
        if bases > 1:
            means = np.stack([means[runs[0] == base].mean(0) for base in np.unique(runs[0])])
        design.append(Answers(means, np.asarray(names), bases if len(means) > 1 else 1))
    return design


def estimate(
    table: pd.DataFrame, accuracy: Accuracy, settings: Statistics, prefix: str = "logit_"
) -> Estimate:
    """Accuracy of one localization over the rows of ``table``: all its items, seeds and forget sets."""
    design = design_of(table, item_scores(table, accuracy, prefix))
    return pooled(design, settings, share=True)


def grouped(
    rows: pd.DataFrame, scores: pd.Series, by: Sequence[str], settings: Statistics, share: bool = True
) -> pd.DataFrame:
    """Estimates of each group of rows: columns ``by`` and those of :class:`Estimate`."""
    found = []
    for key, group in scores.groupby([rows[name] for name in by], sort=False):
        keys = key if isinstance(key, tuple) else (key,)
        value = pooled(design_of(rows.loc[group.index], group), settings, share)
        found.append({**dict(zip(by, keys, strict=True)), **value._asdict()})
    return pd.DataFrame(found)


class Difference(NamedTuple):
    """A paired comparison of two localizations on the same items.

    Attributes:
        difference, low, high: mean of the first less mean of the second, with its interval.
        p: two-sided, before any correction.
        effect: Cohen's h of two shares; d_z (mean over standard deviation of the items' differences) otherwise.
        only_first, only_second: items that only one of them has right, mean over seeds; of shares.
        n, seeds, sets, bases: items, training seeds (or base models), forget sets, base models.
        test: how ``p`` was found.
    """

    difference: float
    low: float
    high: float
    p: float
    effect: float
    only_first: float
    only_second: float
    n: int
    seeds: int
    sets: int
    bases: int
    test: str


def compare(first: Design, second: Design, settings: Statistics, share: bool) -> Difference:
    """Compare two designs over the same sets and items.

    One seed of one set and 0/1 scores: McNemar's exact test. Otherwise Student's t of the
    items' differences with the standard error of :func:`hierarchical_bootstrap`, seeds being paired (the same seed
    draws the same batches). Shares get two more items that speak one for each side, half a cell each, so that
    unanimous answers are not taken for certainty (Agresti and Min 2005); their interval rests on the same items.

    Args:
        first: answers by forget set.
        second: those compared with, of the same sets in the same order.
        settings: level, bootstrap samples and their seed.
        share: whether scores lie from 0 to 1.

    Raises:
        UserError: when they have different sets, seeds or items.
    """
    from scipy.stats import t
    from statsmodels.stats.proportion import proportion_effectsize

    bounded, share = share, share and shares(first, second)
    design = _differences(first, second)
    means = [float(np.mean([a.scores.mean() for a in side])) for side in (first, second)]
    scores = [answers.scores for answers in design]
    seeds, sets, items = min(map(len, scores)), len(design), sum(s.shape[1] for s in scores)
    bases = min(answers.bases for answers in design)
    smoothed = [_smoothed(answers, index) for index, answers in enumerate(design)] if share else design
    found = spread(smoothed, settings.bootstrap, settings.seed)
    centre = float(np.mean([answers.scores.mean() for answers in smoothed]))
    reach = found.quantile(settings.confidence) * found.error
    difference = means[0] - means[1]
    only = [
        float(sum((sign * s > 0.5).sum() / len(s) for s in scores)) if share else math.nan for sign in (1, -1)
    ]
    if share and seeds == sets == 1:
        p, test = mcnemar(int(only[0]), int(only[1])), "McNemar, exact"
    elif found.error == 0:
        p, test = 1.0 if centre == 0 else 0.0, "paired bootstrap t"
    else:
        p, test = float(2 * t.sf(abs(centre) / found.error, found.freedom)), "paired bootstrap t"
    by_item = np.concatenate([s.mean(0) for s in scores])
    spread_of_items = float(by_item.std(ddof=1)) if len(by_item) > 1 else 0.0
    if share:
        effect = float(proportion_effectsize(*means))
    else:
        effect = difference / spread_of_items if spread_of_items else 0.0
    low, high = min(centre - reach, difference), max(centre + reach, difference)
    if bounded:
        low, high = max(-1.0, low), min(1.0, high)
    return Difference(difference, low, high, p, effect, only[0], only[1], items, seeds, sets, bases, test)


def _differences(first: Design, second: Design) -> list[Answers]:
    """First less second, ``[seed, item]`` by set; a side with one seed, as the base model, stands for every seed."""
    if len(first) != len(second):
        raise UserError(
            "two localizations are compared on different forget sets: evaluate both on all of them"
        )
    codes = _units([*first, *second])[1]
    design = []
    for a, b, units, others in zip(first, second, codes, codes[len(first) :], strict=False):
        if a.scores.shape[1] != b.scores.shape[1] or not np.array_equal(units, others):
            raise UserError("two localizations answered different items: rerun their evaluation")
        if len(a.scores) != len(b.scores) and 1 not in (len(a.scores), len(b.scores)):
            raise UserError("two localizations have different numbers of seeds: evaluate both for every seed")
        design.append(Answers(a.scores - b.scores, units, max(a.bases, b.bases)))
    return design


def _smoothed(answers: Answers, index: int) -> Answers:
    """With two more items, one for each side of a difference; together they weigh as half an item in each cell."""
    return _with(answers, index, (math.sqrt(0.5), -math.sqrt(0.5)))


def _with(answers: Answers, index: int, two: tuple[float, float]) -> Answers:
    """With two more items of their own, of which every seed has these scores."""
    extra = np.tile(two, (len(answers.scores), 1))
    names = [-1 - 2 * index, -2 - 2 * index]
    numbers = np.issubdtype(answers.units.dtype, np.integer)
    units = np.concatenate([answers.units if numbers else answers.units.astype(str), names])
    return Answers(np.concatenate([answers.scores, extra], 1), units, answers.bases)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test, from the items that only one of two sides has right."""
    from statsmodels.stats import contingency_tables

    return float(contingency_tables.mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's correction: the p-values over their family, in the same order.

    Written out, since statsmodels' ``multipletests`` collects garbage at every call (0.1 s).
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected
