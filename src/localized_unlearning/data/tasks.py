"""Unlearning tasks in words (section 2.1)."""

from __future__ import annotations

from localized_unlearning.config.data import Forget


def in_words(forget: Forget) -> str:
    """What is forgotten: all athletes of a sport, some by name, the first of the file, or some drawn at random."""
    if forget.sport:
        return f"all {forget.sport} athletes"
    if forget.athletes:
        return f"{len(forget.athletes)} named athletes"
    if forget.first:
        return f"the first {forget.first} athletes" + (f" after {forget.skip}" if forget.skip else "")
    return f"{forget.draw} athletes drawn at random"
