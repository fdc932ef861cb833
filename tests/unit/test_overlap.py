"""The overlap of localizations and mechanisms against sets of single weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localized_unlearning.config.localization import Components, Mechanism, Overlap
from localized_unlearning.config.run import Config
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.localization import weights
from localized_unlearning.models import components, deltas, loading
from localized_unlearning.models.components import Component
from localized_unlearning.reporting import overlap as reporting
from localized_unlearning.unlearning import masks, overlap
from tiny_models import CONFIGS

Weights = set[tuple[str, int]]
"""Single weights: a parameter's name and a place in it, flattened."""

SKELETONS = {
    **{name: loading.skeleton(CONFIGS[name]()) for name in ("gemma2", "neox")},
    "gpt2": loading.skeleton(transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=32)),
}
"""Grouped-query attention; fused query, key and value; weights that lie transposed."""


def slowly(model: Any, part: components.Component) -> Weights:
    """Every weight of a component, place by place."""
    found = components.weight_of(part, model.config)
    shape = model.get_parameter(found.parameter).shape
    places = torch.arange(shape.numel()).view(shape)
    if found.index is not None:
        places = places.index_select(found.dim, torch.tensor(found.index))
    return {(found.parameter, int(place)) for place in places.flatten()}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), name=st.sampled_from(sorted(SKELETONS)))
def test_weights_in_common_are_those_of_both_sets(
    data: st.DataObject, name: str, tmp_path_factory: Any
) -> None:
    """Catches a head counted as its matrix, the wrong dimension, one fused matrix counted twice, and lost places of a mask."""
    model = SKELETONS[name]
    found = [
        *components.list_components(model.config, Components(granularity="head", include_gate=True)),
        *components.list_components(model.config, Components(include_gate=True)),
    ]
    some = st.lists(st.sampled_from(found), max_size=6)
    one, other = (data.draw(some, label) for label in ("one", "other"))
    sets = [set().union(*(slowly(model, c) for c in chosen)) for chosen in (one, other)]
    parts = overlap.parts(one, model), overlap.parts(other, model)
    assert overlap.in_common(*parts, model) == len(sets[0] & sets[1])
    assert overlap.in_common(parts[0], parts[0], model) == len(sets[0])

    sizes = {
        p: model.get_parameter(p).numel()
        for p in {components.weight_of(c, model.config).parameter for c in found}
    }
    total = sum(sizes.values())
    ranked = torch.randperm(total, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))[
        : total // 3
    ]
    path = tmp_path_factory.mktemp("mask") / "mask.safetensors"
    masks.save_mask(path, {"mask": ranked, "random": ranked.flip(0)}, sizes, "digest")
    count = data.draw(st.integers(0, total), "count")
    names = [
        (p, i) for p in sorted(sizes) for i in range(sizes[p])
    ]  # the concatenation that a ranking counts through
    first = {names[i] for i in ranked[:count].tolist()}
    places = overlap.removed_first(path, "digest", count)
    assert {(p, i) for p, own in places.items() for i in own.tolist()} == first
    assert overlap.among(places, parts[1], model) == len(first & sets[1])


def test_a_mechanism_is_its_heads_four_matrices_and_its_mlps() -> None:
    """Under grouped-query attention heads 2 and 3 of four share the keys and values of group 1, which count once."""
    model = SKELETONS["gemma2"]
    mechanism = Mechanism(label="x", heads={1: (2, 3)}, mlps=(0,))
    found = overlap.matrices_of(mechanism, model.config, gate=True)
    assert set(found) == {
        *(Component(1, kind, head) for kind in ("q", "o") for head in (2, 3)),
        *(Component(1, kind, 1) for kind in ("k", "v")),
        *(Component(0, kind) for kind in ("gate", "up", "down")),
    }
    assert {c.kind for c in overlap.matrices_of(mechanism, model.config, gate=False) if c.head is None} == {
        "up",
        "down",
    }
    head, hidden, width = 8, 32, 48
    part = overlap.parts(found, model)
    assert overlap.in_common(part, part, model) == (4 + 2) * head * hidden + 3 * hidden * width
    with pytest.raises(UserError, match="the model has 4 such heads"):
        overlap.parts(overlap.matrices_of(Mechanism(label="x", heads={1: (4,)}), model.config, True), model)


def row(kind: str, first: str, second: str, second_kind: str, common: int, **more: int) -> dict[str, object]:
    sizes = {"first_parameters": 10, "second_parameters": 20, "of": 100, "base_seed": 0, "seed": 0}
    return {
        "task": "t", "kind": kind, "first": first, "second": second, "second_kind": second_kind,
        "common": common, **sizes, **more,
    }  # fmt: skip


def test_the_table_gives_shares_of_what_stands_above() -> None:
    """Catches shares of the wrong side, an index that counts what is shared twice, and base models mixed with rows."""
    rows = pd.DataFrame(
        [
            row("selection", "a", "b", "localization", 5),
            row("selection", "b", "a", "localization", 5, first_parameters=20, second_parameters=10),
            row("selection", "a", "m", "mechanism", 4),
            row("selection", "b", "m", "mechanism", 1, first_parameters=20),
            row("selection", "b", "m", "mechanism", 3, first_parameters=20, base_seed=1),
            row("mask", "a", "m", "mechanism", 2, first_parameters=8),
        ]
    )  # fmt: skip
    table = reporting.shares(rows)
    assert list(table["share_of_second"]) == [0.25, 0.5, 0.2, 0.05, 0.15, 0.1]
    assert list(table["jaccard"][:2]) == [0.2, 0.2]
    own = Overlap(mechanisms={"m": Mechanism(label="Mech", mlps=(3,))}, masked=8)
    mechanism, pair, jaccard, mask = reporting.panels(table, {"a": "A", "b": "B", "c": "C"}, own)
    assert mechanism.headings == ["Localization", "All components", "Mech"]
    assert mechanism.lines == [["A", "10.0", "20.0"], ["B", "20.0", "10.0 (5.0, 15.0)"]]
    assert pair.lines == [["A", "10.0", "-", "25.0"], ["B", "20.0", "50.0", "-"]]
    assert jaccard.lines == [["A", "10.0", "-", "20.0"], ["B", "20.0", "20.0", "-"]]
    assert mask.lines == [["A", "8.00", "10.00"]] and "(8)" in mask.caption
    assert "Mech: MLPs 3." in reporting.notes(own, True)


def test_the_stages_from_selections_weights_and_masks_to_the_table(
    tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """Catches a mask taken for another localization's or seed's, single weights read as whole matrices, and a lost pair."""
    model = tiny("gemma2").float()
    model.save_pretrained(tmp_path / "model")
    digest = deltas.weights_digest(tmp_path / "model")
    up, down = ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight")
    size = 32 * 48
    chosen = {
        "manual": ["0.mlp.up", "0.mlp.down"],
        "single": ["0.mlp.up"],
        "heads": ["1.attn.q.2", "0.mlp.down"],
    }
    for name, names in chosen.items():
        text = json.dumps({"localization": name, "components": names})
        (tmp_path / f"{name}.json").write_text(text)
    half = torch.zeros(48, 32, dtype=torch.bool)
    half[:24] = True
    weights.save_masks(tmp_path / "single.safetensors", {up: half}, digest)
    mask = tmp_path / "mask/manual/seed3/mask.safetensors"
    mask.parent.mkdir(parents=True)
    ranked = torch.arange(size - 5, size + 100)  # five of down, which comes first, then 100 of up
    masks.save_mask(mask, {"mask": ranked}, {up: size, down: size}, digest)
    mechanism = {"label": "Mech", "heads": {1: [2]}, "mlps": [0]}
    localizations = {name: {"label": name.title(), "kind": "all"} for name in chosen}
    config = Config.model_validate(
        {
            "localizations": {**localizations, "manual": {"label": "Manual", "kind": "manual", "layers": [0]}},
            "overlap": {"mechanisms": {"mech": mechanism}, "masked": 50},
        }
    )  # fmt: skip
    stage, wildcards = STAGES["overlap"], {"base_seed": "2", "task": "sports"}
    given = {
        "base_model": tmp_path / "model",
        "selections": [tmp_path / f"{name}.json" for name in chosen],
        "weights": [tmp_path / "single.safetensors"],
        "masks": [mask],
    }
    made = {"overlap": tmp_path / "overlap.parquet"}
    overlap.overlap(Job(stage, restrict(config, stage, wildcards), wildcards, given, made, "key"))
    rows = pd.read_parquet(made["overlap"])
    common = rows.set_index(["kind", "first", "second"])["common"].to_dict()
    head = 8 * 32
    assert common == {
        **dict.fromkeys([("selection", *p) for p in (("manual", "single"), ("single", "manual"))], size // 2),
        **dict.fromkeys([("selection", *p) for p in (("manual", "heads"), ("heads", "manual"))], size),
        **dict.fromkeys([("selection", *p) for p in (("single", "heads"), ("heads", "single"))], 0),
        ("selection", "manual", "mech"): 2 * size,
        ("selection", "single", "mech"): size // 2,
        ("selection", "heads", "mech"): size + head,
        ("mask", "manual", "manual"): 50,
        ("mask", "manual", "single"): 45,
        ("mask", "manual", "heads"): 5,
        ("mask", "manual", "mech"): 50,
    }
    assert set(rows["base_seed"]) == {2} and set(rows.loc[rows["kind"] == "mask", "seed"]) == {3}
    assert set(rows.loc[rows["second"] == "mech", "second_parameters"]) == {2 * size + 4 * head}
    assert set(rows["of"]) == {4 * (2 * size + (4 + 2) * 2 * head)}

    table = {name: tmp_path / f"overlap.{name}" for name in ("csv", "markdown", "latex")}
    stage = STAGES["overlap_table"]
    reporting.run(Job(stage, restrict(config, stage, {}), {}, {"rows": [made["overlap"]]}, table, "key"))
    text = table["markdown"].read_text()
    assert "Mech: L1H2, MLPs 0." in text and "(50)" in text
    assert len(pd.read_csv(table["csv"])) == len(rows)
    for path in (tmp_path / "one.parquet", tmp_path / "two.parquet"):
        rows.iloc[:0].to_parquet(path)
    empty = {"rows": [tmp_path / "one.parquet", tmp_path / "two.parquet"]}
    with pytest.raises(UserError, match="give 'localizations' two, or name mechanisms"):
        reporting.run(Job(stage, restrict(config, stage, {}), {}, empty, table, "key"))
