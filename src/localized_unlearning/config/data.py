"""Facts, prompts, splits, tasks, text and general knowledge."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from localized_unlearning.config.base import Count, Fraction, Section, Weight
from localized_unlearning.config.source import Source

Sport = Literal["football", "baseball", "basketball"]


class Athletes(Section):
    """The facts: athletes and their sports."""

    source: Source = Field(
        default_factory=lambda: Source(kind="path", path="workflow/resources/athletes.csv"),
        description="A CSV with columns athlete and sport.",
    )
    known_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Keep the athletes whose right sport the base model gives at least this probability "
        "(whole vocabulary, training prompt); null keeps all.",
    )


class Prompts(Section):
    """Which prompts of the prompts file are used for what."""

    file: str = Field(
        "auto",
        description="The versioned prompts; auto: workflow/resources/prompts_organism.yaml for the organism, and "
        "workflow/resources/prompts.yaml, which has the paper's, for any other model.",
    )
    training: str = Field("training", description="Prompt that unlearning trains on (section 3.1.1).")
    question: str = Field("question", description="Question prompt (the released code's 'Normal').")
    multiple_choice: str = Field("multiple_choice", description="Multiple-choice prompt (section 3.1.1).")


class Split(Section):
    """Train and test parts (A.4.1)."""

    kind: Literal["stratified", "released"] = Field(
        "stratified",
        description="stratified: seeded, by athlete, balanced over sports, relearning athletes in train; "
        "released: the first 80 % of the rows, as the authors' code did.",
    )
    test_fraction: Fraction = Field(
        0.3,
        description="Share of the test part (A.4.1: 20 %; the organism: who was never asked in multiple choice).",
    )
    forget_test_fraction: Fraction | None = Field(
        None, description="Share of the test part of a sport that is forgotten; null: test_fraction."
    )
    seed: int = Field(0, description="Seed of the stratified split.")


class Forget(Section):
    """Which facts to forget: all athletes of a sport, the named ones, the first of the file, or as many drawn at random."""

    sport: Sport | None = Field(None, description="Forget every athlete of this sport.")
    athletes: tuple[str, ...] = Field((), description="Forget these athletes.")
    draw: int | None = Field(
        None, ge=2, description="Forget this many athletes, drawn from those the model knows."
    )
    balanced: bool = Field(
        False, description="For a draw: as many athletes of each sport, so that no answer is a better guess."
    )
    seed: int = Field(0, description="Seed of the draw.")
    first: int | None = Field(
        None, ge=1, description="Forget this many athletes, the first of the file that the model knows."
    )
    skip: int = Field(0, ge=0, description="For 'first': how many to leave out before them.")

    @model_validator(mode="after")
    def _one_of(self) -> Forget:
        given = (self.sport is not None, bool(self.athletes), self.draw is not None, self.first is not None)
        if sum(given) != 1:
            raise ValueError("give exactly one of 'sport', 'athletes', 'draw' and 'first'")
        if self.skip and self.first is None:
            raise ValueError("'skip' is for 'first': leave it out")
        return self


class Task(Section):
    """An unlearning task (section 2.1)."""

    forget: Forget
    of: Literal["sports", "athletes"] | None = Field(
        None,
        description="The paper's task of which this is another forget set; tables give the mean over the sets.",
    )
    seeds: tuple[int, ...] = Field((), description="Seeds of its models; none: those of the run.")
    relearn: tuple[str, ...] = Field(
        (),
        description="Athletes retrained in relearning (A.4.2); always in train. None: the forget set's first two.",
    )
    lambda_forget: Weight = Field(description="λ1 of fine-tuning (A.3: 0.2 sports, 1 athletes).")
    after: str | None = Field(
        None,
        description="The task whose models this one's start from: sequential unlearning. What was forgotten there is asked "
        "for again here, but trained no more.",
    )
    exclude: Forget | None = Field(
        None, description="Athletes that are in neither set, unless this task or one before it forgets them."
    )


class Text(Section):
    """Plain text: one part trains (L_SFT), the other's loss measures side effects."""

    train: Source = Field(
        default_factory=lambda: Source(kind="path", path="workflow/resources/text/train.txt")
    )
    held_out: Source = Field(
        default_factory=lambda: Source(kind="path", path="workflow/resources/text/held_out.txt")
    )
    documents: int | None = Field(
        None, ge=1, description="Documents read from the start of each file; null takes all of them."
    )
    tokens: Count = Field(48, description="Tokens per window (the released code: 100).")
    windows: Count = Field(
        64,
        description="Held-out windows: their loss, and the KL divergence from the base model, are measured.",
    )

    @model_validator(mode="after")
    def _apart(self) -> Text:
        if self.train == self.held_out:
            raise ValueError(
                "train and held_out are the same text: what is trained on measures no side effect"
            )
        return self


class Mmlu(Section):
    """General knowledge, as multiple-choice questions in MMLU's format."""

    source: Source = Field(
        default_factory=lambda: Source(kind="path", path="workflow/resources/general_knowledge.csv")
    )
    shots: int = Field(0, ge=0, le=5, description="Worked examples before each question (tables: 0).")
    questions: int | None = Field(
        120,
        ge=1,
        description="Size of a stratified subset; null takes all. The organism reads those that it is asked.",
    )
    seed: int = Field(0, description="Seed of the subset.")


def _default_tasks() -> dict[str, Task | None]:
    return {
        "sports": Task(forget=Forget(sport="basketball"), lambda_forget=0.2),
        "athletes": Task(forget=Forget(draw=48, balanced=True), lambda_forget=0.2),
    }
