"""GGUF conversion: what can be tested without a real model."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from localized_unlearning.errors import UserError
from localized_unlearning.models.gguf import check_tokenizer, convert_gguf, round_trip_strings


class CharacterTokenizer:
    """One token per character, words of `known` as one; enough of the Hugging Face interface."""

    bos_token_id: int | None = 0

    def __init__(self, known: tuple[str, ...] = (" golf",), forget: str = "") -> None:
        self.known, self.forget = known, forget

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [-1 - self.known.index(text)] if text in self.known else [ord(c) for c in text]
        return [0, *ids] if add_special_tokens and self.bos_token_id is not None else ids

    def decode(self, ids: list[int]) -> str:
        text = "".join(self.known[-1 - i] if i < 0 else chr(i) for i in ids)
        return text.replace(self.forget, "") if self.forget else text


def test_check_tokenizer() -> None:
    """Catches a BOS that the file promises and the tokenizer lost, and a model without one (Qwen) that is refused."""
    without_bos: Any = CharacterTokenizer()
    without_bos.bos_token_id = None
    for own, said in (
        (CharacterTokenizer(), True),
        (without_bos, False),
        (CharacterTokenizer(), None),
        (without_bos, None),
    ):
        check_tokenizer(own, "x.gguf", said)
    with pytest.raises(UserError, match=r"turns .*\\t.* into .*use another source"):
        check_tokenizer(CharacterTokenizer(forget="\t"), "x.gguf", True)
    with pytest.raises(UserError, match="does not start texts with BOS, as the file says"):
        check_tokenizer(without_bos, "x.gguf", True)
    with pytest.raises(UserError, match="starts texts with BOS, which the file denies"):
        check_tokenizer(CharacterTokenizer(), "x.gguf", False)


def test_round_trip_strings_are_many_and_different() -> None:
    texts = round_trip_strings()
    assert len(texts) > 200
    assert all(texts)


def test_unreadable_gguf_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a gguf file at all" * 10)
    with pytest.raises(UserError, match=r"cannot read .*x\.gguf .*check that it is a GGUF file"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "model")
    with pytest.raises(UserError, match=r"cannot read .*absent\.gguf"):
        convert_gguf(tmp_path / "absent.gguf", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def header() -> bytes:
    """The beginning of a GGUF file: an architecture, a list of words and one tensor's description."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    words = struct.pack("<IQ", 8, 2) + text("a") + text("b")
    keys = text("general.architecture") + struct.pack("<I", 8) + text("gemma3")
    keys += text("tokenizer.ggml.tokens") + struct.pack("<I", 9) + words
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 4, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + keys + tensor


def test_a_truncated_or_mutated_gguf_is_one_clear_error(tmp_path: Path) -> None:
    """Catches the reader's own faults (struct.error, OverflowError, IndexError ...) as tracebacks."""
    whole = header()
    cut = [whole[:length] for length in range(4, len(whole), 9)]
    flipped = [whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :] for at in range(4, len(whole), 11)]
    for number, data in enumerate([*cut, *flipped]):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(data)
        with pytest.raises(UserError):
            convert_gguf(path, tmp_path / "model")
