"""What is read of a facts file without pandas: where the Snakefile asks, in every job."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "subject": ("subject", "athlete"),
    "answer": ("answer", "sport"),
    "aliases": ("aliases",),
    "group": ("group",),
    "split": ("split",),
}
"""Our columns, and what files call them."""


def normalised(name: Any) -> str:
    """A name in Unicode's composed form, with single spaces and none around it."""
    return " ".join(unicodedata.normalize("NFC", str(name)).split())


def csv_rows(path: Path) -> list[list[str]]:
    """Rows of fields between commas, or between tabs or semicolons where the header has those and no comma.

    Raises:
        OSError, UnicodeDecodeError, csv.Error: when the file is no such table.
    """
    with path.open(newline="", encoding="utf-8-sig") as stream:
        first = stream.readline()
        stream.seek(0)
        mark = next((m for m in ",\t;" if m in first), ",")
        return [row for row in csv.reader(stream, delimiter=mark, strict=True) if row]


def pairs_in(path: Path) -> list[tuple[str, str]] | None:
    """Subject and answer of each row of a CSV file; None for any other, and for one that the first job refuses."""
    try:
        with path.open("rb") as stream:
            if stream.read(4).lstrip()[:1] in (b"[", b"{") or not path.is_file():
                return None
        header, *rows = csv_rows(path)
        places = [
            next(header.index(name) for name in COLUMNS[column] if name in header)
            for column in ("subject", "answer")
        ]
        return [(normalised(row[places[0]]), normalised(row[places[1]])) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, StopIteration, IndexError):
        return None
