"""Unlearning tasks in words (section 2.1)."""

from __future__ import annotations

from localized_unlearning.config.data import Forget


def in_words(forget: Forget) -> str:
    """What is forgotten: all subjects with an answer, some by name, a group, the first of the file, or a draw."""
    if forget.answer:
        return f"all {forget.answer} athletes"
    if forget.group:
        return f"all facts about {forget.group}"
    if forget.athletes:
        return f"{len(forget.athletes)} named athletes"
    if forget.first:
        return f"the first {forget.first} athletes" + (f" after {forget.skip}" if forget.skip else "")
    return f"{forget.draw} athletes drawn at random"
