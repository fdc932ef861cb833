"""The question's page: does a localizer that finds the truth better unlearn more robustly?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning.analysis import question
from localized_unlearning.reporting import markup
from localized_unlearning.reporting.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from localized_unlearning.jobs.job import Job

KINDS = {
    "truth": ("Truth", "#D55E00", "*"),
    "localizer": ("Localizers", "#0072B2", "s"),
    "draw": ("Matched draws", "0.6", "o"),
    "disjoint": ("Draws disjoint from the truth", "#CC79A7", "^"),
}
"""Selections by kind: name, colour and marker."""


def verdict(found: question.Correlation, lower_is_robust: bool = True) -> str:
    """What a correlation says, in words that do not go beyond its interval."""
    if not found.groups:
        return "nothing could be compared"
    if found.groups < question.GROUPS:
        return "too few groups to say"
    if found.low > 0 or found.high < 0:
        robust = (found.mean < 0) == lower_is_robust
        return f"more goes with {'more' if robust else 'less'} robust unlearning"
    return "no direction is shown"


def places(rows: pd.DataFrame, outcomes: pd.DataFrame, seed: int) -> markup.Panel:
    """How each place took the facts, and of the groups that are compared what the attack brings back."""
    lines = []
    for place, group in rows.groupby("place", sort=False):
        reference = (
            group[group["kind"] == "reference"].groupby("selection").mean(numeric_only=True).to_dict("index")
        )
        own = outcomes[outcomes["place"] == place]
        cells = [
            ""
            if (kind := own[own["kind"] == name]).empty
            else markup.number(kind[question.RECOVERED].median())
            for name in ("truth", "draw", "disjoint")
        ]
        rank = question.truth_among_draws(own, question.RECOVERED, seed)
        along = question.correlation(own, "auroc", question.RECOVERED)
        lines.append(
            [
                str(place),
                str(group["base_seed"].nunique()),
                markup.number(reference["base"]["forget_training"]),
                markup.number(reference["base"]["forget_multiple_choice"]),
                markup.number(reference["gold"]["forget_multiple_choice"]),
                str(own["base_seed"].nunique()),
                *cells,
                *(
                    f"{value:.2f}" if found else ""
                    for value, found in ((rank.mean_rank, rank.groups), (along.mean, along.groups))
                ),
            ]
        )
    return markup.Panel(
        "Places: accuracy on the forget set before unlearning, and of the base models that are compared the recovered share "
        "after half and half (multiple choice), the truth's mean rank among matched draws in it, and its Spearman with AUROC.",
        [
            "Place",
            "Base models",
            "Injected, training",
            "Injected, MCQ",
            "Gold, MCQ",
            "Compared",
            "Truth",
            "Draws, median",
            "Disjoint, median",
            "Truth's rank",
            "Spearman",
        ],
        lines,
    )


def by_selection(outcomes: pd.DataFrame) -> markup.Panel:
    """Each selection's mean over groups; draws together."""
    name = outcomes["selection"].where(~outcomes["kind"].isin(("draw", "disjoint")), outcomes["kind"])
    columns = ["auroc", "precision", "learning_rate", "disruption", question.LEFT, question.RECOVERED]
    means = outcomes.assign(name=name).groupby("name", sort=False)[columns].mean()
    return markup.Panel(
        "Selections, mean over places and base models.",
        ["Selection", "AUROC", "Precision at k", "Rate", "Disruption", "Left", "Recovered"],
        [[str(n), *[f"{value:.4f}" if c == "learning_rate" else markup.number(value) for c, value in row.items()]]
         for n, row in means.iterrows()],
    )  # fmt: skip


def correlations(outcomes: pd.DataFrame) -> markup.Panel:
    """Every predictor with every outcome."""
    lines = []
    for predictor, name in question.PREDICTORS.items():
        for outcome, what in question.OUTCOMES.items():
            found = question.correlation(outcomes, predictor, outcome)
            lines.append(
                [
                    name,
                    what,
                    f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]",
                    str(found.groups),
                    verdict(found),
                ]
            )
    return markup.Panel(
        "Rank correlations within a place and base model, averaged over a place's base models, then over places (95 %, Student's t "
        "over places).",
        ["Predictor", "Outcome", "Spearman", "Groups", "Read as"],
        lines,
    )


def chance(p: float) -> str:
    """A p value, which is never shown as 0."""
    return f"{p:.4f}" if p >= 1e-4 else "< .0001"


def truth_ranks(outcomes: pd.DataFrame, seed: int) -> markup.Panel:
    """The truth among its draws."""
    lines = []
    for kinds, name in ((("draw",), "matched draws"), (("disjoint",), "disjoint draws")):
        for outcome, what in question.OUTCOMES.items():
            rank = question.truth_among_draws(outcomes, outcome, seed, kinds)
            lines.append(
                [
                    name,
                    what,
                    f"{rank.mean_rank:.2f}",
                    chance(rank.p),
                    chance(rank.floor),
                    str(rank.groups),
                    str(rank.draws),
                ]
            )
    return markup.Panel(
        "The truth among random draws (mean rank: 0 lowest, .5 a draw like any other, 1 highest; one-sided p for lowest).",
        ["Among", "Outcome", "Mean rank", "p", "Smallest possible p", "Groups", "Draws"],
        lines,
    )


def judged(outcomes: pd.DataFrame, seed: int) -> markup.Panel:
    """The claims with their verdicts."""
    return markup.Panel(
        f"Claims on the recovered share, held to the rows; none is judged below {question.DRAWS} matched draws or "
        f"{question.GROUPS} groups.",
        ["Claim", "Verdict", "Why"],
        [list(found) for found in question.claims(outcomes, seed)],
    )


def draw(outcomes: pd.DataFrame) -> Figure:
    """Recovered share against AUROC, a panel per place."""
    names = list(outcomes["place"].unique()) or [""]
    with style.panels(1, len(names), 1.9 * len(names), 2.3, sharey=True) as (figure, axes):
        for ax, place in zip(axes[0], names, strict=True):
            own = outcomes[outcomes["place"] == place]
            for kind, (label, colour, marker) in KINDS.items():
                rows = own[own["kind"] == kind]
                ax.plot(rows["auroc"], rows[question.RECOVERED], marker, color=colour, label=label, alpha=0.8)
            ax.axhline(0, color="0.6", linewidth=0.6)
            ax.set_title(str(place))
            ax.set_xlabel("AUROC against the truth")
        axes[0][0].set_ylabel("Recovered share")
        style.one_legend(figure, axes)
    return figure


def run(job: Job) -> None:
    """Stage: the page with its table of rows and its figure."""
    rows = pd.concat([pd.read_parquet(path) for path in job.inputs["rows"]], ignore_index=True)
    statistics = job.config.statistics
    outcomes = question.compared(rows)
    groups = outcomes.groupby(question.GROUP).ngroups
    notes = [
        "Recovered share: (attacked - gold attacked alike) / (base model - gold), multiple choice, after retraining on half "
        "of the forget set; left: the same before the attack. Low is robust; 0 is gold. Every selection was unlearned at the "
        "largest learning rate at which retained validation facts lose at most the budget.",
        f"{groups} groups of a place and a base model, {len(outcomes)} selections. Groups whose place did not take the facts "
        f"(below {question.TOOK} on the training prompt), or whose base model hardly knows more than gold in multiple choice, are left "
        "out: what is stored that late reaches no other format.",
        "Selections of one group share facts, items and attacker; the intervals are over places. The organism is small and "
        "its place is made by training: what is shown holds for it, and is a hypothesis for pretrained models.",
    ]
    panels = [places(rows, outcomes, statistics.seed)]
    if len(outcomes):
        panels += [
            by_selection(outcomes),
            correlations(outcomes),
            truth_ranks(outcomes, statistics.seed),
            judged(outcomes, statistics.seed),
        ]
    title = f"Does localization inform unlearning? ({job.config.run})"
    rows.to_csv(job.outputs["csv"], index=False)
    job.outputs["markdown"].write_text(markup.markdown(title, panels, notes), encoding="utf-8")
    style.save(draw(outcomes), job.outputs, job.key)
