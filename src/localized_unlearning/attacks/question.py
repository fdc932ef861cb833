"""The question's measurements: one place of injected facts in one base model, unlearned by many selections.

Everything that the workflow does for one model happens here in one process, since a place has dozens of selections and
each takes seconds: injection (and gold, without the forget set), scores, selections, unlearning at equal disruption, and
half and half as the attack, in each way that the config names: the worst one counts. One row per selection.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.analysis import localizers
from localized_unlearning.attacks import retraining
from localized_unlearning.attacks.subject import FORMATS, TRAINING, Subject, ask, halves
from localized_unlearning.config.data import Forget, Split
from localized_unlearning.config.model import FactsIn
from localized_unlearning.config.unlearning import EqualDisruption, Finetune
from localized_unlearning.data import windows as windows_module
from localized_unlearning.data.answers import candidates
from localized_unlearning.data.documents import read_documents
from localized_unlearning.data.mmlu import load_questions
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.data.splits import split_athletes
from localized_unlearning.evaluation.knowledge import ask_questions
from localized_unlearning.evaluation.places import GATED, facts_in_of, known_of, scores_of
from localized_unlearning.localization.units import matched_units
from localized_unlearning.models import components, injection, place
from localized_unlearning.models import device as device_module
from localized_unlearning.progress import Progress
from localized_unlearning.unlearning import finetune
from localized_unlearning.unlearning import method as method_module
from localized_unlearning.unlearning.disruption import Question, retained_loss
from localized_unlearning.unlearning.objectives.erase import erase
from localized_unlearning.unlearning.steps import Data, Lambdas

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job

ATTACKED = "attacked_"
"""What the columns of accuracies after an attack begin with."""


@dataclass(frozen=True)
class Chosen:
    """A selection: its name, kind (truth, localizer, draw, disjoint) and components, and its scores if it has any."""

    name: str
    kind: str
    components: tuple[components.Component, ...]
    scores: Mapping[str, float]


def selections(
    subject: Subject, split: pd.DataFrame, facts_in: FactsIn, draws: int, disjoint: int
) -> Iterator[Chosen]:
    """The truth, the localizers with as many weights, everything, and the draws."""
    model = subject.model
    found = components.list_components(model.config, GATED)
    sizes = {str(c): components.size_of(c, model) for c in found}
    true = place.place(facts_in)
    budget = sum(sizes[str(c)] for c in true)
    layers = components.geometry_of(model.config).layers
    yield Chosen("truth", "truth", tuple(true), {})
    for name, table in scores_of(
        model, subject.tokenizer, split, subject.book, subject.prompts.training, subject.seed
    ).items():
        chosen = matched_units(table, sizes, budget)
        if chosen:
            scores = dict(zip(table["component"], table["score"].abs(), strict=True))
            yield Chosen(name, "localizer", tuple(components.parse(c) for c in chosen), scores)
    mlps = [c for c in found if c.kind not in components.ATTENTION_KINDS]
    yield Chosen("all_mlps", "localizer", tuple(mlps), {})
    yield Chosen("nonlocalized", "localizer", tuple(found), {})
    for kind, count in (("draw", draws), ("disjoint", disjoint)):
        for number in range(count):
            drawn = place.matched(facts_in, layers, 1000 * subject.seed + number, kind == "disjoint")
            yield Chosen(f"{kind}_{number + 1}", kind, tuple(drawn), {})


def accuracies(subject: Subject, prefix: str = "", formats: Sequence[str] = FORMATS) -> dict[str, float]:
    """Mean accuracy on tested forget and retained athletes, by format."""
    rows = ask(subject, formats=formats)
    return {
        f"{prefix}{'forget' if forget else 'retain'}_{form}": float(group["choice"].mean())
        for (forget, form), group in rows.groupby(["forget", "format"])
    }


def forget_only(subject: Subject) -> Subject:
    """The subject with the forget set's tested athletes alone."""
    return replace(subject, tested=subject.tested[subject.tested["forget"]])


def ablated(subject: Subject, chosen: Chosen, before: float) -> float:
    """Tested forget facts lost on the training prompt, of ``before``, when what the selection's matrices write is zero."""
    import torch

    names = list(components.trainable(subject.model, list(chosen.components)))
    kept = {name: subject.model.get_parameter(name).detach().clone() for name in names}
    with torch.no_grad():
        for name in names:
            subject.model.get_parameter(name).zero_()
        after = accuracies(forget_only(subject), formats=(TRAINING,))["forget_training"]
        for name, value in kept.items():
            subject.model.get_parameter(name).copy_(value)
    return before - after


def unlearned(
    subject: Subject, data: Data, chosen: Chosen, asked: Sequence[Question], job: Job
) -> dict[str, Any]:
    """Unlearn ``subject.model`` in place at the strongest rate within the budget; what the search found."""
    settings = job.config.question
    equal = EqualDisruption(
        budget=settings.budget, learning_rates=settings.learning_rates, measure="retained"
    )
    own = job.config.finetune.model_copy(update={"equal_disruption": equal})
    trainable = components.trainable(subject.model, list(chosen.components))
    lambdas = Lambdas(0.2, own.lambda_retain, own.lambda_sft)
    method = method_module.of(erase, {}, "erase")

    def train(data: Data, settings: Finetune) -> pd.DataFrame:
        return finetune.train(subject.model, data, trainable, settings, lambdas, method, subject.seed)

    cost = retained_loss(subject.model, asked, subject.batch_tokens)
    _, tried = finetune.within_budget(subject.model, data, list(trainable), own, train, cost)
    last = tried[-1]
    return {"learning_rate": last.learning_rate, "disruption": last.cost, "within": last.within}


def run(job: Job) -> None:
    """Stage: one place in one base model.

    Writes one row per selection: ``place``, ``base_seed``, ``selection``, ``kind``, ``shared`` (of its weights' components,
    the share that holds the facts), ``auroc``, ``precision``, ``share`` (against the truth), ``ablated``, ``learning_rate``,
    ``disruption``, ``within``, accuracies after unlearning (``forget_...``, ``retain_...``, ``general_knowledge``) and after
    each attack (``attacked_<attack>_forget_...``); and rows ``base`` and ``gold`` of kind ``reference``. ``injected_...`` says how well the
    place took the facts, in every row.

    Raises:
        UserError: when the organism lacks the place.
    """
    config, settings = job.config, job.config.question
    base_seed, name = int(job.wildcards["base_seed"]), job.wildcards["place"]
    facts_in = facts_in_of(job, name)
    device_module.setup(config.compute)
    model, tokenizer, roles, _ = injection.taught(job, facts_in, frozenset())
    split = split_athletes(
        known_of(roles), Split(), Forget(draw=settings.forget, balanced=True, seed=base_seed), ()
    )
    forgotten = frozenset(split.loc[split["forget"], "subject"])
    gold, _, _, _ = injection.taught(job, facts_in, forgotten)
    book = load_prompts(job.inputs["prompts"])
    attacker, tested = halves(split, base_seed, 40)
    text = windows_module.text_windows(
        tokenizer, read_documents(job.inputs["text"], config.text.documents), config.text.tokens
    )
    subject = Subject(
        model.eval(), tokenizer, book, config.prompts, attacker, tested,
        split[split["train"] & ~split["forget"]], text, 4, base_seed, 4096,
    )  # fmt: skip
    training = split[split["train"]].reset_index(drop=True)
    kept = finetune.kept_for_validation(training, 0.2, base_seed)
    asked = finetune.asked_about(
        training[kept], candidates(book, training), tokenizer, book, config.prompts, base_seed
    )
    data = Data(
        retraining.items(subject, training[training["forget"]]),
        retraining.items(subject, training[~training["forget"] & ~kept]),
        text,
    )
    questions = load_questions(job.inputs["general_knowledge"])
    took = {
        f"injected_{k.removeprefix('forget_')}": v for k, v in accuracies(subject).items() if "forget" in k
    }
    common = {"place": name, "base_seed": base_seed, **took}
    rows = []

    def measured(which: Any, **more: Any) -> dict[str, Any]:
        now = replace(subject, model=which)
        found = accuracies(now)
        found["general_knowledge"] = _knowledge(which, tokenizer, questions, config.mmlu)
        for attack, how in settings.attacks.items():
            with retraining.retrained(now, attacker, how):
                found |= accuracies(forget_only(now), f"{ATTACKED}{attack}_")
        return {**common, **more, **found}

    rows.append(measured(copy.deepcopy(subject.model), selection="base", kind="reference"))
    known = rows[0]["forget_training"]
    rows.append(measured(gold.eval(), selection="gold", kind="reference"))
    truth = {str(c) for c in place.place(facts_in)}
    every = [str(c) for c in components.list_components(subject.model.config, GATED)]
    found = list(selections(subject, split, facts_in, settings.draws, settings.disjoint))
    progress = Progress("selections", "selection")
    for chosen in progress.over(found):
        names = {str(c) for c in chosen.components}
        scores = chosen.scores or {c: float(c in names) for c in every}
        other = replace(subject, model=copy.deepcopy(subject.model))
        said = {
            "selection": chosen.name,
            "kind": chosen.kind,
            "components": len(names),
            "shared": len(names & truth) / len(names),
            "covered": len(names & truth) / len(truth),
            **localizers.graded(scores, truth),
            "ablated": ablated(other, chosen, known),
            **unlearned(other, data, chosen, asked, job),
        }
        rows.append(measured(other.model, **said))
    job.facts.update(seeds={"base_model": base_seed}, selections=len(found))
    pd.DataFrame(rows).to_parquet(job.outputs["rows"], index=False)


def _knowledge(model: Any, tokenizer: Any, questions: Any, settings: Any) -> float:
    rows = ask_questions(model, tokenizer, questions, settings, 4096)
    letters = rows[[f"logit_{letter}" for letter in "ABCD"]].to_numpy()
    return float((letters.argmax(1) == rows["answer_index"].to_numpy()).mean())
