"""Evaluations of one model: facts, multiple choice, general knowledge, plain text; one row per item.

Rows keep the logits, never a metric: any statistic can be recomputed without a model. One process
makes all four from one model load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from localized_unlearning.data.documents import read_documents
from localized_unlearning.evaluation.exam import full_exam, ready, take
from localized_unlearning.evaluation.rows import identity
from localized_unlearning.evaluation.text import read_text
from localized_unlearning.models import device as device_module
from localized_unlearning.models import loading
from localized_unlearning.models.deltas import unlearned

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def run(job: Job) -> None:
    """Stage: evaluate the base model, or the base model plus a delta, on the test part."""

    config = job.config
    device = device_module.setup(config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], config.model.dtype, device)
    tokens = device_module.batch_tokens(config.compute, model)
    text = read_documents(job.inputs["text"], config.text.documents)
    with unlearned(job, model):
        tables = take(ready(full_exam(job), tokenizer), model, tokens)
        tables["text"] = read_text(model, tokenizer, text, config.text.tokens, config.text.windows, tokens)
    job.facts.update(
        seeds={"option_order": config.evaluation.shuffled_seed, "mmlu": config.mmlu.seed}, device=device
    )
    for name, table in tables.items():
        table.assign(**identity(job)).to_parquet(job.outputs[name], index=False)
