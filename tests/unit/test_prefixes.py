"""Kept keys and values against a forward pass for each whole prompt."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from localized_unlearning.models import packing, prefixes
from tiny_models import ARCHITECTURES, VOCABULARY


def prompts(count: int = 5, length: int = 70) -> list[list[int]]:
    """Two subjects with long beginnings and a few questions each, one a beginning of another, and two strays."""
    rng = random.Random(3)

    def some(size: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(size)]

    found = [[2, 7], [2, *some(length)]]
    for _ in range(2):
        beginning = [2, *some(length)]
        found += [[*beginning, *some(rng.randint(1, 9))] for _ in range(count)]
        found.append(found[-1] + some(4))
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_separate_passes(
    architecture: str, tiny: Callable[[str], Any], float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches positions that start anew, a window that forgets or sees too much, rows that see one another."""
    model, asked = tiny(architecture), prompts()
    passes: list[int] = []
    original = model.base_model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(kwargs["input_ids"].numel())
        return original(*args, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", counted)
    found = packing.next_token(model, asked, [3, 1, 60], batch_tokens=128)
    assert sum(passes) < 0.6 * sum(map(len, asked))
    monkeypatch.setattr(model.base_model, "forward", original)
    slow = torch.stack([model(input_ids=torch.tensor([p]), use_cache=False).logits[0, -1] for p in asked])
    torch.testing.assert_close(found.candidates, slow[:, [3, 1, 60]], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.log_normalizer, slow.logsumexp(1), rtol=1e-10, atol=1e-10)
    assert found.argmax.tolist() == slow.argmax(1).tolist()


def test_groups_hold_every_prompt_once_and_share_what_they_say() -> None:
    """Catches a prompt that is lost, a beginning that is not shared, and a prompt that is all beginning."""
    asked = prompts()
    found = prefixes.groups(asked)
    assert sorted(i for group in found for i in group.members) == list(range(len(asked)))
    assert [bool(group.length) for group in found] == [True, True, False]
    for group in found[:2]:
        assert group.length >= 70 and len(group.members) == 6
        assert len({tuple(asked[i][: group.length]) for i in group.members}) == 1
        assert all(len(asked[i]) > group.length for i in group.members)
    assert prefixes.groups([[1, 2]] * 9) == [prefixes.Group(0, list(range(9)))]
    assert prefixes.groups([[1] * 80] * 9) == [prefixes.Group(79, list(range(9)))]
    assert prefixes.groups([]) == []
