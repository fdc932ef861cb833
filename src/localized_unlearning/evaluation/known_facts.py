"""Stage: which facts the base model knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from localized_unlearning.data.answers import candidates
from localized_unlearning.data.facts import load_facts
from localized_unlearning.data.prompts import RIGHT, WRONG, load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation.facts import ask_facts
from localized_unlearning.models import device as device_module
from localized_unlearning.models import loading
from localized_unlearning.models.lesson import read_lesson

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def known_facts(job: Job) -> None:
    """Stage: how well the base model knows each fact, and which facts are kept.

    Writes one row per athlete: ``subject``, ``answer``, ``rows``, ``probability`` (of the right answer
    over the whole vocabulary, training prompt), ``known`` (at least the threshold; all without one), ``teacher`` (an
    organism learned it in pretraining, before the facts that may be forgotten) and ``choice`` (it was asked about in
    multiple choice). Athletes whom an organism was never taught are not known.
    """
    book = load_prompts(job.inputs["prompts"])
    athletes, duplicates = load_facts(job.inputs["athletes"], book.answers, job.config.athletes.relation)
    answers = candidates(book, athletes)
    threshold = job.config.athletes.known_threshold
    device = device_module.setup(job.config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], job.config.model.dtype, device)
    prompt = book[job.config.prompts.training]
    tokens = device_module.batch_tokens(job.config.compute, model)
    asked = athletes.assign(forget=False, relearn=False)
    rows = ask_facts(model, tokenizer, asked, [prompt], answers, tokens)
    logits = rows[[f"logit_{answer}" for answer in answers]].to_numpy(dtype=np.float64)
    right = logits[range(len(rows)), rows["answer_index"]]
    athletes["probability"] = np.exp(right - rows["log_normalizer"].to_numpy(dtype=np.float64))
    said = read_lesson(job.inputs["base_model"])
    athletes["known"] = (athletes["probability"] >= (threshold or 0.0)) & ~athletes["subject"].isin(
        said["untaught"]
    )
    if prompt.facts:  # an answer and its false one that begin with the same token cannot be told apart
        apart = logits[:, answers.index(RIGHT)] != logits[:, answers.index(WRONG)]
        athletes["known"] &= apart
        job.facts["not_told_apart"] = int((~apart).sum())
    athletes["teacher"] = athletes["subject"].isin(said["teachers"])
    athletes["choice"] = athletes["subject"].isin(said["seen_in_multiple_choice"])
    if not athletes["known"].any():
        raise UserError(
            f"the base model knows none of the {len(athletes)} facts with probability {threshold}: "
            "lower athletes.known_threshold or use another model"
        )
    job.facts.update(
        repeated_names=list(duplicates.repeated),
        near_twins=[list(pair) for pair in duplicates.twins],
        athletes=len(athletes),
        known=int(athletes["known"].sum()),
        answers=list(answers),
    )
    athletes.to_parquet(job.outputs["known"], index=False)
