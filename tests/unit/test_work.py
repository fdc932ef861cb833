"""How much is computed, counted rather than timed: tokens, pairs of attention and operations, against the least there is.

The least is every distinct prefix once through the layers, and attention to its own prefix alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from localized_unlearning.localization import pairs as pairs_module
from localized_unlearning.localization.attribution_patching import attribution_patching
from localized_unlearning.models import components, packing, prefixes
from localized_unlearning.models.components import Component

VOCABULARY = 300


@pytest.fixture(scope="module")
def model() -> Any:
    """A random Llama of four layers."""
    torch.manual_seed(0)
    sizes = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096,
    )  # fmt: skip
    found: Any = transformers.AutoModelForCausalLM.from_config(sizes)
    return found.eval().requires_grad_(False)


@dataclass
class Counted:
    """Tokens of a model's forward passes, padding included, and query-key pairs of one layer's attention."""

    tokens: int = 0
    pairs: int = 0


@contextmanager
def counting(model: Any, patch: pytest.MonkeyPatch) -> Iterator[Counted]:
    found = Counted()
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        found.pairs += query.shape[0] * query.shape[2] * key.shape[2]
        return attention(query, key, *args, **kwargs)

    def entered(_module: Any, args: Sequence[Any]) -> None:
        found.tokens += args[0].shape[0] * args[0].shape[1]

    handle = components.layers_of(model)[0].mlp.up_proj.register_forward_pre_hook(entered)
    with patch.context() as here:
        here.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        yield found
    handle.remove()
    found.pairs //= len(components.layers_of(model))


def least(prompts: Sequence[Sequence[int]]) -> Counted:
    """Every distinct prefix once, each of which attends to its own tokens."""
    distinct = {tuple(p[:n]) for p in prompts for n in range(1, len(p) + 1)}
    return Counted(len(distinct), sum(map(len, distinct)))


def some(rng: random.Random, size: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(size)]


def five_shot() -> list[list[int]]:
    """Three subjects with worked examples of 400 tokens and twelve questions of 60 to 100."""
    rng = random.Random(0)
    subjects = [some(rng, 400) for _ in range(3)]
    return [beginning + some(rng, rng.randint(60, 100)) for beginning in subjects for _ in range(12)]


def test_five_shot_questions_cost_little_more_than_their_tokens(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches worked examples that are run again for every row, and rows that attend to other questions."""
    prompts = five_shot()
    floor = least(prompts)
    with counting(model, monkeypatch) as kept:
        packing.next_token(model, prompts, [1, 2, 3, 4], 4096)
    assert kept.tokens <= 1.35 * floor.tokens
    assert kept.pairs <= 1.6 * floor.pairs
    monkeypatch.setattr(prefixes, "LEAST_PROMPTS", 10**9)
    with counting(model, monkeypatch) as packed:
        packing.next_token(model, prompts, [1, 2, 3, 4], 4096)
    assert packed.pairs > 2 * kept.pairs


def test_attribution_patching_is_two_forward_passes_and_one_backward(model: Any) -> None:
    """Catches gradients of weights, a pass for each component, and padding."""
    rng = random.Random(0)
    beginning, end = some(rng, 14), some(rng, 5)
    clean, corrupt = ([[*beginning, *some(rng, 3), *end] for _ in range(24)] for _ in range(2))
    pairs = pairs_module.Pairs(clean, corrupt, [(14, 17)] * 24, [0] * 24, [5, 6, 7, 8])
    found = [Component(layer, kind) for layer in range(4) for kind in ("q", "o", "up", "down")]
    with FlopCounterMode(display=False) as counter:
        attribution_patching(model, pairs, found, 4096)
    body = 2 * sum(p.numel() for p in components.layers_of(model).parameters() if p.dim() > 1)
    floor = body * (2 * least(clean).tokens + least(corrupt).tokens)
    assert floor <= counter.get_total_flops() <= 1.5 * floor
