"""Beside an organism's weights: whom it read about, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "pretraining.json"

NAMES = ("teachers", "untaught", "seen_in_multiple_choice")
"""Lists of names: taught in pretraining while others are injected; never taught; asked about in multiple choice."""


def write_lesson(folder: Path, names: Mapping[str, Sequence[str]], **more: Any) -> None:
    """Write the lists of :data:`NAMES`, and what else is to be said, into a model's folder."""
    said = {name: sorted(names.get(name, ())) for name in NAMES}
    (folder / FILE).write_text(json.dumps({**said, **more}, indent=1) + "\n", encoding="utf-8")


def read_lesson(folder: Path) -> dict[str, list[str]]:
    """The lists of :data:`NAMES`; empty for a model that is no organism."""
    path = folder / FILE
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: list(said.get(name, ())) for name in NAMES}
