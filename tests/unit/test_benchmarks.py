"""What `make bench` measures, on a tiny random model: every case runs, and its ways agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from benchmarks.bench import Bench
from benchmarks.cases import CASES

from architectures import GEMMA_3
from localized_unlearning.models.checking import TEXT
from localized_unlearning.models.organism import train_tokenizer
from tiny_run import ROOT

RESOURCES = ROOT / "workflow/resources"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Gemma 3's architecture with the layers of the preset's manual localization."""
    place = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.Gemma3TextConfig(
            **{
                **GEMMA_3,
                "num_hidden_layers": 6,
                "layer_types": None,
                "max_position_embeddings": 4096,
                "sliding_window": 512,
            }
        )
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(place)
    words = " basketball baseball football golf A B C D\n" * 40  # a token each
    train_tokenizer([TEXT, words], 330).save_pretrained(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_ways_of_a_case_agree(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a benchmark that lags behind what it measures: it would be found out twenty minutes into `make bench`."""
    monkeypatch.chdir(ROOT)
    case, found = CASES[name], {}
    ways: dict[str, Any] = {
        "ours": case.ours,
        "theirs": None if case.extra else case.theirs,
        "careful": case.careful,
    }
    for way, make in ways.items():
        if make is not None:  # lm-eval is installed by `make bench` alone
            bench = Bench(
                folder,
                RESOURCES / "general_knowledge.csv",
                RESOURCES / "athletes.csv",
                1,
                0.05,
                "cpu",
                "float32",
            )
            bench.warm_up()
            found[way] = make(bench)()
    ours = found.pop("ours")
    assert all(len(values) for values in ours.values())
    for way, other in found.items():
        agree, words = case.agree(ours, other)
        assert agree, f"{way}: {words}"
