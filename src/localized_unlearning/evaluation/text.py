"""Loss on held-out plain text: a side-effect measure that small models have too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.data import windows as windows_module
from localized_unlearning.data.documents import read_documents
from localized_unlearning.evaluation.rows import write_rows
from localized_unlearning.models.checkpoint import checkpoint
from localized_unlearning.unlearning import losses

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def read_text(
    model: Any, tokenizer: Any, documents: Sequence[str], tokens: int, windows: int, batch_tokens: int
) -> pd.DataFrame:
    """One row per window of ``tokens`` predicted tokens: ``item`` and ``loss`` (nats per token)."""
    import torch

    table = windows_module.text_windows(tokenizer, documents, tokens, windows)
    with torch.inference_mode():
        found = [
            losses.text_losses(model, part.to(model.device)).cpu()
            for part in table.split(max(1, batch_tokens // (tokens + 1)))
        ]
    return pd.DataFrame({"item": range(len(table)), "loss": torch.cat(found).numpy()})


def run(job: Job) -> None:
    """Stage: one model's loss on held-out text."""
    settings = job.config.text
    documents = read_documents(job.inputs["text"], settings.documents)
    with checkpoint(job) as (model, tokenizer, batch_tokens):
        rows = read_text(model, tokenizer, documents, settings.tokens, settings.windows, batch_tokens)
    write_rows(job, "text", rows)
