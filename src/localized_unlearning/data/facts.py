"""The facts: subjects and their answers, of any relation (section 2.1: athletes and their sports).

A facts file is CSV, Parquet, JSON or JSON lines with the columns ``subject`` and ``answer`` (or
``athlete`` and ``sport``, as in the paper's). Optional: ``aliases`` of the answer, separated by ``|``;
``group``, what several facts are about (forgotten together); ``split``, train or test. CounterFact's own file (Meng et
al. 2022) and question files such as RWKU's (Jin et al. 2024) are read as they are.
"""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from localized_unlearning.data.plain import COLUMNS, csv_rows, json_records, normalised
from localized_unlearning.errors import UserError

PARTS = ("train", "test")


@dataclass(frozen=True)
class Duplicates:
    """What the loader found: names that stand more than once, and pairs that differ in case or accents alone."""

    repeated: tuple[str, ...]
    dropped_rows: int
    twins: tuple[tuple[str, str], ...] = ()


def load_facts(
    path: Path, answers: Sequence[str] = (), relation: str | None = None
) -> tuple[pd.DataFrame, Duplicates]:
    """Subjects in file order, each once: columns ``subject``, ``answer``, ``rows`` and, if the file has them, ``group``
    and ``split``; all the answers, sorted or in the order of ``answers``, are in ``attrs["answers"]``.

    Names are in Unicode's composed form (NFC) without surplus spaces. ``rows`` lists the subject's positions in the
    file, which the released split needs. A name that is repeated with the same answer keeps its first row; the paper's
    file has seven such names.

    Args:
        path: the file.
        answers: the candidates that the prompts file lists; without them any answer is taken.
        relation: which of CounterFact's relations is meant.

    Raises:
        UserError: for a missing file or column, an answer that is not listed, an empty name, or one with two answers.
    """
    table = _columns(_read(path, relation), path)
    table["row"] = range(len(table))
    for column in ("subject", "answer"):
        table[column] = [normalised(name) for name in table[column]]
    if "aliases" in table.columns and answers:
        given = zip(table["answer"], table.pop("aliases"), strict=True)
        table["answer"] = [_canonical(answer, aliases, answers) for answer, aliases in given]
    listed = table["answer"].isin(answers) if answers else table["answer"] != ""
    wanted = f"one of {', '.join(answers)}" if answers else "an answer"
    bad = table[~listed | (table["subject"] == "")]
    if len(bad):
        row = bad.iloc[0]
        raise UserError(
            f"{path}, data row {row['row'] + 1}: {row['subject']!r} has the answer {row['answer']!r}, "
            f"but every row needs a name and {wanted}"
        )
    if "split" in table.columns and not table["split"].isin(PARTS).all():
        row = table[~table["split"].isin(PARTS)].iloc[0]
        raise UserError(
            f"{path}, data row {row['row'] + 1}: the split is {row['split']!r}, and must be train or test"
        )
    first: dict[str, str] = {}
    rows: dict[str, list[int]] = {}
    for number, (name, answer) in enumerate(zip(table["subject"], table["answer"], strict=True)):
        if first.setdefault(name, answer) != answer:
            raise UserError(
                f"{path} gives {name} two answers ({first[name]}, {answer}): keep one row for each"
            )
        rows.setdefault(name, []).append(number)
    repeated = table.loc[table["subject"].duplicated(), "subject"]
    kept = (
        table.drop_duplicates("subject")
        .drop(columns=["row", "aliases"], errors="ignore")
        .reset_index(drop=True)
    )
    kept["rows"] = list(rows.values())
    kept.attrs["answers"] = list(answers or sorted(set(kept["answer"])))
    return kept, Duplicates(tuple(dict.fromkeys(repeated)), len(repeated), _twins(list(kept["subject"])))


def _twins(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of names that differ in case or accents alone: perhaps one subject twice."""
    plain: dict[str, str] = {}
    found = []
    for name in names:
        bare = "".join(
            c for c in unicodedata.normalize("NFD", name) if not unicodedata.combining(c)
        ).casefold()
        other = plain.setdefault(bare, name)
        if other != name:
            found.append((other, name))
    return tuple(found)


def _canonical(answer: str, aliases: Any, answers: Sequence[str]) -> str:
    """The listed answer that an answer or one of its aliases is; the answer itself if none."""
    others = aliases if isinstance(aliases, list | tuple) else str(aliases).split("|")
    return next((a for a in (answer, *map(normalised, others)) if a in answers), answer)


def _columns(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The columns that are ours, under our names."""
    found: dict[str, Any] = {}
    for own, names in COLUMNS.items():
        name = next((n for n in names if n in table.columns), None)
        if name is not None:
            found[own] = list(table[name])
        elif own in ("subject", "answer"):
            raise UserError(
                f"{path} has no column '{names[0]}' (it has {', '.join(map(str, table.columns))}): "
                "name the columns subject and answer"
            )
    return pd.DataFrame(found, dtype=object)


def read_records(path: Path) -> list[Any]:
    """The records of a file of facts that is Parquet, JSON or JSON lines.

    Raises:
        UserError: when it cannot be read, or holds none.
    """
    found = _opened(path)
    return _records(found.to_dict("records") if isinstance(found, pd.DataFrame) else found, path)


def _records(found: list[Any], path: Path) -> list[Any]:
    if not found or not all(isinstance(record, Mapping) for record in found):
        raise UserError(f"the facts file {path} holds no records: give objects with subject and answer")
    return found


def _read(path: Path, relation: str | None) -> pd.DataFrame:
    """A file's rows, whatever its format; CounterFact's and RWKU's under our columns' names."""
    found = _opened(path)
    return found if isinstance(found, pd.DataFrame) else _known_shapes(_records(found, path), path, relation)


def _opened(path: Path) -> pd.DataFrame | list[Any]:
    """A CSV's rows, or the records of another format."""
    try:
        with path.open("rb") as stream:
            start = stream.read(64).lstrip()
        if start.startswith(b"PAR1"):
            return list(pd.read_parquet(path).to_dict("records"))
        return json_records(path) if start[:1] in (b"[", b"{") else _csv(path)
    except FileNotFoundError:
        raise UserError(f"the facts file {path} does not exist: check athletes.source") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"the facts file {path} is no CSV in UTF-8: {error}") from None
    except (OSError, ValueError) as error:  # pyarrow's are among these
        raise UserError(
            f"the facts file {path} cannot be read ({str(error).splitlines()[0]}): bring it again"
        ) from None


def _csv(path: Path) -> pd.DataFrame:
    """Rows of fields between commas, or between tabs or semicolons where the header has those and no comma."""
    rows = csv_rows(path)
    if not rows:
        raise csv.Error("it is empty")
    header = rows[0]
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(header):
            raise UserError(
                f"{path}, data row {number}: {len(row)} fields where the header has {len(header)}: check the commas and "
                "quotation marks"
            )
    return pd.DataFrame(rows[1:], columns=header, dtype=object)


def _known_shapes(records: Sequence[Any], path: Path, relation: str | None) -> pd.DataFrame:
    first = records[0]
    if "requested_rewrite" in first or {"relation_id", "target_true", "subject"} <= set(first):
        return _counterfact(records, path, relation)
    if {"query", "answer", "subject"} <= set(first):  # RWKU: several questions about each subject
        return pd.DataFrame(
            {
                "subject": [r["query"] for r in records],
                "answer": [r["answer"] for r in records],
                "group": [r["subject"] for r in records],
            }
        )
    return pd.DataFrame(records)


def _counterfact(records: Sequence[Mapping[str, Any]], path: Path, relation: str | None) -> pd.DataFrame:
    """CounterFact's subjects and true answers of one relation."""
    rewrites = [record.get("requested_rewrite", record) for record in records]
    counts = Counter(str(r["relation_id"]) for r in rewrites)
    if (relation is None and len(counts) > 1) or (relation is not None and relation not in counts):
        most = ", ".join(f"{name} ({n})" for name, n in counts.most_common(8))
        raise UserError(
            f"{path} is CounterFact with {len(counts)} relations: set athletes.relation to one of them, as {most}; or "
            "ask every fact by its own prompt: set athletes.own_prompts"
        )
    kept = [r for r in rewrites if relation in (None, str(r["relation_id"]))]
    answers = [
        r["target_true"]["str"] if isinstance(r["target_true"], Mapping) else r["target_true"] for r in kept
    ]
    return pd.DataFrame(
        {"subject": [r["subject"] for r in kept], "answer": [str(a).strip() for a in answers]}
    )
