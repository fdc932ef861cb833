"""Texts as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localized_unlearning.errors import UserError


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``; no code of the folder runs.

    Raises:
        UserError: when there is none that transformers reads.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"no tokenizer could be loaded from {folder.name} ({why}): put the model's tokenizer files there"
        ) from error


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with the special tokens that the tokenizer puts in front (Gemma: BOS)."""
    return list(tokenizer(list(texts))["input_ids"])


def answer_tokens(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    """First token of each answer as it continues a prompt: with a leading space.

    Raises:
        UserError: when two answers begin with the same token and so cannot be told apart.
    """
    tokens = [tokenizer(f" {a}", add_special_tokens=False)["input_ids"][0] for a in answers]
    if len(set(tokens)) != len(tokens):
        raise UserError(
            f"two of the answers {', '.join(answers)} begin with the same token in this tokenizer: "
            "use answers that differ in their first token"
        )
    return tokens
