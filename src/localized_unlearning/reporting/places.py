"""Localizers against the truth at places that were moved: which places take facts, and who finds them there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning.paper import terms
from localized_unlearning.reporting import markup
from localized_unlearning.reporting.figures import style
from localized_unlearning.reporting.localizers import GRADES, spread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from localized_unlearning.jobs.job import Job

MEASURED = {
    "training": "Training",
    "question": "Question",
    "multiple_choice_shuffled": "MCQ",
    "multiple_choice_unseen": "MCQ unseen",
    "teachers_training": "Teachers",
    "teachers_multiple_choice_shuffled": terms.BY_NAME["teachers_mcq"].short,
    "general_knowledge": "General knowledge",
}
"""What a place is held to, with its heading."""


def meeting(rows: pd.DataFrame) -> pd.DataFrame:
    """The grades of the places that meet their requirements in a base model."""
    return rows[rows["failed"] == ""]


def requirements(rows: pd.DataFrame) -> markup.Panel:
    """How every place took the facts, mean over base models (least), and in how many it meets its requirements."""
    models = rows.drop_duplicates(["place", "base_seed"])
    lines = []
    for name, group in models.groupby("place", sort=False):
        cells = [f"{markup.number(group[m].mean())} ({group[m].min():.2f})" for m in MEASURED]
        lines.append([str(name), *cells, f"{(group['failed'] == '').sum()} of {len(group)}"])
    return markup.Panel(
        "Places: accuracy after the injection, mean over base models (least).",
        ["Place", *MEASURED.values(), "Meets"],
        lines,
    )


def grades(table: pd.DataFrame, labels: Mapping[str, str]) -> markup.Panel:
    """The three grades of every localizer at every place."""
    lines = [
        [
            str(name),
            labels.get(str(localization), str(localization)),
            *[spread(rows[grade]) for grade in GRADES],
        ]
        for (name, localization), rows in table.groupby(["place", "localization"], sort=False)
    ]
    return markup.Panel(
        "Localizers at the places that meet their requirements, mean over base models (least, most).",
        ["Place", "Localizer", *GRADES.values()],
        lines,
    )


def draw(table: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """One panel per grade: a row per place, a point per base model and localizer, a bar at the mean."""
    names = list(dict.fromkeys(table["localization"]))
    where = list(dict.fromkeys(table["place"]))
    height = 1.1 + 0.3 * max(1, len(where))
    with style.panels(1, len(GRADES), 2 * style.COLUMN_WIDTH, height, sharey=True) as (figure, axes):
        for ax, (grade, title) in zip(axes[0], GRADES.items(), strict=True):
            for number, name in enumerate(names):
                look = style.style_of(name, names)
                own = table[table["localization"] == name]
                shift = 0.3 * (number - (len(names) - 1) / 2)
                rows = [where.index(place) + shift for place in own["place"]]
                ax.plot(
                    own[grade], rows, look.marker, color=look.colour, alpha=0.7, clip_on=False,
                    label=labels.get(name, name),
                )  # fmt: skip
                for place, values in own.groupby("place")[grade]:
                    at = where.index(place) + shift
                    ax.plot([values.mean()] * 2, [at - 0.14, at + 0.14], color=look.colour)
            ax.set_title(title)
            ax.set_xlim(-0.03, 1.03)
            ax.set_yticks(range(len(where)), where)
        axes[0][0].set_ylim(max(1, len(where)) - 0.5, -0.5)
        style.one_legend(figure, axes)
    return figure


def run(job: Job) -> None:
    """Stage: the CSV of grades, the CSV of places, a table and a figure."""
    rows = pd.concat([pd.read_parquet(path) for path in job.inputs["rows"]], ignore_index=True)
    table = meeting(rows)
    labels = {name: found.label for name, found in job.config.localizations.items() if found}
    title = f"Localizers against the truth, place by place ({job.config.run})"
    missed = rows[rows["failed"] != ""].drop_duplicates(["place", "base_seed"])
    notes = [
        "Each place is a bed of its own: the same facts, injected into these matrices alone of the same pretrained models. A "
        "place that misses a requirement in a base model grades no localizer there.",
        *[
            f"{row['place']} (base {row['base_seed']}): {row['failed']}."
            for row in missed[["place", "base_seed", "failed"]].to_dict("records")
        ],
    ]
    panels = [requirements(rows), *([grades(table, labels)] if len(table) else [])]
    table[["place", "localization", "base_seed", *GRADES]].to_csv(job.outputs["csv"], index=False)
    models = rows.drop_duplicates(["place", "base_seed"])
    models.drop(columns=["localization", *GRADES]).to_csv(job.outputs["places"], index=False)
    job.outputs["markdown"].write_text(markup.markdown(title, panels, notes), encoding="utf-8")
    job.outputs["latex"].write_text(markup.latex(title, panels, notes), encoding="utf-8")
    style.save(draw(table, labels), job.outputs, job.key)
