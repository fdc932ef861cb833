"""Where an architecture keeps its components, found from what depends on what (no names needed).

In a tiny random model the gradient says it. A head's result at the first position depends on its v alone; what else
later results depend on at earlier positions is k; what they depend on at their own position only is q. o is the first
linear module whose input mixes positions. In an MLP, what goes into ``down`` doubles when ``up`` does, and not when
``gate`` does. Tests hold :data:`components.ADAPTERS` to this, and preflight derives the entry that is missing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.config.base import Kind
from localized_unlearning.errors import UserError
from localized_unlearning.models.components import Adapter, Component, Geometry, Layout, geometry_of, index_of
from localized_unlearning.models.loading import read_config

if TYPE_CHECKING:
    from torch import Tensor


Place = tuple[str, tuple[int, ...]]
"""A module's path inside the layer, and which of its outputs (for o and down: inputs)."""

POSITIONS = 3


@dataclass(frozen=True)
class Map:
    """What was found in one layer.

    Attributes:
        layers: path of the list of decoder layers.
        heads: for each query head, where its q, k, v and o are.
        mlp: where gate (if there is one), up and down are; empty where the MLP has no such modules.
        transposed: whether the weights are ``[in, out]``.
        after: paths of the modules that follow the layers: the last norm, and what comes behind it.
        norms: the adapter's ``mlp_norm`` and ``attention_norm``.
    """

    layers: str
    heads: tuple[Mapping[Kind, Place], ...]
    mlp: Mapping[Kind, Place]
    transposed: bool
    after: tuple[str, ...]
    norms: tuple[str, str]


def tiny(config: Any) -> Any:
    """A random model of an architecture, small enough to differentiate: float64, eager attention, no drop-out."""
    import torch
    from transformers import AutoModelForCausalLM

    small = copy.deepcopy(config)
    small._attn_implementation = "eager"
    if hasattr(small.get_text_config(), "num_experts") or hasattr(
        small.get_text_config(), "num_local_experts"
    ):
        small._experts_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(small, trust_remote_code=False).double().eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def derive(model: Any, layer: int = 0) -> Map:
    """The map of one layer of a model that :func:`tiny` made; norms of q and k, which may mix heads, are taken out.

    Raises:
        UserError: when no module of the layer mixes positions.
    """
    import torch

    config = model.config.get_text_config()
    path, layers = next(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == config.num_hidden_layers
    )
    block = layers[layer]
    for module in list(block.modules()):
        for name in ("q_norm", "k_norm", "q_layernorm", "k_layernorm"):
            if isinstance(getattr(module, name, None), torch.nn.Module):
                setattr(module, name, torch.nn.Identity())
    linear = {name: m for name, m in block.named_modules() if _is_linear(m)}
    order, into, out = _run(model, linear)
    first = next((n for n in order if _mixes(into[n], out)), None)
    if first is None:
        raise UserError(f"no attention was found in {type(block).__name__}: this architecture cannot be used")
    heads = _heads(first, into, out, config.num_attention_heads)
    used = {name for head in heads for name, _ in head.values()}
    mlp = _mlp(model, [n for n in order if n not in used], linear, into)
    norms = _norms(model, block, heads[0]["q"][0], first, mlp)
    return Map(
        path, heads, mlp, not isinstance(linear[first], torch.nn.Linear), _after(model, path, block), norms
    )


def _is_linear(module: Any) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _run(model: Any, linear: Mapping[str, Any]) -> tuple[list[str], dict[str, Tensor], dict[str, Tensor]]:
    """A pass over a few tokens: the linear modules in the order they ran, what went in and what came out."""
    import torch

    order: list[str] = []
    into: dict[str, Any] = {}
    out: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], output: Any) -> None:
            order.append(name)
            into[name], out[name] = args[0].reshape(-1, args[0].shape[-1]), output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in linear.items()]
    model(input_ids=torch.arange(3, 3 + POSITIONS)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return order, into, out


def _reached(value: Tensor, out: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which outputs ``[position, column]`` of each module a value depends on."""
    import torch

    weighted = (value * torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)).sum()
    found = torch.autograd.grad(weighted, list(out.values()), retain_graph=True, allow_unused=True)
    return {
        name: gradient.reshape(POSITIONS, -1) != 0
        for name, gradient in zip(out, found, strict=True)
        if gradient is not None and gradient.any()
    }


def _mixes(value: Tensor, out: Mapping[str, Tensor]) -> bool:
    if value.grad_fn is None or len(value) != POSITIONS:
        return False
    return any(bool(seen[:-1].any()) for seen in _reached(value[-1], out).values())


def _heads(
    o: str, into: Mapping[str, Tensor], out: Mapping[str, Tensor], count: int
) -> tuple[dict[Kind, Place], ...]:
    import torch

    width = into[o].shape[1] // count
    found: list[dict[Kind, Place]] = []
    for head in range(count):
        columns = slice(head * width, (head + 1) * width)
        at_first, at_last = (_reached(into[o][position, columns], out) for position in (0, -1))
        parts: dict[Kind, Place] = {"o": (o, tuple(range(columns.start, columns.stop)))}
        for name, seen in at_last.items():
            v = at_first[name][0] if name in at_first else torch.zeros_like(seen[0])
            k = seen[:-1].any(0) & ~v
            kinds: dict[Kind, Tensor] = {"q": seen[-1] & ~k & ~v, "k": k, "v": v}
            for kind, mask in kinds.items():
                if mask.any():
                    parts[kind] = (name, tuple(mask.nonzero().flatten().tolist()))
        found.append(parts)
    return tuple(found)


def _mlp(
    model: Any, names: Sequence[str], linear: Mapping[str, Any], into: Mapping[str, Tensor]
) -> dict[Kind, Place]:
    """gate, up and down among the linear modules that attention does not use."""
    import torch

    if len(names) < 2:
        return {}
    down = names[-1]
    inner = into[down].shape[1]
    candidates = [
        (name, slice(start, start + inner))
        for name in names[:-1]
        for start in range(0, _outputs(linear[name]), inner)
        if _outputs(linear[name]) in (inner, 2 * inner)
    ]
    found: dict[Kind, Place] = {}
    for name, rows in candidates:

        def double(_module: Any, _args: Any, output: Tensor, rows: slice = rows) -> Tensor:
            output = output.clone()
            output[..., rows] *= 2
            return output

        handle = linear[name].register_forward_hook(double)
        again = _run(model, {down: linear[down]})[1][down]
        handle.remove()
        proportional = torch.allclose(again, 2 * into[down], rtol=1e-9)
        kind: Kind = "up" if proportional or len(candidates) == 1 else "gate"
        found[kind] = (name, tuple(range(rows.start, rows.stop)))
    found["down"] = (down, tuple(range(inner)))
    order: tuple[Kind, ...] = ("gate", "up", "down")
    return {kind: found[kind] for kind in order if kind in found}


def _outputs(module: Any) -> int:
    return int(getattr(module, "out_features", None) or module.nf)


def _after(model: Any, layers: str, block: Any) -> tuple[str, ...]:
    """Modules that run after the layers and before the output layer, at the level of their list."""
    import torch

    owner = layers.rpartition(".")[0]
    ran: list[str] = []
    started = [False]
    handles = [block.register_forward_hook(lambda *_: started.__setitem__(0, True))]
    head = model.get_output_embeddings()
    for name, module in model.get_submodule(owner).named_children():
        if not isinstance(module, torch.nn.ModuleList) and module is not head:

            def note(*_: Any, name: str = name) -> None:
                if started[0]:
                    ran.append(f"{owner}.{name}")

            handles.append(module.register_forward_hook(note))
    model(input_ids=torch.arange(3, 3 + POSITIONS)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return tuple(dict.fromkeys(ran))


def _norms(model: Any, block: Any, q: str, o: str, mlp: Mapping[Kind, Place]) -> tuple[str, str]:
    """The norm through which the MLP alone reads the residual stream, and the norm behind W_O; see ``Adapter``."""
    children = {name: m for name, m in block.named_children() if "norm" in type(m).__name__.lower()}
    _, norm_into, norm_out = _run(model, children)
    _, into, out = _run(
        model, {name: block.get_submodule(name) for name in {q, o, *(n for n, _ in mlp.values())}}
    )

    def same(one: Tensor, other: Tensor) -> bool:
        flat = one.reshape(-1, one.shape[-1]), other.reshape(-1, other.shape[-1])
        return flat[0].shape == flat[1].shape and bool((flat[0] == flat[1]).all())

    behind = next((name for name, value in norm_into.items() if same(value, out[o])), "")
    if not mlp:
        return Adapter.mlp_norm, behind
    reads = into[mlp["up"][0]]
    before = next((name for name, value in norm_out.items() if same(value, reads)), None)
    if before is None:
        return mlp["up"][0].rpartition(".")[0], behind
    return ("" if same(norm_out[before], into[q]) else before), behind


def adapter(found: Map, geometry: Geometry) -> Adapter:
    """The entry of ``components.ADAPTERS`` that a map amounts to.

    Raises:
        UserError: when its q, k and v lie in no layout that an adapter can say.
    """
    first = found.heads[0]
    kinds: tuple[Kind, ...] = ("q", "k", "v", "o")
    modules: dict[Kind, str] = {kind: first[kind][0] for kind in kinds}
    shared = "expert" in found.mlp["down"][0] if found.mlp else True
    experts = "a mixture of experts, which are no matrices of the layer" if shared else ""
    if not shared:
        modules |= {kind: place[0] for kind, place in found.mlp.items()}
        geometry = replace(geometry, mlp=len(found.mlp["down"][1]))
    halves = modules.get("gate") is not None and modules["gate"] == modules.get("up")
    layouts: tuple[Layout, ...] = ("separate", "blocks", "groups")
    for layout in layouts:
        entry = Adapter(
            found.layers, modules, layout, found.transposed, halves, found.after, experts, *found.norms
        )
        if agrees(entry, found, geometry):
            return entry
    raise UserError(
        "the query, key and value weights of this architecture lie in no known order: it cannot be used"
    )


def agrees(entry: Adapter, found: Map, geometry: Geometry) -> bool:
    """Whether an adapter puts every head's q, k, v and o, and the MLP's parts, where they were found."""

    shared = geometry.heads // geometry.kv_heads
    for head, parts in enumerate(found.heads):
        for kind, (module, index) in parts.items():
            own = head // shared if kind in ("k", "v") else head
            if entry.modules.get(kind) != module:
                return False
            if index_of(Component(0, kind, own), entry, geometry) != index:
                return False
    for kind, (module, index) in found.mlp.items():
        if kind in entry.modules:
            expected = index_of(Component(0, kind), entry, geometry) or tuple(range(geometry.mlp))
            if entry.modules[kind] != module or expected != index:
                return False
    return entry.layers == found.layers and entry.transposed == found.transposed


SMALL: dict[str, int] = {
    "vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "head_dim": 8,
    "intermediate_size": 48, "n_inner": 48, "ffn_hidden_size": 48, "ffn_dim": 48, "ffn_intermediate_size": 48,
    "max_position_embeddings": 64, "word_embed_proj_dim": 32, "rotary_dim": 4, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
}  # fmt: skip
"""Sizes of a model that can be differentiated in a moment, where its config has them."""


def shrunk(config: Any) -> Any:
    """A config of the same architecture, of small sizes; query heads still share key heads where they did."""
    text = config.get_text_config()
    said, renamed = text.to_dict(), {own: name for name, own in getattr(text, "attribute_map", {}).items()}
    small: dict[str, Any] = {}
    for own, value in said.items():
        name = renamed.get(own, own)
        if name in SMALL and isinstance(value, int) and not isinstance(value, bool):
            small[own] = SMALL[name]
        elif name in ("num_key_value_heads", "num_kv_heads") and isinstance(value, int):
            small[own] = 4 if value == text.num_attention_heads else 1 if value == 1 else 2
        elif name == "layer_types" and isinstance(value, list):
            small[own] = value[:2]
        elif name.endswith("_token_id"):
            small[own] = None
    return type(text)(**{**said, **small})


def entry_for(folder: Path) -> str:
    """The entry of ``ADAPTERS`` that the architecture of a model folder lacks, as one would write it; or why there is none.

    Derived from a tiny random model of the same config: no weights are read.
    """
    try:
        config = shrunk(read_config(folder))
        found = adapter(derive(tiny(config), layer=1), geometry_of(config))
    except Exception as error:  # an architecture may be of any kind
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"no entry could be derived for it ({why})"
    given = (
        f"{f.name}={getattr(found, f.name)!r}" for f in fields(found) if getattr(found, f.name) != f.default
    )
    return f"the entry that its config leads to, for ADAPTERS: {config.model_type!r}: Adapter({', '.join(given)})"
