"""What jobs make and read: products of other jobs, and files from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localized_unlearning.workflow.layout import JobId

EVALUATIONS = ("facts", "multiple_choice", "mmlu", "text")
"""The evaluations of each model, in the order of their table columns."""

SHORT_EXAM = ("facts", "multiple_choice", "mmlu")
"""What is asked at each point of a series."""

EVIDENCE = (*SHORT_EXAM, "probes", "layer_probes", "head_ablation")
"""Stems of the files that hold per-item rows of a model."""

MAKERS = ("pretrain", "inject", "convert", "download")
"""The stages that make base models."""

KNOWERS = ("base", "gold")
"""The models that were not unlearned: the base model, and one that never learned the forget set."""

INJECTED = ("inject", "gold", "teachers", "localizers", "place", "places_page", "question", "question_page")
"""Stages of an organism with injected facts alone."""


@dataclass(frozen=True)
class Product:
    """An output of a job, by its name in the stage table."""

    job: JobId
    output: str


Given = Product | str
"""What a job reads: another job's product, or a file from outside."""


def model(base: int, task: str, objective: str, localization: str, seed: int) -> dict[str, str]:
    """Wildcards of a model."""
    return {
        "base_seed": str(base), "task": task, "objective": objective,
        "localization": localization, "seed": str(seed),
    }  # fmt: skip


def only(w: Mapping[str, str], *names: str) -> dict[str, str]:
    """Some of the wildcards."""
    return {name: w[name] for name in names}


def listed(found: Given | Sequence[Given] | None) -> list[Given]:
    """What an input has as a list."""
    if found is None:
        return []
    return [found] if isinstance(found, str | Product) else list(found)
