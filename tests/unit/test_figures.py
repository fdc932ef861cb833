"""Figures on small synthetic rows: their points, their style (by image comparison), and that no model is loaded."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from localized_unlearning import figures
from localized_unlearning.figures import style
from localized_unlearning.published import FIGURES
from localized_unlearning.statistics import wilson

LABELS = {
    "base": "Base model", "attribution_patching": "Attrib. Patching", "causal_tracing": "Causal Tracing",
    "manual": "Manual", "random": "Random", "all_mlps": "All MLPs", "nonlocalized": "Nonlocalized",
}  # fmt: skip
LOCALIZATIONS = [name for name in LABELS if name != "base"]
SPORTS = ("football", "baseball", "basketball", "golf")
image = pytest.mark.mpl_image_compare(
    baseline_dir="baseline", style="default", savefig_kwargs={"dpi": 70}, tolerance=4
)


def logits(right: np.ndarray, answer: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Logits whose largest is the answer's where ``right``, and another's elsewhere."""
    chosen = np.where(right, answer, (answer + 1) % len(names))
    return {f"logit_{name}": (chosen == i).astype(float) for i, name in enumerate(names)}


def series_frames(x: str, values: list[int]) -> dict[str, pd.DataFrame]:
    """Rows of a series for six localizations: forget accuracy moves with x, the rest stays."""
    rng = np.random.default_rng(0)
    tables: dict[str, list[pd.DataFrame]] = {"facts": [], "multiple_choice": [], "mmlu": []}
    for index, localization in enumerate(LOCALIZATIONS):
        for step, value in enumerate(values):
            share = step / (len(values) - 1)
            count = 40
            forget, relearn = np.arange(count) < 20, np.arange(count) < 2
            right = rng.random(count) < np.where(forget, share * (0.4 + 0.1 * index), 0.95)
            answer = rng.integers(0, 3, count)
            who = {
                "forget": forget,
                "relearn": relearn,
                "answer": answer,
                "localization": localization,
                x: value,
            }
            tables["facts"].append(
                pd.DataFrame({**who, **logits(right, answer, SPORTS), "prompt": "question"})
            )
            tables["multiple_choice"].append(
                pd.DataFrame({**who, **logits(right | relearn, answer, tuple("ABCD")), "order": "fixed"})
            )
            known = rng.random(30) < 0.9 - 0.08 * index * share
            answer = rng.integers(0, 4, 30)
            row = {
                "answer": answer,
                "localization": localization,
                x: value,
                **logits(known, answer, tuple("ABCD")),
            }
            tables["mmlu"].append(pd.DataFrame(row))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def probe_frames() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(1)
    parts = []
    for index, localization in enumerate(LABELS):
        for layer in range(6):
            for control in (False, True):
                p = 0.2 if control else min(1.0, 0.3 + 0.15 * layer) - 0.05 * index
                rows = {
                    "layer": layer,
                    "control": control,
                    "forget": np.arange(30) < 15,
                    "localization": localization,
                }
                parts.append(
                    pd.DataFrame({**rows, "right": rng.random(30) < p, "majority": np.arange(30) % 3 == 0})
                )
    return {"probes": pd.concat(parts, ignore_index=True)}


def head_frames() -> dict[str, pd.DataFrame]:
    heads = [(-1, -1), *((layer, head) for layer in range(3) for head in range(4))]
    rows = [
        pd.DataFrame({"layer": layer, "head": head, "right": np.arange(50) < 48 - 6 * (layer == 1) * head})
        for layer, head in heads
    ]
    return {"head_ablation": pd.concat(rows, ignore_index=True)}


def layer_frames() -> dict[str, pd.DataFrame]:
    parts = []
    for series in ("prompt", "athlete"):
        for ablated in (False, True):
            for layer in range(6):
                for labels in ("sport",) if ablated else ("sport", "shuffled labels"):
                    count = (
                        15
                        if labels != "sport"
                        else min(40, 14 + 6 * layer + 4 * (series == "athlete")) - 5 * ablated
                    )
                    rows = {
                        "series": series,
                        "ablated": ablated,
                        "labels": labels,
                        "layer": layer,
                        "majority": 0.4,
                    }
                    parts.append(pd.DataFrame({**rows, "right": np.arange(40) < count}))
    return {"layer_probes": pd.concat(parts, ignore_index=True)}


def frames_of(name: str) -> dict[str, pd.DataFrame]:
    kind = FIGURES[name].kind
    if kind == "relearning":
        return series_frames("iteration", list(range(11)))
    if kind in ("edits", "price"):
        return series_frames("edit_size", [0, 100, 1000, 10_000])
    return {"probes": probe_frames, "heads": head_frames, "layers": layer_frames}[kind]()


def drawn(name: str, keep: Any = lambda frame: frame) -> tuple[Any, pd.DataFrame]:
    frames = {stem: keep(frame) for stem, frame in frames_of(name).items()}
    points = figures.points_of(name, frames, "question", 0.95)
    return figures.draw(name, points, LABELS), points


@image
def test_relearning() -> Any:
    return drawn("figure_1")[0]


@image
def test_probes() -> Any:
    return drawn("figure_3")[0]


@image
def test_edits() -> Any:
    return drawn("figure_6")[0]


@image
def test_price() -> Any:
    return drawn("figure_7")[0]


@image
def test_heads() -> Any:
    return drawn("figure_15")[0]


@image
def test_layers() -> Any:
    return drawn("figure_16")[0]


def test_the_paper_has_sixteen_figures() -> None:
    assert list(FIGURES) == [f"figure_{n}" for n in range(1, 17)]
    assert all(figure.caption.endswith(".") for figure in FIGURES.values())


def test_localizations_are_told_apart_without_colour() -> None:
    known = [*LOCALIZATIONS, "mine", "theirs"]
    styles = [style.style_of(name, known) for name in ("base", *known)]
    assert len({s.colour for s in styles}) == len(styles) == len({s.marker for s in styles})


@pytest.mark.parametrize("name", ["figure_2", "figure_4", "figure_9", "figure_10", "figure_12"])
def test_every_point_of_the_csv_is_drawn_and_no_other(name: str) -> None:
    """The lines of a figure are the CSV's means; what one localization lacks is left out, not made up."""
    figure, points = drawn(name, lambda frame: frame[frame["localization"] != "causal_tracing"])
    lines = {}
    for axes in figure.axes:
        for line in axes.get_lines():
            if line.get_label() in LABELS.values():
                lines[axes.get_title(loc="left"), line.get_label()] = np.asarray(
                    line.get_ydata(), dtype=float
                )
    assert {label for _, label in lines} >= {LABELS[n] for n in LOCALIZATIONS if n != "causal_tracing"}
    assert "Causal Tracing" not in {label for _, label in lines}
    known = set(points["mean"].round(12))
    assert all(set(values.round(12)) <= known for values in lines.values())


def test_points_are_wilson_of_the_rows_and_leave_the_relearned_out() -> None:
    frames = frames_of("figure_1")
    points = figures.points_of("figure_1", frames, "question", 0.9)
    facts = frames["facts"]
    rows = facts[
        (facts["localization"] == "manual") & (facts["iteration"] == 4) & facts["forget"] & ~facts["relearn"]
    ]
    right = rows[[f"logit_{s}" for s in SPORTS]].to_numpy().argmax(1) == rows["answer"]
    found = points[
        (points["panel"] == "forget_others")
        & (points["localization"] == "manual")
        & (points["iteration"] == 4)
    ].iloc[0]
    expected = wilson(right.to_numpy(), 0.9)
    assert (found["mean"], found["low"], found["high"], found["n"]) == expected


def test_no_model_is_needed_to_draw() -> None:
    """A figure is redrawn in seconds: nothing that draws imports torch."""
    code = (
        "import sys, localized_unlearning.figures as f, matplotlib.figure; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
