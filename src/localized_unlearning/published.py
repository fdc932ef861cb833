"""The paper's own tables and figures: what each one shows, and the tables' printed numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from localized_unlearning.config import Config

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


PAPER: Mapping[str, Mapping[str, tuple[float, float, float, float]]] = {
    "table_1": {
        "attribution_patching": (0.000, 1.000, 0.767, 0.602),
        "causal_tracing": (0.201, 0.998, 0.849, 0.611),
        "manual": (0.002, 0.995, 0.110, 0.613),
        "random": (0.952, 0.980, 0.822, 0.612),
        "all_mlps": (0.000, 0.994, 0.279, 0.606),
        "nonlocalized": (0.000, 0.985, 0.196, 0.595),
    },
    "table_2": {
        "attribution_patching": (0.941, 0.964, 0.934, 0.614),
        "causal_tracing": (0.891, 0.915, 0.910, 0.612),
        "manual": (0.034, 0.975, 0.175, 0.615),
        "random": (0.938, 0.952, 0.883, 0.612),
        "all_mlps": (0.003, 0.973, 0.281, 0.599),
        "nonlocalized": (0.203, 0.570, 0.391, 0.540),
    },
    "table_3": {
        "attribution_patching": (0.000, 1.000, 0.815, 0.611),
        "causal_tracing": (0.028, 1.000, 0.866, 0.614),
        "manual": (0.035, 0.973, 0.257, 0.610),
        "random": (0.018, 1.000, 0.839, 0.611),
        "all_mlps": (0.000, 0.946, 0.363, 0.571),
        "nonlocalized": (0.000, 0.995, 0.376, 0.565),
    },
    "table_4": {
        "attribution_patching": (0.447, 0.998, 0.895, 0.612),
        "causal_tracing": (0.586, 0.994, 0.945, 0.613),
        "manual": (0.001, 0.970, 0.108, 0.611),
        "random": (0.883, 0.988, 0.875, 0.614),
        "all_mlps": (0.001, 0.965, 0.166, 0.574),
        "nonlocalized": (0.354, 0.890, 0.155, 0.573),
    },
}
"""The paper's Tables 1-4: FORGET, RETAIN, MCQ and MMLU by localization."""
