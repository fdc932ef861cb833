"""Components: the weight matrices that a localization chooses from (section 2.3).

A component is (layer, kind, head or none). An :class:`Adapter` says, for one architecture, which
parameter (and which slice of it) a component is, and where its activation can be read and
replaced. Fused query-key-value weights and grouped-query attention are slices like any other.

To support another architecture, add its ``model_type`` and naming to ``ADAPTERS``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from localized_unlearning.config.base import Kind
from localized_unlearning.config.localization import Components
from localized_unlearning.errors import UserError

ATTENTION_KINDS: tuple[Kind, ...] = ("q", "k", "v", "o")


class Component(NamedTuple):
    """A weight matrix of a layer, or one head's part of it."""

    layer: int
    kind: Kind
    head: int | None = None

    def __str__(self) -> str:
        place = "attn" if self.kind in ATTENTION_KINDS else "mlp"
        head = "" if self.head is None else f".{self.head}"
        return f"{self.layer}.{place}.{self.kind}{head}"


def parse(name: str) -> Component:
    """The component with this name, as written by ``str``."""
    layer, _, kind, *head = name.split(".")
    return Component(int(layer), kind, int(head[0]) if head else None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Slice:
    """Part of a parameter: the whole, or ``index`` along ``dim``."""

    parameter: str
    dim: int = 0
    index: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Adapter:
    """Where an architecture keeps its components.

    Attributes:
        layers: path of the list of decoder layers.
        modules: path, inside a layer, of the linear module of each kind.
        fused: whether q, k and v are one module with rows ordered [head, q/k/v, head_dim] (GPT-NeoX).
    """

    layers: str
    modules: dict[Kind, str]
    fused: bool = False


_LLAMA = Adapter(
    "model.layers",
    {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
)

_NEOX = Adapter(
    "gpt_neox.layers",
    {
        "q": "attention.query_key_value",
        "k": "attention.query_key_value",
        "v": "attention.query_key_value",
        "o": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    fused=True,
)

ADAPTERS: dict[str, Adapter] = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    "gpt_neox": _NEOX,
}


@dataclass(frozen=True)
class Geometry:
    """The sizes that slicing needs.

    Attributes:
        layers: decoder layers.
        heads: query heads; o has as many.
        kv_heads: key and value heads; fewer under grouped-query attention.
        head_dim: width of a head.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int


def adapter_of(config: Any) -> Adapter:
    """The adapter of a Hugging Face config.

    Raises:
        UserError: for an architecture without one, with how to add it.
    """
    text = config.get_text_config()
    adapter = ADAPTERS.get(text.model_type)
    if adapter is None:
        raise UserError(
            f"no component adapter for model type '{text.model_type}' (there are {', '.join(sorted(ADAPTERS))}): "
            "add one to ADAPTERS in components.py, as docs/your-own-model.md shows"
        )
    return adapter


def geometry_of(config: Any) -> Geometry:
    """The geometry of a Hugging Face config."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    return Geometry(
        text.num_hidden_layers,
        heads,
        getattr(text, "num_key_value_heads", None) or heads,
        getattr(text, "head_dim", None) or text.hidden_size // heads,
    )


def list_components(config: Any, settings: Components) -> list[Component]:
    """Every component of a model, layer by layer; Gemma-7B has 168 matrices without gate, 1848 by head."""
    adapter, geometry = adapter_of(config), geometry_of(config)
    found = []
    for layer in range(geometry.layers):
        for kind in adapter.modules:
            if kind == "gate" and not settings.include_gate:
                continue
            if settings.granularity == "head" and kind in ATTENTION_KINDS:
                found += [Component(layer, kind, head) for head in range(_heads(kind, geometry))]
            else:
                found.append(Component(layer, kind))
    return found


def _heads(kind: Kind, geometry: Geometry) -> int:
    return geometry.kv_heads if kind in ("k", "v") else geometry.heads


def weight_of(component: Component, config: Any) -> Slice:
    """Which parameter, and which part of it, a component is.

    Raises:
        UserError: when the model has no such component.
    """
    adapter, geometry = adapter_of(config), geometry_of(config)
    _check(component, adapter, geometry)
    name = f"{adapter.layers}.{component.layer}.{adapter.modules[component.kind]}.weight"
    fused = adapter.fused and component.kind in ("q", "k", "v")
    if component.head is None and not fused:
        return Slice(name)
    heads = range(_heads(component.kind, geometry)) if component.head is None else (component.head,)
    width = geometry.head_dim
    if fused:
        part = ("q", "k", "v").index(component.kind)
        starts = [(3 * head + part) * width for head in heads]
    else:
        starts = [head * width for head in heads]
    index = tuple(i for start in starts for i in range(start, start + width))
    return Slice(name, 1 if component.kind == "o" else 0, index)


def _check(component: Component, adapter: Adapter, geometry: Geometry) -> None:
    if component.layer not in range(geometry.layers):
        raise UserError(
            f"component {component}: the model has layers 0 to {geometry.layers - 1}; correct the layers in the config"
        )
    if component.kind not in adapter.modules:
        raise UserError(
            f"component {component}: this model has no '{component.kind}' matrix "
            f"(it has {', '.join(adapter.modules)}); correct the kinds in the config"
        )
    if component.head is not None and component.head not in range(_heads(component.kind, geometry)):
        raise UserError(f"component {component}: the model has {_heads(component.kind, geometry)} such heads")


def size_of(component: Component, model: Any) -> int:
    """Number of parameters of a component."""
    part = weight_of(component, model.config)
    parameter = model.get_parameter(part.parameter)
    if part.index is None:
        return int(parameter.numel())
    return int(parameter.numel() // parameter.shape[part.dim] * len(part.index))


def budget(total: int, fraction: float) -> int:
    """How many of ``total`` components a fraction is, rounded up: 5 % of 168 are 9."""
    return math.ceil(total * fraction - 1e-9)


def trainable(model: Any, chosen: Sequence[Component]) -> dict[str, Any]:
    """The parameters that ``chosen`` touches, each with its gradient mask.

    Returns:
        Parameter name to None (all of it is trained) or to a boolean mask that broadcasts against the
        parameter: true where it is trained.
    """
    import torch

    parts: dict[str, list[Slice]] = {}
    for component in chosen:
        part = weight_of(component, model.config)
        parts.setdefault(part.parameter, []).append(part)
    masks: dict[str, Any] = {}
    for name, slices in parts.items():
        parameter = model.get_parameter(name)
        if any(s.index is None for s in slices):
            masks[name] = None
            continue
        dim = slices[0].dim
        line = torch.zeros(parameter.shape[dim], dtype=torch.bool, device=parameter.device)
        for s in slices:
            line[list(s.index or ())] = True
        masks[name] = None if bool(line.all()) else line.unsqueeze(1 - dim)
    return masks


def selected(parameter: Any, mask: Any) -> int:
    """How many weights of a parameter a gradient mask of :func:`trainable` holds."""
    return int(parameter.numel() if mask is None else mask.expand(parameter.shape).sum())


def layers_of(model: Any) -> Any:
    """The list of decoder layers."""
    return model.get_submodule(adapter_of(model.config).layers)


def module_of(model: Any, layer: int, kind: Kind) -> Any:
    """The linear module that holds a component."""
    adapter = adapter_of(model.config)
    return layers_of(model)[layer].get_submodule(adapter.modules[kind])


def activation_columns(component: Component, config: Any) -> tuple[int, ...] | None:
    """Columns of the component's activation inside its module's; None for all of them.

    A component's activation is the output of its matrix. For o it is the *input*, head by head:
    patching the input of a head's part of W_O replaces exactly that head's result.
    """
    part = weight_of(component, config)
    return part.index


def reads_input(kind: Kind) -> bool:
    """Whether the activation of this kind is its module's input (o) rather than its output."""
    return kind == "o"
