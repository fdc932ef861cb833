"""The question: does a localizer that finds the truth better unlearn more robustly?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from localized_unlearning.config.attacks import Retraining
from localized_unlearning.config.base import Count, Kind, Positive, Section
from localized_unlearning.config.model import Requirements


class Place(Section):
    """One place of injected facts."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, description="Layers.")
    kinds: tuple[Kind, ...] = Field(
        ("gate", "up", "down"),
        min_length=1,
        description="Kinds of matrices: all of an MLP, or of an attention.",
    )
    requirements: Requirements = Requirements()


ATTENTION: tuple[Kind, ...] = ("q", "k", "v", "o")


def _default_places() -> dict[str, Place]:
    return {
        "mlp_0_1": Place(layers=(0, 1)),
        "mlp_0": Place(layers=(0,)),
        "mlp_1": Place(layers=(1,)),
        "mlp_2": Place(layers=(2,)),
        "attention_0": Place(layers=(0,), kinds=ATTENTION),
        "attention_1": Place(layers=(1,), kinds=ATTENTION),
    }


def _default_attacks() -> dict[str, Retraining]:
    return {"low_rank": Retraining(rank=64), "full": Retraining(rank=None, learning_rate=1e-3)}


class Question(Section):
    """Facts at several places, unlearned by every localization and by matched random draws at equal disruption."""

    places: dict[str, Place] = Field(
        default_factory=_default_places, description="Where facts are injected, by name; null removes one."
    )
    draws: Count = Field(
        20, description="Random draws per place and base model, matched in kind and weights."
    )
    disjoint: Annotated[int, Field(ge=0)] = Field(
        4, description="Draws besides that share no layer with the truth."
    )
    forget: Count = Field(48, description="Subjects of the forget set, drawn and balanced over the answers.")
    budget: Positive = Field(
        0.05,
        description="Most that retained validation facts may lose of their answers' probability (equal disruption).",
    )
    learning_rates: tuple[Positive, ...] = Field(
        (5e-4, 1e-3, 2e-3, 4e-3), min_length=1, description="The rates that every localization may have."
    )
    attacks: dict[str, Retraining] = Field(
        default_factory=_default_attacks,
        min_length=1,
        description="Half and half, in each of these ways; the one that recovers most counts. null removes one.",
    )
