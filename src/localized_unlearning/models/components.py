"""Components: the weight matrices that a localization chooses from (section 2.3).

A component is (layer, kind, head or none). An :class:`Adapter` says, for one architecture, which
parameter (and which slice of it) a component is, and where its activation can be read and
replaced. Fused query-key-value weights and grouped-query attention are slices like any other.

To support another architecture, add its ``model_type`` and naming to ``ADAPTERS``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from localized_unlearning.config.base import Kind
from localized_unlearning.config.localization import Components
from localized_unlearning.errors import UserError

ATTENTION_KINDS: tuple[Kind, ...] = ("q", "k", "v", "o")

MLP_INPUTS: tuple[Kind, ...] = ("gate", "up")

MLP_IN = "mlp_in"
"""A site that is no matrix's own: the residual stream where it enters the norm before the MLP, and nothing else."""


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


Layout = Literal["separate", "blocks", "groups"]
"""How q, k and v lie: each in a module of its own; or the rows of one module, all of q, then all of k, then all of v;
or group by group, the query heads that share a key head, then their k, then their v (one query head a group where
every head has its own key: GPT-NeoX)."""


@dataclass(frozen=True)
class Adapter:
    """Where an architecture keeps its components.

    Attributes:
        layers: path of the list of decoder layers.
        modules: path, inside a layer, of the linear module of each kind.
        layout: how q, k and v lie in their modules.
        transposed: whether weights are ``[in, out]`` (GPT-2's Conv1D) rather than ``[out, in]``.
        halves: whether gate and up are the first and the second half of one module's rows (Phi-3).
        after: paths of what follows the last layer, in order; one that a model lacks is left out.
        experts: what the MLPs are instead, where they are no components; empty where they are.
        mlp_norm: path, inside a layer, of what reads the residual stream for the MLP alone: its norm, or the MLP where
            there is none; empty where attention reads through the same norm.
        attention_norm: path, inside a layer, of the norm between W_O and the residual stream; empty: there is none.
    """

    layers: str
    modules: dict[Kind, str]
    layout: Layout = "separate"
    transposed: bool = False
    halves: bool = False
    after: tuple[str, ...] = ("model.norm",)
    experts: str = ""
    mlp_norm: str = "post_attention_layernorm"
    attention_norm: str = ""


def _named(attention: str, mlp: str, names: str) -> dict[Kind, str]:
    """Paths of the kinds, from the modules that hold them and the names of q, k, v, o, (gate,) up, down."""
    words = names.split()
    kinds: tuple[Kind, ...] = ("q", "k", "v", "o", *(("gate",) if len(words) == 7 else ()), "up", "down")
    holders = (attention if kind in ATTENTION_KINDS else mlp for kind in kinds)
    return {kind: f"{at}.{word}".lstrip(".") for kind, at, word in zip(kinds, holders, words, strict=True)}


_LLAMA = Adapter(
    "model.layers", _named("self_attn", "mlp", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj")
)

_GEMMA2 = replace(_LLAMA, mlp_norm="pre_feedforward_layernorm", attention_norm="post_attention_layernorm")

_MIXTURE = replace(
    _LLAMA,
    modules={kind: path for kind, path in _LLAMA.modules.items() if kind in ATTENTION_KINDS},
    experts="a mixture of experts, which are no matrices of the layer",
)

_FUSED = ("query_key_value",) * 3

ADAPTERS: dict[str, Adapter] = {
    **dict.fromkeys(
        (
            "gemma", "llama", "mistral", "qwen2", "qwen3", "olmo", "granite",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA2),
    "gemma3": replace(_GEMMA2, layers="model.language_model.layers", after=("model.language_model.norm",)),
    "olmo2": replace(_LLAMA, mlp_norm="mlp", attention_norm="post_attention_layernorm"),
    **dict.fromkeys(("cohere", "cohere2"), replace(_LLAMA, mlp_norm="")),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), _MIXTURE),
    "phi": Adapter(
        "model.layers",
        _named("self_attn", "mlp", "q_proj k_proj v_proj dense fc1 fc2"),
        after=("model.final_layernorm",),
        mlp_norm="",
    ),
    "phi3": replace(
        _LLAMA,
        modules=_named("self_attn", "mlp", "qkv_proj qkv_proj qkv_proj o_proj gate_up_proj gate_up_proj down_proj"),
        layout="blocks",
        halves=True,
    ),
    "gpt_neox": Adapter(
        "gpt_neox.layers",
        _named("attention", "mlp", " ".join((*_FUSED, "dense dense_h_to_4h dense_4h_to_h"))),
        layout="groups",
        after=("gpt_neox.final_layer_norm",),
    ),
    "falcon": Adapter(
        "transformer.h",
        _named("self_attention", "mlp", " ".join((*_FUSED, "dense dense_h_to_4h dense_4h_to_h"))),
        layout="groups",
        after=("transformer.ln_f",),
        mlp_norm="",
    ),
    "gpt2": Adapter(
        "transformer.h",
        _named("attn", "mlp", "c_attn c_attn c_attn c_proj c_fc c_proj"),
        layout="blocks",
        transposed=True,
        after=("transformer.ln_f",),
        mlp_norm="ln_2",
    ),
    "gptj": Adapter(
        "transformer.h",
        _named("attn", "mlp", "q_proj k_proj v_proj out_proj fc_in fc_out"),
        after=("transformer.ln_f",),
        mlp_norm="",
    ),
    "opt": Adapter(
        "model.decoder.layers",
        {**_named("self_attn", "", "q_proj k_proj v_proj out_proj fc1 fc2")},
        after=("model.decoder.final_layer_norm", "model.decoder.project_out"),
        mlp_norm="final_layer_norm",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """The sizes that slicing needs.

    Attributes:
        layers: decoder layers.
        heads: query heads; o has as many.
        kv_heads: key and value heads; fewer under grouped-query attention.
        head_dim: width of a head.
        mlp: width of the MLP.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int


def adapter_of(config: Any) -> Adapter:
    """The adapter of a Hugging Face config.

    Raises:
        UserError: for an architecture without one, with how to add it, or for a variant that cannot be packed.
    """
    text = config.get_text_config()
    adapter = ADAPTERS.get(getattr(config, "model_type", "")) or ADAPTERS.get(text.model_type)
    if adapter is None:
        raise UserError(
            f"no component adapter for model type '{text.model_type}' (there are {', '.join(sorted(ADAPTERS))}): "
            "add one to ADAPTERS in models/components.py, as docs/your-own-model.md shows"
        )
    if getattr(text, "alibi", False):
        raise UserError(
            f"this {text.model_type} has ALiBi positions, which count places in a row and so cannot share a prompt's "
            "beginning: use a model with rotary or learned positions"
        )
    if text.model_type == "falcon" and text.new_decoder_architecture:
        return replace(adapter, mlp_norm="ln_mlp")
    if text.model_type == "falcon" and text.multi_query:
        return replace(adapter, layout="blocks")  # one key head for all
    return adapter


def geometry_of(config: Any) -> Geometry:
    """The geometry of a Hugging Face config."""
    text = config.get_text_config()
    heads, hidden = text.num_attention_heads, text.hidden_size
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if text.model_type == "falcon":
        kv_heads = text.num_kv_heads if text.new_decoder_architecture else 1 if text.multi_query else heads
    widths = (
        getattr(text, name, None) for name in ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim")
    )
    return Geometry(
        text.num_hidden_layers,
        heads,
        kv_heads,
        getattr(text, "head_dim", None) or hidden // heads,
        next((width for width in widths if width), 4 * hidden),
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
    index = index_of(component, adapter, geometry)
    along_output = component.kind != "o"
    return Slice(name, int(along_output == adapter.transposed), index)


def index_of(component: Component, adapter: Adapter, geometry: Geometry) -> tuple[int, ...] | None:
    """Which of its module's outputs (for o: inputs) a component is; None for all of them."""
    kind, width = component.kind, geometry.head_dim
    if kind in ("gate", "up") and adapter.halves:
        first = 0 if kind == "gate" else geometry.mlp
        return tuple(range(first, first + geometry.mlp))
    fused = adapter.layout != "separate" and kind in ("q", "k", "v")
    if component.head is None and not fused:
        return None
    heads = range(_heads(kind, geometry)) if component.head is None else (component.head,)
    starts = [_start(kind, head, adapter, geometry) if fused else head for head in heads]
    return tuple(i for start in starts for i in range(start * width, (start + 1) * width))


def _start(kind: Kind, head: int, adapter: Adapter, geometry: Geometry) -> int:
    """Where a head begins in a fused module, counted in heads."""
    shared = geometry.heads // geometry.kv_heads
    if adapter.layout == "groups":
        group, place = divmod(head, shared) if kind == "q" else (head, shared + (kind == "v"))
        return group * (shared + 2) + place
    return {"q": 0, "k": geometry.heads, "v": geometry.heads + geometry.kv_heads}[kind] + head


def _check(component: Component, adapter: Adapter, geometry: Geometry) -> None:
    if component.layer not in range(geometry.layers):
        raise UserError(
            f"component {component}: the model has layers 0 to {geometry.layers - 1}; correct the layers in the config"
        )
    if component.kind not in adapter.modules:
        raise UserError(
            f"component {component}: this model has no '{component.kind}' matrix "
            f"(it has {', '.join(adapter.modules)}{f'; its MLPs are {adapter.experts}' if adapter.experts else ''}): "
            "correct the kinds in the config"
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


def module_of(model: Any, layer: int, kind: Kind | str) -> Any:
    """The linear module that holds a component; for :data:`MLP_IN` the norm before the MLP.

    Raises:
        UserError: when the MLP has no norm of its own, so that it is no site.
    """
    adapter = adapter_of(model.config)
    path = adapter.mlp_norm if kind == MLP_IN else adapter.modules[kind]  # type: ignore[index]
    if not path:
        raise UserError(
            f"attention and MLP of a {model.config.model_type} read through one norm, so the MLP's input is no site of its "
            "own: set scores.*.mlp_input to matrix"
        )
    return layers_of(model)[layer].get_submodule(path)


def attention_contribution(model: Any, layer: int) -> Any:
    """The module whose output a layer's attention adds to the residual stream.

    W_O's, or the norm behind it where an architecture has one (Gemma 2 and 3, OLMo 2).
    """
    adapter = adapter_of(model.config)
    if not adapter.attention_norm:
        return module_of(model, layer, "o")
    return layers_of(model)[layer].get_submodule(adapter.attention_norm)


def finish(model: Any, hidden: Any) -> Any:
    """The final hidden states, from the residual stream after the last layer: the last norm, and what follows it."""
    for path in adapter_of(model.config).after:
        owner, _, name = path.rpartition(".")
        module = getattr(model.get_submodule(owner), name, None)
        hidden = hidden if module is None else module(hidden)
    return hidden


def activation_columns(component: Component, config: Any) -> tuple[int, ...] | None:
    """Columns of the component's activation inside its module's; None for all of them.

    A component's activation is the output of its matrix. For o it is the *input*, head by head:
    patching the input of a head's part of W_O replaces exactly that head's result.
    """
    part = weight_of(component, config)
    return part.index


def reads_input(kind: Kind | str) -> bool:
    """Whether the activation of this kind is its module's input (o, the MLP's) rather than its output."""
    return kind in ("o", MLP_IN)
