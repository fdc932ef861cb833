"""The base model: pretrained here, converted or downloaded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from localized_unlearning.config.base import Count, Fraction, Positive, Section, Weight


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

    training: Fraction = Field(0.98, description="Accuracy on its athletes, training prompt.")
    question: Fraction = Field(0.98, description="Accuracy on its athletes, question prompt.")
    multiple_choice_unseen: Fraction = Field(
        0.90, description="Accuracy on athletes whose multiple-choice question it never saw."
    )
    general_knowledge: Fraction = Field(0.80, description="Accuracy on general knowledge, 0-shot.")


class Organism(Section):
    """The model organism: a Gemma architecture pretrained by the workflow on facts it then forgets."""

    vocabulary: Count = Field(1024, description="Tokens of its byte-pair vocabulary.")
    layers: Count = Field(6, description="Decoder layers.")
    heads: Count = Field(4, description="Attention heads.")
    hidden: Count = Field(128, description="Width of the residual stream.")
    mlp: Count = Field(512, description="Width of the MLP.")
    initializer_range: Positive = Field(0.06, description="Standard deviation of the initial weights.")
    steps: Count = Field(420, description="Optimizer steps.")
    learning_rate: Positive = Field(
        3e-3, description="Peak AdamW learning rate; warmed up, then linear to 0."
    )
    warmup: Count = Field(30, description="Warm-up steps.")
    facts_per_step: Count = Field(40, description="Short fact prompts per step.")
    questions_per_step: Count = Field(12, description="Question prompts per step.")
    multiple_choice_per_step: Count = Field(16, description="Multiple-choice prompts per step.")
    general_knowledge_per_step: Count = Field(8, description="General-knowledge questions per step.")
    text_per_step: Count = Field(4, description="Windows of plain text per step, 64 tokens each.")
    text_weight: Weight = Field(0.3, description="Weight of the text loss.")
    multiple_choice_share: Fraction = Field(
        0.5, description="Share of the athletes whose multiple-choice question is read in pretraining."
    )
    paraphrases: Count = Field(3, description="Paraphrases read per athlete, drawn at random.")
    seed: int = Field(0, description="Seed of initialisation, order and which athlete is read how.")
    threads: Count = Field(
        2,
        description="CPU threads of pretraining, however many there are: sums are rounded in another order with "
        "another number, and everything is trained from the organism.",
    )
    requirements: Requirements = Requirements()
