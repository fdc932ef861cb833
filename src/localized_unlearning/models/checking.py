"""The check of a base model, before anything is computed with it: what every later number takes for granted.

The weights load exactly as the files say (:func:`models.from_folder`); the tokenizer fits the embedding and keeps a
prompt's tokens when an answer follows it; packed prompts give what each alone gives; and every component is a real
part of its matrix. What was measured is recorded, and stands in the model card.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from localized_unlearning.config.localization import Components
from localized_unlearning.data import tokens
from localized_unlearning.errors import UserError
from localized_unlearning.models import components, loading, packing, sharding, vocabulary
from localized_unlearning.models.components import Component

if TYPE_CHECKING:
    from torch import Tensor


CLOSE = 1e-4
"""Largest difference between packed and plain logits, in standard deviations of a prompt's logits; in float32 it is
about 1e-6, and a wrong mask or position gives tenths."""

TEXT = "In the beginning of the year the town held a market, and people came from far away to see it. "

WINDOW = 8
"""Window of sliding-window layers during the check: the code is the same at any length, and the prompts are short."""


HALF = 0.5
"""The same where weights are in bfloat16, whose rounding alone is hundredths to tenths; a wrong mask gives several."""


def check(model: Any, tokenizer: Any) -> dict[str, Any]:
    """All checks of a loaded model; what was measured.

    Raises:
        UserError: the first thing that does not hold.
    """
    started = time.monotonic()
    found = {
        "architecture": type(model).__name__,
        **check_tokenizer(model, tokenizer),
        **check_packing(model, tokenizer),
        **check_components(model),
    }
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def check_tokenizer(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Refuse a tokenizer that does not belong to the model or changes a prompt when an answer follows.

    Raises:
        UserError: naming what does not fit.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    special = set(tokenizer.all_special_tokens)  # an added one is never in a prompt
    largest = max(index for token, index in tokenizer.get_vocab().items() if token not in special)
    if largest >= rows:
        raise UserError(
            f"the tokenizer has token {largest:,} but the model's embedding {rows:,} rows: "
            "bring the tokenizer of this very model"
        )
    for text in ("Fact: Ada Lovelace plays the sport of", "Question: what is it? Answer:", TEXT.strip()):
        alone, longer = tokens.encode(tokenizer, [text, f"{text} golf"])
        if longer[: len(alone)] != alone:
            raise UserError(
                f"the tokenizer changes the tokens of a prompt when an answer follows it ({text!r}: it ends with "
                f"token {tokenizer.convert_ids_to_tokens(alone[-1])!r} alone): if it adds an end-of-text token, turn "
                "that off in tokenizer_config.json"
            )
    return {"vocabulary": rows, "tokenizer": len(tokenizer), "bos": alone[0] == tokenizer.bos_token_id}


@contextmanager
def short_window(config: Any) -> Iterator[int | None]:
    """The config's sliding window made shorter than the check's prompts; yields the real one."""
    window = packing.window_of(config)
    if window is not None:
        config.sliding_window = min(window, WINDOW)
    try:
        yield window
    finally:
        if window is not None:
            config.sliding_window = window


def probes(tokenizer: Any, limit: int) -> list[list[int]]:
    """A handful of prompts: some share a beginning, one is longer than any window of the check."""
    name = "The quick brown fox"
    texts = [
        f"Fact: {name} lives in",
        f"Fact: {name} lives",
        "Fact: A cat",
        "Fact: A cat lives in",
        "Answer:",
    ]
    long = tokens.encode(tokenizer, [TEXT * 4])[0]
    return [
        ids[:limit] for ids in [*tokens.encode(tokenizer, texts), long[: 6 * WINDOW], [*long[:5], *long[-4:]]]
    ]


def check_packing(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Hold packed prompts against ``model(input_ids)`` of each alone.

    Returns:
        ``packing_difference``: the largest, in standard deviations of the prompt's logits.

    Raises:
        UserError: when it passes :data:`CLOSE` (:data:`HALF`), or the logits are no numbers.
    """
    import torch

    config = model.config.get_text_config()
    limit = loading.context_length(model.config) or 10_000
    worst = 0.0
    with torch.inference_mode(), short_window(config) as window:
        prompts = probes(tokenizer, limit)
        for batch in packing.batches(prompts, model, 4096):
            packed = vocabulary.logits_of(model, packing.last_hidden(model, batch))
            for index, logits in zip(batch.prompts.tolist(), packed, strict=True):
                ids = torch.tensor([prompts[index]], device=model.device)
                plain = model(input_ids=ids, use_cache=False).logits[0, -1].float()
                if not bool(torch.isfinite(plain).all()):
                    raise UserError(
                        "the model's logits are not finite numbers: its weights are damaged, bring them again"
                    )
                worst = max(worst, difference(logits, plain))
    close = CLOSE if model.dtype == torch.float32 else HALF
    if not worst < close:
        raise UserError(
            f"packed prompts do not give what each prompt alone gives on this {config.model_type} (logits differ by "
            f"{worst:.2g} of their deviation): its positions or attention masks are of a kind that is not supported"
        )
    return {"packing_difference": worst, "packing_limit": close, "sliding_window": window}


def difference(packed: Tensor, plain: Tensor) -> float:
    """The largest difference of two sets of logits, in standard deviations of the second."""
    return float((packed - plain).abs().max() / plain.std())


def check_components(model: Any) -> dict[str, Any]:
    """Refuse components that are no real, disjoint parts of the model's matrices.

    In the first and the last layer each component is set to zero in turn, to see that its activation alone changes.

    Raises:
        UserError: naming the component.
    """
    found = {
        grain: components.list_components(model.config, Components(granularity=grain, include_gate=True))
        for grain in ("matrix", "head")
    }
    parameters = sum(p.numel() for p in model.parameters())
    for listed in found.values():
        _tile(model, listed)
        covered = sum(components.size_of(c, model) for c in listed)
        if covered > parameters:
            raise UserError(
                f"the components have {covered:,} parameters, the model {parameters:,}: correct its adapter"
            )
    last = components.geometry_of(model.config).layers - 1
    for component in found["head"]:
        if component.layer in (0, last):
            _acts_alone(model, component)
    return {
        "parameters": parameters,
        "layers": last + 1,
        "matrices": len(found["matrix"]),
        "heads_and_matrices": len(found["head"]),
        "parameters_of_components": covered,
    }


def _tile(model: Any, listed: Sequence[Component]) -> None:
    """Whether components cover their parameters, each place once."""
    taken: dict[str, tuple[int, list[int]]] = {}
    for component in listed:
        part = components.weight_of(component, model.config)
        shape = model.get_parameter(part.parameter).shape
        if len(shape) != 2:
            raise UserError(
                f"component {component} is no matrix ({part.parameter}, {tuple(shape)}): correct the adapter"
            )
        index = range(shape[part.dim]) if part.index is None else part.index
        dim, places = taken.setdefault(part.parameter, (part.dim, []))
        if dim != part.dim or max(index) >= shape[part.dim]:
            raise UserError(f"component {component} lies outside {part.parameter}: correct the adapter")
        places += index
    for name, (dim, places) in taken.items():
        if sorted(places) != list(range(model.get_parameter(name).shape[dim])):
            raise UserError(
                f"the components of {name} overlap or leave a part of it out: correct the adapter"
            )


def _acts_alone(model: Any, component: Component) -> None:
    """Whether setting a component to zero changes its own activation and no other part of its module's."""
    import torch

    part = components.weight_of(component, model.config)
    columns = components.activation_columns(component, model.config)
    module = components.module_of(model, component.layer, component.kind)
    weight = model.get_parameter(part.parameter)
    if sharding.held(weight).shape != weight.shape:
        return  # a model in parts is checked by its rows alone
    changed = weight.detach().clone()
    chosen = torch.arange(changed.shape[part.dim]) if columns is None else torch.tensor(columns)
    changed.index_fill_(part.dim, chosen.to(changed.device), 0)
    inputs = weight.shape[0] if components.adapter_of(model.config).transposed else weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(4, inputs, generator=generator).to(weight)
    with torch.inference_mode():
        before = module(value)
        after = torch.func.functional_call(module, {"weight": changed}, (value,))
        if components.reads_input(component.kind):
            without = value.index_fill(1, chosen.to(value.device), 0)
            alone = torch.allclose(after, module(without), atol=1e-5)
        else:
            moved = (before != after).any(0).nonzero().flatten().tolist()
            alone = set(moved) <= set(chosen.tolist())
        if not alone or torch.equal(before, after):
            raise UserError(
                f"setting component {component} to zero does not change its own activation alone: correct the adapter of "
                f"{model.config.get_text_config().model_type}"
            )
