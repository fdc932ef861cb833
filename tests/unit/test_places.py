"""Places: the grades of localizers against planted facts, a fault in a localizer that shows, and the page."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from localized_unlearning.analysis import localizers
from localized_unlearning.config.localization import Score
from localized_unlearning.config.run import Config
from localized_unlearning.evaluation import places
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.localization.effects import Effects, combined

KINDS = ("gate", "up", "down")
TRUTH = {f"0.mlp.{kind}" for kind in KINDS}
COMPONENTS = [
    f"{layer}.{kind}"
    for layer in range(5)
    for kind in ("attn.q", "attn.k", "attn.v", "attn.o", *(f"mlp.{k}" for k in KINDS))
]


def planted(seed: int) -> Effects:
    """Effects of 60 pairs: each true matrix carries a share of the answer in every pair, large where the pair's
    difference is; any other one, of whatever size, pushes as often one way as the other."""
    rng = np.random.default_rng(seed)
    differences = rng.gamma(2.0, 1.0, 60)
    size = rng.uniform(0.2, 3.0, len(COMPONENTS))
    values = rng.normal(size=(60, len(COMPONENTS))) * size
    for index, name in enumerate(COMPONENTS):
        if name in TRUTH:
            values[:, index] = 0.6 * differences + 0.3 * rng.normal(size=60)
    return Effects(values, differences)


def swapped(effects: Effects) -> Effects:
    """A sign: clean and corrupt change places in every second pair."""
    values = effects.values.copy()
    values[::2] *= -1
    return replace(effects, values=values)


def by_own_size(effects: Effects) -> Effects:
    """A normalisation: every component is divided by its own mean effect, not all by the pairs' difference."""
    return replace(effects, values=effects.values / (effects.values.mean(0, keepdims=True) + 1e-12))


def auroc(effects: Effects) -> float:
    """As the table of localizers has it."""
    scores = dict(zip(COMPONENTS, combined(effects, Score(method="attribution_patching")), strict=True))
    return float(localizers.grade({("patching", 0): scores}, TRUTH, "mlp 0")["auroc"].iloc[0])


@pytest.mark.parametrize("fault", [swapped, by_own_size])
def test_a_fault_in_a_localizer_shows_in_its_grade(fault: Callable[[Effects], Effects]) -> None:
    """Planted effects are found; with a sign or a normalisation wrong the same effects are found hardly better than by chance."""
    seeds = range(8)
    right = [auroc(planted(seed)) for seed in seeds]
    wrong = [auroc(fault(planted(seed))) for seed in seeds]
    assert min(right) >= 0.95
    assert np.mean(wrong) <= 0.7


def row(name: str, place: str, base: int, auroc_: float, failed: str = "") -> dict[str, Any]:
    """A row of stage ``place``."""
    measured = dict.fromkeys(
        ("training", "question", "multiple_choice_shuffled", "multiple_choice_unseen", "teachers_training",
         "teachers_multiple_choice_shuffled", "general_knowledge"), 0.99,
    )  # fmt: skip
    grades = {"auroc": auroc_, "precision": 0.5, "share": 0.4}
    return {"place": place, "localization": name, "base_seed": base, **grades, "failed": failed, **measured}


def test_a_place_that_misses_a_requirement_grades_no_localizer(tmp_path: Path) -> None:
    """Its values are in the table of places, with what it misses; the grades have the others alone."""
    paths = []
    for place, base, failed in (
        ("mlp_0", 0, ""),
        ("mlp_0", 1, "training 0.800 (needs 0.98)"),
        ("attention_1", 0, ""),
    ):
        path = tmp_path / f"{place}{base}.parquet"
        pd.DataFrame([row(name, place, base, 0.9, failed) for name in places.LOCALIZERS]).to_parquet(path)
        paths.append(path)
    stage = STAGES["places_page"]
    outputs = {name: tmp_path / f"out.{name}" for name in stage.outputs}
    job = Job(stage, restrict(Config(), stage, {}), {}, {"rows": paths}, outputs, "key")
    importlib.import_module(stage.module).run(job)
    grades = pd.read_csv(outputs["csv"])
    assert list(grades.columns) == ["place", "localization", "base_seed", "auroc", "precision", "share"]
    assert set(zip(grades["place"], grades["base_seed"], strict=True)) == {("mlp_0", 0), ("attention_1", 0)}
    text = outputs["markdown"].read_text()
    assert "mlp_0 (base 1): training 0.800 (needs 0.98)." in text and "1 of 2" in text
    assert len(pd.read_csv(outputs["places"])) == 3
