"""What a model is asked, and its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from localized_unlearning.config.data import Mmlu
from localized_unlearning.data.answers import candidates
from localized_unlearning.data.mmlu import load_questions
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.evaluation.asking import Ready, answers, ready
from localized_unlearning.evaluation.facts import facts_asked
from localized_unlearning.evaluation.knowledge import questions_asked
from localized_unlearning.evaluation.multiple_choice import choices_asked, orders_of
from localized_unlearning.evaluation.rows import test_part
from localized_unlearning.models import loading

if TYPE_CHECKING:
    from localized_unlearning.data.mmlu import Questions
    from localized_unlearning.data.prompts import Prompt
    from localized_unlearning.jobs.job import Job


@dataclass(frozen=True)
class Exam:
    """What a model is asked.

    Attributes:
        athletes: rows of the split, with columns ``subject``, ``answer``, ``forget`` and ``relearn``.
        prompts: the fact prompts.
        answers: the candidate answers.
        multiple_choice: the multiple-choice prompt.
        orders: its option orders, of ``fixed`` and ``shuffled``; the first one counts.
        shuffled_seed: seed of the shuffled orders.
        questions: general knowledge, all of it.
        mmlu: which of the questions, and with how many worked examples.
    """

    athletes: pd.DataFrame
    prompts: tuple[Prompt, ...]
    answers: tuple[str, ...]
    multiple_choice: Prompt
    orders: tuple[str, ...]
    shuffled_seed: int
    questions: Questions
    mmlu: Mmlu


def short_exam(job: Job) -> Exam:
    """The exam at each point of a series (relearning iterations, mask sizes): the first of ``measures.prompts`` alone,
    which figures and claims read, the option order that counts, and fewer retained athletes and questions than the tables'.

    Every forget-set athlete of the test part stays; the others are drawn once, by seed.
    """
    config, series = job.config, job.config.series
    athletes, book = test_part(job), load_prompts(job.inputs["prompts"])
    forget, retain = athletes[athletes["forget"]], athletes[~athletes["forget"]]
    if series.retain is not None and series.retain < len(retain):
        retain = retain.sample(series.retain, random_state=series.seed).sort_index()
    return Exam(
        pd.concat([forget, retain], ignore_index=True),
        (book[getattr(config.prompts, config.measures.prompts[0])],),
        candidates(book, athletes),
        book[config.prompts.multiple_choice],
        orders_of(config.evaluation, both=False)[: series.orders],
        config.evaluation.shuffled_seed,
        load_questions(job.inputs["mmlu"]),
        config.mmlu.model_copy(update={"questions": series.questions, "shots": series.shots}),
    )


class Sheet(NamedTuple):
    """An exam in batches, to be put to any number of models, and which table each of its parts belongs to."""

    ready: Ready
    tables: list[str]


def sheet(exam: Exam, tokenizer: Any, model: Any, batch_tokens: int) -> Sheet:
    """An exam's prompts, rendered, tokenised and packed once, for models of this device and config."""
    parts = {
        "facts": facts_asked(tokenizer, exam.athletes, exam.prompts, exam.answers),
        "multiple_choice": choices_asked(
            tokenizer,
            exam.athletes,
            exam.multiple_choice,
            exam.orders,
            exam.shuffled_seed,
            exam.orders[0],
        ),
        "mmlu": [questions_asked(tokenizer, exam.questions, exam.mmlu, loading.context_length(model.config))],
    }
    asked = [part for some in parts.values() for part in some]
    return Sheet(ready(model, asked, batch_tokens), [name for name, some in parts.items() for _ in some])


def take(exam: Sheet, model: Any) -> dict[str, pd.DataFrame]:
    """A model's answers: ``facts``, ``multiple_choice`` and ``mmlu``, one row per item."""
    found: dict[str, list[pd.DataFrame]] = {}
    for name, table in zip(exam.tables, answers(model, exam.ready), strict=True):
        found.setdefault(name, []).append(table)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}
