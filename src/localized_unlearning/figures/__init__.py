"""The figures. Every figure function takes a data frame of points and returns a matplotlib Figure.

``rows`` makes the points from per-item rows, ``series`` and ``layers`` draw them, ``style`` is what all share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning.errors import UserError
from localized_unlearning.figures import layers, rows, series, style
from localized_unlearning.published import FIGURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from localized_unlearning.stages import Job


def points_of(name: str, frames: rows.Frames, question: str, confidence: float) -> pd.DataFrame:
    """The points of a figure, as its CSV holds them."""
    kind = FIGURES[name].kind
    if kind == "relearning":
        return rows.series(frames, question, "iteration", confidence)
    if kind in ("edits", "price"):
        return rows.series(frames, question, "edit_size", confidence)
    if kind == "probes":
        return layers.probe_points(frames, confidence)
    return (
        layers.head_points(frames, confidence) if kind == "heads" else layers.layer_points(frames, confidence)
    )


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


def run(job: Job) -> None:
    """Stage: a figure as PDF and PNG, and the CSV it was drawn from."""
    import matplotlib

    matplotlib.use("Agg")
    config, name = job.config, job.wildcards["figure"]
    found: dict[str, list[pd.DataFrame]] = {}
    for path in job.inputs["data"]:
        found.setdefault(path.stem, []).append(pd.read_parquet(path))
    frames = {stem: pd.concat(tables, ignore_index=True) for stem, tables in found.items()}
    points = points_of(name, frames, config.prompts.question, config.statistics.confidence)
    labels = {"base": "Base model", **{n: loc.label for n, loc in config.localizations.items() if loc}}
    overlay = None
    if job.inputs.get("overlay"):
        overlay = pd.read_csv(job.inputs["overlay"])
        missing = {"mean"} - set(overlay.columns)
        if missing and FIGURES[name].kind != "price":
            raise UserError(
                f"{job.inputs['overlay']} has no column 'mean': see figures.overlay in docs/configuration.md"
            )
    points.to_csv(job.outputs["csv"], index=False)
    style.save(draw(name, points, labels, overlay), job.outputs["pdf"], job.outputs["png"], job.key)
