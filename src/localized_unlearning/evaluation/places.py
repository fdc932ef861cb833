"""A place of injected facts: does its bed meet the requirements, and do the localizers find it?

The bed's own place is the base model's; here the same facts are injected into other matrices of the same pretrained
organism, so that a localizer that happens to like one layer is told from one that finds the facts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.analysis import localizers
from localized_unlearning.config.data import Forget, Split
from localized_unlearning.config.localization import Components, Score
from localized_unlearning.config.model import FactsIn
from localized_unlearning.config.question import Place
from localized_unlearning.data import mmlu
from localized_unlearning.data.answers import candidates
from localized_unlearning.data.prompts import PromptBook, load_prompts
from localized_unlearning.data.splits import split_athletes
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation import card
from localized_unlearning.evaluation.knowledge import ask_questions
from localized_unlearning.localization.attribution_patching import attribution_patching
from localized_unlearning.localization.causal_tracing import causal_tracing, tracing_sites
from localized_unlearning.localization.effects import by_unit, combined
from localized_unlearning.localization.pairs import make_pairs
from localized_unlearning.models import components, injection, place

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job

LOCALIZERS = ("attribution_patching", "causal_tracing")

GATED = Components(include_gate=True)
"""Every matrix: draws are matched with the place matrix by matrix, its gate included."""

BATCH_TOKENS = 4096


def facts_in_of(job: Job, name: str) -> FactsIn:
    """The config's injection, into the place called ``name``.

    Raises:
        UserError: when the organism lacks the place.
    """
    where: Place = job.config.question.places[name]
    layers = job.config.organism.layers
    if (
        max(where.layers) >= layers
    ):  # the plan refuses it before anything is trained; here for the command alone
        raise UserError(
            f"question.places.{name} names layer {max(where.layers)}, but the organism has layers 0 to {layers - 1}"
        )
    own = job.config.organism.facts_in or FactsIn()
    return own.model_copy(update={"layers": where.layers, "kinds": where.kinds})


def known_of(roles: Any) -> pd.DataFrame:
    """The table of known facts that the split is made from, by role."""
    rows = [
        {"subject": who, "answer": sport, "teacher": part == "teachers", "choice": part != "no_choice"}
        for part in ("teachers", "choice", "no_choice")
        for who, sport in getattr(roles, part)
    ]
    table = pd.DataFrame(rows).sort_values("subject", ignore_index=True)
    return table.assign(known=True, rows=pd.Series([[i] for i in range(len(table))], dtype=object))


def scores_of(
    model: Any, tokenizer: Any, split: pd.DataFrame, book: PromptBook, training: str, seed: int
) -> dict[str, pd.DataFrame]:
    """Scores of the two localizers, from the training part's prompts, one row per matrix.

    Args:
        model: the model with the injected facts.
        tokenizer: its tokenizer.
        split: athletes with ``train``, ``teacher`` and ``answer``.
        book: the prompts.
        training: name of the one that is asked.
        seed: of noise and of the corrupted names.
    """
    asked = split[split["train"] & ~split["teacher"]]
    people = list(zip(asked["subject"], asked["answer"], strict=True))
    pairs = make_pairs(people, book[training], candidates(book, split), tokenizer, seed)
    found = components.list_components(model.config, GATED)
    names = [str(c) for c in found]
    patching, tracing = (Score(method=name, seed=seed) for name in LOCALIZERS)
    patched = combined(attribution_patching(model, pairs, found, BATCH_TOKENS), patching)
    sites = tracing_sites(model, tracing, found)
    effects = causal_tracing(model, pairs, sites, tracing.noise, seed, BATCH_TOKENS)
    labels, effects = by_unit(effects, [site.unit for site in sites])
    units = dict(zip(labels, combined(effects, tracing), strict=True))
    of_layer = [f"{c.layer}.{'attn' if c.kind in components.ATTENTION_KINDS else 'mlp'}" for c in found]
    return {
        "attribution_patching": pd.DataFrame({"component": names, "unit": names, "score": patched}),
        "causal_tracing": pd.DataFrame(
            {"component": names, "unit": of_layer, "score": [float(units[unit]) for unit in of_layer]}
        ),
    }


def run(job: Job) -> None:
    """Stage: one place in one base model.

    Writes one row per localizer: ``place``, ``localization``, ``base_seed``, ``auroc``, ``precision``, ``share``; with
    ``failed``, the requirements that the place misses (empty when it meets all of them), and what was measured.

    Raises:
        UserError: when the organism lacks the place.
    """
    config, name = job.config, job.wildcards["place"]
    base_seed, settings = int(job.wildcards["base_seed"]), config.question
    facts_in = facts_in_of(job, name)
    model, tokenizer, roles, _ = injection.taught(job, facts_in, frozenset())
    known, book = known_of(roles), load_prompts(job.inputs["prompts"])
    asked = card.Asked(
        book[config.prompts.training],
        book[config.prompts.question],
        book[config.prompts.multiple_choice],
        candidates(book, known),
        config.evaluation.shuffled_seed,
        BATCH_TOKENS,
        config.statistics,
    )
    athletes = known.assign(forget=False, relearn=False)
    own, teachers = (
        athletes[athletes["teacher"] == is_one].reset_index(drop=True) for is_one in (False, True)
    )
    measured = card.answers_about(model.eval(), tokenizer, own, asked)
    measured |= card.of_teachers(model, tokenizer, teachers, asked)
    questions = ask_questions(
        model, tokenizer, mmlu.load_questions(job.inputs["general_knowledge"]), config.mmlu, BATCH_TOKENS
    )
    measured["general_knowledge"] = card.measure(questions, config.statistics)
    required = card.needs(settings.places[name].requirements, measured, 1.0)
    failed = card.failures(measured, required)
    split = split_athletes(known, Split(), Forget(draw=settings.forget, balanced=True, seed=base_seed), ())
    tables = scores_of(model, tokenizer, split, book, config.prompts.training, base_seed)
    truth = {str(c) for c in place.place(facts_in)}
    scores = {
        (method, base_seed): dict(zip(table["component"], table["score"].abs(), strict=True))
        for method, table in tables.items()
    }
    rows = localizers.grade(scores, truth, name).assign(
        failed="; ".join(failed), **{key: value.mean for key, value in measured.items()}
    )
    job.facts.update(seeds={"base_model": base_seed}, failed=failed)
    rows.to_parquet(job.outputs["rows"], index=False)
