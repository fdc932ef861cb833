"""Precision: what plain bfloat16 rounds away, and the two remedies against float32 training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_finetune import ours, some_data

from localized_unlearning.config.run import Config
from localized_unlearning.config.unlearning import Finetune
from localized_unlearning.models import components
from localized_unlearning.models.components import Component
from localized_unlearning.unlearning import finetune, precision
from localized_unlearning.unlearning import steps as steps_module

RATE = 1e-5


def settings(kind: str, **more: Any) -> Finetune:
    return Finetune.model_validate({"learning_rate": RATE, "precision": kind, **more})


def weights() -> torch.Tensor:
    """Weights of the size of Gemma-7B's: standard deviation 0.02, and the smallest ones too."""
    normal = 0.02 * torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    return torch.cat([normal, torch.linspace(-0.02, 0.02, 10_001)]).bfloat16()


def stepped(
    start: torch.Tensor, kind: str, seed: int = 0, steps: int = 1, decay: float = 0.0
) -> torch.Tensor:
    """``start`` after steps on constant gradients, each of which moves a float32 weight by the learning rate."""
    parameter = start.clone().requires_grad_(True)
    optimizer = precision.adamw([parameter], settings(kind, weight_decay=decay), seed)
    signs = torch.where(torch.arange(len(start)) % 2 == 0, 1.0, -1.0)
    for _ in range(steps):
        parameter.grad = (0.01 * signs).to(start.dtype)
        optimizer.step()
    return parameter.detach()


def test_a_step_rounds_away_where_the_design_says() -> None:
    """Catches a wrong claim: a step of 1e-5 moves no bfloat16 weight above 2^-8 = 0.0039, and all below it."""
    start = weights()
    moved = stepped(start, "bf16") != start
    size = start.float().abs()
    assert not moved[size > 2**-8].any() and (size > 2**-8).float().mean() > 0.8
    assert moved[(size < 2**-8) & (size > 0)].all()
    assert moved.float().mean() < 0.2
    assert (stepped(start, "bf16", steps=50) != start)[
        size > 2**-8
    ].float().mean() == 0  # and never gets there


def test_rounding_at_random_is_right_in_the_mean_and_repeats() -> None:
    """Catches a bias, a neighbour that is not adjacent, values lost that are representable, and global state."""
    generator = torch.Generator().manual_seed(0)
    value = torch.tensor([0.01234, -0.01234, 3.0e-5, -7.7, 1 + 2**-9, 0.0, 0.5])
    draws = torch.stack([precision.round_at_random(value, generator).float() for _ in range(20_000)])
    below = (value.view(torch.int32) & -(1 << 16)).view(torch.float32)
    above = ((value.view(torch.int32) & -(1 << 16)) + (1 << 16)).view(torch.float32)
    assert ((draws == below) | (draws == above)).all()
    spacing = (above - below).abs()
    error = (draws.mean(0) - value).abs()
    assert (error <= 5 * spacing / 2 / 20_000**0.5).all()  # five standard errors at most
    assert (draws[:, -2:] == value[-2:]).all()
    twice = [precision.round_at_random(value, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*twice)


def test_random_rounding_moves_what_plain_bfloat16_cannot() -> None:
    """Catches rounding that is off, a seed that is ignored, and a mean movement other than float32's."""
    start = weights()
    large = start.float().abs() > 2**-8
    after = stepped(start, "bf16_stochastic_rounding", steps=20)
    assert (after != start)[large].float().mean() > 0.5
    signs = torch.where(torch.arange(len(start)) % 2 == 0, -1.0, 1.0)
    movement = ((after.float() - start.float()) * signs)[large]
    assert movement.mean().item() == pytest.approx(20 * RATE, rel=0.03)
    assert torch.equal(after, stepped(start, "bf16_stochastic_rounding", steps=20))
    assert not torch.equal(after, stepped(start, "bf16_stochastic_rounding", seed=1, steps=20))
    assert after.dtype == torch.bfloat16


def test_master_weights_are_float32_training_rounded_once() -> None:
    """Catches a master that is reloaded from its rounded copy, states in bfloat16, and decay on the wrong weight."""
    start = weights()
    parameter = start.clone().requires_grad_(True)
    exact = start.float().requires_grad_(True)
    optimizer = precision.adamw([parameter], settings("fp32_master", weight_decay=0.1), 0)
    reference = torch.optim.AdamW([exact], lr=RATE, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(30):
        parameter.grad = torch.randn(len(start), generator=generator).bfloat16()
        exact.grad = parameter.grad.float()
        optimizer.step()
        reference.step()
        assert torch.equal(parameter, exact.bfloat16())
    assert (parameter != start).float().mean() > 0.5  # plain bfloat16 moves a fifth of them
    assert all(
        state[name].dtype == torch.float32
        for state in optimizer.state.values()
        for name in ("mean", "square")
    )


@pytest.mark.parametrize(
    ("kind", "bytes_each"), [("bf16", 4), ("bf16_stochastic_rounding", 4), ("fp32_master", 12)]
)
def test_states_take_the_bytes_that_are_said(kind: str, bytes_each: int) -> None:
    """Catches a state in the wrong type, which the cost model would not know."""
    parameter = weights().requires_grad_(True)
    optimizer = precision.adamw([parameter], settings(kind), 0)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [v for v in optimizer.state[parameter].values() if v.numel() > 1]
    assert sum(t.numel() * t.element_size() for t in tensors) == bytes_each * parameter.numel()


def test_a_bfloat16_model_trains_as_in_float32(tiny: Callable[[str], Any]) -> None:
    """Catches master weights that do not reach the model: it follows a float32 run; plain bfloat16 stays behind."""
    histories, share = {}, {}
    for kind, dtype in [("fp32_master", torch.float32), ("fp32_master", torch.bfloat16),
                        ("bf16_stochastic_rounding", torch.bfloat16), ("bf16", torch.bfloat16)]:  # fmt: skip
        model = tiny("llama").bfloat16().to(dtype)
        trainable = components.trainable(model, [Component(1, "up"), Component(0, "q", 2)])
        base = {name: model.get_parameter(name).detach().clone() for name in trainable}
        chosen = settings(kind, steps=12, batch_size=8, learning_rate=3e-4, schedule="constant")
        history = finetune.train(
            model, some_data(), trainable, chosen, steps_module.Lambdas(1, 1, 1), ours("inject"), 0
        )
        histories[kind, dtype] = history
        share[kind, dtype] = finetune.moved(model, base, trainable)["share_of_weights_moved"]

    def drop(kind: str, dtype: torch.dtype) -> float:
        total = histories[kind, dtype][["forget", "retain", "sft"]].sum(axis=1)
        return float(total.iloc[0] - total.iloc[-1])

    exact = drop("fp32_master", torch.float32)
    assert drop("fp32_master", torch.bfloat16) == pytest.approx(exact, rel=0.1)
    assert drop("bf16_stochastic_rounding", torch.bfloat16) == pytest.approx(exact, rel=0.25)
    assert share["bf16", torch.bfloat16] < 0.5 * share["bf16_stochastic_rounding", torch.bfloat16]
    with pytest.raises(Exception, match="dtype is float32"):
        Config.model_validate({"finetune": {"precision": "bf16"}})
