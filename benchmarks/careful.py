"""What a careful user writes with Hugging Face alone: last logits, sorted left-padded batches, a shared beginning once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from benchmarks.bench import Bench, Outputs, Work
from benchmarks.locating import attribution_components, lens_metric, pairs_of
from localized_unlearning.config.localization import Score
from localized_unlearning.localization import causal_tracing
from localized_unlearning.models import components

SIZE = 16
"""Prompts of a batch."""


def left_padded(
    prompts: Sequence[Sequence[int]], before: int, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and positions of prompts after ``before`` tokens that are cached."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    rows = [[1] * before + [0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    mask = torch.tensor(rows, device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, before:]
    return ids, mask, positions


def last_logits(bench: Bench, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits after each prompt ``[prompt, token]``."""
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == prompts[0][shared] for p in prompts):
        shared += 1
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = torch.empty(len(prompts), bench.model.config.get_text_config().vocab_size)
    with torch.no_grad():
        beginning = torch.tensor([list(prompts[0][:shared])], device=bench.device)
        kept = bench.model(input_ids=beginning, use_cache=True, logits_to_keep=1).past_key_values
        for start in range(0, len(order), SIZE):
            some = order[start : start + SIZE]
            cache = copy.deepcopy(kept)
            cache.batch_repeat_interleave(len(some))
            ids, mask, positions = left_padded([prompts[i][shared:] for i in some], shared, bench.device)
            out = bench.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            found[some] = out.logits[:, -1].float().cpu()
    return found


# ---- localization, by hooks on the modules, prompts of one length together


def by_length(pairs: Any) -> list[list[int]]:
    return [
        [i for i, ids in enumerate(pairs.clean) if len(ids) == length]
        for length in sorted(set(map(len, pairs.clean)))
    ]


def metric(bench: Bench, inputs: torch.Tensor, pairs: Any, rows: Sequence[int]) -> torch.Tensor:
    """The metric of prompts given as embeddings."""
    logits = bench.model(inputs_embeds=inputs, use_cache=False, logits_to_keep=1).logits
    return lens_metric(logits, [pairs.answer[i] for i in rows], pairs.choices)


def tracing(bench: Bench) -> Work:
    """For each site a whole forward pass of the batch, with the noise and the restoration."""
    pairs = pairs_of(bench, 8)
    sites = causal_tracing.tracing_sites(bench.model, Score(method="causal_tracing"), [])
    scale = 3.0 * causal_tracing.noise_scale(bench.model)
    embedding = bench.model.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    draws = [
        scale * torch.randn(b - a, embedding.weight.shape[1], generator=generator) for a, b in pairs.subject
    ]

    def work() -> Outputs:
        totals = np.zeros(len(sites))
        for rows in by_length(pairs):
            intact_inputs = embedding(torch.tensor([pairs.clean[i] for i in rows], device=bench.device))
            noised_inputs = intact_inputs.clone()
            for row, i in enumerate(rows):
                start, stop = pairs.subject[i]
                noised_inputs[row, start:stop] += draws[i].to(noised_inputs)
            kept: dict[tuple[int, str], torch.Tensor] = {}
            with torch.no_grad():
                with ExitStack() as stack:
                    for layer, kind in {(s.layer, s.kind) for s in sites}:

                        def keep(_m: Any, args: Any, key: Any = (layer, kind), kept: Any = kept) -> None:
                            kept[key] = args[0]

                        module = components.module_of(bench.model, layer, kind)  # type: ignore[arg-type]
                        reads = components.reads_input(kind)  # type: ignore[arg-type]
                        hook = (
                            module.register_forward_pre_hook(keep)
                            if reads
                            else module.register_forward_hook(lambda m, a, out, k=keep: k(m, (out,)))
                        )
                        stack.callback(hook.remove)
                    intact = metric(bench, intact_inputs, pairs, rows)
                noised = metric(bench, noised_inputs, pairs, rows)
                for index, site in enumerate(sites):
                    columns = slice(None) if site.columns is None else list(site.columns)
                    clean = kept[site.layer, site.kind]

                    def mended(
                        value: torch.Tensor, columns: Any = columns, clean: torch.Tensor = clean
                    ) -> torch.Tensor:
                        value = value.clone()
                        value[..., columns] = clean[..., columns]
                        return value

                    module = components.module_of(bench.model, site.layer, site.kind)  # type: ignore[arg-type]
                    if components.reads_input(site.kind):  # type: ignore[arg-type]
                        handle = module.register_forward_pre_hook(
                            lambda _m, args, f=mended: (f(args[0]), *args[1:])
                        )
                    else:
                        handle = module.register_forward_hook(lambda _m, _a, out, f=mended: f(out))
                    value = metric(bench, noised_inputs, pairs, rows)
                    handle.remove()
                    totals[index] += float(((value - noised) / (intact - noised)).sum())
        return {"score": totals / len(pairs.clean)}

    return work


def attribution(bench: Bench) -> Work:
    """The corrupt runs of a batch recorded, the clean ones with their gradients."""
    pairs, found = pairs_of(bench, 24), attribution_components(bench)
    embedding = bench.model.get_input_embeddings()

    def recorded(inputs: torch.Tensor, rows: Sequence[int]) -> tuple[torch.Tensor, dict[Any, torch.Tensor]]:
        kept: dict[Any, torch.Tensor] = {}
        with ExitStack() as stack:
            for component in found:

                def keep(value: torch.Tensor, key: Any = component) -> None:
                    if value.requires_grad:
                        value.retain_grad()
                    kept[key] = value

                module = components.module_of(bench.model, component.layer, component.kind)
                if components.reads_input(component.kind):
                    handle = module.register_forward_pre_hook(lambda _m, args, k=keep: k(args[0]))
                else:
                    handle = module.register_forward_hook(lambda _m, _a, out, k=keep: k(out))
                stack.callback(handle.remove)
            return metric(bench, inputs, pairs, rows), kept

    def work() -> Outputs:
        totals = np.zeros(len(found))
        for rows in by_length(pairs):
            clean, corrupt = (
                embedding(torch.tensor([prompts[i] for i in rows], device=bench.device))
                for prompts in (pairs.clean, pairs.corrupt)
            )
            with torch.no_grad():
                low, others = recorded(corrupt, rows)
            with torch.enable_grad():
                high, own = recorded(clean.detach().requires_grad_(True), rows)
                (high / (high.detach() - low)).sum().backward()
            for index, component in enumerate(found):
                gradient = own[component].grad
                assert gradient is not None
                totals[index] += float(
                    ((others[component] - own[component].detach()) * gradient).double().sum()
                )
        return {"score": totals / len(pairs.clean)}

    return work
