"""Every stage through the presets of Gemma-7B on a CPU: `make test-gemma-7b`, apart from `make test`.

The presets themselves, with their sources' formats, on a random model of the exact architecture; see `narrow`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import narrow
import pandas as pd
import pytest
import yaml

from localized_unlearning.config import reading
from localized_unlearning.config.reading import merge
from localized_unlearning.models import deltas
from localized_unlearning.paper.artefacts import FIGURES, TABLES
from tiny_run import ROOT, snakemake, workplace

HEADS = {
    "attribution_patching_heads": {"prompts": 2},
    "causal_tracing_heads": {"prompts": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the narrow model and the data beside it."""
    place = workplace(tmp_path_factory.mktemp("gemma-7b"))
    settings = narrow.overlay(place)
    for name in ("gemma-7b", "gemma-7b-as-released"):
        own = settings if name == "gemma-7b" else merge(settings, {"scores": HEADS})
        text = yaml.safe_dump({"extends": f"workflow/presets/{name}.yaml", **own})
        (place / f"{name}.yaml").write_text(text)
    return place


def run(folder: Path, preset: str, *targets: str) -> Path:
    """The preset's results, once its targets are made."""
    (folder / "tiny.yaml").write_text((folder / f"{preset}.yaml").read_text())
    done = snakemake(folder, *targets, "--show-failed-logs", seconds=3600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-20000:]
    return folder / "results" / preset


def records(results: Path, stage: str) -> Iterator[dict[str, object]]:
    for path in results.rglob("*.record.json"):
        record = json.loads(path.read_text())
        if record["stage"] == stage:
            yield record


def test_the_paper(folder: Path) -> None:
    results = run(folder, "gemma-7b", "all")
    for name in TABLES:
        assert (results / f"tables/{name}.md").stat().st_size
    for name in FIGURES:
        assert (folder / f"figures/gemma-7b/{name}.png").stat().st_size
    assert len(list(records(results, "finetune"))) == 24 and len(list(records(results, "mask"))) == 12
    sizes = {
        path.stem: len(json.loads(path.read_text())["components"])
        for path in (results / "base0/sports/selections").glob("*.json")
        if not path.name.endswith(".record.json")
    }
    # 5 % of 168 matrices, 5 % of 56 units (two to four matrices each), six layers, all
    assert 6 <= sizes.pop("causal_tracing") <= 12
    assert sizes == {
        "attribution_patching": 9,
        "random": 9,
        "manual": 12,
        "all_mlps": 56,
        "nonlocalized": 168,
    }
    short = pd.read_parquet(results / "base0/sports/erase/manual/seed0/relearning/mmlu.parquet")
    assert short["item"].nunique() == 8
    delta = results / "base0/sports/erase/manual/seed0/delta.safetensors"
    tensors = deltas.read_delta(delta, deltas.weights_digest(results / "base0/base_model"))
    assert len(tensors) == 12 and {str(t.dtype) for t in tensors.values()} == {"torch.bfloat16"}


def test_as_released(folder: Path) -> None:
    masks = ("attribution_patching", "causal_tracing", "random", "manual")
    name = "gemma-7b-as-released"
    results = run(
        folder, name,
        *(f"results/{name}/base0/sports/mask/{mask}/seed0/sweep/facts.parquet" for mask in masks),
        f"results/{name}/base0/sports/inject/manual/seed0/history.csv",
        f"results/{name}/base0/sports/erase/all_mlps/seed0/history.csv",
    )  # fmt: skip
    found = {
        mask: json.loads((results / f"base0/sports/mask/{mask}/selection.json").read_text())["components"]
        for mask in masks
    }
    layers = {name.split(".")[0] for name in found["manual"]}
    assert layers == set("1234567") and len(found["manual"]) == 14
    for mask in ("attribution_patching", "causal_tracing", "random"):
        assert any(len(name.split(".")) == 4 for name in found[mask]), found[mask]
    assert len(found["attribution_patching"]) > 0.05 * 1848
    assert len(pd.read_csv(results / "base0/sports/inject/manual/seed0/history.csv")) == 75
    rates = pd.read_csv(results / "base0/sports/erase/all_mlps/seed0/history.csv")["learning_rate"]
    assert rates.iloc[0] == 2.5e-5
    rows = pd.read_parquet(results / "base0/sports/mask/manual/seed0/sweep/facts.parquet")
    assert set(rows["edit_size"]) == {0, 100, 1000}


def of_sports(tmp_path: Path, preset: str) -> Path:
    """A checkout with a narrow model, and a preset of the journal version over it, with one seed and one forget set."""
    place = workplace(tmp_path)
    settings = narrow.overlay(place, preset.removesuffix("-as-released"))
    own = {"seeds": [0], "studies": {"icml_athletes": {"tasks": ["athletes_16"]}}}
    layers = {"extends": f"workflow/presets/icml-{preset}.yaml", **merge(settings, own)}
    (place / f"icml-{preset}.yaml").write_text(yaml.safe_dump(layers))
    return place


def matched(place: Path, results: Path, reached: bool) -> set[str]:
    """The localizations, whose budgets are the fact-lookup MLPs': at most as many parameters, or until they are reached."""
    found = {
        path.stem: json.loads(path.read_text())
        for path in (results / "base0/athletes_16/selections").glob("*.json")
        if not path.name.endswith(".record.json")
    }
    budget = found["manual"]["parameters"]
    config = json.loads((place / "model/config.json").read_text())
    block = 3 * config["hidden_size"] * config["intermediate_size"]
    for name in ("causal_tracing", "attribution_patching", "random"):
        over = found[name]["parameters"] - budget
        assert (0 <= over <= block) if reached else (-block <= over <= 0), name
    for name in ("causal_tracing_mlps", "attribution_patching_mlps", "random_mlps"):
        assert found[name]["parameters"] == budget and all(".mlp." in c for c in found[name]["components"])
    return set(found)


@pytest.mark.parametrize("preset", ["gemma-7b", "gemma-2-9b-as-released", "llama-3-8b-as-released"])
def test_the_journal_version(preset: str, tmp_path: Path) -> None:
    """Its nine localizations on the three architectures, one forget set: budgets, blocks, and a table with every row."""
    place = of_sports(tmp_path, preset)
    results = run(place, f"icml-{preset}", "icml_athletes")
    found = matched(place, results, preset.endswith("as-released"))
    table = pd.read_csv(results / "studies/icml_athletes.csv")
    assert set(table["localization"]) == {"base", *found} and len(found) == 9
    assert {"forget_training", "retain_training", "edit_question", "mcq_edit", "mcq_retain"} <= set(
        table["column"]
    )


def test_the_journal_versions_localizations_as_described(tmp_path: Path) -> None:
    """Gemma 2 9B's nine, without training: blocks restored as a whole, budgets from below, and how much they overlap."""
    place = of_sports(tmp_path, "gemma-2-9b")
    with (place / "icml-gemma-2-9b.yaml").open("a") as file:
        file.write("overlap: {tasks: [athletes_16]}\n")
    results = run(place, "icml-gemma-2-9b", "overlap_table")
    found = matched(place, results, reached=False)
    rows = pd.read_csv(results / "overlap.csv")
    assert len(found) == 9 and set(rows["first"]) == set(rows["second"]) == found and len(rows) == 9 * 8
    assert (rows.loc[rows["first"] == "nonlocalized", "share_of_second"] == 1).all()


def of_counterfact(tmp_path: Path, architecture: str) -> tuple[Path, dict[str, Any]]:
    """A checkout with a narrow model and invented facts, and the settings that put them over a preset of CounterFact."""
    place = workplace(tmp_path)
    settings = narrow.overlay(place, architecture)
    (place / "counterfact").mkdir()
    (place / "counterfact/counterfact.json").write_text(json.dumps(narrow.counterfact()))
    settings["athletes"]["source"].pop("sha256")
    facts = {"source": {"local": "counterfact"}, "own_prompts": {"shots": 2}, "known_threshold": None}
    return place, merge(settings, {"athletes": facts})


@pytest.mark.parametrize("preset", ["gemma-7b", "gemma-2-9b-as-released", "llama-3-8b"])
def test_the_journal_version_on_counterfact(preset: str, tmp_path: Path) -> None:
    """Each fact by its own prompt, and a chain of two forget sets: a row for every localization, the base row right."""
    name = f"icml-counterfact-{preset}"
    place, settings = of_counterfact(tmp_path, preset.removesuffix("-as-released"))
    small = {name: {"forget": {"first": 4}} for name in ("counterfact_16", "counterfact_64")}
    chain = {
        f"sequence_{n + 1}": {"forget": {"first": 2, "skip": 2 * n}, "exclude": {"first": 8}}
        for n in range(4)
    }
    own = {
        "seeds": [0],
        "tasks": {**small, **{key: chain[key] for key in ("sequence_1", "sequence_2")}},
        "studies": {
            "icml_sequence": {
                "tasks": ["sequence_1", "sequence_2"],
                "localizations": ["manual", "causal_tracing", "attribution_patching_mlps", "random_mlps"],
            }
        },
        "objectives": {"edit_sequence": {"finetune": {"steps": 2}}},
    }
    (place / f"{name}.yaml").write_text(
        yaml.safe_dump({"extends": f"workflow/presets/{name}.yaml", **merge(settings, own)})
    )
    results = run(place, name, "icml_sequence")
    table = pd.read_csv(results / "studies/icml_sequence.csv")
    assert set(table["localization"]) == {
        "base", "manual", "causal_tracing", "attribution_patching_mlps", "random_mlps",
    }  # fmt: skip
    wanted = {"edit_training", "edit_question", "mcq_edit", "right_neighborhood", "injected_paraphrase"}
    assert wanted <= set(table["column"])
    manual = json.loads((results / "base0/sequence_2/selections/manual.json").read_text())
    preset_layers = reading.load([ROOT / "config.yaml", place / f"{name}.yaml"]).localizations["manual"]
    assert preset_layers is not None
    found = {int(component.split(".")[0]) for component in manual["components"]}
    assert found == set(preset_layers.layers_of["sequence_2"]) != set(preset_layers.layers)
    folder = results / "base0/sequence_2/edit_sequence/manual/seed0"
    record = json.loads(next(folder.glob("delta*.record.json")).read_text())
    assert any("sequence_1" in given["path"] for given in record["inputs"])


def test_the_journal_versions_mechanisms(tmp_path: Path) -> None:
    """Tables 2 and 3: selections by head, as they are described, and masks, beside the mechanisms of Gemma 2 9B."""
    name = "icml-mechanisms-gemma-2-9b"
    place, settings = of_counterfact(tmp_path, "gemma-2-9b")
    tasks = {task: {"forget": {"first": 4}} for task in ("counterfact_16", "counterfact_64")}
    own = {"scores": HEADS, "overlap": {"masked": 1000}, "tasks": tasks}
    (place / f"{name}.yaml").write_text(
        yaml.safe_dump({"extends": f"workflow/presets/{name}.yaml", **merge(settings, own)})
    )
    results = run(place, name, "icml_table_2", "icml_table_3")
    rows = pd.read_csv(results / "overlap.csv")
    by = rows.set_index(["kind", "first", "second"])["share_of_second"]
    assert by["selection", "manual", "fact_lookup"] == 1
    masked = rows[(rows["kind"] == "mask") & (rows["first"] == "manual") & (rows["second"] == "fact_lookup")]
    assert 0 < masked["first_parameters"].item() == masked["common"].item() <= 1000
    assert masked["second_parameters"].item() == 11 * 2 * 48 * 96
    for everything in ("nonlocalized", "all_mlps"):
        assert (
            by["selection", everything, "extraction_mlps"] == by["selection", everything, "fact_lookup"] == 1
        )
    assert (
        by["selection", "nonlocalized", "extraction_heads"] == 1
        and by["selection", "manual", "extraction_heads"] == 0
    )
    assert set(rows["task"]) == {"counterfact_16"} and set(rows.loc[rows["kind"] == "mask", "first"]) == set(
        rows["first"]
    )
    chosen = json.loads((results / "base0/counterfact_16/selections/attribution_patching.json").read_text())
    assert chosen["parameters"] <= 11 * 2 * 48 * 96 and any(
        len(c.split(".")) == 4 for c in chosen["components"]
    )
    text = (results / "overlap.md").read_text()
    assert "Extraction heads: L25H1, L25H2" in text and "1,000" in text
