"""The paper's own tables and figures: what each one shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from localized_unlearning.config.run import Config


TABLES = {
    "table_1": ("sports", "erase"),
    "table_2": ("athletes", "erase"),
    "table_3": ("sports", "inject"),
    "table_4": ("athletes", "inject"),
}
"""Task and objective of each table of the paper."""


class FigureOf(NamedTuple):
    """What a figure shows.

    Attributes:
        kind: relearning, probes, edits (accuracy by edit size), price (general knowledge by forget accuracy),
            heads (ablated heads) or layers (probes on the base model).
        task: the unlearning task; empty for figures about the base model.
        objective: erase, inject or mask; empty likewise.
        multiple_choice: whether forgetting is asked by multiple choice.
    """

    kind: Literal["relearning", "probes", "edits", "price", "heads", "layers"]
    task: str = ""
    objective: str = ""
    multiple_choice: bool = False


FIGURES: Mapping[str, FigureOf] = {
    "figure_1": FigureOf("relearning", "sports", "erase"),
    "figure_2": FigureOf("relearning", "athletes", "erase"),
    "figure_3": FigureOf("probes", "sports", "erase"),
    "figure_4": FigureOf("probes", "athletes", "erase"),
    "figure_5": FigureOf("edits", "sports", "mask"),
    "figure_6": FigureOf("edits", "sports", "mask", multiple_choice=True),
    "figure_7": FigureOf("price", "sports", "mask"),
    "figure_8": FigureOf("price", "sports", "mask", multiple_choice=True),
    "figure_9": FigureOf("edits", "athletes", "mask"),
    "figure_10": FigureOf("edits", "athletes", "mask", multiple_choice=True),
    "figure_11": FigureOf("price", "athletes", "mask"),
    "figure_12": FigureOf("price", "athletes", "mask", multiple_choice=True),
    "figure_13": FigureOf("relearning", "athletes", "inject"),
    "figure_14": FigureOf("probes", "athletes", "inject"),
    "figure_15": FigureOf("heads"),
    "figure_16": FigureOf("layers"),
}
"""Every figure of the paper; captions are in workflow/report/captions.yaml."""


DEAR = ("relearning", "edits", "price")
"""Kinds of figures that may rest on fewer base models than the run has (``figure_base_seeds``)."""


def bases_of(config: Config, figure: str) -> tuple[int, ...]:
    """Seeds of the base models that a figure shows; ablated heads are those of one, which has no counterpart in another."""
    every = config.base_seeds if config.model.kind == "organism" else (0,)
    kind = FIGURES[figure].kind
    if kind == "heads":
        return every[:1]
    chosen = config.figure_base_seeds
    if kind not in DEAR or chosen is None:
        return every
    return tuple(seed for seed in every if seed in chosen) or every[:1]


def lacking(config: Config, name: str) -> str | None:
    """What a config lacks for a table or figure, with the remedy; None when it lacks nothing."""
    task, objective = TABLES[name] if name in TABLES else FIGURES[name][1:3]
    if task not in ("", *config.tasks):
        return f"the config has no task '{task}': add it under 'tasks'"
    if objective == "mask" and config.mask_seeds == ():
        return "the config asks for no weight masks: give 'mask_seeds' a seed"
    if objective not in ("", "mask", *config.objectives):
        return f"the config has no objective '{objective}': add it under 'objectives'"
    return None
