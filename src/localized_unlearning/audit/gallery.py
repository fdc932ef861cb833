"""A run beside the gallery's: do its numbers lie within the spread that both state?

The gallery has no records, and a machine that rounds otherwise pretrains another base model, so bytes say nothing. Each
number has its interval, over items and, where a run has several, over base models: two numbers agree when they differ
by no more than their intervals together allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

VALUES = ("mean", "low", "high")
OTHER = frozenset(
    ("n", "seeds", "sets", "bases", "seed_sd", "covers", "paper", "components", "parameters", "share_of_parameters",
     "recall", "modal", "base_standing", "label", "chance", "confidence", "majority", "masked")
)  # fmt: skip
"""Columns that say something of a number, but not which number it is."""
POINTS = ("iteration", "edit_size", "layer", "head", "ablated")
"""Columns of numbers that say which number it is."""
EXPECTED, ALLOWED = 0.05, 0.10
"""Share of numbers outside that chance makes, and up to which a run agrees: numbers of one table move together."""


@dataclass(frozen=True)
class Beside:
    """A table or figure of a run beside the gallery's.

    Attributes:
        name: of the CSV.
        numbers: how many both have.
        outside: those that differ by more, as text.
        only: how many one side alone has.
    """

    name: str
    numbers: int
    outside: tuple[str, ...]
    only: int


def is_gallery(folder: Path) -> bool:
    """Whether a folder holds CSVs of tables or figures and no records."""
    return folder.is_dir() and any(folder.glob("*_*.csv")) and not any(folder.rglob("*.record.json"))


def tables(folder: Path) -> dict[str, Path]:
    """A gallery's, or a run's, CSVs of tables and figures by name."""
    run = folder.parents[1] / "figures" / folder.name if folder.parent.name == "results" else folder
    places = (folder, folder / "tables", run)
    paths = [path for place in places for path in sorted(place.glob("*.csv"))]
    return {path.name: path for path in paths if path.stem.startswith(("table_", "figure_"))}


def beside(one: Path, other: Path) -> Beside:
    """Compare two CSVs of a table or figure, number by number."""
    a, b = (pd.read_csv(path) for path in (one, other))
    if not set(VALUES) <= set(a.columns) & set(b.columns):
        return Beside(one.name, 0, (), len(a))
    keys = [name for name in a.columns if name in b.columns and name not in (*VALUES, *OTHER)]
    keys = [name for name in keys if not pd.api.types.is_numeric_dtype(a[name]) or name in POINTS]
    both = a[[*keys, *VALUES]].merge(b[[*keys, *VALUES]], on=keys, suffixes=("", "_b"))
    above = (both["mean"] >= both["mean_b"]).to_numpy()
    first = np.where(above, both["mean"] - both["low"], both["high"] - both["mean"])
    second = np.where(above, both["high_b"] - both["mean_b"], both["mean_b"] - both["low_b"])
    gap = (both["mean"] - both["mean_b"]).abs().to_numpy()
    outside = both[gap > np.hypot(first, second) + 1e-9]
    told = [
        f"{', '.join(str(row[key]) for key in keys if pd.notna(row[key]))}: {row['mean']:.3f} | {row['mean_b']:.3f}"
        for _, row in outside.iterrows()
    ]
    return Beside(one.name, len(both), tuple(told), len(a) + len(b) - 2 * len(both))


def compare(gallery: Path, run: Path) -> list[Beside]:
    """Every table and figure that both have."""
    ours, theirs = tables(gallery), tables(run)
    return [beside(ours[name], theirs[name]) for name in ours if name in theirs]


def agrees(found: Sequence[Beside]) -> bool:
    """Whether no more numbers lie outside than chance and one table's moving together explain."""
    numbers = sum(f.numbers for f in found)
    return numbers > 0 and sum(len(f.outside) for f in found) <= ALLOWED * numbers


def lines(found: Sequence[Beside], listed: int = 20) -> Iterator[str]:
    """The comparison for people: a verdict, then the numbers outside."""
    numbers, outside = sum(f.numbers for f in found), sum(len(f.outside) for f in found)
    if not numbers:
        yield "Nothing to compare: the two have no table or figure in common."
        return
    head = "Agrees" if agrees(found) else "Does not agree"
    yield (
        f"{head}: {outside:,} of {numbers:,} numbers of {len(found)} tables and figures differ by more than their intervals "
        f"together allow (chance: {EXPECTED:.0%}, up to {ALLOWED:.0%} agrees)."
    )
    told = [f"{f.name}: {text}" for f in found for text in f.outside]
    yield from told[:listed]
    if len(told) > listed:
        yield f"... and {len(told) - listed} more"
