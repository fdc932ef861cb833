"""Attribution patching: one gradient for all components (section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from localized_unlearning.localization.pairs import Pairs, _answers, _metric_of, batches
from localized_unlearning.models import components
from localized_unlearning.models.activations import recorded
from localized_unlearning.models.components import Component
from localized_unlearning.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor


def attribution_patching(
    model: Any, pairs: Pairs, found: Sequence[Component], batch_tokens: int
) -> list[float]:
    """Attribution patching (Nanda 2023): the linear estimate of patching each component.

    ``(corrupt - clean activation) · d metric / d activation`` on the *clean* run, summed over
    positions and averaged over prompts. One forward on each side and one backward for all components. A
    difference is used and dropped as soon as the backward pass brings its gradient; no gradient is kept.

    Returns:
        A signed score for each of ``found``: the change of the normalised metric when the component's
        activation is replaced by the corrupt one.
    """
    import torch

    kinds = sorted({c.kind for c in found})
    columns: dict[tuple[int, str], Tensor] = {}
    embedding = model.get_input_embeddings()
    progress = Progress("attribution patching", "prompt batch")
    for batch in progress.over(batches(pairs, model, batch_tokens)):
        answer = _answers(pairs, batch).to(model.device)
        with torch.no_grad(), recorded(model, kinds) as difference:
            ids = batch.inputs["input_ids"].clone()
            for row, p in enumerate(batch.packs):
                for index, path in zip(p.prompts, p.paths, strict=True):
                    ids[row, list(path)] = torch.tensor(pairs.corrupt[index], device=ids.device)
            corrupt_value = _metric_of(model, batch, embedding(ids), answer, pairs.choices)

        def watch(layer: int, kind: str, clean: Tensor, difference: Any = difference) -> None:
            difference[layer, kind] = difference[layer, kind] - clean.detach()

            def use(gradient: Tensor) -> None:
                change = (difference.pop((layer, kind)) * gradient).double().sum((0, 1))
                columns[layer, kind] = columns.get((layer, kind), 0) + change.cpu()

            clean.register_hook(use)

        with torch.enable_grad(), recorded(model, kinds, watch):
            inputs = embedding(batch.inputs["input_ids"]).detach().requires_grad_(True)
            clean_value = _metric_of(model, batch, inputs, answer, pairs.choices)
            scale = clean_value.detach() - corrupt_value
            (clean_value / scale).sum().backward()
    scores = []
    for component in found:
        part = components.activation_columns(component, model.config)
        change = columns[component.layer, component.kind]
        scores.append(float(change.sum() if part is None else change[list(part)].sum()) / len(pairs.clean))
    return scores
