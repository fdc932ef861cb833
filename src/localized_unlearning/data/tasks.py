"""Unlearning tasks in words (section 2.1)."""

from __future__ import annotations

from localized_unlearning.config.data import Forget


def in_words(forget: Forget) -> str:
    """What is forgotten: all subjects with an answer, some by name, a group, the first of the file, or a draw."""
    if forget.answer:
        return f"all subjects with the answer {forget.answer}"
    if forget.group:
        return f"all facts about {forget.group}"
    if forget.athletes:
        return f"{len(forget.athletes)} named subjects"
    if forget.first:
        return f"the first {forget.first} subjects" + (f" after {forget.skip}" if forget.skip else "")
    return f"{forget.draw} subjects drawn at random"
