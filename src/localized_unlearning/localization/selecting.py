"""Localizations: scoring components and selecting them (section 2.3).

Scores compare pairs of prompts: the training prompt about a real athlete (clean), and the same
prompt with a made-up name of equal token length (corrupt). The metric is the logit of the right
sport minus the mean of the other three answers (golf included) at the last position, normalised
so that the corrupt run has 0 and the clean run 1. Scores are signed; selection takes the largest
absolute values.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from localized_unlearning.config.localization import Localization
from localized_unlearning.errors import UserError
from localized_unlearning.localization.settings import for_masks
from localized_unlearning.localization.units import (
    counted,
    described,
    in_blocks,
    matched_units,
    signed_percentile,
    top_units,
)
from localized_unlearning.models import components as components_module
from localized_unlearning.models import loading
from localized_unlearning.models.components import ATTENTION_KINDS, Component
from localized_unlearning.models.place import matched, place

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def rising_layers(probes: pd.DataFrame, rise: tuple[float, float]) -> tuple[int, ...]:
    """The layers over which a probe at the name's last token rises: where the base model looks a fact up (A.2).

    The rise goes from the probe's accuracy on the embeddings, which no layer has touched, to its highest. The layers
    run from the first that has made ``rise[0]`` of it to the first that has made ``rise[1]``; the first layer is one
    of those that can be. At the prompt's last token the probe rises where the fact arrives, which may be later
    (:func:`arriving_layers`).

    Args:
        probes: the rows of stage ``layer_probes``.
        rise: the two shares.

    Raises:
        UserError: when the probe does not rise.
    """
    found = _rising(probes, "name", rise)
    if not found:
        raise UserError(
            "the base model's probes at the name do not rise over its layers, so 'layers: auto' finds no fact lookup: "
            "name the manual localization's layers"
        )
    return found


def arriving_layers(probes: pd.DataFrame, rise: tuple[float, float]) -> tuple[int, ...]:
    """The layers over which a probe at the prompt's last token rises, as for :func:`rising_layers`; none: it does not."""
    return _rising(probes, "prompt", rise)


def _rising(probes: pd.DataFrame, series: str, rise: tuple[float, float]) -> tuple[int, ...]:
    rows = probes[~probes["ablated"] & (probes["labels"] == "answer") & (probes["series"] == series)]
    accuracy = rows.groupby("layer")["right"].mean().sort_index()
    before = float(accuracy.get(-1, np.nan))
    span = float(accuracy.max()) - before
    if not span > 0:
        return ()
    made = (accuracy[accuracy.index >= 0] - before) / span
    layers, risen = made.index.to_list(), made.to_numpy()
    first, last = (int(layers[int((risen >= share).argmax())]) for share in rise)
    return tuple(range(first, last + 1))


def choose(
    localization: Localization,
    found: Sequence[Component],
    sizes: dict[str, int],
    scores: pd.DataFrame | None,
    manual_parameters: int | None,
) -> list[str]:
    """Names of the components that a localization trains (section 2.3).

    Args:
        localization: which localization.
        found: all components.
        sizes: parameters of each component.
        scores: the scores table, for kind ``scores``.
        manual_parameters: parameters of the manual localization, for budget ``parameters``.

    Raises:
        UserError: when the manual layers name components that do not exist, or a budget fits nothing.
    """
    kinds = localization.kinds or (("up", "down") if localization.kind == "manual" else None)
    allowed = [c for c in found if kinds is None or c.kind in kinds]
    names = [str(c) for c in allowed]
    if localization.kind == "all":
        chosen = names
    elif localization.kind == "all_mlps":
        chosen = [str(c) for c in allowed if c.kind not in ATTENTION_KINDS]
    elif localization.kind == "manual":
        assert not isinstance(localization.layers, str)  # select has put the layers that the probes say
        chosen = [str(c) for c in allowed if c.layer in localization.layers]
        missing = set(localization.layers) - {c.layer for c in found}
        if missing:
            raise UserError(
                f"the manual localization names layer {min(missing)}, but the model has layers 0 to "
                f"{max(c.layer for c in found)}: correct 'layers' in the config"
            )
    elif localization.selection == "independent":
        rng = random.Random(localization.seed)
        chosen = [name for name in names if rng.random() < localization.fraction]
    else:
        table = in_units(found, localization, scores)
        own = table[table["component"].isin(names)]
        if localization.kind == "random":
            units = list(own["unit"].drop_duplicates())
            order = random.Random(localization.seed).sample(units, len(units))
            own = own.assign(score=[len(order) - order.index(unit) for unit in own["unit"]])
        elif localization.unit == "block":  # of what is left of a block
            assert scores is not None
            own = in_blocks(scores[scores["component"].isin(names)])
        chosen = _within(own, table["unit"].nunique(), localization, sizes, manual_parameters)
    if not chosen:
        raise UserError(f"localization '{localization.label}' selects no component: raise its budget")
    wanted = set(chosen)
    return [name for name in names if name in wanted]


def in_units(
    found: Sequence[Component], localization: Localization, scores: pd.DataFrame | None
) -> pd.DataFrame:
    """Each component with its unit; with its score, where there are scores."""
    if scores is not None and localization.kind == "scores":
        return in_blocks(scores) if localization.unit == "block" else scores
    table = pd.DataFrame(
        {
            "component": [str(c) for c in found],
            "layer": [c.layer for c in found],
            "kind": [c.kind for c in found],
            "unit": [str(c) for c in found],
            "score": 0,
        }
    )
    return in_blocks(table) if localization.unit == "block" else table


def _within(
    table: pd.DataFrame, units: int, localization: Localization, sizes: dict[str, int], parameters: int | None
) -> list[str]:
    """The components of ``table`` that the budget takes; a fraction is of as many ``units``."""
    if localization.selection == "signed_percentile":
        return signed_percentile(table, localization.fraction)
    if localization.budget == "fraction":
        return top_units(table, localization.fraction, units)
    assert parameters is not None
    return matched_units(table, sizes, parameters, localization.budget == "parameters_reached")


def of_truth(job: Job, localization: Localization, layers: int) -> list[Component]:
    """The matrices that hold an organism's injected facts, or a draw of as many of each kind.

    Raises:
        UserError: when no facts are injected.
    """
    facts_in = job.config.organism.facts_in
    if facts_in is None:
        raise UserError(f"localization '{localization.label}' needs injected facts: set organism.facts_in")
    if localization.kind == "truth":
        return place(facts_in)
    job.facts.update(seeds={"random": localization.seed})
    return matched(facts_in, layers, localization.seed, localization.disjoint)


def select(job: Job) -> None:
    """Stage: the components that a localization trains."""
    localization = job.config.localizations[job.wildcards["localization"]]
    assert localization is not None
    _select(job, localization)


def select_for_mask(job: Job) -> None:
    """Stage: the components that a weight mask of a localization covers."""
    localization = job.config.localizations[job.wildcards["localization"]]
    assert localization is not None
    _select(job, for_masks(localization))


def _select(job: Job, localization: Localization) -> None:
    """Write the selection, a JSON file: the chosen components, their parameters, their share of the model."""
    name, task = job.wildcards["localization"], job.wildcards["task"]
    if task in localization.layers_of:
        localization = localization.model_copy(update={"layers": localization.layers_of[task]})
    if localization.layers == "auto":
        if not job.inputs.get("probes"):
            raise UserError(f"the layers of {name} are 'auto': give stage select the base model's probes")
        probes = pd.read_parquet(job.inputs["probes"])
        layers = rising_layers(probes, localization.rise)
        localization = localization.model_copy(update={"layers": layers})
        arriving = arriving_layers(probes, localization.rise)
        job.facts.update(layers=list(layers), layers_of_arrival=list(arriving))
    model = loading.skeleton(loading.read_config(job.inputs["base_model"]))
    found = components_module.list_components(
        model.config, counted(job.config.components, localization.granularity)
    )
    sizes = {str(c): components_module.size_of(c, model) for c in found}
    scores = pd.read_parquet(job.inputs["scores"]) if job.inputs.get("scores") else None
    manual = job.inputs.get("manual")
    manual_parameters = json.loads(manual.read_text())["parameters"] if manual else None
    if localization.kind in ("truth", "matched_draw"):
        held = of_truth(job, localization, components_module.geometry_of(model.config).layers)
        chosen = [str(c) for c in held]
        sizes |= {str(c): components_module.size_of(c, model) for c in held}
    else:
        chosen = choose(localization, found, sizes, scores, manual_parameters)
    parameters = sum(sizes[c] for c in chosen)
    selection = described(job, localization, chosen, len(sizes), parameters, model)
    if localization.kind == "random":
        job.facts.update(seeds={"random": localization.seed})
    job.outputs["selection"].write_text(json.dumps(selection, indent=1) + "\n", encoding="utf-8")
