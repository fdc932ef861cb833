"""The model card: what the base model knows, measured before anything is unlearned from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.analysis.statistics import Estimate, estimate
from localized_unlearning.config.data import Mmlu
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.data import mmlu
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation.facts import ask_facts
from localized_unlearning.evaluation.knowledge import ask_questions
from localized_unlearning.evaluation.multiple_choice import ask_multiple_choice
from localized_unlearning.models import device as device_module
from localized_unlearning.models import loading
from localized_unlearning.paper.terms import ACCURACIES, GROUPS, OPTION_CHANCE, SPORT_CHANCE

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def _measure(table: pd.DataFrame, settings: Statistics) -> Estimate:
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
    book = load_prompts(job.inputs["prompts"])
    facts = ask_facts(
        model, tokenizer, athletes, [book[config.prompts.training], book[config.prompts.question]], tokens
    )
    choice = ask_multiple_choice(
        model,
        tokenizer,
        athletes,
        book[config.prompts.multiple_choice],
        ("fixed", "shuffled"),
        config.evaluation.shuffled_seed,
        tokens,
    )
    questions = mmlu.load_questions(job.inputs["mmlu"])
    lesson = folder / "pretraining.json"
    organism = config.model.kind == "organism"
    seen = set(json.loads(lesson.read_text())["seen_in_multiple_choice"]) if organism else set()
    fixed = choice[choice["order"] == "fixed"]
    measured = {
        "training": _measure(facts[facts["prompt"] == config.prompts.training], config.statistics),
        "question": _measure(facts[facts["prompt"] == config.prompts.question], config.statistics),
        "multiple_choice_unseen": _measure(fixed[~fixed["athlete"].isin(seen)], config.statistics),
        "multiple_choice_shuffled": _measure(choice[choice["order"] == "shuffled"], config.statistics),
        "general_knowledge": _measure(
            ask_questions(model, tokenizer, questions, config.mmlu if not organism else Mmlu(), tokens),
            config.statistics,
        ),
    }
    required = config.organism.requirements.model_dump() if organism else {}
    failed = [
        f"{name.replace('_', ' ')} {measured[name].mean:.3f} (needs {least:.2f})"
        for name, least in required.items()
        if measured[name].mean < least
    ]
    if failed:
        raise UserError(
            f"the organism has not learned enough to be unlearned: {'; '.join(failed)}; "
            "raise organism.steps or change organism.seed"
        )
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": model.config.get_text_config().num_hidden_layers,
        "architecture": type(model).__name__,
        "athletes_known": len(athletes),
        "athletes_in_data": len(known),
        "measured": {name: value._asdict() for name, value in measured.items()},
        "required": required,
    }
    job.facts.update(device=device)
    job.outputs["json"].write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    job.outputs["markdown"].write_text(_markdown(card, organism), encoding="utf-8")


_GROUPS = {
    "training": "training",
    "question": "question",
    "multiple_choice_unseen": "mcq",
    "multiple_choice_shuffled": "mcq_shuffled",
    "general_knowledge": "mmlu",
}
"""The group of measures that a row of the card belongs to."""


def _markdown(card: dict[str, Any], organism: bool) -> str:
    lines = [
        "# Model card of the base model",
        "",
        f"{card['architecture']}, {card['layers']} layers, {card['parameters']:,} parameters. "
        f"It knows {card['athletes_known']} of the {card['athletes_in_data']} athletes in the data.",
        "",
        "| measured on | accuracy | interval | items | required |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, value in card["measured"].items():
        least = card["required"].get(name)
        label = GROUPS[_GROUPS[name]] + (
            " (athletes never seen in this form)" if organism and name == "multiple_choice_unseen" else ""
        )
        lines.append(
            f"| {label} | {value['mean']:.3f} | [{value['low']:.3f}, {value['high']:.3f}] | {value['n']} "
            f"| {'' if least is None else f'{least:.2f}'} |"
        )
    lines += [
        "",
        f"Accuracy is `choice`, {ACCURACIES['choice']}. Guessing gives at most {SPORT_CHANCE:.2f} of the three sports "
        f"that occur, and {OPTION_CHANCE:.2f} of four options.",
    ]
    if organism:
        lines += [
            "",
            "This model is an organism: the workflow pretrained it on these athletes, on these "
            "general-knowledge questions and on plain sentences. Its general knowledge is memorised, so the "
            f"{GROUPS['mmlu']} column measures whether unlearning disturbs what was memorised, not reasoning. It read "
            "multiple-choice questions about half of the athletes; the accuracy above is on the other half. "
            "It never read shuffled options, so that row is expected to be at chance.",
        ]
    return "\n".join(lines) + "\n"
