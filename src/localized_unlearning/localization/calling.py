"""A method that scores components is called, and what it gives is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from localized_unlearning import extensions
from localized_unlearning.config.localization import Score
from localized_unlearning.errors import UserError
from localized_unlearning.localization.effects import Effects, combined
from localized_unlearning.localization.pairs import Pairs
from localized_unlearning.models.components import Component


def called(
    method: Callable[..., Any],
    settings: Score,
    model: Any,
    pairs: Pairs,
    found: Sequence[Component],
    batch_tokens: int,
) -> tuple[list[float], Effects | None]:
    """A score per component, as a method gives it, or as its effects by prompt are put together; and these if any.

    Args:
        method: a function of model, pairs, components and tokens of a forward pass, then its settings by name. It gives a
            number per component, or :class:`Effects`.
        settings: name the method and its settings.
        model, pairs, found, batch_tokens: what it is given.

    Raises:
        UserError: when the method raises, or gives other than a finite number per component; it names the method and
            the first component.
    """
    named = settings.method
    extensions.check(method, settings.parameters, named, given=4)
    try:
        given = method(model, pairs, found, batch_tokens, **settings.parameters)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{named} fails on the components {found[0]} and on ({type(error).__name__}: {error}): correct it"
        ) from error
    effects = given if isinstance(given, Effects) else None
    wanted = f"{named} must give one number per component, {len(found)} in the order of the components"
    try:
        scores = [float(score) for score in (given if effects is None else combined(effects, settings))]
    except Exception as error:
        raise UserError(f"{wanted}, but gives {type(given).__name__} ({error}): correct it") from error
    if len(scores) != len(found):
        raise UserError(f"{wanted}, but gives {len(scores)}: correct it")
    for component, score in zip(found, scores, strict=True):
        if not math.isfinite(score):
            raise UserError(f"{named} scores {component} {score}: correct it")
    return scores, effects
