"""The output layer in blocks against its definition: all logits at once, and autograd through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from localized_unlearning.models import vocabulary
from tiny_models import VOCABULARY

ITEMS = 9


@pytest.fixture(params=[None, 2.0], ids=["", "capped"])
def case(
    request: pytest.FixtureRequest, tiny: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, float64: None
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A model whose vocabulary takes several blocks, hidden states, and answers at the edges of blocks."""
    monkeypatch.setattr(vocabulary, "BLOCK", 7 * 32)
    model = tiny("gemma3")
    model.config.final_logit_softcapping = request.param
    assert [(b.start, b.stop) for b in vocabulary.blocks(model, ITEMS)][-2:] == [(49, 56), (56, 61)]
    hidden = 3 * torch.randn(ITEMS, 32, generator=torch.Generator().manual_seed(0))
    return model, hidden, torch.tensor([0, 6, 7, 13, 20, 55, 56, VOCABULARY - 1, 7])


def test_logits_are_the_models_own(tiny: Callable[[str], Any], float64: None) -> None:
    """Catches logits without Gemma 2's cap, of which the tiny models have none."""
    model = tiny("gemma3")
    model.config.final_logit_softcapping = 2.0
    ids = torch.tensor([[2, 5, 9]])
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
    slow = model(input_ids=ids, use_cache=False).logits[:, -1]
    assert slow.abs().max() < 2.0
    torch.testing.assert_close(vocabulary.logits_of(model, hidden), slow, rtol=1e-12, atol=1e-12)
    some = vocabulary.logits_of(model, hidden, [7, 60, 0])
    torch.testing.assert_close(some, slow[:, [7, 60, 0]], rtol=1e-12, atol=1e-12)


def test_logits_of_a_bfloat16_model_are_not_rounded_to_bfloat16(tiny: Callable[[str], Any]) -> None:
    """Catches a head that multiplies in the model's type: differences of logits would be lost."""
    model = tiny("llama").bfloat16()
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    slow = hidden.double() @ model.get_output_embeddings().weight.double().T
    for logits, exact in (
        (vocabulary.logits_of(model, hidden), slow),
        (vocabulary.logits_of(model, hidden, [3, 1]), slow[:, [3, 1]]),
    ):
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    odds = vocabulary.log_odds(model, hidden.requires_grad_(True), torch.tensor([3, 1, 0, 5, 60]))
    odds.sum().backward()
    assert odds.dtype == torch.float32
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16


def test_sums_in_blocks_are_sums_over_the_vocabulary(case: tuple[Any, torch.Tensor, torch.Tensor]) -> None:
    """Catches a block that is lost, counted twice or offset, and an argmax that is a place in its block."""
    model, hidden, _ = case
    slow = vocabulary.logits_of(model, hidden)
    argmax, normalizer = vocabulary.argmax_and_normalizer(model, hidden)
    assert argmax.tolist() == slow.argmax(1).tolist() and len(set(argmax.tolist())) > 3
    torch.testing.assert_close(normalizer, slow.logsumexp(1), rtol=1e-12, atol=1e-12)


def test_log_odds_and_their_gradient(case: tuple[Any, torch.Tensor, torch.Tensor]) -> None:
    """Catches an answer that counts among the others, and earlier blocks that are not rescaled."""
    model, hidden, answer = case
    weight = torch.linspace(-1, 2, ITEMS)
    fast, slow = hidden.clone().requires_grad_(True), hidden.clone().requires_grad_(True)
    found = vocabulary.log_odds(model, fast, answer)
    (weight * found).sum().backward()
    logits = vocabulary.logits_of(model, slow)
    mask = torch.nn.functional.one_hot(answer, VOCABULARY).bool()
    exact = logits[mask] - logits.masked_fill(mask, float("-inf")).logsumexp(1)
    (weight * exact).sum().backward()
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(vocabulary.log_odds(model, hidden, answer), exact.detach())


def test_an_output_layer_in_training_is_refused(tiny: Callable[[str], Any]) -> None:
    model = tiny("llama").requires_grad_(True)
    with pytest.raises(ValueError, match="freeze it"):
        vocabulary.log_odds(model, torch.zeros(1, 32), torch.tensor([0]))
