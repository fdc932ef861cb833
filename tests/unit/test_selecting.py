"""What each localization chooses: the filter by kinds, blocks, and budgets by parameters."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from localized_unlearning.config.localization import Localization
from localized_unlearning.config.run import Config
from localized_unlearning.localization.selecting import choose
from localized_unlearning.models.components import Component

KINDS = ("q", "k", "v", "o", "up", "down")
FOUND = [Component(layer, kind) for layer in range(4) for kind in KINDS]  # type: ignore[arg-type]
SIZES = {str(c): {"q": 2, "k": 1, "v": 1, "o": 2, "up": 5, "down": 5}[c.kind] for c in FOUND}


def scores(values: dict[str, float], units: dict[str, str] | None = None) -> pd.DataFrame:
    """A scores table: ``values`` by component, 0 for the others."""
    names = [str(c) for c in FOUND]
    return pd.DataFrame(
        {
            "component": names,
            "layer": [c.layer for c in FOUND],
            "kind": [c.kind for c in FOUND],
            "unit": [(units or {}).get(name, name) for name in names],
            "score": [values.get(name, 0.0) for name in names],
        }
    )


def chosen(table: pd.DataFrame | None = None, manual: int | None = None, **given: Any) -> list[str]:
    """What a localization with these settings trains."""
    made = Localization.model_validate({"label": "x", **given})
    return choose(made, FOUND, SIZES, table, manual)


VALUES = {"0.attn.q": 9.0, "3.mlp.up": -8.0, "1.attn.o": 7.0, "2.mlp.down": 6.0, "1.mlp.up": 5.0}


def test_kinds_are_a_filter_for_every_localization() -> None:
    """Catches kinds that only the manual localization heeds, and a filter that makes the budget smaller."""
    mlp: dict[str, Any] = {"kinds": ["up", "down"]}
    # 3 of 24 components with and without the filter
    assert chosen(scores(VALUES), kind="scores", scores="s", fraction=0.125) == [
        "0.attn.q", "1.attn.o", "3.mlp.up"
    ]  # fmt: skip
    assert chosen(scores(VALUES), kind="scores", scores="s", fraction=0.125, **mlp) == [
        "1.mlp.up", "2.mlp.down", "3.mlp.up"
    ]  # fmt: skip
    assert chosen(kind="all", kinds=["k"]) == ["0.attn.k", "1.attn.k", "2.attn.k", "3.attn.k"]
    assert chosen(kind="all_mlps", kinds=["up", "q"]) == [f"{i}.mlp.up" for i in range(4)]
    assert chosen(kind="manual", layers=[1]) == ["1.mlp.up", "1.mlp.down"]
    assert chosen(kind="manual", layers=[1], kinds=["v", "up"]) == ["1.attn.v", "1.mlp.up"]
    for seed in range(5):
        drawn = chosen(kind="random", fraction=0.125, seed=seed, **mlp)
        assert len(drawn) == 3 and all(".mlp." in name for name in drawn)
        assert all(
            ".mlp." in n
            for n in chosen(kind="random", selection="independent", fraction=0.5, seed=seed, **mlp)
        )


def test_blocks_are_the_signed_sum_of_what_was_scored_in_them() -> None:
    """Catches a block that counts a unit once per component of it, or scores by absolute values."""
    units = {f"0.attn.{kind}": "0.attn" for kind in "qkvo"}
    table = scores(
        {**{f"0.attn.{kind}": 4.0 for kind in "qkvo"}, "1.mlp.up": 5.0, "1.mlp.down": -3.0, "2.mlp.up": -3.0},
        units,
    )
    block: dict[str, Any] = {"kind": "scores", "scores": "s", "unit": "block"}
    # blocks: 0.attn 4 (one unit), 1.mlp 2, 2.mlp -3; 1 or 2 of 8
    assert chosen(table, fraction=0.125, **block) == [f"0.attn.{kind}" for kind in "qkvo"]
    assert chosen(table, fraction=0.25, **block)[4:] == ["2.mlp.up", "2.mlp.down"]
    assert chosen(table, fraction=0.125, kinds=["up", "down"], **block) == ["2.mlp.up", "2.mlp.down"]
    drawn = [tuple(chosen(kind="random", unit="block", fraction=0.125, seed=seed)) for seed in range(20)]
    assert {len(names) for names in drawn} == {2, 4} and len(set(drawn)) > 4


def test_budgets_by_parameters() -> None:
    """Catches a budget that overshoots unasked, or that stops short where it should be reached."""
    table = scores(VALUES)
    within = chosen(table, manual=7, kind="scores", scores="s", budget="parameters")
    assert sum(SIZES[name] for name in within) <= 7 and "0.attn.q" in within and "3.mlp.up" in within
    reached = chosen(table, manual=8, kind="scores", scores="s", budget="parameters_reached")
    assert reached == ["0.attn.q", "1.attn.o", "3.mlp.up"]  # 2 + 5 are too few, with 2 more they reach it
    blocks = chosen(manual=10, kind="random", unit="block", budget="parameters_reached", kinds=["up", "down"])
    assert sum(SIZES[name] for name in blocks) == 10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"kind": "all", "scores": "attribution_patching"},
            r"x\.scores is for kind scores and weights, not all",
        ),
        ({"kind": "random", "layers": [1]}, r"x\.layers is for kind manual, not random"),
        ({"kind": "manual", "layers": [1], "unit": "block"}, r"x\.unit is for kind scores and random"),
        (
            {"kind": "all_mlps", "budget": "parameters"},
            r"x\.budget is for kind scores and weights and random",
        ),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(given: dict[str, Any], said: str) -> None:
    """A record that states a setting which nobody read would be untrue."""
    with pytest.raises(ValueError, match=said):
        Config.model_validate({"localizations": {"x": {"label": "X", **given}}})
