"""GGUF conversion: files of tiny random models, and what can be tested without one."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import CONFIGS, tokenizer
from localized_unlearning.errors import UserError
from localized_unlearning.models.gguf import check_tokenizer, composed, convert_gguf, round_trip_strings


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


def qwen(name: str) -> Any:
    """A random Qwen as a GGUF file can say it: without windows, and heads as wide as transformers takes Qwen 3's to be."""
    from transformers import AutoModelForCausalLM

    config = CONFIGS[name]()
    config.use_sliding_window, config.layer_types = False, ["full_attention"] * config.num_hidden_layers
    if name == "qwen3":
        config.head_dim = 128
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def write_qwen(model: Any, path: Path, without: str = "") -> None:
    """The model as the public converter writes Qwen's: GPT-2's byte-level vocabulary, and no beginning of text."""
    from gguf import MODEL_ARCH, GGUFWriter, TokenType, get_tensor_name_map

    config, kind = model.config, model.config.model_type
    file = GGUFWriter(path, kind)
    file.add_context_length(config.max_position_embeddings)
    file.add_block_count(config.num_hidden_layers)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(10000.0)
    body = json.loads(tokenizer().backend_tokenizer.to_str())["model"]
    words = sorted(body["vocab"], key=body["vocab"].get)
    types = [TokenType.CONTROL if w in ("<pad>", "<bos>", "<eos>") else TokenType.NORMAL for w in words]
    padding = range(len(words), config.vocab_size)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("qwen2")
    file.add_token_list([*words, *(f"[PAD{n}]" for n in padding)])
    file.add_token_types([*types, *(TokenType.UNUSED for _ in padding)])
    file.add_token_merges([" ".join(merge) for merge in body["merges"]])
    file.add_eos_token_id(2)
    file.add_pad_token_id(0)
    file.add_add_bos_token(False)
    names = get_tensor_name_map(MODEL_ARCH[kind.upper()], config.num_hidden_layers)
    for key, value in model.state_dict().items():
        stem, _, part = key.rpartition(".")
        if stem != without:
            file.add_tensor(f"{names.get_name(stem)}.{part}", value.numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_model_without_bos_is_converted(name: str, tmp_path: Path) -> None:
    """Catches Qwen's files refused for their missing BOS or for composing accents, and weights that end elsewhere."""
    from localized_unlearning.data.tokens import load_tokenizer
    from localized_unlearning.models.loading import from_folder

    model = qwen(name)
    write_qwen(model, tmp_path / "x.gguf")
    convert_gguf(tmp_path / "x.gguf", tmp_path / "model")
    own = load_tokenizer(tmp_path / "model")
    text = "Fact: Zoe\u0308 plays the sport of golf"
    plain = tokenizer()(composed(text), add_special_tokens=False)["input_ids"]
    assert own(text)["input_ids"] == plain and own.bos_token_id is None
    ids = torch.tensor([plain])
    found = from_folder(tmp_path / "model", "float32")(input_ids=ids).logits
    assert torch.allclose(found, model(input_ids=ids).logits, atol=1e-4)


def test_a_gguf_without_one_of_its_tensors_is_refused(tmp_path: Path) -> None:
    """Catches weights that are drawn at random in place of those that the file lacks."""
    write_qwen(qwen("qwen2"), tmp_path / "x.gguf", without="model.layers.1.mlp.up_proj")
    with pytest.raises(
        UserError, match=r"x\.gguf lacks tensors .*random \(model\.layers\.1\.mlp\.up_proj\.weight\)"
    ):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
