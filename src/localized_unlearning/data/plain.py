"""What is read of a facts file without pandas: where the Snakefile asks, in every job."""

from __future__ import annotations

import csv
import json
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


def json_records(path: Path) -> list[Any]:
    """The objects of a JSON list, or of JSON lines."""
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def pairs_in(path: Path, relation: str | None = None) -> list[tuple[str, str]] | None:
    """Subject and answer of each row of a CSV or JSON file; None for any other, and for one that the first job refuses."""
    try:
        with path.open("rb") as stream:
            start = stream.read(64).lstrip()[:1]
        if start in (b"[", b"{"):
            pairs = [pair for record in json_records(path) if (pair := _of_record(record, relation))]
            return [(normalised(subject), normalised(answer)) for subject, answer in pairs]
        header, *rows = csv_rows(path)
        places = [
            next(header.index(name) for name in COLUMNS[column] if name in header)
            for column in ("subject", "answer")
        ]
        return [(normalised(row[places[0]]), normalised(row[places[1]])) for row in rows]
    except (OSError, csv.Error, ValueError, StopIteration, IndexError, KeyError, AttributeError, TypeError):
        return None


def _of_record(record: Mapping[str, Any], relation: str | None) -> tuple[str, str] | None:
    """Subject and answer of CounterFact's, RWKU's or one's own record; None of another relation than is meant."""
    rewrite = record.get("requested_rewrite", record)
    if "relation_id" in rewrite:
        true = rewrite["target_true"]
        said = true["str"] if isinstance(true, Mapping) else true
        return (rewrite["subject"], said) if relation in (None, rewrite["relation_id"]) else None
    if "query" in record:
        return record["query"], record["answer"]
    subject, answer = (
        next(record[name] for name in COLUMNS[column] if name in record) for column in ("subject", "answer")
    )
    return subject, answer
