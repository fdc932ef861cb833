"""Logit lens (nostalgebraist 2020): the answer read off the residual stream after every layer, without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning.attacks.subject import Subject, ask
from localized_unlearning.config.attacks import LogitLens
from localized_unlearning.models import components, vocabulary
from localized_unlearning.models.activations import residuals

if TYPE_CHECKING:
    from torch import Tensor


def logit_lens(subject: Subject, settings: LogitLens) -> Iterator[tuple[str, pd.DataFrame]]:
    """One cell per layer; of the last the stream is what the model itself answers from."""
    every = range(components.geometry_of(subject.model.config).layers - 1)
    for layer in every if settings.layers is None else settings.layers:
        yield f"layer {layer}", ask(subject, lambda p, c, layer=layer: read_at(subject, layer, p, c))  # type: ignore[misc]


def read_at(
    subject: Subject, layer: int, prompts: Sequence[Sequence[int]], candidates: Sequence[int]
) -> Tensor:
    """Logits of ``candidates`` from what ``layer`` leaves at each prompt's last token ``[prompt, candidate]``."""
    import torch

    stream = residuals(subject.model, prompts, subject.batch_tokens, [layer])[0]
    weight = subject.model.get_output_embeddings().weight
    with torch.inference_mode():
        hidden = components.finish(subject.model, torch.from_numpy(stream).to(weight))
        return vocabulary.logits_of(subject.model, hidden, candidates).cpu()
