"""The figures. Every figure function takes a data frame and returns a matplotlib Figure.

One style for all: a colour, marker and line style per localization, the same everywhere and
distinguishable in greyscale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from localized_unlearning.statistics import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from localized_unlearning.stages import Job

COLUMN_WIDTH = 3.35  # inches
PAGE_WIDTH = 6.9  # inches


class Style(NamedTuple):
    """How a series looks."""

    colour: str
    marker: str
    line: str


LOCALIZATION_STYLES: dict[str, Style] = {
    "base": Style("#000000", ".", ":"),
    "attribution_patching": Style("#0072B2", "o", "-"),
    "causal_tracing": Style("#56B4E9", "s", "--"),
    "manual": Style("#D55E00", "D", "-"),
    "random": Style("#999999", "v", "-."),
    "all_mlps": Style("#009E73", "^", "--"),
    "nonlocalized": Style("#CC79A7", "P", ":"),
}
"""The Okabe-Ito palette, safe for colour-blind readers; markers and dashes carry the greyscale."""

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.hashsalt": "localized-unlearning",
    "pdf.fonttype": 42,
}


def _guess_line(axes: Any, value: float, text: str) -> None:
    axes.axhline(value, color="0.45", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
    axes.annotate(
        text, (1, value), xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points",
        ha="right", va="bottom", fontsize=6, color="0.35",
    )  # fmt: skip


def probe_layers(data: pd.DataFrame, confidence: float = 0.95) -> Figure:
    """Figure 16: probe accuracy per layer on the whole prompt and on the athlete's name.

    Args:
        data: rows of :func:`localized_unlearning.interpretability.layer_probes`.
        confidence: level of the Wilson bands.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    styles = {
        ("prompt", False): ("Prompt", Style("#0072B2", "o", "-")),
        ("prompt", True): ("Prompt, ablated", Style("#56B4E9", "o", "--")),
        ("athlete", False): ("Athlete", Style("#D55E00", "s", "-")),
        ("athlete", True): ("Athlete, ablated", Style("#E69F00", "s", "--")),
    }
    with mpl.rc_context(RC):
        figure = Figure(figsize=(COLUMN_WIDTH, 2.6), layout="constrained")
        axes = figure.subplots()
        sport = data[data["labels"] == "sport"]
        for key, (label, style) in styles.items():
            rows = sport[(sport["series"] == key[0]) & (sport["ablated"] == key[1])]
            if rows.empty:
                continue
            layers = sorted(rows["layer"].unique())
            found = [
                wilson(rows.loc[rows["layer"] == layer, "right"].to_numpy(), confidence) for layer in layers
            ]
            hollow: dict[str, Any] = {"markerfacecolor": "white"} if key[1] else {}
            axes.plot(layers, [f.mean for f in found], style.line, marker=style.marker, color=style.colour,
                      label=label, **hollow)  # fmt: skip
            axes.fill_between(layers, [f.low for f in found], [f.high for f in found], color=style.colour, alpha=0.12,
                              linewidth=0)  # fmt: skip
        control = data[data["labels"] != "sport"]
        if len(control):
            means = control.groupby("layer")["right"].mean()
            axes.plot(
                means.index,
                means,
                color="0.6",
                linewidth=0.9,
                linestyle="-",
                label="Shuffled labels",
            )
        _guess_line(axes, float(data["majority"].iloc[0]), "majority")
        axes.set(xlabel="Layer", ylabel="Probe accuracy", ylim=(0, 1.03))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure


def summary(data: pd.DataFrame, by: list[str], value: str, confidence: float) -> pd.DataFrame:
    """Mean of a 0/1 column with its Wilson interval, for each group: the CSV beside a figure."""
    rows = []
    for key, group in data.groupby(by, sort=False):
        keys = key if isinstance(key, tuple) else (key,)
        found = wilson(group[value].to_numpy(), confidence)
        rows.append({**dict(zip(by, keys, strict=True)), **found._asdict()})
    return pd.DataFrame(rows)


def save(figure: Figure, pdf: Any, png: Any, key: str) -> None:
    """Write a figure as vector PDF and as PNG, with its key and without dates, so that bytes repeat."""
    figure.savefig(pdf, metadata={"Keywords": key, "CreationDate": None, "ModDate": None})
    figure.savefig(png, dpi=200, metadata={"Keywords": key})


DRAWN: dict[str, Callable[..., Figure]] = {"figure_16": probe_layers}


def run(job: Job) -> None:
    """Stage: a figure as PDF and PNG, and the CSV it was drawn from."""
    import matplotlib

    matplotlib.use("Agg")
    confidence = job.config.statistics.confidence
    data = pd.concat([pd.read_parquet(p) for p in job.inputs["data"]], ignore_index=True)
    name = job.wildcards["figure"]
    table = summary(data, ["series", "ablated", "labels", "layer"], "right", confidence)
    table.to_csv(job.outputs["csv"], index=False)
    save(DRAWN[name](data, confidence), job.outputs["pdf"], job.outputs["png"], job.key)
