"""A model's folder, looked at without loading anything: what would keep it from being loaded as its files say.

Neither torch nor transformers is imported, so that preflight can ask at no cost. Each fault is one sentence that
names the file and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localized_unlearning.errors import UserError

LFS = b"version https://git-lfs"
"""What a Git LFS pointer begins with."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files of which a tokenizer needs one."""


def faults(folder: Path) -> Iterator[str]:
    """Everything that is wrong with a folder, one sentence each."""
    name = folder.name
    config = folder / "config.json"
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        what = f"{name} holds {'an' if config.is_file() else 'only an'} adapter (adapter_config.json)"
        yield f"{what}: merge it into its base model first (peft's merge_and_unload) and give the merged folder"
        return
    if not config.is_file():
        yield f"{name} has no config.json: give the folder of a whole model in Hugging Face's layout"
        return
    try:
        about = json.loads(config.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        yield f"{config} is no JSON ({error}): bring it again"
        return
    if not isinstance(about, dict):
        yield f"{config} holds no settings of a model: bring it again"
        return
    yield from _quantized(about, name)
    yield from _weights(folder)
    if not any((folder / file).is_file() for file in TOKENIZERS):
        yield f"{name} has no tokenizer ({', '.join(TOKENIZERS)}): put the model's tokenizer files there"


def _quantized(about: dict[str, Any], name: str) -> Iterator[str]:
    text = about.get("text_config") or {}
    found = next(
        (part[key] for part in (about, text) for key in ("quantization_config", "compression_config") if part.get(key)),
        None,
    )  # fmt: skip
    if found is not None:
        method = found.get("quant_method") or "unnamed" if isinstance(found, dict) else "unnamed"
        yield (
            f"{name} is quantized (quantization_config in config.json, method {method}), and unlearning trains the "
            "weights themselves: give the model in bfloat16, float16 or float32"
        )


def _weights(folder: Path) -> Iterator[str]:
    name, files = folder.name, sorted(folder.glob("*.safetensors"))
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            yield f"{index} is no index of weights ({error!r}): bring it again"
            continue
        absent = sorted(shard for shard in shards if not (folder / str(shard)).is_file())
        if absent:
            yield f"{name} lacks {absent[0]}, which {index.name} names ({len(absent)} absent): bring it too"
            files = files or [folder / absent[0]]
    if not files:
        yield _no_weights(folder)
    for file in files:
        if file.is_file():
            yield from broken(file)


def _no_weights(folder: Path) -> str:
    pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) + sorted(folder.glob("*.pth"))
    if pickles:
        return (
            f"{folder.name} holds its weights as pickles only ({pickles[0].name}), which can run code: load it with "
            "transformers and write it again with save_pretrained, which makes .safetensors"
        )
    if found := sorted(folder.glob("*.gguf")):
        return f"{folder.name} holds GGUF weights ({found[0].name}): set model.kind to gguf, with its 'gguf' source"
    return f"{folder.name} holds no .safetensors weights: bring them, or correct the folder"


def broken(file: Path) -> Iterator[str]:
    """What is wrong with a .safetensors file, judged by its header and its length."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(max(8, len(LFS)))
        if start.startswith(LFS):
            yield f"{file.name} is a Git LFS pointer, not the weights: run `git lfs pull` where it came from"
            return
        length = int.from_bytes(start[:8], "little")
        stream.seek(8)
        try:
            if len(start) < 8 or length > size - 8:
                raise ValueError
            header = json.loads(stream.read(length))
            end = max((e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            yield f"{file.name} has no safetensors header: it is damaged or another kind of file: bring it again"
            return
    if size != 8 + length + end:
        yield f"{file.name} has {size:,} bytes where its header says {8 + length + end:,}: bring it again"


def require(folder: Path) -> None:
    """Refuse a folder with a fault.

    Raises:
        UserError: the first of :func:`faults`.
    """
    for fault in faults(folder):
        raise UserError(fault)
