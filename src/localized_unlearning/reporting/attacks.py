"""The matrix of attacks: what each of them brings back of what each localization unlearned."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning.analysis import recovery
from localized_unlearning.reporting import captions, markup
from localized_unlearning.reporting.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from localized_unlearning.jobs.job import Job

ATTACKS = {
    recovery.NONE: "No attack",
    "retain_only": "Retain only",
    "half_and_half": "Half and half",
    "half_and_half_false": "Half and half, false answers",
    "search": "Search",
    "few_shot": "Few-shot",
    "quantization": "Quantization",
    "soft_prompt": "Soft prompt",
    "logit_lens": "Logit lens",
    "noise": "Noise",
    "pruning": "Pruning",
}
"""Attacks in the order of tables and figures, with their names there."""

FORMATS = {"training": "Training prompt", "question": "Question prompt", "multiple_choice": "Multiple choice"}


def tidy(table: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    """The rows of :func:`recovery.recovered` in the order of tables, with columns ``label`` and ``attack_label``."""
    table = table.assign(
        label=[labels.get(name, name) for name in table["localization"]],
        attack_label=[ATTACKS[name] for name in table["attack"]],
    )
    order = {name: i for i, name in enumerate([*labels, *ATTACKS, *FORMATS])}
    return table.sort_values(
        ["task", "objective", "format", "localization", "attack"],
        key=lambda values: (
            values.map(order) if values.name in ("format", "localization", "attack") else values
        ),
        kind="stable",
        ignore_index=True,
    )


BREAKS = 0.5
"""Share of the base model's own knowledge below which an attack only breaks models."""


def breaking(group: pd.DataFrame) -> set[str]:
    """Attacks that leave the base model itself so little that what they recover of an unlearned one says nothing."""
    return set(group.loc[group["kept"] < BREAKS, "attack"])


def panels(table: pd.DataFrame, floor: bool) -> list[markup.Panel]:
    """One panel per task, objective and format: localizations by attacks, with the worst case last."""
    found = []
    for (task, objective, form), group in table.groupby(["task", "objective", "format"], sort=False):
        attacks = [name for name in ATTACKS if name in set(group["attack"])]
        broken = breaking(group)
        lines = []
        for _, rows in group.groupby("localization", sort=False):
            by_attack = {str(row["attack"]): row for row in rows.to_dict("records")}
            cells = []
            for name in attacks:
                row = by_attack[name]
                cells.append(f"{markup.number(row['recovered'])} {markup.interval(row['low'], row['high'])}")
            tried = [
                r
                for r in by_attack.values()
                if r["attack"] not in (recovery.NONE, *broken) and r["recovered"] == r["recovered"]
            ]
            worst = max(tried, key=lambda r: float(r["recovered"]), default=None)
            last = f"{markup.number(worst['recovered'])} ({worst['attack_label'].lower()})" if worst else ""
            lines.append([rows["label"].iloc[0], *cells, last])
        numbers = group.iloc[0]
        caption = (
            f"{task}, {objective}, {FORMATS[str(form)]}: base model {markup.number(numbers['ceiling'])}"
            + (
                f", gold {markup.number(group[group['attack'] == recovery.NONE]['floor'].iloc[0])}"
                if floor
                else ""
            )
        )
        found.append(
            markup.Panel(
                caption,
                [
                    "Localization",
                    *_marked(attacks, broken),
                    "Worst case",
                ],
                lines,
            )
        )
    return found


def _marked(attacks: Iterable[str], broken: Collection[str]) -> list[str]:
    return [f"{ATTACKS[name]} †" if name in broken else ATTACKS[name] for name in attacks]


def heat_map(table: pd.DataFrame, form: str = "multiple_choice") -> Figure:
    """Recovered share, localization by attack, a map per task and objective; a dagger and grey where an attack breaks models."""
    groups = list(table[table["format"] == form].groupby(["task", "objective"], sort=False))
    rows = max((group["localization"].nunique() for _, group in groups), default=1)
    width, height = style.COLUMN_WIDTH * max(1, len(groups)), 1.4 + 0.24 * rows
    with style.panels(1, max(1, len(groups)), width, height) as (figure, axes):
        for ax, ((task, objective), group) in zip(axes[0], groups, strict=False):
            attacks = [name for name in ATTACKS if name in set(group["attack"])]
            names = list(dict.fromkeys(group["label"]))
            broken = breaking(group)
            grid = group.pivot(index="label", columns="attack", values="recovered").loc[names, attacks]
            told = grid.mask(grid.columns.isin(broken)[None, :].repeat(len(names), axis=0))
            image = ax.imshow(told, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
            for row, values in enumerate(grid.to_numpy()):
                for column, value in enumerate(values):
                    if value == value:
                        out = attacks[column] in broken
                        colour = "0.6" if out else "white" if abs(value) > 0.6 else "0.15"
                        ax.text(
                            column, row, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center",
                            fontsize=style.SMALL, color=colour,
                        )  # fmt: skip
            title = f"{task}, {objective}: {FORMATS[form].lower()}, n = {group['n'].max()}"
            ax.set_title(title + ("\n† breaks the base model too" if broken else ""))
            ax.set_xticks(range(len(attacks)), _marked(attacks, broken), rotation=35, ha="right")
            ax.set_yticks(range(len(names)), names)
            ax.spines[:].set_visible(False)
            ax.tick_params(length=0)
            bar = figure.colorbar(image, ax=ax, shrink=0.9, pad=0.02)
            known = "gold" if group["floor"].notna().any() else "nothing"
            bar.set_label(f"Recovered (0: {known}, 1: base model)", fontsize=style.SMALL)
            bar.ax.tick_params(labelsize=style.SMALL, width=0.5)
            bar.outline.set_visible(False)
    return figure


def run(job: Job) -> None:
    """Stage: the matrix as CSV, Markdown, LaTeX and heat map."""
    rows = pd.concat([pd.read_parquet(path) for path in job.inputs["rows"]], ignore_index=True)
    table = recovery.recovered(rows, job.config.statistics)
    labels = style.distinct({name: found.label for name, found in job.config.localizations.items() if found})
    table = tidy(table, labels)
    floor = bool(table["floor"].notna().any())
    models = rows.groupby([name for name in recovery.MODEL if name in rows.columns]).ngroups
    title = f"Attacks on unlearned models ({job.config.run})"
    notes = [
        "Recovered share = (attacked - gold attacked alike) / (base model - gold); gold never learned the forget set. "
        "Negative: below what gold says, which is avoiding the answer and not ignorance."
        if floor
        else "Share of the base model's accuracy: no model that never learned these facts exists.",
        captions.mode(job.config.finetune.equal_disruption),
        f"Each attack's worst cell (a search's size stands in the CSV). Interval: {job.config.statistics.confidence:.0%}, "
        f"bootstrap over items and {models} models. Every attack is asked the half of the forget set that no attacker has.",
    ]
    if any(breaking(group) for _, group in table.groupby(["task", "objective", "format"])):
        notes.append(
            f"† This attack leaves the base model itself less than {BREAKS:g} of what it knew (column `kept` of the CSV): it "
            "breaks models, and its column says nothing about unlearning. An organism never read examples before a prompt, "
            "so few-shot breaks it."
        )
    found = panels(table, floor)
    table.to_csv(job.outputs["csv"], index=False)
    job.outputs["markdown"].write_text(markup.markdown(title, found, notes), encoding="utf-8")
    job.outputs["latex"].write_text(markup.latex(title, found, notes), encoding="utf-8")
    style.save(heat_map(table), job.outputs, job.key)
