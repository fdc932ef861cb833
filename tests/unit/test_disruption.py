"""Equal disruption: the divergence by its definition, and the search for the strongest rate within a budget."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch

from localized_unlearning.unlearning import disruption

if TYPE_CHECKING:
    from tiny_base import TinyBase

NAMES = ["model.layers.1.mlp.down_proj.weight"]


def shifted(model: torch.nn.Module, size: float) -> torch.nn.Module:
    """A copy whose trained matrix is ``size`` off."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(NAMES[0]).add_(size)
    return other


def test_divergence_is_kl_of_the_base_from_the_model(tiny_base: TinyBase) -> None:
    """Against torch's own, so that a swapped direction or a sum over positions shows."""
    windows = torch.randint(3, 200, (3, 7), generator=torch.Generator().manual_seed(0))
    base, other = tiny_base.fresh(), shifted(tiny_base.model, 0.2)
    kept = disruption.next_token_log_probabilities(base, windows)
    found = disruption.divergence(kept, other, windows)
    with torch.no_grad():
        p, q = (m(windows).logits.double().log_softmax(-1).flatten(0, 1) for m in (base, other))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    assert found == pytest.approx(float(expected), rel=1e-4)
    assert disruption.divergence(kept, base, windows) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("budget", "kept", "tries"), [(1e9, 0.4, 1), (None, 0.1, 3), (1e-12, 0.05, 4)])
def test_the_largest_rate_within_the_budget_is_kept(
    tiny_base: TinyBase, budget: float | None, kept: float, tries: int
) -> None:
    """Catches a search that trains on from the last try, keeps the first rate, or calls a miss a hit."""
    windows = torch.randint(3, 200, (3, 7), generator=torch.Generator().manual_seed(0))
    model, rates = tiny_base.fresh(), (0.05, 0.1, 0.2, 0.4)
    if budget is None:  # just above what .1 costs
        base = disruption.next_token_log_probabilities(model, windows)
        budget = 1.01 * disruption.divergence(base, shifted(model, 0.1), windows)

    def train(rate: float) -> float:
        with torch.no_grad():
            model.get_parameter(NAMES[0]).add_(rate)
        return rate

    found, tried = disruption.strongest(
        model, NAMES, rates, budget, disruption.text_divergence(tiny_base.model, windows), train
    )
    assert found == kept and len(tried) == tries
    assert tried[-1].within == (budget > 1e-12)
    moved = model.get_parameter(NAMES[0]) - tiny_base.model.get_parameter(NAMES[0])
    assert torch.allclose(moved, torch.full_like(moved, kept), atol=1e-6)


def test_what_retained_facts_lose(tiny_base: TinyBase) -> None:
    """Against the definition: a softmax over the candidates, one forward pass per prompt."""
    prompts = [[2, 5, 9], [2, 7, 8, 11, 30]]
    asked = [disruption.Question(prompts, [40, 41, 42], [0, 2])]
    other = shifted(tiny_base.model, 0.2)
    with torch.no_grad():
        p = [
            [
                float(m(torch.tensor([prompt])).logits[0, -1, [40, 41, 42]].double().softmax(-1)[right])
                for prompt, right in zip(prompts, [0, 2], strict=True)
            ]
            for m in (tiny_base.model, other)
        ]
    cost = disruption.retained_loss(tiny_base.model, asked, 4096)
    assert cost(other) == pytest.approx(sum(p[0]) / 2 - sum(p[1]) / 2, abs=1e-5)
