"""The place of an organism's injected facts: the matrices that were trained to hold them."""

from __future__ import annotations

import random

from localized_unlearning.config.model import FactsIn
from localized_unlearning.errors import UserError
from localized_unlearning.models.components import Component


def place(facts_in: FactsIn) -> list[Component]:
    """The matrices that hold the injected facts."""
    return [Component(layer, kind) for layer in sorted(set(facts_in.layers)) for kind in facts_in.kinds]


def matched(facts_in: FactsIn, layers: int, seed: int, disjoint: bool) -> list[Component]:
    """A random draw with as many matrices of each kind as the place has, and so with as many weights.

    Args:
        facts_in: the place.
        layers: how many layers the model has.
        seed: of the draw.
        disjoint: draw from the other layers only.

    Raises:
        UserError: when the other layers are too few.
    """
    rng = random.Random(seed)
    own = sorted(set(facts_in.layers))
    free = [layer for layer in range(layers) if not disjoint or layer not in own]
    if len(free) < len(own):
        raise UserError(
            f"a draw without the {len(own)} layers that hold the facts needs as many others, but the model has "
            f"{layers} layers: leave out 'disjoint'"
        )
    return sorted(Component(layer, kind) for kind in facts_in.kinds for layer in rng.sample(free, len(own)))
