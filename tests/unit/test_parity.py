"""Localization scores against TransformerLens: its own hooks, caches and names over the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_localization import some_pairs

from localized_unlearning import components as comp
from localized_unlearning import localization as loc
from localized_unlearning import organism
from localized_unlearning.components import Component
from localized_unlearning.config import Components, Score
from tiny_models import SIZES

HOOKS = {
    "q": "attn.q.hook_out",
    "k": "attn.k.hook_out",
    "v": "attn.v.hook_out",
    "o": "attn.o.hook_in",
    "up": "mlp.in.hook_out",
    "gate": "mlp.gate.hook_out",
    "down": "mlp.out.hook_out",
}


def hook_of(component: Component) -> str:
    """TransformerLens's name of a component's activation."""
    return f"blocks.{component.layer}.{HOOKS[component.kind]}"


def head_of(component: Component, value: torch.Tensor) -> torch.Tensor:
    """The component's part of an activation; TransformerLens shapes attention ``[prompt, token, head, d]``."""
    return value if component.head is None else value[..., component.head, :]


@pytest.fixture(params=["gemma", "gemma3", "llama"])
def bridged(
    request: pytest.FixtureRequest, tiny: Callable[[str], Any], tmp_path: Path, float64: None
) -> tuple[Any, Any]:
    """A tiny model and TransformerLens's bridge over the same module."""
    from transformer_lens.model_bridge import TransformerBridge

    model = tiny(request.param)
    model.save_pretrained(tmp_path)
    organism.train_tokenizer(["a b"], 300).save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    bridge: Any = TransformerBridge.boot_transformers(
        str(tmp_path), hf_model=model, tokenizer=tokenizer, device="cpu", dtype=torch.float64
    )
    return model, bridge


def metric(bridge: Any, tokens: torch.Tensor, answer: int, choices: list[int]) -> torch.Tensor:
    """Right logit minus the mean of the others, from TransformerLens's logits."""
    logits = bridge(tokens)[0, -1]
    others = [logits[c] for i, c in enumerate(choices) if i != answer]
    return logits[choices[answer]] - torch.stack(others).mean()


@pytest.mark.parametrize("granularity", ["matrix", "head"])
def test_attribution_patching_equals_transformer_lens(bridged: tuple[Any, Any], granularity: Any) -> None:
    model, bridge = bridged
    found = comp.list_components(model.config, Components(granularity=granularity, include_gate=True))
    pairs = some_pairs()
    ours = loc.attribution_patching(model, pairs, found, 64)
    names = {hook_of(c) for c in found}
    expected = torch.zeros(len(found), dtype=torch.float64)
    for clean, corrupt, answer in zip(pairs.clean, pairs.corrupt, pairs.answer, strict=True):
        stores: list[dict[str, torch.Tensor]] = []
        values = []
        for prompt in (clean, corrupt):
            store: dict[str, torch.Tensor] = {}

            def keep(value: torch.Tensor, hook: Any, store: dict[str, torch.Tensor] = store) -> torch.Tensor:
                value = value.detach().requires_grad_(True) if not value.requires_grad else value
                value.retain_grad()
                store[hook.name] = value
                return value

            with bridge.hooks(fwd_hooks=[(name, keep) for name in names]):
                values.append(metric(bridge, torch.tensor([prompt]), answer, pairs.choices))
            stores.append(store)
        (values[0] / (values[0] - values[1]).detach()).backward()
        for index, component in enumerate(found):
            before, after = (store[hook_of(component)] for store in stores)
            assert before.grad is not None
            change = head_of(component, (after - before).detach()) * head_of(component, before.grad)
            expected[index] += change.sum() / len(pairs.clean)
    assert torch.allclose(torch.tensor(ours, dtype=torch.float64), expected, rtol=1e-6, atol=1e-9)


def test_causal_tracing_equals_transformer_lens(bridged: tuple[Any, Any]) -> None:
    """Each site's run is a whole forward pass through TransformerLens, with its hooks for noise and restoration."""
    model, bridge = bridged
    found = comp.list_components(model.config, Components())
    sites = loc.tracing_sites(model, Score(method="causal_tracing", sites="matrices"), found)
    pairs = some_pairs()
    ours = loc.causal_tracing(model, pairs, sites, 3.0, 7, 64)
    generator = torch.Generator().manual_seed(7)
    scale = 3.0 * loc.noise_scale(model)
    expected = torch.zeros(len(sites), dtype=torch.float64)
    for clean, answer, (start, stop) in zip(pairs.clean, pairs.answer, pairs.subject, strict=True):
        noise = scale * torch.randn(stop - start, SIZES["hidden_size"], generator=generator).double()

        def add(value: torch.Tensor, hook: Any, noise: torch.Tensor = noise, at: int = start) -> torch.Tensor:
            value = value.clone()
            value[0, at : at + len(noise)] += noise
            return value

        def restore(_value: torch.Tensor, hook: Any, clean_value: torch.Tensor) -> torch.Tensor:
            return clean_value

        tokens = torch.tensor([clean])
        with torch.no_grad():
            _, cache = bridge.run_with_cache(tokens)
            intact = metric(bridge, tokens, answer, pairs.choices)
            with bridge.hooks(fwd_hooks=[("embed.hook_out", add)]):
                noised = metric(bridge, tokens, answer, pairs.choices)
            for index, component in enumerate(found):
                name = hook_of(component)
                back = partial(restore, clean_value=cache[name])
                with bridge.hooks(fwd_hooks=[("embed.hook_out", add), (name, back)]):
                    value = metric(bridge, tokens, answer, pairs.choices)
                expected[index] += (value - noised) / (intact - noised) / len(pairs.clean)
    assert torch.allclose(torch.tensor(ours, dtype=torch.float64), expected, rtol=1e-6, atol=1e-9)
