"""General knowledge in MMLU's format: the side effects of unlearning (section 3.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning.config.data import Mmlu
from localized_unlearning.data import mmlu
from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.answers import LETTERS
from localized_unlearning.data.prompts import LETTERED
from localized_unlearning.evaluation.asking import Asked, answered
from localized_unlearning.evaluation.rows import write_rows
from localized_unlearning.models import packing
from localized_unlearning.models.checkpoint import checkpoint

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def ask_questions(
    model: Any, tokenizer: Any, questions: mmlu.Questions, settings: Mmlu, batch_tokens: int
) -> pd.DataFrame:
    """One row per test question, 0-shot or with ``settings.shots`` worked examples of its subject.

    Columns: ``item``, ``subject``, ``answer_index``, ``logit_A`` and so on (as many as the longest
    question has choices; minus infinity beyond a question's own), ``log_normalizer`` and ``argmax_right``.
    """
    return answered(model, [questions_asked(tokenizer, questions, settings)], batch_tokens)[0]


def questions_asked(tokenizer: Any, questions: mmlu.Questions, settings: Mmlu) -> Asked:
    """What :func:`ask_questions` asks."""
    asked = questions.test
    if settings.questions is not None:
        asked = mmlu.stratified_subset(asked, settings.questions, settings.seed)
    examples: dict[str, list[mmlu.Question]] = {}
    for question in questions.dev:
        examples.setdefault(question.subject, []).append(question)
    texts = [mmlu.ask(q, examples, settings.shots) for q in asked]
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

    return Asked(tokens_module.encode(tokenizer, texts), tokens, rows)


def run(job: Job) -> None:
    """Stage: one model's answers to general-knowledge questions."""
    questions = mmlu.load_questions(job.inputs["mmlu"])
    job.facts.update(seeds={"mmlu": job.config.mmlu.seed})
    with checkpoint(job) as (model, tokenizer, batch_tokens):
        rows = ask_questions(model, tokenizer, questions, job.config.mmlu, batch_tokens)
    write_rows(job, "mmlu", rows)
