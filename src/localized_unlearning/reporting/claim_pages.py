"""Findings as Markdown: a run's ``claims.md`` and the ledger of the paper's own numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from localized_unlearning.paper import terms
from localized_unlearning.reporting.captions import title
from localized_unlearning.reporting.markup import escaped, row

if TYPE_CHECKING:  # the report imports this, and every command imports the report: without pandas
    from localized_unlearning.analysis import question
    from localized_unlearning.analysis.claims.verdicts import Comparison, Judgement

VERDICTS = ("supported", "contradicted", "undecided", "not testable")

READING = (
    "A claim is **supported** when every comparison it makes holds: its margin lies above 0, one-sided. It is "
    "**contradicted** when a comparison fails: its margin lies below 0, after Holm's correction over the claim's "
    "comparisons. It is **not testable** when none of them can be tested, because something is missing, the base model "
    "cannot do what is asked, or so few items could not show it whatever the answers. All else is **undecided**: that "
    "says nothing against the claim; the page says how many comparisons hold and which way the others lean. The margin "
    "is that of the worst comparison: how far, in accuracy, the number lies on the claim's side of its bound. A claim "
    "that holds by construction is called circular and counted apart."
)

ELSEWHERE = (
    "Verdict, margin and the comparisons below are about the paper's forget sets. The columns named after other forget sets "
    "say what the same comparisons come to with those in their place, as far as the run has their models."
)


def words_of(measure: str, prompt: terms.Prompt) -> str:
    """A measure of a claim in words."""
    forget, retain = (terms.of_prompt(part, prompt).short for part in ("forget", "retain"))
    mcq, general = terms.BY_NAME["mcq_forget"].short, terms.BY_NAME["mmlu"].short
    return {
        "forget": forget,
        "retain": retain,
        "mcq_forget": mcq,
        "mcq_retain": terms.BY_NAME["mcq_retain"].short,
        "mmlu": general,
        "relearned": f"{forget} after relearning, the others",
        "relearned_all": f"{forget} after relearning",
        "probe": "probes on the forget set",
        "sweep_forget": f"{forget} along the edits",
        "sweep_mcq_forget": f"{mcq} along the edits",
        "sweep_retain_minus_forget": f"{retain} minus {forget} along the edits",
        "sweep_mmlu_minus_forget": f"{general} minus {forget} along the edits",
        "sweep_mmlu_minus_mcq_forget": f"{general} minus {mcq} along the edits",
        "sweep_mmlu_change_minus_forget": f"change of {general} minus {forget} along the edits",
        "layers_prompt": "probes on the whole prompt",
        "layers_athlete": "probes on the name alone",
        "late_attention_prompt": "lost without late attention, whole prompt",
        "late_attention_athlete": "lost without late attention, name alone",
        "head_ablation": "lost without one head",
        "selection_depth": "mean layer of the components",
        "selection_attention": "share of attention among the components",
    }[measure]


def counts(findings: Iterable[Judgement]) -> str:
    """How many claims got which verdict, in words; those that hold by construction are counted apart."""
    every = list(findings)
    found = [finding.verdict for finding in every if not finding.claim.circular]
    parts = [f"{found.count(v)} {v}" for v in VERDICTS if v in found]
    circular = sum(finding.claim.circular is not None for finding in every)
    return ", ".join([*parts, *([f"{circular} circular"] if circular else [])])


def verdict_of(finding: Judgement) -> str:
    """A verdict with what it is about: one seed's models, or circular."""
    notes = [
        *(["one seed"] if finding.seeds == 1 and finding.verdict in ("supported", "contradicted") else []),
        *(["circular"] if finding.claim.circular else []),
    ]
    return f"{finding.verdict} ({', '.join(notes)})" if notes else finding.verdict


def margin_of(item: Comparison | None) -> str:
    """A margin with its interval."""
    if item is None or item.margin is None or item.interval is None:
        return "–"
    unit = {"accuracy": "", "weights": " doublings", "layers": " layers"}[item.unit]
    return f"{item.margin:+.3f} [{item.interval[0]:+.3f}, {item.interval[1]:+.3f}]{unit}"


def sides(comparison: Comparison) -> str:
    """What was compared, with its numbers."""
    form = {"accuracy": ".3f", "weights": ",.0f", "layers": ".1f"}[comparison.unit]
    name = (comparison.localization or "base model").replace("_", " ")
    value = "" if comparison.value is None else f" {comparison.value:{form}}"
    other = "" if comparison.other is None else f" ({comparison.other:{form}})"
    return f"{name}{value} {comparison.bound.replace('_', ' ')}{other}"


def overview(findings: Sequence[Judgement]) -> list[str]:
    """One line per claim: says, verdict, margin, how its comparisons came out, where it is shown; and its verdicts elsewhere."""
    sets = list(dict.fromkeys(name for finding in findings for name in finding.elsewhere))
    heads = [
        "Claim",
        "Section",
        "Verdict",
        "Margin",
        "Comparisons",
        *(name.replace("_", " ") for name in sets),
        "Shown in",
    ]
    lines = [row(heads), "|---" * len(heads) + "|"]
    for finding in findings:
        claim = finding.claim
        cells = [
            escaped(claim.says),
            claim.section,
            verdict_of(finding),
            margin_of(finding.worst),
            finding.told,
            *(finding.elsewhere.get(name, "–") for name in sets),
            ", ".join(title(name) for name in claim.shown_in),
        ]
        lines.append(row(cells))
    return lines


def details(findings: Sequence[Judgement], prompt: terms.Prompt) -> list[str]:
    """Each claim with its reasoning and every comparison."""
    lines = []
    for finding in findings:
        claim = finding.claim
        lines += [f"### {claim.id}: {verdict_of(finding)}", "", claim.says, "", f"Bounds: {claim.why}", ""]
        if claim.caveat:
            lines += [f"Caveat: {claim.caveat}", ""]
        if claim.circular:
            lines += [f"Circular: {claim.circular}", ""]
        tested = [c for c in finding.comparisons if c.margin is not None]
        if tested:
            lines += [
                "| Task | Measure | Comparison | Margin | p for / against | Test | Items | Seeds | Outcome |",
                "|---|---|---|---|---|---|---:|---:|---|",
            ]
            lines += [
                f"| {c.task} {c.objective if c.localization else ''} | {words_of(c.measure, prompt)} | {sides(c)} | "
                f"{margin_of(c)} | {c.p_for:.3f} / {c.p_against:.3f} | {c.test} | {c.items} | {c.seeds} | {c.outcome} |"
                for c in tested
            ]
            lines.append("")
        if finding.reason:
            lines += [f"Not testable: {finding.reason}.", ""]
    return lines


def scope(findings: Sequence[Judgement], bases: int) -> tuple[str, str]:
    """What a run's verdicts are about: words for the title, and a sentence."""
    seeds = min((finding.seeds for finding in findings if finding.seeds), default=0)
    if seeds == 1:
        return "these models (one seed)", (
            "**One training seed: these are statements about these very models, not about the localizations.** Another "
            "seed moves accuracies by more than the intervals here, which cover test items alone."
        )
    if seeds > 1:
        many = terms.runs(seeds, bases if bases > 1 else 1)
        return f"these localizations ({many})", (
            f"At least {many} stand behind each comparison of localizations, and the intervals cover them."
        )
    return "the base model", "No comparison of localizations could be tested."


def run_page(
    run: str,
    findings: Sequence[Judgement],
    confidence: float,
    prompt: terms.Prompt = "training",
    accuracy: str = "choice",
    bases: int = 1,
) -> str:
    """``claims.md`` of a run.

    Args:
        run: its name.
        findings: the claims' verdicts.
        confidence: level of the intervals.
        prompt: with which prompt facts are asked.
        accuracy: how answers are scored.
        bases: how many base models there are.
    """
    about, sentence = scope(findings, bases)
    forget, retain = (terms.of_prompt(part, prompt) for part in ("forget", "retain"))
    lines = [
        f"# The paper's claims on {run}, as to {about}: {counts(findings)}",
        "",
        sentence,
        "",
        READING,
        "",
        f'"{forget.short}" and "{retain.short}" are asked with the {prompt} prompt, scored as {terms.ACCURACIES[accuracy]}, '
        f"as in the tables and figures (`measures`). Intervals: {100 * confidence:g} %, resampling items (questions of "
        "general knowledge within their subjects) and, where there are several, seeds; paired between models. p-values "
        "are one-sided and uncorrected. Guessing is to name one of the answers that occur, or to draw one of the options. "
        "Claims keep the paper's words: with other facts, read subject for athlete and answer for sport.",
        "",
        f"Tables lie in `tables/` beside this page, figures in `figures/{run}/`, those that were made; the report shows all.",
        "",
        *([ELSEWHERE, ""] if any(finding.elsewhere for finding in findings) else []),
        *overview(findings),
        "",
        "## Comparisons",
        "",
        *details(findings, prompt),
    ]
    return "\n".join(lines).rstrip() + "\n"


def ledger(tables: Sequence[Judgement], own: Sequence[question.Verdict], curves: Sequence[Judgement]) -> str:
    """``docs/claims-in-the-paper.md``: the claims judged on the paper's own numbers."""
    lines = [
        "# The paper's claims against the paper's own numbers",
        "",
        "Generated by `localized-unlearning ledger` from `workflow/resources/claims.yaml`; a test keeps it in step.",
        "No model was run: these are the numbers that the authors published for Gemma-7B, held to the same comparisons",
        "that `snakemake claims` holds a run to.",
        "",
        READING,
        "",
        "The paper gives one run and no error bars. Intervals here are what means over that many items allow (Jeffreys;",
        "MMLU's standard error is .004), with models taken as independent, since the items behind the means were not",
        "published; paired differences would be somewhat more certain, and points of one curve as independent where two are",
        "compared. **One seed: verdicts are about the paper's very models.** Its FORGET and RETAIN are the question prompt's.",
        "The base model was not published, nor multiple choice on the retain set.",
        "",
        f"## From Tables 1-4 alone: {counts(tables)}",
        "",
        *overview(tables),
        "",
        *details(tables, "question"),
    ]  # fmt: skip
    if own:
        lines += [
            "## Beside the paper: does localization inform unlearning?",
            "",
            "The claims of this project's own question, written down before it was run, on the rows of its",
            "[page](results/localization-question/README.md), which says how they were made and what they do not show.",
            "",
            "| Claim | Verdict | Why |",
            "|---|---|---|",
            *(row([escaped(word) for word in found]) for found in own),
            "",
        ]  # fmt: skip
    if curves:
        lines += [
            f"## From the released curves: {counts(curves)}",
            "",
            "Read at `--published FOLDER` from the authors' result files, which are not part of this project. After",
            "relearning, the paper's forget accuracy for single athletes includes the two that were relearned. Masks with",
            "no weight masked are left out: the released files do not hold the unedited model there.",
            "",
            *overview(curves),
            "",
            *details(curves, "question"),
        ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"
