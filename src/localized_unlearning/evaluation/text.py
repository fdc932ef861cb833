"""Side effects on plain text: a model's loss on held-out documents beside the base model's, and how far it went from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.data import windows as windows_module
from localized_unlearning.data.documents import read_documents
from localized_unlearning.evaluation.rows import write_rows
from localized_unlearning.models.checkpoint import base_model
from localized_unlearning.models.vocabulary import kl_divergence
from localized_unlearning.unlearning import losses

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.jobs.job import Job


def hidden_states(model: Any, windows: Tensor, batch_tokens: int) -> Tensor:
    """Final hidden states before each predicted token ``[window, token, hidden]``, on the CPU.

    Of the base model they are kept, since its logits would be thousands of times larger.
    """
    import torch

    parts = []
    with torch.inference_mode():
        for part in windows.split(max(1, batch_tokens // windows.shape[1])):
            inputs = part[:, :-1].to(model.device)
            parts.append(model.base_model(input_ids=inputs, use_cache=False).last_hidden_state.cpu())
    return torch.cat(parts)


def compare_text(
    model: Any, windows: Tensor, base: Tensor, hidden: Tensor, batch_tokens: int
) -> pd.DataFrame:
    """A model's reading of text beside the base model's, one row per window.

    Args:
        model: gives the output layer, which is no component: unlearning does not change it.
        windows: token ids ``[window, token + 1]``.
        base, hidden: :func:`hidden_states` of the base model and of the model that is compared.
        batch_tokens: tokens taken at a time.

    Returns:
        Columns ``item``, ``loss`` and ``base_loss`` (cross-entropy) and ``kl`` (KL divergence of the model's next-token
        distribution from the base model's, KL(base || model)); all means over the window's tokens, in nats.
    """
    import torch

    found: dict[str, list[Tensor]] = {"loss": [], "base_loss": [], "kl": []}
    step = max(1, batch_tokens // windows.shape[1])
    with torch.inference_mode():
        for ids, old, new in zip(windows.split(step), base.split(step), hidden.split(step), strict=True):
            answer = ids[:, 1:].flatten().to(model.device)
            before, after = (states.flatten(0, 1).to(model.device) for states in (old, new))
            values = {
                "loss": losses.answer_losses(model, after, answer),
                "base_loss": losses.answer_losses(model, before, answer),
                "kl": kl_divergence(model, before, after),
            }
            for name, value in values.items():
                found[name].append(value.view(len(ids), -1).mean(1).cpu())
    columns = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    return pd.DataFrame({"item": range(len(windows)), **columns})


def run(job: Job) -> None:
    """Stage: one model's loss on held-out text, the base model's, and the KL divergence between the two."""
    settings = job.config.text
    documents = read_documents(job.inputs["text"], settings.documents)
    with base_model(job) as (loaded, tokens):
        model = loaded.model
        windows = windows_module.text_windows(loaded.tokenizer, documents, settings.tokens, settings.windows)
        base = hidden_states(model, windows, tokens)
        loaded.change(job)
        hidden = hidden_states(model, windows, tokens)
        rows = compare_text(model, windows, base, hidden, tokens)
    write_rows(job, "text", rows)
