"""A GGUF model made into a standard Hugging Face folder, once.

transformers can load a GGUF file itself, but slowly (Gemma 3 270M: half a minute, against two
seconds from safetensors), and other libraries cannot; so the workflow converts it once.
"""

from __future__ import annotations

import itertools
import os
import shutil
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.errors import UserError
from localized_unlearning.models.loading import refuse_report

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def convert_gguf(gguf: Path, output: Path) -> None:
    """Dequantise the model in `gguf` and save it, with its tokenizer, in the folder `output`.

    The folder has config.json, generation_config.json, model.safetensors, tokenizer.json and
    tokenizer_config.json. It appears whole or not at all, and replaces an earlier one.
    Raises UserError when the file cannot be read or its tokenizer fails `check_tokenizer`.
    """
    gguf, output = Path(gguf), Path(output)
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _save_tokenizer(gguf, part)  # first: the check is cheap, the weights not
        _save_model(gguf, part)
        if output.exists():
            shutil.rmtree(output)
        os.replace(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save_tokenizer(gguf: Path, folder: Path) -> None:
    """Save the tokenizer and check the saved copy, which must give the ids of the original, if only of :func:`composed` text:
    GGUF does not say that Qwen's tokenizer composes, and transformers' class for it does."""
    from transformers import AutoTokenizer

    original = _load(AutoTokenizer, gguf)
    original.save_pretrained(folder)
    saved = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_tokenizer(saved, gguf.name, begins_with_bos(gguf))
    for text in round_trip_strings():
        if saved.encode(text) not in (original.encode(text), original.encode(composed(text))):
            raise UserError(
                f"the tokenizer of {gguf.name} encodes {text!r} differently once saved: "
                "use another version of transformers, or another source of the model"
            )


def _save_model(gguf: Path, folder: Path) -> None:
    """Save the dequantised weights as float32.

    A dequantised value is scale x integer + minimum: of Gemma 3 270M's weights, 38 % are not
    exact in bfloat16 and 2 % not in float16. As float32 (1.07 GB) the copy computes exactly what
    the GGUF file means, and is cast while loading where another type is wanted. A tensor that the file lacks would be
    drawn at random, so that it is refused.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model, report = _load(
        AutoModelForCausalLM,
        gguf,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    refuse_report(gguf.name, {name: report[name] for name in ("missing_keys", "mismatched_keys")})
    # The weights are plain tensors by now, but the marks that they once were quantised make
    # transformers 5 refuse to save them.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(folder)


def _load(auto_class: Any, gguf: Path, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False, **options
        )
    except UserError:
        raise
    except Exception as error:  # the reader unpacks what the file says: a damaged one fails in any way
        raise UserError(
            f"transformers cannot read {gguf} ({_first_line(error)}): check that it is a GGUF "
            "file of a model that transformers supports, and whole"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def begins_with_bos(gguf: Path) -> bool | None:
    """Whether a GGUF file says that texts begin with BOS; None where it leaves that to its reader.

    Qwen's say no; a SentencePiece vocabulary that says nothing has one (as llama.cpp reads it).
    """
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    said = fields.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said.contents())
    kind = fields.get("tokenizer.ggml.model")
    return True if kind is not None and kind.contents() == "llama" else None


def composed(text: str) -> str:
    """The text with accents and letters put together (Unicode NFC), as facts and prompts are read, and Qwen's tokenizers do."""
    return unicodedata.normalize("NFC", text)


def check_tokenizer(tokenizer: Any, name: str, bos: bool | None) -> None:
    """Refuse a tokenizer that is not faithful.

    Faithful: each of :func:`round_trip_strings` is decoded to what was encoded (or :func:`composed`), and every encoding starts with the
    beginning-of-sequence token where the file says so, none where it says that it does not.

    Args:
        tokenizer: the tokenizer.
        name: what messages call it.
        bos: what the file says (:func:`begins_with_bos`); None: either, but the same for every text.

    Raises:
        UserError: naming what is not as it should be.
    """
    remedy = "use another source of this model, whose tokenizer is complete"
    for text in round_trip_strings():
        ids = tokenizer.encode(text)
        starts = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
        bos = starts if bos is None else bos
        if starts != bos:
            what = (
                "does not start texts with BOS, as the file says"
                if bos
                else "starts texts with BOS, which the file denies"
            )
            raise UserError(f"the tokenizer of {name} {what}: {remedy}")
        back = tokenizer.decode(ids[1:] if starts else ids)
        if back not in (text, composed(text)):
            raise UserError(f"the tokenizer of {name} turns {text!r} into {back!r}: {remedy}")


def round_trip_strings() -> list[str]:
    """More than 400 texts that a tokenizer must give back as they were.

    Prompts with names of many origins, numbers, punctuation, code, other scripts, and white space
    in every small combination. (Not U+2581, SentencePiece's own mark for a space, which no Gemma
    tokenizer gives back.)
    """
    names = (
        "Tiger Woods", "Walter Payton", "Shaquille O'Neal", "Ken Griffey Jr.", "José Altuve",
        "Giannis Antetokounmpo", "Nikola Jokić", "DeMarcus Ware", "Ha-Seong Kim", "Luka Dončić",
        "D'Brickashaw Ferguson", "A.J. Green", "LeBron James", "大谷翔平", "Şengün", "Ömer Aşık",
    )  # fmt: skip
    templates = (
        "Fact: Tiger Woods plays the sport of golf\nFact: {} plays the sport of",
        "What sport does {} play?",
        "{} is a professional athlete in the sport of basketball.",
        "Question: Which sport does {} play?\nA. football\nB. baseball\nC. golf\nAnswer: A",
        '  {}:\t100% "sure" -- isn\'t it?',
    )
    texts = [template.format(name) for template, name in itertools.product(templates, names)]
    blanks = ["".join(blank) for n in (1, 2, 3) for blank in itertools.product(" \n\t", repeat=n)]
    texts += [f"a{blank}b" for blank in blanks]
    texts += [f"{blank}a" for blank in blanks] + [f"a{blank}" for blank in blanks]
    texts += [f"{n}" for n in (0, 7, 10, 99, 1000, 1_000_000, 3.14159, -2.5, 1e-10)]
    texts += [f"{a} {b} {a}{b}" for a, b in itertools.combinations("!\"#$%&'()*+,-./:;?@[_{", 2)]
    texts += [
        "def f(x):\n    return x ** 2  # square\n",
        "\\frac{1}{2} \\sum_{i=0}^{n} x_i^2 \\leq \\infty",
        "naïve café Ünïcödé ß æ ø å ł ğ ı İ",
        "Привет, мир! Γειά σου Κόσμε שלום עולם مرحبا بالعالم",
        "你好,世界 こんにちは世界 안녕하세요 세계 สวัสดี नमस्ते",
        "🏀⚾🏈⛳ 👩🏽‍💻 🇺🇸 ✓ → ∑ ½ € £ ¥ ™ “quotes” ‘single’ — – …",
        "x\u00a0y\u2009z\u200b\ufeff e\u0301 \u1e69 \ufb01",  # odd spaces, accents, a ligature
    ]
    return texts


def run(job: Job) -> None:
    """Stage: convert a GGUF file once."""
    convert_gguf(job.inputs["gguf"], job.outputs["model"])
