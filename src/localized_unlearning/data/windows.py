"""Plain text as windows of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.documents import read_documents
from localized_unlearning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.jobs.job import Job


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


def read_windows(path: Path, tokenizer: Any, tokens: int, documents: int | None) -> Tensor:
    """The windows in ``path``: those that stage ``windows`` made once for all jobs, or a text's, made now.

    Args:
        path: safetensors, or plain text as :func:`read_documents` reads it.
        tokenizer: the model's, for plain text.
        tokens: predicted tokens of a window.
        documents: how many documents of a text are read; all where None.

    Raises:
        UserError: when the file is damaged, or its windows have another length.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != SUFFIX:
        return text_windows(tokenizer, read_documents(path, documents), tokens)
    try:
        found: Tensor = load_file(path)["windows"].long()
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and rerun") from error
    if found.shape[1] != tokens + 1:
        raise UserError(f"{path} has windows of {found.shape[1] - 1} tokens, not {tokens}: make it again")
    return found


SUFFIX = ".safetensors"


def run(job: Job) -> None:
    """Stage: the training text as windows of token ids, int32 ``[window, token]``."""
    from safetensors.torch import save_file

    tokenizer = tokens_module.load_tokenizer(job.inputs["base_model"])
    settings = job.config.text
    found = read_windows(job.inputs["text"], tokenizer, settings.tokens, settings.documents)
    save_file({"windows": found.int()}, job.outputs["windows"])
    job.facts.update(windows=len(found))
