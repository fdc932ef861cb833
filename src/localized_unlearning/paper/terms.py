"""What is measured, and what it is called: the one vocabulary of tables, figures, captions, claims and docs.

Every page takes its words from here, so that "Forget" is the training prompt everywhere and nothing that is
only MMLU's format is called MMLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Prompt = Literal["training", "question"]

Group = Literal["training", "question", "mcq", "mcq_text", "mcq_other", "teachers", "mmlu", "text"]


@dataclass(frozen=True)
class Measure:
    """A number that is taken of a model.

    Attributes:
        name: its name in CSV files.
        short: its name in headings and panels.
        long: its name in sentences, axes and captions; says the prompt.
        source: the rows it is taken from.
        better: which values unlearning aims at.
        group: measures of one group ask the same question of different parts; the base model stands or falls in all.
        accuracy: whether it is one; its chance level follows from the rows (:class:`analysis.standing.Recall`).
        forget: whether the forget set's or the retain set's athletes are asked; None: neither.
        prompt: for facts, which of the config's prompts.
        order: for multiple choice, whether its options are in the order that counts (``evaluation.option_order``).
        by_text: for multiple choice, whether the option's word is scored rather than its letter.
    """

    name: str
    short: str
    long: str
    source: Literal["facts", "multiple_choice", "mmlu", "text", "teachers"]
    better: Literal["low", "high"]
    group: Group
    accuracy: bool = True
    forget: bool | None = None
    prompt: Prompt | None = None
    order: Literal["main", "other"] | None = None
    by_text: bool = False

    @property
    def arrow(self) -> str:
        """Which way is better: ``↓`` or ``↑``."""
        return "↓" if self.better == "low" else "↑"

    @property
    def heading(self) -> str:
        """Its short name with the better direction: ``MCQ forget ↓``."""
        return f"{self.short} {self.arrow}"

    @property
    def axis(self) -> str:
        """Its long name with the better direction, for an axis."""
        return f"{self.long} {self.arrow}"


MEASURES = (
    Measure(
        "forget_training", "Forget", "forget set, training prompt", "facts", "low", "training", forget=True,
        prompt="training",
    ),
    Measure(
        "retain_training", "Retain", "retain set, training prompt", "facts", "high", "training", forget=False,
        prompt="training",
    ),
    Measure(
        "forget_question", "Question forget", "forget set, question prompt", "facts", "low", "question", forget=True,
        prompt="question",
    ),
    Measure(
        "retain_question", "Question retain", "retain set, question prompt", "facts", "high", "question",
        forget=False, prompt="question",
    ),
    Measure(
        "mcq_forget", "MCQ forget", "forget set, multiple choice", "multiple_choice", "low", "mcq", forget=True,
        order="main",
    ),
    Measure(
        "mcq_retain", "MCQ retain", "retain set, multiple choice", "multiple_choice", "high", "mcq", forget=False,
        order="main",
    ),
    Measure(
        "mcq_text_forget", "MCQ by text, forget", "forget set, multiple choice by text", "multiple_choice", "low",
        "mcq_text", forget=True, order="main", by_text=True,
    ),
    Measure(
        "mcq_text_retain", "MCQ by text, retain", "retain set, multiple choice by text", "multiple_choice", "high",
        "mcq_text", forget=False, order="main", by_text=True,
    ),
    Measure(
        "mcq_other_forget", "MCQ other order, forget", "forget set, multiple choice in the other option order",
        "multiple_choice", "low", "mcq_other", forget=True, order="other",
    ),
    Measure(
        "mcq_other_retain", "MCQ other order, retain", "retain set, multiple choice in the other option order",
        "multiple_choice", "high", "mcq_other", forget=False, order="other",
    ),
    Measure(
        "teachers_mcq", "Teachers MCQ", "facts of pretraining, multiple choice with shuffled options", "teachers",
        "high", "teachers",
    ),
    Measure(
        "mmlu", "MMLU-format", "general knowledge in MMLU's format", "mmlu", "high", "mmlu"
    ),
    Measure(
        "text_change", "Text loss change", "change of the loss on held-out text", "text", "low", "text", accuracy=False
    ),
    Measure(
        "text_kl", "Text KL", "KL divergence from the base model on held-out text", "text", "low", "text", accuracy=False
    ),
    Measure("text_worse", "Text worse", "share of held-out windows that got worse", "text", "low", "text", accuracy=False),
    Measure("text_loss", "Text loss", "loss on held-out text", "text", "low", "text", accuracy=False),
)  # fmt: skip
"""The columns of Tables 1 to 4."""

BY_NAME: Mapping[str, Measure] = {measure.name: measure for measure in MEASURES}

GROUPS: Mapping[str, str] = {
    "training": "Facts, training prompt",
    "question": "Facts, question prompt",
    "mcq": "Multiple choice",
    "mcq_text": "Multiple choice by text",
    "mcq_other": "Multiple choice, other option order",
    "mcq_shuffled": "Multiple choice, shuffled options",
    "mcq_fixed": "Multiple choice, options in one order",
    "teachers": "Teachers, multiple choice",
    "mmlu": "MMLU-format",
    "text": "Held-out text",
}
"""What a group of measures asks, both parts together: rows of the model card, words of a refusal."""

MAIN = (
    "forget_training", "retain_training", "forget_question", "retain_question", "mcq_forget", "mcq_retain",
    "teachers_mcq", "mmlu", "text_change", "text_kl",
)  # fmt: skip
"""Columns of the readable table; the other ways to score multiple choice follow in a table of their own."""

ACCURACIES: Mapping[str, str] = {
    "choice": "accuracy among the candidates",
    "argmax": "accuracy over the whole vocabulary",
    "probability": "probability among the candidates",
    "vocabulary": "probability over the whole vocabulary",
}
"""The ways to score an answer; the last is for studies alone."""

Standing = Literal["above chance", "at chance", "below chance"]

KNOWERS = {"base": "Base model", "gold": "Gold (never learned it)"}
"""The models that were not unlearned, in the order of tables and figures: where they began, and what there is to reach."""

MARKS: Mapping[str, tuple[str, str]] = {
    "at chance": ("†", "The base model itself is at chance here: the column says nothing about unlearning."),
    "below chance": (
        "‡",
        "The base model itself is below chance here (it answers systematically): the column says nothing about unlearning.",
    ),
    "constant": (
        "§",
        "One answer to at least 95 % of the items of both parts: the model no longer reads the question.",
    ),
}
"""Marks of columns (the first two) and cells (the last), with their footnotes."""

CONSTANT = 0.95
"""Share of the commonest answer from which on answers are called constant."""


def of_prompt(part: Literal["forget", "retain"], prompt: Prompt) -> Measure:
    """The measure of the forget or the retain set on one of the two fact prompts."""
    return BY_NAME[f"{part}_{prompt}"]


def panel(name: str, prompt: Prompt) -> Measure:
    """The measure that a figure's panel shows: ``forget``, ``retain``, ``mcq_forget``, ``mcq_retain`` or ``mmlu``;
    ``_others`` leaves the relearned athletes out and changes no name."""
    plain = name.removesuffix("_others")
    return of_prompt(plain, prompt) if plain in ("forget", "retain") else BY_NAME[plain]  # type: ignore[arg-type]


def sentence(text: str) -> str:
    """With a capital letter, as an axis or a row begins."""
    return text[:1].upper() + text[1:]


def runs(seeds: int, bases: int = 1) -> str:
    """How many models stand behind a number, in words: ``one training seed``, ``3 base models``."""
    if bases > 1:
        return f"{bases} base models"
    return "one training seed" if seeds == 1 else f"{seeds} training seeds"
