"""The paper's own tables and figures: what each one shows, and the tables' printed numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

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
        caption: what it shows, for a reader.
    """

    kind: Literal["relearning", "probes", "edits", "price", "heads", "layers"]
    task: str = ""
    objective: str = ""
    multiple_choice: bool = False
    caption: str = ""


FIGURES: Mapping[str, FigureOf] = {
    "figure_1": FigureOf("relearning", "sports", "erase", False, "Relearning two athletes after one sport was erased: accuracy on the forgotten athletes that were not retrained, on retained ones and on general knowledge, by iteration."),
    "figure_2": FigureOf("relearning", "athletes", "erase", False, "Relearning two athletes after sixteen named athletes were erased; the two are left out of the forget panels."),
    "figure_3": FigureOf("probes", "sports", "erase", False, "Probes on the models from which a sport was erased: share of test athletes for whom all three sports' probes are right, by layer."),
    "figure_4": FigureOf("probes", "athletes", "erase", False, "Probes on the models from which sixteen athletes were erased; half of the sixteen train the probes, the other half test them."),
    "figure_5": FigureOf("edits", "sports", "mask", False, "Masks that erase a sport: accuracy in the question prompt against the number of weights set to zero."),
    "figure_6": FigureOf("edits", "sports", "mask", True, "Masks that erase a sport: multiple-choice accuracy against the number of weights set to zero."),
    "figure_7": FigureOf("price", "sports", "mask", False, "Masks that erase a sport: general knowledge against forget accuracy in the question prompt, along the edit sizes."),
    "figure_8": FigureOf("price", "sports", "mask", True, "Masks that erase a sport: general knowledge against multiple-choice forget accuracy, along the edit sizes."),
    "figure_9": FigureOf("edits", "athletes", "mask", False, "Masks that erase sixteen athletes: accuracy in the question prompt against the number of weights set to zero."),
    "figure_10": FigureOf("edits", "athletes", "mask", True, "Masks that erase sixteen athletes: multiple-choice accuracy against the number of weights set to zero."),
    "figure_11": FigureOf("price", "athletes", "mask", False, "Masks that erase sixteen athletes: general knowledge against forget accuracy in the question prompt."),
    "figure_12": FigureOf("price", "athletes", "mask", True, "Masks that erase sixteen athletes: general knowledge against multiple-choice forget accuracy."),
    "figure_13": FigureOf("relearning", "athletes", "inject", False, "Relearning two athletes after sixteen athletes' sport was replaced with golf."),
    "figure_14": FigureOf("probes", "athletes", "inject", False, "Probes on the models in which sixteen athletes' sport was replaced with golf."),
    "figure_15": FigureOf("heads", caption="The base model's final-layer probe accuracy when one head of the lookup layers is mean-ablated, minus that without; attention past the lookup layers is mean-ablated throughout."),
    "figure_16": FigureOf("layers", caption="Probe accuracy across the layers of the base model, on the whole prompt and on the athlete's name alone, with and without attention past the lookup layers."),
}  # fmt: skip
"""Every figure of the paper."""

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
