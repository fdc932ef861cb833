"""Packed prompts against their definition: one forward pass, or one backward pass, per prompt."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from localized_unlearning.models import packing
from localized_unlearning.models.vocabulary import logits_of
from tiny_models import ARCHITECTURES, VOCABULARY, WINDOW


def prompts_with_shared_beginnings() -> list[list[int]]:
    """Prompts in random order that branch at every depth, one a prefix of another, one twice."""
    rng = random.Random(1)
    found = [[2, 7, 7, 9], [2, 7, 7, 9, 11], [2, 7, 7, 9], [5], [2]]
    for _ in range(12):
        parent = rng.choice(found)
        found.append(
            parent[: rng.randint(1, len(parent))]
            + [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 9))]
        )
    rng.shuffle(found)
    assert max(map(len, found)) > 2 * WINDOW
    return found


def alone(model: Any, prompt: list[int]) -> torch.Tensor:
    """The slow definition: logits after one prompt, from a forward pass of its own."""
    logits: torch.Tensor = model(input_ids=torch.tensor([prompt]), use_cache=False).logits
    return logits[0, -1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("row_tokens", [512, 20])
def test_packed_logits_are_those_of_separate_passes(
    architecture: str, row_tokens: int, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches leaks between branches, wrong positions, padding, window or soft cap."""
    model, prompts = tiny(architecture), prompts_with_shared_beginnings()
    seen = []
    for batch in packing.batches(prompts, model, batch_tokens=50, row_tokens=row_tokens):
        logits = logits_of(model, packing.last_hidden(model, batch))
        for row, index in zip(logits, batch.prompts.tolist(), strict=True):
            torch.testing.assert_close(row, alone(model, prompts[index]), rtol=1e-10, atol=1e-10)
            seen.append(index)
    assert sorted(seen) == list(range(len(prompts)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masks_for_eager_attention_are_additive(
    architecture: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches a boolean mask that is added to the scores as 0 and 1; the other tests run on fused kernels."""
    fused, eager = tiny(architecture), tiny(architecture)
    if getattr(fused.config, "attn_logit_softcapping", None):
        pytest.skip(
            "soft-capped scores have no fused kernel: transformers runs this architecture eagerly alone"
        )
    assert fused.config._attn_implementation == "sdpa"
    eager.set_attn_implementation("eager")
    first, second = (
        packing.next_token(model, prompts_with_shared_beginnings(), [3, 60], 50) for model in (fused, eager)
    )
    torch.testing.assert_close(first.candidates, second.candidates, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_next_token_is_in_the_order_of_the_prompts(
    architecture: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches scores that land at another prompt's place, and a wrong argmax or normaliser."""
    model, prompts = tiny(architecture), prompts_with_shared_beginnings()
    found = packing.next_token(model, prompts, [3, 1, 60], batch_tokens=40)
    slow = torch.stack([alone(model, p) for p in prompts])
    torch.testing.assert_close(found.candidates, slow[:, [3, 1, 60]], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.log_normalizer, slow.logsumexp(1), rtol=1e-10, atol=1e-10)
    assert found.argmax.tolist() == slow.argmax(1).tolist()


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "mistral"])
def test_the_window_is_tested_at_all(architecture: str, tiny: Callable[[str], Any], float64: None) -> None:
    """The equality above would say nothing of the window if the window did not move the logits."""
    model, prompt = tiny(architecture), max(prompts_with_shared_beginnings(), key=len)
    narrow = alone(model, prompt)
    model.config.sliding_window = 128
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 128
    assert (narrow - alone(model, prompt)).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_gradients_are_those_of_separate_passes(
    architecture: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches a shared prefix whose gradient is counted once, or one cut by the mask."""
    prompts = prompts_with_shared_beginnings()
    packed, slow = tiny(architecture).requires_grad_(True), tiny(architecture).requires_grad_(True)
    answer = torch.arange(len(prompts)) % VOCABULARY
    for batch in packing.batches(prompts, packed, batch_tokens=60, row_tokens=30):
        logits = logits_of(packed, packing.last_hidden(packed, batch))
        torch.nn.functional.cross_entropy(logits, answer[batch.prompts], reduction="sum").backward()
    for prompt, target in zip(prompts, answer, strict=True):
        torch.nn.functional.cross_entropy(alone(slow, prompt), target).backward()
    for (name, fast), parameter in zip(packed.named_parameters(), slow.parameters(), strict=True):
        assert parameter.grad is not None and fast.grad is not None, name
        largest = parameter.grad.abs().max().item()
        torch.testing.assert_close(
            fast.grad, parameter.grad, rtol=1e-9, atol=1e-11 * max(largest, 1.0), msg=name
        )


def test_rows_hold_the_long_beginning_of_many_prompts_once(tiny: Callable[[str], Any]) -> None:
    """Catches rows as short as a prompt with its worked examples, which would share nothing."""
    model = tiny("llama")
    prompts = [[*range(2, 60)] * 3 + [index] for index in range(20)]
    (batch,) = packing.batches(prompts, model, batch_tokens=4096)
    assert batch.inputs["input_ids"].shape == (1, 58 * 3 + 20)
    assert len(packing.batches(prompts, model, batch_tokens=180)) == 4


def test_prompts_share_no_more_than_they_are_told_to() -> None:
    """Catches equal tokens after the shared beginning in one node: a change to one prompt would reach others."""
    prompts = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4], [1, 2]]
    (p,) = packing.pack(prompts, 100, shared=2)
    assert len(p.tokens) == 2 + 2 + 2 + 2
    paths = dict(zip(p.prompts.tolist(), p.paths, strict=True))
    assert all(paths[i][:2] == (0, 1) for i in range(4))
    assert len({node for i in range(3) for node in paths[i][2:]}) == 6
    assert all([int(p.tokens[n]) for n in paths[i]] == prompts[i] for i in range(4))
    assert [len(p.tokens) for p in packing.pack(prompts, 4, shared=2)] == [4, 4, 4]


TOKENS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=20)


@settings(max_examples=150, deadline=None)
@given(prompts=TOKENS, max_tokens=st.integers(1, 30), window=st.none() | st.integers(1, 5))
def test_packs_spell_every_prompt_once(prompts: list[list[int]], max_tokens: int, window: int | None) -> None:
    """Catches lost, doubled or misspelt prompts, packs over the limit, and a mask that is not the path."""
    packs = packing.pack(prompts, max_tokens)
    assert Counter(int(i) for p in packs for i in p.prompts) == Counter(range(len(prompts)))
    for p in packs:
        assert len(p.tokens) <= max_tokens or len(p.prompts) == 1
        prefixes = {tuple(prompts[i][:end]) for i in p.prompts for end in range(1, len(prompts[i]) + 1)}
        assert len(p.tokens) == len(prefixes)  # every shared prefix is computed once
        visible = p.visible(window)
        for index, last, path in zip(p.prompts, p.last, p.paths, strict=True):
            assert [int(p.tokens[node]) for node in path] == prompts[index]
            assert [int(p.depth[node]) for node in path] == list(range(len(path)))
            assert path[-1] == last
            for position, node in enumerate(path):
                first = 0 if window is None else max(0, position - window + 1)
                assert set(visible[node].nonzero()[0]) == set(path[first : position + 1])
