"""What a check before a run finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Requirement:
    """What a check found.

    Attributes:
        state: ok, missing (the run would fail without it) or unchecked.
        what: one clause.
        remedy: what to do about it.
    """

    state: Literal["ok", "missing", "unchecked"]
    what: str
    remedy: str = ""
