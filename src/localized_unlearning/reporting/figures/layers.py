"""Figures 3, 4 and 14 (probes on trained models), 15 (ablated heads) and 16 (probes on the base model)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.analysis.statistics import bootstrap_mean
from localized_unlearning.reporting.figures import style
from localized_unlearning.reporting.figures.rows import Frames, points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from localized_unlearning.config.evaluation import Statistics


def probe_points(frames: Frames, settings: Statistics) -> pd.DataFrame:
    """Probe accuracy per localization and layer, on both parts, with the control and the majority.

    Panels ``forget`` and ``retain``; ``series`` is ``probe``, ``shuffled labels`` or ``majority``.
    """
    rows = frames["probes"]
    tables = []
    for panel, part in (("forget", rows[rows["forget"]]), ("retain", rows[~rows["forget"]])):
        for control, name in ((False, "probe"), (True, "shuffled labels")):
            chosen = part[part["control"] == control]
            table = points(chosen, chosen["right"], ["localization", "layer"], settings)
            tables.append(table.assign(panel=panel, series=name))
        chosen = part[~part["control"] & (part["layer"] == 0)]
        table = points(chosen, chosen["majority"], ["localization"], settings)
        tables.append(table.assign(layer=-1, panel=panel, series="majority"))
    return pd.concat(tables, ignore_index=True)


def probes(data: pd.DataFrame, labels: Mapping[str, str], overlay: pd.DataFrame | None = None) -> Figure:
    """Figures 3, 4, 14: accuracy of the three sports' probes together, by layer.

    Args:
        data: points of :func:`probe_points`.
        labels: localizations in drawing order, with their names.
        overlay: published curves, with columns ``panel``, ``localization``, ``layer`` and ``mean``.
    """
    with style.panels(1, 2, style.COLUMN_WIDTH, 2.7, sharey=True) as (figure, axes):
        for panel, ax in zip(("forget", "retain"), axes.flat, strict=True):
            part = data[data["panel"] == panel]
            style.curves(ax, part[part["series"] == "probe"], "layer", labels)
            style.published(ax, overlay, panel, "layer", labels)
            control = part[part["series"] == "shuffled labels"].groupby("layer")["mean"].mean()
            ax.plot(control.index, control, color="0.55", linewidth=0.9, label="Shuffled labels", zorder=0)
            majority = float(part.loc[part["series"] == "majority", "mean"].mean())
            style.guess_line(ax, majority, "Majority sport")
            integer_axis(ax, "Layer")
            style.accuracy_axis(ax)
            style.count_note(ax, part[part["series"] == "probe"])
            ax.set_title(panel.capitalize())
        axes[0][0].set_ylabel("Probe accuracy")
        style.one_legend(figure, axes, overlay)
    return figure


def integer_axis(axes: Any, label: str) -> None:
    """Whole numbers on the x axis."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def head_points(frames: Frames, statistics: Statistics) -> pd.DataFrame:
    """Final-layer probe accuracy per ablated head, and its change from no single head ablated (layer -1).

    ``change_low`` and ``change_high`` are the bootstrap interval of the difference over the same athletes.
    """
    rows = frames["head_ablation"]
    table = points(rows, rows["right"], ["layer", "head"], statistics)
    right = {
        key: part.set_index("athlete")["right"].astype(float) for key, part in rows.groupby(["layer", "head"])
    }
    changes = [
        bootstrap_mean(
            (right[key] - right[-1, -1]).to_numpy(),
            statistics.confidence,
            statistics.bootstrap,
            statistics.seed,
        )
        for key in zip(table["layer"], table["head"], strict=True)
    ]
    return table.assign(
        change=[c.mean for c in changes],
        change_low=[c.low for c in changes],
        change_high=[c.high for c in changes],
    )


def head_map(data: pd.DataFrame) -> Figure:
    """Figure 15: change of the final layer's probe accuracy when one head is mean-ablated, layer by head.

    In percentage points; bold where the interval leaves out 0.

    Args:
        data: points of :func:`head_points`.
    """
    heads = data[data["layer"] >= 0]
    grid = heads.pivot(index="layer", columns="head", values="change")
    certain = heads.assign(certain=(heads["change_low"] > 0) | (heads["change_high"] < 0))
    bold = certain.pivot(index="layer", columns="head", values="certain").to_numpy()
    baseline = data[data["layer"] < 0].iloc[0]
    most = max(float(grid.abs().to_numpy().max()), 0.01)
    height = 1.1 + 0.28 * len(grid)
    with style.panels(1, 1, style.COLUMN_WIDTH, height) as (figure, axes):
        ax = axes[0][0]
        image = ax.imshow(100 * grid, cmap="PuOr", vmin=-100 * most, vmax=100 * most, aspect="auto")
        for row, values in enumerate(grid.to_numpy()):
            for column, value in enumerate(values):
                dark = abs(value) > 0.6 * most
                ax.text(
                    column, row, f"{100 * value:+.0f}".replace("+0", "0").replace("-0", "0"), ha="center",
                    va="center", fontsize=5.5 if len(values) < 12 else 4.5,
                    color="white" if dark else "0.15", weight="bold" if bold[row, column] else "normal",
                )  # fmt: skip
        ax.set(xlabel="Head", ylabel="Layer")
        ax.set_title(f"Accuracy without ablated heads: {baseline['mean']:.3f} (n = {int(baseline['n'])})")
        ax.set_xticks(range(grid.shape[1]), grid.columns)
        ax.set_yticks(range(len(grid)), grid.index)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        bar = figure.colorbar(image, ax=ax, shrink=0.9, pad=0.02)
        bar.set_label("Change, points", fontsize=6)
        bar.ax.tick_params(labelsize=6, width=0.5)
        bar.outline.set_visible(False)
    return figure


SERIES = {
    ("prompt", False): ("Prompt", style.Style("#0072B2", "o", "-")),
    ("prompt", True): ("Prompt, ablated", style.Style("#56B4E9", "o", "--")),
    ("athlete", False): ("Athlete", style.Style("#D55E00", "s", "-")),
    ("athlete", True): ("Athlete, ablated", style.Style("#E69F00", "s", "--")),
}


def layer_points(frames: Frames, settings: Statistics) -> pd.DataFrame:
    """Probe accuracy of the base model per series and layer; ``labels`` is ``sport``, or names the control."""
    rows = frames["layer_probes"]
    table = points(rows, rows["right"], ["series", "ablated", "labels", "layer"], settings)
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
                    other["layer"], other["mean"], color=look.colour, linewidth=0.7, linestyle=style.PUBLISHED
                )
        control = data[data["labels"] != "sport"].groupby("layer")["mean"].mean()
        if len(control):
            ax.plot(control.index, control, color="0.6", linewidth=0.9, label="Shuffled labels")
        style.guess_line(ax, float(data["majority"].iloc[0]), "Majority sport")
        style.count_note(ax, data)
        style.accuracy_axis(ax)
        ax.set_ylabel("Probe accuracy")
        integer_axis(ax, "Layer")
        style.one_legend(figure, axes, overlay)
    return figure
