"""Figures 1, 2 and 13 (relearning) and 5 to 12 (mask sweeps)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning.paper import terms
from localized_unlearning.reporting.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


GUESSING = "Guessing"
"""The most that guessing gives: naming an answer that occurs, or drawing one of the options."""


def measure_of(panel: str, data: pd.DataFrame) -> terms.Measure:
    """What a panel shows, with the prompt that the points were made with."""
    return terms.panel(panel, data["prompt"].iloc[0])


def _panel(
    axes: Any, panel: str, data: pd.DataFrame, x: str, labels: Mapping[str, str], overlay: pd.DataFrame | None
) -> None:
    """One panel of accuracies along ``x``."""
    shown, measure = data[data["panel"] == panel], measure_of(panel, data)
    style.curves(axes, shown, x, labels, bars=_bars(data))
    style.published(axes, overlay, panel, x, labels)
    style.guess_line(axes, float(shown["chance"].max()), GUESSING)
    axes.set_title(measure.heading)
    style.count_note(axes, shown[shown[x].notna()])
    style.accuracy_axis(axes)


def _bars(data: pd.DataFrame) -> bool:
    """Whether a figure has bars: where its forget set is small; retained athletes and questions follow."""
    return style.few(data[data["panel"].str.contains("forget")])


def _ylabel(data: pd.DataFrame) -> str:
    how = "Probability" if data["accuracy"].iloc[0] == "probability" else "Accuracy"
    return style.accuracy_label(data[data["panel"].str.contains("forget")], how)


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
            ax.set_ylabel(_ylabel(data))
        style.one_legend(figure, axes, overlay)
    return figure


def edit_axis(axes: Any, sizes: list[int]) -> None:
    """A logarithmic axis of edit sizes with a linear piece from 0, the unedited model, to the smallest edit.

    Every power of ten and both ends are labelled, as far as there is room; the steps between are ticks.
    """
    positive = [s for s in sizes if s > 0]
    if not positive:
        return
    least, most = min(positive), max(positive)
    axes.set_xscale("symlog", linthresh=least, linscale=0.5)
    powers = [10**p for p in range(12) if least < 10**p < most]
    labelled = [0, least, *(p for p in powers if 3 * least <= p <= most / 3), most]
    if len(labelled) > 5:  # wide ranges: every other power
        labelled = [0, least, *labelled[2:-1][1::2], most]
    axes.set_xticks(labelled, [short(t) for t in labelled])
    between = [d * 10**p for p in range(12) for d in range(1, 10) if least < d * 10**p < most]
    axes.set_xticks([t for t in between if t not in labelled], minor=True)
    axes.set_xlim(-0.3 * least, 1.3 * most)


def short(count: int) -> str:
    """A number of weights in few letters: 0, 300, 10k, 2.4M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def controls_of(data: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The points of trained masks, and those of their controls; other runs' curves may have no controls."""
    if "ranking" not in data.columns:
        return data, data[:0].assign(ranking="")
    trained = data["ranking"] == "mask"
    return data[trained], data[~trained]


def edits(
    data: pd.DataFrame, labels: Mapping[str, str], overlay: pd.DataFrame | None = None, prefix: str = ""
) -> Figure:
    """Figures 5, 6, 9, 10: forget and retain accuracy against the number of weights set to zero.

    Thin lines are the controls: the same components' weights by saliency, without training, and in random order.

    ``prefix`` is empty for the question prompt and ``mcq_`` for multiple choice; the rest as in :func:`relearning`.
    """
    data, controls = controls_of(data)
    with style.panels(1, 2, style.COLUMN_WIDTH, 2.5, sharey=True) as (figure, axes):
        for panel, ax in zip((f"{prefix}forget", f"{prefix}retain"), axes.flat, strict=True):
            _panel(ax, panel, data, "masked", labels, overlay)
            unedited = data[(data["panel"] == panel) & (data["masked"] == 0)]
            if len(unedited):
                style.level_line(ax, unedited, labels.get("base", "Base model"))
            for (name, ranking), own in controls[controls["panel"] == panel].groupby(
                ["localization", "ranking"]
            ):
                own = own.sort_values("masked")
                style.control(ax, own["masked"], own["mean"], str(name), str(ranking), labels)
            edit_axis(ax, sorted(data["masked"].dropna().unique()))
            ax.set_xlabel("Weights zero (log scale)")
        axes[0][0].set_ylabel(_ylabel(data))
        style.one_legend(figure, axes, overlay)
    return figure


def price(
    data: pd.DataFrame, labels: Mapping[str, str], overlay: pd.DataFrame | None = None, prefix: str = ""
) -> Figure:
    """Figures 7, 8, 11, 12: general knowledge against forget accuracy, along the edit sizes of each mask.

    Markers grow with the edit, from the unedited model on, and an arrow points to the largest; bars are the
    intervals of both. As in :func:`edits` else.
    """
    data, controls = controls_of(data)
    forget, general = (measure_of(panel, data) for panel in (f"{prefix}forget", "mmlu"))
    with style.panels(1, 1, style.COLUMN_WIDTH, 3.2) as (figure, axes):
        ax = axes[0][0]
        for ranking, own in controls.groupby("ranking"):
            for name in labels:
                x, y = ways(own, name, f"{prefix}forget")
                if len(x):
                    style.control(ax, x["mean"], y["mean"], name, str(ranking), labels)
        for name, label in labels.items():
            x, y = ways(data, name, f"{prefix}forget")
            if x.empty:
                continue
            look = style.style_of(name, list(labels))
            if x.index.hasnans:
                _never_edited(ax, x, y, name, label)
                continue
            bars = ax.errorbar(
                x["mean"], y["mean"], xerr=(x["mean"] - x["low"], x["high"] - x["mean"]),
                yerr=(y["mean"] - y["low"], y["high"] - y["mean"]), fmt="none", ecolor=look.colour, alpha=0.35,
                linewidth=0.5,
            )  # fmt: skip
            (line,) = ax.plot(
                x["mean"], y["mean"], color=look.colour, marker=look.marker, linestyle=look.line,
                markerfacecolor=look.face, label=label,
            )  # fmt: skip
            style.mark([line], label, _both(x, y, forget, general))
            sizes = np.linspace(*MARKERS, len(x))
            grown = ax.scatter(
                x["mean"],
                y["mean"],
                sizes,
                look.face,
                marker=look.marker,
                edgecolors=look.colour,
                linewidths=0.5,
            )
            style.mark([*bars.lines[2], grown], label)
            _arrow(ax, x["mean"].to_numpy(), y["mean"].to_numpy(), look.colour)
            if overlay is not None:
                x, y = ways(overlay, name, f"{prefix}forget")
                ax.plot(x["mean"], y["mean"], color=look.colour, linewidth=0.7, linestyle=style.PUBLISHED)
        guesses = data.groupby("panel")["chance"].max()
        style.guess_line(ax, guesses["mmlu"], GUESSING)
        style.guess_line(ax, guesses[f"{prefix}forget"], GUESSING, vertical=True)
        _start_and_sizes(ax, data, prefix, labels)
        edited = data[data["masked"].notna()]
        shown = edited[edited["panel"] == f"{prefix}forget"]
        questions = int(edited.loc[edited["panel"] == "mmlu", "n"].max())
        style.count_note(ax, shown, f" and {questions} questions; bars {style.level(data)}")
        ax.set(
            xlabel=terms.sentence(forget.axis), ylabel=terms.sentence(general.axis), xlim=(-0.04, 1.04),
            ylim=(min(0.2, float(data.loc[data["panel"] == "mmlu", "mean"].min()) - 0.05), 1.04),
        )  # fmt: skip
        style.one_legend(figure, axes, overlay)
    return figure


def _both(x: pd.DataFrame, y: pd.DataFrame, forget: terms.Measure, general: terms.Measure) -> list[str]:
    """What each point says: the size of the edit and both accuracies."""
    return [
        f"{size:,.0f} weights zero: {forget.short} {style.spoken(left)}; {general.short} {style.spoken(right)}"
        for size, left, right in zip(x.index, x.to_dict("records"), y.to_dict("records"), strict=True)
    ]


def _never_edited(axes: Any, x: pd.DataFrame, y: pd.DataFrame, name: str, label: str) -> None:
    """Gold: one point, where forgetting should end."""
    look = style.LOCALIZATION_STYLES[name]
    axes.plot(
        x["mean"], y["mean"], color=look.colour, marker=look.marker, linestyle="none", markersize=7,
        markeredgewidth=1.6, zorder=4, label=label,
    )  # fmt: skip


MARKERS = (8, 36)
"""Size of the markers of the smallest and the largest edit, in square points."""


def _arrow(axes: Any, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """An arrow head on the last stretch of a line, towards the largest edit."""
    apart = np.flatnonzero(np.hypot(x - x[-1], y - y[-1]) > 0.02)
    if len(apart):
        start = apart[-1]
        axes.annotate(
            "", (x[-1], y[-1]), (x[start], y[start]),
            arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 0.6, "mutation_scale": 5},
        )  # fmt: skip


def _start_and_sizes(axes: Any, data: pd.DataFrame, prefix: str, labels: Mapping[str, str]) -> None:
    """The base model, where every line begins, and what the markers' sizes mean."""
    named = set(data["localization"])
    x, y = next(
        (ways(data, name, f"{prefix}forget") for name in labels if name in named - {*terms.KNOWERS}),
        (pd.DataFrame(), pd.DataFrame()),
    )
    if len(x) and x.index[0] == 0:
        look = style.LOCALIZATION_STYLES["base"]
        axes.plot(
            x["mean"].iloc[0], y["mean"].iloc[0], color=look.colour, marker=look.marker, linestyle="none",
            markersize=6, zorder=4, label=labels.get("base", "Base model"),
        )  # fmt: skip
    positive = data.loc[data["masked"] > 0, "masked"]
    for size, count in zip(MARKERS, (positive.min(), positive.max()), strict=True):
        axes.scatter([], [], size, color="0.4", label=f"{short(int(count))} weights zero")


def ways(data: pd.DataFrame, localization: str, forget: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One localization's forget and general-knowledge points, side by side, the smallest edit first."""
    own = data[data["localization"] == localization]
    x, y = (own[own["panel"] == panel].set_index("masked") for panel in (forget, "mmlu"))
    both = x.index.intersection(y.index).sort_values()
    return x.loc[both], y.loc[both]
