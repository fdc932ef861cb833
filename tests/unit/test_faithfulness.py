"""Faithfulness of a selection: replaced activations against plain hooks on one prompt, areas against their definition."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from test_localization import activation, logit_difference, replace, some_pairs

from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.config.localization import Components
from localized_unlearning.localization import faithfulness
from localized_unlearning.models import components
from localized_unlearning.models.components import Component
from localized_unlearning.reporting import faithfulness as reporting


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
    assert reporting.areas(np.array([0.5]), np.array([0.5])) == pytest.approx((0.625 - 0.25, 0.125))
    cpr, cmd = reporting.areas(np.array([0.2, 0.6]), np.array([1.5, 0.5]))
    assert cpr == pytest.approx(0.4 * (1.5 + 0.5) / 2 + 0.4 * (0.5 + 1) / 2)
    assert cmd == pytest.approx(0.4 * (0.5 + 0.5) / 2 + 0.4 * (0.5 + 0) / 2)


def test_shares_are_rounded_down_over_units() -> None:
    """As in MIB: .1 % of 20 units are none."""
    ranked = [[Component(i, "up"), Component(i, "down")] for i in range(20)]
    sets = faithfulness.top_sets(ranked, [0.001, 0.05, 0.14, 0.5])
    assert [len(s) for s in sets] == [0, 2, 4, 20] and sets[1] == ranked[0]


def test_the_report_reads_ratios_of_sums() -> None:
    """Catches means of ratios, another case's prompts, and a curve whose own selection is taken for a point of it."""
    rng = np.random.default_rng(0)
    names = [f"a{i}" for i in range(6)]
    clean, corrupt = rng.normal(5, 1, 6), rng.normal(1, 1, 6)
    cases = [
        ("keep", 0.3, 3),
        ("ablate", 0.3, 3),
        ("keep", 0.1, 1),
        ("ablate", 0.1, 1),
        ("keep", 0.5, 5),
        ("ablate", 0.5, 5),
    ]
    left = rng.normal(3, 1, (6, 6))
    data = faithfulness.rows(names, cases, left, clean, corrupt)
    data = data.assign(own=[i < 12 for i in range(len(data))], task="t", localization="l")
    points = reporting.estimates(data.sample(frac=1, random_state=1), Statistics(bootstrap=300)).set_index(
        ["measure", "own", "share"]
    )

    def wanted(place: int) -> float:
        return float((left[place] - corrupt).sum() / (clean - corrupt).sum())

    for place, (mode, share, _) in enumerate(cases):
        row: Any = points.loc[(mode, place < 2, share)]  # type: ignore[index]
        assert row["mean"] == pytest.approx(wanted(place)) and row["low"] < row["mean"] < row["high"]
    cpr = points.loc["cpr"]["mean"].iloc[0]
    assert cpr == pytest.approx(0.4 * (wanted(2) + wanted(4)) / 2 + 0.5 * (wanted(4) + 1) / 2)
    text = reporting.table(points.reset_index(), {"l": "Mine"}, "run")
    assert f"{wanted(1):.3f}" in text and f"{cpr:.3f}" in text and f"{wanted(2):.3f}" not in text
    assert reporting.draw(points.reset_index(), {"l": "Mine"}).axes
