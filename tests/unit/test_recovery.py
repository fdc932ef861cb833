"""Recovered shares of attacks, and localizers against the truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from localized_unlearning.analysis import localizers, recovery
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.config.model import FactsIn
from localized_unlearning.reporting import attacks as reporting

SETTINGS = Statistics(bootstrap=400)


def answers(
    localization: str, attack: str, right: dict[str, float], cell: str = "", items: int = 40, base: int = 0
) -> pd.DataFrame:
    """Rows of the attack stage: a share of the items right in each format."""
    tables = []
    for form, share in right.items():
        choice = (np.arange(items) < round(share * items)).astype(float)
        tables.append(
            pd.DataFrame({"subject": [f"a{i:02}" for i in range(items)], "choice": choice, "format": form})
        )
    objective = "none" if localization in (recovery.BASE, recovery.GOLD) else "erase"
    return pd.concat(tables, ignore_index=True).assign(
        localization=localization, attack=attack, cell=cell, task="t", objective=objective, forget=True,
        order=0, base_seed=base, seed=0,
    )  # fmt: skip


def rows(attacked: float, attacked_gold: float, base: int = 0) -> pd.DataFrame:
    """A base model at 1, gold at .3, an unlearned model at .1, and an attack on both."""
    form = "training"
    return pd.concat(
        [
            answers("base", "asked", {form: 1.0}, base=base),
            answers("gold", "asked", {form: 0.3}, base=base),
            answers("gold", "search", {form: attacked_gold}, "a", base=base),
            answers("gold", "search", {form: 0.0}, "b", base=base),
            answers("manual", "asked", {form: 0.1}, base=base),
            answers("manual", "search", {form: 0.0}, "a", base=base),
            answers("manual", "search", {form: attacked}, "b", base=base),
        ],
        ignore_index=True,
    )


@pytest.mark.parametrize(("left", "says_nothing"), [(0.35, True), (0.95, False)])
def test_an_attack_that_breaks_the_base_model_itself_is_marked(left: float, says_nothing: bool) -> None:
    """Catches a few-shot column that is low because the model cannot read the prompt."""
    table = pd.concat([rows(0.4, 0.3), answers("base", "search", {"training": left}, "a")], ignore_index=True)
    found = reporting.tidy(recovery.recovered(table, SETTINGS), {"manual": "Manual"})
    assert found.set_index("attack").loc["search", "kept"] == pytest.approx((left - 0.3) / 0.7)
    panel = reporting.panels(found, floor=True)[0]
    assert ("Search †" in panel.headings) == says_nothing
    assert (panel.lines[0][-1] == "") == says_nothing


def test_gold_is_attacked_like_the_rest_and_the_worst_cell_counts() -> None:
    """Catches a floor that is plain gold, and a search of which the mean is taken."""
    found = recovery.recovered(rows(0.65, 0.3), SETTINGS).set_index("attack")
    assert found.loc["search", "recovered"] == pytest.approx((0.65 - 0.3) / 0.7)
    assert found.loc["search", "cell"] == "b" and found.loc["search", "cells"] == 2
    assert found.loc["asked", "recovered"] == pytest.approx((0.1 - 0.3) / 0.7)
    nothing = recovery.recovered(rows(0.65, 0.65), SETTINGS).set_index("attack")
    assert nothing.loc["search", "recovered"] == 0.0


def test_without_gold_the_share_of_the_base_model_is_given() -> None:
    plain = rows(0.65, 0.3)
    found = recovery.recovered(plain[plain["localization"] != "gold"], SETTINGS).set_index("attack")
    assert found.loc["search", "recovered"] == pytest.approx(0.65)
    assert found["floor"].isna()["search"]


def test_the_interval_covers_base_models() -> None:
    """Catches intervals over items alone: two base models that disagree must give a wider one."""
    alike = pd.concat([rows(0.65, 0.3, base) for base in (0, 1)])
    apart = pd.concat([rows(0.3, 0.3, 0), rows(1.0, 0.3, 1)])
    found = [recovery.recovered(table, SETTINGS).set_index("attack") for table in (alike, apart)]
    width = [table["high"]["search"] - table["low"]["search"] for table in found]
    assert width[1] > 1.5 * width[0]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_scikit_learns(values: list[tuple[float, bool]]) -> None:
    score, true = np.array([v for v, _ in values]), np.array([t for _, t in values])
    if 0 < true.sum() < len(true):
        assert localizers.auroc(score, true) == pytest.approx(roc_auc_score(true, score))


def test_a_planted_fault_of_a_localizer_shows() -> None:
    """A flipped sign costs nothing where selection is by absolute value; a missing normalisation and a shifted layer do."""
    truth = {"0.mlp.up", "0.mlp.down", "1.mlp.up", "1.mlp.down"}
    names = [f"{layer}.mlp.{kind}" for layer in range(5) for kind in ("up", "down")]
    names += [f"{layer}.attn.{kind}" for layer in range(5) for kind in "qkvo"]
    right = {name: (1.0 if name in truth else 0.1) for name in names}
    whole = localizers.graded(right, truth)
    assert whole["auroc"] == whole["precision"] == 1.0
    assert localizers.graded({n: -v for n, v in right.items()}, truth) == whole
    shifted = {name: right.get(f"{int(name[0]) - 2}{name[1:]}", 0.1) for name in names}
    unnormalised = {name: value * (20.0 if ".attn." in name else 1.0) for name, value in right.items()}
    assert localizers.graded(shifted, truth)["auroc"] < 0.5
    assert localizers.graded(unnormalised, truth)["precision"] == 0.0
    chance = localizers.graded(dict.fromkeys(names, 1.0), truth)
    assert chance["auroc"] == 0.5
    assert chance["precision"] == chance["share"] == pytest.approx(len(truth) / len(names))


def test_places_are_named() -> None:
    assert localizers.name_of_place(FactsIn()) == "mlp 0+1"
    assert localizers.name_of_place(FactsIn(layers=(2,), kinds=("q", "k", "v", "o"))) == "attention 2"
