"""Localizations of single weights: gradients and scores against plain loops, the choice against sorting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_finetune import ours, some_data

from localized_unlearning import extensions
from localized_unlearning.config.unlearning import Finetune
from localized_unlearning.errors import UserError
from localized_unlearning.localization import weights
from localized_unlearning.models import components
from localized_unlearning.models.components import Component
from localized_unlearning.unlearning import finetune
from localized_unlearning.unlearning.steps import Lambdas

NAMES = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"]


def gradients_of(model: Any, items: Any) -> dict[str, torch.Tensor]:
    """The definition: one prompt at a time, from the model's own logits."""
    for name in NAMES:
        model.get_parameter(name).requires_grad_(True)
    for prompt, answer in items:
        logits = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
        (-logits.log_softmax(0)[answer] / len(items)).backward()
    return {name: model.get_parameter(name).grad for name in NAMES}


def test_gradients_are_those_of_the_mean_loss(tiny: Callable[[str], Any], float64: None) -> None:
    """Catches sums for means, prompts that leak into one another, and gradients left behind."""
    model, data = tiny("gemma3"), some_data()
    found = weights.loss_gradients(model, NAMES, data.retain, tokens=24)
    for name, gradient in gradients_of(tiny("gemma3"), data.retain).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12)
        parameter = model.get_parameter(name)
        assert parameter.grad is None and not parameter.requires_grad


def score_of(name: str, w: float, f: float, r: float) -> float:
    """The definition of our scores, weight by weight."""
    if name == "gradient_magnitude":
        return abs(f)
    if name == "weight_gradient":
        return abs(w * f)
    assert name == "gradient_agreement"
    unlearning = -f  # a step down this gradient raises the forget loss
    return abs(f) if (unlearning > 0) == (r > 0) else -abs(f)


@pytest.mark.parametrize("name", extensions.ours(extensions.WEIGHT_SCORES))
def test_scores_are_their_definition(name: str) -> None:
    """Catches a sign, above all of the agreement between raising the forget and lowering the retain loss."""
    torch.manual_seed(1)
    weight, forget, retain = torch.randn(3, 4, 5, dtype=torch.float64)
    path = extensions.file_of(name, extensions.WEIGHT_SCORES)
    assert path is not None
    method = extensions.load(name, path)
    found = weights.weight_scores(method, name, {}, {"x": (weight, forget, retain)}, {"x": None})["x"]
    for i in range(4):
        for j in range(5):
            wanted = score_of(name, float(weight[i, j]), float(forget[i, j]), float(retain[i, j]))
            assert float(found[i, j]) == pytest.approx(wanted, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_highest_are_taken_and_no_others(data: st.DataObject) -> None:
    """Catches a threshold off by one bit, negative scores in the wrong order, and ties that overshoot."""
    values = st.sampled_from([-2.5, -0.0, 0.0, 1e-38, 1.0, 1.0000001, 3.5, float("-inf")])
    scores = {
        name: torch.tensor(data.draw(st.lists(values, min_size=1, max_size=6)), dtype=torch.float32)
        for name in ("b", "a")
    }
    total = sum(s.numel() for s in scores.values())
    count = data.draw(st.integers(1, total))
    masks = weights.highest(scores, count)
    flat = [(-float(v), i) for i, v in enumerate([*scores["a"].tolist(), *scores["b"].tolist()])]
    wanted = {i for _, i in sorted(flat)[:count]}
    found = {i for i, m in enumerate([*masks["a"].tolist(), *masks["b"].tolist()]) if m}
    assert found == wanted


def test_masks_survive_their_file(tmp_path: Path) -> None:
    masks = {"a": torch.rand(3, 5) > 0.5, "b": torch.rand(7, 2) > 0.5}
    weights.save_masks(tmp_path / "w", masks, "base")
    found = weights.read_masks(tmp_path / "w", "base")
    assert found.keys() == masks.keys() and all(torch.equal(found[n], m) for n, m in masks.items())
    with pytest.raises(UserError, match="another base model"):
        weights.read_masks(tmp_path / "w", "other")
    whole = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        weights.read_masks(tmp_path / "w", "base")


def test_training_moves_the_chosen_weights_alone(tiny: Callable[[str], Any]) -> None:
    """Catches a mask over single weights that AdamW's moments or decay leak out of."""
    model = tiny("llama")
    name = NAMES[0]
    before = model.get_parameter(name).clone()
    mask = torch.zeros_like(before, dtype=torch.bool)
    mask.view(-1)[::7] = True
    given_ = Finetune(steps=3, learning_rate=0.01, weight_decay=0.1)
    finetune.train(model, some_data(), {name: mask}, given_, Lambdas(1, 1, 1), ours("erase"), seed=0)
    moved = model.get_parameter(name) != before
    assert not moved[~mask].any() and moved[mask].float().mean() > 0.9


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return forget.sum()", "one score per weight"),
        ("return forget / 0", "NaN or infinity on x"),
        ("return forget.nothing", "fails on x .AttributeError"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(body: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"def score(weight, forget, retain):\n    {body}\n")
    method = extensions.load("mine.py:score", path)
    three = (torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(UserError, match=said):
        weights.weight_scores(method, "mine.py:score", {}, {"x": three}, {"x": None})


def test_components_bound_what_is_taken(tiny: Callable[[str], Any]) -> None:
    """Catches weights of other heads than those that 'kinds' and granularity allow."""
    allowed = components.trainable(tiny("llama"), [Component(0, "q", 1)])
    ((name, mask),) = allowed.items()
    weight = tiny("llama").get_parameter(name)
    three = (weight, torch.ones_like(weight), torch.ones_like(weight))
    scores = weights.weight_scores(lambda w, f, r: f, "x", {}, {name: three}, allowed)
    taken = weights.highest(scores, int(mask.expand(weight.shape).sum()))[name]
    assert torch.equal(taken, mask.expand(weight.shape))
