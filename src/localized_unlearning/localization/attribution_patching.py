"""Attribution patching: one gradient for all components (section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from localized_unlearning.localization.effects import Effects
from localized_unlearning.localization.pairs import Pairs, _answers, _metric_of, batches
from localized_unlearning.models import components, packing
from localized_unlearning.models.activations import recorded
from localized_unlearning.models.components import Component
from localized_unlearning.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor


def attribution_patching(
    model: Any, pairs: Pairs, found: Sequence[Component], batch_tokens: int, mlp_input: bool = False
) -> Effects:
    """Attribution patching (Nanda 2023): the linear estimate of patching each component.

    ``(corrupt - clean activation) · d metric / d activation`` on the *clean* run, summed over
    positions, prompt by prompt. One forward on each side and one backward for all components. A
    difference is used and dropped as soon as the backward pass brings its gradient; no gradient is kept.

    Args:
        model: the model.
        pairs: the prompts.
        found: the components.
        batch_tokens: tokens of one forward pass.
        mlp_input: read the MLP's input matrices (up, gate) where the residual stream enters the MLP's norm, as the
            released code did, instead of at their own output.

    Returns:
        The signed change of the metric when a component's activation is replaced by the corrupt one.
    """
    import torch

    sites = [components.MLP_IN if mlp_input and c.kind in components.MLP_INPUTS else c.kind for c in found]
    kinds = sorted(set(sites))
    values = np.zeros((len(pairs.clean), len(found)))
    differences = np.zeros(len(pairs.clean))
    at_site: dict[tuple[int, str], list[tuple[int, tuple[int, ...] | None]]] = {}
    for index, (component, kind) in enumerate(zip(found, sites, strict=True)):
        part = None if kind == components.MLP_IN else components.activation_columns(component, model.config)
        at_site.setdefault((component.layer, kind), []).append((index, part))
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
        owner = _owners(batch).to(model.device)
        prompts = batch.prompts.numpy()

        def watch(
            layer: int, kind: str, clean: Tensor, difference: Any = difference, owner: Any = owner,
            prompts: Any = prompts,
        ) -> None:  # fmt: skip
            difference[layer, kind] = difference[layer, kind] - clean.detach()

            def use(gradient: Tensor) -> None:
                change = (difference.pop((layer, kind)) * gradient).double().flatten(0, -2)
                own = change.new_zeros(len(prompts) + 1, change.shape[1]).index_add_(0, owner, change)[:-1]
                for index, part in at_site.get((layer, kind), ()):
                    columns = own if part is None else own[:, list(part)]
                    values[prompts, index] = columns.sum(1).cpu().numpy()

            clean.register_hook(use)

        with torch.enable_grad(), recorded(model, kinds, watch):
            inputs = embedding(batch.inputs["input_ids"]).detach().requires_grad_(True)
            clean_value = _metric_of(model, batch, inputs, answer, pairs.choices)
            clean_value.sum().backward()
        differences[prompts] = (clean_value.detach() - corrupt_value).double().cpu().numpy()
    return Effects(values, differences)


def _owners(batch: packing.Batch) -> Tensor:
    """Which prompt of the batch each node is of, counted along rows ``[row * node]``.

    What all prompts share, where a clean and a corrupt run are the same, and padding go past the last one.
    """
    import torch

    owner = torch.full(batch.inputs["input_ids"].shape, len(batch.prompts), dtype=torch.long)
    seen = torch.zeros_like(owner)
    prompt = 0
    for row, p in enumerate(batch.packs):
        for path in p.paths:
            owner[row, list(path)] = prompt
            seen[row, list(path)] += 1
            prompt += 1
    owner[seen > 1] = len(batch.prompts)
    return owner.flatten()
