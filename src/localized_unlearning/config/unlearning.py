"""Objectives, fine-tuning and weight masks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from localized_unlearning.config.base import (
    MICRO_BATCH,
    Count,
    Fraction,
    MethodName,
    Positive,
    Precision,
    Section,
    Weight,
)

RANDOM = "random_other"
"""The injected answer that is drawn anew for each fact."""


class FinetuneOverride(Section):
    """Settings of fine-tuning that differ for one objective, or for one localization of it."""

    steps: int | None = Field(None, ge=1, description="Instead of finetune.steps.")
    learning_rate: float | None = Field(None, gt=0, description="Instead of finetune.learning_rate.")
    schedule: Literal["cosine", "constant"] | None = Field(None, description="Instead of finetune.schedule.")
    lambda_forget: Weight | None = Field(None, description="λ1, instead of the task's.")
    lambda_retain: Weight | None = Field(None, description="Instead of finetune.lambda_retain.")
    lambda_sft: Weight | None = Field(None, description="Instead of finetune.lambda_sft.")


class Objective(Section):
    """What unlearning aims at."""

    loss: MethodName = Field(
        "erase",
        description="erase: log(1 - p); inject: a false answer; gradient_ascent, npo, simnpo, undial, rmu, repselect: see "
        "their files in objectives/; FILE.py:NAME: your own, a function of a batch or a class.",
    )
    parameters: dict[str, float | int | str | bool] = Field(
        default_factory=dict,
        description="Hyperparameters of the loss, by name; those not given keep their defaults.",
    )
    target: str = Field(
        "golf",
        description="The injected answer (A.1: golf): one of the candidates, or random_other, another for each fact.",
    )
    finetune: FinetuneOverride = Field(
        FinetuneOverride(), description="What differs from 'finetune' for this objective."
    )
    exceptions: dict[str, FinetuneOverride] = Field(
        default_factory=dict, description="What differs besides, by localization."
    )

    @field_validator("target")
    @classmethod
    def _old_name(cls, target: str) -> str:
        return RANDOM if target == "random_other_sport" else target


class EqualDisruption(Section):
    """Each localization unlearned as hard as one budget of side effects allows, instead of at one learning rate."""

    budget: Positive | None = Field(None, description="Most disruption; null: the fixed learning rate.")
    measure: Literal["text", "retained"] = Field(
        "text",
        description="text: KL divergence from the base model on validation text, in nats per token (0.01, say); retained: "
        "what retained validation facts lose of their answers' probability, over the training, question and "
        "multiple-choice prompts (0.05, say). For an organism only retained says anything: its text is not learned to the end, so "
        "unlearning's own text loss moves it by .2 nats whatever is forgotten.",
    )
    learning_rates: tuple[Positive, ...] = Field(
        (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
        min_length=1,
        description="The rates that every localization may have.",
    )
    windows: Count = Field(
        64, description="For text: windows of the training text that are kept for validation, the last ones."
    )
    retained: Fraction = Field(
        0.2,
        description="For retained: share of the training part's retained subjects that are kept for validation.",
    )


class Finetune(Section):
    """Localized fine-tuning (sections 2.4 and A.3)."""

    steps: Count = Field(50, description="Optimizer steps (A.3: 50).")
    batch_size: Count = Field(
        16, description="Examples per loss term and step (A.3: 4 x 16 accumulated = 64)."
    )
    sft_batch_size: int | None = Field(
        4, ge=1, description="Text windows per step; null: as many as batch_size (A.3)."
    )
    micro_batch_tokens: Count | Literal["auto"] = Field(4096, description=MICRO_BATCH)
    precision: Precision = Field(
        "fp32_master",
        description="Arithmetic and storage of the optimizer. fp32_master: float32 copies of the trained weights and "
        "float32 states (with model.dtype float32 the weights are their own copies); bf16: bfloat16 throughout, as the "
        "released code (the paper names none); bf16_stochastic_rounding: float32 arithmetic, bfloat16 weights and states "
        "rounded at random without bias.",
    )
    learning_rate: Positive = Field(2e-3, description="AdamW's learning rate (A.3: 1e-5 on Gemma-7B).")
    weight_decay: Weight = Field(0.0, description="AdamW's weight decay (A.3: 0).")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="Learning-rate schedule (A.3: cosine)."
    )
    lambda_retain: Weight = Field(1.0, description="λ2 (A.3: 1).")
    lambda_sft: Weight = Field(1.0, description="λ3 (A.3: 1).")
    clip_norm: float | None = Field(
        None, gt=0, description="Gradient-norm clipping; the released code clips at 1, the paper names none."
    )
    equal_disruption: EqualDisruption = EqualDisruption()


AT, FIRST_STEP = 90, 0.05
"""A mask's learning rate is chosen so that a weight at this percentile of |w dL/dw| loses this part of itself in the first step."""


class Masking(Section):
    """A differentiable mask over the weights of the selected components (sections 2.4, 3.2 and A.3)."""

    steps: Count = Field(30, description="Optimizer steps (A.3: 50).")
    batch_size: Count = Field(16, description="Subjects per fact-loss term and step (A.3: 10 x 15 = 150).")
    text_batch: Count = Field(8, description="Text windows per step (A.3: 150).")
    parameterization: Literal["mask", "weights"] = Field(
        "mask",
        description="What is trained. mask: a mask in [0, 1] (2.4), by its removed part; weights: the weights "
        "themselves, clamped between 0 and what they were, the mask being their ratio (the released code).",
    )
    optimizer: Literal["sgd", "adam"] = Field(
        "sgd",
        description="Optimizer of the mask (A.3: SGD). adam moves every weight by about the learning rate a step, "
        "whatever w dL/dw is: it ranks weights by how steadily the sign of their gradient agrees, not by importance.",
    )
    learning_rate: Positive | Literal["auto"] = Field(
        "auto",
        description="Its learning rate (A.3: 1e-3, which hardly moves a mask). auto, for sgd: the one at which a weight "
        "at the 90th percentile of |w dL/dw| loses 0.05 of itself in the first step; rate and percentiles are recorded.",
    )
    saliency_steps: Count = Field(
        5,
        description="Batches over which |w dL/dw| is averaged at the base weights, before training: for the learning "
        "rate and for the control.",
    )
    controls: tuple[Literal["saliency", "random"], ...] = Field(
        ("saliency", "random"),
        description="What is swept beside the trained mask: the same components' weights by |w dL/dw|, without "
        "training; and in random order.",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="SGD's momentum (not in the paper; released code: 0.9)."
    )
    weight_decay: Weight = Field(
        0.0, description="For parameterization weights: SGD's weight decay (released code: 0.01)."
    )
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="For parameterization weights: gradient-norm clipping (released code: 1).",
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="Learning-rate schedule (not in the paper; released code: cosine)."
    )
    lambda_forget: Weight = Field(0.3, description="λ1 for masks, both tasks (A.3: 0.3).")
    lambda_retain: Weight = Field(1.0, description="λ2 (A.3: 1).")
    lambda_sft: Weight = Field(1.0, description="λ3 (A.3: 1).")
    lambda_mask: Weight = Field(
        1e-7,
        description="λ4, the weight of the sum of the mask (A.3: 1e-7); for parameterization weights, of the sum of "
        "absolute weights.",
    )
    micro_batch_tokens: Count | Literal["auto"] = Field(4096, description=MICRO_BATCH)
    edit_sizes: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1000, 3000, 10_000, 20_000, 40_000, 80_000),
        min_length=1,
        description="How many weights are set to zero, one point each (the paper: up to 2.4 million of Gemma-7B).",
    )

    @model_validator(mode="after")
    def _optimizer_and_rate(self) -> Masking:
        if self.learning_rate == "auto" and (self.optimizer == "adam" or self.parameterization == "weights"):
            raise ValueError(
                "learning_rate auto is for optimizer sgd on a mask (parameterization mask): give a number"
            )
        return self


def _default_objectives() -> dict[str, Objective | None]:
    return {"erase": Objective(loss="erase"), "inject": Objective(loss="inject")}
