"""Localizers against the truth: table and figure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning.analysis import localizers
from localized_unlearning.errors import UserError
from localized_unlearning.reporting import markup
from localized_unlearning.reporting.figures import style

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from localized_unlearning.jobs.job import Job

GRADES = {"auroc": "AUROC", "precision": "Precision at k", "share": "Share of score"}


def base_of(path: Path) -> int:
    """The base model's seed of a selection or of scores, from the folder ``base<N>`` that it lies in."""
    found = (re.fullmatch(r"base(\d+)", part) for part in reversed(path.parts))
    return next(int(match[1]) for match in found if match)


def run(job: Job) -> None:
    """Stage: how well each localization finds the matrices that hold the injected facts.

    A localization with scores is graded by their absolute values, one of single weights by the share of each matrix that
    it takes, another one by what it selects.

    Raises:
        UserError: when no facts were injected.
    """
    facts_in = job.config.organism.facts_in
    if facts_in is None:
        raise UserError(
            "no facts are injected (organism.facts_in is null), so there is no truth to compare with"
        )
    truth = {
        f"{layer}.{'attn' if kind in localizers.ATTENTION else 'mlp'}.{kind}"
        for layer in facts_in.layers
        for kind in facts_in.kinds
    }
    scored = {}
    components: list[str] = []
    for path in job.inputs["scores"]:
        table = pd.read_parquet(path)
        components = list(table["component"])
        scored[(path.stem, base_of(path))] = dict(zip(components, table["score"].abs(), strict=True))
    selections = [json.loads(path.read_text(encoding="utf-8")) for path in job.inputs["selections"]]
    if not components:  # no localization has scores: what any of them selects
        components = sorted({c for selection in selections for c in selection["components"]})
    values: dict[tuple[str, int], Mapping[str, float]] = {}
    for path, selection in zip(job.inputs["selections"], selections, strict=True):
        name, base = selection["localization"], base_of(path)
        localization = job.config.localizations[name]
        assert localization is not None
        own = scored.get((localization.scores or "", base))
        chosen = selection.get("share_by_component") or dict.fromkeys(selection["components"], 1.0)
        values[(name, base)] = own or {c: float(chosen.get(c, 0.0)) for c in components}
    grades = localizers.grade(values, truth, localizers.name_of_place(facts_in))
    labels = style.distinct({name: found.label for name, found in job.config.localizations.items() if found})
    title = f"Localizers against the truth: facts in {grades['place'].iloc[0]} ({job.config.run})"
    lines = [
        [labels[str(name)], *[spread(rows[grade]) for grade in GRADES]]
        for name, rows in grades.groupby("localization", sort=False)
    ]
    notes = [
        f"Mean over {grades['base_seed'].nunique()} base models (least, most). k: how many components hold the facts; chance "
        f"is {len(truth & set(components)) / max(1, len(components)):.2f} for precision and share, .50 for AUROC.",
        "A localization without scores of its own is graded by what it selects.",
    ]
    panels = [markup.Panel("", ["Localization", *GRADES.values()], lines)]
    grades.to_csv(job.outputs["csv"], index=False)
    job.outputs["markdown"].write_text(markup.markdown(title, panels, notes), encoding="utf-8")
    job.outputs["latex"].write_text(markup.latex(title, panels, notes), encoding="utf-8")
    style.save(draw(grades, labels), job.outputs, job.key)


def spread(values: pd.Series) -> str:
    """Mean (least, most)."""
    return f"{markup.number(values.mean())} ({values.min():.2f}, {values.max():.2f})"


def draw(grades: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """One panel per grade: a point per base model, a bar at the mean."""
    names = [name for name in labels if name in set(grades["localization"])]
    with style.panels(1, len(GRADES), 2 * style.COLUMN_WIDTH, 0.8 + 0.22 * len(names), sharey=True) as (
        figure,
        axes,
    ):
        for ax, (grade, title) in zip(axes[0], GRADES.items(), strict=True):
            for row, name in enumerate(names):
                found = grades.loc[grades["localization"] == name, grade]
                colour = style.style_of(name, names).colour
                ax.plot(found, [row] * len(found), "o", color=colour, alpha=0.7, clip_on=False)
                ax.plot([found.mean()] * 2, [row - 0.3, row + 0.3], color=colour)
            ax.set_title(title)
            ax.set_xlim(-0.03, 1.03)
            ax.set_yticks(range(len(names)), [labels[name] for name in names])
        axes[0][0].invert_yaxis()
    return figure
