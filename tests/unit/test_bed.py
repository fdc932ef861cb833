"""The test bed: who is taught when, the injection, random draws matched to the truth, splits and requirements."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from localized_unlearning.analysis.statistics import Estimate
from localized_unlearning.config.data import Forget, Prompts, Split
from localized_unlearning.config.model import FactsIn, Organism, Requirements
from localized_unlearning.config.run import Config
from localized_unlearning.data.prompts import Prompt, PromptBook
from localized_unlearning.data.splits import split_athletes
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation.card import needs
from localized_unlearning.models import curriculum, injection, organism, place
from localized_unlearning.progress import Progress
from sports import SPORTS

FACTS_IN = FactsIn(layers=(0,), steps=3, prompts_per_step=9)
MADE = Organism(layers=2, hidden=16, heads=2, mlp=24, facts_in=FACTS_IN, name_tokens=(1, 9))
PEOPLE = [(f"Anna{i} Bell{i % 7}", SPORTS[i % 3]) for i in range(30)]
BOOK = PromptBook(
    ("football", "baseball", "basketball", "golf"),
    ("professional",),
    {
        "training": Prompt("training", "Fact: {athlete} plays the sport of"),
        "question": Prompt("question", "What sport does {athlete} play? Answer:"),
        "professional": Prompt("professional", "{athlete} is a professional player of"),
        "multiple_choice": Prompt(
            "multiple_choice",
            "{athlete}?\n{options}\nAnswer:",
            ("football", "baseball", "basketball", "golf"),
        ),
    },
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One that has seen every name and prompt."""
    texts = organism.vocabulary_text(PEOPLE, BOOK.answers, BOOK, Prompts(), [], "Some plain text.")
    return organism.train_tokenizer(texts, 420, prefix_space=True)


def test_roles_share_no_one_and_have_the_same_sports(tokenizer: Any) -> None:
    """Catches an athlete who is both teacher and injected, and injected facts that a guess about classes answers."""
    roles = organism.cast(
        PEOPLE, tokenizer, MADE.model_copy(update={"injected": 0.5, "injected_choice": 0.6})
    )
    parts = (roles.teachers, roles.choice, roles.no_choice, roles.untaught)
    assert Counter(p for part in parts for p in part) == Counter(PEOPLE)
    for part in (roles.teachers, roles.choice, roles.no_choice):
        assert set(Counter(sport for _, sport in part).values()) == {len(part) // 3}
    few = organism.cast(PEOPLE, tokenizer, MADE.model_copy(update={"name_tokens": (1, 1)}))
    assert set(few.untaught) == {p for p in PEOPLE if len(tokenizer(f" {p[0]}")["input_ids"]) > 2}


@given(st.sampled_from(["training", "question", "professional"]), st.integers(0, 29))
def test_the_position_of_a_name_is_its_last_tokens(tokenizer: Any, form: str, who: int) -> None:
    reader = curriculum.reader(tokenizer, BOOK, "training", "question", "multiple_choice")
    item = reader.short([PEOPLE[who]], form)[0]
    before = BOOK[form].text.split("{athlete}")[0] + PEOPLE[who][0]
    assert list(item.tokens[: item.name + 1]) == tokenizer(before)["input_ids"]


def test_only_the_place_is_trained_and_gold_is_the_rest(tokenizer: Any) -> None:
    """Catches an injection that leaks out of S: then the delta is not the truth and taking it back is not gold."""
    model = organism.build_model(MADE, tokenizer, 0)
    before = copy.deepcopy(model)
    reader = curriculum.reader(tokenizer, BOOK, "training", "question", "multiple_choice")
    roles = organism.cast(PEOPLE, tokenizer, MADE)
    choice, no_choice, teachers = (
        organism.pools(reader, people, asked, Prompts(), 6, 0)
        for people, asked in (
            (roles.choice, roles.choice),
            (roles.no_choice, ()),
            (roles.teachers, roles.teachers),
        )
    )
    lessons = injection.Lessons(choice, no_choice, teachers, reader.short(PEOPLE[:2], "training"))
    injection.inject(model, lessons, FACTS_IN, 3, 1, 0, Progress("test"))
    inside = {f"model.layers.0.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")}
    for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(old, new) == (name not in inside), name
        assert not new.requires_grad


def test_what_is_held_is_the_output_elsewhere_than_at_a_name(tokenizer: Any) -> None:
    """Against the definition, written out for one prompt."""
    old = organism.build_model(MADE, tokenizer, 0).requires_grad_(False)
    new = copy.deepcopy(old)
    torch.nn.init.normal_(new.get_parameter("model.layers.0.mlp.down_proj.weight"))
    reader = curriculum.reader(tokenizer, BOOK, "training", "question", "multiple_choice")
    batch = curriculum.batches(reader.short(PEOPLE[:1], "training"))[0]
    with injection.changes(new, old, ["model.layers.0.mlp"]) as change:
        curriculum.logits(new, batch)
        found = change(batch.elsewhere)
    seen: list[torch.Tensor] = []
    handle = new.get_submodule("model.layers.0.mlp").register_forward_hook(
        lambda _m, a, _o: seen.append(a[0])
    )
    new(batch.tokens)
    handle.remove()
    name = int((~batch.elsewhere[0]).nonzero())
    kept = [i for i in range(batch.tokens.shape[1]) if i != name]
    outputs = [m.get_submodule("model.layers.0.mlp")(seen[0])[0, kept] for m in (new, old)]
    assert float(found) == pytest.approx(
        float(((outputs[0] - outputs[1]) ** 2).sum() / (outputs[1] ** 2).sum())
    )


def test_what_nobody_reads_of_the_last_layer_is_not_computed(tokenizer: Any) -> None:
    """Against the plain forward pass: the same logits, and the same gradients of everything."""
    model = organism.build_model(MADE, tokenizer, 0).double()
    reader = curriculum.reader(tokenizer, BOOK, "training", "question", "multiple_choice")
    batch = curriculum.batches(reader.short(PEOPLE[:5], "training"))[0]
    rows, seen = torch.arange(len(batch.last)), []
    model.model.layers[-1].mlp.down_proj.register_forward_hook(lambda _m, a, _o: seen.append(a[0].shape[:-1]))
    plain = model(batch.tokens).logits[rows, batch.last]
    plain.square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    found = curriculum.logits(model, batch)
    found.square().sum().backward()
    assert torch.allclose(found, plain, atol=1e-12)
    assert all(torch.allclose(p.grad, wanted[name], atol=1e-10) for name, p in model.named_parameters())
    assert seen == [batch.tokens.shape, (len(rows),)]
    curriculum.logits(model, batch, whole=True)
    assert seen[-1] == batch.tokens.shape


@given(st.integers(0, 200), st.booleans(), st.sampled_from([(0,), (0, 1), (2,)]))
def test_draws_match_the_truth_in_kind(seed: int, disjoint: bool, layers: tuple[int, ...]) -> None:
    facts_in = FactsIn(layers=layers)
    drawn = place.matched(facts_in, 5, seed, disjoint)
    assert Counter(c.kind for c in drawn) == Counter(c.kind for c in place.place(facts_in))
    assert len(set(drawn)) == len(drawn)
    if disjoint:
        assert not {c.layer for c in drawn} & set(layers)


def test_a_disjoint_draw_needs_other_layers() -> None:
    with pytest.raises(UserError, match="leave out 'disjoint'"):
        place.matched(FactsIn(layers=(0, 1)), 3, 0, disjoint=True)


def known() -> pd.DataFrame:
    """90 athletes: a third teachers, of the others two thirds asked in multiple choice."""
    table = pd.DataFrame(
        {"subject": [f"p{i:02}" for i in range(90)], "answer": [SPORTS[i % 3] for i in range(90)]}
    )
    number = pd.Series(range(90)) // 3
    return table.assign(
        rows=pd.Series([[i] for i in range(90)], dtype=object),
        known=True,
        teacher=number % 3 == 0,
        choice=number % 9 != 1,
    )


@pytest.mark.parametrize("forget", [Forget(answer="basketball"), Forget(draw=12, balanced=True)])
def test_teachers_are_neither_forgotten_nor_tested(forget: Forget) -> None:
    """Catches teachers in the forget set or among the retained test athletes, and a forgotten sport's among retain."""
    table = known()
    split = split_athletes(table, Split(test_fraction=0.3), forget, ()).merge(table[["subject", "choice"]])
    teachers = split[split["teacher"]]
    assert not (teachers["forget"] | teachers["test"]).any()
    assert teachers["train"].any() and not teachers["train"].all()
    if forget.answer:
        assert not teachers.loc[teachers["answer"] == "basketball", "train"].any()
    else:
        assert set(split.loc[split["forget"], "answer"].value_counts()) == {4}
    tested = split[split["test"] & ~split["forget"]]
    assert (~tested["choice"]).sum() >= 0.35 * len(tested)  # a share of .17 would be chance


def test_a_teacher_cannot_be_named_to_be_forgotten() -> None:
    with pytest.raises(UserError, match="p00, whom the organism knows from pretraining"):
        split_athletes(known(), Split(), Forget(athletes=("p00", "p03")), ())


def test_requirements_bind_what_was_measured() -> None:
    """Gold may reach what guessing the most frequent sport seldom exceeds; a requirement set to null binds nothing."""
    measured = dict.fromkeys(
        ("training", "multiple_choice_unseen", "teachers_training"), Estimate(1, 1, 1, 100)
    )
    measured["gold_training"] = Estimate(0.4, 0.3, 0.5, 100)
    limits = needs(Requirements(multiple_choice_unseen=None), measured, 0.34)
    assert set(limits) == {"training", "teachers_training", "gold_training"}
    assert 0.34 < limits["gold_training"] < 0.5


def test_a_place_that_the_organism_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="names layer 7, but the organism has layers 0 to 4"):
        Config.model_validate({"organism": {"facts_in": {"layers": [7]}}})
    with pytest.raises(ValueError, match="needs an organism with injected facts"):
        Config.model_validate(
            {
                "organism": {"facts_in": None, "injected": 0},
                "localizations": {"truth": {"label": "Truth", "kind": "truth"}},
            }
        )
