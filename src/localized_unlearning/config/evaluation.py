"""Evaluations, attacks, statistics, tables and figures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from localized_unlearning.config.base import MICRO_BATCH, Count, Fraction, Positive, Section, Weight
from localized_unlearning.config.source import Source


class Evaluation(Section):
    """How trained models are evaluated."""

    option_order: Literal["shuffled", "fixed"] = Field(
        "shuffled",
        description="Order of the options in multiple choice, as figures, claims and the tables' main columns have it. "
        "shuffled: an order for each item, the same for every model; fixed: in the prompts file's order "
        "everywhere (the released code), which a model can learn as four more names. The tables ask the other as well.",
    )
    orders: Count = Field(4, description="Shuffled orders of each item; its score is their mean.")
    shuffled_seed: int = Field(0, description="Seed of the shuffled option orders.")
    prompts: tuple[str, ...] = Field(
        (), description="Further prompts of the prompts file on which facts are asked."
    )


class Series(Section):
    """What is asked at each point of a series: after each relearning iteration, at each mask size."""

    retain: int | None = Field(
        40,
        ge=1,
        description="Retained test subjects, drawn once; null asks all. Forget-set subjects are all asked.",
    )
    questions: int | None = Field(
        36, ge=1, description="MMLU-format questions, stratified (the paper: tinyMMLU's 100); null asks all."
    )
    orders: Count = Field(
        1,
        description="Shuffled option orders of each multiple-choice item, the first of evaluation.orders, whose mean the tables "
        "take; the seeds and base models of a curve share the time that more would take.",
    )
    shots: int = Field(0, ge=0, le=5, description="Worked examples before each question (tinyMMLU: 5).")
    seed: int = Field(0, description="Seed of the retained subjects.")
    source: Source | None = Field(
        None,
        description="Other questions than the tables', such as tinyMMLU; null takes those of mmlu.source.",
    )


class Relearning(Section):
    """Relearning two subjects of the forget set with LoRA (sections 3.1.2 and A.4.2)."""

    iterations: Count = Field(10, description="Optimizer steps, with an evaluation after each (A.4.2: 10).")
    rank: Count = Field(64, description="LoRA's rank on every linear module (A.4.2: 64).")
    alpha: Count = Field(32, description="LoRA's alpha (not in the paper; released code: 32).")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="LoRA's dropout while training (not in the paper; released code: 0.05)."
    )
    learning_rate: Positive = Field(
        2e-3, description="AdamW's learning rate (released code: 1e-4 on Gemma-7B)."
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="Learning-rate schedule (released code: cosine)."
    )
    retain_batch: Count = Field(4, description="Retained subjects per iteration (released code: 4).")
    text_batch: Count = Field(4, description="Text windows per iteration (released code: 4).")
    lambda_relearn: Weight = Field(0.2, description="Weight of the two subjects' loss (released code: 0.2).")
    lambda_retain: Weight = Field(1.0, description="Weight of the retain loss.")
    lambda_sft: Weight = Field(1.0, description="Weight of the text loss.")
    micro_batch_tokens: Count | Literal["auto"] = Field(4096, description=MICRO_BATCH)


class Probing(Section):
    """Probes on trained models (sections 3.1.3 and A.4.3)."""

    regularization: Positive = Field(1.0, description="scikit-learn's C of the logistic regressions.")
    max_iterations: Count = Field(
        10_000, description="Limit of the solver's iterations (the released code: 10,000)."
    )
    seed: int = Field(
        0,
        description="Seed of the half of a named forget set that trains the probes (split.kind released: the "
        "first half, no seed), and of the control.",
    )


class Statistics(Section):
    """Intervals in tables and figures."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="Level of the intervals.")
    bootstrap: Count = Field(2000, description="Bootstrap samples where no closed form is used.")
    seed: int = Field(0, description="Seed of the bootstrap.")


class Measures(Section):
    """What accuracies mean in tables, figures and claims alike; every CSV of a table has all of them."""

    accuracy: Literal["choice", "argmax", "probability"] = Field(
        "choice",
        description="choice: right among the candidates; argmax: over the vocabulary; probability: mean probability "
        "of the right candidate among them (the released code's 'accuracy').",
    )
    prompts: tuple[Literal["training", "question"], ...] = Field(
        ("training", "question"),
        min_length=1,
        description="Prompts of the tables' forget and retain accuracies; figures and claims ask the first (3.1.1: "
        "training; the published tables: question).",
    )


class Published(Section):
    """Published means, read from a CSV where it lies: one row per localization, one column per measure."""

    file: str = Field(description="The CSV; it is not copied.")
    where: dict[str, str] = Field(
        default_factory=dict, description="Only the rows that have these values in these columns."
    )
    localizations: dict[str, str] = Field(
        default_factory=dict, description="Our names of its localizations, where they differ."
    )
    columns: dict[str, str] = Field(min_length=1, description="Our column for each of its columns.")
    errors: tuple[str, ...] = Field((), description="Which of its columns are 1 minus ours.")


class Study(Section):
    """A table of one's own, by name: some objectives on some forget sets, every localization a row."""

    title: str = Field("", description="What it is about; empty: its name.")
    tasks: tuple[str, ...] = Field(
        min_length=1, description="Forget sets; with several, their mean is a part too."
    )
    objectives: tuple[str, ...] = Field(min_length=1, description="Objectives, a part of the table each.")
    localizations: tuple[str, ...] = Field((), description="Its rows beside the base model; none given: all.")
    accuracy: Literal["choice", "argmax", "probability", "vocabulary"] | None = Field(
        None,
        description="Instead of measures.accuracy; vocabulary: mean probability of the answer over the whole vocabulary "
        "(the journal version's on CounterFact), of letters among these.",
    )
    prompts: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Further columns: by name, some of evaluation.prompts, on which the forget set's right answer (and "
        "the injected one) is scored, mean over them.",
    )
    published: Published | None = Field(None, description="Published means to set beside ours.")


class Claims(Section):
    """The paper's claims, judged on the run's rows."""

    file: str = Field("workflow/resources/claims.yaml", description="The claims.")
    rows: Literal["planned", "present"] = Field(
        "planned",
        description="planned: those of every table and figure, made first; present: those that lie there, nothing is made.",
    )


class Figures(Section):
    """How figures are drawn."""

    forget_sets: Literal["paper", "all"] = Field(
        "paper", description="paper: the paper's forget set alone; all: the mean over the task's sets ('of')."
    )
    overlay: dict[Annotated[str, Field(pattern=r"^figure_([1-9]|1[0-6])$")], str] = Field(
        default_factory=dict,
        description="Published curves to draw beside ours: a CSV by figure (figure_1: path), with the columns of the "
        "figure's own CSV (panel, localization, iteration / masked / layer, mean); another run's CSV will do.",
    )


class Interpretability(Section):
    """Probes and ablations on the base model (A.2)."""

    lookup_end: Count = Field(
        3, description="First layer past fact lookup; attention from here on is ablated."
    )
    test_fraction: Fraction = Field(0.2, description="Share of subjects that test the probe.")
    seed: int = Field(42, description="Seed of the probe's split (the released code: 42).")
    regularization: Positive = Field(1.0, description="scikit-learn's C of the logistic regression.")
    max_iterations: Count = Field(
        1000, description="Limit of the solver's iterations (the released code: 1000)."
    )
    mean_windows: Count = Field(25, description="Text windows over which an ablated activation is averaged.")
