"""The figures. Every figure function takes a data frame of points and returns a matplotlib Figure.

``rows`` makes the points from per-item rows, ``series`` and ``layers`` draw them, ``style`` is what all share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning.errors import UserError
from localized_unlearning.paper import terms
from localized_unlearning.paper.artefacts import FIGURES
from localized_unlearning.reporting import captions
from localized_unlearning.reporting.figures import layers, rows, series, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from localized_unlearning.config.evaluation import Statistics
    from localized_unlearning.jobs.job import Job


def points_of(name: str, frames: rows.Frames, how: rows.Asked, statistics: Statistics) -> pd.DataFrame:
    """The points of a figure, as its CSV holds them; ``confidence`` is the level of their intervals."""
    kind = FIGURES[name].kind
    if kind == "relearning":
        found = rows.series(frames, how, "iteration", statistics)
    elif kind in ("edits", "price"):
        found = rows.sweep(frames, how, statistics)
    elif kind == "probes":
        found = layers.probe_points(frames, statistics)
    elif kind == "heads":
        found = layers.head_points(frames, statistics)
    else:
        found = layers.layer_points(frames, statistics)
    return found.assign(confidence=statistics.confidence)


def draw(
    name: str, points: pd.DataFrame, labels: Mapping[str, str], overlay: pd.DataFrame | None = None
) -> Figure:
    """A figure from its points.

    Args:
        name: ``figure_1`` to ``figure_16``.
        points: what :func:`points_of` returns.
        labels: localizations in drawing order, with their names.
        overlay: published points to draw beside ours.
    """
    labels = style.distinct(labels)
    figure = FIGURES[name]
    prefix = "mcq_" if figure.multiple_choice else ""
    if figure.kind == "relearning":
        return series.relearning(points, labels, overlay)
    if figure.kind == "edits":
        return series.edits(points, labels, overlay, prefix)
    if figure.kind == "price":
        return series.price(points, labels, overlay, prefix)
    if figure.kind == "probes":
        return layers.probes(points, labels, overlay)
    return layers.head_map(points) if figure.kind == "heads" else layers.layer_curves(points, overlay)


OVERLAY = {
    "relearning": ("panel", "localization", "iteration", "mean"),
    "probes": ("panel", "localization", "layer", "mean"),
    "edits": ("panel", "localization", "masked", "mean"),
    "price": ("panel", "localization", "masked", "mean"),
    "layers": ("series", "ablated", "layer", "mean"),
}
"""Columns of a published curve, named as in the figure's own CSV."""


def read_overlay(path: Path, name: str) -> pd.DataFrame:
    """A published curve to draw into a figure; another run's CSV of the same figure will do.

    Raises:
        UserError: when the figure takes none, or a column is missing.
    """
    needed = OVERLAY.get(FIGURES[name].kind)
    if needed is None:
        raise UserError(f"{name} is a heat map and takes no published curve: remove figures.overlay.{name}")
    table = pd.read_csv(path)
    if missing := [column for column in needed if column not in table.columns]:
        raise UserError(
            f"{path} lacks the column {', '.join(missing)}: a curve laid over {name} has {', '.join(needed)}"
        )
    for column, own in (("series", "probe"), ("labels", "answer"), ("ranking", "mask")):
        if column in table.columns and column not in needed:
            table = table[table[column] == own]
    return table


def run(job: Job) -> None:
    """Stage: a figure as PDF, PNG and SVG, the CSV it was drawn from, and its caption as Markdown and LaTeX."""
    import matplotlib

    matplotlib.use("Agg")
    config, name = job.config, job.wildcards["figure"]
    found: dict[str, list[pd.DataFrame]] = {}
    for path in job.inputs["data"]:
        found.setdefault(path.stem, []).append(pd.read_parquet(path))
    frames = {stem: pd.concat(tables, ignore_index=True) for stem, tables in found.items()}
    points = points_of(name, frames, rows.asked(config.measures, config.prompts), config.statistics)
    labels = {**terms.KNOWERS, **{n: loc.label for n, loc in config.localizations.items() if loc}}
    overlay = read_overlay(job.inputs["overlay"], name) if job.inputs.get("overlay") else None
    points.to_csv(job.outputs["csv"], index=False)
    style.save(draw(name, points, labels, overlay), job.outputs, job.key)
    texts = captions.read_captions(job.inputs["captions"], config)
    job.outputs["md"].write_text(captions.as_markdown(name, texts), encoding="utf-8")
    job.outputs["tex"].write_text(captions.as_latex(name, texts), encoding="utf-8")
