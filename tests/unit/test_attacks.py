"""Attacks: each recovers a planted weak unlearning, and nothing from the model that never knew."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch

from localized_unlearning.attacks import attack
from localized_unlearning.attacks.subject import Subject, halves
from localized_unlearning.config.attacks import LogitLens, Retraining, Search, SoftPrompt
from localized_unlearning.config.data import Prompts
from localized_unlearning.config.model import Organism
from localized_unlearning.data.prompts import Prompt, PromptBook
from localized_unlearning.models import curriculum, organism
from sports import SPORTS

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
        table = pd.DataFrame(PEOPLE, columns=["athlete", "sport"])
        table = table.assign(forget=table["athlete"].isin(FORGET), relearn=False, test=True, train=True)
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
    taught(gold, reader.short([p for p in PEOPLE if p[0] not in FORGET], "training"), 60)
    taught(knowing, reader.short(PEOPLE, "training"), 60)
    return Planted(tokenizer, knowing.eval(), gold.eval())


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


RETRAINING = Retraining(steps=20, learning_rate=3e-3, lambda_text=0.0)


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
def test_an_attack_brings_back_what_was_masked_at_the_output_and_nothing_that_was_never_known(
    planted: Planted, name: str, given_settings: Any
) -> None:
    weak = masked_at_the_output(planted)
    before = forgotten(attack.made(planted.subject(weak), "asked", None))
    assert before <= 0.2
    found = forgotten(attack.made(planted.subject(weak), name, given_settings))
    # On gold too the attack says the answer (all are basketball): recovered is what it says beyond that.
    assert found - before >= 0.6
