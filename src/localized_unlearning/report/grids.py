"""Tables of Markdown as the page shows them: numbers apart from intervals, marked by the base model, gold and the best."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from localized_unlearning.paper.terms import KNOWERS
from localized_unlearning.reporting.markup import cells, unescaped


def blocks(markdown: str) -> Iterator[dict[str, Any]]:
    """The tables (``head``, ``rows``) and paragraphs (``text``) of the Markdown that stages write."""
    for part in re.split(r"\n\s*\n|  \n", markdown):
        lines = part.strip().splitlines()
        if not lines or lines[0].startswith(("# ", "<!--")):
            continue
        if lines[0].startswith("|"):
            head, _, *rows = [cells(line) for line in lines]
            yield {"head": head, "rows": marked(head, [[cell(c) for c in row] for row in rows])}
        else:
            yield {"text": unescaped(" ".join(lines))}


def cell(text: str) -> dict[str, Any]:
    """A cell's number and, apart from it, what stands in brackets behind it."""
    found = re.fullmatch(r"([\d.,+-]+) ([\[(].*)", text)
    shown = {"text": found[1], "interval": found[2]} if found else {"text": text, "interval": ""}
    return {**shown, "best": "", "title": "", "base": "", "gold": ""}


def marked(head: Sequence[str], rows: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Rows in which each number says how far it is from the base model's and from gold's, and which are best.

    ``base`` and ``gold`` are those distances, signed; ``title`` says them in words. ``best`` is ``best`` for the best
    trained model of a column with an arrow, and ``near`` for those whose interval holds that value. Of forgetting gold is
    the aim, where it is there: ``best`` is nearest to it, and ``near`` has it in its interval. A column in which the base
    model is at chance or below (†, ‡), or in which all are equal, has no best.
    """
    known = {name: next((r for r in rows if r[0]["text"] == label), None) for name, label in KNOWERS.items()}
    trained = [row for row in rows if not any(row is other for other in known.values())]
    for column, title in enumerate(head):
        if not re.search("[↓↑]", title):
            continue
        starts = {name: _number(row, column) for name, row in known.items() if row is not None}
        numbers = {id(row): value for row in trained if (value := _number(row, column)) is not None}
        aim = _aim(title, numbers.values(), starts.get("gold"))
        for row in (*trained, *([known["gold"]] if known["gold"] is not None else [])):
            value = _number(row, column)
            if value is None:
                continue
            for name in ("base", "gold"):
                start = starts.get(name)
                if start is not None and row is not known[name]:
                    row[column][name] = f"{round(value - start, 3) + 0.0:+.3f}"
            row[column]["title"] = ", ".join(
                f"{row[column][name]} against {'the base model' if name == 'base' else 'gold'}"
                for name in ("base", "gold")
                if row[column][name]
            )
            if row is not known["gold"] and not re.search("[†‡]", title) and len(set(numbers.values())) > 1:
                row[column]["best"] = _place(value, row[column]["interval"], aim, numbers.values())
    return rows


def _aim(title: str, values: Iterable[float], gold: float | None) -> float:
    """What the models of a column should reach: gold in columns of forgetting, else the best value there is."""
    if gold is not None and FORGETTING.search(title):
        return gold
    return (min if "↓" in title else max)(values, default=0.0)


def _place(value: float, interval: str, aim: float, values: Iterable[float]) -> str:
    low, high = _ends(interval)
    if abs(value - aim) <= min(abs(other - aim) for other in values):
        return "best"
    return "near" if low <= aim <= high else ""


FORGETTING = re.compile("forget.*↓", re.I)
"""Columns in which gold is the aim: below it a model avoids the answer, above it still knows."""


def _number(row: Sequence[Mapping[str, Any]], column: int) -> float | None:
    text = row[column]["text"] if column < len(row) else ""
    return float(text) if re.fullmatch(r"[+-]?\d*\.\d+|\d+", text) else None


def _ends(interval: str) -> tuple[float, float]:
    """The ends of ``[.061, .257] ...``; of nothing, an interval that holds nothing."""
    found = re.match(r"\[([-+.\d]+), ([-+.\d]+)\]", interval)
    return (float(found[1]), float(found[2])) if found else (math.inf, -math.inf)


HEADLINE = re.compile("^(Localization|Question forget|Question retain|MCQ forget|MMLU)")
"""The columns that the page begins with: what fits a phone."""


def headline(grid: Mapping[str, Any]) -> dict[str, Any]:
    """The main columns of a table, as one of :func:`blocks`; in place of intervals, the distance to gold of forgetting."""
    kept = [index for index, title in enumerate(grid["head"]) if HEADLINE.match(title)]
    rows = [
        [
            {**row[i], "interval": f"{row[i]['gold']}" if FORGETTING.search(grid["head"][i]) else ""}
            for i in kept
        ]
        for row in grid["rows"]
    ]
    return {"head": [grid["head"][index] for index in kept], "rows": rows}
