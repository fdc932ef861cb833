"""Localizations against their slow definitions, written here with plain hooks and whole-model runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from localized_unlearning.config.localization import Components, Localization, Score
from localized_unlearning.config.run import Config
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.localization import (
    attribution_patching,
    causal_tracing,
    scoring,
    selecting,
    selection,
    units,
)
from localized_unlearning.localization import effects as effects_module
from localized_unlearning.localization import pairs as pairs_module
from localized_unlearning.models import components as components_module
from localized_unlearning.models.components import Component
from localized_unlearning.models.organism import train_tokenizer
from sports import CHOICES
from tiny_base import TinyBase
from tiny_models import ARCHITECTURES, VOCABULARY

pytestmark = pytest.mark.slow  # all of its tests together

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "published"


def some_pairs() -> pairs_module.Pairs:
    """Five pairs of two lengths, in mixed order, with subjects in the middle."""
    rng = random.Random(3)
    clean, corrupt, subject = [], [], []
    for length in (7, 9, 7, 9, 9):
        prompt = [2, 8] + [rng.randrange(10, VOCABULARY) for _ in range(length - 2)]
        other = list(prompt)
        other[3:5] = [rng.randrange(10, VOCABULARY) for _ in range(2)]
        clean.append(prompt)
        corrupt.append(other)
        subject.append((3, 5))
    return pairs_module.Pairs(clean, corrupt, subject, [0, 1, 2, 0, 1], [4, 5, 6, 7])


def logit_difference(model: Any, prompt: list[int], answer: int, choices: list[int]) -> torch.Tensor:
    """The metric's definition, for one prompt, from the model's own logits."""
    logits: torch.Tensor = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
    others = [logits[c] for i, c in enumerate(choices) if i != answer]
    return logits[choices[answer]] - torch.stack(others).mean()


def place(model: Any, component: Component) -> tuple[Any, bool, Callable[[torch.Tensor], torch.Tensor]]:
    """Module, whether its input counts, and a view of the component's part, by the architecture's layout."""
    config, head = model.config, component.head
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if hasattr(model, "gpt_neox"):
        layer = model.gpt_neox.layers[component.layer]
        module = {
            "o": layer.attention.dense,
            "up": layer.mlp.dense_h_to_4h,
            "down": layer.mlp.dense_4h_to_h,
        }.get(component.kind, layer.attention.query_key_value)
        if component.kind in "qkv":
            part = "qkv".index(component.kind)

            def fused(value: torch.Tensor) -> torch.Tensor:
                split = value.view(*value.shape[:-1], -1, 3, width)[..., part, :]
                return split if head is None else split[..., head, :]

            return module, False, fused
    else:
        layer = model.model.layers[component.layer]
        where = layer.self_attn if component.kind in "qkvo" else layer.mlp
        module = getattr(where, f"{component.kind}_proj")

    def view(value: torch.Tensor) -> torch.Tensor:
        return value if head is None else value.view(*value.shape[:-1], -1, width)[..., head, :]

    return module, component.kind == "o", view


def record(stack: ExitStack, model: Any, component: Component, store: list[torch.Tensor]) -> None:
    """Append the component's activation to ``store`` in each run."""
    module, reads_input, view = place(model, component)
    if reads_input:
        handle = module.register_forward_pre_hook(lambda _m, args: store.append(view(args[0]).clone()))
    else:
        handle = module.register_forward_hook(lambda _m, _a, output: store.append(view(output).clone()))
    stack.callback(handle.remove)


def replace(stack: ExitStack, model: Any, component: Component, value: torch.Tensor) -> None:
    """Put ``value`` in the place of the component's activation in each run."""
    module, reads_input, view = place(model, component)

    def put(current: torch.Tensor) -> torch.Tensor:
        current = current.clone()
        view(current).copy_(value)
        return current

    if reads_input:
        handle = module.register_forward_pre_hook(lambda _m, args: (put(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda _m, _a, output: put(output))
    stack.callback(handle.remove)


def activation(model: Any, component: Component, prompt: list[int]) -> torch.Tensor:
    store: list[torch.Tensor] = []
    with ExitStack() as stack:
        record(stack, model, component, store)
        model(input_ids=torch.tensor([prompt]), use_cache=False)
    return store[0]


def patched(
    model: Any, component: Component, pairs: pairs_module.Pairs, index: int, value: torch.Tensor
) -> float:
    """The metric of a clean prompt whose component has the activation ``value``."""
    with ExitStack() as stack:
        replace(stack, model, component, value)
        return float(logit_difference(model, pairs.clean[index], pairs.answer[index], pairs.choices))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("granularity", ["matrix", "head"])
def test_attribution_is_the_derivative_of_patching(
    architecture: str, granularity: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches a gradient on the wrong run, a wrong slice (fused, grouped heads), a sign, and another prompt's effect."""
    model, pairs = tiny(architecture), some_pairs()
    found = components_module.list_components(
        model.config, Components(granularity=granularity, include_gate=True)
    )
    random.Random(0).shuffle(found)
    found = found[:24]
    effects = attribution_patching.attribution_patching(model, pairs, found, batch_tokens=20)
    with torch.no_grad():
        scales = [
            float(logit_difference(model, c, a, pairs.choices) - logit_difference(model, d, a, pairs.choices))
            for c, d, a in zip(pairs.clean, pairs.corrupt, pairs.answer, strict=True)
        ]
        assert effects.differences == pytest.approx(scales, rel=1e-9)
        for component, scores in zip(found, effects.values.T, strict=True):
            for index, score in enumerate(scores):
                clean = activation(model, component, pairs.clean[index])
                step = activation(model, component, pairs.corrupt[index]) - clean
                value = {
                    t: patched(model, component, pairs, index, clean + t * 1e-3 * step)
                    for t in (-2, -1, 1, 2)
                }
                slope = (8 * (value[1] - value[-1]) - (value[2] - value[-2])) / 12e-3
                assert score == pytest.approx(slope, rel=1e-6, abs=1e-7), str(component)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attribution_is_patching_itself_for_close_pairs(
    architecture: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches a reversed direction: the corrupt prompts are made near copies of the clean ones."""
    model, pairs = tiny(architecture), some_pairs()
    pairs = pairs_module.Pairs(
        pairs.clean[:1], [list(pairs.clean[0])], pairs.subject[:1], pairs.answer[:1], pairs.choices
    )
    pairs.corrupt[0][3] = 9  # a token used nowhere else
    table = model.get_input_embeddings().weight
    table[9] = table[pairs.clean[0][3]] + 1e-6 * torch.randn(
        table.shape[1], generator=torch.Generator().manual_seed(0)
    )
    found = components_module.list_components(model.config, Components())
    scores = attribution_patching.attribution_patching(model, pairs, found, batch_tokens=100).values[0]
    with torch.no_grad():
        before, after = (
            logit_difference(model, p, pairs.answer[0], pairs.choices)
            for p in (pairs.clean[0], pairs.corrupt[0])
        )
        for component, score in zip(found, scores, strict=True):
            exact = patched(model, component, pairs, 0, activation(model, component, pairs.corrupt[0]))
            size = abs(float(before - after))
            assert score == pytest.approx(exact - float(before), rel=1e-3, abs=1e-4 * size), str(component)


def traced_slowly(
    model: Any, pairs: pairs_module.Pairs, sites: list[Component], noise: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Causal tracing by its definition: two whole runs per prompt, and one for each site.

    What each site brings back ``[prompt, site]``, and what the noise took ``[prompt]``.
    """
    generator = torch.Generator().manual_seed(seed)
    embedding = model.get_input_embeddings()
    back, lost = np.zeros((len(pairs.clean), len(sites))), np.zeros(len(pairs.clean))
    scale = noise * embedding(torch.arange(embedding.weight.shape[0])).std()
    asked = zip(pairs.clean, pairs.subject, pairs.answer, strict=True)
    for number, (prompt, (start, stop), answer) in enumerate(asked):
        draw = scale * torch.randn(stop - start, embedding.weight.shape[1], generator=generator)
        clean = logit_difference(model, prompt, answer, pairs.choices)

        def corrupt(_m: Any, _a: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[:, start:stop] += draw  # noqa: B023
            return output

        for index, site in enumerate(sites):
            value = activation(model, site, prompt)
            with ExitStack() as stack:
                stack.callback(embedding.register_forward_hook(corrupt).remove)
                noised = logit_difference(model, prompt, answer, pairs.choices)
                replace(stack, model, site, value)
                restored = logit_difference(model, prompt, answer, pairs.choices)
            back[number, index], lost[number] = float(restored - noised), float(clean - noised)
    return back, lost


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("granularity", ["matrix", "head"])
def test_causal_tracing_restarts_exactly(
    architecture: str, granularity: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches a restart from the wrong state or layer, noise elsewhere or drawn anew, a wrong head."""
    model, pairs = tiny(architecture), some_pairs()
    found = components_module.list_components(model.config, Components(granularity=granularity))
    if granularity == "head":
        found = random.Random(1).sample(found, 16)
    sites = causal_tracing.tracing_sites(model, Score(method="causal_tracing", sites="matrices"), found)
    fast = causal_tracing.causal_tracing(model, pairs, sites, noise=1.5, seed=4, batch_tokens=20)
    with torch.no_grad():
        slow = traced_slowly(model, pairs, found, noise=1.5, seed=4)
    for found_values, expected_values in zip((fast.values, fast.differences), slow, strict=True):
        assert found_values == pytest.approx(expected_values, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_mlps_input_as_a_site_is_the_residual_stream_for_the_mlp_alone(
    architecture: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches a patch that goes past the MLP too, and the norm's output taken for its input."""
    model, pairs = tiny(architecture), some_pairs()
    found = [Component(1, "up"), Component(1, "down")]
    norm = "pre_feedforward_layernorm" if architecture in ("gemma2", "gemma3") else "post_attention_layernorm"
    module = components_module.layers_of(model)[1].get_submodule(norm)

    def run(prompt: list[int], value: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []

        def hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(args[0])
            return args if value is None else (value, *args[1:])

        handle = module.register_forward_pre_hook(hook)
        found = logit_difference(model, prompt, pairs.answer[0], pairs.choices)
        handle.remove()
        return found, seen[0]

    one = pairs_module.Pairs(
        pairs.clean[:1], pairs.corrupt[:1], pairs.subject[:1], pairs.answer[:1], pairs.choices
    )
    effects = attribution_patching.attribution_patching(model, one, found, 100, mlp_input=True)
    with torch.no_grad():
        _, clean = run(one.clean[0])
        _, corrupt = run(one.corrupt[0])
        step = corrupt - clean
        value = {t: float(run(one.clean[0], clean + t * 1e-3 * step)[0]) for t in (-2, -1, 1, 2)}
    slope = (8 * (value[1] - value[-1]) - (value[2] - value[-2])) / 12e-3
    assert effects.values[0, 0] == pytest.approx(slope, rel=1e-6, abs=1e-8)
    own = attribution_patching.attribution_patching(model, one, found, 100)
    assert own.values[0, 0] != pytest.approx(slope, rel=1e-3)
    assert own.values[0, 1] == pytest.approx(effects.values[0, 1], rel=1e-12)

    settings = Score(method="causal_tracing", sites="matrices", mlp_input="residual")
    traced = causal_tracing.causal_tracing(
        model, one, causal_tracing.tracing_sites(model, settings, found), 1.0, 0, 100
    )
    embedding = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, embedding.weight.shape[1], generator=generator) * causal_tracing.noise_scale(model)

    def noise(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, 3:5] += draw
        return output

    with torch.no_grad(), ExitStack() as stack:
        stack.callback(embedding.register_forward_hook(noise).remove)
        noised, restored = run(one.clean[0])[0], run(one.clean[0], clean)[0]
    assert traced.values[0, 0] == pytest.approx(float(restored - noised), rel=1e-8, abs=1e-9)


def test_the_mlps_input_is_no_site_of_units() -> None:
    with pytest.raises(ValueError, match="set sites to matrices"):
        Score(method="causal_tracing", mlp_input="residual")


def test_scores_are_ratios_of_sums_unless_asked_otherwise() -> None:
    """One prompt whose difference is nearly 0 decides the mean of ratios, and next to nothing of the ratio of sums."""
    values = np.array([[1.0, 0.1], [1.2, -0.1], [0.0, 0.3]])
    effects = effects_module.Effects(values, np.array([2.0, 2.2, -0.01]))

    def scores(**settings: Any) -> list[float]:
        return list(effects_module.combined(effects, Score(method="attribution_patching", **settings)))

    assert scores() == pytest.approx([2.2 / 4.19, 0.3 / 4.19])
    each = (values / effects.differences[:, None]).mean(0)
    assert scores(ratio_over=1) == pytest.approx(list(each)) and abs(each[1]) > 9
    assert scores(ratio_over=2) == pytest.approx([(2.2 / 4.2 + 0) / 2, (0.0 / 4.2 + 0.3 / -0.01) / 2])
    assert scores(aggregate="absolute") == pytest.approx([2.2 / 4.19, 0.5 / 4.19])
    assert effects_module.degenerate(effects.differences) == {
        "pairs": 3, "not_positive": 1, "below_a_tenth_of_the_median": 0
    }  # fmt: skip
    assert effects_module.degenerate(np.array([1.0, 1.0, 0.09]))["below_a_tenth_of_the_median"] == 1
    with pytest.raises(UserError, match="no component can be scored"):
        effects_module.combined(
            effects_module.Effects(values, np.zeros(3)), Score(method="attribution_patching")
        )


@pytest.mark.parametrize("architecture", ["gemma3", "neox"])
def test_tracing_units_are_every_query_head_and_every_mlp(
    architecture: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches units that follow the key-value heads, and an MLP that is restored past its output matrix."""
    model, pairs = tiny(architecture), some_pairs()
    sites = causal_tracing.tracing_sites(model, Score(method="causal_tracing"), [])
    layers = range(model.config.num_hidden_layers)
    expected = [c for i in layers for c in [*(Component(i, "o", h) for h in range(4)), Component(i, "down")]]
    assert [s.unit for s in sites] == [f"{c.layer}.{'attn' if c.kind == 'o' else 'mlp'}" for c in expected]
    fast = causal_tracing.causal_tracing(model, pairs, sites, noise=1.0, seed=0, batch_tokens=100)
    with torch.no_grad():
        slow = traced_slowly(model, pairs, expected, noise=1.0, seed=0)
    for found_values, expected_values in zip((fast.values, fast.differences), slow, strict=True):
        assert found_values == pytest.approx(expected_values, rel=1e-8, abs=1e-9)


def test_hooks_are_gone_afterwards(tiny: Callable[[str], Any], float64: None) -> None:
    """Catches a hook left behind, which would patch every later forward pass."""
    model, pairs = tiny("llama"), some_pairs()
    before = logit_difference(model, pairs.clean[0], 0, pairs.choices)
    found = components_module.list_components(model.config, Components())
    attribution_patching.attribution_patching(model, pairs, found, 100)
    causal_tracing.causal_tracing(
        model, pairs, causal_tracing.tracing_sites(model, Score(method="causal_tracing"), found), 1.0, 0, 100
    )
    assert torch.equal(logit_difference(model, pairs.clean[0], 0, pairs.choices), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# Components: what the slices mean in the architecture itself.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_head_slice_is_that_head(architecture: str, tiny: Callable[[str], Any], float64: None) -> None:
    """Catches rows of another head or kind: a head without q or k attends evenly, without v it is silent."""
    for kind in ("q", "k", "v"):
        model = tiny(architecture)
        model.set_attn_implementation("eager")
        for name, parameter in model.named_parameters():
            if name.endswith(("query_key_value.bias", "_proj.bias")):
                parameter.zero_()
        geometry = components_module.geometry_of(model.config)
        group = 1 if kind == "q" else geometry.heads // geometry.kv_heads
        part = components_module.weight_of(Component(1, kind, 1), model.config)
        assert part.dim == 0 and part.index is not None
        model.get_parameter(part.parameter)[list(part.index)] = 0
        mixed: list[torch.Tensor] = []
        with ExitStack() as stack, torch.no_grad():
            record(stack, model, Component(1, "o"), mixed)
            attention = model(
                input_ids=torch.tensor([[2, 9, 30]]), use_cache=False, output_attentions=True
            ).attentions[1]
        heads = mixed[0].view(3, geometry.heads, geometry.head_dim)
        even = torch.tensor([1 / 3, 1 / 3, 1 / 3])
        for head in range(geometry.heads):
            hit = head // group == 1
            if kind == "v":
                assert (heads[:, head].abs().max() == 0) == hit, head
            else:
                assert ((attention[0, head, 2] - even).abs().max() < 1e-6) == hit, (kind, head)


def test_gemma_7b_has_the_papers_components() -> None:
    """Catches a changed count: 168 matrices, 1848 by head (section 2.3), 9 of them the budget."""
    config = transformers.GemmaConfig()
    matrices = components_module.list_components(config, Components())
    assert (len(matrices), components_module.budget(len(matrices), 0.05)) == (168, 9)
    assert len(components_module.list_components(config, Components(granularity="head"))) == 1848
    assert [components_module.parse(str(c)) for c in matrices] == matrices


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_head_slices_partition_the_matrix(architecture: str, tiny: Callable[[str], Any]) -> None:
    """Catches overlapping or missing rows: all heads of a kind are the kind's matrix."""
    model = tiny(architecture)
    heads = components_module.list_components(model.config, Components(granularity="head"))
    matrices = components_module.list_components(model.config, Components())
    assert sum(components_module.size_of(c, model) for c in heads) == sum(
        components_module.size_of(c, model) for c in matrices
    )
    masks = components_module.trainable(model, heads)
    assert masks == dict.fromkeys(components_module.trainable(model, matrices)) and all(
        m is None for m in masks.values()
    )
    for kind in ("q", "k", "v", "o"):
        whole = components_module.trainable(model, [Component(0, kind)])
        parts = components_module.trainable(model, [c for c in heads if (c.layer, c.kind) == (0, kind)])
        for name, mask in whole.items():
            assert (mask is None and parts[name] is None) or torch.equal(mask, parts[name])


# Selection.


def published(name: str) -> pd.DataFrame:
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: the published scores are not part of the repository")
    return pd.read_csv(path)


PLACES = {
    "attn.q": "attn.q",
    "attn.k": "attn.k",
    "attn.v": "attn.v",
    "attn.result": "attn.o",
    "mlp.in": "mlp.up",
    "mlp.out": "mlp.down",
}


def test_selects_the_published_nine_matrices() -> None:
    """Catches selection by signed score, by another rounding or from the small end."""
    table = published("paper_ap_168_components.csv")
    table["component"] = [
        f"{layer}.{PLACES[c]}" for layer, c in zip(table["layer"], table["component"], strict=True)
    ]
    scores = table.assign(unit=table["component"], score=table["signed_score"])
    found = components_module.list_components(transformers.GemmaConfig(), Components())
    assert set(scores["component"]) == {str(c) for c in found}
    localization = Localization(label="X", kind="scores", scores="x")
    chosen = selecting.choose(localization, found, {}, scores, None)
    assert len(chosen) == 9 and set(chosen) == set(table.loc[table["selected_top5pct"], "component"])


def test_selects_the_published_three_units_as_ten_matrices() -> None:
    """Catches a budget counted in matrices instead of units."""
    table = published("paper_ct_56_components.csv")
    table["unit"] = table["layer"].astype(str) + "." + table["component"]
    units = table.set_index("unit")
    found = components_module.list_components(transformers.GemmaConfig(), Components())
    names = [f"{c.layer}.{'attn' if c.kind in 'qkvo' else 'mlp'}" for c in found]
    scores = pd.DataFrame(
        {"component": map(str, found), "unit": names, "score": list(units.loc[names, "signed_score"])}
    )
    chosen = selecting.choose(Localization(label="X", kind="scores", scores="x"), found, {}, scores, None)
    kept = set(units.index[units["selected_top5pct"]])
    assert len(kept) == 3 and len(chosen) == 10
    assert set(chosen) == {str(c) for c, name in zip(found, names, strict=True) if name in kept}


@pytest.mark.parametrize(
    ("graph", "components"),
    [("basketball_ap", 253), ("athlete_ap", 260), ("basketball_ct", 100), ("athlete_ct", 209)],
)
def test_signed_percentile_selects_as_many_as_the_released_masks(graph: str, components: int) -> None:
    path = PUBLISHED / "localisation_scores" / f"google_gemma-7b_sports_{graph}_graph.csv"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside this checkout")
    scores = pd.read_csv(path)
    assert len(scores) == 1848
    scores["unit"] = scores["component"]
    assert len(units.signed_percentile(scores, 0.05)) == components


def test_signed_percentile_by_its_definition() -> None:
    """Of 20 scores the 95th percentile of the signed ones is 0.95; absolutely, four are as large."""
    values = [-3.0, -2.0, *[i / 20 for i in range(17)], 0.95 + 1]
    table = pd.DataFrame({"component": [f"c{i}" for i in range(20)], "unit": range(20), "score": values})
    chosen = units.signed_percentile(table, 0.05)
    threshold = np.percentile(values, 95)
    assert 0.8 < threshold < 1 and chosen == ["c0", "c1", "c19"]


def probes(accuracy: dict[str, list[float]], athletes: int = 100) -> pd.DataFrame:
    """Rows of stage layer_probes with these accuracies by series and layer, -1 first, and some that must not count."""
    rows = [
        {"series": series, "ablated": ablated, "labels": labels, "layer": layer, "right": i < round(value * athletes)}
        for series, values in accuracy.items()
        for ablated, labels, curve in (
            (False, "answer", values), (True, "answer", values[::-1]), (False, "shuffled labels", values[::-1])
        )
        for layer, value in enumerate(curve, -1)
        for i in range(athletes)
    ]  # fmt: skip
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ([0.33, 0.97, 0.98, 0.99, 0.99, 0.99], (0,)),  # all of the lookup is the first layer
        ([0.33, 0.64, 0.99, 1.00, 1.00, 1.00], (0, 1)),
        ([0.40, 0.40, 0.41, 0.55, 0.70, 0.97], (2, 3, 4)),
    ],
)
def test_automatic_layers_are_those_over_which_the_names_probe_rises(
    name: list[float], layers: tuple[int, ...]
) -> None:
    """Catches a rise measured from after the first layer, which then can never be one of the layers (S3)."""
    rows = probes({"prompt": [0.33, 0.33, 0.33, 0.35, 0.5, 1.0], "subject": name[::-1], "name": name})
    assert selecting.rising_layers(rows, (0.2, 0.9)) == layers
    assert selecting.arriving_layers(rows, (0.2, 0.9)) == (3, 4)


def test_automatic_layers_need_a_rise() -> None:
    with pytest.raises(UserError, match="do not rise"):
        selecting.rising_layers(probes({"name": [0.4, 0.4, 0.3], "prompt": [0.4, 0.5, 0.9]}), (0.2, 0.9))


def test_automatic_layers_of_the_published_figure_16() -> None:
    """The paper probes no embeddings; from its layer 0 on, facts are made in 2 to 4 and arrive in 4 to 6. It took 2 to 7."""
    path = PUBLISHED / "fig16_probe_across_layers_exact_from_pdf.csv"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside this checkout")
    curves = pd.read_csv(path).pivot(index="layer", columns="series", values="accuracy")
    given = {"name": "Athlete", "prompt": "Prompt"}
    rows = probes({ours: [curves[name][0], *curves[name]] for ours, name in given.items()}, athletes=314)
    assert selecting.rising_layers(rows, (0.2, 0.9)) == (2, 3, 4)
    assert selecting.arriving_layers(rows, (0.2, 0.9)) == (4, 5, 6)


@pytest.mark.parametrize(("method", "layers"), [("finetune", [1, 2]), ("mask", [0])])
def test_a_selection_by_automatic_layers_and_another_for_masks(
    method: str, layers: list[int], tiny_base: TinyBase, tmp_path: Path
) -> None:
    manual: dict[str, Any] = {"label": "M", "kind": "manual", "layers": "auto", "rise": [0.6, 0.9]}
    config = Config.model_validate({"localizations": {"manual": {**manual, "mask": {"layers": [0]}}}})
    rows = probes({"prompt": [0.4, 0.5, 0.5, 1.0], "name": [0.4, 0.5, 0.8, 1.0]})
    given = {"base_model": tiny_base.folder, "probes": tiny_base.write(tmp_path / "probes.parquet", rows)}
    stage = STAGES["select" if method == "finetune" else "select_for_mask"]
    wildcards = {"base_seed": "0", "task": "sports", "localization": "manual"}
    job = Job(
        stage, restrict(config, stage, wildcards), wildcards, given, {"selection": tmp_path / "s"}, "key"
    )
    getattr(selecting, stage.function)(job)
    expected = [Component(layer, kind) for layer in layers for kind in ("up", "down")]
    assert set(selection.read_selection(tmp_path / "s")) == set(expected)
    assert job.facts.get("layers") == (layers if method == "finetune" else None)


def test_independent_draws_vary_in_number() -> None:
    found = components_module.list_components(transformers.GemmaConfig(), Components(granularity="head"))
    sizes = dict.fromkeys(map(str, found), 1)
    draws = [
        selecting.choose(
            Localization(label="R", kind="random", selection="independent", fraction=0.05, seed=seed),
            found, sizes, None, None,
        )
        for seed in range(8)
    ]  # fmt: skip
    counts = [len(draw) for draw in draws]
    assert len(found) == 1848 and len(set(counts)) > 1
    assert abs(np.mean(counts) - 0.05 * 1848) < 3 * (1848 * 0.05 * 0.95 / 8) ** 0.5


@pytest.mark.parametrize(("whose", "count"), [("train", 64), ("forget", 12), ("all", 90)])
def test_whose_prompts_are_scored(
    whose: str, count: int, tiny_base: TinyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[tuple[str, str]]] = []
    pairs = pairs_module.Pairs([[1]], [[1]], [(0, 1)], [0], [0])

    def made(athletes: list[tuple[str, str]], *_: object) -> pairs_module.Pairs:
        asked.append(athletes)
        return pairs

    monkeypatch.setattr(scoring, "make_pairs", made)
    nothing = effects_module.Effects(np.zeros((1, 3 * (2 * 4 + 2 * 2 + 2))), np.ones(1))
    monkeypatch.setattr(scoring, "attribution_patching", lambda *_: nothing)
    score = {"method": "attribution_patching", "athletes": whose, "granularity": "head"}
    config = Config.model_validate({"scores": {"attribution_patching": score}, "localizations": {}})
    inputs = {"split": tiny_base.write(tmp_path / "split.parquet", tiny_base.split)}
    wildcards = {"task": "athletes", "scores": "attribution_patching"}
    rows = tiny_base.run("score", config, tmp_path, inputs, wildcards)["scores"]
    split = tiny_base.split
    part = {"train": split["train"], "forget": split["forget"], "all": split["subject"] != ""}[whose]
    assert [name for name, _ in asked[0]] == list(split.loc[part, "subject"]) and len(asked[0]) == count
    assert len(rows) == 3 * (2 * 4 + 2 * 2 + 2)  # heads of q and o, of k and v, and two matrices of the MLP


def test_matched_budget_is_never_exceeded_and_fills_up() -> None:
    """Catches a localization that trains more parameters than allowed, or stops at the first misfit."""
    table = pd.DataFrame({"component": list("abcd"), "unit": list("abcd"), "score": [1.0, -5.0, 3.0, 2.0]})
    assert units.matched_units(table, {"a": 1, "b": 6, "c": 9, "d": 3}, 10) == ["b", "d", "a"]


def test_random_draws_are_reproducible_and_differ_by_seed() -> None:
    """Catches an unseeded draw, as the paper's was, and seeds that give the same draw."""
    found = components_module.list_components(transformers.GemmaConfig(), Components())

    def draw(seed: int) -> tuple[str, ...]:
        return tuple(
            selecting.choose(Localization(label="Random", kind="random", seed=seed), found, {}, None, None)
        )

    draws = [draw(seed) for seed in range(20)]
    assert [draw(seed) for seed in range(20)] == draws
    assert len(set(draws)) == 20 and {len(d) for d in draws} == {9}
    assert len({c for d in draws for c in d}) > 80  # not always from the same few of the 168


# Pairs.


@pytest.fixture(scope="module")
def tokenizer() -> Any:

    text = (ROOT / "workflow/resources/text/train.txt").read_text(encoding="utf-8").splitlines()[:300]
    return train_tokenizer([*text, *[" football baseball basketball golf"] * 50], 600)


def test_pairs_differ_in_the_name_alone(tokenizer: Any) -> None:
    """Catches unequal lengths, and a subject that leaves out name tokens which both names share."""
    athletes = [
        (str(a), str(s))
        for a, s in pd.read_csv(ROOT / "workflow/resources/athletes.csv").itertuples(index=False)
    ]
    prompt = load_prompts(ROOT / "workflow/resources/prompts.yaml")["training"]
    pairs = pairs_module.make_pairs(athletes, prompt, CHOICES, tokenizer, seed=0)
    before, after = prompt.text.split(" {subject}")
    shared = 0
    for clean, corrupt, (start, stop), (name, _) in zip(
        pairs.clean, pairs.corrupt, pairs.subject, athletes, strict=True
    ):
        assert len(clean) == len(corrupt) and clean[start:stop] != corrupt[start:stop]
        assert clean[:start] == corrupt[:start] and clean[stop:] == corrupt[stop:]
        assert tokenizer.decode(clean[start:stop]) == f" {name}"
        assert tokenizer.decode(clean[1:start]) == before and tokenizer.decode(clean[stop:]) == after
        shared += clean[start] == corrupt[start] or clean[stop - 1] == corrupt[stop - 1]
    assert shared  # otherwise this would not test names that begin or end alike
    assert [CHOICES[i] for i in pairs.answer] == [s for _, s in athletes]
    again = pairs_module.make_pairs(athletes, prompt, CHOICES, tokenizer, seed=0)
    other = pairs_module.make_pairs(athletes, prompt, CHOICES, tokenizer, seed=1)
    assert again == pairs and other.clean == pairs.clean and other.corrupt != pairs.corrupt


def test_a_made_up_name_that_the_model_takes_for_the_sport_is_replaced(tokenizer: Any) -> None:
    """Catches pairs that show nothing, other athletes' names changed with them, and a search without an end."""
    athletes = [
        (f"{first} {last}", "baseball") for first in ("Tom", "Ann") for last in ("Reed", "Fox", "Hill")
    ]
    prompt = load_prompts(ROOT / "workflow/resources/prompts.yaml")["training"]
    plain = pairs_module.make_pairs(athletes, prompt, CHOICES, tokenizer, seed=0)
    right, other = CHOICES.index("baseball"), CHOICES.index("golf")
    said = {tuple(plain.corrupt[1]): right, tuple(plain.corrupt[4]): right}
    asked: list[tuple[int, ...]] = []

    def guess(prompts: list[list[int]]) -> list[int]:
        asked.extend(map(tuple, prompts))
        return [said.get(tuple(prompt), other) for prompt in prompts]

    pairs = pairs_module.make_pairs(athletes, prompt, CHOICES, tokenizer, 0, guess)
    changed = [i for i, (a, b) in enumerate(zip(plain.corrupt, pairs.corrupt, strict=True)) if a != b]
    assert changed == [i for i, ids in enumerate(plain.corrupt) if tuple(ids) in said] and len(changed) >= 2
    assert all(len(a) == len(b) and a != b for a, b in zip(pairs.clean, pairs.corrupt, strict=True))
    assert len(asked) == len(set(asked))  # no prompt is asked twice
    for clean, corrupt, (start, stop) in zip(pairs.clean, pairs.corrupt, pairs.subject, strict=True):
        assert clean[:start] == corrupt[:start] and clean[stop:] == corrupt[stop:]
    hopeless = pairs_module.make_pairs(
        athletes, prompt, CHOICES, tokenizer, 0, lambda prompts: [right] * len(prompts)
    )
    assert len(hopeless.corrupt) == len(athletes)
