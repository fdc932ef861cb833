"""Localization, ours and as TransformerLens would do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import lens
from benchmarks.bench import (
    BATCH_TOKENS,
    PROMPTS,
    Bench,
    Outputs,
    Work,
    bridged,
)
from benchmarks.sports import CHOICES
from localized_unlearning.config.localization import Score
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.localization import attribution_patching, causal_tracing
from localized_unlearning.localization import pairs as pairs_module
from localized_unlearning.models import components
from localized_unlearning.models.components import Component


def pairs_of(bench: Bench, full: int) -> pairs_module.Pairs:
    athletes = bench.athletes(full)
    pairs = list(zip(athletes["subject"], athletes["answer"], strict=True))
    return pairs_module.make_pairs(pairs, load_prompts(PROMPTS)["training"], CHOICES, bench.tokenizer, 0)


def lens_metric(logits: torch.Tensor, answers: Sequence[int], choices: Sequence[int]) -> torch.Tensor:
    last = logits[:, -1, list(choices)].float()
    right = last.gather(1, torch.tensor(answers, device=last.device)[:, None])[:, 0]
    return right - (last.sum(1) - right) / (len(choices) - 1)


def tracing_ours(bench: Bench) -> Work:
    pairs = pairs_of(bench, 8)
    sites = causal_tracing.tracing_sites(bench.model, Score(method="causal_tracing"), [])
    layers = components.geometry_of(bench.model.config).layers
    share = sum((layers - s.layer) / layers for s in sites)
    bench.floor(pairs.clean, passes=2 + share, heads=0)
    return lambda: {
        "score": lens.by_prompt(
            causal_tracing.causal_tracing(bench.model, pairs, sites, 3.0, 0, BATCH_TOKENS)
        )
    }


def tracing_theirs(bench: Bench) -> Work:
    """Prompts of equal length together; for each site a whole forward pass with the noise and the restoration."""
    pairs, bridge = pairs_of(bench, 8), bridged(bench)
    sites = causal_tracing.tracing_sites(bench.model, Score(method="causal_tracing"), [])
    scale = 3.0 * causal_tracing.noise_scale(bench.model)
    width = bench.model.get_input_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    draws = [scale * torch.randn(b - a, width, generator=generator) for a, b in pairs.subject]
    names = [
        f"blocks.{s.layer}." + ("attn.o.hook_in" if s.kind == "o" else "mlp.out.hook_out") for s in sites
    ]

    def work() -> Outputs:
        totals = np.zeros(len(sites))
        for length in sorted(set(map(len, pairs.clean))):
            rows = [i for i, ids in enumerate(pairs.clean) if len(ids) == length]
            tokens = torch.tensor([pairs.clean[i] for i in rows], device=bench.device)
            answers = [pairs.answer[i] for i in rows]

            def noise(value: torch.Tensor, hook: Any, rows: list[int] = rows) -> torch.Tensor:
                value = value.clone()
                for row, i in enumerate(rows):
                    start, stop = pairs.subject[i]
                    value[row, start:stop] += draws[i].to(value)
                return value

            with torch.no_grad():
                logits, cache = bridge.run_with_cache(tokens)
                intact = lens_metric(logits, answers, pairs.choices)
                logits = bridge.run_with_hooks(tokens, fwd_hooks=[("embed.hook_out", noise)])
                noised = lens_metric(logits, answers, pairs.choices)
                for index, (site, name) in enumerate(zip(sites, names, strict=True)):

                    def restore(
                        value: torch.Tensor, hook: Any, site: Any = site, clean: torch.Tensor = cache[name]
                    ) -> torch.Tensor:
                        columns = slice(None) if site.columns is None else list(site.columns)
                        value, shape = value.clone(), value.shape
                        flat = value.view(*shape[:2], -1)
                        flat[..., columns] = clean.view(*shape[:2], -1)[..., columns]
                        return value

                    logits = bridge.run_with_hooks(
                        tokens, fwd_hooks=[("embed.hook_out", noise), (name, restore)]
                    )
                    value = lens_metric(logits, answers, pairs.choices)
                    totals[index] += float(((value - noised) / (intact - noised)).sum())
        return {"score": totals / len(pairs.clean)}

    return work


LENS_HOOKS = {
    "q": "attn.q.hook_out", "k": "attn.k.hook_out", "v": "attn.v.hook_out", "o": "attn.o.hook_in",
    "up": "mlp.in.hook_out", "down": "mlp.out.hook_out",
}  # fmt: skip


def attribution_components(bench: Bench) -> list[Component]:
    layers = components.geometry_of(bench.model.config).layers
    return [Component(layer, kind) for layer in range(layers) for kind in LENS_HOOKS]  # type: ignore[arg-type]


def attribution_ours(bench: Bench) -> Work:
    pairs, found = pairs_of(bench, 24), attribution_components(bench)
    bench.floor(pairs.clean, passes=2, heads=0)
    bench.floor(pairs.corrupt, passes=1, heads=0)
    return lambda: {
        "score": lens.by_prompt(
            attribution_patching.attribution_patching(bench.model, pairs, found, BATCH_TOKENS)
        )
    }


def attribution_theirs(bench: Bench) -> Work:
    """One prompt after another: a cache of the corrupt run, and one of the clean run with its gradients."""
    pairs, bridge, found = pairs_of(bench, 24), bridged(bench), attribution_components(bench)
    names = [f"blocks.{c.layer}.{LENS_HOOKS[c.kind]}" for c in found]

    def work() -> Outputs:
        totals = np.zeros(len(found))
        for clean, corrupt, answer in zip(pairs.clean, pairs.corrupt, pairs.answer, strict=True):
            values: dict[str, torch.Tensor] = {}

            def keep(
                value: torch.Tensor, hook: Any, values: dict[str, torch.Tensor] = values
            ) -> torch.Tensor:
                value = value if value.requires_grad else value.detach().requires_grad_(True)
                value.retain_grad()
                values[hook.name] = value
                return value

            with torch.no_grad():
                logits, cache = bridge.run_with_cache(torch.tensor([corrupt], device=bench.device))
                low = lens_metric(logits, [answer], pairs.choices)
            with torch.enable_grad():
                logits = bridge.run_with_hooks(
                    torch.tensor([clean], device=bench.device), fwd_hooks=[(name, keep) for name in names]
                )
                high = lens_metric(logits, [answer], pairs.choices)
                (high / (high.detach() - low)).sum().backward()
            for index, name in enumerate(names):
                change = (cache[name] - values[name].detach()) * values[name].grad
                totals[index] += float(change.double().sum())
        return {"score": totals / len(pairs.clean)}

    return work
