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
    """Stage: the short exam at every edit size of a mask, on one loaded model.

    Rows carry ``edit_size`` (what was asked for) and ``masked`` (the weights that are zero: fewer when
    training moved fewer).
    """
    config = job.config
    device = device_module.setup(config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], config.model.dtype, device)
    ranked, sizes = read_mask(job.inputs["mask"], deltas.base_digest(job))
    tokens = device_module.batch_tokens(config.compute, model)
    exam = sheet(short_exam(job), tokenizer, model, tokens)
    points = sorted(config.masking.edit_sizes)
    parts: dict[str, list[pd.DataFrame]] = {}
    steps = edits(model, ranked, sizes, points)
    for _ in Progress("sweeping edit sizes", "size").over(points):
        size, masked = next(steps)
        for name, table in take(exam, model).items():
            parts.setdefault(name, []).append(table.assign(edit_size=size, masked=masked))
    job.facts.update(seeds={"athletes": config.series.seed, "mmlu": config.mmlu.seed}, device=device)
    for name, tables in parts.items():
        rows = pd.concat(tables, ignore_index=True).assign(objective="mask", **identity(job))
        rows.to_parquet(job.outputs[name], index=False)
