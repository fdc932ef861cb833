"""A random model of Gemma-7B's exact architecture at a sixtieth of its width, and small data in the preset's formats.

28 layers, 16 heads, 1848 heads and matrices, gated MLP, tied vocabulary, bfloat16: what localizes, selects and
slices sees Gemma-7B's shape. The weights say nothing; the results mean nothing.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import torch
import transformers

from localized_unlearning.data.mmlu import Questions, load_questions, prompt
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.models.organism import train_tokenizer
from sports import CHOICES
from tiny_run import ROOT

RESOURCES = ROOT / "workflow/resources"


WIDTH, MLP = 48, 96

ARCHITECTURES: dict[str, Callable[..., Any]] = {
    "gemma-7b": lambda **sizes: transformers.GemmaConfig(hidden_size=WIDTH, head_dim=4, **sizes),
    "gemma-2-9b": lambda **sizes: transformers.Gemma2Config(
        hidden_size=WIDTH,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=4,
        **sizes,
    ),
    "llama-3-8b": lambda **sizes: transformers.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=4,
        **sizes,
    ),
}
"""The layers and heads of the journal version's three models; the first is also the paper's. Llama's width must be a
multiple of its heads."""


def model(folder: Path, architecture: str = "gemma-7b") -> None:
    """The model and a tokenizer trained on what it will be asked."""
    book = load_prompts(RESOURCES / "prompts.yaml")
    athletes = pd.read_csv(RESOURCES / "athletes.csv")["subject"]
    texts = [
        *(book[name].render(athlete) for name in ("training", "question") for athlete in athletes),
        *[f" {answer}" for answer in (*CHOICES, *map(str.title, CHOICES), *"ABCD")] * 500,
        *(RESOURCES / "text/train.txt").read_text(encoding="utf-8").splitlines(),
    ]
    tokenizer = train_tokenizer(texts, 1024)
    torch.manual_seed(0)
    config = ARCHITECTURES[architecture](
        vocab_size=len(tokenizer), intermediate_size=MLP, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    found = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    found.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def questions(folder: Path, asked: Questions, formatted: bool) -> None:
    """Questions as the hub's parquet files: MMLU's, or with tinyMMLU's five-shot prompts."""
    folder.mkdir(parents=True)
    for split in ("dev", "test"):
        rows: list[dict[str, Any]] = []
        for q in getattr(asked, split):
            row = {"question": q.question, "subject": q.subject, "choices": q.choices, "answer": q.answer}
            if formatted:
                row["input_formatted"] = prompt(q, [e for e in asked.dev if e.subject == q.subject][:5])
            rows.append(row)
        if rows:
            path = folder / f"{split}-00000-of-00001.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def pile(path: Path, text: Path) -> None:
    """Text as the Pile comes: JSON lines under zstd."""
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        for line in text.read_text(encoding="utf-8").splitlines():
            stream.write((json.dumps({"text": line, "meta": {"pile_set_name": "x"}}) + "\n").encode())


def overlay(folder: Path, architecture: str = "gemma-7b") -> dict[str, Any]:
    """Makes the model and the data in ``folder``; the settings that put them, and small budgets, over a preset."""
    model(folder / "model", architecture)
    found = load_questions(RESOURCES / "general_knowledge.csv")
    some = Questions(found.dev, found.test[::8])
    questions(folder / "mmlu/all", some, formatted=False)
    questions(folder / "tinymmlu", Questions([], some.test[:8]), formatted=True)
    for name in ("train", "held_out"):
        pile(folder / f"{name}.jsonl.zst", RESOURCES / f"text/{name}.txt")
    return {
        "compute": {"device": "cpu"},
        "model": {"name": "model"},
        "athletes": {
            "source": {"sha256": sha256(RESOURCES / "athletes.csv"), "local": str(RESOURCES / "athletes.csv")}
        },
        "mmlu": {"source": {"local": "mmlu"}},
        "series": {"source": {"local": "tinymmlu"}, "retain": 6, "questions": 8},
        "text": {
            "train": {"local": "train.jsonl.zst"},
            "held_out": {"local": "held_out.jsonl.zst", "sha256": sha256(folder / "held_out.jsonl.zst")},
            "tokens": 24,
            "windows": 8,
        },
        "scores": {"attribution_patching": {"prompts": 4}, "causal_tracing": {"prompts": 2}},
        "finetune": {"steps": 2, "batch_size": 8},
        "masking": {"steps": 2, "batch_size": 8, "text_batch": 4, "edit_sizes": [0, 100, 1000]},
        "relearning": {"iterations": 2, "rank": 4},
        "attacks": {"quantization": {"group": 16}},
        "interpretability": {"mean_windows": 4},
        "statistics": {"bootstrap": 50},
    }


def sha256(path: Path) -> str:
    """The digest that a source of this file must have."""
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def counterfact(count: int = 60) -> list[dict[str, Any]]:
    """Invented facts in the shape of CounterFact's public file, of two relations."""
    relations = {"P1": "{} plays the sport of", "P2": "The favourite of {} was always"}
    first, last = ("Ann", "Tom", "Eve", "Max", "Ida"), "ABCDEFGHIJKL"
    found = []
    for number in range(count):
        relation = list(relations)[number % 2]
        subject = f"{first[number % 5]} {last[number % 12]}rown"
        right, wrong = CHOICES[number // 2 % 4], CHOICES[(number // 2 + 1) % 4]
        found.append(
            {
                "case_id": number,
                "requested_rewrite": {
                    "prompt": relations[relation], "relation_id": relation, "subject": subject,
                    "target_true": {"str": right}, "target_new": {"str": wrong},
                },
                "paraphrase_prompts": [f"It rained. {subject} likes", f"What {subject} likes is"],
                "neighborhood_prompts": [f"Neighbour {i} plays the sport of" for i in range(10)],
            }
        )  # fmt: skip
    return found
