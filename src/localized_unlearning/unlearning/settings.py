"""Which settings hold for one fine-tuned model."""

from __future__ import annotations

from localized_unlearning.config.unlearning import Finetune, FinetuneOverride, Objective


def finetune_settings(finetune: Finetune, objective: Objective, localization: str) -> Finetune:
    """The settings of one fine-tuned model: the run's, then the objective's, then those of its exception."""
    exception = objective.exceptions.get(localization, FinetuneOverride())
    update = {**objective.finetune.model_dump(exclude_none=True), **exception.model_dump(exclude_none=True)}
    return finetune.model_copy(update=update)
