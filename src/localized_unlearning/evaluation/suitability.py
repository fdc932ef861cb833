"""Stage: the check of a base model and of what it will be asked, before anything is computed with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.config.data import Mmlu
from localized_unlearning.config.run import Config
from localized_unlearning.data.answers import candidates, occurring, unoffered
from localized_unlearning.data.facts import load_facts
from localized_unlearning.data.mmlu import Questions, load_questions
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation.lengths import lengths
from localized_unlearning.models import checking, loading
from localized_unlearning.models import device as device_module

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def exams_of(config: Config, mmlu: Path, series: Path | None) -> dict[str, tuple[Questions, Mmlu]]:
    """The general-knowledge questions of the tables and of the series, and how each is asked."""
    settings, short = config.mmlu, config.series
    questions = load_questions(mmlu)
    at_points = settings.model_copy(update={"questions": short.questions, "shots": short.shots})
    return {
        "mmlu": (questions, settings),
        "series": (questions if series is None else load_questions(series), at_points),
    }


def prompts_fit(
    config: Config, tokenizer: Any, limit: int | None, inputs: Mapping[str, Path | None]
) -> dict[str, dict[str, Any]]:
    """:func:`lengths` of a run's evaluations.

    Args:
        config: the run's.
        tokenizer: the model's.
        limit: its context length.
        inputs: ``athletes``, ``prompts``, ``mmlu`` and ``series`` (None where it is ``mmlu``).
    """
    files = {name: Path(path) for name, path in inputs.items() if path is not None}
    book = load_prompts(files["prompts"])
    facts, _ = load_facts(files["athletes"], book.answers, config.athletes.relation)
    answers, choice = candidates(book, facts), book[config.prompts.multiple_choice]
    if not choice.facts and (fault := unoffered(choice.options, occurring(answers, facts))):
        raise UserError(fault)
    own = config.prompts
    names = dict.fromkeys((own.training, own.question, own.multiple_choice, *config.evaluation.prompts))
    return lengths(
        tokenizer,
        limit,
        facts,
        {name: book[name] for name in names},
        answers,
        exams_of(config, files["mmlu"], files.get("series")),
        config.text.tokens,
    )


def check_model(job: Job) -> None:
    """Stage: everything that later numbers take for granted, held to the model itself.

    Writes what was measured of the model (:func:`checking.check`), and apart, since nothing later reads it and so nothing
    is made again for it, the longest prompt of each evaluation (:func:`lengths`).

    Raises:
        UserError: the first thing that does not hold.
    """
    device = device_module.setup(job.config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], job.config.model.dtype, device)
    found = checking.check(model, tokenizer)
    limit = loading.context_length(model.config)
    fitting = prompts_fit(job.config, tokenizer, limit, job.inputs)
    job.facts.update(device=device, model_check=found)
    measured = {name: value for name, value in found.items() if name != "seconds"}
    for output, report in (("check", measured | {"context_length": limit}), ("longest", fitting)):
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        job.outputs[output].write_text(text, encoding="utf-8")
