"""The longest prompt of every evaluation beside the model's context length, before anything is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from localized_unlearning.config.data import Mmlu
from localized_unlearning.data import mmlu, tokens
from localized_unlearning.data.mmlu import Questions
from localized_unlearning.data.prompts import Prompt
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation import knowledge
from localized_unlearning.evaluation.multiple_choice import options_spelled

CANDIDATES = 32
"""Prompts with the most characters, among which the one with the most tokens is looked for."""

SPECIAL = 8
"""Tokens that a tokenizer may put around a text; else a text has no more tokens than bytes."""


@dataclass(frozen=True)
class Longest:
    """The longest prompt of an evaluation.

    Attributes:
        item: the subject or question that it is about.
        tokens: how many tokens it has.
    """

    item: str
    tokens: int


def longest(
    items: Sequence[str], texts: Sequence[str], encoded: Callable[[Sequence[str]], Sequence[Sequence[int]]]
) -> Longest:
    """The text with most tokens of those with most characters."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i].encode()))[:CANDIDATES]
    sizes = [len(ids) for ids in encoded([texts[i] for i in order])]
    most = max(range(len(order)), key=sizes.__getitem__)
    return Longest(items[order[most]], sizes[most])


def of_facts(tokenizer: Any, prompt: Prompt, subjects: Sequence[str], answers: Sequence[str]) -> Longest:
    """The longest prompt about a subject, with the longest answer behind it where it is scored whole."""
    options = sorted(prompt.options, key=len)[-prompt.shown :] if prompt.shown else None
    texts = [prompt.render(subject, options) for subject in subjects]
    found = longest(subjects, texts, lambda some: tokens.asked(tokenizer, prompt, some))
    if prompt.options:
        spelled = options_spelled(tokenizer, prompt, subjects[:1], texts[:1])[0]
    else:
        spelled = tokens.spelled_by(tokenizer, prompt, subjects[:1], texts[:1], answers)[0]
    whole = prompt.whole_answer or not tokens.told_apart(spelled)
    return Longest(found.item, found.tokens + (max(map(len, spelled)) - 1 if whole else 0))


def of_questions(tokenizer: Any, questions: Questions, settings: Mmlu, limit: int | None) -> dict[str, Any]:
    """The longest general-knowledge prompt, and how many are asked with fewer worked examples to fit ``limit``.

    Raises:
        UserError: when one does not fit, naming it.
    """
    asked, examples = knowledge.chosen(questions, settings)
    texts = [mmlu.ask(q, examples, settings.shots) for q in asked]
    found = longest([q.id for q in asked], texts, lambda some: tokens.encode(tokenizer, some))
    if limit is None or found.tokens <= limit:
        return {**vars(found), "fewer_shots": 0}
    long = [q for q, text in zip(asked, texts, strict=True) if len(text.encode()) + SPECIAL > limit]
    _, shots = knowledge.fitted(tokenizer, long, examples, settings, limit)
    return {**vars(found), "fewer_shots": sum(shot < settings.shots for shot in shots)}


def refuse(name: str, found: Longest, limit: int | None, remedy: str) -> None:
    """Refuse a prompt that passes the model's context length.

    Raises:
        UserError: with item, tokens and limit.
    """
    if limit is not None and found.tokens > limit:
        raise UserError(
            f"{name} about '{found.item}' has {found.tokens:,} tokens, and the model takes {limit:,} "
            f"(its context length): {remedy}"
        )


def lengths(
    tokenizer: Any,
    limit: int | None,
    facts: pd.DataFrame,
    prompts: Mapping[str, Prompt],
    answers: Sequence[str],
    exams: Mapping[str, tuple[Questions, Mmlu]],
    windows: int,
) -> dict[str, dict[str, Any]]:
    """The longest prompt of each evaluation.

    Args:
        tokenizer: the model's.
        limit: the model's context length in tokens; None where its config says none.
        facts: column ``subject``.
        prompts: those that facts are asked with, by name.
        answers: the candidate answers.
        exams: general-knowledge questions and how they are asked, by name.
        windows: tokens of a window of plain text.

    Returns:
        By evaluation: ``item``, ``tokens``, and of general knowledge ``fewer_shots``.

    Raises:
        UserError: for the first that does not fit.
    """
    table: dict[str, dict[str, Any]] = {}
    subjects = list(facts["subject"])
    for name, prompt in prompts.items():
        found = of_facts(tokenizer, prompt, subjects, answers)
        refuse(
            f"prompt '{name}'",
            found,
            limit,
            "shorten the prompt, leave that subject out, or use another model",
        )
        table[name] = vars(found)
    for name, (questions, settings) in exams.items():
        table[name] = of_questions(tokenizer, questions, settings, limit)
    text = Longest("text", windows)
    refuse("a window", text, limit, "lower text.tokens")
    return {**table, "text": vars(text)}
