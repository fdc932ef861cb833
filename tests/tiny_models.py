"""Shared by all tests: tiny random models of every supported architecture, and true float64 arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

torch.set_num_threads(1)

VOCABULARY = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
}
WINDOW = 4
"""Sliding window of the tiny Gemma 2, Gemma 3 and Mistral, shorter than the tests' prompts."""

CONFIGS: dict[str, Callable[[], Any]] = {
    "gemma": lambda: transformers.GemmaConfig(**SIZES, num_key_value_heads=4, head_dim=12),
    "gemma2": lambda: transformers.Gemma2Config(
        **{**SIZES, "num_hidden_layers": 4},
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 4},
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
    ),
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    "mistral": lambda: transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=WINDOW),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "neox": lambda: transformers.GPTNeoXConfig(**{**SIZES, "rotary_pct": 0.25}),
}
ARCHITECTURES = tuple(CONFIGS)


@pytest.fixture(scope="session")
def _originals() -> dict[str, Any]:
    models = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config()).double().eval().requires_grad_(False)
        for parameter in model.parameters():  # norms and biases too: their defaults hide faults
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        models[name] = model
    return models


@pytest.fixture
def tiny(_originals: dict[str, Any]) -> Callable[[str], Any]:
    """A fresh copy, in float64, of the tiny random model of an architecture."""
    return lambda name: copy.deepcopy(_originals[name])


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, also where the package and transformers go to float32 (logits, norms).

    A fast path can then be held to its slow definition within float64 rounding.
    """

    def norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        normed: torch.Tensor = self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)
        return normed

    softmax = torch.nn.functional.softmax

    def softmax64(value: torch.Tensor, *args: Any, dtype: Any = None, **kwargs: Any) -> torch.Tensor:
        return softmax(value, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "softmax", softmax64)  # eager attention's is in float32
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    for each in (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(each, "forward", norm)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
