"""Stage: the single weights of one localization (kind ``weights``), as a selection and its masks."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning import extensions
from localized_unlearning.data.answers import candidates
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.data.splits import read_split
from localized_unlearning.data.tokens import fact_items
from localized_unlearning.errors import UserError
from localized_unlearning.localization import weights
from localized_unlearning.localization.units import counted, described
from localized_unlearning.models import components, deltas, loading
from localized_unlearning.models import device as device_module

if TYPE_CHECKING:
    from localized_unlearning.config.localization import Score
    from localized_unlearning.jobs.job import Job


def sampled(rows: pd.DataFrame, settings: Score) -> pd.DataFrame:
    """As many of the rows as the score asks for, drawn by its seed; all without a number."""
    if settings.prompts is None or settings.prompts >= len(rows):
        return rows
    return rows.iloc[sorted(random.Random(settings.seed).sample(range(len(rows)), settings.prompts))]


def select_weights(job: Job) -> None:
    """Stage: which single weights are trained: those that a method scores highest.

    The gradients are of the mean of -log p on the training prompt, over the training part's forget set and over the
    rest of it. Writes the selection (the components that hold a chosen weight) and the masks, a bit per weight.
    """
    name = job.wildcards["localization"]
    localization = job.config.localizations[name]
    assert localization is not None
    settings = job.config.scores[job.wildcards["scores"]]
    assert settings is not None
    device = device_module.setup(job.config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], job.config.model.dtype, device)
    method = extensions.load(settings.method, job.inputs["method"])
    extensions.check(method, settings.parameters, settings.method, given=3)

    split = read_split(job.inputs["split"])
    split = split[split["train"]]
    book = load_prompts(job.inputs["prompts"])
    prompt, answers = book[job.config.prompts.training], candidates(book, split)
    every = components.list_components(model.config, counted(job.config.components, localization.granularity))
    allowed = [c for c in every if localization.kinds is None or c.kind in localization.kinds]
    masks = components.trainable(model, allowed)
    if not masks:
        raise UserError(f"localizations.{name}.kinds leaves no component of this model: correct it")
    tokens = device_module.batch_tokens(
        job.config.compute, model, kept=components.geometry_of(model.config).layers
    )
    gradients = []
    for rows in (split[split["forget"]], split[~split["forget"]]):
        rows = sampled(rows, settings)
        items = fact_items(tokenizer, prompt, list(rows["subject"]), list(rows["answer"]), answers)
        gradients.append(weights.loss_gradients(model, list(masks), items, tokens))
    three = {n: (model.get_parameter(n).detach(), gradients[0][n], gradients[1][n]) for n in masks}
    scores = weights.weight_scores(method, settings.method, settings.parameters, three, masks)

    total = sum(components.size_of(c, model) for c in every)
    count = components.budget(total, localization.fraction)
    if localization.budget != "fraction":
        count = json.loads(job.inputs["manual"].read_text(encoding="utf-8"))["parameters"]
    room = sum(components.selected(model.get_parameter(n), mask) for n, mask in masks.items())
    chosen = weights.highest(scores, min(count, room))
    shares = {c: share_of(model, c, chosen) for c in allowed}
    held = [c for c in allowed if shares[c]]
    selection = described(
        job, localization, held, len(every), sum(int(m.sum()) for m in chosen.values()), model
    )
    selection["share_by_component"] = {str(c): shares[c] for c in held}
    job.facts.update(seeds={"localization": settings.seed}, device=device)
    job.outputs["selection"].write_text(json.dumps(selection, indent=1) + "\n", encoding="utf-8")
    weights.save_masks(job.outputs["weights"], chosen, deltas.base_digest(job))


def share_of(model: Any, component: components.Component, chosen: Mapping[str, Any]) -> float:
    """Share of a component's weights that is chosen."""
    ((name, part),) = components.trainable(model, [component]).items()
    mask = chosen[name]
    return float((mask if part is None else mask & part).sum()) / components.size_of(component, model)
