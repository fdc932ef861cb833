"""Masks against their definition: weights times m = 1 - d, its gradient by autograd, edits made from scratch."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from localized_unlearning.config.reading import load
from localized_unlearning.config.unlearning import Masking
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.models import components
from localized_unlearning.models.components import Component
from localized_unlearning.unlearning import losses, masking, masks, saliency
from localized_unlearning.unlearning.steps import Data, Lambdas
from tiny_base import PROMPTS as BOOK
from tiny_base import TEXT, TinyBase
from tiny_models import VOCABULARY

SETTINGS = Masking(
    steps=1,
    batch_size=3,
    text_batch=3,
    optimizer="sgd",
    learning_rate=1.0,
    schedule="constant",
    lambda_mask=0.002,
)
LAMBDAS = Lambdas(0.3, 1.0, 0.5)
PROMPTS = torch.randint(10, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(0))
CHOSEN = {
    "gemma": [Component(0, "q"), Component(1, "up"), Component(2, "o", 1)],
    "llama": [Component(0, "k", 1), Component(1, "down"), Component(1, "v")],
    "neox": [Component(1, "q"), Component(1, "k", 2), Component(2, "up")],
}


@pytest.fixture
def data() -> Data:
    """Three athletes and three windows of each kind, all read in every step."""

    def items(seed: int) -> list[tuple[list[int], int]]:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(10, VOCABULARY, (3, 8), generator=generator).tolist()
        return [(row[:-1], row[-1]) for row in rows]

    text = torch.randint(10, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(3))
    return Data(items(1), items(2), text)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(PROMPTS).logits
    return found


def slow_loss(model: Any, data: Data, removed: dict[str, torch.Tensor]) -> torch.Tensor:
    """The whole objective of section 2.4 for masks, one prompt at a time, through autograd."""
    base = dict(model.named_parameters())
    masked = {name: base[name] * (1 - d) for name, d in removed.items()}

    def run(ids: list[int]) -> torch.Tensor:
        out: torch.Tensor = torch.func.functional_call(model, masked, (torch.tensor([ids]),)).logits[0]
        return out

    log_p = torch.stack([torch.log_softmax(run(p)[-1], 0)[a] for p, a in data.forget])
    forget = torch.where(log_p > losses.ERASE_FLOOR, -torch.log(1 - log_p.exp()), 0).mean()
    retain = torch.stack([-torch.log_softmax(run(p)[-1], 0)[a] for p, a in data.retain]).mean()
    sft = torch.stack(
        [torch.nn.functional.cross_entropy(run(w[:-1].tolist()), w[1:]) for w in data.text]
    ).mean()
    whole = sum((1 - d).sum() for d in removed.values())
    return (
        LAMBDAS.forget * forget + LAMBDAS.retain * retain + LAMBDAS.sft * sft + SETTINGS.lambda_mask * whole
    )


@pytest.mark.parametrize("name", list(CHOSEN))
def test_one_step_is_the_clamped_gradient_of_the_definition(
    tiny: Callable[[str], Any], data: Data, name: str, float64: None
) -> None:
    model = tiny(name)
    trainable = components.trainable(model, CHOSEN[name])
    removed = {n: torch.zeros_like(model.get_parameter(n), requires_grad=True) for n in trainable}
    slow_loss(model, data, removed).backward()
    found, history = masking.train(model, data, trainable, SETTINGS, LAMBDAS, seed=0)
    for parameter, part in trainable.items():
        gradient = removed[parameter].grad
        assert gradient is not None
        expected = (-gradient if part is None else -gradient * part).clamp(0, 1)
        assert torch.allclose(found[parameter].double(), expected, atol=2e-6)  # d is kept in float32
        assert (expected > 0).any() and (expected == 0).any()
    assert history["most_removed"].iloc[0] == max(float(d.max()) for d in found.values())


@pytest.mark.parametrize("name", list(CHOSEN))
def test_training_a_mask_leaves_the_model_as_it_was(
    tiny: Callable[[str], Any], data: Data, name: str
) -> None:
    model = tiny(name).float()
    before = copy.deepcopy(model.state_dict())
    trainable = components.trainable(model, CHOSEN[name])
    settings = SETTINGS.model_copy(update={"steps": 3, "optimizer": "adam", "learning_rate": 0.2})
    first, _ = masking.train(model, data, trainable, settings, LAMBDAS, seed=0)
    again, _ = masking.train(model, data, trainable, settings, LAMBDAS, seed=0)
    assert all(torch.equal(model.state_dict()[n], value) for n, value in before.items())
    assert not any(p.requires_grad for p in model.parameters())
    for parameter, part in trainable.items():
        assert torch.equal(first[parameter], again[parameter])
        assert first[parameter].min() >= 0 and first[parameter].max() <= 1
        if part is not None:
            assert not first[parameter][~part.expand_as(first[parameter])].any()


@pytest.mark.parametrize("name", list(CHOSEN))
def test_clamped_weights_are_the_released_codes_steps(
    tiny: Callable[[str], Any], data: Data, name: str, float64: None
) -> None:
    """SGD with momentum and decay on the weights, clipped over whole parameters, each weight held by its base."""
    settings = SETTINGS.model_copy(
        update={
            "parameterization": "weights", "steps": 4, "learning_rate": 0.3, "momentum": 0.9,
            "weight_decay": 0.01, "clip_norm": 0.7, "lambda_mask": 0.01,
        }
    )  # fmt: skip
    model = tiny(name)
    trainable = components.trainable(model, CHOSEN[name])
    found, _ = masking.train(model, data, trainable, settings, LAMBDAS, seed=0)

    weights = {n: model.get_parameter(n).detach().clone() for n in trainable}
    base, momentum = copy.deepcopy(weights), {n: torch.zeros_like(w) for n, w in weights.items()}
    for _ in range(4):
        leaves = {n: w.clone().requires_grad_(True) for n, w in weights.items()}
        # slow_loss multiplies the model's own weights by 1 - d
        ratios = {n: 1 - leaf / base[n] for n, leaf in leaves.items()}
        loss = slow_loss(model, data, ratios) - SETTINGS.lambda_mask * sum(
            (1 - r).sum() for r in ratios.values()
        )
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        norm = torch.sqrt(torch.stack([(g**2).sum() for g in gradients.values()]).sum())
        for n, gradient in gradients.items():
            step = gradient * min(1.0, 0.7 / float(norm)) + 0.01 * weights[n].sign()
            step = (step if trainable[n] is None else step * trainable[n]) + 0.01 * weights[n]
            momentum[n] = 0.9 * momentum[n] + step
            moved = weights[n] - 0.3 * momentum[n]
            moved = torch.where(base[n] > 0, moved.clamp(min=0), moved.clamp(max=0))
            moved = torch.where(moved.abs() > base[n].abs(), base[n], moved)
            weights[n] = moved if trainable[n] is None else torch.where(trainable[n], moved, base[n])
    for n, weight in weights.items():
        assert torch.equal(model.get_parameter(n), base[n])
        assert torch.allclose(found[n].double(), 1 - weight / base[n], atol=1e-6)
        assert (found[n] > 0).any() and (found[n] == 0).any()


def test_edits_are_the_bases_weights_times_zero_or_one(tiny: Callable[[str], Any]) -> None:
    """Each nested edit is, bit for bit, the one made from scratch; all ones is the base, all zeros no component."""
    base = tiny("llama").float()
    names = sorted(components.trainable(base, CHOSEN["llama"]))
    generator = torch.Generator().manual_seed(1)
    removed = {n: torch.rand(base.get_parameter(n).shape, generator=generator) for n in names}
    sizes = {n: d.numel() for n, d in removed.items()}
    total = sum(sizes.values())
    ranked = masks.rank(removed, total)
    flat = torch.cat([removed[n].flatten() for n in names])
    model = copy.deepcopy(base)
    for size, done in masks.edits(model, ranked, sizes, [total, 0, 7, 900]):
        assert done == size
        cut = flat.sort(descending=True).values[size - 1] if size else torch.tensor(2.0)
        offset = 0
        for name in names:
            original = base.get_parameter(name)
            keep = (flat[offset : offset + original.numel()] < cut).view_as(original)
            assert torch.equal(model.get_parameter(name), original * keep)
            offset += original.numel()
        others = [n for n, _ in base.named_parameters() if n not in names]
        assert all(torch.equal(model.get_parameter(n), base.get_parameter(n)) for n in others)
        if size == 0:
            assert torch.equal(logits(model), logits(base))
        if size == total:
            assert not any(model.get_parameter(n).any() for n in names)
    assert all(torch.equal(model.get_parameter(n), p) for n, p in base.named_parameters())  # all is back


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30), st.integers(0, 40))
def test_ranking_is_by_size_then_place_and_never_takes_an_unmoved_weight(
    values: list[float], largest: int
) -> None:
    half = len(values) // 2
    removed = {"b": torch.tensor(values[half:]), "a": torch.tensor(values[:half])}
    expected = sorted((i for i, v in enumerate(values) if v > 0), key=lambda i: (-values[i], i))
    assert masks.rank(removed, largest).tolist() == expected[:largest]


def test_a_mask_that_did_not_move_edits_nothing(tiny: Callable[[str], Any]) -> None:
    model = tiny("gemma").float()
    before = logits(model)
    name = "model.layers.0.self_attn.q_proj.weight"
    removed = {name: torch.zeros_like(model.get_parameter(name))}
    ranked = masks.rank(removed, 100)
    sizes = {name: removed[name].numel()}
    assert list(masks.edits(model, ranked, sizes, [0, 10, 100])) == [(0, 0), (10, 0), (100, 0)]
    assert torch.equal(logits(model), before)


def test_a_mask_file_is_small_and_knows_its_base(tmp_path: Path) -> None:
    ranked = torch.randperm(4000, generator=torch.Generator().manual_seed(0))[:1000]
    path = tmp_path / "mask.safetensors"
    masks.save_mask(path, {"saliency": ranked[:9], "mask": ranked}, {"b": 1000, "a": 3000}, "base")
    assert path.stat().st_size <= 2 * 4000
    found, sizes = masks.read_mask(path, "base")
    assert list(found) == ["mask", "saliency"] and sizes == {"a": 3000, "b": 1000}
    assert torch.equal(found["mask"], ranked) and torch.equal(found["saliency"], ranked[:9])
    with pytest.raises(UserError, match="another base model"):
        masks.read_mask(path, "other")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="is damaged"):
        masks.read_mask(path, "base")


@pytest.mark.parametrize("name", list(CHOSEN))
def test_saliency_is_weight_times_gradient_of_the_whole_loss(
    tiny: Callable[[str], Any], data: Data, name: str, float64: None
) -> None:
    """Catches a sum over batches, weights outside the selection, and gradients that stay behind."""
    model = tiny(name)
    trainable = components.trainable(model, CHOSEN[name])
    removed = {n: torch.zeros_like(model.get_parameter(n), requires_grad=True) for n in trainable}
    slow_loss(model, data, removed).backward()
    settings = SETTINGS.model_copy(update={"saliency_steps": 3})
    found = dict(saliency.saliencies(model, data, trainable, settings, LAMBDAS, seed=0))
    assert list(found) == sorted(trainable)
    for parameter, part in trainable.items():
        gradient = removed[parameter].grad
        assert gradient is not None
        slow = (gradient + SETTINGS.lambda_mask).abs()  # the mask's own term is no part of dL/dw
        expected = slow if part is None else slow * part
        assert torch.allclose(found[parameter], expected, atol=1e-9) and (expected > 0).any()
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_percentiles_of_a_distribution_are_those_of_a_list_of_all() -> None:
    sizes = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).mul(4).exp() * 1e-9
    found = saliency.Distribution()
    for part in sizes.view(4, -1):
        found.add(part)
    for percent in saliency.PERCENTILES:
        exact = float(torch.quantile(sizes.double(), percent / 100))
        assert found.percentile(percent) == pytest.approx(exact, rel=0.015)
    assert found.largest == float(sizes.max())


def test_the_rate_takes_a_twentieth_of_a_salient_weight_in_one_step(
    tiny: Callable[[str], Any], data: Data
) -> None:
    """Catches a rate of another percentile, and one that hardly moves the mask, as the paper's 1e-3."""
    model = tiny("llama").float()
    trainable = components.trainable(model, CHOSEN["llama"])
    automatic = SETTINGS.model_copy(update={"learning_rate": "auto", "lambda_mask": 0.0})
    distribution = saliency.Distribution()
    sizes = torch.cat([s[trainable[n].expand_as(s)] if trainable[n] is not None else s.flatten() for n, s in
                       saliency.saliencies(model, data, trainable, automatic, LAMBDAS, 0)])  # fmt: skip
    distribution.add(sizes)
    rate = saliency.rate_of(automatic, distribution)
    assert rate == pytest.approx(0.05 / float(torch.quantile(sizes, 0.9)), rel=0.02)
    assert saliency.rate_of(SETTINGS, distribution) == SETTINGS.learning_rate
    moving = automatic.model_copy(update={"learning_rate": rate})
    removed, history = masking.train(model, data, trainable, moving, LAMBDAS, seed=0)
    d = torch.cat([removed[n].flatten() for n in trainable])
    assert 0.02 < float((d > 0.05).sum()) / len(sizes) < 0.1  # of the top tenth, those whose loss says go
    assert history["most_removed"].iloc[0] > 0.05
    nothing = saliency.Distribution()
    nothing.add(torch.zeros(10))
    with pytest.raises(UserError, match=r"give masking\.learning_rate"):
        saliency.rate_of(automatic, nothing)


def test_sgd_ranks_by_importance_and_adam_by_the_gradients_sign() -> None:
    """The reason why Adam is no default: a thousandth of the importance gets the same part removed (S1)."""
    removed = {}
    for optimizer in ("sgd", "adam"):
        weights = {"w": torch.tensor([[1.0, 1e-3]])}
        settings = Masking(optimizer=optimizer, learning_rate=0.01, lambda_mask=0.0)
        mask = masks.Mask(weights, {"w": None}, settings)
        steps = masking.optimizer_of(list(mask.trained.values()), settings)
        for _ in range(5):
            weights["w"].grad = torch.ones(1, 2)
            mask.give_gradient("w")
            weights["w"].grad = None
            with torch.no_grad():
                steps.step()
                mask.put("w")
        removed[optimizer] = mask.removed("w")[0]
    assert float(removed["sgd"][0] / removed["sgd"][1]) == pytest.approx(1000, rel=1e-3)
    assert float(removed["adam"][0] / removed["adam"][1]) == pytest.approx(1, rel=1e-3)


def test_a_random_order_is_of_the_selection_and_follows_its_seed(tiny: Callable[[str], Any]) -> None:
    model = tiny("llama")
    trainable = components.trainable(model, CHOSEN["llama"])
    inside = torch.cat(
        [
            torch.ones(model.get_parameter(n).numel(), dtype=torch.bool)
            if trainable[n] is None
            else trainable[n].expand(model.get_parameter(n).shape).flatten()
            for n in sorted(trainable)
        ]
    )

    def order(seed: int, largest: int) -> torch.Tensor:
        return masks.rank(dict(saliency.random_sizes(model, trainable, seed)), largest)

    total = int(inside.sum())
    every = order(0, 10**6)
    assert len(every) == total == len(set(every.tolist())) and inside[every].all()
    assert torch.equal(order(0, 50), every[:50]) and not torch.equal(order(1, 50), every[:50])
    assert abs(float(every[: total // 2].double().mean()) / float(every.double().mean()) - 1) < 0.1


def test_a_rate_is_asked_for_where_none_can_be_chosen() -> None:
    for settings in ({"optimizer": "adam"}, {"parameterization": "weights"}):
        with pytest.raises(ValueError, match="learning_rate auto is for optimizer sgd"):
            Masking.model_validate(settings)
    assert Masking().optimizer == "sgd"


ROOT = Path(__file__).parents[2]
QUESTIONS = ROOT / "workflow/resources/general_knowledge.csv"


def test_a_sweep_asks_the_mask_and_its_controls(tiny_base: TinyBase, tmp_path: Path) -> None:
    """Catches controls that are left out or alike, an edit that stays for the next ranking, and a base asked thrice."""
    config = load(
        [ROOT / "config.yaml"],
        {
            "masking": {"steps": 2, "batch_size": 6, "text_batch": 2, "edit_sizes": [0, 40, 400]},
            "series": {"questions": 4, "retain": 4},
        },
    )
    selection = tmp_path / "selection.json"
    selection.write_text(json.dumps({"components": ["0.mlp.up", "1.attn.o"]}))
    wildcards = {"base_seed": "0", "task": "sports", "localization": "manual", "seed": "0"}
    split = tiny_base.write(tmp_path / "split.parquet", tiny_base.split)
    inputs: dict[str, Any] = {"base_model": tiny_base.folder, "prompts": BOOK, "text": TEXT, "split": split}
    stage = STAGES["mask"]
    outputs = {"mask": tmp_path / "mask.safetensors", "history": tmp_path / "history.csv"}
    job = Job(
        stage,
        restrict(config, stage, wildcards),
        wildcards,
        {**inputs, "selection": selection},
        outputs,
        "key",
    )
    masking.mask(job)
    facts = job.facts
    assert facts["learning_rate"] == pytest.approx(0.05 / facts["saliency"]["percentile_90"])
    assert facts["largest_removed"] > 0.05 and facts["optimizer"] == "sgd"
    rankings, _ = masks.read_mask(outputs["mask"], tiny_base.digest)
    assert list(rankings) == ["mask", "random", "saliency"]
    assert len({tuple(sorted(order[:40].tolist())) for order in rankings.values()}) == 3
    found = tiny_base.run(
        "sweep", config, tmp_path, {"split": split, "mask": outputs["mask"], "mmlu": QUESTIONS}, wildcards
    )
    rows = found["facts"].set_index(["ranking", "edit_size"]).sort_index()
    columns = ["logit_football", "log_normalizer"]
    base = rows.loc[("mask", 0), columns].to_numpy()
    for ranking, order in rankings.items():
        assert (rows.loc[(ranking, 0), columns].to_numpy() == base).all()
        model = tiny_base.fresh()
        names = sorted(["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.o_proj.weight"])
        flat = torch.cat([model.get_parameter(n).flatten() for n in names])
        flat[order[:400]] = 0
        start = 0
        for n in names:
            parameter = model.get_parameter(n)
            parameter.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
        athlete = rows.loc[[(ranking, 400)]].iloc[0]
        ids = tiny_base.tokenizer(load_prompts(BOOK)[athlete["prompt"]].render(athlete["subject"]))[
            "input_ids"
        ]
        slow = model(torch.tensor([ids])).logits[0, -1].logsumexp(0)
        assert float(athlete["log_normalizer"]) == pytest.approx(float(slow), abs=1e-4)
        assert int(athlete["masked"]) == min(400, len(order))
