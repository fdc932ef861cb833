"""The model card: what the base model knows, measured before anything is unlearned from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy.stats import binom

from localized_unlearning.analysis.statistics import Estimate, estimate
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.config.model import Requirements
from localized_unlearning.data import mmlu
from localized_unlearning.data.answers import candidates
from localized_unlearning.data.prompts import Prompt, load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation.facts import ask_facts
from localized_unlearning.evaluation.knowledge import ask_questions
from localized_unlearning.evaluation.multiple_choice import ask_multiple_choice
from localized_unlearning.models import device as device_module
from localized_unlearning.models import loading
from localized_unlearning.paper.terms import ACCURACIES, GROUPS

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


AT_MOST = ("gold_training", "gold_question", "gold_multiple_choice_shuffled")
"""What must not be known before the injection."""


ORDERS = 4
"""Option orders of each multiple-choice question, averaged."""


@dataclass(frozen=True)
class Asked:
    """How athletes are asked about for the card."""

    training: Prompt
    question: Prompt
    multiple_choice: Prompt
    answers: tuple[str, ...]
    shuffled_seed: int
    batch_tokens: int
    statistics: Statistics


def answers_about(model: Any, tokenizer: Any, athletes: pd.DataFrame, asked: Asked) -> dict[str, Estimate]:
    """Accuracies on the facts about ``athletes``, by requirement."""
    facts = ask_facts(
        model, tokenizer, athletes, [asked.training, asked.question], asked.answers, asked.batch_tokens
    )
    choice = ask_multiple_choice(
        model,
        tokenizer,
        athletes,
        asked.multiple_choice,
        ("fixed", *["shuffled"] * ORDERS),
        asked.shuffled_seed,
        asked.batch_tokens,
    )
    shuffled = choice[choice["order"] == "shuffled"]
    unseen = set(athletes.loc[~athletes["choice"], "subject"])
    found = {
        "training": measure(facts[facts["prompt"] == asked.training.name], asked.statistics),
        "question": measure(facts[facts["prompt"] == asked.question.name], asked.statistics),
        "multiple_choice_shuffled": measure(shuffled, asked.statistics),
        "multiple_choice_fixed": measure(choice[choice["order"] == "fixed"], asked.statistics),
    }
    if unseen:
        found["multiple_choice_unseen"] = measure(
            shuffled[shuffled["subject"].isin(unseen)], asked.statistics
        )
    return found


def needs(requirements: Requirements, measured: Mapping[str, Estimate], majority: float) -> dict[str, float]:
    """The limit of each measured number that has one: the least, but for :data:`AT_MOST`, where it is the most.

    Args:
        requirements: the config's.
        measured: what was measured; a requirement on what was not is left out.
        majority: share of the most frequent answer: what a guess can reach. The most that gold may reach is what
            guessing exceeds in ``requirements.gold`` of all cases.
    """
    limits: dict[str, float | None] = {
        "training": requirements.training,
        "question": requirements.question,
        "multiple_choice_unseen": requirements.multiple_choice_unseen,
        "general_knowledge": requirements.general_knowledge,
        **{name: requirements.teachers for name in measured if name.startswith("teachers_")},
    }
    for name in AT_MOST:
        if name in measured:
            n = measured[name].n
            limits[name] = float(binom.isf(requirements.gold, n, majority)) / n
    return {name: limit for name, limit in limits.items() if limit is not None and name in measured}


def failures(measured: Mapping[str, Estimate], required: Mapping[str, float]) -> list[str]:
    """What misses its limit (:func:`needs`), in words."""
    return [
        f"{name.replace('_', ' ')} {measured[name].mean:.3f} ({'at most' if name in AT_MOST else 'needs'} {limit:.2f})"
        for name, limit in required.items()
        if (measured[name].mean > limit if name in AT_MOST else measured[name].mean < limit)
    ]


def of_teachers(model: Any, tokenizer: Any, teachers: pd.DataFrame, asked: Asked) -> dict[str, Estimate]:
    """Accuracies on the three prompts about the teachers, by requirement."""
    return {
        f"teachers_{name}": value
        for name, value in answers_about(model, tokenizer, teachers, asked).items()
        if name in ("training", "question", "multiple_choice_shuffled")
    }


def measure(table: pd.DataFrame, settings: Statistics) -> Estimate:
    """The share of right answers."""
    return estimate(table, "choice", settings)


def run(job: Job) -> None:
    """Stage: measure the base model on every known athlete and write its card (JSON and Markdown).

    Raises:
        UserError: when the organism does not meet its requirements, naming each that fails.
    """

    config = job.config
    device = device_module.setup(config.compute)
    folder = job.inputs["base_model"]
    model, tokenizer = loading.load(folder, config.model.dtype, device)
    tokens = device_module.batch_tokens(config.compute, model)
    known = pd.read_parquet(job.inputs["known"])
    athletes = known[known["known"]].assign(forget=False, relearn=False).reset_index(drop=True)
    for name in ("teacher", "choice"):
        if name not in athletes.columns:
            athletes[name] = False
    book = load_prompts(job.inputs["prompts"])
    organism = config.model.kind == "organism"
    asked = Asked(
        book[config.prompts.training],
        book[config.prompts.question],
        book[config.prompts.multiple_choice],
        candidates(book, known),
        config.evaluation.shuffled_seed,
        tokens,
        config.statistics,
    )
    own, teachers = athletes[~athletes["teacher"]], athletes[athletes["teacher"]]
    measured = answers_about(model, tokenizer, own, asked)
    if len(teachers):
        measured |= of_teachers(model, tokenizer, teachers, asked)
    questions = mmlu.load_questions(job.inputs["mmlu"])
    measured["general_knowledge"] = measure(
        ask_questions(model, tokenizer, questions, config.mmlu, tokens), config.statistics
    )
    if job.inputs.get("pretrained"):
        before, _ = loading.load(job.inputs["pretrained"], config.model.dtype, device)
        measured |= {
            f"gold_{name}": value
            for name, value in answers_about(before, tokenizer, own, asked).items()
            if name in ("training", "question", "multiple_choice_shuffled")
        }
    required = needs(config.organism.requirements, measured, own["answer"].value_counts(normalize=True).max())
    if not organism:
        required = {}
    if failed := failures(measured, required):
        raise UserError(
            f"the organism has not learned what it must before it can be unlearned: {'; '.join(failed)}; raise "
            "organism.steps or organism.facts_in.steps, or name other seeds of the base model"
        )
    check = json.loads(job.inputs["check"].read_text(encoding="utf-8"))
    card = {
        "check": check,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": model.config.get_text_config().num_hidden_layers,
        "architecture": type(model).__name__,
        "athletes_known": len(own),
        "teachers": len(teachers),
        "athletes_in_data": len(known),
        "measured": {name: value._asdict() for name, value in measured.items()},
        "required": required,
    }
    job.facts.update(device=device)
    job.outputs["json"].write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    job.outputs["markdown"].write_text(_markdown(card, organism), encoding="utf-8")


_FORMS = {
    "training": GROUPS["training"],
    "question": GROUPS["question"],
    "multiple_choice_shuffled": GROUPS["mcq_shuffled"],
    "multiple_choice_fixed": GROUPS["mcq_fixed"],
    "multiple_choice_unseen": f"{GROUPS['mcq_shuffled']} (subjects never seen in this form)",
}
"""What a row of the card is measured on."""


def _label(name: str, organism: bool) -> str:
    """What a row of the card is measured on."""
    if name == "general_knowledge":
        return GROUPS["mmlu"]
    for prefix, whose in (("teachers_", "Teachers"), ("gold_", "Before the injection (gold)")):
        if name.startswith(prefix):
            return f"{whose}: {_FORMS[name.removeprefix(prefix)]}"
    if name == "multiple_choice_unseen" and not organism:
        return GROUPS["mcq_shuffled"]
    return _FORMS[name]


def _checked(check: Mapping[str, Any]) -> list[str]:
    """What the check of the model measured (stage check_model)."""
    limit = check["context_length"]
    return [
        "Checked before anything was computed: its weights load as its files say; packed prompts give its own logits to "
        f"{check['packing_difference']:.1g} of their deviation (at most {check['packing_limit']:g}); its "
        f"{check['heads_and_matrices']:,} heads and matrices are disjoint parts of it, {check['parameters_of_components']:,} "
        f"parameters; it takes prompts of {f'at most {limit:,} tokens' if limit else 'any length'}.",
    ]


def _markdown(card: dict[str, Any], organism: bool) -> str:
    lines = [
        "# Model card of the base model",
        "",
        f"{card['architecture']}, {card['layers']} layers, {card['parameters']:,} parameters. "
        f"It knows {card['athletes_known']} of the {card['athletes_in_data']} facts in the data.",
        "",
        *_checked(card["check"]),
        "",
        "| measured on | accuracy | interval | items | required |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, value in card["measured"].items():
        least = card["required"].get(name)
        label = _label(name, organism)
        needed = "" if least is None else f"{'≤' if name in AT_MOST else '≥'} {least:.2f}"
        lines.append(
            f"| {label} | {value['mean']:.3f} | [{value['low']:.3f}, {value['high']:.3f}] | {value['n']} "
            f"| {needed} |"
        )
    lines += [
        "",
        f"Accuracy is `choice`, {ACCURACIES['choice']}. Guessing is to name one of the answers that occur, or to draw "
        "one of the options.",
    ]
    if organism:
        lines += [
            "",
            "This model is an organism: the workflow taught it these facts, these general-knowledge questions and "
            "plain sentences. Its general knowledge is memorised, so that row measures whether unlearning disturbs "
            "what was memorised, not reasoning. Where facts are injected, the rows on gold are of the model before "
            "the injection, which must be at guessing, and the teachers are the subjects of pretraining.",
        ]
    return "\n".join(lines) + "\n"
