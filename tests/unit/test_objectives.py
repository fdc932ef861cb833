"""Objectives against plain loops over prompts in float64, and what is said when a method of one's own fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finetune import ours, some_data

from localized_unlearning import extensions
from localized_unlearning.config.unlearning import Finetune
from localized_unlearning.errors import UserError
from localized_unlearning.models import components
from localized_unlearning.unlearning import finetune, losses, method
from localized_unlearning.unlearning import steps as steps_module

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRAINED = "model.layers.1.mlp.up_proj.weight"
LAYER = 1


def plain(name: str, own: torch.Tensor, base: torch.Tensor, answer: int, h: torch.Tensor) -> torch.Tensor:
    """The loss of one prompt by its definition, from its logits and the base model's ``[token]`` and its state ``[width]``."""
    p, p_base = own.softmax(0)[answer], base.softmax(0)[answer]
    if name == "gradient_ascent":
        return p.log()
    if name == "npo":
        return 2 / 0.3 * torch.log(1 + (p / p_base) ** 0.3)
    if name == "simnpo":
        return -2 / 4.5 * torch.log(torch.sigmoid(4.5 * (-p.log() - 0.1)))
    if name == "undial":
        lowered = base.clone()
        lowered[answer] -= 10
        return -(lowered.softmax(0) * own.log_softmax(0)).sum()
    assert name == "rmu"
    draw = torch.rand(len(h), generator=torch.Generator().manual_seed(7))
    pushed: torch.Tensor = ((h - 3.0 * draw / draw.norm()) ** 2).mean()
    return pushed


def one(model: Any, prompt: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits after a prompt, and the residual stream after :data:`LAYER` at its last token, alone and unpacked."""
    found = model(input_ids=torch.tensor([prompt]), use_cache=False, output_hidden_states=True)
    return found.logits[0, -1], found.hidden_states[LAYER + 1][0, -1]


PARAMETERS: dict[str, dict[str, float]] = {
    "gradient_ascent": {},
    "npo": {"beta": 0.3},
    "simnpo": {"delta": 0.1},
    "undial": {},
    "rmu": {"layer": LAYER, "steering": 3.0},
}


@pytest.mark.parametrize("architecture", ["gemma3", "neox"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_an_objective_is_its_definition(
    name: str, architecture: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches a wrong formula, another prompt's base values, a base that moves with the model, a wrong layer or place.

    Two steps, since in the first the model is the base model.
    """
    model, base, data = tiny(architecture), tiny(architecture), some_data()
    (trained,) = components.trainable(model, [components.Component(0, "up")])
    found = ours(name, **PARAMETERS[name])
    sizes, lambdas = steps_module.Sizes(4, 8, 2, 24), steps_module.Lambdas(0.7, 1.5, 0.0)
    parameter = model.get_parameter(trained).requires_grad_(True)
    steps = steps_module.gradients(model, data, sizes, lambdas, found, seed=7)
    slow = tiny(architecture)
    weight = slow.get_parameter(trained).requires_grad_(True)
    for _ in range(2):
        said = next(steps)
        forget: Any = 0
        retain: Any = 0
        for prompt, answer in data.forget:
            own, h = one(slow, prompt)
            forget = forget + plain(name, own, one(base, prompt)[0].detach(), answer, h) / 4
        for prompt, answer in data.retain:
            own, h = one(slow, prompt)
            far = ((h - one(base, prompt)[1].detach()) ** 2).mean()
            retain = retain + (far if name == "rmu" else -own.log_softmax(0)[answer]) / 8
        (0.7 * forget + 1.5 * retain).backward()
        assert said["forget"] == pytest.approx(forget.item(), rel=1e-9)
        assert said["retain"] == pytest.approx(retain.item(), rel=1e-9, abs=1e-15)
        torch.testing.assert_close(parameter.grad, weight.grad, rtol=1e-7, atol=1e-12)
        assert parameter.grad is not None and weight.grad is not None
        for one_of in (parameter, weight):
            with torch.no_grad():
                one_of -= 3 * one_of.grad
            one_of.grad = None


def test_ce_u_is_erase_without_its_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a claim in the docs that is not so: the gradients of the two are equal."""
    monkeypatch.setattr(losses, "ERASE_FLOOR", -math.inf)
    torch.manual_seed(0)
    logits = torch.randn(5, 11, dtype=torch.float64).mul(3).requires_grad_(True)
    answer = torch.arange(5)
    target = logits.detach().clone()
    target[torch.arange(5), answer] = -math.inf
    ce_u = -(target.softmax(1) * logits.log_softmax(1)).sum(1)
    rest = torch.logsumexp(logits.masked_fill(torch.nn.functional.one_hot(answer, 11).bool(), -math.inf), 1)
    odds = logits[torch.arange(5), answer] - rest
    (wanted,) = torch.autograd.grad(ce_u.sum(), logits)
    (found,) = torch.autograd.grad(losses.erase(odds).sum(), logits)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


def test_repselect_is_its_definition(tiny: Callable[[str], Any], float64: None) -> None:
    """Catches an adversary that stays, a gradient without it, components of one side only, or an update upwards."""
    model, slow, data = tiny("llama"), tiny("llama"), some_data()
    chosen = [components.Component(0, "down"), components.Component(1, "up")]
    settings = Finetune(steps=2, learning_rate=0.4, micro_batch_tokens=24, schedule="constant")
    found = ours("repselect", components=3, rank=2, lora_lr=0.3, batch=3, alpha=4)
    finetune.train(
        model,
        data,
        components.trainable(model, chosen),
        settings,
        steps_module.Lambdas(1, 1, 1),
        found,
        seed=5,
    )

    draw = torch.Generator().manual_seed(5)
    names = list(components.trainable(slow, chosen))
    adapters = []
    for name in names:
        weight = slow.get_parameter(name)
        bound = 1 / math.sqrt(weight.shape[1])
        a = torch.empty(2, weight.shape[1]).uniform_(-bound, bound, generator=draw)
        adapters.append([a.requires_grad_(), torch.zeros(weight.shape[0], 2).requires_grad_()])
    weights = [slow.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def nll(items: list[steps_module.Item]) -> torch.Tensor:
        merged = {n: w + 4 / 2 * b @ a for n, w, (a, b) in zip(names, weights, adapters, strict=True)}
        each = []
        for prompt, answer in items:
            given = {"input_ids": torch.tensor([prompt]), "use_cache": False}
            logits = torch.func.functional_call(slow, merged, kwargs=given).logits[0, -1]
            each.append(-logits.log_softmax(0)[answer])
        return torch.stack(each).mean()

    batches = [data.forget[:3], data.forget[3:]]
    flat = [t for pair in adapters for t in pair]
    for items in batches:
        for t, g in zip(flat, torch.autograd.grad(nll(items), flat), strict=True):
            t.data -= 0.3 * g
    gradients = [torch.autograd.grad(-nll(items), weights) for items in batches]
    for name, *parts in zip(names, *gradients, strict=True):
        g = torch.stack(parts).sum(0)
        u, s, vh = torch.linalg.svd(g)
        for i in range(3):  # the part along each component, divided
            g = g - (1 - s[2] / s[i]) * torch.outer(g @ vh[i], vh[i])
        for i in range(3):
            g = g - (1 - s[2] / s[i]) * torch.outer(u[:, i], u[:, i] @ g)
        wanted = slow.get_parameter(name) - 2 * 0.4 * g
        torch.testing.assert_close(model.get_parameter(name), wanted, rtol=1e-7, atol=1e-9)
        assert not torch.allclose(model.get_parameter(name), slow.get_parameter(name), atol=1e-3)
    assert all(not module._forward_hooks for module in model.modules())


# A method of one's own.


def gradient(model: Any, own: method.Method, lambdas: steps_module.Lambdas) -> torch.Tensor:
    """Gradient of one step's loss by one matrix."""
    parameter = model.get_parameter(TRAINED).requires_grad_(True)
    parameter.grad = None
    next(steps_module.gradients(model, some_data(), steps_module.Sizes(4, 4, 2, 256), lambdas, own, 0))
    gradient: torch.Tensor = parameter.grad.clone()
    return gradient


def test_the_example_climbs_where_cross_entropy_descends(tiny: Callable[[str], Any]) -> None:
    """Catches a loss that is given other prompts than the forget set's, or no hyperparameter."""
    model = tiny("llama")
    named = "examples/gradient_ascent.py:ascend"
    own = method.load(named, EXAMPLES / "gradient_ascent.py", {"scale": 2})
    only_forget = steps_module.Lambdas(1.0, 0.0, 0.0)
    found, wanted = gradient(model, own, only_forget), -2 * gradient(model, ours("inject"), only_forget)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return batch.log_odds.mean()", r"one number per item, .* it is Tensor \[\]"),
        ("return {}", "it is a dict"),
        ("return batch.log_odds.detach()", "has no gradient"),
        ("return batch.log_odds.detach().numpy()", "it is ndarray"),
        ("return batch.log_p / 0", "is -inf for 'item [1-4]'"),
        ("return (batch.log_p + 1).log()", "is nan for 'item [1-4]'"),
        ("return batch.no_such_thing", "AttributeError: .*no_such_thing"),
        ("return batch.hidden(0).sum(1)", "train one at or below it"),  # what is trained is of layer 1
        ("return batch.hidden(99).sum(1)", "layer 99 .* the model has layers 0 to 2"),
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("return None", "it is a NoneType"),
        ("return [0.0] * len(batch.answer)", "it is a list"),
        ("return batch.log_p.double() * 1j", "type torch.complex128"),
        ("return batch.base.log_p", "has no gradient"),
        ("import torch; return torch.zeros(len(batch.answer), requires_grad=True) * 2", "has no gradient"),
        ("return batch.log_p[:-1]", r"one number per item, .* it is Tensor"),
        ("return batch.answers[99]", "IndexError"),
    ],
)
def test_what_cannot_be_descended_on_is_said(
    body: str, said: str, tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """Catches a traceback, a NaN that trains to the end, and a loss that silently has no gradient."""
    path = tmp_path / "mine.py"
    path.write_text(f"def loss(batch):\n    {body}\n")
    own = method.load("mine.py:loss", path, {})
    with pytest.raises(UserError, match=said) as raised:
        gradient(tiny("llama"), own, steps_module.Lambdas(1, 1, 1))
    assert str(raised.value).startswith("mine.py:loss: ") and "\n" not in str(raised.value)
    assert "item" in str(raised.value) and "step 1" in str(raised.value)


def test_a_batch_changed_in_place_is_said(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    """Catches torch's traceback from the backward pass."""
    path = tmp_path / "mine.py"
    path.write_text(
        "def loss(batch):\n    p = batch.log_p.exp()\n    found = p * p\n    p.add_(1)\n    return found\n"
    )
    own = method.load("mine.py:loss", path, {})
    with pytest.raises(UserError, match=r"^mine\.py:loss: the gradient .* in step 1 .*in place"):
        gradient(tiny("llama"), own, steps_module.Lambdas(1, 1, 1))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('x')\n        yield {}", r"gradients\(\) fails in step 1 \(ValueError: x\)"),
        ("yield {'forget': 0.0}", "the losses forget, retain, sft"),
        ("yield 3.0", "the losses forget, retain, sft .* it is 3.0"),
        ("return\n        yield {}", "ends before step 1"),
    ],
)
def test_a_method_that_owns_its_steps_and_fails_is_said(
    body: str, said: str, tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """Catches a traceback of a researcher's own generator."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from localized_unlearning.unlearning.method import Method\n\n\n"
        f"class Mine(Method):\n    def gradients(self, training):\n        {body}\n"
    )
    model, own = tiny("llama"), method.load("mine.py:Mine", path, {})
    trainable = components.trainable(model, [components.Component(1, "up")])
    with pytest.raises(UserError, match=said) as raised:
        finetune.train(
            model, some_data(), trainable, Finetune(steps=2), steps_module.Lambdas(1, 1, 1), own, 0
        )
    assert str(raised.value).startswith("mine.py:Mine: ")


def test_a_gradient_that_is_no_number_stops_training(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    """Catches a finite loss whose gradient is not (a square root at 0), which would write a delta of NaN."""
    path = tmp_path / "mine.py"
    path.write_text("def loss(batch):\n    return (batch.log_p - batch.log_p.detach()).abs().sqrt()\n")
    model, own = tiny("llama"), method.load("mine.py:loss", path, {})
    trainable = components.trainable(model, [components.Component(1, "up")])
    with pytest.raises(
        UserError, match=r"mine\.py:loss: the gradient of step 1 is nan.*first at 'item \d' of the forget"
    ):
        finetune.train(
            model, some_data(), trainable, Finetune(steps=2), steps_module.Lambdas(1, 1, 1), own, 0
        )


def test_the_item_that_spoils_a_gradient_is_named(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    """In a later step, whose base values are remembered; every other item's gradient is a number."""
    path = tmp_path / "mine.py"
    path.write_text(
        "def loss(batch):\n"
        "    bad = batch.log_p.new_tensor([s == 'item 3' and batch.step == 1 for s in batch.subjects])\n"
        "    return batch.log_p - batch.base.log_p + (bad * (batch.log_p - batch.log_p.detach()).abs() + (1 - bad)).sqrt()\n"
    )
    model, own = tiny("llama"), method.load("mine.py:loss", path, {})
    trainable = components.trainable(model, [components.Component(1, "up")])
    with pytest.raises(
        UserError, match=r"the gradient of step 2 is nan.*\(first at 'item 3' of the forget set\)$"
    ):
        finetune.train(
            model, some_data(), trainable, Finetune(steps=2), steps_module.Lambdas(1, 1, 1), own, 0
        )


def test_the_base_model_cannot_be_asked_for_late(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    """Catches values of a model that has moved being taken for the base model's."""
    path = tmp_path / "mine.py"
    path.write_text("def loss(batch):\n    return batch.log_p - (batch.base.log_p if batch.step else 0)\n")
    model, own = tiny("llama"), method.load("mine.py:loss", path, {})
    trainable = components.trainable(model, [components.Component(1, "up")])
    with pytest.raises(UserError, match="read them in every step"):
        finetune.train(
            model, some_data(), trainable, Finetune(steps=2), steps_module.Lambdas(1, 1, 1), own, 0
        )


@pytest.mark.parametrize(
    ("named", "parameters", "said"),
    [
        ("npo", {"bета": 1}, "npo has no hyperparameter 'bета': it has beta"),
        ("rmu", {"layers": 1}, "it has layer, steering"),
        ("erase", {"beta": 1}, "it has none"),
    ],
)
def test_unknown_hyperparameters_are_refused(named: str, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ours(named, **parameters)


def test_every_objective_is_one_short_file() -> None:
    """The promise of the docs: a method is one file, found by its name."""
    for name in extensions.ours(extensions.OBJECTIVES):
        path = extensions.file_of(name, extensions.OBJECTIVES)
        assert path is not None and len(path.read_text(encoding="utf-8").splitlines()) <= 60
        assert ours(name).named == name
