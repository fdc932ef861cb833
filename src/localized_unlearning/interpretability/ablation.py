"""Ablated heads of the base model (A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.interpretability.probes import predictions
from localized_unlearning.interpretability.subject import load_subject
from localized_unlearning.models import components, device
from localized_unlearning.models.activations import attention_replaced, head_replaced, residuals
from localized_unlearning.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.jobs.job import Job


def mean_attention_outputs(model: Any, windows: Tensor, from_layer: int) -> dict[int, Tensor]:
    """Mean of what attention adds to the residual stream, over text windows and positions ``[hidden]``.

    Of each layer from ``from_layer`` on. Where a norm stands between W_O and the stream, it is the norm's output.
    """
    import torch

    means: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, _args: Any, output: Tensor) -> None:
            means[layer] = output.float().mean((0, 1))

        return hook

    with torch.inference_mode(), ExitStack() as stack:
        for layer in range(from_layer, components.geometry_of(model.config).layers):
            module = components.attention_contribution(model, layer)
            stack.callback(module.register_forward_hook(keep(layer)).remove)
        model.base_model(input_ids=windows.to(model.device), use_cache=False)
    return means


def mean_head_outputs(model: Any, windows: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """Mean output of the heads of ``layers`` before W_O, over text windows and positions ``[heads * head_dim]``."""
    import torch

    means: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
            means[layer] = args[0].float().mean((0, 1))

        return hook

    with torch.inference_mode(), ExitStack() as stack:
        for layer in layers:
            stack.callback(
                components.module_of(model, layer, "o").register_forward_pre_hook(keep(layer)).remove
            )
        model.base_model(input_ids=windows.to(model.device), use_cache=False)
    return means


def head_ablation(job: Job) -> None:
    """Stage: final-layer probe accuracy when one head of the lookup layers is mean-ablated (Figure 15).

    All attention past the lookup layers is mean-ablated as well. As in the released code, each run's probe
    is fitted on that run's own activations, so that a drop says the sport is gone from the last layer, not
    that it has moved; means are those of the model without ablation. One row per head and test athlete:
    ``layer``, ``head`` (query heads; both -1: no single head ablated), ``subject`` and ``right``.
    """
    config, settings = job.config, job.config.interpretability
    subject = load_subject(job)
    sports, test = subject.sports, subject.test
    geometry = components.geometry_of(subject.model.config)
    encoded = subject.encode(config.prompts.training)
    early = range(settings.lookup_end)
    means = mean_head_outputs(subject.model, subject.windows, early)
    heads = [(layer, head) for layer in early for head in range(geometry.heads)]
    late = mean_attention_outputs(subject.model, subject.windows, settings.lookup_end)
    rows = []
    with attention_replaced(subject.model, late):
        for layer, head in Progress("ablating heads", "run").over([(-1, -1), *heads]):
            with nullcontext() if head < 0 else head_replaced(subject.model, layer, head, means[layer]):
                last = residuals(
                    subject.model,
                    encoded,
                    device.batch_tokens(config.compute, subject.model),
                    [geometry.layers - 1],
                )
            ((said,),) = predictions([subject.fit(last[0], sports[None])], settings)
            rows.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "head": head,
                        "subject": subject.athletes[test],
                        "right": said == sports[test],
                    }
                )
            )
    job.facts.update(seeds={"probe": settings.seed}, device=subject.device)
    table = pd.concat(rows, ignore_index=True).assign(base_seed=int(job.wildcards["base_seed"]))
    table.to_parquet(job.outputs["ablation"], index=False)
