"""Causal tracing: noise on the name, then one component at a time restored (section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from localized_unlearning.config.localization import Score
from localized_unlearning.localization.effects import Effects
from localized_unlearning.localization.pairs import Pairs, _answers, _metric_of, batches, metric
from localized_unlearning.models import components
from localized_unlearning.models.activations import Site, entering, recorded, restored, resume
from localized_unlearning.models.components import Component
from localized_unlearning.models.vocabulary import logits_of
from localized_unlearning.progress import Progress


def noise_scale(model: Any) -> float:
    """Standard deviation of the token embeddings over the vocabulary, the unit of causal tracing's noise.

    Some models (Gemma 3) scale inside the embedding module; the noise is added after it.
    """
    import torch

    embedding = model.get_input_embeddings()
    token = torch.zeros(1, dtype=torch.long, device=embedding.weight.device)
    token += int(embedding.weight.float().norm(dim=1).argmax())
    factor = embedding(token).float().norm() / embedding.weight[token].float().norm()
    return float(embedding.weight.float().std() * factor)


def tracing_sites(model: Any, settings: Score, found: Sequence[Component]) -> list[Site]:
    """The sites of causal tracing.

    ``units``: the attention output of each head (restored alone, then summed over the layer's heads)
    and each MLP's hidden activation. ``blocks``: the same with all heads of a layer restored at once. ``matrices``: each component's own activation; that of the MLP's input matrices
    where ``settings.mlp_input`` says.
    """
    geometry = components.geometry_of(model.config)
    sites = []
    if settings.sites != "matrices":
        for layer in range(geometry.layers):
            for head in range(geometry.heads) if settings.sites == "units" else ():
                columns = components.weight_of(Component(layer, "o", head), model.config).index
                sites.append(Site(layer, "o", columns, f"{layer}.attn"))
            if settings.sites == "blocks":
                sites.append(Site(layer, "o", None, f"{layer}.attn"))
            if "down" in components.adapter_of(model.config).modules:
                sites.append(Site(layer, "down", None, f"{layer}.mlp"))
    else:
        for c in found:
            if settings.mlp_input == "residual" and c.kind in components.MLP_INPUTS:
                sites.append(Site(c.layer, components.MLP_IN, None, str(c)))
            else:
                sites.append(Site(c.layer, c.kind, components.activation_columns(c, model.config), str(c)))
    return sites


def causal_tracing(
    model: Any, pairs: Pairs, sites: Sequence[Site], noise: float, seed: int, batch_tokens: int
) -> Effects:
    """Causal tracing (Meng et al. 2023): corrupt the subject with noise, restore one site, see what returns.

    Every prompt has one draw of Gaussian noise, ``noise`` embedding standard deviations, shared by all
    sites. The corrupted residual stream is kept at every layer, so that a site's run restarts at the
    site's layer; sites of one layer run side by side. The slow definition, against which it is tested, runs the
    whole model for each site and prompt.

    Returns:
        What restoring each site brings back of the metric, and what the noise took.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    embedding = model.get_input_embeddings()
    width = embedding.weight.shape[1]
    draws = [torch.randn(stop - start, width, generator=generator) for start, stop in pairs.subject]
    scale = noise * noise_scale(model)
    values = np.zeros((len(pairs.clean), len(sites)))
    differences = np.zeros(len(pairs.clean))
    kinds = sorted({s.kind for s in sites})
    layers = components.layers_of(model)
    with torch.inference_mode():
        for batch in Progress("causal tracing", "prompt batch").over(batches(pairs, model, batch_tokens)):
            answer = _answers(pairs, batch).to(model.device)
            inputs = embedding(batch.inputs["input_ids"])
            with recorded(model, kinds) as clean:
                clean_value = _metric_of(model, batch, inputs, answer, pairs.choices)
            noised = inputs.clone()
            for row, p in enumerate(batch.packs):
                for index, path in zip(p.prompts, p.paths, strict=True):
                    start, stop = pairs.subject[index]
                    noised[row, list(path[start:stop])] += scale * draws[index].to(noised)
            with entering(layers) as entered:
                corrupt_value = _metric_of(model, batch, noised, answer, pairs.choices)
            differences[batch.prompts.numpy()] = (clean_value - corrupt_value).double().cpu().numpy()
            room = max(1, batch_tokens // inputs.shape[:2].numel())
            for group in _side_by_side(sites, room):
                some = [sites[index] for index in group]
                with restored(model, some, clean):
                    hidden = resume(model, layers, some[0].layer, entered, len(some))
                hidden = hidden.view(len(some), *inputs.shape)
                for index, copy in zip(group, hidden, strict=True):
                    logits = logits_of(model, copy[batch.rows, batch.nodes], pairs.choices)
                    back = metric(logits, answer) - corrupt_value
                    values[batch.prompts.numpy(), index] = back.double().cpu().numpy()
    return Effects(values, differences)


def _side_by_side(sites: Sequence[Site], room: int) -> list[list[int]]:
    """Indices of the sites of each layer, ``room`` at a time."""
    by_layer: dict[int, list[int]] = {}
    for index, site in enumerate(sites):
        by_layer.setdefault(site.layer, []).append(index)
    return [same[i : i + room] for same in by_layer.values() for i in range(0, len(same), room)]
