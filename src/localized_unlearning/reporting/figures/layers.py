"""Figures 3, 4 and 14 (probes on trained models), 15 (ablated heads) and 16 (probes on the base model)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.analysis.statistics import holm, mcnemar
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
    """Figures 3, 4, 14: accuracy of the answers' probes together, by layer.

    Args:
        data: points of :func:`probe_points`.
        labels: localizations in drawing order, with their names.
        overlay: published curves, with columns ``panel``, ``localization``, ``layer`` and ``mean``.
    """
    probed = data[(data["series"] == "probe") & (data["panel"] == "forget")]
    deep = data["layer"].max() > style.BARS  # beside one another, over the whole page
    width = 2 * style.COLUMN_WIDTH if deep else style.COLUMN_WIDTH
    with style.panels(1, 2, width, 2.8, sharey=True) as (figure, axes):
        for panel, ax in zip(("forget", "retain"), axes.flat, strict=True):
            part = data[data["panel"] == panel]
            style.curves(ax, part[part["series"] == "probe"], "layer", labels, bars=style.few(probed))
            style.published(ax, overlay, panel, "layer", labels)
            control = part[part["series"] == "shuffled labels"].groupby("layer")["mean"].mean()
            ax.plot(control.index, control, label="Shuffled labels", zorder=0, **style.CONTROL)
            majority = float(part.loc[part["series"] == "majority", "mean"].mean())
            style.guess_line(ax, majority, style.MAJORITY)
            integer_axis(ax, "Layer")
            style.accuracy_axis(ax)
            ax.set_title(f"{panel.capitalize()} set")
            style.count_note(ax, part[part["series"] == "probe"])
        axes[0][0].set_ylabel(style.accuracy_label(probed, "Probe accuracy"))
        style.one_legend(figure, axes, overlay, columns=5 if deep else 3)
    return figure


def integer_axis(axes: Any, label: str) -> None:
    """Whole numbers on the x axis."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def head_points(frames: Frames, statistics: Statistics) -> pd.DataFrame:
    """Final-layer probe accuracy per ablated head, and its change from no single head ablated (layer -1).

    ``only_without`` and ``only_with`` count the athletes that are right only without the head, or only with it;
    ``p`` is McNemar's exact test of the two and ``p_holm`` corrects it over all heads.
    """
    rows = frames["head_ablation"]
    if "base_seed" in rows.columns:  # a head is this head of one base model only
        rows = rows[rows["base_seed"] == rows["base_seed"].min()]
    table = points(rows, rows["right"], ["layer", "head"], statistics)
    right = {
        key: part.set_index("subject")["right"].astype(bool) for key, part in rows.groupby(["layer", "head"])
    }
    intact = right[-1, -1]
    without = [right[key].reindex(intact.index) for key in zip(table["layer"], table["head"], strict=True)]
    table = table.assign(
        change=[float(r.mean() - intact.mean()) for r in without],
        only_without=[int((r & ~intact).sum()) for r in without],
        only_with=[int((intact & ~r).sum()) for r in without],
    )
    table["p"] = [mcnemar(a, b) for a, b in zip(table["only_without"], table["only_with"], strict=True)]
    heads = table["layer"] >= 0
    table.loc[heads, "p_holm"] = holm(table.loc[heads, "p"].tolist())
    return table


def head_map(data: pd.DataFrame) -> Figure:
    """Figure 15: accuracy of the final layer's probe that is lost when one head is mean-ablated, layer by head.

    In percentage points; bold where McNemar's test, corrected over all heads (Holm), tells the loss or gain from 0.

    Args:
        data: points of :func:`head_points`.
    """
    heads = data[data["layer"] >= 0]
    grid = -100 * heads.pivot(index="layer", columns="head", values="change")
    level = 1 - float(data["confidence"].iloc[0]) if "confidence" in data.columns else 0.05
    certain = heads.assign(certain=heads["p_holm"] < level)
    bold = certain.pivot(index="layer", columns="head", values="certain").to_numpy()
    baseline = data[data["layer"] < 0].iloc[0]
    most = max(float(grid.to_numpy().max()), 1.0)
    wide = grid.shape[1] > 12
    width = style.COLUMN_WIDTH if not wide else 2 * style.COLUMN_WIDTH
    with style.panels(1, 1, width, 1.2 + (0.28 if len(grid) < 12 else 0.18) * len(grid)) as (figure, axes):
        ax = axes[0][0]
        image = ax.imshow(grid, cmap="Purples", vmin=0, vmax=most, aspect="auto")
        for row, values in enumerate(grid.to_numpy()):
            for column, value in enumerate(values):
                ax.text(
                    column, row, f"{round(value, 1) + 0.0:.1f}", ha="center", va="center", fontsize=style.SMALL,
                    color="white" if value > 0.6 * most else "0.15",
                    weight="bold" if bold[row, column] else "normal",
                )  # fmt: skip
        ax.set(xlabel="Head", ylabel="Layer")
        ax.set_title(f"None ablated: {baseline['mean']:.3f} (n = {int(baseline['n'])})")
        ax.set_xticks(range(grid.shape[1]), grid.columns)
        ax.set_yticks(range(len(grid)), grid.index)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        bar = figure.colorbar(image, ax=ax, shrink=0.9, pad=0.02)
        bar.set_label(f"Accuracy lost, points (bold: p < {level:.2g})", fontsize=style.SMALL)
        bar.ax.tick_params(labelsize=style.SMALL, width=0.5)
        bar.outline.set_visible(False)
    return figure


SERIES = {
    ("prompt", False): ("Prompt", style.Style("#0072B2", "o", "-")),
    ("prompt", True): ("Prompt, ablated", style.Style("#56B4E9", "o", "--")),
    ("name", False): ("Name", style.Style("#009E73", "^", "-")),
    ("name", True): ("Name, ablated", style.Style("#7FCFB5", "^", "--")),
    ("subject", False): ("Name alone", style.Style("#D55E00", "s", "-")),
    ("subject", True): ("Name alone, ablated", style.Style("#E69F00", "s", "--")),
}
"""The prompt's last token, where the fact arrives; the name's last token in it, where it is made; and the paper's
name without a prompt."""

EMBEDDINGS = -1
"""What stands for a layer where the embeddings are probed."""


def layer_points(frames: Frames, settings: Statistics) -> pd.DataFrame:
    """Probe accuracy of the base model per series and layer; ``labels`` is ``answer``, or names the control."""
    rows = frames["layer_probes"]
    table = points(rows, rows["right"], ["series", "ablated", "labels", "layer"], settings)
    return table.assign(majority=float(rows["majority"].iloc[0]))


def layer_curves(data: pd.DataFrame, overlay: pd.DataFrame | None = None) -> Figure:
    """Figure 16: probe accuracy per layer at the prompt's and at the name's last token, and on the name alone.

    Args:
        data: points of :func:`layer_points`.
        overlay: published curves, with columns ``series``, ``ablated``, ``layer`` and ``mean``.
    """
    with style.panels(1, 1, style.COLUMN_WIDTH, 2.9) as (figure, axes):
        ax = axes[0][0]
        bars = style.few(data)
        for place, ((series, ablated), (label, look)) in enumerate(SERIES.items()):

            def of(table: pd.DataFrame, series: str = series, ablated: bool = ablated) -> pd.DataFrame:
                return table[(table["series"] == series) & (table["ablated"] == ablated)].sort_values("layer")

            rows = of(data[data["labels"] == "answer"])
            if rows.empty:
                continue
            hollow: dict[str, Any] = {"markerfacecolor": "none", "markersize": 5.0} if ablated else {}
            (line,) = ax.plot(
                rows["layer"], rows["mean"], look.line, marker=look.marker, color=look.colour, label=label,
                zorder=2 - ablated, **hollow,
            )  # fmt: skip
            style.mark([line], label, style.notes(rows, "layer"))
            if bars:
                spread = style.dodged_bars(ax, rows, "layer", look.colour, place - 1.5, place, len(SERIES))
            else:
                spread = ax.fill_between(
                    rows["layer"], rows["low"], rows["high"], color=look.colour, alpha=0.12, linewidth=0
                )
            style.mark([spread], label)
            if overlay is not None:
                other = of(overlay)
                ax.plot(
                    other["layer"], other["mean"], color=look.colour, linewidth=0.7, linestyle=style.PUBLISHED
                )
        control = data[data["labels"] != "answer"].groupby("layer")["mean"].mean()
        if len(control):
            ax.plot(control.index, control, label="Shuffled labels", **style.CONTROL)
        style.guess_line(ax, float(data["majority"].iloc[0]), style.MAJORITY)
        ax.set_title("Base model")
        style.count_note(ax, data)
        style.accuracy_axis(ax)
        ax.set_ylabel(style.accuracy_label(data, "Probe accuracy"))
        integer_axis(ax, "Layer")
        ax.xaxis.set_major_formatter(lambda x, _position: "emb." if x == EMBEDDINGS else f"{x:.0f}")
        style.one_legend(figure, axes, overlay)
    return figure
