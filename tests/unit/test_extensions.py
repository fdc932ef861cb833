"""A researcher's own loss and score: what they compute, and what is said when they cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune import some_data

from localized_unlearning import extensions
from localized_unlearning.errors import UserError
from localized_unlearning.models import components
from localized_unlearning.unlearning import steps

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def gradient(model: Any, loss: Any, weights: steps.Weights) -> torch.Tensor:
    """Gradient of one step's loss by one matrix."""
    parameter = model.get_parameter("model.layers.0.mlp.up_proj.weight").requires_grad_(True)
    parameter.grad = None
    next(steps.gradients(model, some_data(), steps.Sizes(4, 4, 2, 256), weights, loss, 0))
    return parameter.grad.clone()


def test_the_example_loss_climbs_where_cross_entropy_descends(tiny: Callable[[str], Any]) -> None:
    """Catches a loss that is given other prompts' log-odds than the forget set's, or not asked at all."""
    model = tiny("llama")
    own = extensions.load("examples/gradient_ascent.py:ascend", EXAMPLES / "gradient_ascent.py")
    only_forget = steps.Weights(1.0, 0.0, 0.0)
    found, wanted = gradient(model, own, only_forget), -gradient(model, "inject", only_forget)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, wanted)


def test_the_example_score_is_the_norm(tiny: Callable[[str], Any]) -> None:
    """Catches scores of other components than those asked for, heads among them."""
    model = tiny("gemma")
    score = extensions.load("examples/weight_norm.py:score", EXAMPLES / "weight_norm.py")
    up, head = components.Component(1, "up"), components.Component(0, "q", 1)
    weight = model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    rows = weight.view(model.config.num_attention_heads, -1, weight.shape[1])
    found = score(model, None, [up, head], 64)
    whole = model.get_parameter("model.layers.1.mlp.up_proj.weight")
    assert found == pytest.approx([float(whole.norm()), float(rows[1].norm())])


def test_a_loss_of_the_wrong_shape_is_refused(tiny: Callable[[str], Any]) -> None:
    """Catches a mean in place of one loss a prompt, which would weigh micro-batches instead of prompts."""
    with pytest.raises(UserError, match="one number a prompt"):
        gradient(tiny("llama"), lambda odds: odds.mean(), steps.Weights(1, 1, 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def other(): ...", "no function 'mine'"),
        ("mine = 3", "no function 'mine'"),
        ("import nothing_like_this", "cannot be imported .*nothing_like_this"),
        ("def (", "cannot be imported .SyntaxError"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "method.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        extensions.load("method.py:mine", path)
