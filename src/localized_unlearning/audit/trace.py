"""What is behind a file, down to the data, and which recorded file a stray copy is."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from localized_unlearning.audit.findings import Audit
from localized_unlearning.audit.index import Entry
from localized_unlearning.audit.words import plain, short, shown
from localized_unlearning.errors import UserError
from localized_unlearning.paper import terms
from localized_unlearning.provenance import hashing, records

LARGEST_WITH_KEY = 1 << 26  # bytes; larger files are no figures or tables, and carry no key


@dataclass(frozen=True)
class Origin:
    """What a stray file is: the recorded output, and whether it was told by its bytes or by its key alone."""

    path: Path
    same_bytes: bool


def keys_in(path: Path) -> set[str]:
    """What may be a job's key in a file: PDF and PNG carry it among their keywords, .md, .svg and .tex in a comment."""
    if path.stat().st_size > LARGEST_WITH_KEY:
        return set()
    with open(hashing.open_plain(path), "rb") as stream:
        return {m.decode() for m in re.findall(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", stream.read())}


def find_by_content(audit: Audit, path: Path) -> Origin | None:
    """The recorded output that a stray file is: by its bytes, else by the key that it carries."""
    sha256, keys = audit.digests.of(path).sha256, keys_in(path)
    by_key = None
    for entry in audit.index.entries.values():
        for output in entry.record.outputs:
            if output.sha256 == sha256:
                return Origin(entry.folder / output.path, True)
            if entry.record.key in keys and output.path.endswith(path.suffix):
                by_key = Origin(entry.folder / output.path, False)
    return by_key


def tree(audit: Audit, path: Path, only: Collection[int] | None = None) -> dict[str, Any]:
    """Everything behind a file, as nested mappings down to the data.

    A job is described where it first appears; later mentions carry ``"above": true``.

    Args:
        audit: the records.
        path: the file.
        only: which of the inputs of its own job are followed, by number; None follows all.
    """
    return _node(audit, path, None, set(), only)


def _node(
    audit: Audit,
    path: Path | None,
    given: records.Input | None,
    seen: set[Path],
    only: Collection[int] | None = None,
) -> dict[str, Any]:
    entry = audit.index.producer(path) if path is not None else None
    node: dict[str, Any] = {"path": plain(given.path) if path is None and given else shown(path or Path())}
    if given is not None:
        node |= {"input": given.name, "sha256": given.sha256}
    if entry is None or path is None:
        return node
    record = entry.record
    node |= {
        "sha256": node.get("sha256") or records.digest_in(record, entry.folder, path),
        "stage": record.stage,
        "wildcards": record.wildcards,
        "key": record.key,
        "record": record.id,
        "currency": audit.currency(entry).status,
    }
    if record.adopted:
        node["adopted"] = record.adopted.reason
    if record.restored:
        node["restored"] = record.restored.record
    if entry.place in seen:
        return node | ({"above": True} if record.inputs else {})
    seen.add(entry.place)
    followed = [
        pair for number, pair in enumerate(audit.index.inputs(entry)) if only is None or number in only
    ]
    node["inputs"] = [_node(audit, place, given, seen) for given, place in followed]
    return node


class Cell(NamedTuple):
    """A part of a table or figure: its rows in the tidy CSV, and which inputs of its job they rest on."""

    rows: list[dict[str, str]]
    inputs: list[int]


def cell(audit: Audit, path: Path, words: Sequence[str]) -> Cell:
    """The rows of a table's or figure's CSV that hold all of ``words``, and the inputs they rest on.

    An input counts when it is about the same model or point (equal values in the columns that both have) and,
    where the CSV names a measure or panel, holds the rows that it is taken from.

    Raises:
        UserError: when there is no CSV or no such row.
    """
    import pandas as pd

    entry = audit.index.producer(path)
    table = next(iter(_csv_of(entry)), None) if entry else None
    if entry is None or table is None:
        raise UserError(
            f"{shown(path)} has no CSV of its numbers beside it: --cell is for tables and figures"
        )
    data = pd.read_csv(table, dtype=str, keep_default_na=False)
    rows = [
        row
        for values in data.itertuples(index=False)
        if set(words)
        <= set((row := dict(zip(map(str, data.columns), map(str, values), strict=True))).values())
    ]
    if not rows:
        named = data[[c for c in data.columns if data[c].nunique() <= 40 and not _is_number(data[c].iloc[0])]]
        values = "; ".join(f"{c}: {', '.join(named[c].unique())}" for c in named.columns)
        raise UserError(f"no row of {shown(table)} holds {' and '.join(words)}; there are {values}")
    sources = {source for row in rows if (source := _source_of(row))}
    inputs = [
        number
        for number, (given, place) in enumerate(audit.index.inputs(entry))
        if (not sources or _stem(given) not in ROWS or _stem(given) in sources)
        and (place is None or any(_is_about(place, row) for row in rows))
    ]
    return Cell(rows, inputs)


ROWS = ("facts", "multiple_choice", "mmlu", "text")  # files of per-item rows, by the measure they are for


def _csv_of(entry: Entry) -> Iterator[Path]:
    for output in entry.record.outputs:
        found = entry.folder / output.path
        if found.suffix == ".csv" and found.is_file():
            yield found


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?|", text) is not None


def _stem(given: records.Input) -> str:
    return Path(given.path).stem


def _source_of(row: Mapping[str, str]) -> str | None:
    """Which rows the measure of a table, or the panel of a figure, is taken from."""
    name = row.get("column") or row.get("panel") or ""
    try:
        return (terms.BY_NAME.get(name) or terms.panel(name, "training")).source
    except KeyError:
        return None


def _is_about(path: Path, row: Mapping[str, str]) -> bool:
    """Whether an input is about what a row is about, as far as both say."""
    import pandas as pd

    shared = {name: row[name] for name in ("task", "objective", "localization", "seed") if row.get(name)}
    if shared.get("task") == "all":
        del shared["task"]  # a mean over forget sets
    if path.suffix == ".json":
        found = json.loads(path.read_text(encoding="utf-8"))
        return all(str(found[name]) == value for name, value in shared.items() if name in found)
    if path.suffix != ".parquet":
        return True
    frame = pd.read_parquet(path)
    frame = frame[[name for name in shared if name in frame]].drop_duplicates().astype(str)
    asked = tuple(shared[name] for name in frame.columns)
    return not asked or asked in set(frame.itertuples(index=False, name=None))


def tree_lines(node: Mapping[str, Any], indent: str = "", link: str = "") -> Iterator[str]:
    """A :func:`tree` as text."""
    job = (
        ", ".join([node["stage"], *(f"{k} {v}" for k, v in node["wildcards"].items())])
        if "stage" in node
        else "data"
    )
    marks = [job, short(node["sha256"])] if node.get("sha256") else [job]
    if node.get("currency") in ("stale", "orphan"):
        marks.append(node["currency"])
    if "adopted" in node:
        marks.append(f"adopted: {node['adopted']}")
    if "restored" in node:
        marks.append(f"restored from record {short(node['restored'])}")
    yield f"{indent}{link}{node['path']}  [{'; '.join(marks)}]{'  (see above)' if 'above' in node else ''}"
    below = indent + {"": "", "├─ ": "│  ", "└─ ": "   "}[link]
    inputs = node.get("inputs", [])
    for number, inner in enumerate(inputs):
        yield from tree_lines(inner, below, "└─ " if number == len(inputs) - 1 else "├─ ")
