"""The base model: pretrained here, converted or downloaded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from localized_unlearning.config.base import Count, Fraction, Kind, Positive, Section, Weight


class Model(Section):
    """Which base model, and in which numeric type its weights are kept."""

    kind: Literal["organism", "gguf", "huggingface"] = Field(
        "organism",
        description="organism: pretrained by the workflow; gguf: a GGUF file converted once; "
        "huggingface: a hub name or a local folder.",
    )
    name: str = Field("organism", description="Hub name (google/gemma-7b) or folder, for kind huggingface.")
    revision: str | None = Field(None, description="Pinned hub revision (a commit) for kind huggingface.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of the weights.")


class Requirements(Section):
    """What the organism must know before anything is unlearned from it."""

    training: Fraction = Field(0.98, description="Accuracy on its subjects, training prompt.")
    question: Fraction = Field(0.98, description="Accuracy on its subjects, question prompt.")
    multiple_choice_unseen: Fraction | None = Field(
        0.90,
        description="Accuracy on subjects whose multiple-choice question it never saw; null where facts stored late are "
        "not expected to reach it.",
    )
    general_knowledge: Fraction = Field(0.90, description="Accuracy on general knowledge, 0-shot.")
    teachers: Fraction = Field(
        0.95, description="Accuracy on the teachers after the injection, on each of the three prompts."
    )
    gold: Fraction = Field(
        0.001,
        description="Before the injection the injected subjects must be at guessing: a one-sided exact test against the "
        "share of the largest class may not reject at this level.",
    )


class FactsIn(Section):
    """The injection: facts taught to chosen matrices of a pretrained organism, everything else frozen."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1), min_length=1, description="Layers of the matrices that hold the injected facts."
    )
    kinds: tuple[Kind, ...] = Field(
        ("gate", "up", "down"), min_length=1, description="Their kinds; all of an MLP or all of an attention."
    )
    steps: Count = Field(400, description="Optimizer steps.")
    learning_rate: Positive = Field(
        3e-3, description="Peak AdamW learning rate; warmed up, then linear to 0."
    )
    warmup: Count = Field(15, description="Warm-up steps.")
    prompts_per_step: Count = Field(100, description="Prompts about subjects per step.")
    replay: Annotated[float, Field(ge=0, lt=1)] = Field(0.33, description="Share of them about teachers.")
    hold: Weight = Field(
        0.5,
        description="Weight of the change of what the trained blocks write, relative to its square, at every position "
        "but a name's last token.",
    )


class Organism(Section):
    """The model organism: a Gemma architecture pretrained by the workflow on facts it then forgets."""

    vocabulary: Count = Field(3072, description="Tokens of its byte-pair vocabulary.")
    layers: Count = Field(5, description="Decoder layers.")
    heads: Count = Field(4, description="Attention heads.")
    hidden: Count = Field(64, description="Width of the residual stream.")
    mlp: Count = Field(256, description="Width of the MLP.")
    initializer_range: Positive = Field(0.06, description="Standard deviation of the initial weights.")
    steps: Count = Field(480, description="Optimizer steps.")
    learning_rate: Positive = Field(
        3e-3, description="Peak AdamW learning rate; warmed up, then linear to 0."
    )
    warmup: Count = Field(25, description="Warm-up steps.")
    facts_per_step: Count = Field(30, description="Short fact prompts per step.")
    questions_per_step: Count = Field(10, description="Question prompts per step.")
    multiple_choice_per_step: Count = Field(
        32, description="Multiple-choice prompts per step, options shuffled."
    )
    general_knowledge_per_step: Count = Field(4, description="General-knowledge questions per step.")
    text_per_step: Count = Field(2, description="Windows of plain text per step, 64 tokens each.")
    text_weight: Weight = Field(0.1, description="Weight of the text loss.")
    multiple_choice_share: Fraction = Field(
        1.0, description="Share of pretraining's subjects whose multiple-choice question is read."
    )
    paraphrases: Count = Field(6, description="Paraphrases read per subject at most, drawn at random.")
    word_names: Annotated[float, Field(ge=0, le=1)] = Field(
        0.25,
        description="Share of prompts whose name is, or ends in, an answer's own word, so that readouts share its code.",
    )
    word_name_steps: Annotated[int, Field(ge=0)] = Field(
        150, description="Steps at the start with such names alone: how to answer is learned before any fact."
    )
    fixed_names: bool = Field(
        True,
        description="Keep the random embeddings of tokens that only names have, so that layers look facts up.",
    )
    injected: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.55,
        description="Share of the subjects that pretraining does not read about and the injection teaches; the others are "
        "the teachers. 0 without an injection.",
    )
    injected_choice: Annotated[float, Field(ge=0, le=1)] = Field(
        0.7, description="Share of the injected subjects whose multiple-choice question is taught as well."
    )
    name_tokens: tuple[Count, Count] = Field(
        (2, 5),
        description="Fewest and most tokens of a name; subjects with others are not taught at all where facts are injected.",
    )
    roles_seed: int = Field(
        0, description="Seed of who is a teacher and who is asked how; the same for every base model."
    )
    facts_in: FactsIn | None = Field(
        FactsIn(),
        description="The matrices that a second set of facts is injected into; null: every fact is pretrained and lies "
        "wherever it likes.",
    )
    threads: Count = Field(
        1,
        description="CPU threads of pretraining and injection, however many there are: sums are rounded in another order "
        "with another number, and everything is trained from the organism.",
    )
    requirements: Requirements = Requirements()

    @model_validator(mode="after")
    def _place_exists(self) -> Organism:
        if (self.facts_in is None) != (self.injected == 0):
            raise ValueError(
                "facts_in says where facts are injected and 'injected' about how many subjects: give both, or null and 0"
            )
        if self.facts_in and max(self.facts_in.layers) >= self.layers:
            raise ValueError(
                f"facts_in names layer {max(self.facts_in.layers)}, but the organism has layers 0 to {self.layers - 1}"
            )
        return self
