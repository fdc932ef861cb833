"""Plain text, document by document: a line each, or JSON lines with a field ``text``, zstd-compressed or not.

The Pile comes as the latter (``*.jsonl.zst``); a file is recognised by its first bytes, not by its name.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from localized_unlearning.errors import UserError

ZSTD = bytes.fromhex("28b52ffd")
"""What every zstd frame begins with."""


def read_documents(path: Path, limit: int | None = None) -> list[str]:
    """The first ``limit`` documents of a file that are not empty; all of them without a limit.

    Raises:
        UserError: when the file is no UTF-8 text, is damaged, or a line of JSON has no ``text``.
    """
    try:
        with _opened(path) as stream:
            return list(itertools.islice(_documents(stream, path), limit))
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise UserError(f"the text {path} cannot be read ({error}): bring it again") from error


def _opened(path: Path) -> IO[str]:
    with path.open("rb") as stream:
        compressed = stream.read(len(ZSTD)) == ZSTD
    if not compressed:
        return path.open(encoding="utf-8")
    import pyarrow

    return io.TextIOWrapper(pyarrow.input_stream(str(path), compression="zstd"), encoding="utf-8")


def _documents(stream: IO[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if line.startswith("{"):
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number}: a line of JSON with a field 'text' is needed ({error!r})"
                ) from None
        else:
            text = line
        if text.strip():
            yield text
