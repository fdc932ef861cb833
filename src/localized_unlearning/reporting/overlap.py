"""How much localizations, and the weights that masks remove first, overlap with mechanisms and with one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning.errors import UserError
from localized_unlearning.reporting import markup
from localized_unlearning.reporting.figures import style

if TYPE_CHECKING:
    from localized_unlearning.config.localization import Overlap
    from localized_unlearning.jobs.job import Job

PAIR = ["task", "kind", "first", "second", "second_kind"]


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of stage ``overlap`` with the shares of each and their Jaccard index.

    Adds ``share_of_first`` and ``share_of_second`` (common over the first's and the second's parameters), ``jaccard``
    (common over either's) and ``share_of_all`` (the first's over all components': what a random choice of as many
    weights holds of anything). An empty first shares nothing.
    """
    either = rows["first_parameters"] + rows["second_parameters"] - rows["common"]
    return rows.assign(
        share_of_first=(rows["common"] / rows["first_parameters"]).fillna(0.0),
        share_of_second=(rows["common"] / rows["second_parameters"]).fillna(0.0),
        jaccard=(rows["common"] / either).fillna(0.0),
        share_of_all=rows["first_parameters"] / rows["of"],
    )


def spread(values: pd.Series, digits: int) -> str:
    """Mean in per cent, with the least and the most of several that differ; a dash without any."""
    if values.empty:
        return "-"
    mean, least, most = (f"{100 * x:.{digits}f}" for x in (values.mean(), values.min(), values.max()))
    return mean if least == most else f"{mean} ({least}, {most})"


def _grid(
    rows: pd.DataFrame,
    columns: Mapping[str, str],
    labels: Mapping[str, str],
    caption: str,
    measure: str,
    digits: int,
) -> markup.Panel:
    """A row per localization, first its share of all components, then a column per ``columns``."""
    lines = []
    for name, label in labels.items():
        own = rows[rows["first"] == name]
        if own.empty:
            continue
        once = own.drop_duplicates(["base_seed", "seed"])["share_of_all"]
        cells = [spread(own.loc[own["second"] == column, measure], digits) for column in columns]
        lines.append([label, spread(once, digits), *cells])
    return markup.Panel(caption, ["Localization", "All components", *columns.values()], lines)


def panels(table: pd.DataFrame, labels: Mapping[str, str], settings: Overlap) -> list[markup.Panel]:
    """For each task: shares of mechanisms, shares of one another, Jaccard indices, and what masks remove of mechanisms."""
    named = {name: mechanism.label for name, mechanism in settings.mechanisms.items()}
    found = []
    for task, rows in table.groupby("task", sort=False):
        selected, masked = rows[rows["kind"] == "selection"], rows[rows["kind"] == "mask"]
        kinds = {kind: part for kind, part in selected.groupby("second_kind")}
        if named:
            caption = f"Task {task}: % of each mechanism's parameters that a localization holds"
            found.append(_grid(kinds["mechanism"], named, labels, caption, "share_of_second", 1))
        if "localization" in kinds:
            there = set(rows["first"])
            columns = {name: label for name, label in labels.items() if name in there}
            for measure, caption in (
                ("share_of_second", "% of the column's parameters that the row holds"),
                ("jaccard", "Jaccard index of parameters, %"),
            ):
                pair = kinds["localization"]
                found.append(_grid(pair, columns, labels, f"Task {task}: {caption}", measure, 1))
        if len(masked):
            caption = f"Task {task}: % of the weights that a mask removes first ({settings.masked:,})"
            kind, columns = ("mechanism", named) if named else ("localization", columns)
            own = masked[masked["second_kind"] == kind]
            found.append(_grid(own, columns, labels, f"{caption}, of each {kind}'s", "share_of_second", 2))
    return found


def notes(settings: Overlap, several: bool) -> list[str]:
    """What the table's words mean, and what the mechanisms are."""
    found = [
        "All components: share of all components' parameters, which is what a random choice of as many holds of anything. "
        "A query head's keys and values are those of its group."
    ]
    for mechanism in settings.mechanisms.values():
        heads = [f"L{layer}H{head}" for layer, own in mechanism.heads.items() for head in own]
        mlps = ["MLPs " + ", ".join(map(str, mechanism.mlps))] if mechanism.mlps else []
        found.append(f"{mechanism.label}: {', '.join([*heads, *mlps])}.")
    if several:
        found.append("Mean over base models, for masks over seeds too (least, most).")
    return found


def run(job: Job) -> None:
    """Stage: the overlap of all localizations as CSV, Markdown and LaTeX.

    Raises:
        UserError: when there is nothing to compare.
    """
    found: Sequence[pd.DataFrame] = [pd.read_parquet(path) for path in job.inputs["rows"]]
    rows = pd.concat([part for part in found if len(part)] or found, ignore_index=True)
    if rows.empty:
        raise UserError(
            "overlap_table compares localizations with one another or with mechanisms: give 'localizations' two, or "
            "name mechanisms under overlap.mechanisms"
        )
    config, table = job.config, shares(rows)
    labels = style.distinct({name: own.label for name, own in config.localizations.items() if own})
    grids = panels(table, labels, config.overlap)
    several = len(table) > len(table.drop_duplicates(PAIR))
    title, about = f"Overlap of the localizations ({config.run})", notes(config.overlap, several)
    table.to_csv(job.outputs["csv"], index=False)
    job.outputs["markdown"].write_text(markup.markdown(title, grids, about), encoding="utf-8")
    job.outputs["latex"].write_text(markup.latex(title, grids, about), encoding="utf-8")
