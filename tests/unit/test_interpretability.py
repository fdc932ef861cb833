"""Ablations against their slow definition, and where nothing may change."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from localized_unlearning.config.evaluation import Interpretability
from localized_unlearning.config.run import Config
from localized_unlearning.data import windows as windows_module
from localized_unlearning.data.documents import read_documents
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.interpretability import ablation
from localized_unlearning.interpretability import subject as subject_module
from localized_unlearning.interpretability.probes import Fit, predictions
from localized_unlearning.models import activations as activations_module
from localized_unlearning.models import components
from tiny_base import PROMPTS, TEXT, TinyBase
from tiny_models import ARCHITECTURES

WINDOWS = torch.tensor([[2, 9, 30, 12, 7], [2, 41, 5, 5, 8], [2, 3, 19, 20, 6]])


def o_module(model: Any, layer: int) -> Any:
    """The module that holds W_O, by the architecture's own names."""
    if hasattr(model, "gpt_neox"):
        return model.gpt_neox.layers[layer].attention.dense
    return model.model.layers[layer].self_attn.o_proj


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_means_are_over_windows_and_positions(tiny: Callable[[str], Any], name: str) -> None:
    """Catches a mean over one axis, outputs taken for inputs, and layers beyond those asked for."""
    model = tiny(name)
    layers = range(model.config.num_hidden_layers)
    before: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}

    def keep(layer: int) -> Any:
        def hook(_module: Any, args: Any, _output: torch.Tensor) -> None:
            before[layer] += list(args[0][0])

        return hook

    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(o_module(model, layer).register_forward_hook(keep(layer)).remove)
        for window in WINDOWS:
            model(window[None], use_cache=False)
    heads = ablation.mean_head_outputs(model, WINDOWS, [0, 2])
    assert set(heads) == {0, 2}
    for layer, mean in heads.items():
        assert torch.allclose(mean.double(), torch.stack(before[layer]).mean(0), atol=1e-5)
    assert set(ablation.mean_attention_outputs(model, WINDOWS, 1)) == set(layers) - {0}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_heads_own_activation_changes_nothing_and_another_changes_its_columns_only(
    tiny: Callable[[str], Any], name: str
) -> None:
    """Catches another head's columns (grouped, fused) and positions that are left out."""
    model = tiny(name)
    geometry = components.geometry_of(model.config)
    one = torch.tensor([[7]])  # one position: its activation is its own mean
    seen: list[torch.Tensor] = []

    def run(prompt: torch.Tensor, module: Any) -> torch.Tensor:
        handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
        logits: torch.Tensor = model(prompt, use_cache=False).logits
        handle.remove()
        return logits

    with torch.no_grad():
        base = model(one, use_cache=False).logits
        own = ablation.mean_head_outputs(model, one, range(geometry.layers))
        for layer in range(geometry.layers):
            module = o_module(model, layer)
            run(WINDOWS[:1], module)
            plain = seen.pop()
            for head in range(geometry.heads):
                with activations_module.head_replaced(model, layer, head, own[layer]):
                    assert torch.allclose(model(one, use_cache=False).logits, base, atol=1e-5)
                with activations_module.head_replaced(model, layer, head, own[layer] + 50):
                    run(WINDOWS[:1], module)
                moved = (seen.pop() - plain).abs() > 1e-9
                wanted = torch.arange(geometry.heads * geometry.head_dim) // geometry.head_dim == head
                assert torch.equal(moved, wanted.expand_as(moved))
        assert torch.equal(model(one, use_cache=False).logits, base)  # no hook is left


def contributions(model: Any, prompt: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What each layer's attention adds to the residual stream: output minus input minus what the MLP adds."""
    entered: list[torch.Tensor] = []
    left: list[torch.Tensor] = []
    fed: list[torch.Tensor] = []
    with ExitStack() as stack, torch.no_grad():
        for layer in components.layers_of(model):
            mlp = getattr(layer, "post_feedforward_layernorm", layer.mlp)
            before = layer.register_forward_pre_hook(
                lambda _m, args, kw: entered.append(args[0] if args else kw["hidden_states"]),
                with_kwargs=True,
            )
            stack.callback(before.remove)
            stack.callback(
                layer.register_forward_hook(lambda _m, _a, out: left.append(as_tensor(out))).remove
            )
            stack.callback(mlp.register_forward_hook(lambda _m, _a, out: fed.append(as_tensor(out))).remove)
        model(prompt, use_cache=False)
    return tuple(y - x - m for x, y, m in zip(entered, left, fed, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ablated_attention_adds_its_mean_to_the_residual_stream(
    tiny: Callable[[str], Any], name: str
) -> None:
    """Catches an output of W_O that a norm rescales (Gemma 2 and 3), a wrong layer, and a position left out."""
    model = tiny(name)
    added = contributions(model, WINDOWS)
    means = ablation.mean_attention_outputs(model, WINDOWS, 1)
    for layer, mean in means.items():
        assert torch.allclose(mean.double(), added[layer].mean((0, 1)), atol=1e-5)
    with torch.no_grad():
        base = model(WINDOWS, use_cache=False).logits
        with activations_module.attention_replaced(model, {1: means[1]}):
            now = contributions(model, WINDOWS)
        wanted = means[1].double().expand_as(now[1])
        assert torch.allclose(now[1], wanted, atol=1e-5) and not torch.allclose(added[1], wanted, atol=1e-2)
        assert torch.allclose(now[0], added[0])  # the layer before is as it was
        assert torch.equal(model(WINDOWS, use_cache=False).logits, base)  # no hook is left


@pytest.fixture(scope="module")
def subject(tiny_base: TinyBase, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A folder and the athletes, 60 of the 90 known."""
    folder = tmp_path_factory.mktemp("interpretability")
    known = tiny_base.split[["subject", "answer"]].assign(known=tiny_base.split.index >= 30)
    return folder, {"known": tiny_base.write(folder / "known.parquet", known)}


def test_the_ablations_baseline_is_the_last_layer_without_late_attention(
    tiny_base: TinyBase, subject: tuple[Path, dict[str, Path]]
) -> None:
    """Catches two stages that ablate, split or probe differently, and heads that are not ablated or missing."""
    folder, inputs = subject
    config = Config(interpretability=Interpretability(lookup_end=2, mean_windows=5))
    probes = tiny_base.run("layer_probes", config, folder, inputs)["probes"]
    heads = tiny_base.run("head_ablation", config, folder, inputs)["ablation"]
    groups = {key: rows.reset_index(drop=True) for key, rows in heads.groupby(["layer", "head"])}
    assert set(groups) == {(-1, -1), *((layer, head) for layer in range(2) for head in range(4))}
    rows = probes[(probes["series"] == "prompt") & (probes["layer"] == 2) & (probes["labels"] == "answer")]
    with_late, without = (rows[rows["ablated"] == a].reset_index(drop=True) for a in (False, True))
    baseline = groups.pop((-1, -1))
    assert baseline[["subject", "right"]].equals(without[["subject", "right"]])
    assert not baseline["right"].equals(with_late["right"])
    assert set(probes["layer"]) == {-1, 0, 1, 2} and set(probes["series"]) == {"prompt", "name", "subject"}
    embedded = probes[
        (probes["series"] == "prompt") & (probes["layer"] == -1) & (probes["labels"] == "answer")
    ]
    assert embedded["right"].mean() <= embedded["majority"].iloc[0]  # the last token is every prompt's
    known = tiny_base.split["subject"][30:]
    assert len(baseline) == 12 and set(baseline["subject"]) <= set(known)  # a fifth of the known ones
    assert any(not rows["right"].equals(baseline["right"]) for rows in groups.values())


def ablated_slowly(base: TinyBase, athletes: list[str], windows: torch.Tensor, layer: int, head: int) -> Any:
    """The last layer's output after each prompt alone, without a head and without the last layer's attention."""
    model, prompt = base.model, load_prompts(PROMPTS)["training"]
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    last: list[torch.Tensor] = []

    def silence(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        heads = args[0].clone().unflatten(-1, (4, 8))
        heads[..., head, :] = torch.cat(inputs).mean((0, 1)).view(4, 8)[head]
        return (heads.flatten(-2),)

    with torch.no_grad():
        early, late = o_module(model, layer), model.model.layers[2].post_attention_layernorm
        with ExitStack() as stack:
            stack.callback(early.register_forward_pre_hook(lambda _m, args: inputs.append(args[0])).remove)
            stack.callback(late.register_forward_hook(lambda _m, _a, out: outputs.append(out)).remove)
            for window in windows:
                model(window[None], use_cache=False)
        mean = torch.cat(outputs).mean((0, 1))
        with ExitStack() as stack:
            stack.callback(early.register_forward_pre_hook(silence).remove)
            stack.callback(late.register_forward_hook(lambda _m, _a, out: mean.expand_as(out)).remove)
            keep = model.model.layers[2].register_forward_hook
            stack.callback(keep(lambda _m, _a, out: last.append(as_tensor(out)[0, -1])).remove)
            for athlete in athletes:
                ids = base.tokenizer(prompt.render(athlete))["input_ids"]
                model(torch.tensor([ids]), use_cache=False)
    return torch.stack(last).numpy()


def as_tensor(output: Any) -> torch.Tensor:
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


def test_a_heads_rows_are_a_probe_refitted_without_it(
    tiny_base: TinyBase, subject: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches another layer's mean, a probe of the unablated model, and another split or solver."""
    folder, inputs = subject
    config = Config(interpretability=Interpretability(lookup_end=2, mean_windows=5))
    fits: list[Fit] = []

    def watched(found: list[Fit], *settings: Any) -> list[np.ndarray]:
        fits.extend(found)
        return predictions(found, *settings)

    monkeypatch.setattr(ablation, "predictions", watched)
    rows = tiny_base.run("head_ablation", config, folder, inputs)["ablation"]
    known = tiny_base.split[30:].reset_index(drop=True)
    sports = known["answer"].to_numpy()
    parts = train_test_split(known.index, test_size=0.2, random_state=42, stratify=sports)
    train, test = (sorted(part) for part in parts)
    windows = windows_module.text_windows(tiny_base.tokenizer, read_documents(TEXT), config.text.tokens)
    for layer, head in [(0, 1), (1, 2)]:
        activations = ablated_slowly(tiny_base, list(known["subject"]), windows[:5], layer, head)
        fit = fits[1 + 4 * layer + head]
        assert np.allclose(fit.train, activations[train], atol=1e-4)
        assert np.allclose(fit.test, activations[test], atol=1e-4)
        scaler = StandardScaler().fit(fit.train)
        probe = LogisticRegression(max_iter=1000).fit(scaler.transform(fit.train), sports[train])
        right = probe.predict(scaler.transform(fit.test)) == sports[test]
        found = rows[(rows["layer"] == layer) & (rows["head"] == head)]
        assert found["subject"].tolist() == known["subject"][test].tolist()
        assert found["right"].tolist() == right.tolist()


def test_names_end_where_the_name_does(tiny_base: TinyBase) -> None:
    """Catches the first token of a name, the token behind it, and a mention in the worked example."""
    book = load_prompts(PROMPTS)
    subject = subject_module.Subject(
        tiny_base.model, tiny_base.tokenizer, tiny_base.split["subject"][:9], np.zeros(9), np.zeros(9, bool), book,
        WINDOWS, "cpu",
    )  # fmt: skip
    for prompt in ("training", "question"):
        for athlete, ids in zip(subject.athletes, subject.encode_names(prompt), strict=True):
            text = tiny_base.tokenizer.decode(ids, skip_special_tokens=True)
            before, _, after = book[prompt].text.rpartition("{subject}")
            assert text == before + athlete and after


@pytest.mark.parametrize("stage", ["layer_probes", "head_ablation"])
def test_lookup_that_ends_past_the_model_is_refused(
    stage: str, tiny_base: TinyBase, subject: tuple[Path, dict[str, Path]]
) -> None:
    """Catches a figure whose ablation ablates nothing."""
    config = Config(interpretability=Interpretability(lookup_end=3))
    with pytest.raises(UserError, match=r"lookup_end is 3, but the model's layers are 0 to 2"):
        tiny_base.run(stage, config, subject[0], subject[1])
