"""Faithfulness of a selection: replaced activations against plain hooks on one prompt, areas against their definition."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from test_localization import activation, logit_difference, replace, some_pairs

from localized_unlearning.config.localization import Components
from localized_unlearning.localization import faithfulness
from localized_unlearning.models import components
from localized_unlearning.models.components import Component


@pytest.mark.parametrize("architecture", ["gemma3", "neox"])
def test_what_is_left_is_the_metric_of_the_patched_run(
    architecture: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches another prompt's activations, heads that patch their neighbours, and components that undo one another."""
    model, pairs = tiny(architecture), some_pairs()
    found = components.list_components(model.config, Components(granularity="head", include_gate=True))
    chosen = found[::3]
    rest = [c for c in found if c not in chosen]
    kinds = sorted({c.kind for c in found})
    left, clean, corrupt = faithfulness.left_over(model, pairs, [chosen, rest, found, []], kinds, 20)
    with torch.no_grad():
        for index, (prompt, other) in enumerate(zip(pairs.clean, pairs.corrupt, strict=True)):
            asked = (pairs.answer[index], pairs.choices)
            assert clean[index] == pytest.approx(float(logit_difference(model, prompt, *asked)), rel=1e-9)
            assert corrupt[index] == pytest.approx(float(logit_difference(model, other, *asked)), rel=1e-9)
            for place, patched in enumerate((chosen, rest, found)):
                values = [activation(model, c, other) for c in patched]
                with ExitStack() as stack:
                    for c, value in zip(patched, values, strict=True):
                        replace(stack, model, c, value)
                    wanted = float(logit_difference(model, prompt, *asked))
                assert left[place, index] == pytest.approx(wanted, rel=1e-7, abs=1e-9)
    np.testing.assert_allclose(left[3], clean, rtol=1e-9)  # nothing replaced


def test_areas_are_trapezoids_to_the_whole() -> None:
    """Catches a curve that is not closed at (1, 1), and a distance that lets over- and undershoot cancel."""
    assert faithfulness.areas([0.5], [0.5]) == pytest.approx((0.375, 0.125))
    cpr, cmd = faithfulness.areas([0.2, 0.6], [1.5, 0.5])
    assert cpr == pytest.approx(0.4 * (1.5 + 0.5) / 2 + 0.4 * (0.5 + 1) / 2)
    assert cmd == pytest.approx(0.4 * (0.5 + 0.5) / 2 + 0.4 * (0.5 + 0) / 2)


def test_shares_are_rounded_down_over_units() -> None:
    """As in MIB: .1 % of 20 units are none."""
    ranked = [[Component(i, "up"), Component(i, "down")] for i in range(20)]
    sets = faithfulness.top_sets(ranked, [0.001, 0.05, 0.14, 0.5])
    assert [len(s) for s in sets] == [0, 2, 4, 20] and sets[1] == ranked[0]
