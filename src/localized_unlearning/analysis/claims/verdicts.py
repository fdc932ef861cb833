"""From evidence to verdicts. A claim is judged by comparisons, each with a margin and an interval.

The margin is how far a number lies on the claim's side of its bound, in accuracy. A comparison *holds* when
its whole interval lies above 0, *fails* when it lies below, and otherwise *leans* one way. A claim is

- **supported** when every comparison holds (all of them must, so that no correction for their number is due),
- **not supported** when none holds, or when fewer than half have a margin above 0,
- **partly** supported otherwise, and also when some of its comparisons cannot be tested,
- **not testable** when none can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from localized_unlearning.analysis.claims.evidence import Cell, Curve, Evidence, NotTestable, Number
from localized_unlearning.analysis.claims.schema import Band, Claim, Ordering, Test, Trend

Verdict = Literal["supported", "partly", "not supported", "not testable"]

Outcome = Literal["holds", "leans for", "leans against", "fails", "not testable"]

FORGOTTEN = 0.5
"""Forget accuracy below which a model counts as having forgotten."""


@dataclass(frozen=True)
class Comparison:
    """One comparison of a claim.

    Attributes:
        task, objective, measure, localization: what was looked at; localization is None for the base model.
        bound: what it was compared with, in words.
        value: the localization's number; other: the other localization's, if any.
        margin, interval: see the module; None when not testable.
        items, seeds: over how many.
        outcome: what came of it; reason: why it is not testable.
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
    items: int | None = None
    seeds: int | None = None
    outcome: Outcome = "not testable"
    reason: str | None = None


@dataclass(frozen=True)
class Finding:
    """A claim's verdict; margin and interval are those of its worst comparison.

    ``elsewhere`` holds the verdicts with other forget sets in place of the paper's, by their tasks.
    """

    claim: Claim
    verdict: Verdict
    margin: float | None
    interval: tuple[float, float] | None
    held: int
    reason: str | None
    comparisons: tuple[Comparison, ...]
    elsewhere: Mapping[str, Verdict] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The finding as it stands in ``claims.json``."""
        claim = self.claim
        return {
            "id": claim.id, "section": claim.section, "says": claim.says, "why": claim.why,
            "caveat": claim.caveat,
            "shown_in": list(claim.shown_in), "verdict": self.verdict, "margin": self.margin,
            "interval": list(self.interval) if self.interval else None, "held": self.held,
            "comparisons": len(self.comparisons), "reason": self.reason, "elsewhere": dict(self.elsewhere),
            "tests": [asdict(comparison) for comparison in self.comparisons],
        }  # fmt: skip


def judge(
    claim: Claim, evidence: Evidence, confidence: float, sets: Mapping[str, str] | None = None
) -> Finding:
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


def _judge(claim: Claim, evidence: Evidence, confidence: float) -> Finding:
    found = tuple(c for test in claim.tests for c in compare(test, evidence, confidence))
    tested = [c for c in found if c.margin is not None]
    reasons = sorted({c.reason for c in found if c.reason})
    held = sum(c.outcome == "holds" for c in found)
    reason = "; ".join(reasons) or None
    if not tested:
        return Finding(claim, "not testable", None, None, 0, reason, found)
    worst = min(tested, key=lambda c: c.margin if c.margin is not None else 0.0)
    leaning = sum(c.margin > 0 for c in tested if c.margin is not None)
    verdict: Verdict = "partly"
    if held == len(found):
        verdict = "supported"
    elif not held or 2 * leaning < len(tested):
        verdict = "not supported"
    return Finding(claim, verdict, worst.margin, worst.interval, held, reason, found)


def compare(test: Test, evidence: Evidence, confidence: float) -> Iterator[Comparison]:
    """Every comparison of a test."""
    for task in test.tasks:
        for name in test.localizations or (None,):
            for other in test.others(name or "") if isinstance(test, Ordering) else (None,):
                blank = Comparison(task, test.objective, test.measure, name, bound_of(test, other))
                try:
                    yield _decided(blank, test, evidence, other, confidence)
                except NotTestable as reason:
                    yield replace(blank, reason=str(reason))


def bound_of(test: Test, other: str | None) -> str:
    """What a test asks for, in words."""
    if isinstance(test, Ordering):
        slack = f", give or take {test.tolerance:g}" if test.tolerance else ""
        return f"{test.side} {other}{slack}"
    if isinstance(test, Band):
        ends = [
            f"at least {test.low:g}" if test.low is not None else "",
            f"at most {test.high:g}" if test.high is not None else "",
        ]
        return " and ".join(end for end in ends if end)
    where = "over the lookup layers" if test.over == "lookup" else "from first to last"
    least = f"{test.share:.0%} of the whole rise" if test.share else f"{test.rise:g}"
    return f"rises by at least {least} {where}"


def _decided(
    blank: Comparison, test: Test, evidence: Evidence, other: str | None, confidence: float
) -> Comparison:
    cells = [
        Cell(blank.task, blank.objective, name or "base", blank.measure)
        for name in ((blank.localization, other) if other else (blank.localization,))
    ]
    if test.forgotten:
        for cell in cells:
            _forgotten(cell, evidence)
    curves = [evidence.curve(cell) for cell in cells]
    numbers = [curve.at(test.at) for curve in curves]
    choices = 1
    if isinstance(test, Ordering):
        margin, samples = _difference(numbers[1], numbers[0], test)
    elif isinstance(test, Band):
        margin, samples = _inside(numbers[0], test)
        chosen_for = {"max": test.low is not None, "min": test.high is not None}.get(test.at, False)
        choices = numbers[0].choices if chosen_for else 1
    else:
        margin, samples = _rise(curves[0], test, evidence.lookup)
    tail = (1 - confidence) / 2 / choices
    low, high = (float(end) for end in np.quantile(samples, [tail, 1 - tail]))
    outcome: Outcome
    if low > 0:
        outcome = "holds"
    elif high < 0:
        outcome = "fails"
    else:
        outcome = "leans for" if margin > 0 else "leans against"
    return replace(
        blank, value=numbers[0].value, other=numbers[1].value if other else None, margin=margin,
        interval=(low, high), items=min(c.items for c in curves), seeds=min(c.seeds for c in curves),
        outcome=outcome,
    )  # fmt: skip


def _forgotten(cell: Cell, evidence: Evidence) -> None:
    """Refuse a model that had not forgotten before it was attacked."""
    value = evidence.curve(cell._replace(measure="forget")).mean[0]
    if value >= FORGOTTEN:
        raise NotTestable(
            f"{cell.localization} never unlearned ({cell.task}, {cell.objective}: forget accuracy {value:.3f})"
        )


def _difference(greater: Number, less: Number, test: Ordering) -> tuple[float, np.ndarray]:
    if test.side == "above":
        greater, less = less, greater
    margin = greater.value - less.value + test.tolerance
    return margin, greater.samples - less.opposed + test.tolerance


def _inside(number: Number, test: Band) -> tuple[float, np.ndarray]:
    low = -np.inf if test.low is None else test.low
    high = np.inf if test.high is None else test.high
    samples = np.minimum(number.samples - low, high - number.samples)
    return float(min(number.value - low, high - number.value)), samples


def _rise(curve: Curve, test: Trend, lookup: Sequence[int]) -> tuple[float, np.ndarray]:
    first, last = curve.point(0), curve.point(len(curve.x) - 1)
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
    return margin, samples
