"""A tiny random base model on disk, with a tokenizer, athletes and text, on which stages run in this process."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from localized_unlearning.config.run import Config
from localized_unlearning.jobs.job import Job, Kept, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.models import deltas
from localized_unlearning.models.organism import train_tokenizer
from localized_unlearning.provenance import hashing

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ROOT / "workflow/resources/prompts.yaml"
TEXT = ROOT / "workflow/resources/text/held_out.txt"
ATHLETES = ROOT / "workflow/resources/athletes.csv"


@dataclass(frozen=True)
class TinyBase:
    """The model, where it lies, and a split of 90 athletes of which 12 are named to be forgotten."""

    folder: Path
    model: Any
    tokenizer: Any
    digest: str
    layers: int
    split: pd.DataFrame

    def fresh(self) -> Any:
        """A copy of the model that may be changed."""
        return copy.deepcopy(self.model)

    def write(self, path: Path, table: pd.DataFrame) -> Path:
        """``table`` as Parquet at ``path``."""
        table.to_parquet(path, index=False)
        return path

    def run(
        self,
        stage: str,
        config: Config,
        folder: Path,
        inputs: Mapping[str, Path | None],
        wildcards: Mapping[str, str] | None = None,
        kept: Kept | None = None,
    ) -> dict[str, pd.DataFrame]:
        """The tables that a stage writes; it sees its own settings only, as in a real run, and what is ``kept``."""
        found, wildcards = STAGES[stage], {"base_seed": "0", **(wildcards or {})}
        outputs = {name: folder / f"{stage}-{name}.parquet" for name in found.outputs}
        fixed = {"base_model": self.folder, "prompts": PROMPTS, "text": TEXT}
        given = {**fixed, **inputs}
        job = Job(
            found, restrict(config, found, wildcards), wildcards, given, outputs, "key", kept=kept or Kept()
        )
        job.digests = {
            name: {file: each.sha256 for file, each in hashing.digest_tree(path).items()}
            for name, path in given.items()
            if path is not None
        }
        module = __import__(found.module, fromlist=[found.function])
        getattr(module, found.function)(job)
        return {name: pd.read_parquet(path) for name, path in outputs.items()}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    """See :class:`TinyBase`."""
    folder = tmp_path_factory.mktemp("tiny") / "base_model"
    athletes = (
        pd.read_csv(ATHLETES).groupby("answer", group_keys=False).head(30).sample(frac=1, random_state=0)
    )
    athletes = athletes.reset_index(drop=True)[["subject", "answer"]]
    text = TEXT.read_text(encoding="utf-8").splitlines()[:200]
    tokenizer = train_tokenizer(
        [
            *text,
            *athletes["subject"],
            *[" football baseball basketball golf Football Baseball Basketball Golf A B C D"] * 90,
        ],
        500,
    )
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.25,
        max_position_embeddings=512,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    index = np.arange(len(athletes))
    split = athletes.assign(forget=index < 12, relearn=index < 2, train=index % 3 != 0)
    split["test"] = ~split["train"]
    split.loc[split["forget"], ["train", "test"]] = True
    return TinyBase(folder, model, tokenizer, deltas.weights_digest(folder), 3, split)
