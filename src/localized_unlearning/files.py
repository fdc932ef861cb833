"""Small things that every floor does with files and JSON."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

CHUNK = 1 << 30  # bytes that the system is asked to copy at a time


def canonical_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII; equal values give equal strings.

    >>> canonical_json({"b": 1, "a": [None, "é"]})
    '{"a":[null,"\\\\u00e9"],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: under a temporary name beside it, then renamed."""
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy one file's bytes, by shared blocks where the file system can, making the folders above it.

    Two names of one file would let an edit of the copy reach the original; shared blocks do not.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as write:
        try:
            while os.copy_file_range(read.fileno(), write.fileno(), CHUNK):
                pass
        except (AttributeError, OSError):  # not this system, or not between these two file systems
            read.seek(0)
            write.seek(0)
            write.truncate()
            shutil.copyfileobj(read, write, 1 << 20)
