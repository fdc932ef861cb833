"""Exact activation patching (Vig et al. 2020, arXiv 2004.12265): run the model once per component with its activation replaced
by the corrupt run's. It is what attribution patching estimates: the best that a localization by activations can know.

Cost: half the model's forward pass per component and prompt (a run restarts at the component's layer): for small models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from localized_unlearning.localization.causal_tracing import _side_by_side
from localized_unlearning.localization.effects import Effects
from localized_unlearning.localization.pairs import Pairs, _answers, _metric_of, batches, corrupted, metric
from localized_unlearning.models.activations import Site, entering, recorded, restored, resume
from localized_unlearning.models.components import Component, activation_columns, layers_of
from localized_unlearning.models.vocabulary import logits_of


def activation_patching(
    model: Any, pairs: Pairs, components: Sequence[Component], batch_tokens: int
) -> Effects:
    """The change of the metric when a component's activation becomes the corrupt one, by prompt and component."""
    sites = [Site(c.layer, c.kind, activation_columns(c, model.config), str(c)) for c in components]
    kinds, layers, embedding = (
        sorted({c.kind for c in components}),
        layers_of(model),
        model.get_input_embeddings(),
    )
    effects = Effects(np.zeros((len(pairs.clean), len(components))), np.zeros(len(pairs.clean)))
    with torch.inference_mode():
        for batch in batches(pairs, model, batch_tokens):
            answer, prompts = _answers(pairs, batch).to(model.device), batch.prompts.numpy()
            with recorded(model, kinds) as corrupt:
                low = _metric_of(model, batch, embedding(corrupted(pairs, batch)), answer, pairs.choices)
            inputs = embedding(batch.inputs["input_ids"])
            with entering(layers) as entered:
                high = _metric_of(model, batch, inputs, answer, pairs.choices)
            effects.differences[prompts] = (high - low).double().cpu().numpy()
            for group in _side_by_side(sites, max(1, batch_tokens // inputs.shape[:2].numel())):
                some = [sites[index] for index in group]
                with restored(model, some, corrupt):
                    hidden = resume(model, layers, some[0].layer, entered, len(some))
                for index, copy in zip(group, hidden.view(len(some), *inputs.shape), strict=True):
                    logits = logits_of(model, copy[batch.rows, batch.nodes], pairs.choices)
                    effects.values[prompts, index] = (metric(logits, answer) - high).double().cpu().numpy()
    return effects
