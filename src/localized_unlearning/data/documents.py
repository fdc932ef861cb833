"""Plain text, document by document: a line each, JSON lines, a list of JSON or Parquet, compressed or not.

A file's format is told by its first bytes, not by its name: gzip and zstd (the Pile's ``*.jsonl.zst``) are unpacked as
they are read; a JSON document, and a row of Parquet, has its text in a field ``text``.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from localized_unlearning.errors import UserError

ZSTD, GZIP, PARQUET = bytes.fromhex("28b52ffd"), b"\x1f\x8b", b"PAR1"
"""What files of these formats begin with."""

FORMATS = "text in UTF-8 (a document per line), JSON lines, a list of JSON or Parquet with a field 'text', as it is, .gz or .zst"


def read_documents(path: Path, limit: int | None = None) -> list[str]:
    """The first ``limit`` documents of a file that are not empty; all of them without a limit.

    Raises:
        UserError: when the file is of no format that is read, is damaged, or a document has no ``text``.
    """
    try:
        return list(itertools.islice(filter(str.strip, _documents(path)), limit))
    except FileNotFoundError:
        raise UserError(f"the text {path} does not exist: check text.train and text.held_out") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:  # pyarrow's are among these
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"the text {path} cannot be read ({why}): bring it again; it may be {FORMATS}"
        ) from error


def _documents(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        start = file.read(4)
    if start == PARQUET:
        yield from _parquet(path)
        return
    with _unpacked(path, start) as stream:
        first = next((line for line in stream if line.strip()), "")
        lines = itertools.chain([first], stream)
        if first.lstrip().startswith("[") and _is_json(first):
            yield from _list("".join(lines), path)
        else:
            yield from _lines(lines, path)


def _unpacked(path: Path, start: bytes) -> IO[str]:
    if start.startswith(GZIP):
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig")
    if start == ZSTD:
        import pyarrow

        return io.TextIOWrapper(pyarrow.input_stream(str(path), compression="zstd"), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _parquet(path: Path) -> Iterator[str]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    if "text" not in file.schema_arrow.names:
        raise UserError(
            f"{path} has no column 'text' (it has {', '.join(file.schema_arrow.names)}): rename one"
        )
    done = 0
    for batch in file.iter_batches(columns=["text"]):
        for text in batch.column(0).to_pylist():
            done += 1
            yield _text(text, f"{path}, row {done}")


def _is_json(first: str) -> bool:
    """Whether the line that opens with a bracket opens a list of JSON, and is no text of a document."""
    rest = first.lstrip()[1:].lstrip()
    return rest[:1] in ("", "{", '"', "]")


def _list(text: str, path: Path) -> Iterator[str]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} begins as a list of JSON and is none ({error}): bring it again") from None
    for number, entry in enumerate(found, 1):
        yield _text(entry, f"{path}, document {number}")


def _lines(lines: Iterator[str], path: Path) -> Iterator[str]:
    """A document per line; all lines are JSON, or none is."""
    as_json: bool | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = _object(line)
        if as_json is None:
            as_json = entry is not None
        if not as_json:
            if entry is not None and "text" in entry:
                raise UserError(
                    f"{path} has JSON with a field 'text' in line {number} and none before: correct it"
                )
            yield line
        elif entry is None:
            raise UserError(
                f"{path}, line {number}: a line of JSON with a field 'text' is needed: correct it"
            )
        else:
            yield _text(entry, f"{path}, line {number}")


def _object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _text(entry: Any, where: str) -> str:
    """The text of a document that is an object with a field ``text``, or a string."""
    found = entry.get("text") if isinstance(entry, dict) else entry
    if isinstance(entry, dict) and "text" not in entry:
        raise UserError(
            f"{where}: there is no field 'text' (there are {', '.join(map(str, entry)) or 'none'})"
        )
    if not isinstance(found, str):
        raise UserError(
            f"{where}: 'text' is {type(found).__name__}, not text: correct it or leave the document out"
        )
    return found
