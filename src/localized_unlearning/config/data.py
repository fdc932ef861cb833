"""Facts, prompts, splits, tasks, text and general knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from localized_unlearning.config.base import Count, Fraction, Section, Weight
from localized_unlearning.config.source import Source


class OwnPrompts(Section):
    """CounterFact as the journal version asks it: every fact by its own prompt, with its own right and false answer."""

    questions: Source | None = Field(
        None,
        description="Its multiple-choice questions: Parquet or JSON with prompt_id, question and targets_false (three). null: "
        "the fact's own prompt is the question, and other answers of its relation are the options.",
    )
    shots: int = Field(
        8, ge=0, description="Solved examples before each multiple-choice question (the released code: 8)."
    )


class Athletes(Section):
    """The facts: subjects and their answers, of any relation; the paper's athletes and their sports."""

    source: Source = Field(
        default_factory=lambda: Source(kind="path", path="workflow/resources/athletes.csv"),
        description="CSV, Parquet, JSON or JSON lines with columns subject and answer (or athlete and sport), and "
        "optionally aliases, group and split; CounterFact's file; a question file as RWKU's.",
    )
    relation: str | None = Field(None, description="Which of CounterFact's relations, as P641.")
    own_prompts: OwnPrompts | None = Field(
        None,
        description="The source is CounterFact, and every fact of it is asked by its own prompt; injected is its own false "
        "answer (objectives.*.target: wrong). Its prompts are training, paraphrase_1 and 2, neighborhood_1 to 10 and multiple_choice.",
    )
    made_up_names: str | None = Field(
        None,
        description="A text file of made-up subjects, one per line, for the corrupted prompts of localization; null: "
        "names of people that nobody bears. A subject for which none has as many tokens is skipped and counted.",
    )
    known_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Keep the subjects whose right answer the base model gives at least this probability "
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

    kind: Literal["stratified", "released", "file"] = Field(
        "stratified",
        description="stratified: seeded, by subject, balanced over answers, relearning subjects in train; "
        "released: the first 80 % of the rows, as the authors' code did; file: as the facts' column split says.",
    )
    test_fraction: Fraction = Field(
        0.3,
        description="Share of the test part (A.4.1: 20 %; the organism: who was never asked in multiple choice).",
    )
    forget_test_fraction: Fraction | None = Field(
        None, description="Share of the test part of an answer that is forgotten; null: test_fraction."
    )
    seed: int = Field(0, description="Seed of the stratified split.")


class Forget(Section):
    """Which facts to forget: all with an answer, those about named subjects or a group, the first of the file, or a draw."""

    answer: str | None = Field(
        None,
        description="Forget every subject with this answer.",
    )
    athletes: tuple[str, ...] = Field((), description="Forget these subjects.")
    group: str | None = Field(None, description="Forget every subject of this group (the facts' column).")
    draw: int | None = Field(
        None, ge=2, description="Forget this many subjects, drawn from those the model knows."
    )
    balanced: bool = Field(
        False, description="For a draw: as many subjects of each answer, so that no answer is a better guess."
    )
    seed: int = Field(0, description="Seed of the draw.")
    first: int | None = Field(
        None, ge=1, description="Forget this many subjects, the first of the file that the model knows."
    )
    skip: int = Field(0, ge=0, description="For 'first': how many to leave out before them.")

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, data: Any) -> Any:
        """``sport`` and ``subjects`` are other names of ``answer`` and ``athletes``, and come after them in overlays."""
        if isinstance(data, Mapping):
            names = {"sport": "answer", "subjects": "athletes"}
            own = {name: value for name, value in data.items() if name not in names}
            return {**own, **{names[name]: value for name, value in data.items() if name in names}}
        return data

    @model_validator(mode="after")
    def _one_of(self) -> Forget:
        given = {
            "answer": self.answer is not None,
            "athletes": bool(self.athletes),
            "group": self.group is not None,
            "draw": self.draw is not None,
            "first": self.first is not None,
        }
        if sum(given.values()) != 1:
            raise ValueError("give exactly one of 'answer', 'athletes', 'group', 'draw' and 'first'")
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
        description="Subjects retrained in relearning (A.4.2); always in train. None: the forget set's first two.",
    )
    lambda_forget: Weight = Field(description="λ1 of fine-tuning (A.3: 0.2 sports, 1 athletes).")
    after: str | None = Field(
        None,
        description="The task whose models this one's start from: sequential unlearning. What was forgotten there is asked "
        "for again here, but trained no more.",
    )
    exclude: Forget | None = Field(
        None, description="Subjects that are in neither set, unless this task or one before it forgets them."
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
    fewer_shots: bool = Field(
        True,
        description="Where a prompt with its worked examples passes the model's context length: true gives it fewer, "
        "recorded with the question (shots); false refuses it before anything runs.",
    )
    questions: int | None = Field(
        120,
        ge=1,
        description="Size of a stratified subset; null takes all. The organism reads those that it is asked.",
    )
    seed: int = Field(0, description="Seed of the subset.")


def _default_tasks() -> dict[str, Task | None]:
    return {
        "sports": Task(forget=Forget(answer="basketball"), lambda_forget=0.2),
        "athletes": Task(forget=Forget(draw=48, balanced=True), lambda_forget=0.2),
    }
