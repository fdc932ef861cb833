"""Captions of tables and figures: templates in ``workflow/report/captions.yaml``, filled with a run's settings."""

from __future__ import annotations

from pathlib import Path

import yaml

from localized_unlearning.config.run import Config
from localized_unlearning.data.tasks import in_words
from localized_unlearning.paper import terms
from localized_unlearning.paper.artefacts import FIGURES, TABLES
from localized_unlearning.reporting.markup import clean

CAPTIONS = Path("workflow/report/captions.yaml")


def forgotten(config: Config) -> dict[str, str]:
    """What each of the paper's tasks forgets, in words."""
    words = {"sports": "all athletes of one sport", "athletes": "named athletes"}
    for name in words:
        task = config.tasks.get(name)
        if task is not None:
            words[name] = in_words(task.forget)
    return words


def read_captions(path: Path, config: Config) -> dict[str, str]:
    """The captions of a run: of every item, and of ``reading`` and ``tables`` as a whole."""
    import jinja2

    texts = yaml.safe_load(path.read_text(encoding="utf-8"))
    prompt = config.measures.prompts[0]
    values = {
        **forgotten(config),
        "level": f"{100 * config.statistics.confidence:g} %",
        "organism": config.model.kind == "organism",
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
        "sport_chance": f"{terms.SPORT_CHANCE:.2f}",
        "option_chance": f"{terms.OPTION_CHANCE:.2f}",
        "marks": " ".join(f"{mark} {text}" for mark, text in terms.MARKS.values()),
    }

    def filled(text: str) -> str:
        return " ".join(jinja2.Template(text, undefined=jinja2.StrictUndefined).render(values).split())

    return {
        "reading": filled(texts["reading"]),
        "tables": filled(texts["tables"]),
        "claims": filled(texts["claims"]),
        **{name: filled(texts["items"][name]) for name in TABLES},
        **{name: filled(f"{texts['items'][name]} {texts['kinds'][f.kind]}") for name, f in FIGURES.items()},
    }


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
