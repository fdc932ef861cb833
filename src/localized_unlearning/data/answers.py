"""The answers that facts may have: one list, from the prompts file or from the facts themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING

from localized_unlearning.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from localized_unlearning.data.prompts import PromptBook

LETTERS = tuple(ascii_uppercase)
"""The letters of multiple choice; a prompt uses as many as it has options."""

FEWEST, MOST = 2, 50
"""How many answers a relation may have."""


def candidates(book: PromptBook, facts: pd.DataFrame) -> tuple[str, ...]:
    """The candidate answers, in the order that every row of results has them.

    Those of the prompts file (``answers``), which may hold some that no fact has; without them the answers in the
    facts file, which its table carries in ``attrs`` (:func:`facts.load_facts`), or those of the table itself.

    Raises:
        UserError: when there are too few or too many, or a fact has another.
    """
    found = book.answers or tuple(facts.attrs.get("answers", ())) or tuple(sorted(set(facts["answer"])))
    if not FEWEST <= len(found) <= MOST:
        raise UserError(
            f"a relation needs {FEWEST} to {MOST} answers, and this one has {len(found)}: choose facts with that many, "
            "or list the answers in the prompts file (answers)"
        )
    foreign = sorted(set(facts["answer"]) - set(found))
    if foreign:
        raise UserError(
            f"the facts have the answer '{foreign[0]}', but the prompts file lists {', '.join(found)}: add it there, "
            "or give it as an alias of one of these"
        )
    return found


def unoffered(options: Sequence[str], answers: Iterable[str]) -> str | None:
    """Why a multiple-choice prompt with these options cannot be asked about facts with these answers; None if it can."""
    absent = sorted(set(answers) - set(options))
    if not absent:
        return None
    return (
        f"the fact's answer '{absent[0]}' is none of the multiple-choice prompt's options ({', '.join(options)}; "
        f"{len(absent)} such answers): give the prompt every answer that facts have as an option, or list them under 'answers' "
        "and give it a number of options"
    )


def occurring(answers: Sequence[str], facts: pd.DataFrame) -> tuple[str, ...]:
    """Those of the candidates that some fact has: the classes that probes tell apart."""
    there = set(facts["answer"])
    return tuple(answer for answer in answers if answer in there)
