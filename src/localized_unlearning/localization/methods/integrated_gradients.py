"""Integrated gradients on the inputs (Sundararajan et al. 2017; EAP-IG at the nodes, Hanna et al. 2024, arXiv 2403.17806).

Attribution patching with the gradient averaged over ``points`` runs whose embeddings lie between the corrupt and the clean
ones, at k / m for k = 1 to m: hannamw/EAP-IG at 81770db, src/eap/attribute_node.py, get_scores_eap_ig (default 30; 5 in the
paper). One point is attribution patching. Cost: two forward passes, and one forward and backward per point: at most 6
times attribution patching at five; the differences of all activations are held meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from localized_unlearning.localization.attribution_patching import _owners as owners
from localized_unlearning.localization.effects import Effects
from localized_unlearning.localization.pairs import Pairs, _answers, _metric_of, batches, corrupted
from localized_unlearning.models.activations import recorded
from localized_unlearning.models.components import Component, activation_columns


def integrated_gradients(
    model: Any, pairs: Pairs, components: Sequence[Component], batch_tokens: int, *, points: int = 5
) -> Effects:
    """The change of the metric when a component's activation becomes the corrupt one, by prompt and component."""
    kinds, embedding = sorted({c.kind for c in components}), model.get_input_embeddings()
    effects = Effects(np.zeros((len(pairs.clean), len(components))), np.zeros(len(pairs.clean)))
    columns: Any = [activation_columns(c, model.config) for c in components]
    for batch in batches(pairs, model, batch_tokens):
        answer, owner = _answers(pairs, batch).to(model.device), owners(batch).to(model.device)
        with torch.no_grad(), recorded(model, kinds) as corrupt:
            start, end = embedding(corrupted(pairs, batch)), embedding(batch.inputs["input_ids"])
            low = _metric_of(model, batch, start, answer, pairs.choices)
        with torch.no_grad(), recorded(model, kinds) as clean:
            high = _metric_of(model, batch, end, answer, pairs.choices)
        change = {place: corrupt.pop(place) - clean.pop(place) for place in list(clean)}
        context = (change, owner, batch.prompts.numpy())

        def watch(layer: int, kind: str, value: Tensor, context: Any = context) -> None:
            def use(gradient: Tensor) -> None:
                change, owner, prompts = context
                moved = (change[layer, kind] * gradient).double().flatten(0, -2) / points
                own = moved.new_zeros(len(prompts) + 1, moved.shape[1]).index_add_(0, owner, moved)[:-1]
                for index, component in enumerate(components):
                    if (component.layer, component.kind) == (layer, kind):
                        part = own if columns[index] is None else own[:, list(columns[index])]
                        effects.values[prompts, index] += part.sum(1).cpu().numpy()

            value.register_hook(use)

        for point in range(1, points + 1):
            with torch.enable_grad(), recorded(model, kinds, watch):
                inputs = (start + point / points * (end - start)).requires_grad_(True)
                _metric_of(model, batch, inputs, answer, pairs.choices).sum().backward()
        effects.differences[batch.prompts.numpy()] = (high - low).double().cpu().numpy()
    return effects
