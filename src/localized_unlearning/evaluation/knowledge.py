"""General knowledge in MMLU's format: the side effects of unlearning (section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning.config.data import Mmlu
from localized_unlearning.data import mmlu
from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.answers import LETTERS
from localized_unlearning.data.prompts import LETTERED
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation.asking import Asked, answered
from localized_unlearning.evaluation.rows import write_rows
from localized_unlearning.models import loading, packing
from localized_unlearning.models.checkpoint import checkpoint

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def ask_questions(
    model: Any, tokenizer: Any, questions: mmlu.Questions, settings: Mmlu, batch_tokens: int
) -> pd.DataFrame:
    """One row per test question, 0-shot or with ``settings.shots`` worked examples of its subject.

    Columns: ``item``, ``subject``, ``answer_index``, ``shots`` (worked examples in the prompt), ``logit_A`` and so on (as
    many as the longest question has choices; minus infinity beyond a question's own), ``log_normalizer`` and ``argmax_right``.
    """
    return answered(
        model,
        [questions_asked(tokenizer, questions, settings, loading.context_length(model.config))],
        batch_tokens,
    )[0]


Examples = dict[str, list[mmlu.Question]]
"""Worked examples by subject."""


def chosen(questions: mmlu.Questions, settings: Mmlu) -> tuple[list[mmlu.Question], Examples]:
    """The test questions that are asked, and the worked examples of each subject."""
    asked = list(questions.test)
    if settings.questions is not None:
        asked = list(mmlu.stratified_subset(asked, settings.questions, settings.seed))
    examples: Examples = {}
    for question in questions.dev:
        examples.setdefault(question.subject, []).append(question)
    return asked, examples


def fitted(
    tokenizer: Any, asked: Sequence[mmlu.Question], examples: Examples, settings: Mmlu, limit: int | None
) -> tuple[list[list[int]], list[int]]:
    """Token ids of each question's prompt, and the worked examples in it: as many as are wanted and fit ``limit``.

    Raises:
        UserError: when a question does not fit, and ``settings.fewer_shots`` forbids fewer examples or none are left.
    """
    encoded = tokens_module.encode(tokenizer, [mmlu.ask(q, examples, settings.shots) for q in asked])
    shots = [settings.shots] * len(asked)
    for index, question in enumerate(asked):
        while limit is not None and len(encoded[index]) > limit:
            if not (settings.fewer_shots and shots[index]):
                remedy = (
                    "leave it out or use another model"
                    if not shots[index]
                    else "lower shots, or allow fewer_shots"
                )
                raise UserError(
                    f"question {question.id} has {len(encoded[index]):,} tokens with {shots[index]} worked examples, and "
                    f"the model takes {limit:,} (its context length): {remedy}"
                )
            shots[index] -= 1
            encoded[index] = tokens_module.encode(tokenizer, [mmlu.ask(question, examples, shots[index])])[0]
    return encoded, shots


def questions_asked(
    tokenizer: Any, questions: mmlu.Questions, settings: Mmlu, limit: int | None = None
) -> Asked:
    """What :func:`ask_questions` asks; with fewer worked examples where a prompt passes ``limit`` tokens."""
    asked, examples = chosen(questions, settings)
    encoded, shots = fitted(tokenizer, asked, examples, settings, limit)
    texts = [mmlu.ask(q, examples, shot) for q, shot in zip(asked, shots, strict=True)]
    counts = np.array([len(q.choices) for q in asked])
    letters = LETTERS[: max(counts, default=0)]
    tokens = tokens_module.first_tokens(
        tokens_module.answer_tokens(tokenizer, LETTERED, texts, letters), letters
    )

    def rows(scores: packing.NextToken) -> pd.DataFrame:
        table = pd.DataFrame(
            {
                "item": [q.id for q in asked],
                "subject": [q.subject for q in asked],
                "answer_index": [q.answer for q in asked],
                "shots": shots,
            }
        )
        for index, letter in enumerate(letters):
            own = scores.candidates[:, index].numpy()
            table[f"logit_{letter}"] = np.where(index < counts, own, own.dtype.type(-np.inf))
        table["log_normalizer"] = scores.log_normalizer.numpy()
        table["argmax_right"] = [
            int(a) == tokens[q.answer] for a, q in zip(scores.argmax, asked, strict=True)
        ]
        return table

    return Asked(encoded, tokens, rows)


def run(job: Job) -> None:
    """Stage: one model's answers to general-knowledge questions."""
    questions = mmlu.load_questions(job.inputs["mmlu"])
    job.facts.update(seeds={"mmlu": job.config.mmlu.seed})
    with checkpoint(job) as (model, tokenizer, batch_tokens):
        rows = ask_questions(model, tokenizer, questions, job.config.mmlu, batch_tokens)
    write_rows(job, "mmlu", rows)
