"""Small things that every floor does with files and JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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
