"""Captions of tables and figures: templates in ``workflow/report/captions.yaml``, filled with a run's settings."""

from __future__ import annotations

from pathlib import Path

import yaml

from localized_unlearning.config.run import Config
from localized_unlearning.config.unlearning import AT, FIRST_STEP, RANDOM, EqualDisruption
from localized_unlearning.data.prompts import WRONG
from localized_unlearning.data.tasks import in_words
from localized_unlearning.paper import terms
from localized_unlearning.paper.artefacts import FIGURES, TABLES, bases_of
from localized_unlearning.reporting.markup import clean

CAPTIONS = Path("workflow/report/captions.yaml")


def mode(equal: EqualDisruption) -> str:
    """How strongly localizations were unlearned, in a sentence for tables."""
    if equal.budget is None:
        return (
            "Mode: fixed settings. Every localization has the learning rate and the weights of the config, so that one that "
            "forgets more may only have been hit harder: read it beside what it retains, or set "
            "finetune.equal_disruption.budget."
        )
    lost = {
        "text": "nats per token of KL divergence from the base model on validation text",
        "retained": "of the probability of retained validation facts",
    }
    return (
        f"Mode: equal disruption. Each localization has the largest of {len(equal.learning_rates)} learning rates that costs "
        f"at most {equal.budget:g} {lost[equal.measure]}; the smallest where none does."
    )


def forgotten(config: Config) -> dict[str, str]:
    """What each of the paper's tasks forgets, in words."""
    words = {"sports": "all subjects with one answer", "athletes": "named subjects"}
    for name in words:
        task = config.tasks.get(name)
        if task is not None:
            words[name] = in_words(task.forget)
    return words


def injected(config: Config) -> str:
    """What the paper's injection puts in the answer's place, in words."""
    objective = config.objectives.get("inject")
    target = RANDOM if objective is None else objective.target
    return {RANDOM: "another answer", WRONG: "a false one"}.get(target, target)


RANKED = {"saliency": "ranked by plain saliency, |w dL/dw|", "random": "in random order"}
"""What masks are compared with, in words."""


def read_captions(path: Path, config: Config) -> dict[str, str]:
    """The captions of a run: of every item, and of ``reading`` and ``tables`` as a whole."""
    import jinja2

    texts = yaml.safe_load(path.read_text(encoding="utf-8"))
    prompt = config.measures.prompts[0]
    values = {
        **forgotten(config),
        "injected": injected(config),
        "level": f"{100 * config.statistics.confidence:g} %",
        "organism": config.model.kind == "organism",
        "gold": config.model.kind == "organism" and config.organism.facts_in is not None,
        "models": terms.runs(
            len(config.seeds), len(config.base_seeds) if config.model.kind == "organism" else 1
        ),
        "several": len(config.seeds) > 1 or (config.model.kind == "organism" and len(config.base_seeds) > 1),
        "prompt": prompt,
        "accuracy": terms.ACCURACIES[config.measures.accuracy],
        "forget": terms.of_prompt("forget", prompt).short,
        "question_forget": terms.BY_NAME["forget_question"].short,
        "mmlu": terms.BY_NAME["mmlu"].short,
        "columns": "; ".join(f"{m.short}: {m.long}" for m in terms.MEASURES),
        "marks": " ".join(f"{mark} {text}" for mark, text in terms.MARKS.values()),
    }

    masking = config.masking
    values |= {
        "optimizer": masking.optimizer,
        "rate": masking.learning_rate,
        "percentile": AT,
        "first_step": f"{100 * FIRST_STEP:g} %",
        "controls": " and ".join(RANKED[name] for name in masking.controls),
    }

    def filled(text: str) -> str:
        return " ".join(jinja2.Template(text, undefined=jinja2.StrictUndefined).render(values).split())

    values["masks"] = filled(texts["masks"])
    return {
        "reading": filled(texts["reading"]),
        "tables": filled(texts["tables"]),
        "claims": filled(texts["claims"]),
        **{name: filled(texts["items"][name]) for name in TABLES},
        **{
            name: filled(
                f"{texts['items'][name]} {texts['kinds'][f.kind]} {_fewer(texts['fewer'], name, config)}"
            )
            for name, f in FIGURES.items()
        },
    }


def _fewer(text: str, figure: str, config: Config) -> str:
    """What a caption says of a figure that rests on fewer base models than the run has; nothing where it has all."""
    behind, every = len(bases_of(config, figure)), len(config.base_seeds)
    if config.model.kind != "organism" or behind == every or FIGURES[figure].kind == "heads":
        return ""
    return text.replace("BEHIND", terms.runs(1, behind) if behind > 1 else "one").replace("EVERY", str(every))


def title(name: str) -> str:
    """``Figure 9``, of ``figure_9``."""
    return name.replace("_", " ").capitalize()


def as_markdown(name: str, captions: dict[str, str]) -> str:
    """A figure's caption, to stand beside it where the report does not."""
    return f"**{title(name)}.** {captions[name]} {captions['reading']}\n"


def as_latex(name: str, captions: dict[str, str]) -> str:
    """The same as a LaTeX caption with its label."""
    text = clean(f"{captions[name]} {captions['reading']}")
    return f"\\caption{{{text}}}\n\\label{{fig:{name.removeprefix('figure_')}}}\n"
