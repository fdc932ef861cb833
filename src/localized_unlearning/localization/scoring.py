"""Stage: every component's score by one method."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning import extensions
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.data.splits import read_split
from localized_unlearning.errors import UserError
from localized_unlearning.localization.attribution_patching import attribution_patching
from localized_unlearning.localization.causal_tracing import causal_tracing, tracing_sites
from localized_unlearning.localization.pairs import make_pairs
from localized_unlearning.localization.selecting import counted
from localized_unlearning.models import components, loading
from localized_unlearning.models import device as device_module
from localized_unlearning.models.components import ATTENTION_KINDS, Component

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def score(job: Job) -> None:
    """Stage: a score for every component, from training athletes unless the config says otherwise.

    Writes one row per component: ``component``, ``layer``, ``kind``, ``head``, ``unit`` (what was
    scored together) and the signed ``score``. Causal tracing's units give their score to all their
    matrices.
    """

    settings = job.config.scores[job.wildcards["scores"]]
    assert settings is not None
    device = device_module.setup(job.config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], job.config.model.dtype, device)
    split = read_split(job.inputs["split"])
    asked = split if settings.athletes == "all" else split[split["train"]]
    asked = asked[asked["forget"]] if settings.athletes == "forget" else asked
    athletes = list(zip(asked["athlete"], asked["sport"], strict=True))
    if settings.prompts is not None and settings.prompts < len(athletes):
        athletes = random.Random(settings.seed).sample(athletes, settings.prompts)
    prompt = load_prompts(job.inputs["prompts"])[job.config.prompts.training]
    pairs = make_pairs(athletes, prompt.render, tokenizer, settings.seed)
    found = components.list_components(model.config, counted(job.config.components, settings.granularity))
    tokens = device_module.batch_tokens(
        job.config.compute, model, kept=components.geometry_of(model.config).layers
    )
    own = job.inputs.get("method")
    if own or settings.method == "attribution_patching":
        method = extensions.load(settings.method, own) if own else attribution_patching
        values = [float(value) for value in method(model, pairs, found, tokens)]
        if len(values) != len(found):
            raise UserError(
                f"{settings.method} gave {len(values)} scores for {len(found)} components: give one for each"
            )
        table = _table(found, [str(c) for c in found], values)
    else:
        sites = tracing_sites(model, settings, found)
        values = causal_tracing(model, pairs, sites, settings.noise, settings.seed, tokens)
        units: dict[str, float] = {}
        for site, value in zip(sites, values, strict=True):
            units[site.unit] = units.get(site.unit, 0.0) + value
        names = [_unit_of(c) if settings.sites == "units" else str(c) for c in found]
        table = _table(found, names, [units[name] for name in names])
    job.facts.update(seeds={"localization": settings.seed}, prompts=len(athletes), device=device)
    table.to_parquet(job.outputs["scores"], index=False)


def _unit_of(component: Component) -> str:
    return f"{component.layer}.{'attn' if component.kind in ATTENTION_KINDS else 'mlp'}"


def _table(found: Sequence[Component], units: Sequence[str], scores: Sequence[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "component": [str(c) for c in found],
            "layer": [c.layer for c in found],
            "kind": [c.kind for c in found],
            "head": pd.array([c.head for c in found], dtype="Int64"),
            "unit": list(units),
            "score": list(scores),
        }
    )
