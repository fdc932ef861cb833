"""How many weights localizations share with one another and with mechanisms that the config names.

The journal version's Table 2 (localizations) and Table 3 (the weights that masks remove first): the share of a
mechanism's parameters that each holds. A part of a model is a boolean mask for each parameter that it touches, in a shape
that broadcasts to the parameter's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.localization.selection import read_selection
from localized_unlearning.localization.weights import read_masks
from localized_unlearning.models import components, deltas, loading
from localized_unlearning.models.components import ATTENTION_KINDS, Component
from localized_unlearning.unlearning.masks import read_mask

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.config.localization import Mechanism
    from localized_unlearning.jobs.job import Job


def parts(chosen: Iterable[Component], model: Any) -> dict[str, Tensor]:
    """The weights of components: by parameter a mask ``[1, 1]``, ``[rows, 1]`` or ``[1, columns]``.

    Raises:
        UserError: when the model has no such component.
    """
    import torch

    found: dict[str, Tensor] = {}
    for component in chosen:
        part = components.weight_of(component, model.config)
        mask = torch.ones(1, 1, dtype=torch.bool)
        if part.index is not None:
            line = torch.zeros(model.get_parameter(part.parameter).shape[part.dim], dtype=torch.bool)
            line[list(part.index)] = True
            mask = line.unsqueeze(1 - part.dim)
        found[part.parameter] = found[part.parameter] | mask if part.parameter in found else mask
    return found


def in_common(one: Mapping[str, Tensor], other: Mapping[str, Tensor], model: Any) -> int:
    """How many weights two parts of a model share."""
    total = 0
    for name in one.keys() & other.keys():
        both = one[name] & other[name]
        total += int(both.sum()) * (model.get_parameter(name).numel() // both.numel())
    return total


def matrices_of(mechanism: Mechanism, config: Any, gate: bool) -> list[Component]:
    """The components of a mechanism: the four matrices of its heads, the matrices of its MLPs.

    Under grouped-query attention a head's keys and values are those of its group.

    Args:
        mechanism: what the config names.
        config: the model's.
        gate: whether an MLP's gate counts.
    """
    geometry = components.geometry_of(config)
    shared = geometry.heads // geometry.kv_heads
    found = [
        Component(layer, kind, head // shared if kind in ("k", "v") else head)
        for layer, heads in mechanism.heads.items()
        for head in heads
        for kind in ATTENTION_KINDS
    ]
    mlp = [
        kind
        for kind in components.adapter_of(config).modules
        if kind not in ATTENTION_KINDS and (gate or kind != "gate")
    ]
    return [*found, *(Component(layer, kind) for layer in mechanism.mlps for kind in mlp)]


def removed_first(path: Path, base: str, count: int) -> dict[str, Tensor]:
    """The weights that a mask removes first, at most ``count``: by parameter their places in it, flattened ``[n]``.

    Raises:
        UserError: when the mask is damaged or belongs to another base model.
    """
    import torch

    rankings, sizes = read_mask(path, base)
    first = next(iter(rankings.values()))[:count].sort().values
    names = sorted(sizes)
    ends = torch.tensor([sizes[name] for name in names]).cumsum(0)
    cuts = torch.searchsorted(first, ends)
    found, start = {}, 0
    for name, end, cut in zip(names, ends.tolist(), cuts.tolist(), strict=True):
        if cut > start:
            found[name] = first[start:cut] - (end - sizes[name])
        start = cut
    return found


def among(places: Mapping[str, Tensor], part: Mapping[str, Tensor], model: Any) -> int:
    """How many of some single weights (:func:`removed_first`) a part of the model holds."""
    total = 0
    for name in places.keys() & part.keys():
        shape = model.get_parameter(name).shape
        rows, columns = places[name] // shape[1], places[name] % shape[1]
        total += int(part[name].expand(shape)[rows, columns].sum())
    return total


def overlap(job: Job) -> None:
    """Stage: how many weights each localization shares with every other one and with every mechanism.

    Writes one row per pair: ``base_seed``, ``task``, ``kind`` (selection, or mask: of the first, the weights that its mask
    removes first), ``seed`` (of the mask), ``first``, ``second``, ``second_kind`` (localization or mechanism), ``common``,
    ``first_parameters``, ``second_parameters`` and ``of`` (parameters of all components).
    """
    settings, gate = job.config.overlap, job.config.components.include_gate
    config = loading.read_config(job.inputs["base_model"])
    model = loading.skeleton(config)
    masks, weights = job.inputs["masks"], job.inputs["weights"]
    base = deltas.base_digest(job) if masks or weights else ""
    single = {path.with_suffix(".json"): path for path in weights}
    held = {}
    for path in job.inputs["selections"]:
        name = json.loads(path.read_text(encoding="utf-8"))["localization"]
        own = single.get(path)
        held[name] = read_masks(own, base) if own else parts(read_selection(path), model)
    named = {
        name: parts(matrices_of(mechanism, model.config, gate), model)
        for name, mechanism in settings.mechanisms.items()
    }
    every = parts(components.list_components(model.config, job.config.components), model)
    of = in_common(every, every, model)
    others = [("localization", *found) for found in held.items()]
    others += [("mechanism", *found) for found in named.items()]
    sizes = {(kind, name): in_common(part, part, model) for kind, name, part in others}
    rows: list[dict[str, object]] = []

    def add(first: str, size: int, kind: str, seed: int, shared: Mapping[tuple[str, str], int]) -> None:
        for (second_kind, second), common in shared.items():
            rows.append(
                {
                    "base_seed": int(job.wildcards["base_seed"]), "task": job.wildcards["task"], "kind": kind,
                    "seed": seed, "first": first, "second": second, "second_kind": second_kind, "common": common,
                    "first_parameters": size, "second_parameters": sizes[second_kind, second], "of": of,
                }
            )  # fmt: skip

    for first, part in held.items():
        size = sizes["localization", first]
        shared = {(kind, name): in_common(part, other, model) for kind, name, other in others}
        add(
            first,
            size,
            "selection",
            0,
            {key: n for key, n in shared.items() if key != ("localization", first)},
        )
    for path in masks:
        assert settings.masked is not None
        places = removed_first(path, base, settings.masked)
        size = sum(len(found) for found in places.values())
        seed, first = int(path.parent.name.removeprefix("seed")), path.parent.parent.name
        add(first, size, "mask", seed, {(k, n): among(places, other, model) for k, n, other in others})
    pd.DataFrame(rows).to_parquet(job.outputs["overlap"], index=False)
