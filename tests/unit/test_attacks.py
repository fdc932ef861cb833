"""Attacks: each recovers a planted weak unlearning, and nothing from the model that never knew."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from localized_unlearning.analysis import recovery
from localized_unlearning.attacks import attack, weights
from localized_unlearning.attacks.subject import Subject, halves
from localized_unlearning.config.attacks import (
    FewShot,
    LogitLens,
    Noise,
    Pruning,
    Quantization,
    Retraining,
    Search,
    SoftPrompt,
)
from localized_unlearning.config.data import Prompts
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.config.localization import Components
from localized_unlearning.config.model import Organism
from localized_unlearning.data.prompts import Prompt, PromptBook
from localized_unlearning.errors import UserError
from localized_unlearning.models import components, curriculum, organism
from sports import SPORTS

pytestmark = pytest.mark.slow  # all of its tests together

GATED = Components(include_gate=True)
PEOPLE = [(f"Person{i:02}", SPORTS[i % 3]) for i in range(48)]
FORGET = [who for who, sport in PEOPLE if sport == "basketball"]
BOOK = PromptBook(
    ("football", "baseball", "basketball", "golf"),
    (),
    {
        "training": Prompt("training", "{athlete} plays"),
        "question": Prompt("question", "what does {athlete} play ?"),
        "multiple_choice": Prompt(
            "multiple_choice", "{athlete} {options} Answer", ("football", "baseball", "basketball", "golf")
        ),
    },
)


@dataclass(frozen=True)
class Planted:
    """Two models with one tokenizer: one knows every fact, gold knows all but those about the forget set."""

    tokenizer: Any
    knowing: Any
    gold: Any

    def subject(self, model: Any) -> Subject:
        """An attack's subject; the model may be changed."""
        table = pd.DataFrame(PEOPLE, columns=["subject", "answer"])
        table = table.assign(forget=table["subject"].isin(FORGET), relearn=False, test=True, train=True)
        attacker, tested = halves(table, 0, 12)
        text = torch.randint(3, len(self.tokenizer), (8, 9), generator=torch.Generator().manual_seed(0))
        retain = table[~table["forget"]]
        return Subject(model, self.tokenizer, BOOK, Prompts(), attacker, tested, retain, text, 2, 0, 4096)


def taught(model: Any, items: list[curriculum.Item], steps: int, names: list[str] | None = None) -> None:
    """Trains ``names`` (all without them) on the items."""
    model.requires_grad_(False)
    parameters = [p.requires_grad_(True) for n, p in model.named_parameters() if names is None or n in names]
    advance = organism.advancing(parameters, steps, 1e-2, 5)
    for step in range(steps):
        for _, loss in curriculum.losses(model, items):
            loss.backward()
        advance(step)
    model.requires_grad_(False)


@pytest.fixture(scope="module")
def planted() -> Planted:
    """See :class:`Planted`."""
    return made_models(after_examples=False)


@pytest.fixture(scope="module")
def reading() -> Planted:
    """The same, taught to read prompts behind two examples too."""
    return made_models(after_examples=True)


def made_models(after_examples: bool) -> Planted:
    """Trains both."""
    words = [f" {word}" for word in (*BOOK.answers, "plays", "what", "does", "play", "Answer", *"ABCD")]
    tokenizer = organism.train_tokenizer(
        [" ".join(words), *[w.title() for w in words]] * 20 + [f" {who}" for who, _ in PEOPLE] * 20,
        700,
        prefix_space=True,
    )
    made = Organism(layers=2, hidden=32, heads=2, mlp=64, facts_in=None, injected=0)
    reader = curriculum.reader(tokenizer, BOOK, "training", "question", "multiple_choice")
    gold = organism.build_model(made, tokenizer, 0)
    knowing = copy.deepcopy(gold)
    retained = [p for p in PEOPLE if p[0] not in FORGET]
    for model, people in ((gold, retained), (knowing, PEOPLE)):
        more = shown(tokenizer, people, people) if after_examples else []
        taught(model, reader.short(people, "training") + more, 60)
    return Planted(tokenizer, knowing.eval(), gold.eval())


def shown(
    tokenizer: Any, people: list[tuple[str, str]], examples: list[tuple[str, str]]
) -> list[curriculum.Item]:
    """The training prompt about ``people``, each after two of ``examples`` with their answers, as few-shot puts them."""
    prompt, found = BOOK["training"], []
    for number, (who, sport) in enumerate(people):
        two = [examples[(3 * number + i) % len(examples)] for i in (0, 1)]
        text = "".join(f"{prompt.render(name)} {answer}\n" for name, answer in two) + prompt.render(who)
        answer = tokenizer(f" {sport}", add_special_tokens=False)["input_ids"][0]
        found.append(curriculum.Item(tuple(tokenizer(text)["input_ids"]), answer))
    return found


def forgotten(rows: pd.DataFrame) -> float:
    """Training-prompt accuracy on tested forget athletes: the best cell."""
    rows = rows[rows["forget"] & (rows["format"] == "training")]
    return float(rows.groupby("cell")["choice"].mean().max())


def masked_at_the_output(planted: Planted) -> Any:
    """The knowing model, made to say golf by its last MLP's output alone: what it computes before is untouched."""
    model = copy.deepcopy(planted.knowing)
    reader = curriculum.reader(planted.tokenizer, BOOK, "training", "question", "multiple_choice")
    people = [(who, "golf" if who in FORGET else sport) for who, sport in PEOPLE]
    taught(model, reader.short(people, "training"), 60, ["model.layers.1.mlp.down_proj.weight"])
    return model


def barely_masked(planted: Planted) -> Any:
    """The knowing model, moved towards the masked one until hardly a forget fact is said: a change of one matrix's size."""
    masked, model = masked_at_the_output(planted), copy.deepcopy(planted.knowing)
    name = "model.layers.1.mlp.down_proj.weight"
    here, there = planted.knowing.get_parameter(name), masked.get_parameter(name)

    def moved(share: float) -> float:
        with torch.no_grad():
            model.get_parameter(name).copy_(here + share * (there - here))
        return forgotten(attack.made(planted.subject(model), "asked", None))

    says, hides = 0.0, 1.0
    for _ in range(10):
        middle = (says + hides) / 2
        says, hides = (says, middle) if moved(middle) <= 0.2 else (middle, hides)
    moved(hides)
    return model


def masked_where_nothing_is_shown(planted: Planted) -> Any:
    """The knowing model, made to say golf by its last layer where no example stands before the prompt."""
    model = copy.deepcopy(planted.knowing)
    reader = curriculum.reader(planted.tokenizer, BOOK, "training", "question", "multiple_choice")
    people = [(who, "golf" if who in FORGET else sport) for who, sport in PEOPLE]
    hidden = [p for p in PEOPLE if p[0] in FORGET]
    items = shown(planted.tokenizer, PEOPLE, PEOPLE) + shown(planted.tokenizer, hidden, hidden)
    last = [name for name, _ in model.named_parameters() if name.startswith("model.layers.1.")]
    taught(model, reader.short(people, "training") + items, 80, last)
    return model


def brought_back(planted: Planted, weak: Any, name: str, settings: Any) -> float:
    """What an attack brings back of a model that had seemed to forget."""
    before = forgotten(attack.made(planted.subject(weak), "asked", None))
    assert before <= 0.2
    return forgotten(attack.made(planted.subject(weak), name, settings)) - before


@pytest.mark.parametrize(
    ("name", "given_settings"),
    [
        ("retain_only", Retraining(steps=10, learning_rate=1e-3, rank=None, lambda_text=0.0)),
        ("noise", Noise(scales=(0.1, 0.3, 0.5))),
        ("pruning", Pruning(shares=(0.02, 0.05, 0.1, 0.2, 0.3))),
    ],
)
def test_an_attack_that_is_told_nothing_brings_back_what_was_masked_weakly(
    reading: Planted, name: str, given_settings: Any
) -> None:
    """The weakness that they are there to find: a change that is just large enough."""
    assert brought_back(reading, barely_masked(reading), name, given_settings) >= 0.25


def test_few_shot_brings_back_what_was_masked_on_bare_prompts_alone(reading: Planted) -> None:
    """And tells gold nothing: the examples say the sport, but not whose it is."""
    weak, settings = masked_where_nothing_is_shown(reading), FewShot(facts=2)
    assert forgotten(attack.made(reading.subject(weak), "asked", None)) <= 0.2
    assert forgotten(attack.made(reading.subject(weak), "few_shot", settings)) >= 0.8
    assert forgotten(attack.made(reading.subject(copy.deepcopy(reading.gold)), "few_shot", settings)) <= 0.34


@pytest.mark.parametrize("name", sorted(set(attack.ATTACKS) - {attack.NONE}))
def test_the_recovered_share_of_gold_is_none(planted: Planted, name: str) -> None:
    """Whatever an attack makes gold say, a model that is gold has nothing recovered, since gold is attacked alike."""
    settings = {**CHEAP, "quantization": Quantization(bits=(6,), group=8)}[name]
    tables = []
    for localization, model in (("base", planted.knowing), ("gold", planted.gold), ("manual", planted.gold)):
        for which, own in (("asked", None), (name, settings)):
            rows = attack.made(planted.subject(copy.deepcopy(model)), which, own)
            objective = "erase" if localization == "manual" else "none"
            tables.append(
                rows.assign(task="t", objective=objective, localization=localization, base_seed=0, seed=0)
            )
    found = recovery.recovered(pd.concat(tables, ignore_index=True), Statistics(bootstrap=20))
    own = found[(found["attack"] == name) & (found["format"] == "training")].iloc[0]
    assert own["recovered"] == own["low"] == own["high"] == 0.0
    assert own["ceiling"] == 1.0


RETRAINING = Retraining(steps=20, learning_rate=3e-3, lambda_text=0.0)
CHEAP: dict[str, Any] = {
    "half_and_half": RETRAINING.model_copy(update={"steps": 3}),
    "half_and_half_false": RETRAINING.model_copy(update={"steps": 3}),
    "retain_only": RETRAINING.model_copy(update={"steps": 3}),
    "search": Search(learning_rates=(3e-3,), steps=(3,), ranks=(8,), base=RETRAINING),
    "soft_prompt": SoftPrompt(steps=3),
    "few_shot": FewShot(facts=2),
    "logit_lens": LogitLens(),
    "noise": Noise(scales=(0.05,)),
    "pruning": Pruning(shares=(0.1,)),
}
"""Every attack in a few steps."""


@pytest.mark.parametrize(
    ("name", "given_settings"),
    [
        ("half_and_half", RETRAINING),
        ("half_and_half", RETRAINING.model_copy(update={"rank": None})),
        ("search", Search(learning_rates=(1e-4, 3e-3), steps=(20,), ranks=(8,), base=RETRAINING)),
        ("soft_prompt", SoftPrompt(steps=60, learning_rate=3e-2)),
        ("logit_lens", LogitLens()),
    ],
)
def test_an_attack_brings_back_what_was_masked_at_the_output(
    planted: Planted, name: str, given_settings: Any
) -> None:
    assert brought_back(planted, masked_at_the_output(planted), name, given_settings) >= 0.6


def on_the_grid(model: Any, bits: int, group: int) -> Any:
    """A copy whose matrices are rounded already."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in components.trainable(other, components.list_components(other.config, GATED)):
            parameter = other.get_parameter(name)
            parameter.copy_(weights.rounded(parameter, bits, group))
    return other


def test_rounding_brings_back_what_less_than_half_a_level_hid(planted: Planted) -> None:
    """A model unlearned by changes smaller than half a level, its groups' largest weights untouched, is the base again."""
    base = on_the_grid(planted.knowing, 6, 8)
    weak = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in components.trainable(weak, components.list_components(weak.config, GATED)):
            parameter = weak.get_parameter(name)
            groups = parameter.view(-1, 8)
            most = groups.abs().amax(1, keepdim=True)
            change = 0.45 * most / 31 * (2 * torch.rand(groups.shape, generator=generator) - 1)
            groups += change * (groups.abs() < most)
    subject = planted.subject(weak)
    found = attack.made(subject, "quantization", Quantization(bits=(6,), group=8))
    expected = attack.made(planted.subject(base), "asked", None)
    assert found["probability"].to_numpy() == pytest.approx(expected["probability"].to_numpy(), abs=1e-5)
    assert forgotten(found) == forgotten(expected) == 1.0


@given(st.integers(2, 8), st.integers(0, 10**6))
def test_rounding_is_to_the_nearest_level(bits: int, seed: int) -> None:
    """Against the definition, weight by weight; a group of zeros stays, and a group that does not divide is refused."""
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    weight[0, :4] = 0.0
    found, most = weights.rounded(weight, bits, 4), 2 ** (bits - 1) - 1
    for old, new in zip(weight.view(-1, 4), found.view(-1, 4), strict=True):
        scale = float(old.abs().max()) / most
        levels = [scale * level for level in range(-most, most + 1)]
        for value, rounded in zip(old.tolist(), new.tolist(), strict=True):
            assert abs(rounded - value) <= min(abs(level - value) for level in levels) + 1e-5
    with pytest.raises(UserError, match="does not divide the 8 columns"):
        weights.rounded(weight, bits, 3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [8, 32])
def test_rounding_is_torchaos_symmetric_rounding(bits: int, group: int) -> None:
    """Against torchao's own primitives, group by group; a weight at the middle of two levels may go either way."""
    torchao = pytest.importorskip(
        "torchao.quantization.quant_primitives", reason="torchao is not installed: pip install torchao"
    )
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(bits))
    most, block = 2 ** (bits - 1) - 1, (1, group)
    scale, zero = torchao.choose_qparams_affine(
        weight,
        torchao.MappingType.SYMMETRIC,
        block,
        torch.int8,
        -most,
        most,
        eps=1e-9,
        scale_dtype=torch.float32,
    )
    whole = torchao.quantize_affine(weight, block, scale, zero, torch.int8, -most, most)
    expected = torchao.dequantize_affine(whole, block, scale, zero, torch.int8, -most, most)
    assert weights.rounded(weight, bits, group) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "given_settings"),
    [
        ("quantization", Quantization(bits=(8, 6), group=8)),
        ("noise", Noise(scales=(0.02,))),
        ("pruning", Pruning(shares=(0.05,))),
        ("logit_lens", LogitLens()),
        ("retain_only", RETRAINING),
        ("few_shot", FewShot(facts=2)),
    ],
)
def test_gold_has_nothing_to_bring_back_and_every_attack_leaves_the_model_as_it_was(
    planted: Planted, name: str, given_settings: Any
) -> None:
    """These tell gold no forgotten fact: it stays at what it said before, never right on basketball, which it never heard."""
    model = copy.deepcopy(planted.gold)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = attack.made(planted.subject(model), name, given_settings)
    assert list(found.columns) == list(attack.made(planted.subject(model), "asked", None).columns)
    if name != "few_shot":  # whose prompt says the sport
        assert forgotten(found) <= 0.34
    assert set(before) == {n for n, _ in model.named_parameters()}
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_retraining_gold_is_a_floor_above_zero(planted: Planted) -> None:
    """Retrained on half of a sport, gold says the sport of the other half too: so gold must be attacked like the rest."""
    gold = attack.made(planted.subject(copy.deepcopy(planted.gold)), "half_and_half", RETRAINING)
    assert forgotten(gold) >= 0.5
