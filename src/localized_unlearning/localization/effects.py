"""What prompts say of components, and how they are put together into scores (section 2.3)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from localized_unlearning.config.localization import Score
from localized_unlearning.errors import UserError


@dataclass(frozen=True)
class Effects:
    """What each prompt says of each component or site, before prompts are put together (:func:`combined`).

    Attributes:
        values: change of the metric ``[prompt, component]``, in logits; not normalised.
        differences: metric of the clean run minus that of the corrupt run ``[prompt]``, in logits.
    """

    values: np.ndarray
    differences: np.ndarray


def combined(effects: Effects, settings: Score) -> np.ndarray:
    """One score per component ``[component]``: effects as shares of the difference between clean and corrupt run.

    By default a ratio of sums over all prompts: a prompt in which the corruption changed next to nothing then counts
    next to nothing. With ``settings.ratio_over`` of n the ratio is formed over n prompts at a time and averaged, which
    for 1 is the mean of each prompt's own ratio (one difference near 0 can decide it). ``settings.aggregate``
    absolute takes each prompt's effect without its sign, so that answers pushed one way and others pushed the other
    do not cancel.

    Raises:
        UserError: when the corruption changes the metric by nothing, so that there is no share of it.
    """
    over = settings.ratio_over or len(effects.differences)
    values = np.abs(effects.values) if settings.aggregate == "absolute" else effects.values
    shares = []
    for start in range(0, len(values), over):
        total = effects.differences[start : start + over].sum()
        if settings.aggregate == "absolute":
            total = abs(total)
        if total == 0:
            raise UserError(
                "clean and corrupt prompts give the same answers, so no component can be scored: "
                "choose other prompts (scores.*.athletes, .prompts, .seed)"
            )
        shares.append(values[start : start + over].sum(0) / total)
    return np.asarray(np.mean(shares, axis=0))


def degenerate(differences: np.ndarray) -> dict[str, int]:
    """How many pairs show nothing: clean minus corrupt is not positive, or below a tenth of the median one."""
    weak = differences < np.median(differences) / 10
    return {
        "pairs": len(differences),
        "not_positive": int((differences <= 0).sum()),
        "below_a_tenth_of_the_median": int((weak & (differences > 0)).sum()),
    }


def warn_of(name: str, counts: dict[str, int]) -> None:
    """Say how many pairs show nothing, if any does."""
    lost, weak = counts["not_positive"], counts["below_a_tenth_of_the_median"]
    if lost or weak:
        print(
            f"{name}: of {counts['pairs']} pairs, {lost} have a corrupt run that answers at least as well as the clean one "
            f"and {weak} one that answers almost as well (a difference below a tenth of the median)",
            file=sys.stderr,
        )


def by_unit(effects: Effects, units: Sequence[str]) -> tuple[list[str], Effects]:
    """Effects summed over the sites of each unit, prompt by prompt; the units in order of appearance."""
    names = list(dict.fromkeys(units))
    values = np.zeros((len(effects.values), len(names)))
    for column, unit in enumerate(units):
        values[:, names.index(unit)] += effects.values[:, column]
    return names, Effects(values, effects.differences)
