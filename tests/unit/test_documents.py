"""Documents: the three forms of a text file give the same windows, and the Pile's form is read from its start."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow
import pytest
import torch

from localized_unlearning.config.reading import load
from localized_unlearning.data import windows as windows_module
from localized_unlearning.data.documents import read_documents
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from tiny_base import ROOT, TEXT, TinyBase


def compressed(path: Path, text: str) -> Path:
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(text.encode())
    return path


def test_three_forms(tiny_base: TinyBase, tmp_path: Path) -> None:
    lines = [line for line in TEXT.read_text(encoding="utf-8").splitlines() if line.strip()]
    pile = "".join(json.dumps({"text": line, "meta": {}}) + "\n" for line in lines)
    (tmp_path / "pile.jsonl").write_text(pile)
    files = [TEXT, tmp_path / "pile.jsonl", compressed(tmp_path / "pile", pile)]
    assert all(read_documents(file) == read_documents(files[1]) for file in files[2:])
    windows = [windows_module.text_windows(tiny_base.tokenizer, read_documents(file), 48) for file in files]
    assert all(torch.equal(windows[0], other) for other in windows[1:])
    assert torch.equal(
        windows_module.text_windows(tiny_base.tokenizer, read_documents(TEXT), 48, 5), windows[0][:5]
    )
    assert len(read_documents(files[2], 7)) == 7


def test_long_documents_give_their_beginning_only(tiny_base: TinyBase) -> None:
    documents = ["one of two " * 50_000, "and another " * 50_000]
    windows = windows_module.text_windows(tiny_base.tokenizer, documents, 10)
    whole = [tiny_base.tokenizer(document[:400])["input_ids"][:11] for document in documents]
    assert windows.tolist() == whole


def test_windows_made_once_are_those_made_anew(tiny_base: TinyBase, tmp_path: Path) -> None:
    """Catches a text that is tokenised otherwise once for all than for each job, and windows of another length."""
    config = load([ROOT / "config.yaml"], {"text": {"tokens": 20, "documents": 50}})
    found = STAGES["windows"]
    inputs = {"base_model": tiny_base.folder, "text": TEXT}
    job = Job(
        found, restrict(config, found, {}), {}, inputs, {"windows": tmp_path / "windows.safetensors"}, "key"
    )
    windows_module.run(job)
    made = job.outputs["windows"]
    anew = windows_module.read_windows(TEXT, tiny_base.tokenizer, 20, 50)
    kept = windows_module.read_windows(made, None, 20, 50)
    assert torch.equal(kept, anew) and kept.dtype == anew.dtype and job.facts["windows"] == len(anew)
    with pytest.raises(UserError, match="windows of 20 tokens, not 48"):
        windows_module.read_windows(made, None, 48, 50)
    made.write_bytes(made.read_bytes()[:40])
    with pytest.raises(UserError, match="is damaged"):
        windows_module.read_windows(made, None, 20, 50)


def test_damaged(tmp_path: Path) -> None:
    whole = compressed(tmp_path / "whole", json.dumps({"text": "x" * 10_000}))
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-5])
    with pytest.raises(UserError, match="cannot be read"):
        read_documents(tmp_path / "cut")
    (tmp_path / "other").write_text(json.dumps({"content": "x"}))
    with pytest.raises(UserError, match=r"line 1: there is no field 'text' .there are content"):
        read_documents(tmp_path / "other")


LINES = ["The first document.", "{braces} begin the second", "[1] is a note", "Größe 大"]
WRITERS: dict[str, Callable[[Path, list[str]], object]] = {
    "txt": lambda path, lines: path.write_text("\n\n".join(lines) + "\n", encoding="utf-8"),
    "bom": lambda path, lines: path.write_text("\n".join(lines), encoding="utf-8-sig"),
    "jsonl": lambda path, lines: path.write_text("\n".join(json.dumps({"text": line}) for line in lines)),
    "json": lambda path, lines: path.write_text(json.dumps([{"text": line} for line in lines], indent=1)),
    "json of strings": lambda path, lines: path.write_text(json.dumps(lines)),
    "parquet": lambda path, lines: pd.DataFrame({"id": range(len(lines)), "text": lines}).to_parquet(path),
}


@pytest.mark.parametrize("packed", ["", "gz", "zst"])
@pytest.mark.parametrize("form", WRITERS)
def test_every_format_has_the_same_documents(form: str, packed: str, tmp_path: Path) -> None:
    """Catches a format that is told by its name, and lines of text that look like JSON."""
    if form == "parquet" and packed:
        pytest.skip("Parquet compresses itself")
    WRITERS[form](tmp_path / "plain", LINES)
    data = (tmp_path / "plain").read_bytes()
    path = tmp_path / "text"
    if packed == "zst":
        compressed(path, data.decode("utf-8"))
    else:
        path.write_bytes(gzip.compress(data) if packed else data)
    assert [text.strip() for text in read_documents(path)] == LINES
    assert [text.strip() for text in read_documents(path, 2)] == LINES[:2]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"text": null}\n', "line 1: 'text' is NoneType"),
        (b'{"text": "a"}\n{"text": 3}\n', "line 2: 'text' is int"),
        (b'{"text": "a"}\nb\n', "line 2: a line of JSON"),
        (b'{"text": "a\n{"text": "b"}\n', "JSON with a field 'text' in line 2 and none before"),
        (b'[{"text": "a"},', "begins as a list of JSON and is none"),
        (b'[{"body": "a"}]', "document 1: there is no field 'text' .there are body"),
        (b"\xff\xfe\x00a", "cannot be read .*JSON lines, a list of JSON or Parquet"),
        (b"PAR1 and no more", "cannot be read .*bring it again"),
        (b"\x1f\x8b and no more", "cannot be read .*bring it again"),
    ],
)
def test_what_is_no_text_is_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    """Catches tracebacks, and JSON that is trained on as text."""
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as error:
        read_documents(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="does not exist"):
        read_documents(tmp_path / "absent")
