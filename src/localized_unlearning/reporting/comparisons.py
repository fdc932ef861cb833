"""Which localizations differ, and where they rank among random ones: tests on the items of a table.

Every pair is compared on the same items (see :func:`localized_unlearning.analysis.statistics.compare`). The page shows one
localization against each other in the columns that say something, and its p-values are corrected over just these
(Holm); the CSV has every pair and column, with the correction over all of them beside. The null distribution answers
another question: is a localization better than random ones of its size?
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning.analysis.measures import items, read_frames
from localized_unlearning.analysis.standing import of_base, standings
from localized_unlearning.analysis.statistics import Answers, compare, covers, design_of, holm
from localized_unlearning.config.evaluation import Statistics
from localized_unlearning.localization.settings import null_draws
from localized_unlearning.paper import terms
from localized_unlearning.paper.terms import MAIN, MARKS, MEASURES, Measure, Standing
from localized_unlearning.reporting.markup import Panel, markdown, number
from localized_unlearning.reporting.tables import ALL_SETS, BASE, KNOWERS

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


Designs = Mapping[tuple[str, str], list[Answers]]
"""Designs by localization and measure."""


def designs(scores: pd.DataFrame) -> dict[tuple[str, str], list[Answers]]:
    """The designs of a long frame of scores (:func:`localized_unlearning.analysis.measures.items`)."""
    found = {}
    for (name, measure), group in scores.groupby(["localization", "measure"], sort=False):
        found[str(name), str(measure)] = design_of(group, group["score"])
    return found


def compared(
    scores: pd.DataFrame,
    names: Sequence[str],
    settings: Statistics,
    family: str,
    base: Mapping[str, Standing],
) -> pd.DataFrame:
    """Every pair of localizations on every measure, with p-values corrected over those shown and over all.

    Args:
        scores: as :func:`localized_unlearning.analysis.measures.items` returns them, of one task or of a task's sets.
        names: the localizations, the base model first.
        settings: level, bootstrap samples and their seed.
        family: what stands in the column ``family``: the p-values are corrected within it.
        base: how the base model stands in each group of measures.

    Returns:
        Columns ``family``, ``measure``, ``first``, ``second``, those of
        :class:`localized_unlearning.analysis.statistics.Difference`, ``p_holm_shown`` (over the comparisons of the page that
        :func:`says_something`; absent for all others) and ``p_holm_all``.
    """
    found = designs(scores)
    shares = {
        str(m): how != "loss" or m == "text_worse"
        for m, how in scores.groupby("measure")["accuracy"].first().items()
    }
    records = [
        {
            "family": family,
            "measure": measure.name,
            "first": a,
            "second": b,
            **compare(
                found[a, measure.name], found[b, measure.name], settings, shares[measure.name]
            )._asdict(),
        }
        for measure in MEASURES
        for a, b in itertools.combinations(names, 2)
        if (a, measure.name) in found
    ]
    table = pd.DataFrame(records)
    subject = subject_of(names)
    shown = np.array(
        [
            subject in (row["first"], row["second"]) and row["measure"] in MAIN and says_something(row["measure"], base)
            and not (row["measure"] == "text_kl" and BASE in (row["first"], row["second"]))  # never below 0: no test
            for _, row in table.iterrows()
        ]
    )  # fmt: skip
    corrected = np.full(len(table), np.nan)
    if shown.any():
        corrected[shown] = holm(table.loc[shown, "p"].to_list())
    return table.assign(p_holm_shown=corrected, p_holm_all=holm(table["p"].to_list()))


def subject_of(names: Iterable[str]) -> str:
    """The localization that the page holds against every other: manual, or the first."""
    return "manual" if "manual" in names else next(name for name in names if name not in KNOWERS)


def says_something(measure: str, base: Mapping[str, Standing]) -> bool:
    """Whether the base model can do what a measure asks, so that unlearning can show there."""
    return base.get(terms.BY_NAME[measure].group, "above chance") == "above chance"


def ranked(scores: pd.DataFrame, names: Sequence[str], draws: Sequence[str]) -> pd.DataFrame:
    """Where localizations rank among random draws, measure by measure, on the draws' seeds.

    Returns:
        Columns ``measure``, ``better`` (``low`` or ``high``), ``kind`` (``localization`` or ``draw``),
        ``localization``, ``value`` (mean over the draws' seeds), ``draws``, ``rank`` (1: better than every draw),
        ``p`` (share of draws, itself counted among them, that do at least as well) and the draws' ``low``,
        ``median`` and ``high``. Of a draw only the value is given.
    """
    seeds = scores.loc[scores["localization"].isin(draws), "seed"].unique()
    own = scores[scores["seed"].isin(seeds) | scores["localization"].isin(KNOWERS)]
    means = own.groupby(["measure", "localization"], sort=False)["score"].mean()
    records = []
    for measure in MEASURES:
        if (measure.name, draws[0]) not in means.index:
            continue
        null = np.array([means[measure.name, name] for name in draws])
        sign = 1 if measure.better == "low" else -1
        common = {"measure": measure.name, "better": measure.better}
        for name in names:
            if (measure.name, name) not in means.index:  # no model of the draws' seeds
                continue
            value = float(means[measure.name, name])
            tied = np.isclose(null, value, rtol=0, atol=1e-12)
            ahead = int(((sign * null < sign * value) & ~tied).sum())
            records.append(
                {
                    **common, "kind": "localization", "localization": name, "value": value, "draws": len(draws),
                    "rank": 1 + ahead, "p": (1 + ahead + int(tied.sum())) / (len(draws) + 1),
                    "low": float(null.min()), "median": float(np.median(null)), "high": float(null.max()),
                }
            )  # fmt: skip
        records += [
            {**common, "kind": "draw", "localization": name, "value": float(value)}
            for name, value in zip(draws, null, strict=True)
        ]
    return pd.DataFrame(records).astype({"draws": "Int64", "rank": "Int64"})


RANKED = ("measure", "better", "kind", "localization", "value", "draws", "rank", "p", "low", "median", "high")
"""Columns of the null distribution's CSV."""


def small(p: float) -> str:
    """A p-value in few letters."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")


def comparison_panel(
    table: pd.DataFrame,
    labels: Mapping[str, str],
    caption: str,
    confidence: float,
    base: Mapping[str, Standing],
) -> Panel:
    """One localization against each other, on the main columns; bold where the corrected p is below 1 - confidence."""
    subject = subject_of(labels)
    present = set(table["measure"])
    columns = [m for m in MEASURES if m.name in MAIN and m.name in present]
    lines = []
    for other in labels:
        if other == subject:
            continue
        line = [labels[other]]
        for measure in columns:
            rows = table[table["measure"] == measure.name]
            row = rows[
                ((rows["first"] == subject) & (rows["second"] == other))
                | ((rows["first"] == other) & (rows["second"] == subject))
            ].iloc[0]
            sign = 1 if row["first"] == subject else -1
            text = f"{round(sign * row['difference'], 3) + 0.0:+.3f}"  # no -0.000
            p = row["p_holm_shown"]
            if pd.notna(p):
                text = f"**{text}** ({small(p)})" if p < 1 - confidence else f"{text} ({small(p)})"
            line.append(text)
        lines.append(line)
    headings = [marked(measure, base) for measure in columns]
    return Panel(caption, [f"{labels[subject]} minus", *headings], lines)


def marked(measure: Measure, base: Mapping[str, Standing]) -> str:
    """A column's heading with the mark of the base model's standing."""
    mark = MARKS.get(base.get(measure.group, "above chance"), ("", ""))[0]
    return f"{measure.heading} {mark}".strip()


def null_panel(table: pd.DataFrame, labels: Mapping[str, str]) -> Panel:
    """Each localization's value and rank on the main columns, and the draws' range."""
    columns = [m for m in MEASURES if m.name in MAIN]
    own = table[table["kind"] == "localization"].set_index(["localization", "measure"])
    lines: list[list[str]] = []
    for name in labels:
        if name not in own.index.get_level_values(0):
            continue
        line = [labels[name]]
        for measure in columns:
            row: Any = own.loc[(name, measure.name)]
            last = round(row["p"] * (row["draws"] + 1))  # as good as all the draws it ties with
            rank = row["rank"] if last == row["rank"] else f"{row['rank']}-{last}"
            line.append(f"{number(row['value'])} (rank {rank} of {row['draws'] + 1})")
        lines.append(line)
    draws = ["Random draws: median"]
    for measure in columns:
        row = own.xs(measure.name, level="measure").iloc[0]
        draws.append(f"{number(row['median'])} [{number(row['low'])}, {number(row['high'])}]")
    return Panel("", ["Localization", *(m.heading for m in columns)], [*lines, draws])


def tests_in_words(table: pd.DataFrame) -> str:
    """Which test stands behind which columns."""
    by_test = table.groupby("test", sort=False)["measure"].unique()
    if len(by_test) == 1:
        return str(by_test.index[0])
    return "; ".join(
        f"{test} ({', '.join(terms.BY_NAME[name].short for name in names if name in MAIN)})"
        for test, names in by_test.items()
    )


def run(job: Job) -> None:
    """Stage: the paired comparisons of a table and its null distribution, as CSV (all) and Markdown (manual's)."""
    config, table, task = job.config, job.wildcards["table"], job.wildcards["task"]
    frames = read_frames({n: job.inputs[n] for n in ("facts", "multiple_choice", "mmlu", "text")})
    there = set(frames["facts"]["localization"])
    labels = {name: str(found["label"]) for name, found in KNOWERS.items() if name in there}
    for path in job.inputs["selections"]:
        selection = json.loads(Path(path).read_text(encoding="utf-8"))
        labels[selection["localization"]] = selection["label"]
    draws = [name for name in null_draws(config.null_distribution) if name in labels]
    shown = {name: label for name, label in labels.items() if name not in draws}
    scores = items(frames, config.prompts, config.measures.accuracy)
    own, level = scores[scores["task"] == task], config.statistics.confidence
    stands = standings(frames, config.prompts, config.statistics)
    base = {task: of_base(stands, task), ALL_SETS: of_base(stands)}
    parts = [compared(own[own["localization"].isin(shown)], list(shown), config.statistics, task, base[task])]
    sets = list(scores["task"].unique())
    if len(sets) > 1:
        every = scores[scores["localization"].isin(shown)]
        parts.append(compared(every, list(shown), config.statistics, ALL_SETS, base[ALL_SETS]))
    found = pd.concat(parts, ignore_index=True)
    found.to_csv(job.outputs["comparisons_csv"], index=False)
    heading = f"{table.replace('_', ' ').capitalize()} ({config.run})"
    captions = {task: "", ALL_SETS: f"Mean over {len(sets)} forget sets: {', '.join(sets)}."}
    panels = [
        comparison_panel(rows, shown, captions[str(family)], level, base[str(family)])
        for family, rows in found.groupby("family", sort=False)
    ]
    first, count = parts[0].iloc[0], int(parts[0]["p_holm_shown"].notna().sum())
    marks = {standing for found in base.values() for standing in found.values()}
    notes = [
        f"Differences of {terms.ACCURACIES[config.measures.accuracy]} (of loss and divergence for the text), tested over "
        f"{covers(first['seeds'], 1, first['bases'])}: {tests_in_words(found)}. Questions of general knowledge are drawn within their "
        f"subjects, as in the tables. In brackets the p-value after Holm's correction over the {count} comparisons "
        f"shown; bold below {1 - level:.2g}. The CSV has every pair and every column, with the correction over all "
        f"{len(parts[0])} of them beside, intervals, effect sizes and the items that only one of the two has right.",
        *[f"{mark} {text}" for kind, (mark, text) in MARKS.items() if kind in marks],
    ]
    if first["seeds"] == 1:
        notes.append(
            "One training seed: the tests are about these very models and say nothing about the localizations."
        )
    job.outputs["comparisons_markdown"].write_text(
        markdown(f"{heading}: paired comparisons on the same items", panels, notes), encoding="utf-8"
    )
    title = f"{heading}: rank among random localizations"
    if not draws:
        pd.DataFrame(columns=list(RANKED)).to_csv(job.outputs["null_csv"], index=False)
        text = markdown(title, [], ["This run draws no random localizations: set null_distribution.draws."])
        job.outputs["null_markdown"].write_text(text, encoding="utf-8")
        return
    null = ranked(own, list(shown), draws)[list(RANKED)]
    null.to_csv(job.outputs["null_csv"], index=False)
    count = own.loc[own["localization"].isin(draws), "seed"].nunique()
    budget = config.null_distribution.budget
    size = (
        "about as many parameters as the manual localization" if budget == "parameters"
        else f"{100 * config.null_distribution.fraction:g} % of the components"
    )  # fmt: skip
    note = (
        f"{len(draws)} random localizations with {size}, {count} training seed{'s' if count > 1 else ''}; every value "
        f"here is of the same seeds. Rank 1 is better than every draw (a range of ranks: it ties with draws). By chance rank 1 has "
        f"probability 1/{len(draws) + 1}: with so few draws nothing here goes below p = {1 / (len(draws) + 1):.3f}."
    )
    job.outputs["null_markdown"].write_text(
        markdown(title, [null_panel(null, shown)], [note]), encoding="utf-8"
    )
