"""Probes and ablations against what they must find where the answer is known."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from localized_unlearning import components as comp
from localized_unlearning import interpretability, probing
from tiny_models import ARCHITECTURES, VOCABULARY

LAYERS, ATHLETES, HIDDEN, PLANTED = 4, 240, 12, 2


@pytest.fixture
def planted() -> tuple[np.ndarray, np.ndarray]:
    """Activations that are noise but in one layer, where three directions name the sport."""
    rng = np.random.default_rng(0)
    sports = rng.integers(0, 3, ATHLETES)
    activations = rng.normal(size=(LAYERS, ATHLETES, HIDDEN)).astype(np.float32)
    activations[PLANTED, :, :3] += 12 * np.eye(3, dtype=np.float32)[sports]
    return activations, sports


def test_the_planted_layer_is_found_and_the_control_finds_nothing(
    planted: tuple[np.ndarray, np.ndarray],
) -> None:
    activations, sports = planted
    train, test = slice(0, 160), slice(160, ATHLETES)
    shuffled = np.random.default_rng(1).permutation(sports[train])
    for labels, expected in ((sports[train], {PLANTED}), (shuffled, set())):
        right = probing.all_right(activations[:, train], labels, activations[:, test], sports[test], 1.0, 2)
        assert {i for i, row in enumerate(right) if row.mean() > 0.95} == expected
        assert all(row.mean() < 0.5 for i, row in enumerate(right) if i not in expected)


@pytest.mark.parametrize("jobs", [1, 3])
def test_all_right_is_three_scikit_learn_probes_that_agree(
    planted: tuple[np.ndarray, np.ndarray], jobs: int
) -> None:
    activations, sports = planted
    train, test = activations[:, :160], activations[:, 160:]
    found = probing.all_right(train, sports[:160], test, sports[160:], 0.5, jobs)
    for layer in range(LAYERS):
        scaler = StandardScaler().fit(train[layer])
        right = np.ones(ATHLETES - 160, dtype=bool)
        for sport in range(3):
            one = LogisticRegression(C=0.5, max_iter=1000).fit(
                scaler.transform(train[layer]), sports[:160] == sport
            )
            right &= one.predict(scaler.transform(test[layer])) == (sports[160:] == sport)
        assert np.array_equal(found[layer], right)


def split_of(forget_in_both: bool) -> pd.DataFrame:
    forget = np.arange(40) < 16
    train = np.arange(40) % 4 != 0
    table = pd.DataFrame({"forget": forget, "train": train, "test": ~train})
    if forget_in_both:
        table.loc[forget, ["train", "test"]] = True
    return table


def test_parts_follow_the_paper() -> None:
    """Sports keep the task's own parts; sixteen named athletes are halved; nobody is in both (A.4.3)."""
    sports = split_of(False)
    train, test = probing.probe_parts(sports, 0)
    assert np.array_equal(train, sports["train"]) and np.array_equal(test, sports["test"])
    named = split_of(True)
    train, test = probing.probe_parts(named, 0)
    forget = named["forget"].to_numpy()
    assert (train ^ test).all()
    assert train[forget].sum() == test[forget].sum() == 8
    assert np.array_equal(train[~forget], named["train"][~forget])
    assert not np.array_equal(train, probing.probe_parts(named, 1)[0])
    assert named.equals(split_of(True))


PROMPTS = [[2, 5, 9, 11], [2, 5, 7, 7, 3], [2, 8, VOCABULARY - 1]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_residuals_are_the_hidden_states(tiny: Callable[[str], Any], name: str) -> None:
    model = tiny(name)
    found = probing.residuals(model, PROMPTS, 64)
    for row, prompt in enumerate(PROMPTS):
        states: list[torch.Tensor] = []
        with ExitStack() as stack, torch.no_grad():
            for layer in comp.layers_of(model):
                hook = layer.register_forward_hook(lambda _m, _a, out, to=states: to.append(out))
                stack.callback(hook.remove)
            model(torch.tensor([prompt]))
        last = [(s[0] if isinstance(s, tuple) else s)[0, -1] for s in states]
        assert np.allclose(found[:, row], torch.stack(last), atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_heads_own_activation_changes_nothing_and_another_changes_only_its_columns(
    tiny: Callable[[str], Any], name: str
) -> None:
    model = tiny(name)
    prompt = torch.tensor([[7]])  # one position: its activation is its own mean
    geometry = comp.geometry_of(model.config)
    means = interpretability.mean_head_outputs(model, prompt, range(geometry.layers))
    with torch.no_grad():
        base = model(prompt).logits
        seen: list[torch.Tensor] = []
        for layer in range(geometry.layers):
            module = comp.module_of(model, layer, "o")
            for head in range(geometry.heads):
                own = means[layer]
                with interpretability.head_replaced(model, layer, head, own):
                    assert torch.allclose(model(prompt).logits, base, atol=1e-5)
                handle = None
                with interpretability.head_replaced(model, layer, head, own + 1):
                    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0, 0]))
                    changed = model(prompt).logits
                    handle.remove()
                moved = (seen.pop() - own).abs() > 0.5
                width = geometry.head_dim
                assert moved.nonzero()[:, 0].tolist() == list(range(head * width, (head + 1) * width))
                assert not torch.allclose(changed, base, atol=1e-5)
        assert torch.equal(model(prompt).logits, base)


def test_attention_replaced_by_its_own_mean_changes_nothing(tiny: Callable[[str], Any]) -> None:
    model = tiny("gemma")
    prompt = torch.tensor([[7]])
    means = interpretability.mean_attention_outputs(model, prompt, 1)
    assert set(means) == {1, 2}
    with torch.no_grad():
        base = model(prompt).logits
        with interpretability.attention_replaced(model, means):
            assert torch.allclose(model(prompt).logits, base, atol=1e-5)
        with interpretability.attention_replaced(model, {1: means[1] + 1}):
            assert not torch.allclose(model(prompt).logits, base, atol=1e-5)
