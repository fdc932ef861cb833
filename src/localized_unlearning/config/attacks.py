"""Attacks on unlearned models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from localized_unlearning.config.base import Count, Fraction, Positive, Section, Weight


class Retraining(Section):
    """Attacks that retrain the unlearned model with retained facts and text beside the attacker's facts."""

    steps: Count = Field(40, description="Optimizer steps.")
    learning_rate: Positive = Field(2e-3, description="AdamW's learning rate.")
    rank: Count | None = Field(
        512,
        description="LoRA's rank on every linear module, at most the model's width (Deeb and Roger: 512); null trains "
        "every matrix itself.",
    )
    batch_size: Count = Field(16, description="Facts and retained facts per step, each.")
    text_batch: Count = Field(4, description="Text windows per step.")
    lambda_facts: Weight = Field(1.0, description="Weight of the loss of the attacker's facts.")
    lambda_retain: Weight = Field(1.0, description="Weight of the retain loss.")
    lambda_text: Weight = Field(1.0, description="Weight of the text loss.")
    micro_batch_tokens: Count = Field(4096, description="Tokens of one forward and backward.")


class Search(Section):
    """The attacker's search: half and half in every cell of a grid, the worst case counting."""

    learning_rates: tuple[Positive, ...] = Field(
        (5e-4, 2e-3, 8e-3), min_length=1, description="Learning rates."
    )
    steps: tuple[Count, ...] = Field((20, 80), min_length=1, description="Numbers of steps.")
    ranks: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (8, 512, 0), min_length=1, description="LoRA's ranks; 0 trains every matrix itself."
    )
    base: Retraining = Retraining()


class FewShot(Section):
    """Forgotten facts in the prompt."""

    facts: Count = Field(5, description="How many, from the attacker's half of the forget set.")


class Quantization(Section):
    """Weights rounded to the nearest level."""

    bits: tuple[Annotated[int, Field(ge=2, le=8)], ...] = Field(
        (4,), min_length=1, description="Bits per weight."
    )
    group: Count = Field(32, description="Weights of a row that share a scale.")


class SoftPrompt(Section):
    """Trained embeddings before the prompt."""

    tokens: Count = Field(4, description="How many.")
    steps: Count = Field(128, description="Optimizer steps.")
    learning_rate: Positive = Field(1e-2, description="Adam's learning rate.")
    batch_size: Count = Field(16, description="Facts per step.")


class Noise(Section):
    """Gaussian noise on the weights."""

    scales: tuple[Positive, ...] = Field(
        (0.05, 0.1, 0.2), min_length=1, description="In units of each matrix's standard deviation."
    )


class Pruning(Section):
    """The smallest weights set to zero."""

    shares: tuple[Fraction, ...] = Field((0.1, 0.3, 0.5), min_length=1, description="Share of each matrix.")


AttackName = Literal[
    "half_and_half",
    "half_and_half_false",
    "retain_only",
    "search",
    "few_shot",
    "quantization",
    "soft_prompt",
    "logit_lens",
    "noise",
    "pruning",
]


class LogitLens(Section):
    """The answer read off the residual stream between layers."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="After which layers; null: after each but the last."
    )


class Asked(Section):
    """What every attacked model, and the model before the attack, is asked."""

    retained: Annotated[int, Field(ge=0)] = Field(
        40, description="Retained subjects that are asked besides half of the forget set, at most."
    )
    orders: Count = Field(4, description="Option orders of each multiple-choice question, averaged.")


class Attacks(Section):
    """What is tried to bring forgotten facts back, and what it is tried on."""

    run: tuple[AttackName, ...] = Field(
        ("retain_only", "half_and_half", "few_shot", "quantization"),
        description="Which attacks; none: no attack.",
    )
    tasks: tuple[str, ...] = Field(
        ("athletes",), description="Tasks whose models are attacked; none given: all."
    )
    objectives: tuple[str, ...] = Field(
        ("erase",),
        description="Objectives whose models are attacked; of a forget set that studies have, those that they pair with it.",
    )
    asked: Asked = Asked()
    logit_lens: LogitLens = LogitLens()
    half_and_half: Retraining = Retraining()
    half_and_half_false: Retraining = Retraining()
    retain_only: Retraining = Retraining()
    search: Search = Search()
    few_shot: FewShot = FewShot()
    quantization: Quantization = Quantization()
    soft_prompt: SoftPrompt = SoftPrompt()
    noise: Noise = Noise()
    pruning: Pruning = Pruning()

    def impossible(self, gold: bool) -> str | None:
        """Why an attack that is to run cannot run, with the remedy; None when all can.

        Args:
            gold: whether there are models that never learned the forget set.
        """
        if "soft_prompt" in self.run and not gold:
            return (
                "attacks.run has soft_prompt, which extracts anything from any model and is read against gold alone, but "
                "this run has no gold (a model that never learned the forget set): leave it out"
            )
        return None
