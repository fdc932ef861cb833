"""What a model is asked, prepared before it is: all prompts of an exam go through the model together.

Each kind of prompt by itself would read all weights for a few tokens; together they fill batches, and a sweep prepares
them once for all its points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from localized_unlearning.models import loading, packing, prefixes


class Asked(NamedTuple):
    """Some prompts, the candidate tokens of their answers, and how the scores become rows."""

    prompts: Sequence[Sequence[int]]
    candidates: Sequence[int]
    rows: Callable[[packing.NextToken], pd.DataFrame]


class Ready(NamedTuple):
    """What is asked, in batches: it may be put to one model after another, as in a sweep."""

    asked: Sequence[Asked]
    parts: Iterable[prefixes.Part]


def ready(model: Any, asked: Sequence[Asked], batch_tokens: int) -> Ready:
    """``asked`` in batches for models of this device and config; all of their prompts are one list to it."""
    parts = prefixes.prepared(model, _prompts(asked, model), batch_tokens)
    return Ready(list(asked), [part._replace(batches=list(part.batches)) for part in parts])


def _prompts(asked: Sequence[Asked], model: Any) -> list[Sequence[int]]:
    found = [prompt for part in asked for prompt in part.prompts]
    loading.refuse_longer(model.config, found)
    return found


def answers(model: Any, exam: Ready) -> list[pd.DataFrame]:
    """The rows of each part of what is asked, in order."""
    candidates = sorted({token for part in exam.asked for token in part.candidates})
    place = {token: index for index, token in enumerate(candidates)}
    count = sum(len(part.prompts) for part in exam.asked)
    found = packing.scored(model, exam.parts, count, candidates)
    tables, start = [], 0
    for part in exam.asked:
        rows = slice(start, start + len(part.prompts))
        own = found.candidates[rows][:, [place[token] for token in part.candidates]]
        tables.append(part.rows(packing.NextToken(own, found.argmax[rows], found.log_normalizer[rows])))
        start = rows.stop
    return tables


def answered(model: Any, asked: Sequence[Asked], batch_tokens: int) -> list[pd.DataFrame]:
    """The rows of each of ``asked``, in order."""
    return answers(model, Ready(asked, prefixes.prepared(model, _prompts(asked, model), batch_tokens)))
