"""Context length: every prompt is held to it before anything runs; worked examples give way."""

from __future__ import annotations

import pandas as pd
import pytest

from architectures import tokenizer
from localized_unlearning.config.data import Mmlu
from localized_unlearning.data import mmlu
from localized_unlearning.data.prompts import Prompt
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation import knowledge, lengths

PROMPTS = {"training": Prompt("training", "Fact: {subject} plays the sport of")}
FACTS = pd.DataFrame({"subject": ["Al", "Bartholomew Featherstonehaugh", "Cy Court"]})


def questions() -> mmlu.Questions:
    """Questions of many lengths about one subject, with five worked examples."""

    def one(number: int, words: int) -> mmlu.Question:
        return mmlu.Question("algebra", "why " * words + "?", ("a", "b", "c", "d"), number % 4, f"q{number}")

    return mmlu.Questions([one(100 + n, 4) for n in range(5)], [one(n, 2 + 3 * n) for n in range(8)])


def encoded(text: str) -> int:
    """Tokens of a text, tokenised by itself."""
    return len(tokenizer()(text)["input_ids"])


def test_the_longest_prompt_is_that_of_all_prompts() -> None:
    """Catches a subject that is left out, or characters in place of tokens."""
    found = lengths.lengths(
        tokenizer(),
        None,
        FACTS,
        PROMPTS,
        ("golf", "tennis"),
        {"mmlu": (questions(), Mmlu(questions=None))},
        9,
    )
    longest = max(FACTS["subject"], key=lambda who: encoded(PROMPTS["training"].render(who)))
    assert found["training"]["item"] == longest
    assert found["training"]["tokens"] >= encoded(PROMPTS["training"].render(longest))
    assert found["mmlu"]["item"] == "q7" and found["text"]["tokens"] == 9


@pytest.mark.parametrize("limit", [200, 260, 320])
def test_a_question_gets_as_many_worked_examples_as_fit(limit: int) -> None:
    """Catches one example too few or too many, against trying every number of them."""
    settings = Mmlu(shots=5, questions=None)
    asked, examples = knowledge.chosen(questions(), settings)
    ids, shots = knowledge.fitted(tokenizer(), asked, examples, settings, limit)
    for question, own, got in zip(asked, ids, shots, strict=True):
        fits = [n for n in range(6) if encoded(mmlu.ask(question, examples, n)) <= limit]
        assert got == max(fits) and len(own) == encoded(mmlu.ask(question, examples, got)) <= limit
    assert len(set(shots)) > 1
    found = lengths.of_questions(tokenizer(), questions(), settings, limit)
    assert found["fewer_shots"] == sum(shot < 5 for shot in shots)


def test_what_does_not_fit_is_named() -> None:
    """Catches an answer of a model that has read half of its prompt: item, tokens and limit in one sentence."""
    longest = encoded(PROMPTS["training"].render("Bartholomew Featherstonehaugh"))
    with pytest.raises(UserError, match=rf"'training' about 'Bartholomew .*the model takes {longest - 1} "):
        lengths.lengths(tokenizer(), longest - 1, FACTS, PROMPTS, ("golf", "tennis"), {}, 9)
    with pytest.raises(UserError, match=r"a window about 'text' has 99 tokens.*lower text.tokens"):
        lengths.lengths(tokenizer(), 90, FACTS, {}, ("golf", "tennis"), {}, 99)
    strict = Mmlu(shots=5, questions=None, fewer_shots=False)
    with pytest.raises(
        UserError, match=r"question q\d has \d+ tokens with 5 worked examples.*or allow fewer_shots"
    ):
        lengths.of_questions(tokenizer(), questions(), strict, 200)
    with pytest.raises(UserError, match=r"question q\d has \d+ tokens with 0 worked examples.*leave it out"):
        lengths.of_questions(tokenizer(), questions(), Mmlu(questions=None), 30)
