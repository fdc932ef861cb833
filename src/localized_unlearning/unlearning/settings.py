"""Which settings hold for one fine-tuned model."""

from __future__ import annotations

from typing import Any

from localized_unlearning.config.data import Task
from localized_unlearning.config.unlearning import Finetune, FinetuneOverride, Objective


def finetune_settings(finetune: Finetune, objective: Objective, localization: str) -> Finetune:
    """The settings of one fine-tuned model: the run's, then the objective's, then those of its exception."""
    given = _overrides(objective, localization)
    return finetune.model_copy(update={key: value for key, value in given.items() if key != "lambda_forget"})


def forget_weight(task: Task, objective: Objective, localization: str) -> float:
    """λ1 of one fine-tuned model: the task's, unless the objective or its exception has another."""
    return float(_overrides(objective, localization).get("lambda_forget", task.lambda_forget))


def _overrides(objective: Objective, localization: str) -> dict[str, Any]:
    exception = objective.exceptions.get(localization, FinetuneOverride())
    return {**objective.finetune.model_dump(exclude_none=True), **exception.model_dump(exclude_none=True)}
