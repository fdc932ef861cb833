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


@pytest.mark.parametrize(("path", "logits", "slope"), [
    ("float32", 1e-6, 1e-5), ("bfloat16, exact", 1e-6, 1e-4), ("bfloat16, fast", 1e-6, 1e-2),
])  # fmt: skip
@pytest.mark.parametrize("cap", [None, 2.0], ids=["", "capped"])
def test_each_path_is_as_exact_as_it_says(
    path: str,
    logits: float,
    slope: float,
    cap: float | None,
    tiny: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches a GPU's path that loses digits: the norm of the error over that of the exact value, by float64.

    A GPU's product of bfloat16 operands with float32 sums is one of the upcast operands but for the order of its sums.
    """
    model = tiny("llama").bfloat16()
    model.config.final_logit_softcapping = cap
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ITEMS, 32, generator=generator).bfloat16()
    answer = torch.randint(VOCABULARY, (ITEMS,), generator=generator)
    monkeypatch.setattr(vocabulary, "BLOCK", 7 * 32)
    if path != "float32":
        monkeypatch.setattr(
            vocabulary, "has_wide_products", lambda a, b: a.dtype == b.dtype == torch.bfloat16
        )
        monkeypatch.setattr(vocabulary, "wide_product", lambda a, b: a.float() @ b.float())
        kept = "highest" if path.endswith("exact") else "high"
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: kept)
    exact_hidden = hidden.double().requires_grad_(True)
    exact = exact_hidden @ model.get_output_embeddings().weight.double().T
    exact = exact if cap is None else cap * torch.tanh(exact / cap)
    mask = torch.nn.functional.one_hot(answer, VOCABULARY).bool()
    odds = exact[mask] - exact.masked_fill(mask, float("-inf")).logsumexp(1)
    odds.sum().backward()

    def error(found: torch.Tensor, wanted: Any) -> float:
        assert found.dtype == torch.float32
        return float((found.double() - wanted).norm() / wanted.norm())

    value, gradient = vocabulary._log_odds(model, hidden, answer, graded=True)
    assert gradient is not None
    assert error(vocabulary.logits_of(model, hidden), exact.detach()) < logits
    assert error(value, odds.detach()) < 10 * logits
    assert error(gradient, exact_hidden.grad) < slope
    if path.endswith("fast"):
        assert error(gradient, exact_hidden.grad) > 1e-4  # else there would be nothing to choose
    _, normalizer = vocabulary.argmax_and_normalizer(model, hidden)
    assert error(normalizer, exact.detach().logsumexp(1)) < logits


def test_blocks_on_a_gpu_fit_its_free_memory() -> None:
    """Catches blocks that a full card cannot hold, and ones so small that launching them costs more than they do."""
    sizes = [vocabulary.fitting(int(gb * 1e9)) for gb in (0.1, 1, 4, 20, 100)]
    assert sizes == sorted(sizes) and sizes[0] == vocabulary.BLOCK and sizes[-1] == vocabulary.MOST
    assert all(
        size * vocabulary.EACH <= gb * 5e8 for size, gb in zip(sizes[1:], (1, 4, 20, 100), strict=True)
    )
    assert vocabulary.fitting(4_000_000_000) == vocabulary.fitting(4_001_000_000)


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
