"""LoRA adapters of the attacks: which modules have them, and answering without paying for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from localized_unlearning.models import sharding


def linear_modules(model: Any) -> list[str]:
    """Paths of the linear modules but the output layer; of a mixture the attention's alone (experts are no modules)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    return [
        name for name, module in model.named_modules() if isinstance(module, kinds) and module is not output
    ]


@contextmanager
def folded(model: Any) -> Iterator[None]:
    """Inside, each adapter is added to the weight it adapts, so that answering costs what it costs without adapters.

    The weights are put back bit for bit on leaving. Only in full precision, on a CPU and in one process: in a shorter type the
    sum would be rounded, on a GPU a second copy of the weights may not fit. Elsewhere nothing changes.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    full = model.dtype in (torch.float32, torch.float64)
    can = full and model.device.type == "cpu" and sharding.count(model) == 1
    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer)] if can else []
    weights = [layer.get_base_layer().weight for layer in layers]
    kept = [weight.data for weight in weights]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            weight.data = weight.data.clone()
            layer.merge()
        yield
    finally:
        for layer, weight, before in zip(layers, weights, kept, strict=True):
            weight.data = before
            layer.merged_adapters.clear()
