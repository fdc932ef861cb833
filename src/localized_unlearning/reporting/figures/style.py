"""One style for all figures: a colour, marker and line per localization, legible in greyscale and at column width."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from localized_unlearning.paper import terms
from localized_unlearning.reporting.figures import vector

if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLUMN_WIDTH = 3.35  # inches

SMALL = 6.0  # points: the smallest type

PUBLISHED: Any = (0, (4, 2))
"""The line of published curves."""


FEW = 40
"""Up to so many items intervals are bars beside one another; beyond, narrow bands."""

HEADING = 25
"""Characters of a title and a note that fit above half a column's panel."""


class Style(NamedTuple):
    """How a series looks."""

    colour: str
    marker: str
    line: Any
    hollow: bool = False

    @property
    def face(self) -> str:
        """The colour inside its marker."""
        return "white" if self.hollow else self.colour


LOCALIZATION_STYLES: dict[str, Style] = {
    "base": Style("#000000", "x", ":"),
    "gold": Style("#A67C00", "+", (0, (6, 1.5, 1, 1.5))),
    "attribution_patching": Style("#0072B2", "o", "-"),
    "causal_tracing": Style("#56B4E9", "s", "--"),
    "manual": Style("#D55E00", "D", "-"),
    "random": Style("#8A8A8A", "v", "-."),
    "all_mlps": Style("#009E73", "^", "--"),
    "nonlocalized": Style("#CC79A7", "P", ":"),
}
"""The Okabe-Ito palette, safe for colour-blind readers; markers and dashes carry the greyscale."""

OTHERS = (
    Style("#E69F00", "<", "-"),
    Style("#332288", "h", "-."),
    Style("#882255", "*", ":"),
    Style("#999933", ">", "--"),
    Style("#117733", "p", "-"),
    Style("#6699CC", "X", "-."),
    Style("#661100", "d", ":"),
    Style("#AA4499", "8", "--"),
)
"""For localizations that a researcher adds, in the order of the config; then again with hollow markers."""

CONTROL: Any = {"color": "0.35", "linewidth": 0.8, "linestyle": (0, (3, 1, 1, 1))}
"""The line of a control (probes fitted to shuffled labels)."""

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.2,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.parse_math": False,
    "pdf.fonttype": 42,
}


def style_of(localization: str, known: list[str]) -> Style:
    """The style of a localization; ones beyond the paper's take the next of ``OTHERS``."""
    if localization in LOCALIZATION_STYLES:
        return LOCALIZATION_STYLES[localization]
    added = [name for name in known if name not in LOCALIZATION_STYLES]
    number = added.index(localization)
    return OTHERS[number % len(OTHERS)]._replace(hollow=number // len(OTHERS) % 2 == 1)


def distinct(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels of which no two are alike: those that are get the localization's name behind.

    A thin space stands before an underscore, because matplotlib's legends leave out what begins with one.
    """
    found = list(labels.values())
    told = {name: label if found.count(label) == 1 else f"{label} ({name})" for name, label in labels.items()}
    return {name: f"\u2009{label}" if label.startswith("_") else label for name, label in told.items()}


def _house() -> Any:
    """Matplotlib's own defaults with :data:`RC` on top: what a person has in a matplotlibrc reaches no figure."""
    import matplotlib as mpl

    return {**{name: value for name, value in mpl.rcParamsDefault.items() if name != "backend"}, **RC}


@contextmanager
def panels(rows: int, columns: int, width: float, height: float, **more: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure in the house style and its axes ``[row][column]``; sizes in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_house()):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **more)


def guess_line(axes: Any, value: float, label: str, vertical: bool = False) -> None:
    """A dotted line where guessing, or the majority, would be; the legend names it, clear of the curves."""
    (axes.axvline if vertical else axes.axhline)(
        value, color="0.45", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0, label=label
    )


def count_note(axes: Any, table: pd.DataFrame, more: str = "") -> None:
    """What stands behind each point, above the axes: items, and seeds and forget sets where there are several.

    Set the title first: a note that does not fit beside it takes a second line.
    """
    if len(table):
        several = ("bases", "sets") if table.get("bases", pd.Series([1])).max() > 1 else ("seeds", "sets")
        counts = [(table[name].max(), name) for name in several if name in table.columns]
        parts = [f"n = {table['n'].max()}", *(f"{number} {name}" for number, name in counts if number > 1)]
        note = ", ".join(parts)
        if len(parts) > 1 and len(axes.get_title("left")) + len(note) > HEADING:
            note = f"{parts[0]}\n{', '.join(parts[1:])}"
        axes.annotate(
            note + more, (1, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points",
            ha="right", va="bottom", fontsize=SMALL, color="0.3",
        )  # fmt: skip


def level(table: pd.DataFrame) -> str:
    """The level of a table's intervals: ``95 %``."""
    return f"{100 * float(table['confidence'].iloc[0]):g} %" if "confidence" in table.columns else "95 %"


def accuracy_axis(axes: Any) -> None:
    """The y axis of an accuracy, with room for the markers at both ends."""
    axes.set_ylim(-0.03, 1.04)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])


def accuracy_label(table: pd.DataFrame, what: str = "Accuracy") -> str:
    """The y label of an accuracy with its intervals."""
    return f"{what}, {'bars' if few(table) else 'bands'} {level(table)}"


def few(table: pd.DataFrame) -> bool:
    """Whether so few items stand behind a table's points that bands would lie over one another."""
    return bool(len(table)) and int(table["n"].min()) <= FEW


def curves(
    axes: Any, table: pd.DataFrame, x: str, labels: Mapping[str, str], bars: bool | None = None
) -> None:
    """One line per localization with its interval: as a band, or as bars beside one another where n is small.

    The base model is a level line where it stands at no point of the series.

    Args:
        axes: where to draw.
        table: columns ``localization``, ``x``, ``mean``, ``low``, ``high`` and ``n``; one row per point.
        x: the column of the x axis.
        labels: localizations in drawing order, with their names.
        bars: whether intervals are bars; None: where n is small.
    """
    bars = few(table) if bars is None else bars
    drawn = [name for name in labels if (table["localization"] == name).any()]
    for name in drawn:
        rows = table[table["localization"] == name].sort_values(x)
        style = style_of(name, list(labels))
        if rows[x].isna().all():
            level_line(axes, rows, labels[name], name)
            continue
        (line,) = axes.plot(
            rows[x], rows["mean"], color=style.colour, marker=style.marker, linestyle=style.line,
            markerfacecolor=style.face, label=labels[name],
        )  # fmt: skip
        mark([line], labels[name], notes(rows, x))
        if bars:
            place = drawn.index(name)
            shift = place - (len(drawn) - 1) / 2
            spread = dodged_bars(axes, rows, x, style.colour, shift, place, len(drawn))
        else:
            spread = axes.fill_between(
                rows[x], rows["low"], rows["high"], color=style.colour, alpha=0.1, linewidth=0
            )
        mark([spread], labels[name])


def mark(artists: Sequence[Any], label: str, texts: Sequence[str] = ()) -> None:
    """Say in the SVG whose artists these are, and of a line what each of its points says.

    What :mod:`localized_unlearning.reporting.figures.vector` reads; a PDF and a PNG hold nothing of it.
    """
    for artist in artists:
        artist.set_gid(json.dumps({"series": label, "notes": list(texts)}))


def notes(rows: pd.DataFrame, x: str) -> list[str]:
    """What each point of a series says: where it stands, its mean, interval and items."""
    return [
        f"{x.replace('_', ' ')} {at:,g}: {spoken(row)}"
        for at, row in zip(rows[x], rows.to_dict("records"), strict=True)
    ]


def spoken(row: Mapping[Any, Any]) -> str:
    """A point's mean, interval and items."""
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n = {int(row['n'])}"


BARS = 12
"""Points up to which each has its bar; of longer curves every third has, another one for each line."""


def dodged_bars(
    axes: Any, rows: pd.DataFrame, x: str, colour: str, shift: float, place: int, lines: int
) -> Any:
    """Intervals of one line beside those of the others: ``shift`` bars to the right, on any scale of the axis."""
    from matplotlib.transforms import ScaledTranslation

    each = 1 if len(rows) <= BARS else 3
    some = rows.iloc[place % each :: each]
    width = min(1.1, 7.0 / lines)  # points from bar to bar
    moved = axes.transData + ScaledTranslation(shift * width / 72, 0, axes.figure.dpi_scale_trans)
    return axes.vlines(
        some[x],
        some["low"],
        some["high"],
        color=colour,
        linewidth=0.7,
        alpha=0.75,
        transform=moved,
        zorder=1.5,
    )


LEVELS = (0, (5, 2))
"""The line of the base model where it is a level."""


def level_line(axes: Any, rows: pd.DataFrame, label: str, name: str = "base") -> None:
    """A level line where the base model is, or gold; ``rows``: its one point."""
    look = LOCALIZATION_STYLES[name]
    line = LEVELS if name == "base" else look.line
    row = rows.to_dict("records")[0]
    drawn = axes.axhline(
        float(row["mean"]), color=look.colour, linewidth=0.9, linestyle=line, zorder=0.5, label=label
    )
    mark([drawn], label, [spoken(row)])


CONTROLS: Mapping[str, tuple[str, Any]] = {
    "saliency": ("By |w dL/dw|, untrained", (0, (4, 1.5))),
    "random": ("Random order", (0, (1, 1.5))),
}
"""What is drawn beside a trained mask: its name and its thin line, in the localization's colour."""


def control(axes: Any, x: Any, y: Any, localization: str, ranking: str, labels: Mapping[str, str]) -> None:
    """One control of a localization's mask; the legend names each kind once, in grey."""
    label, line = CONTROLS[ranking]
    colour = style_of(localization, list(labels)).colour
    axes.plot(x, y, color=colour, linewidth=0.6, linestyle=line, alpha=0.8, zorder=1)
    if label not in axes.get_legend_handles_labels()[1]:
        axes.plot([], [], color="0.35", linewidth=0.6, linestyle=line, label=label)


def published(axes: Any, overlay: pd.DataFrame | None, panel: str, x: str, labels: Mapping[str, str]) -> None:
    """Published curves over ours, thin and without markers, where the user gave them.

    Args:
        axes: where to draw.
        overlay: columns ``panel``, ``localization``, ``x`` and ``mean``.
        panel: the panel's name.
        x: the column of the x axis.
        labels: localizations, as for :func:`curves`.
    """
    if overlay is None:
        return
    for name in labels:
        rows = overlay[(overlay["panel"] == panel) & (overlay["localization"] == name)].sort_values(x)
        if rows.empty:
            continue
        colour = style_of(name, list(labels)).colour
        axes.plot(rows[x], rows["mean"], color=colour, linewidth=0.7, alpha=0.7, linestyle=PUBLISHED)


MAJORITY = "Always the commonest answer"
"""Naming the training part's commonest answer; of a forget set of another one this is never right."""

ASIDE = (
    "Guessing",
    MAJORITY,
    "Shuffled labels",
    *(label for label, _ in CONTROLS.values()),
)
"""What stands last in a legend: no model of its own."""


def _rank(label: str) -> int:
    """The place of a legend's entry: models that were not unlearned, unlearned ones, and the rest."""
    return 0 if label in terms.KNOWERS.values() else 2 if label in ASIDE or " zero" in label else 1


ROWS = 3
"""Rows of a legend that the figures' heights allow for; more of them make a figure taller."""


def one_legend(figure: Figure, axes: Any, overlay: pd.DataFrame | None = None, columns: int = 3) -> None:
    """One legend below all panels, of every series in any of them, in as many columns as the width takes."""
    from matplotlib.lines import Line2D

    named: dict[str, Any] = {}
    for a in axes.flat:
        for handle, label in zip(*a.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    named = dict(sorted(named.items(), key=lambda item: _rank(item[0])))
    if overlay is not None:
        named["Published"] = Line2D([], [], color="0.3", linewidth=0.7, linestyle=PUBLISHED)
    for count in range(columns, 0, -1):
        legend = figure.legend(
            [*named.values()], [*named], loc="outside lower center", ncols=count, handlelength=2.6,
            columnspacing=1.2,
        )  # fmt: skip
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            mark([handle, text], text.get_text())
        width = legend.get_window_extent().width
        if width <= figure.bbox.width or count == 1:
            break
        legend.remove()
    more = max(0, -(-len(named) // count) - ROWS)
    line = 1.55 * RC["legend.fontsize"] / 72  # inches
    wide, high = figure.get_size_inches()
    figure.set_size_inches(wide, high + more * line)


def save(figure: Figure, outputs: Mapping[str, Any], key: str) -> None:
    """Write a figure as PDF, PNG and SVG (``pdf``, ``png``, ``svg``), with its key and without dates: bytes repeat."""
    import matplotlib as mpl

    with mpl.rc_context(_house()):
        metadata = {"Keywords": key, "CreationDate": None, "ModDate": None}
        figure.savefig(outputs["pdf"], metadata=metadata)
        figure.savefig(outputs["png"], dpi=250, metadata={"Keywords": key})
        outputs["svg"].write_text(vector.drawn(figure, key), encoding="utf-8")
