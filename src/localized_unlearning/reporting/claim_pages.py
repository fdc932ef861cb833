"""Findings as Markdown: a run's ``claims.md`` and the ledger of the paper's own numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from localized_unlearning.analysis.claims.verdicts import Comparison, Finding

VERDICTS = ("supported", "partly", "not supported", "not testable")

READING = (
    "A claim is **supported** when every comparison it makes holds: its interval lies on the claim's side. It is **not "
    "supported** when none holds or fewer than half point its way, which may mean too few items rather than the "
    "opposite; **partly** supported in between, or when some comparisons cannot be tested; **not testable** when none can. The margin is that of the worst comparison: how far, in accuracy, the number lies on "
    "the claim's side of its bound."
)

ELSEWHERE = (
    "Verdict, margin and the comparisons below are about the paper's forget sets. The columns named after other forget sets "
    "say what the same comparisons come to with those in their place, as far as the run has their models."
)

MEASURES = {
    "forget": "forget",
    "retain": "retain",
    "mcq_forget": "MCQ forget",
    "mmlu": "MMLU",
    "relearned": "forget after relearning",
    "probe": "probes, forget",
    "sweep_forget": "forget along the edits",
    "sweep_mcq_forget": "MCQ forget along the edits",
    "sweep_retain_minus_forget": "retain minus forget along the edits",
    "sweep_mmlu_minus_forget": "MMLU minus forget along the edits",
    "sweep_mmlu_minus_mcq_forget": "MMLU minus MCQ forget along the edits",
    "layers_prompt": "probes, whole prompt",
    "layers_athlete": "probes, name alone",
    "late_attention_prompt": "lost without late attention, whole prompt",
    "late_attention_athlete": "lost without late attention, name alone",
    "head_ablation": "lost without one head",
}
"""Measures in words."""


def counts(findings: Iterable[Finding]) -> str:
    """How many claims got which verdict, in words."""
    found = [finding.verdict for finding in findings]
    return ", ".join(f"{found.count(v)} {v}" for v in VERDICTS if v in found)


def margin_of(item: Finding | Comparison) -> str:
    """A margin with its interval."""
    if item.margin is None or item.interval is None:
        return "–"
    return f"{item.margin:+.3f} [{item.interval[0]:+.3f}, {item.interval[1]:+.3f}]"


def sides(comparison: Comparison) -> str:
    """What was compared, with its numbers."""
    name = (comparison.localization or "base model").replace("_", " ")
    value = "" if comparison.value is None else f" {comparison.value:.3f}"
    other = "" if comparison.other is None else f" ({comparison.other:.3f})"
    return f"{name}{value} {comparison.bound.replace('_', ' ')}{other}"


def overview(findings: Sequence[Finding], links: Mapping[str, str]) -> list[str]:
    """One line a claim: says, verdict, margin, comparisons held, where it is shown; and its verdicts elsewhere."""
    sets = list(dict.fromkeys(name for finding in findings for name in finding.elsewhere))
    heads = [
        "Claim",
        "Section",
        "Verdict",
        "Margin",
        "Held",
        *(name.replace("_", " ") for name in sets),
        "Shown in",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for finding in findings:
        claim = finding.claim
        cells = [
            claim.says,
            claim.section,
            finding.verdict,
            margin_of(finding),
            f"{finding.held} of {len(finding.comparisons)}",
            *(finding.elsewhere.get(name, "–") for name in sets),
            ", ".join(_link(name, links) for name in claim.shown_in),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _link(name: str, links: Mapping[str, str]) -> str:
    title = name.replace("_", " ").capitalize()
    return f"[{title}]({links[name]})" if name in links else title


def details(findings: Sequence[Finding]) -> list[str]:
    """Each claim with its reasoning and every comparison."""
    lines = []
    for finding in findings:
        claim = finding.claim
        lines += [f"### {claim.id}: {finding.verdict}", "", claim.says, "", f"Bounds: {claim.why}", ""]
        if claim.caveat:
            lines += [f"Beware: {claim.caveat}", ""]
        tested = [c for c in finding.comparisons if c.margin is not None]
        if tested:
            lines += [
                "| Task | Measure | Comparison | Margin | Items | Seeds | Outcome |",
                "|---|---|---|---|---:|---:|---|",
            ]
            lines += [
                f"| {c.task} {c.objective if c.localization else ''} | {MEASURES[c.measure]} | {sides(c)} | "
                f"{margin_of(c)} | {c.items} | {c.seeds} | {c.outcome} |"
                for c in tested
            ]
            lines.append("")
        if finding.reason:
            lines += [f"Not testable: {finding.reason}.", ""]
    return lines


def run_page(run: str, findings: Sequence[Finding], confidence: float, links: Mapping[str, str]) -> str:
    """``claims.md`` of a run."""
    lines = [
        f"# The paper's claims on {run}: {counts(findings)}",
        "",
        READING,
        "",
        f"Intervals: {100 * confidence:g} %, resampling items (general knowledge by subject) and, where there are several, "
        "seeds; paired between models. With one seed they do not show how results vary between seeds.",
        "",
        *([ELSEWHERE, ""] if any(finding.elsewhere for finding in findings) else []),
        *overview(findings, links),
        "",
        "## Comparisons",
        "",
        *details(findings),
    ]
    return "\n".join(lines).rstrip() + "\n"


def ledger(tables: Sequence[Finding], curves: Sequence[Finding]) -> str:
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
        "published; paired differences would be somewhat more certain. Variation between seeds is not in them. The base",
        "model was not published either.",
        "",
        f"## From Tables 1-4 alone: {counts(tables)}",
        "",
        *overview(tables, {}),
        "",
        *details(tables),
    ]  # fmt: skip
    if curves:
        lines += [
            f"## From the released curves: {counts(curves)}",
            "",
            "Read at `--published FOLDER` from the authors' result files, which are not part of this project. After",
            "relearning, the paper's forget accuracy for single athletes includes the two that were relearned. Masks with",
            "no weight masked are left out: the released files do not hold the unedited model there.",
            "",
            *overview(curves, {}),
            "",
            *details(curves),
        ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"
