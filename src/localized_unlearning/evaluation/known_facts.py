"""Stage: which facts the base model knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localized_unlearning.data import tokens
from localized_unlearning.data.answers import SPORTS
from localized_unlearning.data.athletes import load_athletes
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.models import checking, loading, packing
from localized_unlearning.models import device as device_module
from localized_unlearning.models.lesson import read_lesson

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def known_facts(job: Job) -> None:
    """Stage: how well the base model knows each fact, and which facts are kept.

    Writes one row per athlete: ``athlete``, ``sport``, ``rows``, ``probability`` (of the right sport
    over the whole vocabulary, training prompt), ``known`` (at least the threshold; all without one), ``teacher`` (an
    organism learned it in pretraining, before the facts that may be forgotten) and ``choice`` (it was asked about in
    multiple choice). Athletes whom an organism was never taught are not known.
    """

    athletes, duplicates = load_athletes(job.inputs["athletes"])
    threshold = job.config.athletes.known_threshold
    device = device_module.setup(job.config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], job.config.model.dtype, device)
    book = load_prompts(job.inputs["prompts"])
    job.facts["model_check"] = checking.check(model, tokenizer)
    prompt = book[job.config.prompts.training]
    scores = packing.next_token(
        model,
        tokens.encode(tokenizer, [prompt.render(a) for a in athletes["athlete"]]),
        tokens.answer_tokens(tokenizer, SPORTS),
        device_module.batch_tokens(job.config.compute, model),
    )
    probability = (scores.candidates - scores.log_normalizer[:, None]).double().exp().numpy()
    right = [SPORTS.index(sport) for sport in athletes["sport"]]
    athletes["probability"] = probability[range(len(right)), right]
    said = read_lesson(job.inputs["base_model"])
    athletes["known"] = (athletes["probability"] >= (threshold or 0.0)) & ~athletes["athlete"].isin(
        said["untaught"]
    )
    athletes["teacher"] = athletes["athlete"].isin(said["teachers"])
    athletes["choice"] = athletes["athlete"].isin(said["seen_in_multiple_choice"])
    if not athletes["known"].any():
        raise UserError(
            f"the base model knows none of the {len(athletes)} facts with probability {threshold}: "
            "lower athletes.known_threshold or use another model"
        )
    job.facts.update(
        repeated_names=list(duplicates.repeated), athletes=len(athletes), known=int(athletes["known"].sum())
    )
    athletes.to_parquet(job.outputs["known"], index=False)
