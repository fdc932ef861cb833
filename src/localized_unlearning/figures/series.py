"""Figures 1, 2 and 13 (relearning) and 5 to 12 (mask sweeps)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GUESS_FACTS = (1 / 3, "guessing, 33 %")
GUESS_LETTERS = (1 / 4, "guessing, 25 %")
NAMES = {
    "forget": "Forget",
    "forget_others": "Forget",
    "retain": "Retain",
    "mcq_forget": "Multiple choice, forget",
    "mcq_forget_others": "Multiple choice, forget",
    "mcq_retain": "Multiple choice, retain",
    "mmlu": "General knowledge",
}


def _finish(axes: Any, panel: str) -> None:
    style.guess_line(
        axes, *(GUESS_FACTS if panel in ("forget", "forget_others", "retain") else GUESS_LETTERS)
    )
    axes.set(ylim=(-0.03, 1.04), title=NAMES[panel])


def relearning(data: pd.DataFrame, labels: Mapping[str, str], overlay: pd.DataFrame | None = None) -> Figure:
    """Figures 1, 2, 13: accuracy against relearning iterations.

    Args:
        data: points of :func:`localized_unlearning.figures.rows.series`, with column ``iteration``.
        labels: localizations in drawing order, with their names.
        overlay: published curves, with the same columns.
    """
    shown = ("forget_others", "mcq_forget_others", "retain", "mmlu")
    with style.panels(2, 2, style.PAGE_WIDTH, 3.9, sharex=True, sharey=True) as (figure, axes):
        for panel, ax in zip(shown, axes.flat, strict=True):
            style.curves(ax, data[data["panel"] == panel], "iteration", labels)
            style.published(ax, overlay, panel, "iteration", labels)
            _finish(ax, panel)
        for ax in axes[1]:
            ax.set_xlabel("Relearning iteration")
            ax.set_xticks(range(0, int(data["iteration"].max()) + 1, 2))
        for ax in axes[:, 0]:
            ax.set_ylabel("Accuracy")
        style.one_legend(figure, axes, 6)
    return figure


def edit_axis(axes: Any, sizes: list[int]) -> None:
    """A logarithmic axis of edit sizes on which the unedited model has its place, at 0."""
    positive = [s for s in sizes if s > 0]
    axes.set_xscale("symlog", linthresh=min(positive), linscale=0.6)
    ticks = [0, *(10**p for p in range(12) if min(positive) <= 10**p <= max(positive))]
    axes.set_xticks(ticks, ["0" if t == 0 else f"$10^{len(str(t)) - 1}$" for t in ticks])
    axes.minorticks_off()
    axes.set_xlim(0, max(positive) * 1.15)


def edits(
    data: pd.DataFrame, labels: Mapping[str, str], overlay: pd.DataFrame | None = None, prefix: str = ""
) -> Figure:
    """Figures 5, 6, 9, 10: forget and retain accuracy against the number of weights set to zero.

    ``prefix`` is empty for the question prompt and ``mcq_`` for multiple choice; the rest as in :func:`relearning`.
    """
    with style.panels(1, 2, style.PAGE_WIDTH, 2.4, sharey=True) as (figure, axes):
        for panel, ax in zip((f"{prefix}forget", f"{prefix}retain"), axes.flat, strict=True):
            style.curves(ax, data[data["panel"] == panel], "edit_size", labels)
            style.published(ax, overlay, panel, "edit_size", labels)
            _finish(ax, panel)
            edit_axis(ax, sorted(data["edit_size"].unique()))
            ax.set_xlabel("Weights set to zero")
        axes[0][0].set_ylabel("Accuracy")
        style.one_legend(figure, axes, 6)
    return figure


def price(
    data: pd.DataFrame, labels: Mapping[str, str], overlay: pd.DataFrame | None = None, prefix: str = ""
) -> Figure:
    """Figures 7, 8, 11, 12: general knowledge against forget accuracy, along the edit sizes of each mask.

    Bars are the intervals of both; the unedited model stands at the upper right. As in :func:`edits` else.
    """
    by = ["localization", "edit_size"]
    forget: Any = data[data["panel"] == f"{prefix}forget"].set_index(by)
    mmlu: Any = data[data["panel"] == "mmlu"].set_index(by)
    with style.panels(1, 1, style.COLUMN_WIDTH, 2.9) as (figure, axes):
        ax = axes[0][0]
        for name, label in labels.items():
            if name not in forget.index.get_level_values(0):
                continue
            x, y = forget.loc[name].sort_index(), mmlu.loc[name].sort_index()
            look = style.style_of(name, list(labels))
            ax.errorbar(
                x["mean"], y["mean"], xerr=(x["mean"] - x["low"], x["high"] - x["mean"]),
                yerr=(y["mean"] - y["low"], y["high"] - y["mean"]), fmt="none", ecolor=look.colour, alpha=0.18,
                linewidth=0.6,
            )  # fmt: skip
            ax.plot(
                x["mean"], y["mean"], color=look.colour, marker=look.marker, linestyle=look.line, label=label
            )
        if overlay is not None:
            for name in labels:
                rows = overlay[overlay["localization"] == name].sort_values("edit_size")
                colour = style.style_of(name, list(labels)).colour
                ax.plot(
                    rows[f"{prefix}forget"], rows["mmlu"], color=colour, linewidth=0.7, linestyle=(0, (4, 2))
                )
        style.guess_line(ax, *GUESS_LETTERS)
        guess = (GUESS_LETTERS if prefix else GUESS_FACTS)[0]
        ax.axvline(guess, color="0.45", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
        ax.set(
            xlabel=f"{NAMES[f'{prefix}forget']} accuracy",
            ylabel="General-knowledge accuracy",
            xlim=(-0.03, 1.04),
        )
        ax.set_ylim(0, 1.04)
        style.one_legend(figure, axes, 3)
    return figure
