"""Tables as Markdown and LaTeX: text of users, such as a label, stays text in both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from localized_unlearning.paper.terms import KNOWERS, Measure

NOTHING = {"label": KNOWERS["base"], "components": (), "parameters": 0, "share_of_parameters": 0.0}
"""The base model's selection."""


def number(value: float) -> str:
    """A number as the paper prints it: three decimals."""
    return f"{round(value, 3) + 0.0:.3f}"  # no minus before a zero


def is_shown(measure: Measure, prompts: Sequence[str]) -> bool:
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


SPECIAL = re.compile(r"[\\`|<>$~]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|&(?=#?\w+;)|(?<!\*)\*(?!\*)")
"""What Markdown, HTML in it, or the mathematics of many viewers would read as more than a letter; ``**`` stays bold."""


def escaped(text: str) -> str:
    """Text as Markdown shows it letter by letter, on one line."""
    return SPECIAL.sub(lambda found: ENTITIES.get(found[0], "\\" + found[0]), " ".join(text.split()))


ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
"""What HTML reads; the last one is undone last."""


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table; a line break or a bar in a cell ends no cell."""
    return "| " + " | ".join(cells) + " |"


def unescaped(text: str) -> str:
    """What :func:`escaped` was given."""
    plain = re.sub(r"\\([\\`|$~_\]*])", r"\1", text)
    for letter, entity in ENTITIES.items():
        plain = plain.replace(entity, letter)
    return plain


def cells(line: str) -> list[str]:
    """The cells of a Markdown table's row, as they were before :func:`escaped`."""
    found = re.split(r"(?<!\\)(?:\\\\)*\|", line.strip().removeprefix("|").removesuffix("|"))
    return [unescaped(cell.strip()) for cell in found]


def markdown(title: str, panels: Sequence[Panel], notes: Sequence[str]) -> str:
    """A Markdown table with title, panels and footnotes."""
    parts = [f"**{escaped(title)}**"]
    for panel in panels:
        rule = ["---"] + ["---:"] * (len(panel.headings) - 1)
        parts += [escaped(panel.caption)] if panel.caption else []
        lines = [[escaped(cell) for cell in line] for line in (panel.headings, *panel.lines)]
        parts.append("\n".join(row(line) for line in (lines[0], rule, *lines[1:])))
    parts.append("\n".join(f"{note}  " for note in notes))
    return "\n\n".join(parts) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "†": r"\dag{}",
    "‡": r"\ddag{}", "§": r"\S{}", "λ": r"$\lambda$", "–": "--", "`": "",
    "×": r"$\times$", "±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$", "−": "$-$", "→": r"$\to$",
    "·": r"$\cdot$", "½": r"$\frac12$", "Δ": r"$\Delta$", "α": r"$\alpha$", "ρ": r"$\rho$", "τ": r"$\tau$",
}  # fmt: skip
"""What LaTeX reads as more than a letter, and what it has no letter for."""


def clean(text: str) -> str:
    """Text as LaTeX takes it, on one line; each character is replaced once."""
    line = " ".join(text.replace("**", "").split())
    return "".join(LATEX.get(letter, letter) for letter in line)


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
                r"% \usepackage{booktabs,graphicx}",
                r"\begin{table}", r"\centering", rf"\caption{{{clean(title)}}}", *body,
                *[rf"\par\footnotesize {clean(note)}" for note in notes], r"\end{table}",
            ]
        )
        + "\n"
    )  # fmt: skip
