"""Tables, comparisons and supplement from the very rows that the evaluations write."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from localized_unlearning.config.reading import load
from localized_unlearning.config.run import Config
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.models import deltas
from localized_unlearning.paper.terms import BY_NAME, MAIN
from tiny_base import ROOT, TinyBase

QUESTIONS = ROOT / "workflow/resources/general_knowledge.csv"
EVALUATIONS = ("facts", "multiple_choice", "mmlu", "text")


@pytest.fixture(scope="module")
def config() -> Config:
    return load([ROOT / "config.yaml"], {"statistics": {"bootstrap": 50}, "text": {"windows": 8}})


@pytest.fixture(scope="module")
def rows(
    tiny_base: TinyBase, config: Config, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """Evaluations of the base model and of one that differs in a matrix, and their selection."""
    folder = tmp_path_factory.mktemp("rows")
    split = tiny_base.write(folder / "split.parquet", tiny_base.split)
    name = "model.layers.1.mlp.down_proj.weight"
    delta = folder / "delta.safetensors"
    deltas.save_delta(delta, {name: tiny_base.model.get_parameter(name) * -2}, tiny_base.digest)
    found: dict[str, list[Path]] = {stage: [] for stage in EVALUATIONS}
    for localization, objective, given in (("base", "none", None), ("manual", "erase", delta)):
        who = {"task": "sports", "objective": objective, "localization": localization, "seed": "0"}
        for stage in EVALUATIONS:
            place = folder / localization / stage
            place.mkdir(parents=True)
            tiny_base.run(stage, config, place, {"split": split, "mmlu": QUESTIONS, "delta": given}, who)
            found[stage].append(place / f"{stage}-{stage}.parquet")
    selection = {
        "localization": "manual",
        "label": "Manual",
        "components": ["1.mlp.down"],
        "parameters": 768,
        "share_of_parameters": 0.1,
    }
    (folder / "manual.json").write_text(json.dumps(selection))
    return {**found, "selections": [folder / "manual.json"]}


def made(name: str, config: Config, rows: dict[str, list[Path]], folder: Path) -> dict[str, Path]:
    """What a stage of Table 1 writes."""
    stage, wildcards = STAGES[name], {"table": "table_1", "task": "sports"}
    outputs = {output: folder / f"{name}.{output}" for output in stage.outputs}
    inputs: dict[str, Any] = {given.name: [] if given.many else None for given in stage.inputs}
    inputs |= {key: paths for key, paths in rows.items() if key in inputs}
    job = Job(stage, restrict(config, stage, wildcards), wildcards, inputs, outputs, "key")
    getattr(importlib.import_module(stage.module), stage.function)(job)
    return outputs


def test_the_table_says_what_happened_to_text(
    config: Config, rows: dict[str, list[Path]], tmp_path: Path
) -> None:
    """Catches columns whose rows have other names, and changes against anything but the base model."""
    table = made("table", config, rows, tmp_path)
    text = table["markdown"].read_text()
    shown = [m for m in MAIN if m not in ("teachers_mcq",)]
    assert all(BY_NAME[measure].heading in text for measure in shown)
    values = pd.read_csv(table["csv"]).set_index(["localization", "column", "accuracy"])["mean"]
    windows = pd.read_parquet(rows["text"][1])
    change = windows["loss"] - windows["base_loss"]
    assert values["manual", "text_change", "loss"] == pytest.approx(change.mean())
    assert values["manual", "text_worse", "loss"] == pytest.approx((change > 0).mean())
    assert (
        values["manual", "text_kl", "loss"] == pytest.approx(windows["kl"].mean()) and windows["kl"].min() > 0
    )
    assert not any(values["base", column, "loss"] for column in ("text_change", "text_worse", "text_kl"))
    choice = pd.read_parquet(rows["multiple_choice"][1])
    own = choice[choice["main"] & choice["forget"]]
    assert (own["order"] == "shuffled").all() and own["subject"].duplicated().any() == (
        config.evaluation.orders > 1
    )


def test_comparisons_and_supplement_follow(
    config: Config, rows: dict[str, list[Path]], tmp_path: Path
) -> None:
    """Catches a main column without rows, and a test of a divergence from the base model against the base model."""
    comparisons = pd.read_csv(made("comparisons", config, rows, tmp_path)["comparisons_csv"])
    found: Any = comparisons.set_index("measure")
    assert pd.isna(found.loc["text_kl", "p_holm_shown"]) and found.loc["text_change", "n"] == 8
    supplement = pd.read_csv(made("supplement", config, rows, tmp_path)["csv"])
    assert {"multiple choice, shuffled", "multiple choice, one order"} <= set(supplement["prompt"])


def test_gold_stands_in_tables_and_comparisons_and_is_what_distance_is_from(
    config: Config, rows: dict[str, list[Path]], tmp_path: Path
) -> None:
    """Catches a distance from guessing or from the base model, gold left out of a page, and a table without its mode."""
    gold: dict[str, Any] = {name: list(paths) for name, paths in rows.items()}
    for name in EVALUATIONS:
        table = pd.read_parquet(rows[name][1]).assign(localization="gold", objective="none")
        for column in [c for c in table.columns if c.startswith("logit_")][:1]:
            table[column] = -100.0  # another model than the unlearned one
        path = tmp_path / f"gold-{name}.parquet"
        table.to_parquet(path)
        gold[name].append(path)
    written = made("table", config, gold, tmp_path)
    values: Any = pd.read_csv(written["csv"])
    values = values[values["accuracy"] == "choice"].set_index(["localization", "column"])
    expected = abs(values.loc[("manual", "mcq_forget"), "mean"] - values.loc[("gold", "mcq_forget"), "mean"])
    assert values.loc[("manual", "mcq_forget"), "distance"] == pytest.approx(expected)
    assert values.loc[("gold", "mcq_forget"), "distance"] == 0.0
    text = written["markdown"].read_text()
    assert "Distance from gold, the absolute difference" in text and "Mode: fixed settings" in text
    assert (
        "Gold (never learned it)"
        in made("comparisons", config, gold, tmp_path)["comparisons_markdown"].read_text()
    )
    plain = made("table", config, rows, tmp_path)["markdown"].read_text()
    assert "Distance from gold" not in plain
    equal = config.finetune.equal_disruption.model_copy(update={"budget": 0.05, "measure": "retained"})
    other = config.model_copy(
        update={"finetune": config.finetune.model_copy(update={"equal_disruption": equal})}
    )
    assert "Mode: equal disruption" in made("table", other, rows, tmp_path)["markdown"].read_text()
