"""Localization scores against TransformerLens: its own hooks, caches and names over the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from benchmarks import lens
from test_localization import some_pairs

from localized_unlearning.config.localization import Components, Score
from localized_unlearning.localization import attribution_patching, causal_tracing
from localized_unlearning.models import components, organism
from tiny_models import SIZES


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


@pytest.mark.parametrize("granularity", ["matrix", "head"])
def test_attribution_patching_equals_transformer_lens(bridged: tuple[Any, Any], granularity: Any) -> None:
    model, bridge = bridged
    found = components.list_components(model.config, Components(granularity=granularity, include_gate=True))
    pairs = some_pairs()
    ours = attribution_patching.attribution_patching(model, pairs, found, 64)
    expected = lens.attribution_patching(bridge, pairs, found)
    assert torch.allclose(torch.from_numpy(lens.by_prompt(ours)), expected, rtol=1e-6, atol=1e-9)


def test_causal_tracing_equals_transformer_lens(bridged: tuple[Any, Any]) -> None:
    """Each site's run is a whole forward pass through TransformerLens, with its hooks for noise and restoration."""
    model, bridge = bridged
    found = components.list_components(model.config, Components())
    sites = causal_tracing.tracing_sites(model, Score(method="causal_tracing", sites="matrices"), found)
    pairs = some_pairs()
    ours = causal_tracing.causal_tracing(model, pairs, sites, 3.0, 7, 64)
    scale = 3.0 * causal_tracing.noise_scale(model)
    expected = lens.causal_tracing(bridge, pairs, found, scale, SIZES["hidden_size"], 7)
    assert torch.allclose(torch.from_numpy(lens.by_prompt(ours)), expected, rtol=1e-6, atol=1e-9)
