"""Stage: every component's score by one method."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning import extensions
from localized_unlearning.data.answers import candidates
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.data.splits import read_split
from localized_unlearning.localization.attribution_patching import attribution_patching
from localized_unlearning.localization.calling import called
from localized_unlearning.localization.causal_tracing import causal_tracing, tracing_sites
from localized_unlearning.localization.effects import Effects, by_unit, combined, degenerate, warn_of
from localized_unlearning.localization.pairs import choices_of, make_pairs, read_names
from localized_unlearning.localization.units import counted
from localized_unlearning.models import components, loading, packing
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
    athletes = list(zip(asked["subject"], asked["answer"], strict=True))
    if settings.prompts is not None and settings.prompts < len(athletes):
        athletes = random.Random(settings.seed).sample(athletes, settings.prompts)
    book = load_prompts(job.inputs["prompts"])
    prompt, answers = book[job.config.prompts.training], candidates(book, split)
    own = job.inputs.get("method")
    traced = not own and settings.method == "causal_tracing"
    tokens = device_module.batch_tokens(
        job.config.compute, model, kept=components.geometry_of(model.config).layers
    )
    choices, _ = choices_of(tokenizer, prompt, [a for a, _ in athletes], answers)

    def guess(prompts: list[list[int]]) -> list[int]:
        found = packing.next_token(model, prompts, choices, tokens)
        return [int(best) for best in found.candidates.argmax(1)]

    replacing = settings.replace_guessed and not traced  # noise has no name whose sport could be guessed
    pairs = make_pairs(
        athletes,
        prompt,
        answers,
        tokenizer,
        settings.seed,
        guess if replacing else None,
        read_names(job.inputs.get("names")),
    )
    found = components.list_components(model.config, counted(job.config.components, settings.granularity))
    effects: Effects | None
    if own:
        method = extensions.load(settings.method, own)
        values, effects = called(method, settings, model, pairs, found, tokens)
        table = _table(found, [str(c) for c in found], values)
    elif traced:
        sites = tracing_sites(model, settings, found)
        effects = causal_tracing(model, pairs, sites, settings.noise, settings.seed, tokens)
        units, effects = by_unit(effects, [site.unit for site in sites])
        scores = dict(zip(units, combined(effects, settings), strict=True))
        names = [_unit_of(c) if settings.sites != "matrices" else str(c) for c in found]
        table = _table(found, names, [float(scores[name]) for name in names])
    else:
        effects = attribution_patching(model, pairs, found, tokens, settings.mlp_input == "residual")
        table = _table(found, [str(c) for c in found], [float(v) for v in combined(effects, settings)])
    job.facts.update(seeds={"localization": settings.seed}, prompts=len(pairs.clean), device=device)
    job.facts["without_made_up_name"] = list(pairs.skipped)
    if effects is not None:
        job.facts["degenerate_pairs"] = counts = degenerate(effects.differences)
        warn_of(job.wildcards["scores"], counts)
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
