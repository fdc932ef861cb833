"""Which settings hold for a localization, where the config says it in two places.

Light: the Snakefile and the cost model ask too.
"""

from __future__ import annotations

from localized_unlearning.config.localization import Localization, NullDistribution


def for_masks(localization: Localization) -> Localization:
    """The localization of weight masks: the trained one's, with what its ``mask`` says instead."""
    if localization.mask is None:
        return localization
    return localization.model_copy(update={**localization.mask.model_dump(exclude_none=True), "mask": None})


def null_draws(null: NullDistribution) -> list[str]:
    """Names of the random localizations of the null distribution, as the resolved config has them."""
    return [f"random_draw_{i + 1}" for i in range(null.draws)] + [
        f"disjoint_draw_{i + 1}" for i in range(null.disjoint)
    ]
