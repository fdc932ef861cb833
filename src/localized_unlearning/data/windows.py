"""Plain text as windows of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


CHARACTERS = 16
"""Characters of a document that are read for each token wanted of it; of English, a token holds 4 or 5."""


def batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of up to ``size`` items."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def text_windows(tokenizer: Any, documents: Iterable[str], tokens: int, limit: int | None = None) -> Tensor:
    """The beginning of each document as ``[window, tokens + 1]``; shorter documents are joined.

    Args:
        tokenizer: the model's.
        documents: the texts.
        tokens: predicted tokens of a window.
        limit: how many windows are wanted; all without one.

    Raises:
        UserError: when the documents hold no window.
    """
    import torch

    windows: list[Sequence[int]] = []
    waiting: list[int] = []
    beginnings = (document[: CHARACTERS * (tokens + 1)].rstrip("\n") for document in documents)
    for part in batched(beginnings, 1000):
        for ids in tokens_module.encode(tokenizer, part):
            waiting += ids
            if len(waiting) > tokens:
                windows.append(waiting[: tokens + 1])
                waiting = []
        if limit is not None and len(windows) >= limit:
            break
    if not windows:
        raise UserError(f"the text holds fewer than {tokens + 1} tokens: give more text or lower text.tokens")
    return torch.tensor(windows[:limit])
