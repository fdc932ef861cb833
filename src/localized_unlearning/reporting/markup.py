"""Tables as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localized_unlearning.paper.terms import Measure

NOTHING = {"label": "Base model", "components": (), "parameters": 0, "share_of_parameters": 0.0}
"""The base model's selection."""


def number(value: float) -> str:
    """A number as the paper prints it: three decimals."""
    return f"{value:.3f}"


def shown(measure: Measure, prompts: Sequence[str]) -> bool:
    """Whether the readable table has a column: all but those of the prompts that are not asked for."""
    return measure.prompt is None or measure.prompt in prompts


def interval(low: float, high: float) -> str:
    """An interval in few letters: ``[.061, .257]``."""
    return "[" + ", ".join(number(value).removeprefix("0") for value in (low, high)) + "]"


@dataclass(frozen=True)
class Panel:
    """One grid of a readable table: what it shows (empty: the title says it), headings and cells."""

    caption: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


def markdown(title: str, panels: Sequence[Panel], notes: Sequence[str]) -> str:
    """A Markdown table with title, panels and footnotes."""
    parts = [f"**{title}**"]
    for panel in panels:
        rule = ["---"] + ["---:"] * (len(panel.headings) - 1)
        parts += [panel.caption] if panel.caption else []
        rows = [[cell.replace("|", "\\|") for cell in row] for row in (panel.headings, rule, *panel.lines)]
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    parts.append("\n".join(f"{note}  " for note in notes))
    return "\n\n".join(parts) + "\n"


def clean(text: str) -> str:
    """Text as LaTeX takes it."""
    for old, new in (
        ("\\", r"\textbackslash "), ("{", r"\{"), ("}", r"\}"), ("%", r"\%"), ("&", r"\&"), ("_", r"\_"), ("#", r"\#"),
        ("$", r"\$"), ("~", r"\textasciitilde{}"), ("^", r"\textasciicircum{}"),
        ("↓", r"$\downarrow$"), ("↑", r"$\uparrow$"), ("†", r"\dag"), ("‡", r"\ddag"), ("§", r"\S"),
        ("λ", r"$\lambda$"), ("`", ""), ("**", ""),
    ):  # fmt: skip
        text = text.replace(old, new)
    return text


def latex(title: str, panels: Sequence[Panel], notes: Sequence[str]) -> str:
    """A LaTeX table (booktabs, graphicx) with title, panels and footnotes."""
    body: list[str] = []
    for panel in panels:
        body += [rf"\par\smallskip {clean(panel.caption)}\par"] if panel.caption else []
        body += [
            r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{l{'r' * (len(panel.headings) - 1)}}}", r"\toprule",
            " & ".join(clean(h) for h in panel.headings) + r" \\", r"\midrule",
            *[" & ".join(clean(c) for c in line) + r" \\" for line in panel.lines],
            r"\bottomrule", r"\end{tabular}}",
        ]  # fmt: skip
    return (
        "\n".join(
            [
                r"\begin{table}", r"\centering", rf"\caption{{{clean(title)}}}", *body,
                *[rf"\par\footnotesize {clean(note)}" for note in notes], r"\end{table}",
            ]
        )
        + "\n"
    )  # fmt: skip
