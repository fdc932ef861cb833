"""A researcher's own score, and files that cannot be used: what they compute, and what is said when they cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localized_unlearning import extensions
from localized_unlearning.errors import UserError
from localized_unlearning.models import components

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


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
