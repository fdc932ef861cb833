"""The paper's answers, which the product itself does not know, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from localized_unlearning.data import tokens
from localized_unlearning.data.prompts import LETTERED

SPORTS = ("football", "baseball", "basketball")
CHOICES = (*SPORTS, "golf")
LETTERS = ("A", "B", "C", "D")


def first_tokens(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    """The first token of each answer, as it stands after a prompt's last word."""
    return tokens.first_tokens(tokens.answer_tokens(tokenizer, LETTERED, ["The sport of"], answers), answers)
