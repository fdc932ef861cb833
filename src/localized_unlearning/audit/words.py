"""How the audit says things: paths, digests and values for people, and what differs between two mappings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from localized_unlearning.files import canonical_json


def absolute(path: Path) -> Path:
    """``path`` made absolute, links kept."""
    return Path(os.path.abspath(path))


def shown(path: Path) -> str:
    """``path`` as people read it: relative to the current folder where that is shorter, on one line of plain text."""
    relative = os.path.relpath(path)
    return plain(relative if not relative.startswith("..") else str(path))


def plain(text: str) -> str:
    """A name from outside without what a terminal would obey or cannot print."""
    readable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return readable.encode("utf-8", "backslashreplace").decode("utf-8")


def short(sha256: str) -> str:
    """The first digits of a digest."""
    return f"{sha256[:8]}.."


def say(value: Any) -> str:
    """A setting's value in words of YAML."""
    return canonical_json(value) if not isinstance(value, str) else plain(value)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted path; an empty one has none."""
    if not isinstance(value, Mapping) or (not value and prefix):
        return {prefix: value}
    return {
        path: leaf
        for name, inner in value.items()
        for path, leaf in flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Names whose values differ: (name, before, after), None where it is absent."""
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after or not _same(before[name], after[name]):
            yield name, before.get(name), after.get(name)


def _same(one: Any, other: Any) -> bool:
    return canonical_json(one) == canonical_json(other)
