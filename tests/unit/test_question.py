"""The statistics of the question's page: they find what is planted, and nothing where nothing is."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from localized_unlearning.analysis import question
from localized_unlearning.attacks import question as stage_module
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES

pytestmark = pytest.mark.slow  # all of its tests together

ROOT = Path(__file__).parents[2]


def rows(slope: float, truth: float, groups: int = 6, draws: int = 20, seed: int = 0) -> pd.DataFrame:
    """Groups of draws whose recovery rises with AUROC by ``slope``; the truth's is shifted by ``truth``."""
    rng = np.random.default_rng(seed)
    tables = []
    for group in range(groups):
        auroc = np.r_[1.0, rng.uniform(0, 0.95, draws)]
        noise = rng.normal(0, 0.1, draws + 1)
        attacked = 0.5 + slope * (auroc - 0.5) + noise + np.r_[truth, np.zeros(draws)]
        tables.append(
            pd.DataFrame(
                {
                    "selection": ["truth", *[f"draw_{i}" for i in range(draws)], "base", "gold"],
                    "kind": ["truth", *["draw"] * draws, "reference", "reference"],
                    "auroc": [*auroc, np.nan, np.nan],
                    "forget_multiple_choice": [*attacked, 1.0, 0.3],
                    "attacked_full_forget_multiple_choice": [*attacked, 1.0, 0.4],
                    "attacked_weak_forget_multiple_choice": [*(attacked - 0.2), 1.0, 0.3],
                    "place": f"p{group % 3}",
                    "base_seed": group // 3,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def test_outcomes_are_taken_against_gold_attacked_alike() -> None:
    table = question.with_outcomes(rows(0.0, 0.0))
    first = table.iloc[0]
    assert first["recovered"] == pytest.approx((first["attacked_full_forget_multiple_choice"] - 0.4) / 0.7)
    assert first["left"] == pytest.approx((first["forget_multiple_choice"] - 0.3) / 0.7)
    assert "reference" not in set(table["kind"])


def test_a_planted_effect_is_found_and_no_other() -> None:
    planted = question.with_outcomes(rows(-0.5, 0.0))
    found = question.correlation(planted, "auroc", "recovered")
    assert found.high < 0 and found.groups == 6
    nothing = question.correlation(question.with_outcomes(rows(0.0, 0.0)), "auroc", "recovered")
    assert nothing.low < 0 < nothing.high


def test_what_places_disagree_about_is_not_known() -> None:
    """Catches an interval that counts every base model of a place as news: five say one thing, five the other way."""
    one, other = rows(-0.5, 0.0, groups=15), rows(0.3, 0.0, groups=15, seed=1)
    tables = [one[one["place"] != "p2"], other[other["place"] == "p2"]]
    found = question.correlation(question.with_outcomes(pd.concat(tables)), "auroc", "recovered")
    assert found.mean < -0.1 and found.groups == 15 and found.low < 0 < found.high


def test_the_interval_over_few_places_keeps_its_level() -> None:
    """Catches an interval that resamples five places: it would leave out the true mean in a seventh of the cases."""
    rng = np.random.default_rng(0)
    places = rng.normal(0, 0.3, (2000, 5, 1)) + rng.normal(0, 0.1, (2000, 5, 4))
    ends = [question.over_places([list(each) for each in some])[1:] for some in places]
    covered = np.mean([low < 0 < high for low, high in ends])
    assert 0.93 < covered < 0.97
    assert question.over_places([[0.1]])[1:] == (float("-inf"), float("inf"))


def test_the_truth_is_ranked_among_its_draws() -> None:
    """Catches a test that always finds the truth special, and a p below what so many draws can give."""
    best = question.truth_among_draws(question.with_outcomes(rows(0.0, -2.0)), "recovered", 0)
    assert best.mean_rank == 0.0 and best.p == pytest.approx(1 / 20_001) and best.draws == 120
    one = question.truth_among_draws(question.with_outcomes(rows(0.0, -2.0, groups=1)), "recovered", 0)
    assert one.floor == pytest.approx(1 / 21) and one.p >= one.floor
    p = [
        question.truth_among_draws(
            question.with_outcomes(rows(0.0, 0.0, seed=s)), "recovered", s, samples=500
        ).p
        for s in range(40)
    ]
    assert 0.3 < np.mean(p) < 0.7
    worst = question.truth_among_draws(question.with_outcomes(rows(0.0, 2.0)), "recovered", 0)
    assert worst.p > 0.99


def test_claims_are_judged_with_enough_draws_alone() -> None:
    """Catches a claim that stands on few draws, one that never falls, and one that always does."""

    def verdicts(*given: Any, **more: int) -> dict[str, str]:
        table = question.with_outcomes(rows(*given, **more)).assign(shared=0.5, ablated=0.5)
        found = question.claims(table, 0)
        return {found[0].claim.split()[1]: found[0].verdict, "truth": found[-1].verdict}

    assert verdicts(-0.5, -2.0) == {"localizer": "supported", "truth": "supported"}
    assert verdicts(0.5, 2.0) == {"localizer": "contradicted", "truth": "contradicted"}
    assert verdicts(0.0, 0.0)["localizer"] == "undecided"
    assert set(verdicts(-0.5, -2.0, groups=2).values()) == {"not testable"}
    assert set(verdicts(-0.5, -2.0, draws=10).values()) == {"not testable"}


def test_the_page_is_written_and_drawn(tmp_path: Path) -> None:
    """Catches a page that its first finished run would find to be broken."""
    more = dict.fromkeys(
        (
            "injected_training",
            "forget_training",
            "precision",
            "shared",
            "ablated",
            "learning_rate",
            "disruption",
        ),
        1.0,
    )
    path = tmp_path / "rows.parquet"
    rows(-0.5, -2.0).assign(**more).to_parquet(path)
    stage = STAGES["question_page"]
    outputs = {name: tmp_path / f"question.{name}" for name in stage.outputs}
    job = Job(stage, restrict(Config(), stage, {}), {}, {"rows": [path]}, outputs, "key")
    importlib.import_module(stage.module).run(job)
    text = outputs["markdown"].read_text(encoding="utf-8")
    assert "Claims on the recovered share" in text and "supported" in text
    assert all(output.stat().st_size for output in outputs.values())


def test_a_place_that_took_nothing_says_nothing() -> None:
    table = rows(0.0, 0.0)
    table.loc[table["selection"] == "base", "forget_multiple_choice"] = 0.35
    assert question.with_outcomes(table).empty


def test_one_place_of_a_tiny_organism(tmp_path: Path) -> None:
    """The stage sees its declared settings only, writes a row per selection, and moves what a selection names alone."""
    organism = {"layers": 2, "heads": 2, "hidden": 16, "mlp": 32, "steps": 2, "warmup": 1, "vocabulary": 600,
                "name_tokens": [1, 30], "facts_in": {"layers": [0], "steps": 2, "warmup": 1, "prompts_per_step": 6}}  # fmt: skip
    config = Config.model_validate(
        {
            "organism": organism,
            "attacks": {"run": []},
            "mmlu": {"questions": 12},
            "finetune": {"steps": 2, "batch_size": 4},
            "text": {"documents": 40},
            "question": {
                "places": {"mlp_1": {"layers": [1]}},
                "draws": 1, "disjoint": 1, "forget": 9, "learning_rates": [1e-3, 2e-3],
                "attacks": {"low_rank": {"steps": 2, "rank": 2}, "full": {"steps": 1, "rank": None}},
            },
        }
    )  # fmt: skip
    given = {
        "athletes": ROOT / "workflow/resources/athletes.csv",
        "prompts": ROOT / config.prompts.file,
        "general_knowledge": ROOT / "workflow/resources/general_knowledge.csv",
        "text": ROOT / "workflow/resources/text/train.txt",
    }

    def run(stage: str, wildcards: dict[str, str], **outputs: Path) -> None:
        found = STAGES[stage]
        job = Job(found, restrict(config, found, wildcards), wildcards, given, outputs, "key")
        getattr(importlib.import_module(found.module), found.function)(job)

    run("pretrain", {"base_seed": "0"}, model=tmp_path / "pretrained")
    given["pretrained"] = tmp_path / "pretrained"
    run("question", {"base_seed": "0", "place": "mlp_1"}, rows=tmp_path / "rows.parquet")
    rows: Any = pd.read_parquet(tmp_path / "rows.parquet").set_index("selection")
    assert set(rows.loc[["base", "gold"], "kind"]) == {"reference"}
    assert rows.loc["truth", ["auroc", "shared", "covered"]].tolist() == [1.0, 1.0, 1.0]
    assert rows.loc["disjoint_1", "shared"] == 0.0
    assert rows.loc["draw_1", "components"] == rows.loc["truth", "components"] == 3
    chosen = rows[rows["kind"] != "reference"]
    assert chosen["within"].notna().all() and set(chosen["learning_rate"]) <= {1e-3, 2e-3}
    attacked = chosen.filter(like="attacked_")
    assert len(attacked.columns) == 6 and attacked.notna().all(axis=None)


def test_a_place_that_the_organism_lacks(tmp_path: Path) -> None:
    config = Config.model_validate({"question": {"places": {"late": {"layers": [9]}}}})
    stage, wildcards = STAGES["question"], {"base_seed": "0", "place": "late"}
    job = Job(stage, restrict(config, stage, wildcards), wildcards, {}, {}, "key")
    with pytest.raises(UserError, match="late names layer 9, but the organism has layers 0 to 4"):
        stage_module.run(job)
