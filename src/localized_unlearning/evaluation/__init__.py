"""Evaluations of one model: facts, multiple choice, general knowledge, plain text; one row per item.

Rows keep the logits, never a metric: any statistic can be recomputed without a model. One process
makes all four from one model load.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.config import Mmlu
from localized_unlearning.documents import read_documents
from localized_unlearning.evaluation.facts import ask_facts
from localized_unlearning.evaluation.knowledge import ask_questions
from localized_unlearning.evaluation.multiple_choice import ask_multiple_choice
from localized_unlearning.evaluation.text import read_text
from localized_unlearning.splits import read_split

if TYPE_CHECKING:
    from localized_unlearning.mmlu import Questions
    from localized_unlearning.prompts import Prompt
    from localized_unlearning.stages import Job

__all__ = ["ask_facts", "ask_multiple_choice", "ask_questions", "read_text", "run"]


@dataclass(frozen=True)
class Exam:
    """What a model is asked.

    Attributes:
        athletes: rows of the split, with columns ``athlete``, ``sport``, ``forget`` and ``relearn``.
        prompts: the fact prompts.
        multiple_choice: the multiple-choice prompt.
        orders: its option orders, of ``fixed`` and ``shuffled``.
        shuffled_seed: seed of the shuffled order.
        questions: general knowledge, all of it.
        mmlu: which of the questions, and with how many worked examples.
    """

    athletes: pd.DataFrame
    prompts: tuple[Prompt, ...]
    multiple_choice: Prompt
    orders: tuple[str, ...]
    shuffled_seed: int
    questions: Questions
    mmlu: Mmlu


def full_exam(job: Job) -> Exam:
    """The exam of the tables: the whole test part, every configured prompt, both option orders."""
    from localized_unlearning.mmlu import load_questions
    from localized_unlearning.prompts import load_prompts

    config = job.config
    split = read_split(job.inputs["split"])
    book = load_prompts(job.inputs["prompts"])
    names = (config.prompts.training, config.prompts.question, *config.evaluation.prompts)
    return Exam(
        split[split["test"]].reset_index(drop=True),
        tuple(book[name] for name in names),
        book[config.prompts.multiple_choice],
        ("fixed", "shuffled"),
        config.evaluation.shuffled_seed,
        load_questions(job.inputs["mmlu"]),
        config.mmlu,
    )


def short_exam(job: Job) -> Exam:
    """The exam at each point of a series (relearning iterations, mask sizes): fewer retained athletes and questions,
    and the training and the question prompt alone.

    Every forget-set athlete of the test part stays; the others are drawn once, by seed.
    """
    exam, series = full_exam(job), job.config.series
    forget = exam.athletes[exam.athletes["forget"]]
    retain = exam.athletes[~exam.athletes["forget"]]
    if series.retain is not None and series.retain < len(retain):
        retain = retain.sample(series.retain, random_state=series.seed).sort_index()
    return replace(
        exam,
        athletes=pd.concat([forget, retain], ignore_index=True),
        prompts=exam.prompts[:2],
        orders=("fixed",),
        mmlu=exam.mmlu.model_copy(update={"questions": series.questions, "shots": series.shots}),
    )


def take(exam: Exam, model: Any, tokenizer: Any, batch_tokens: int) -> dict[str, pd.DataFrame]:
    """A model's answers: ``facts``, ``multiple_choice`` and ``mmlu``, one row per item."""
    return {
        "facts": ask_facts(model, tokenizer, exam.athletes, exam.prompts, batch_tokens),
        "multiple_choice": ask_multiple_choice(
            model,
            tokenizer,
            exam.athletes,
            exam.multiple_choice,
            exam.orders,
            exam.shuffled_seed,
            batch_tokens,
        ),
        "mmlu": ask_questions(model, tokenizer, exam.questions, exam.mmlu, batch_tokens),
    }


def unlearned(job: Job, model: Any) -> Any:
    """A context in which ``model`` is the base model plus the job's delta, if it has one."""
    from localized_unlearning import models

    if not job.inputs.get("delta"):
        return nullcontext()
    digest = models.weights_digest(job.inputs["base_model"])
    return models.applied(model, models.read_delta(job.inputs["delta"], digest))


def identity(job: Job) -> dict[str, Any]:
    """The columns that say which model a row is about."""
    names = ("task", "objective", "localization", "seed")
    found = {name: job.wildcards[name] for name in names if name in job.wildcards}
    return {**found, "seed": int(job.wildcards["seed"])}


def run(job: Job) -> None:
    """Stage: evaluate the base model, or the base model plus a delta, on the test part."""
    from localized_unlearning import models

    config = job.config
    device = models.setup(config.compute)
    model, tokenizer = models.load(job.inputs["base_model"], config.model.dtype, device)
    tokens = models.batch_tokens(config.compute, model)
    text = read_documents(job.inputs["text"], config.text.documents)
    with unlearned(job, model):
        tables = take(full_exam(job), model, tokenizer, tokens)
        tables["text"] = read_text(model, tokenizer, text, config.text.tokens, config.text.windows, tokens)
    job.facts.update(
        seeds={"option_order": config.evaluation.shuffled_seed, "mmlu": config.mmlu.seed}, device=device
    )
    for name, table in tables.items():
        table.assign(**identity(job)).to_parquet(job.outputs[name], index=False)
