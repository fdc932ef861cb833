"""Figures 1, 2 and 13 (relearning) and 5 to 12 (mask sweeps)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning.reporting.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


GUESS_FACTS, GUESS_LETTERS = 1 / 3, 1 / 4

GUESSING = "Guessing"
"""Guessing a sport, 1/3, or an option's letter, 1/4."""

NAMES = {
    "forget": "Forget ↓",
    "forget_others": "Forget ↓",
    "retain": "Retain ↑",
    "mcq_forget": "MCQ forget ↓",
    "mcq_forget_others": "MCQ forget ↓",
    "mcq_retain": "MCQ retain ↑",
    "mmlu": "MMLU format ↑",
}


def _panel(
    axes: Any, panel: str, data: pd.DataFrame, x: str, labels: Mapping[str, str], overlay: pd.DataFrame | None
) -> None:
    """One panel of accuracies along ``x``."""
    shown = data[data["panel"] == panel]
    style.curves(axes, shown, x, labels)
    style.published(axes, overlay, panel, x, labels)
    about_facts = panel in ("forget", "forget_others", "retain")
    style.guess_line(axes, GUESS_FACTS if about_facts else GUESS_LETTERS, GUESSING)
    style.count_note(axes, shown)
    style.accuracy_axis(axes)
    axes.set_title(NAMES[panel])


def relearning(data: pd.DataFrame, labels: Mapping[str, str], overlay: pd.DataFrame | None = None) -> Figure:
    """Figures 1, 2, 13: accuracy against relearning iterations.

    Args:
        data: points of :func:`localized_unlearning.reporting.figures.rows.series`, with column ``iteration``.
        labels: localizations in drawing order, with their names.
        overlay: published curves, with the same columns.
    """
    shown = ("forget_others", "mcq_forget_others", "retain", "mmlu")
    with style.panels(2, 2, style.COLUMN_WIDTH, 3.5, sharex=True, sharey=True) as (figure, axes):
        for panel, ax in zip(shown, axes.flat, strict=True):
            _panel(ax, panel, data, "iteration", labels, overlay)
        for ax in axes[1]:
            ax.set_xlabel("Relearning iteration")
            ax.set_xticks(range(0, int(data["iteration"].max()) + 1, 2))
        for ax in axes[:, 0]:
            ax.set_ylabel("Accuracy")
        style.one_legend(figure, axes, overlay)
    return figure


def edit_axis(axes: Any, sizes: list[int]) -> None:
    """A logarithmic axis of edit sizes with a linear piece from 0, the unedited model, to the smallest edit."""
    positive = [s for s in sizes if s > 0]
    if not positive:
        return
    least, most = min(positive), max(positive)
    axes.set_xscale("symlog", linthresh=least, linscale=0.5)
    powers = [10**p for p in range(12) if least <= 10**p < most]
    ticks = [0, *(p for p in powers if p <= most / 12), most]
    axes.set_xticks(ticks, [short(t) for t in ticks])
    axes.set_xticks(powers, minor=True)
    axes.set_xlim(-0.3 * least, 1.3 * most)


def short(count: int) -> str:
    """A number of weights in few letters: 0, 300, 10k, 2.4M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def edits(
    data: pd.DataFrame, labels: Mapping[str, str], overlay: pd.DataFrame | None = None, prefix: str = ""
) -> Figure:
    """Figures 5, 6, 9, 10: forget and retain accuracy against the number of weights set to zero.

    ``prefix`` is empty for the question prompt and ``mcq_`` for multiple choice; the rest as in :func:`relearning`.
    """
    with style.panels(1, 2, style.COLUMN_WIDTH, 2.4, sharey=True) as (figure, axes):
        for panel, ax in zip((f"{prefix}forget", f"{prefix}retain"), axes.flat, strict=True):
            _panel(ax, panel, data, "masked", labels, overlay)
            edit_axis(ax, sorted(data["masked"].unique()))
            ax.set_xlabel("Weights set to zero")
        axes[0][0].set_ylabel("Accuracy")
        style.one_legend(figure, axes, overlay)
    return figure


def price(
    data: pd.DataFrame, labels: Mapping[str, str], overlay: pd.DataFrame | None = None, prefix: str = ""
) -> Figure:
    """Figures 7, 8, 11, 12: general knowledge against forget accuracy, along the edit sizes of each mask.

    Markers grow with the edit, from the unedited model on; bars are the intervals of both. As in :func:`edits` else.
    """
    with style.panels(1, 1, style.COLUMN_WIDTH, 3.0) as (figure, axes):
        ax = axes[0][0]
        for name, label in labels.items():
            x, y = ways(data, name, f"{prefix}forget")
            if x.empty:
                continue
            look = style.style_of(name, list(labels))
            ax.errorbar(
                x["mean"], y["mean"], xerr=(x["mean"] - x["low"], x["high"] - x["mean"]),
                yerr=(y["mean"] - y["low"], y["high"] - y["mean"]), fmt="none", ecolor=look.colour, alpha=0.18,
                linewidth=0.6,
            )  # fmt: skip
            ax.plot(
                x["mean"], y["mean"], color=look.colour, marker=look.marker, linestyle=look.line, label=label
            )
            sizes = np.linspace(8, 36, len(x))  # square points
            ax.scatter(x["mean"], y["mean"], sizes, look.colour, marker=look.marker, linewidths=0)
            if overlay is not None:
                x, y = ways(overlay, name, f"{prefix}forget")
                ax.plot(x["mean"], y["mean"], color=look.colour, linewidth=0.7, linestyle=style.PUBLISHED)
        style.guess_line(ax, GUESS_LETTERS, GUESSING)
        style.guess_line(ax, GUESS_LETTERS if prefix else GUESS_FACTS, GUESSING, vertical=True)
        how = "multiple choice" if prefix else "question"
        ax.set(
            xlabel=f"Forget accuracy, {how} ↓", ylabel="MMLU-format accuracy ↑",
            xlim=(-0.04, 1.04), ylim=(0, 1.04),
        )  # fmt: skip
        style.one_legend(figure, axes, overlay)
    return figure


def ways(data: pd.DataFrame, localization: str, forget: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One localization's forget and general-knowledge points, side by side, the smallest edit first."""
    own = data[data["localization"] == localization]
    x, y = (own[own["panel"] == panel].set_index("masked") for panel in (forget, "mmlu"))
    both = x.index.intersection(y.index).sort_values()
    return x.loc[both], y.loc[both]
