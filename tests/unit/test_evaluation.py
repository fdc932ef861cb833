"""Evaluations against their slow definition: one prompt, one forward pass of the Hugging Face model, its full logits."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from localized_unlearning.config.data import Mmlu
from localized_unlearning.data import mmlu
from localized_unlearning.data.answers import CHOICES, LETTERS
from localized_unlearning.data.prompts import PromptBook, load_prompts
from localized_unlearning.data.windows import text_windows
from localized_unlearning.evaluation import facts, knowledge, multiple_choice
from localized_unlearning.evaluation import text as text_module
from localized_unlearning.models import organism
from tiny_models import CONFIGS

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
ATHLETES = pd.DataFrame(
    {
        "athlete": ["Ada Ace", "Bo Bat", "Cy Court", "Dee Dunk-Downtown"],
        "sport": ["football", "baseball", "basketball", "basketball"],
        "forget": [False, False, True, True],
        "relearn": [False, False, True, False],
    }
)
VOCABULARY = 400


@pytest.fixture(scope="module")
def book() -> PromptBook:
    return load_prompts(RESOURCES / "prompts.yaml")


@pytest.fixture(scope="module")
def tokenizer(book: PromptBook) -> Any:
    words = (*CHOICES, *(c.capitalize() for c in CHOICES), *LETTERS)
    texts = [book[name].text for name in book.prompts] + [f" {w}" for w in words] * 30
    return organism.train_tokenizer(texts, VOCABULARY)


@pytest.fixture(params=["gemma", "neox"])
def model(request: pytest.FixtureRequest, float64: None) -> Any:
    import transformers

    config = CONFIGS[request.param]()
    config.vocab_size, config.max_position_embeddings = VOCABULARY, 4096
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config(config).double().eval().requires_grad_(False)


def slow(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    """Log-probabilities of the next token ``[vocabulary]``."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    return torch.log_softmax(model(input_ids=ids).logits[0, -1], 0)


def agrees(row: Any, expected: torch.Tensor, tokens: list[int], columns: list[str], right: int) -> None:
    """A row's logits are the slow definition's log-probabilities, and its argmax is the slow one's."""
    found = torch.tensor([row[c] for c in columns], dtype=torch.float64) - row["log_normalizer"]
    assert torch.allclose(found, expected[tokens], atol=2e-6)  # rows keep float32
    assert row["argmax_right"] == (int(expected.argmax()) == right)


def first_token(tokenizer: Any, word: str) -> int:
    return int(tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0])


def test_facts(model: Any, tokenizer: Any, book: PromptBook) -> None:
    prompts = [book["training"], book["question"]]
    rows = facts.ask_facts(model, tokenizer, ATHLETES, prompts, 128)
    tokens = [first_token(tokenizer, c) for c in CHOICES]
    assert list(rows["prompt"]) == ["training"] * 4 + ["question"] * 4
    for _, row in rows.iterrows():
        assert CHOICES[row["answer"]] == row["sport"]
        expected = slow(model, tokenizer, book[row["prompt"]].render(row["athlete"]))
        agrees(row, expected, tokens, [f"logit_{c}" for c in CHOICES], tokens[row["answer"]])


def test_answers_spelled_otherwise_and_scored_whole(model: Any, tokenizer: Any, book: PromptBook) -> None:
    """Token by token over the whole answer, one forward pass each: what the packed beginnings must add up to."""
    rows = facts.ask_facts(model, tokenizer, ATHLETES, [book["capitalized"], book["dashed"]], 128)
    for _, row in rows.iterrows():
        prompt = book[row["prompt"]]
        text = prompt.render(row["athlete"])
        if not prompt.whole_answer:
            tokens = [first_token(tokenizer, c) for c in prompt.answers]
            agrees(
                row,
                slow(model, tokenizer, text),
                tokens,
                [f"logit_{c}" for c in CHOICES],
                tokens[row["answer"]],
            )
            continue
        for choice, answer in zip(CHOICES, prompt.answers, strict=True):
            start = tokenizer(text)["input_ids"]
            spelled = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
            logs = torch.log_softmax(model(input_ids=torch.tensor([start + spelled])).logits[0], 1)[
                len(start) - 1 : -1
            ]
            expected = logs[range(len(spelled)), spelled].sum()
            assert len(spelled) > 1 and row[f"logit_{choice}"] == pytest.approx(float(expected), abs=1e-4)
            if choice == row["sport"]:
                assert row["argmax_right"] == (logs.argmax(1).tolist() == spelled)


def test_multiple_choice(model: Any, tokenizer: Any, book: PromptBook) -> None:
    """In both orders, the answer's letter stands before the athlete's sport in the very prompt that was read."""
    prompt = book["multiple_choice"]
    rows = multiple_choice.ask_multiple_choice(
        model, tokenizer, ATHLETES, prompt, ("fixed", "shuffled"), 3, 256
    )
    tokens = [first_token(tokenizer, letter) for letter in LETTERS]
    orders = set()
    for _, row in rows.iterrows():
        # The option order is read back from the text scores: each word's log-probability is its own.
        words = [row[f"text_{letter}"] for letter in LETTERS]
        matches = []
        for order in itertools.permutations(prompt.options):
            expected = slow(model, tokenizer, prompt.render(row["athlete"], order))
            scores = [float(expected[first_token(tokenizer, o.capitalize())]) for o in order]
            near = [abs(w - row["log_normalizer"] - s) < 2e-6 for w, s in zip(words, scores, strict=True)]
            if all(near):
                matches.append((order, expected))
        assert len(matches) == 1
        order, expected = matches[0]
        orders.add((row["order"], order))
        assert order[row["answer"]] == row["sport"]
        agrees(row, expected, tokens, [f"logit_{x}" for x in LETTERS], tokens[row["answer"]])
    assert {o for kind, o in orders if kind == "fixed"} == {tuple(prompt.options)}
    assert len({o for kind, o in orders if kind == "shuffled"}) > 1


@pytest.mark.parametrize("shots", [0, 2])
def test_general_knowledge(model: Any, tokenizer: Any, shots: int) -> None:
    questions = mmlu.load_questions(RESOURCES / "general_knowledge.csv")
    settings = Mmlu(shots=shots, questions=9, seed=4)
    rows = knowledge.ask_questions(model, tokenizer, questions, settings, 512)
    assert len(rows) == 9 and rows["subject"].nunique() >= 8  # stratified over the twelve subjects
    by_id = {q.id: q for q in questions.test}
    tokens = [first_token(tokenizer, letter) for letter in LETTERS]
    for _, row in rows.iterrows():
        question = by_id[row["item"]]
        examples = [q for q in questions.dev if q.subject == question.subject][:shots]
        expected = slow(model, tokenizer, mmlu.prompt(question, examples))
        agrees(row, expected, tokens, [f"logit_{x}" for x in LETTERS], tokens[question.answer])


def test_text_loss_is_the_models_own(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    text = (RESOURCES / "text" / "held_out.txt").read_text(encoding="utf-8")
    rows = text_module.read_text(model, tokenizer, text.splitlines(), 12, 5, 30)

    for row, window in zip(
        rows.itertuples(), text_windows(tokenizer, text.splitlines(), 12)[:5], strict=True
    ):
        assert float(model(input_ids=window[None], labels=window[None]).loss) == pytest.approx(
            row.loss, abs=1e-9
        )
