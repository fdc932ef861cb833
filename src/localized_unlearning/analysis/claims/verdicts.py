"""From evidence to verdicts. A claim is judged by comparisons, each with a margin and an interval.

The margin is how far a number lies on the claim's side of its bound, in accuracy. A comparison *holds* when the
margin is above 0 at the level, one-sided; it *fails* when it is below 0, corrected (Holm) over the claim's comparisons,
since one of twenty fails by chance; otherwise it *leans* one way. Plain shares of one seed's answers are counted (exact
binomial and McNemar's tests), everything else is resampled; an end of an interval that is 0 up to rounding counts as
0. A comparison that no outcome, or for a tolerance no tie, could make hold with so few items is *not testable*. A
claim, which says that all its comparisons hold, is

- **supported** when they do (no correction: each must hold at its own level),
- **contradicted** when one fails,
- **not testable** when none can be tested,
- **undecided** otherwise, which says nothing against it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from localized_unlearning.analysis.claims.evidence import Cell, Curve, Ends, Evidence, NotTestable, Number
from localized_unlearning.analysis.claims.schema import (
    HALFWAY,
    ROUNDING,
    Band,
    Claim,
    Ordering,
    Smaller,
    Test,
    Trend,
)
from localized_unlearning.analysis.statistics import holm

Verdict = Literal["supported", "contradicted", "undecided", "not testable"]

Outcome = Literal["holds", "leans for", "leans against", "fails", "not testable"]

OUTCOMES: tuple[Outcome, ...] = ("holds", "leans for", "leans against", "fails", "not testable")


class Weighed(NamedTuple):
    """How a margin stands against 0.

    Attributes:
        margin, low, high: the estimate and its interval.
        p_for, p_against: one-sided p-values against a margin of at most, or at least, 0.
        test: how they were found.
        needs: how many items it takes for the claim to be able to hold, where the data have fewer.
    """

    margin: float
    low: float
    high: float
    p_for: float
    p_against: float
    test: str
    needs: int | None = None


@dataclass(frozen=True)
class Comparison:
    """One comparison of a claim.

    Attributes:
        task, objective, measure, localization: what was looked at; localization is None for the base model.
        bound: what it was compared with, in words.
        value: the localization's number; other: the other localization's, if any.
        margin, interval, p_for, p_against, test: see :class:`Weighed`; None when not testable.
        items, seeds: over how many.
        outcome: what came of it; reason: why it is not testable.
        unit: of values and margin: accuracy, or weights (the margin then counts doublings).
    """

    task: str
    objective: str
    measure: str
    localization: str | None
    bound: str
    value: float | None = None
    other: float | None = None
    margin: float | None = None
    interval: tuple[float, float] | None = None
    p_for: float | None = None
    p_against: float | None = None
    test: str | None = None
    items: int | None = None
    seeds: int | None = None
    outcome: Outcome = "not testable"
    reason: str | None = None
    unit: Literal["accuracy", "weights", "layers"] = "accuracy"


@dataclass(frozen=True)
class Judgement:
    """A claim's verdict, and the worst of its comparisons that could be tested.

    ``elsewhere`` holds the verdicts with other forget sets in place of the paper's, by their tasks.
    """

    claim: Claim
    verdict: Verdict
    worst: Comparison | None
    reason: str | None
    comparisons: tuple[Comparison, ...]
    elsewhere: Mapping[str, Verdict] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """How many comparisons had which outcome, in words: ``9 hold, 1 leans for``."""
        words = {
            "holds": ("holds", "hold"), "leans for": ("leans for", "lean for"),
            "leans against": ("leans against", "lean against"), "fails": ("fails", "fail"),
            "not testable": ("not testable", "not testable"),
        }  # fmt: skip
        return ", ".join(f"{count} {words[outcome][count > 1]}" for outcome, count in self.counts.items())

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """How many comparisons had which outcome."""
        found = Counter(comparison.outcome for comparison in self.comparisons)
        return {outcome: found[outcome] for outcome in OUTCOMES if found[outcome]}

    @property
    def seeds(self) -> int:
        """Training seeds behind its comparisons, the fewest; 0 for a claim about the base model or nothing tested."""
        found = [
            c.seeds for c in self.comparisons if c.localization and c.seeds and c.outcome != "not testable"
        ]
        return min(found, default=0)

    def as_json(self) -> dict[str, Any]:
        """The finding as it stands in ``claims.json``."""
        claim = self.claim
        return {
            "id": claim.id, "section": claim.section, "says": claim.says, "why": claim.why,
            "caveat": claim.caveat, "circular": claim.circular,
            "shown_in": list(claim.shown_in), "verdict": self.verdict,
            "margin": self.worst.margin if self.worst else None,
            "interval": list(self.worst.interval) if self.worst and self.worst.interval else None,
            "counts": dict(self.counts), "told": self.told, "seeds": self.seeds, "comparisons": len(self.comparisons), "reason": self.reason,
            "elsewhere": dict(self.elsewhere), "tests": [asdict(comparison) for comparison in self.comparisons],
        }  # fmt: skip


def judge(
    claim: Claim, evidence: Evidence, confidence: float, sets: Mapping[str, str] | None = None
) -> Judgement:
    """A claim's verdict on some evidence.

    Args:
        claim: what is claimed.
        evidence: what it is judged on.
        confidence: level of the intervals.
        sets: tasks with other forget sets, and the paper's task that each stands for. They say whether a verdict
            carries over; they never change it.
    """
    finding = _judge(claim, evidence, confidence)
    found = {}
    for name, task in (sets or {}).items():
        tests = tuple(
            test.model_copy(update={"tasks": (name,)}) for test in claim.tests if task in test.tasks
        )
        if tests:
            found[name] = _judge(claim.model_copy(update={"tests": tests}), evidence, confidence).verdict
    return replace(finding, elsewhere=found)


def _judge(claim: Claim, evidence: Evidence, confidence: float) -> Judgement:
    found = _corrected([c for test in claim.tests for c in compare(test, evidence, confidence)], confidence)
    tested = [c for c in found if c.outcome != "not testable"]
    reason = "; ".join(sorted({c.reason for c in found if c.reason})) or None
    if not tested:
        return Judgement(claim, "not testable", None, reason, found)
    worst = min(tested, key=lambda c: c.margin if c.margin is not None else 0.0)
    verdict: Verdict = "undecided"
    if all(c.outcome == "holds" for c in found):
        verdict = "supported"
    elif any(c.outcome == "fails" for c in found):
        verdict = "contradicted"
    return Judgement(claim, verdict, worst, reason, found)


def _corrected(found: Sequence[Comparison], confidence: float) -> tuple[Comparison, ...]:
    """With failures told from chance (Holm over those tested), and what cannot hold called not testable."""
    tested = [c for c in found if c.p_against is not None]
    adjusted = dict(
        zip(map(id, tested), holm([c.p_against or 0.0 for c in tested]) if tested else (), strict=True)
    )
    done = []
    for c in found:
        if c.p_against is not None and adjusted[id(c)] <= (1 - confidence) / 2:
            c = replace(c, outcome="fails", reason=None)
        done.append(c)
    return tuple(done)


def compare(test: Test, evidence: Evidence, confidence: float) -> Iterator[Comparison]:
    """Every comparison of a test; whether one fails is left to the whole claim's correction."""
    for task in test.tasks:
        for name in test.localizations or (None,):
            for other in test.others(name or "") if isinstance(test, Ordering | Smaller) else (None,):
                blank = Comparison(task, test.objective, test.measure, name, bound_of(test, other))
                try:
                    yield _decided(blank, test, evidence, other, confidence)
                except NotTestable as reason:
                    yield replace(blank, reason=str(reason))


def bound_of(test: Test, other: str | None) -> str:
    """What a test asks for, in words."""
    if isinstance(test, Ordering):
        slack = f", give or take {test.tolerance:g}" if test.tolerance else ""
        more = f" by at least {test.by:g}" if test.by else ""
        return f"{test.side} {other}{more}{slack}"
    if isinstance(test, Smaller):
        return f"halfway at {1 / test.ratio:g} of the edit of {other}, or less"
    if isinstance(test, Band):
        ends = [
            f"at least {test.low:g}" if test.low is not None else "",
            f"at most {test.high:g}" if test.high is not None else "",
        ]
        return " and ".join(end for end in ends if end)
    where = "over the lookup layers" if test.over == "lookup" else "from first to last"
    where = f"within {test.until:g} iterations" if test.until is not None else where
    least = f"{test.share:.0%} of the whole rise" if test.share else f"{test.rise:g}"
    return f"rises by at least {least} {where}"


def _decided(
    blank: Comparison, test: Test, evidence: Evidence, other: str | None, confidence: float
) -> Comparison:
    cells = [
        Cell(blank.task, blank.objective, name or "base", blank.measure)
        for name in ((blank.localization, other) if other else (blank.localization,))
    ]
    tail = (1 - confidence) / 2
    for cell in cells:
        if test.forgotten:
            _forgotten(cell, evidence, tail)
        if test.answering and evidence.retained:
            _answering(cell, evidence, tail)
    curves = [evidence.curve(cell) for cell in cells]
    numbers = [curve.at(test.at) for curve in curves]
    values = [number.value for number in numbers]
    items = min(c.items for c in curves)
    unit: Literal["accuracy", "weights", "layers"] = (
        "layers" if test.measure == "selection_depth" else "accuracy"
    )
    if isinstance(test, Ordering):
        weighed = _difference(numbers[1], numbers[0], test, curves, tail)
    elif isinstance(test, Smaller):
        unit, (weighed, *values) = "weights", _smaller(curves[0], curves[1], test, tail)
    elif isinstance(test, Band):
        weighed = _inside(numbers[0], curves[0], test, tail)
    else:
        weighed = _rise(curves[0], test, evidence.lookup, tail)
    outcome: Outcome
    reason = None
    if weighed.p_for <= tail:
        outcome = "holds"
    elif weighed.needs is not None and weighed.needs > items:
        outcome = "not testable"
        case = "at a tie" if isinstance(test, Ordering) and test.tolerance else "whatever the answers"
        reason = f"{items} items cannot show '{blank.bound}' {case}: it needs {weighed.needs}"
    else:
        outcome = "leans for" if weighed.margin > ROUNDING else "leans against"
    return replace(
        blank, value=values[0], other=values[1] if other else None, unit=unit, margin=weighed.margin,
        interval=(weighed.low, weighed.high), p_for=weighed.p_for, p_against=weighed.p_against, test=weighed.test,
        items=items, seeds=min(c.seeds for c in curves), outcome=outcome, reason=reason,
    )  # fmt: skip


def _forgotten(cell: Cell, evidence: Evidence, tail: float) -> None:
    """Refuse a model that had not certainly forgotten before it was attacked."""
    number = evidence.curve(cell._replace(measure="forget")).at("last")
    model = f"{cell.task}, {cell.objective}: forget accuracy {number.value:.3f}"
    if number.value >= HALFWAY - ROUNDING:
        raise NotTestable(f"{cell.localization} never unlearned ({model})")
    if float(np.quantile(number.samples, 1 - tail)) >= HALFWAY - ROUNDING:
        raise NotTestable(f"it is not certain that {cell.localization} unlearned ({model})")


def _answering(cell: Cell, evidence: Evidence, tail: float) -> None:
    """Refuse a model that cannot answer multiple choice about what it was to retain either."""
    number = evidence.curve(cell._replace(measure="mcq_retain", objective=cell.objective)).at("last")
    if float(np.quantile(number.samples, tail)) <= HALFWAY + ROUNDING:
        raise NotTestable(
            f"{cell.localization} hardly answers multiple choice about retained subjects either ({cell.task}, "
            f"{cell.objective}: {number.value:.3f})"
        )


# --- how margins are weighed


def _sampled(margin: float, samples: np.ndarray, tail: float, choices: int = 1) -> Weighed:
    """A margin with its samples; those that are 0 up to rounding speak for neither side."""
    low, high = (float(end) for end in np.quantile(samples, [tail / choices, 1 - tail / choices]))
    p_for, p_against = min(1.0, choices * _tail(samples)), _tail(-samples)
    return Weighed(margin, low, high, p_for, p_against, "resampled")


def _tail(samples: np.ndarray) -> float:
    """One-sided p-value against a margin of at most 0.

    Where no sample lies there, their number alone would say how small it can be, and a point chosen among a hundred heads
    could never hold; the normal distribution of their mean and deviation says more.
    """
    from scipy.stats import norm

    found = (1 + int((samples <= ROUNDING).sum())) / (len(samples) + 1)
    if samples.min() <= ROUNDING:
        return found
    return min(found, float(norm.sf(samples.mean() / max(samples.std(), ROUNDING))))


def _needs(items: int, margin: float, samples: np.ndarray, tail: float) -> int | None:
    """About how many items make the best case hold; None when these do, or none would.

    In the best case only the pseudo-items vary, whose reach shrinks as 1 / (n + 2).
    """
    low = float(np.quantile(samples, tail))
    if margin <= 0 or _sampled(margin, samples, tail).p_for <= tail:
        return None
    return max(items + 1, math.ceil((items + 2) * (margin - low) / margin) - 2)


def _difference(
    greater: Number, less: Number, test: Ordering, curves: Sequence[Curve], tail: float
) -> Weighed:
    first, second = curves[1], curves[0]
    if test.side == "above":
        greater, less, first, second = less, greater, second, first
    items = min(curve.items for curve in curves)
    slack = test.tolerance - test.by
    margin = greater.value - less.value + slack
    weighed = _sampled(margin, greater.samples - less.opposed + slack, tail)
    if test.tolerance:  # a tie must be able to hold
        return weighed._replace(
            needs=_needs(items, test.tolerance, greater.samples - greater.opposed + test.tolerance, tail)
        )
    if (
        not test.by
        and greater.answers is not None
        and less.answers is not None
        and set(greater.answers) == set(less.answers)
    ):
        pairs = [(right, less.answers[name]) for name, right in greater.answers.items()]
        up, down = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
        return weighed._replace(
            p_for=_at_least(up, up + down, 0.5), p_against=_at_least(down, up + down, 0.5),
            test="McNemar, exact", needs=math.ceil(math.log(tail) / math.log(0.5)),
        )  # fmt: skip
    if first.ends is None or second.ends is None:
        return weighed
    best = first.ends.top_samples - second.ends.bottom_opposed - test.by
    return weighed._replace(needs=_needs(items, first.ends.top - second.ends.bottom - test.by, best, tail))


def _inside(number: Number, curve: Curve, test: Band, tail: float) -> Weighed:
    low = -np.inf if test.low is None else test.low
    high = np.inf if test.high is None else test.high
    chosen_for = {"max": test.low is not None, "min": test.high is not None}.get(test.at, False)
    choices = number.choices if chosen_for else 1
    margin = float(min(number.value - low, high - number.value))
    samples = np.minimum(number.samples - low, high - number.samples)
    weighed = _sampled(margin, samples, tail, choices)
    if number.answers is not None and (0 < low < 1) != (0 < high < 1):
        right, count = round(sum(number.answers.values())), len(number.answers)
        bound = low if test.low is not None else high
        above = _at_least(right, count, bound)
        below = _at_least(count - right, count, 1 - bound)
        p_for, p_against = (above, below) if test.low is not None else (below, above)
        least = bound if test.low is not None else 1 - bound
        return weighed._replace(
            p_for=min(1.0, choices * p_for), p_against=p_against, test="binomial, exact",
            needs=math.ceil(math.log(tail / choices) / math.log(least)),
        )  # fmt: skip
    if curve.ends is None:
        return weighed
    best, samples = _best(curve.ends, low, high)
    return weighed._replace(needs=_needs(curve.items, best, samples, tail / choices))


def _best(ends: Ends, low: float, high: float) -> tuple[float, np.ndarray]:
    """The greatest margin within bounds that an outcome at either end can have, with its samples."""
    cases = [
        (min(value - low, high - value), np.minimum(samples - low, high - samples))
        for value, samples in ((ends.top, ends.top_samples), (ends.bottom, ends.bottom_samples))
    ]
    return max(cases, key=lambda case: case[0])


def _at_least(count: int, trials: int, share: float) -> float:
    """Probability of at least ``count`` of ``trials``, one-sided p-value against ``share``."""
    from scipy.stats import binom

    return float(binom.sf(count - 1, trials, share)) if trials else 1.0


def _rise(curve: Curve, test: Trend, lookup: Sequence[int], tail: float) -> Weighed:
    within = [i for i, x in enumerate(curve.x) if test.until is None or x <= test.until]
    first, last = curve.point(within[0]), curve.point(within[-1])
    start, end = first, last
    if test.over == "lookup":
        if not lookup:
            raise NotTestable("the run has no manual localization, whose layers are meant")
        before, until = float(min(lookup) - 1), float(max(lookup))
        if before not in curve.x or until not in curve.x:
            raise NotTestable(
                "the manual localization begins at the first layer, before which nothing is probed"
            )
        start, end = curve.point(curve.x.index(before)), curve.point(curve.x.index(until))
    margin = (end.value - start.value) - test.rise - test.share * (last.value - first.value)
    samples = (end.samples - start.opposed) - test.rise - test.share * (last.samples - first.opposed)
    weighed = _sampled(margin, samples, tail)
    if test.share or curve.ends is None:
        return weighed
    best = curve.ends.top_samples - curve.ends.bottom_opposed - test.rise
    return weighed._replace(
        needs=_needs(curve.items, curve.ends.top - curve.ends.bottom - test.rise, best, tail)
    )


def _smaller(curve: Curve, other: Curve, test: Smaller, tail: float) -> tuple[Weighed, float, float]:
    """How many doublings smaller an edit passes halfway than another, less those that are asked for; both edits.

    Edits were tried at some sizes only, so that a curve passes somewhere after the last size at which it had not, and
    maybe before the first. The claim holds if it does wherever that is, and fails if it fails wherever that is. A curve that
    never passes counts as passing at twice the largest edit where it is the claim's own, and beyond any edit where it is
    the other; where neither passes, nothing is said.
    """
    if not (_below(curve.mean).any() or _below(other.mean).any()):
        raise NotTestable("neither mask forgets half of the facts at any edit size")
    asked = math.log2(test.ratio) - 2 * ROUNDING  # exactly so many times smaller is small enough
    own, others = _passing(curve.samples, curve.x), _passing(other.opposed, other.x)
    neither = ~(_below(curve.samples).any(-1) | _below(other.opposed).any(-1))
    least, most = (
        np.where(neither, 0.0, np.log2(a / b) - asked)
        for a, b in ((others[0], np.minimum(own[1], 2 * curve.x[-1])), (others[1], own[0]))
    )
    last, last_other = (float(_passing(c.mean[None], c.x)[1][0]) for c in (curve, other))
    mine, theirs = min(last, 2 * float(curve.x[-1])), min(last_other, float(other.x[-1]))
    held, failed = _sampled(0.0, least, tail), _sampled(0.0, most, tail)
    margin = math.log2(theirs / mine) - asked
    return Weighed(margin, held.low, failed.high, held.p_for, failed.p_against, "resampled"), mine, theirs


FAR = 2.0**10
"""How many times the largest edit stands for an edit beyond all that were tried."""


def _below(values: np.ndarray) -> np.ndarray:
    """Where accuracies lie below halfway; one that is halfway up to rounding does not."""
    return np.asarray(values < HALFWAY - ROUNDING)


def _passing(values: np.ndarray, x: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Between which edit sizes each curve ``[sample, point]`` first lies below halfway: both ``[sample]``."""
    sizes = np.array([1.0, *x, FAR * x[-1]])
    below = _below(values)
    first = np.where(below.any(-1), below.argmax(-1), len(x))
    return sizes[first], sizes[first + 1]
