"""Stage: what a model still knows as ever more of its weights are edited."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning.evaluation.exam import sheet, short_exam, take
from localized_unlearning.evaluation.rows import identity
from localized_unlearning.models import deltas, loading
from localized_unlearning.models import device as device_module
from localized_unlearning.progress import Progress
from localized_unlearning.unlearning.masks import edits, read_mask

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def sweep(job: Job) -> None:
    """Stage: the short exam at every edit size of a mask and of its controls, on one loaded model.

    Rows carry ``ranking`` (mask; saliency: by |w dL/dw|, without training; random), ``edit_size`` (what was asked for)
    and ``masked`` (the weights that are zero: fewer when training moved fewer). The unedited model is asked once.
    """
    config = job.config
    device = device_module.setup(config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], config.model.dtype, device)
    rankings, sizes = read_mask(job.inputs["mask"], deltas.base_digest(job))
    tokens = device_module.batch_tokens(config.compute, model)
    exam = sheet(short_exam(job), tokenizer, model, tokens)
    points = sorted(config.masking.edit_sizes)
    edited = [size for size in points if size > 0]
    parts: dict[str, list[pd.DataFrame]] = {}

    def keep(answers: dict[str, pd.DataFrame], **point: str | int) -> None:
        for name, table in answers.items():
            parts.setdefault(name, []).append(table.assign(**point))

    if 0 in points:
        unedited = take(exam, model)
        for ranking in rankings:
            keep(unedited, ranking=ranking, edit_size=0, masked=0)
    progress = Progress("sweeping edit sizes", "size")
    todo = progress.over([(ranking, size) for ranking in rankings for size in edited])
    for ranking, ranked in rankings.items():
        for (size, masked), _ in zip(edits(model, ranked, sizes, edited), todo, strict=False):
            keep(take(exam, model), ranking=ranking, edit_size=size, masked=masked)
    job.facts.update(seeds={"athletes": config.series.seed, "mmlu": config.mmlu.seed}, device=device)
    for name, tables in parts.items():
        rows = pd.concat(tables, ignore_index=True).assign(objective="mask", **identity(job))
        rows.to_parquet(job.outputs[name], index=False)
