"""Relearning: LoRA starts as nothing, moves only itself, is off-dropout when asked, and is what peft merges."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

import architectures
from localized_unlearning.attacks import adapters, relearning
from localized_unlearning.config.evaluation import Relearning
from localized_unlearning.unlearning.steps import Data
from tiny_models import VOCABULARY

SETTINGS = Relearning(iterations=3, rank=4, dropout=0.3, learning_rate=0.02, retain_batch=2, text_batch=2)
PROMPTS = torch.randint(10, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def data() -> Data:
    def items(seed: int, count: int) -> list[tuple[list[int], int]]:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(10, VOCABULARY, (count, 8), generator=generator).tolist()
        return [(row[:-1], row[-1]) for row in rows]

    text = torch.randint(10, VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(3))
    return Data(items(1, 2), items(2, 6), text)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(PROMPTS).logits
    return found


def relearned(
    model: Any, data: Data, settings: Relearning = SETTINGS, seed: int = 5
) -> list[dict[str, float]]:
    adapters = relearning.add_lora(model, settings, seed)
    return list(relearning.relearn(model, adapters, data, settings, seed))


@pytest.mark.parametrize("name", ["gemma", "gemma3", "neox"])
def test_adapters_start_as_nothing_and_leave_the_output_layer(tiny: Callable[[str], Any], name: str) -> None:
    model = tiny(name).float()
    before = logits(model)
    linear = sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    adapters = relearning.add_lora(model, SETTINGS, 0)
    relearning.dropout(model, False)
    assert torch.equal(logits(model), before)
    assert len(adapters) == 2 * (linear - 1)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in adapters}


def test_only_the_adapters_move(tiny: Callable[[str], Any], data: Data) -> None:
    model = tiny("gemma").float()
    base = copy.deepcopy(model)
    losses = relearned(model, data)
    assert losses[-1]["forget"] < losses[0]["forget"]
    kept = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if "lora_" not in name}
    assert kept.keys() == dict(base.named_parameters()).keys()
    assert all(torch.equal(p, kept[name]) for name, p in base.named_parameters())
    assert not torch.equal(logits(model), logits(base))


def test_a_seed_repeats_and_the_global_generator_is_left_alone(
    tiny: Callable[[str], Any], data: Data
) -> None:
    before = torch.get_rng_state()
    first, again, other = (tiny("gemma").float() for _ in range(3))
    relearned(first, data)
    torch.rand(3)
    relearned(again, data)
    relearned(other, data, seed=6)
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))
    torch.set_rng_state(before)
    relearned(tiny("gemma").float(), data)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_on_while_training_and_off_while_answering(tiny: Callable[[str], Any], data: Data) -> None:
    with_dropout, without = tiny("gemma").float(), tiny("gemma").float()
    relearned(with_dropout, data)
    relearned(without, data, SETTINGS.model_copy(update={"dropout": 0.0}))
    assert not torch.equal(logits(with_dropout), logits(without))
    assert torch.equal(logits(with_dropout), logits(with_dropout))


def test_the_relearned_model_is_what_peft_merges(
    tiny: Callable[[str], Any], data: Data, float64: None
) -> None:
    model = tiny("gemma3")
    relearned(model, data)
    apart = logits(model)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    assert torch.allclose(logits(model), apart, atol=1e-9)


@pytest.mark.parametrize("name", ["gemma3", "gpt_neox", "gpt2"])
def test_folded_adapters_answer_as_adapters_do_and_leave_every_bit(
    data: Data, float64: None, name: str
) -> None:
    model = architectures.build(name)
    relearned(model, data)
    apart, before = logits(model), copy.deepcopy(model.state_dict())
    with adapters.folded(model):
        assert not torch.equal(logits(model), apart)  # another way to compute it
        assert torch.allclose(logits(model), apart, atol=1e-9)
    assert torch.equal(logits(model), apart)
    assert all(torch.equal(p, before[key]) for key, p in model.state_dict().items())


def test_adapters_of_a_rounded_model_are_not_folded(tiny: Callable[[str], Any], data: Data) -> None:
    model = tiny("gemma").bfloat16()
    relearned(model, data)
    apart = logits(model)
    with adapters.folded(model):
        assert torch.equal(logits(model), apart)
