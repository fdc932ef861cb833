"""The numbers printed in the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping

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
