"""Hooks that read or replace a model's activations while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from localized_unlearning.models import components, packing

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def recorded(
    model: Any, kinds: Sequence[str], watch: Callable[[int, str, Tensor], None] | None = None
) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Record the activation of every component of ``kinds`` during a forward pass, by (layer, kind).

    Args:
        model: the model.
        kinds: kinds of components.
        watch: is shown each activation instead of its being kept: layer, kind and value.
    """
    store: dict[tuple[int, str], Tensor] = {}

    def keep(layer: int, names: list[str], value: Tensor) -> None:
        for name in names:
            if watch is None:
                store[layer, name] = value
            else:
                watch(layer, name, value)

    def on_output(layer: int, names: list[str]) -> Callable[..., Any]:
        return lambda _module, _args, output: keep(layer, names, output)

    def on_input(layer: int, names: list[str]) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Any, ...]) -> Any:
            value = args[0]
            if (
                names[0] == components.MLP_IN
            ):  # what goes on past the MLP is no part of it, nor is its gradient
                value = value.clone()
            keep(layer, names, value)
            return (value, *args[1:])

        return hook

    with ExitStack() as stack:
        for layer in range(components.geometry_of(model.config).layers):
            for module, names in _modules(model, layer, kinds).items():
                if components.reads_input(names[0]):
                    handle = module.register_forward_pre_hook(on_input(layer, names))
                else:
                    handle = module.register_forward_hook(on_output(layer, names))
                stack.callback(handle.remove)
        yield store


def _modules(model: Any, layer: int, kinds: Sequence[str]) -> dict[Any, list[str]]:
    """The linear modules of a layer with the kinds each one holds (three, where q, k and v are fused)."""
    found: dict[Any, list[str]] = {}
    for kind in kinds:
        found.setdefault(components.module_of(model, layer, kind), []).append(kind)
    return found


@dataclass(frozen=True)
class Site:
    """What causal tracing restores at once: a module's activation, or one head's columns of it."""

    layer: int
    kind: str
    columns: tuple[int, ...] | None
    unit: str


@contextmanager
def entering(layers: Any) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Record what each decoder layer is called with, so that :func:`resume` can call it again."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(keep, with_kwargs=True).remove)
        yield calls


def resume(
    model: Any, layers: Any, start: int, calls: list[tuple[tuple[Any, ...], dict[str, Any]]], copies: int = 1
) -> Tensor:
    """Final hidden states when the model runs on from layer ``start`` as it was entered, ``copies`` times over.

    The copies stand one after the other along the first dimension.
    """
    args, kwargs = calls[start]
    hidden = args[0] if args else kwargs["hidden_states"]
    rows = len(hidden)

    def repeated(value: Any) -> Any:
        import torch

        if isinstance(value, tuple):
            return tuple(repeated(part) for part in value)
        if not isinstance(value, torch.Tensor) or copies == 1 or value.dim() == 0 or len(value) != rows:
            return value
        return value.expand(copies, *value.shape).flatten(0, 1)

    hidden = repeated(hidden)
    for layer, (layer_args, layer_kwargs) in zip(layers[start:], calls[start:], strict=True):
        named = {name: repeated(value) for name, value in layer_kwargs.items()}
        if layer_args:
            output = layer(hidden, *map(repeated, layer_args[1:]), **named)
        else:
            output = layer(**{**named, "hidden_states": hidden})
        hidden = output[0] if isinstance(output, tuple) else output
    final: Tensor = components.finish(model, hidden)
    return final


@contextmanager
def restored(model: Any, sites: Sequence[Site], clean: dict[tuple[int, str], Tensor]) -> Iterator[None]:
    """Put clean activations in place: the first site's in the first copy of a batch, the second's in the second."""
    groups: dict[str, list[int]] = {}
    for copy, site in enumerate(sites):
        groups.setdefault(site.kind, []).append(copy)

    def patch(current: Tensor, kind: str) -> Tensor:
        patched = current.clone()
        copies = patched.view(len(sites), -1, *current.shape[1:])
        for copy in groups[kind]:
            value = clean[sites[copy].layer, kind]
            columns: Any = slice(None) if sites[copy].columns is None else list(sites[copy].columns or ())
            copies[copy][..., columns] = value[..., columns]
        return patched

    def on_input(kind: str) -> Callable[..., Any]:
        return lambda _module, args: (patch(args[0], kind), *args[1:])

    def on_output(kind: str) -> Callable[..., Any]:
        return lambda _module, _args, output: patch(output, kind)

    with ExitStack() as stack:
        for kind in groups:
            module = components.module_of(model, sites[0].layer, kind)
            if components.reads_input(kind):
                handle = module.register_forward_pre_hook(on_input(kind))
            else:
                handle = module.register_forward_hook(on_output(kind))
            stack.callback(handle.remove)
        yield


def residuals(
    model: Any, prompts: Sequence[Sequence[int]], batch_tokens: int, layers: Sequence[int] | None = None
) -> np.ndarray:
    """Residual stream after ``layers`` (None: all) at each prompt's last token ``[layer, prompt, hidden]``, float32.

    Layer -1 is what enters the first layer: the embeddings.
    """
    import torch

    found = components.layers_of(model)
    chosen = range(len(found)) if layers is None else layers
    out = np.empty((len(chosen), len(prompts), model.config.get_text_config().hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for batch in packing.batches(prompts, model, batch_tokens):

            def keep(index: int, hidden: Any, batch: packing.Batch = batch) -> None:
                rows, nodes = batch.rows.to(hidden.device), batch.nodes.to(hidden.device)
                out[index, batch.prompts.numpy()] = hidden[rows, nodes].float().cpu().numpy()

            def after(index: int, keep: Any = keep) -> Any:
                return lambda _m, _args, output: keep(
                    index, output[0] if isinstance(output, tuple) else output
                )

            def before(index: int, keep: Any = keep) -> Any:
                return lambda _m, args, kwargs: keep(index, args[0] if args else kwargs["hidden_states"])

            with ExitStack() as stack:
                for index, layer in enumerate(chosen):
                    if layer < 0:
                        hook = found[0].register_forward_pre_hook(before(index), with_kwargs=True)
                    else:
                        hook = found[layer].register_forward_hook(after(index))
                    stack.callback(hook.remove)
                model.base_model(**batch.inputs)
    return out


@contextmanager
def attention_replaced(model: Any, values: dict[int, Tensor]) -> Iterator[None]:
    """Replace what attention adds to the residual stream in the layers in ``values``, at every position."""

    def replace(value: Tensor) -> Any:
        return lambda _module, _args, output: value.to(output).expand_as(output)

    with ExitStack() as stack:
        for layer, value in values.items():
            module = components.attention_contribution(model, layer)
            stack.callback(module.register_forward_hook(replace(value)).remove)
        yield


@contextmanager
def head_replaced(model: Any, layer: int, head: int, value: Tensor) -> Iterator[None]:
    """Replace one head's output before W_O, at every position, by its part of ``value`` ``[heads * head_dim]``."""
    columns = list(components.weight_of(components.Component(layer, "o", head), model.config).index or ())

    def replace(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        patched = args[0].clone()
        patched[..., columns] = value[columns].to(patched)
        return (patched, *args[1:])

    handle = components.module_of(model, layer, "o").register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()
