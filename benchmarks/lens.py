"""Localization as TransformerLens would do it, prompt by prompt through its hooks: what ours is held against.

Used on real weights by ``benchmarks/parity.py`` and on tiny models by ``tests/unit/test_parity.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from localized_unlearning.config.localization import Score
from localized_unlearning.localization.effects import Effects, combined
from localized_unlearning.localization.pairs import Pairs
from localized_unlearning.models.components import Component

HOOKS = {
    "q": "attn.q.hook_out", "k": "attn.k.hook_out", "v": "attn.v.hook_out", "o": "attn.o.hook_in",
    "up": "mlp.in.hook_out", "gate": "mlp.gate.hook_out", "down": "mlp.out.hook_out",
}  # fmt: skip


def by_prompt(effects: Effects) -> np.ndarray:
    """Our effects as the shares that the functions below give: the mean of each prompt's own."""
    return combined(effects, Score(method="attribution_patching", ratio_over=1))


def hook_of(component: Component) -> str:
    """TransformerLens's name of a component's activation."""
    return f"blocks.{component.layer}.{HOOKS[component.kind]}"


def head_of(component: Component, value: torch.Tensor) -> torch.Tensor:
    """The component's part of an activation; TransformerLens shapes attention ``[prompt, token, head, d]``."""
    return value if component.head is None else value[..., component.head, :]


def metric(bridge: Any, prompt: Sequence[int], answer: int, choices: Sequence[int]) -> torch.Tensor:
    """Right logit minus the mean of the others, from TransformerLens's logits."""
    logits = bridge(torch.tensor([prompt]))[0, -1]
    others = [logits[c] for i, c in enumerate(choices) if i != answer]
    return torch.as_tensor(logits[choices[answer]] - torch.stack(others).mean())


def attribution_patching(bridge: Any, pairs: Pairs, found: Sequence[Component]) -> torch.Tensor:
    """Scores ``[component]``, float64: activations and gradients of both runs kept by hooks."""
    names = {hook_of(c) for c in found}
    scores = torch.zeros(len(found), dtype=torch.float64)
    for clean, corrupt, answer in zip(pairs.clean, pairs.corrupt, pairs.answer, strict=True):
        stores: list[dict[str, torch.Tensor]] = []
        values = []
        for prompt in (clean, corrupt):
            store: dict[str, torch.Tensor] = {}

            def keep(value: torch.Tensor, hook: Any, store: dict[str, torch.Tensor] = store) -> torch.Tensor:
                value = value if value.requires_grad else value.detach().requires_grad_(True)
                value.retain_grad()
                store[hook.name] = value
                return value

            with bridge.hooks(fwd_hooks=[(name, keep) for name in names]):
                values.append(metric(bridge, prompt, answer, pairs.choices))
            stores.append(store)
        (values[0] / (values[0] - values[1]).detach()).backward()
        for index, component in enumerate(found):
            before, after = (store[hook_of(component)] for store in stores)
            assert before.grad is not None
            change = head_of(component, (after - before).detach()).double()
            scores[index] += (change * head_of(component, before.grad).double()).sum() / len(pairs.clean)
    return scores


def causal_tracing(
    bridge: Any, pairs: Pairs, found: Sequence[Component], scale: float, width: int, seed: int
) -> torch.Tensor:
    """Restored shares ``[component]``, float64: a whole forward pass for each, noised and restored by hooks.

    Args:
        bridge: TransformerLens over the model.
        pairs: the prompts.
        found: whole matrices, restored one at a time.
        scale: standard deviation of the noise on the subject's embeddings.
        width: the embeddings' width.
        seed: of the noise, one draw per prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    shares = torch.zeros(len(found), dtype=torch.float64)
    for clean, answer, (start, stop) in zip(pairs.clean, pairs.answer, pairs.subject, strict=True):
        noise = scale * torch.randn(stop - start, width, generator=generator)

        def add(value: torch.Tensor, hook: Any, noise: torch.Tensor = noise, at: int = start) -> torch.Tensor:
            value = value.clone()
            value[0, at : at + len(noise)] += noise.to(value)
            return value

        def restore(_value: torch.Tensor, hook: Any, clean_value: torch.Tensor) -> torch.Tensor:
            return clean_value

        with torch.no_grad():
            _, cache = bridge.run_with_cache(torch.tensor([clean]))
            intact = metric(bridge, clean, answer, pairs.choices)
            with bridge.hooks(fwd_hooks=[("embed.hook_out", add)]):
                noised = metric(bridge, clean, answer, pairs.choices)
            for index, component in enumerate(found):
                back = partial(restore, clean_value=cache[hook_of(component)])
                with bridge.hooks(fwd_hooks=[("embed.hook_out", add), (hook_of(component), back)]):
                    value = metric(bridge, clean, answer, pairs.choices)
                shares[index] += float((value - noised) / (intact - noised)) / len(pairs.clean)
    return shares
