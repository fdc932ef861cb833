"""Figures 3, 4 and 14 (probes on trained models), 15 (ablated heads) and 16 (probes on the base model)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.figures import style
from localized_unlearning.figures.rows import Frames, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def probe_points(frames: Frames, confidence: float) -> pd.DataFrame:
    """Probe accuracy per localization and layer, on both parts, with the control and the majority.

    Panels ``forget`` and ``retain``; ``series`` is ``probe``, ``shuffled labels`` or ``majority``.
    """
    rows = frames["probes"]
    tables = []
    for panel, part in (("forget", rows[rows["forget"]]), ("retain", rows[~rows["forget"]])):
        for control, name in ((False, "probe"), (True, "shuffled labels")):
            chosen = part[part["control"] == control]
            table = points(chosen, chosen["right"], ["localization", "layer"], confidence)
            tables.append(table.assign(panel=panel, series=name))
        chosen = part[~part["control"] & (part["layer"] == 0)]
        table = points(chosen, chosen["majority"], ["localization"], confidence)
        tables.append(table.assign(layer=-1, panel=panel, series="majority"))
    return pd.concat(tables, ignore_index=True)


def probes(data: pd.DataFrame, labels: Mapping[str, str], overlay: pd.DataFrame | None = None) -> Figure:
    """Figures 3, 4, 14: accuracy of the three sports' probes together, by layer.

    Args:
        data: points of :func:`probe_points`.
        labels: localizations in drawing order, with their names.
        overlay: published curves, with columns ``panel``, ``localization``, ``layer`` and ``mean``.
    """
    with style.panels(1, 2, style.PAGE_WIDTH, 2.5, sharey=True) as (figure, axes):
        for panel, ax in zip(("forget", "retain"), axes.flat, strict=True):
            part = data[data["panel"] == panel]
            style.curves(ax, part[part["series"] == "probe"], "layer", labels)
            style.published(ax, overlay, panel, "layer", labels)
            control = part[part["series"] == "shuffled labels"].groupby("layer")["mean"].mean()
            ax.plot(
                control.index, control, color="0.55", linewidth=0.9, label="Shuffled labels (mean)", zorder=0
            )
            style.guess_line(ax, float(part.loc[part["series"] == "majority", "mean"].mean()), "majority")
            integer_axis(ax, "Layer")
            ax.set(ylim=(-0.03, 1.04), title=panel.capitalize())
        axes[0][0].set_ylabel("Probe accuracy")
        style.one_legend(figure, axes, 4)
    return figure


def integer_axis(axes: Any, label: str) -> None:
    """Whole numbers on the x axis."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def head_points(frames: Frames, confidence: float) -> pd.DataFrame:
    """Final-layer probe accuracy per ablated head, and its difference to no single head ablated (layer -1)."""
    rows = frames["head_ablation"]
    table = points(rows, rows["right"], ["layer", "head"], confidence)
    return table.assign(change=table["mean"] - float(table.loc[table["layer"] < 0, "mean"].iloc[0]))


def head_map(data: pd.DataFrame) -> Figure:
    """Figure 15: change of the final layer's probe accuracy when one head is mean-ablated, layer by head.

    Args:
        data: points of :func:`head_points`.
    """
    grid = data[data["layer"] >= 0].pivot(index="layer", columns="head", values="change")
    most = max(float(grid.abs().to_numpy().max()), 0.01)
    height = 1.1 + 0.28 * len(grid)
    with style.panels(1, 1, style.COLUMN_WIDTH, height) as (figure, axes):
        ax = axes[0][0]
        image = ax.imshow(grid, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
        for row, values in enumerate(grid.to_numpy()):
            for column, value in enumerate(values):
                dark = abs(value) > 0.6 * most
                ax.text(
                    column, row, f"{100 * value:+.0f}".replace("+0", "0").replace("-0", "0"), ha="center",
                    va="center", fontsize=5.5, color="white" if dark else "0.15",
                )  # fmt: skip
        ax.set(xlabel="Head", ylabel="Layer")
        ax.set_xticks(range(grid.shape[1]), grid.columns)
        ax.set_yticks(range(len(grid)), grid.index)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        bar = figure.colorbar(image, ax=ax, shrink=0.9, pad=0.02)
        bar.set_label("Change (cells: points)", fontsize=6)
        bar.ax.tick_params(labelsize=6, width=0.5)
        bar.outline.set_visible(False)
    return figure


SERIES = {
    ("prompt", False): ("Prompt", style.Style("#0072B2", "o", "-")),
    ("prompt", True): ("Prompt, ablated", style.Style("#56B4E9", "o", "--")),
    ("athlete", False): ("Athlete", style.Style("#D55E00", "s", "-")),
    ("athlete", True): ("Athlete, ablated", style.Style("#E69F00", "s", "--")),
}


def layer_points(frames: Frames, confidence: float) -> pd.DataFrame:
    """Probe accuracy of the base model per series and layer; ``labels`` is ``sport``, or names the control."""
    rows = frames["layer_probes"]
    table = points(rows, rows["right"], ["series", "ablated", "labels", "layer"], confidence)
    return table.assign(majority=float(rows["majority"].iloc[0]))


def layer_curves(data: pd.DataFrame, overlay: pd.DataFrame | None = None) -> Figure:
    """Figure 16: probe accuracy per layer on the whole prompt and on the athlete's name.

    Args:
        data: points of :func:`layer_points`.
        overlay: published curves, with columns ``series``, ``ablated``, ``layer`` and ``mean``.
    """
    with style.panels(1, 1, style.COLUMN_WIDTH, 2.6) as (figure, axes):
        ax = axes[0][0]
        for (series, ablated), (label, look) in SERIES.items():

            def of(table: pd.DataFrame, series: str = series, ablated: bool = ablated) -> pd.DataFrame:
                return table[(table["series"] == series) & (table["ablated"] == ablated)].sort_values("layer")

            rows = of(data[data["labels"] == "sport"])
            if rows.empty:
                continue
            hollow: dict[str, Any] = {"markerfacecolor": "white"} if ablated else {}
            ax.plot(
                rows["layer"],
                rows["mean"],
                look.line,
                marker=look.marker,
                color=look.colour,
                label=label,
                **hollow,
            )
            ax.fill_between(
                rows["layer"], rows["low"], rows["high"], color=look.colour, alpha=0.12, linewidth=0
            )
            if overlay is not None:
                other = of(overlay)
                ax.plot(
                    other["layer"], other["mean"], color=look.colour, linewidth=0.7, linestyle=(0, (4, 2))
                )
        control = data[data["labels"] != "sport"].groupby("layer")["mean"].mean()
        if len(control):
            ax.plot(control.index, control, color="0.6", linewidth=0.9, label="Shuffled labels")
        style.guess_line(ax, float(data["majority"].iloc[0]), "majority")
        ax.set(ylabel="Probe accuracy", ylim=(0, 1.03))
        integer_axis(ax, "Layer")
        style.one_legend(figure, axes, 2)
    return figure
