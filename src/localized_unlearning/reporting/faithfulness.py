"""Faithfulness of the localizations as a table and a figure, from per-prompt rows alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.reporting.figures import style
from localized_unlearning.reporting.markup import Panel, interval, markdown, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from localized_unlearning.jobs.job import Job

COLUMNS: Mapping[str, str] = {
    "cpr": "CPR ↑",
    "cmd": "CMD ↓",
    "keep": "Selection kept ↑",
    "ablate": "Selection ablated ↓",
}
"""The table's columns: areas of the keep curve (1 and 0 are perfect), and what is left with the localization's own
selection kept, or ablated."""


def areas(shares: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CPR and CMD of keep curves ``[..., share]``: see :mod:`localized_unlearning.localization.faithfulness`."""
    x = np.append(shares, 1.0)
    y = np.concatenate([values, np.ones((*values.shape[:-1], 1))], -1)
    return np.trapezoid(y, x), np.trapezoid(np.abs(1 - y), x)


def estimates(data: pd.DataFrame, settings: Statistics) -> pd.DataFrame:
    """What is left by task, localization, mode and share, and CPR and CMD: ratios of sums over prompts.

    Intervals: percentile bootstrap over prompts, the same draws for all.

    Returns:
        Columns ``task``, ``localization``, ``measure`` (cpr, cmd, keep, ablate), ``own``, ``share``, ``components``,
        ``mean``, ``low``, ``high`` and ``n``.
    """
    tail = (1 - settings.confidence) / 2
    found: list[dict[str, object]] = []

    def add(values: np.ndarray, **about: object) -> None:
        low, high = np.quantile(values[1:], [tail, 1 - tail])
        found.append({**about, "mean": float(values[0]), "low": float(low), "high": float(high)})

    for (task, localization), group in data.groupby(["task", "localization"], sort=False):
        base = {"task": task, "localization": localization}
        athletes = group["subject"].drop_duplicates()
        place = pd.Series(range(len(athletes)), index=athletes)
        rng = np.random.default_rng(settings.seed)
        draws = rng.multinomial(len(athletes), np.full(len(athletes), 1 / len(athletes)), settings.bootstrap)
        weights = np.concatenate([np.ones((1, len(athletes))), draws])  # the first is the sample itself
        curve: dict[float, np.ndarray] = {}
        for (own, mode, share), case in group.groupby(["own", "mode", "share"], sort=False):
            case = case.iloc[np.argsort(place[case["subject"]].to_numpy())]
            metric, clean, corrupt = (case[c].to_numpy() for c in ("metric", "clean", "corrupt"))
            left = weights @ (metric - corrupt) / (weights @ (clean - corrupt))
            about = {**base, "measure": mode, "own": own, "share": share}
            add(left, **about, components=int(case["components"].iloc[0]), n=len(athletes))
            if mode == "keep" and not own:
                curve[float(share)] = left  # type: ignore[arg-type]
        if curve:
            shares = np.array(sorted(curve))
            both = areas(shares, np.stack([curve[s] for s in shares], -1))
            for name, values in zip(("cpr", "cmd"), both, strict=True):
                add(values, **base, measure=name, own=False, share=np.nan, components=0, n=len(athletes))
    return pd.DataFrame(found)


def table(points: pd.DataFrame, labels: Mapping[str, str], run: str) -> str:
    """The readable table: one row per localization, one grid per task."""
    panels = []
    for task, own in points.groupby("task", sort=False):
        lines = []
        for name, label in labels.items():
            mine = own[(own["localization"] == name) & (own["own"] | own["measure"].isin(("cpr", "cmd")))]
            if mine.empty:
                continue
            cells = []
            for measure in COLUMNS:
                row = mine[mine["measure"] == measure]
                cells.append(
                    f"{number(row['mean'].iloc[0])} {interval(row['low'].iloc[0], row['high'].iloc[0])}"
                    if len(row)
                    else "-"
                )
            lines.append([label, str(mine.loc[mine["own"], "components"].max()), *cells])
        panels.append(Panel(f"Task {task}.", ["Localization", "Components", *COLUMNS.values()], lines))
    notes = [
        "What is left of the right answer's logit over the others', between a prompt with a made-up name (0) and the true "
        "one (1), when activations are replaced by the made-up name's: of all components but the selection (kept), or "
        "of the selection alone (ablated). CPR: area under what is left as ever more of the ranked components are kept; "
        "CMD: area between that and 1. Localizations without scores have no curve.",
        f"Intervals over prompts (bootstrap); {int(points['n'].max())} prompts.",
    ]
    return markdown(f"Faithfulness of the localizations ({run})", panels, notes)


def draw(points: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """What is left against the share of components kept (left) and ablated (right), for the first task."""
    task = points["task"].iloc[0]
    titles = {"keep": "Kept ↑", "ablate": "Ablated ↓"}
    with style.panels(1, 2, style.COLUMN_WIDTH, 2.4, sharey=True) as (figure, axes):
        for ax, (mode, title) in zip(axes.flat, titles.items(), strict=True):
            shown = points[(points["task"] == task) & (points["measure"] == mode)]
            style.curves(ax, shown[~shown["own"] & (shown["components"] > 0)], "share", labels)
            for name, label in labels.items():
                mine = shown[shown["own"] & (shown["localization"] == name)]
                look = style.style_of(name, list(labels))
                ax.plot(
                    mine["share"],
                    mine["mean"],
                    color=look.colour,
                    marker=look.marker,
                    linestyle="",
                    label=label,
                )
            for value in (0, 1):
                ax.axhline(value, color="0.6", linewidth=0.6, zorder=0)
            ax.set_xscale("log")
            ax.set_xlabel("Share of components")
            ax.set_title(title)
            style.count_note(ax, shown)
        axes[0][0].set_ylabel("What is left of the answer")
        style.one_legend(figure, axes)
    return figure


def run(job: Job) -> None:
    """Stage: the table and the figure of all localizations' faithfulness, and their CSV."""
    import matplotlib

    matplotlib.use("Agg")
    config = job.config
    data = pd.concat([pd.read_parquet(path) for path in job.inputs["data"]], ignore_index=True)
    points = estimates(data, config.statistics)
    labels = {name: found.label for name, found in config.localizations.items() if found}
    points.to_csv(job.outputs["csv"], index=False)
    job.outputs["markdown"].write_text(table(points, labels, config.run), encoding="utf-8")
    style.save(draw(points, labels), job.outputs, job.key)
