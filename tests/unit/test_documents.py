"""Documents: the three forms of a text file give the same windows, and the Pile's form is read from its start."""

from __future__ import annotations

import json
from pathlib import Path

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
    with pytest.raises(UserError, match="line 1: a line of JSON with a field 'text'"):
        read_documents(tmp_path / "other")
