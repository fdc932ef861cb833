"""The answers that facts have."""

from __future__ import annotations

SPORTS = ("football", "baseball", "basketball")

CHOICES = (*SPORTS, "golf")
"""The candidate answers, in the paper's multiple-choice order completed to A-D below."""


LETTERS = ("A", "B", "C", "D")
