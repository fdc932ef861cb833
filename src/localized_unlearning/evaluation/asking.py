"""What a model is asked, prepared before it is: all prompts of an exam go through the model together.

Each kind of prompt by itself would read all weights for a few tokens; together they fill batches, and a sweep prepares
them once for all its points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from localized_unlearning.models import packing


class Asked(NamedTuple):
    """Some prompts, the candidate tokens of their answers, and how the scores become rows."""

    prompts: Sequence[Sequence[int]]
    candidates: Sequence[int]
    rows: Callable[[packing.NextToken], pd.DataFrame]


def answered(model: Any, asked: Sequence[Asked], batch_tokens: int) -> list[pd.DataFrame]:
    """The rows of each of ``asked``, in order; the model sees all of their prompts as one list."""
    candidates = sorted({token for part in asked for token in part.candidates})
    place = {token: index for index, token in enumerate(candidates)}
    prompts = [prompt for part in asked for prompt in part.prompts]
    found = packing.next_token(model, prompts, candidates, batch_tokens)
    tables, start = [], 0
    for part in asked:
        rows = slice(start, start + len(part.prompts))
        own = found.candidates[rows][:, [place[token] for token in part.candidates]]
        tables.append(part.rows(packing.NextToken(own, found.argmax[rows], found.log_normalizer[rows])))
        start = rows.stop
    return tables
