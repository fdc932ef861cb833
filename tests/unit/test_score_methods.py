"""Ways to score components: exact patching and integrated gradients against one prompt at a time, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_localization import activation, logit_difference, patched, place, some_pairs

from localized_unlearning import extensions
from localized_unlearning.config.localization import Components, Score
from localized_unlearning.errors import UserError
from localized_unlearning.localization.attribution_patching import attribution_patching
from localized_unlearning.localization.calling import called
from localized_unlearning.localization.causal_tracing import causal_tracing, tracing_sites
from localized_unlearning.localization.effects import Effects, combined
from localized_unlearning.models import components
from localized_unlearning.models.activations import Site
from localized_unlearning.models.components import Component


def ours(name: str) -> Callable[..., Effects]:
    """One of our methods, loaded as a job does."""
    path = extensions.file_of(name, extensions.SCORES)
    assert path is not None
    return extensions.load(name, path)


def some(model: Any, granularity: Any, count: int = 14) -> list[Component]:
    """Some components in mixed order."""
    found = components.list_components(
        model.config, Components(granularity=granularity, include_gate=not hasattr(model, "gpt_neox"))
    )
    return random.Random(0).sample(found, count)


@pytest.mark.parametrize("architecture", ["gemma3", "neox"])
@pytest.mark.parametrize("granularity", ["matrix", "head"])
def test_exact_patching_is_the_patched_run(
    architecture: str, granularity: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches a restart at the wrong layer, noise in place of the corrupt run, and a wrong sign."""
    model, pairs = tiny(architecture), some_pairs()
    found = some(model, granularity)
    effects = ours("activation_patching")(model, pairs, found, 60)
    with torch.no_grad():
        for i, (prompt, other) in enumerate(zip(pairs.clean, pairs.corrupt, strict=True)):
            clean = float(logit_difference(model, prompt, pairs.answer[i], pairs.choices))
            low = float(logit_difference(model, other, pairs.answer[i], pairs.choices))
            assert effects.differences[i] == pytest.approx(clean - low, rel=1e-8)
            for j, c in enumerate(found):
                wanted = patched(model, c, pairs, i, activation(model, c, other)) - clean
                assert effects.values[i, j] == pytest.approx(wanted, rel=1e-7, abs=1e-9)


def test_a_block_is_restored_as_a_whole(tiny: Callable[[str], Any], float64: None) -> None:
    """Catches an attention layer that is the sum of its heads, each restored alone."""
    model, pairs = tiny("llama"), some_pairs()
    settings = Score(method="causal_tracing", sites="blocks")
    sites = tracing_sites(model, settings, [])
    assert [s.unit for s in sites] == [f"{i}.{part}" for i in range(3) for part in ("attn", "mlp")]
    whole = causal_tracing(model, pairs, sites, 3.0, 0, 60).values
    heads = tracing_sites(model, settings.model_copy(update={"sites": "units"}), [])
    summed = causal_tracing(model, pairs, heads, 3.0, 0, 60).values
    assert not np.allclose(whole[:, 0], summed[:, :4].sum(1))
    one = [Site(0, "o", tuple(range(model.config.hidden_size)), "x")]
    np.testing.assert_allclose(causal_tracing(model, pairs, one, 3.0, 0, 60).values[:, 0], whole[:, 0])


def slow_integral(model: Any, pairs: Any, i: int, c: Component, points: int) -> float:
    """The definition for one prompt and component: gradients at embeddings between corrupt and clean, by plain hooks."""
    embedding = model.get_input_embeddings()
    start = embedding(torch.tensor([pairs.corrupt[i]]))
    end = embedding(torch.tensor([pairs.clean[i]]))
    change = activation(model, c, pairs.corrupt[i]) - activation(model, c, pairs.clean[i])
    total = 0.0
    for k in range(1, points + 1):
        store: list[torch.Tensor] = []
        module, reads_input, view = place(model, c)
        with ExitStack() as stack:
            if reads_input:
                handle = module.register_forward_pre_hook(lambda _m, args, s=store: s.append(args[0]))
            else:
                handle = module.register_forward_hook(lambda _m, _a, out, s=store: s.append(out))
            stack.callback(handle.remove)
            inputs = (start + k / points * (end - start)).detach().requires_grad_(True)
            logits = model(inputs_embeds=inputs, use_cache=False).logits[0, -1]
        others = [logits[t] for n, t in enumerate(pairs.choices) if n != pairs.answer[i]]
        value = logits[pairs.choices[pairs.answer[i]]] - torch.stack(others).mean()
        (gradient,) = torch.autograd.grad(value, store[0])
        total += float((change * view(gradient)).sum()) / points
    return total


@pytest.mark.parametrize("architecture", ["gemma3", "neox"])
def test_integrated_gradients_are_the_mean_over_points(
    architecture: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches points that leave out an end, a path of activations in place of inputs, and heads that share a gradient."""
    model, pairs = tiny(architecture), some_pairs()
    found = some(model, "head", 8)
    effects = ours("integrated_gradients")(model, pairs, found, 40, points=3)
    for i in range(len(pairs.clean)):
        for j, c in enumerate(found):
            wanted = slow_integral(model, pairs, i, c, 3)
            assert effects.values[i, j] == pytest.approx(wanted, rel=1e-7, abs=1e-9)


def test_one_point_is_attribution_patching(tiny: Callable[[str], Any], float64: None) -> None:
    model, pairs = tiny("llama"), some_pairs()
    found = some(model, "matrix")
    one = ours("integrated_gradients")(model, pairs, found, 40, points=1)
    plain = attribution_patching(model, pairs, found, 40)
    np.testing.assert_allclose(one.values, plain.values, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.differences, plain.differences, rtol=1e-9)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [float('nan')] * len(components)", "scores 0.attn.q nan"),
        ("return [1.0] * (len(components) - 1) + [float('-inf')]", "scores 1.mlp.up -inf"),
        ("return {c: 1.0 for c in components}", "must give one number per component, 2 .* gives dict"),
        ("return [[1.0, 2.0] for c in components]", "must give one number per component"),
        ("return [1.0]", "but gives 1"),
        ("return None", "gives NoneType"),
        ("raise KeyError('x')", "fails on the components 0.attn.q and on .KeyError: 'x'"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(
    body: str, said: str, tiny: Callable[[str], Any], tmp_path: Path
) -> None:
    """Catches an arbitrary selection made from NaN, and a traceback in place of a sentence."""
    path = tmp_path / "mine.py"
    path.write_text(f"def score(model, pairs, components, batch_tokens):\n    {body}\n")
    method = extensions.load("mine.py:score", path)
    found = [Component(0, "q"), Component(1, "up")]
    with pytest.raises(UserError, match=said) as raised:
        called(method, Score(method="mine.py:score"), tiny("llama"), some_pairs(), found, 60)
    assert str(raised.value).startswith("mine.py:score ") and "\n" not in str(raised.value)


def test_a_method_takes_its_settings_and_no_others(tiny: Callable[[str], Any]) -> None:
    model, pairs, found = tiny("llama"), some_pairs(), [Component(0, "q")]
    settings = Score(method="integrated_gradients", parameters={"points": 2})
    scores, effects = called(ours("integrated_gradients"), settings, model, pairs, found, 60)
    assert effects is not None and scores == pytest.approx(list(combined(effects, settings)))
    with pytest.raises(UserError, match="integrated_gradients has no hyperparameter 'steps': it has points"):
        wrong = Score(method="integrated_gradients", parameters={"steps": 2})
        called(ours("integrated_gradients"), wrong, model, pairs, found, 60)


def test_every_method_is_one_short_file() -> None:
    for folder in (extensions.SCORES, extensions.WEIGHT_SCORES):
        for name in extensions.ours(folder):
            path = extensions.file_of(name, folder)
            assert path is not None and len(path.read_text(encoding="utf-8").splitlines()) <= 60
