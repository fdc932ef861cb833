"""What stages really hold on a small model, against the cost model, allocation by allocation on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from allocations import allocations
from localized_unlearning import extensions
from localized_unlearning.config.reading import load
from localized_unlearning.config.unlearning import Masking
from localized_unlearning.costs import stages as costs
from localized_unlearning.jobs.job import Job, restrict
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.models import components, loading
from localized_unlearning.unlearning import masking, masks, precision, steps
from tiny_base import ATHLETES, PROMPTS, TEXT, TinyBase

pytestmark = pytest.mark.slow  # all of its tests together

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ROOT / "workflow/resources/general_knowledge.csv"
MICRO = {"micro_batch_tokens": 512}
SETTINGS: dict[str, Any] = {
    "compute": {"device": "cpu", "batch_tokens": 1024},
    "finetune": {**MICRO, "steps": 2, "batch_size": 32, "sft_batch_size": 16},
    "masking": {**MICRO, "steps": 2, "batch_size": 32, "text_batch": 16, "edit_sizes": [0, 1000]},
    "relearning": {**MICRO, "iterations": 1, "rank": 8, "retain_batch": 16, "text_batch": 16},
    "attacks": {
        "half_and_half": {**MICRO, "steps": 2, "batch_size": 32, "text_batch": 16, "rank": 8},
        "retain_only": {**MICRO, "steps": 2, "batch_size": 32, "text_batch": 16, "rank": None},
        "asked": {"retained": 8, "orders": 1},
    },
    "scores": {"attribution_patching": {"prompts": 24}, "causal_tracing": {"prompts": 8}},
    "localizations": {"manual": {"layers": [1, 2]}},
}
JOB = {"task": "sports", "objective": "erase", "seed": "0", "base_seed": "0"}
MANUAL = [f"{layer}.mlp.{kind}" for layer in (1, 2) for kind in ("up", "down")]


class Workshop:
    """A random Gemma of eight layers, wide beside its vocabulary, and the inputs of every stage that loads a model."""

    def __init__(self, base: TinyBase, folder: Path) -> None:
        sizes = transformers.GemmaConfig(
            vocab_size=len(base.tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=8,
            num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=2048,
        )  # fmt: skip
        torch.manual_seed(0)
        self.folder, self.model_folder = folder, folder / "base_model"
        model: Any = transformers.AutoModelForCausalLM.from_config(sizes)
        model.save_pretrained(self.model_folder)
        base.tokenizer.save_pretrained(self.model_folder)
        self.config = load([ROOT / "config.yaml"], SETTINGS)
        every = [str(c) for c in components.list_components(sizes, self.config.components)]
        self.inputs = {
            "base_model": self.model_folder, "prompts": PROMPTS, "text": TEXT, "athletes": ATHLETES, "mmlu": QUESTIONS,
            "split": base.write(folder / "split.parquet", base.split),
            "loss": extensions.file_of("erase", extensions.OBJECTIVES),
        }  # fmt: skip
        self.selections = {"nonlocalized": self._selection(every), "manual": self._selection(MANUAL)}
        found = costs.CostModel.of(self.config, self)
        self.costs = replace(
            found,
            data=replace(found.data, athletes=dict.fromkeys(("football", "baseball", "basketball"), 30)),
        )
        # a tokenizer of 500 tokens makes more of a prompt than the one that the model counts with
        self.costs.__dict__["prompts"] = {**self.costs.prompts, "training": (45, 26)}

    def _selection(self, names: list[str]) -> Path:
        path = self.folder / f"{len(names)}.json"
        path.write_text(json.dumps({"components": names, "parameters": 0}), encoding="utf-8")
        return path

    # where the cost model looks

    def base_model(self) -> Path:
        return self.model_folder

    def card(self) -> Path:
        return self.folder / "none"

    def source(self, dotted: str) -> Path:
        return self.folder / "none"

    def prompts(self) -> Path:
        return PROMPTS

    def selection(self, masks: bool, task: str, localization: str) -> Path:
        return self.folder / "none"

    def run(self, stage: str, wildcards: dict[str, str], peak: Callable[[Callable[[], object]], Any]) -> Any:
        """A stage on a model that is loaded already, its function called by ``peak``."""
        found = STAGES[stage]
        given = {**self.inputs, "selection": self.selections.get(wildcards.get("localization", ""))}
        given |= {name: self.folder / f"{name}.of" for name in ("delta", "mask", "known")}
        given |= {"method": None}
        outputs = {name: self.folder / f"{name}.of" for name in found.outputs}
        job = Job(found, restrict(self.config, found, wildcards), wildcards, given, outputs, "key")
        function = getattr(__import__(found.module, fromlist=["x"]), found.function)
        return peak(lambda: function(job))


@pytest.fixture(scope="module")
def workshop(tiny_base: TinyBase, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """With a delta and a mask of everything in its folder."""
    made = Workshop(tiny_base, tmp_path_factory.mktemp("peaks"))
    for stage in ("known_facts", "finetune", "mask"):
        made.run(stage, {**JOB, "localization": "nonlocalized"}, lambda function: function())
    return made


LONG = ("layer_probes", "head_ablation")
CASES = [
    ("known_facts", {}),
    ("text", {**JOB, "localization": "nonlocalized"}),
    ("multiple_choice", {**JOB, "localization": "nonlocalized"}),
    ("finetune", {**JOB, "localization": "nonlocalized"}),
    ("finetune", {**JOB, "localization": "manual"}),
    ("mask", {**JOB, "localization": "nonlocalized"}),
    ("mask", {**JOB, "localization": "manual"}),
    ("mmlu", {**JOB, "localization": "nonlocalized"}),
    ("facts", {**JOB, "localization": "nonlocalized"}),
    ("sweep", {"task": "sports", "localization": "nonlocalized", "seed": "0", "base_seed": "0"}),
    ("relearn", {**JOB, "localization": "nonlocalized"}),
    ("probe", {**JOB, "localization": "nonlocalized"}),
    ("attack", {**JOB, "localization": "nonlocalized", "attack": "half_and_half"}),
    ("attack", {**JOB, "localization": "nonlocalized", "attack": "retain_only"}),
    ("attack", {**JOB, "localization": "nonlocalized", "attack": "quantization"}),
    ("score", {"task": "sports", "scores": "attribution_patching"}),
    ("score", {"task": "sports", "scores": "causal_tracing"}),
]


@pytest.mark.parametrize(
    ("stage", "wildcards"),
    [*CASES, *(pytest.param(stage, {"base_seed": "0"}, marks=pytest.mark.slow) for stage in LONG)],
    ids=[
        *(" ".join([s, *(w.get(n, "") for n in ("localization", "scores", "attack"))]) for s, w in CASES),
        *LONG,
    ],
)
def test_a_stage_holds_what_the_plan_says(
    stage: str, wildcards: dict[str, str], workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches anything of the model's size that is built beside what the cost model knows of."""
    loaded = loading.load(workshop.model_folder, "float32", "cpu")
    monkeypatch.setattr(loading, "load", lambda *_: loaded)
    weights = sum(p.nbytes for p in loaded[0].parameters())
    found = workshop.run(stage, wildcards, allocations)
    said = workshop.costs.cost(stage, wildcards)
    assert said.device["weights"] == pytest.approx(weights, rel=0.01)
    assert said.device_bytes == pytest.approx(weights + found.peak, rel=0.15)


# Beside one matrix, nothing of a matrix's size but its like.


def wide() -> Any:
    """A model of which one matrix (2 MiB) is larger than all that a few tokens make."""
    torch.manual_seed(0)
    sizes = transformers.LlamaConfig(
        vocab_size=61, hidden_size=128, intermediate_size=4096, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    model: Any = transformers.AutoModelForCausalLM.from_config(sizes)
    return model.eval().requires_grad_(False)


def few() -> steps.Data:
    return steps.Data([([2, 5, 9], 7)] * 2, [([2, 6, 9], 8)] * 2, torch.arange(24).reshape(2, 12))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["mask", "weights"])
def test_training_and_ranking_a_mask_make_nothing_larger_than_two_matrices(
    dtype: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches what once lost a mask of Gemma-7B after its last step: all of it compared with 0 at once."""
    monkeypatch.setattr(masks, "CHUNK", 2**14)
    model = wide().to(getattr(torch, dtype))
    names = [n for n, p in model.named_parameters() if "mlp" in n]
    settings = Masking.model_validate(
        {
            "steps": 2,
            "batch_size": 2,
            "text_batch": 2,
            "optimizer": "sgd",
            "learning_rate": 10,
            "parameterization": form,
        }
    )
    held: dict[str, Any] = {}

    def train() -> None:
        held["removed"], _ = masking.train(
            model, few(), dict.fromkeys(names), settings, steps.Lambdas(1, 1, 1), seed=0
        )

    def rank() -> None:
        held["ranked"] = masks.rank(held["removed"], 1000)

    matrix = max(p.numel() for p in model.parameters()) * 4
    total = sum(model.get_parameter(n).numel() for n in names)
    training, ranking = allocations(train), allocations(rank)
    assert training.largest <= 2 * matrix
    width = 4 if dtype == "float32" else 2
    held_bytes = {"mask": 4 + 2 * width, "weights": max(2 * width, width + 4)}[form] * total
    assert training.peak <= held_bytes + 5 * matrix  # the tokens' activations among them; all would be 9 more
    assert len(held["ranked"]) == 1000
    assert ranking.peak <= 64 * masks.CHUNK < matrix


@pytest.mark.parametrize("kind", ["bf16", "bf16_stochastic_rounding", "fp32_master"])
def test_an_optimizers_step_makes_no_more_than_it_says(kind: str) -> None:
    """Catches temporaries of all parameters at once, and a step that holds more than is reserved for it."""
    from localized_unlearning.config.unlearning import Finetune

    model = wide().bfloat16()
    parameters = [p for n, p in model.named_parameters() if "mlp" in n]
    settings = Finetune.model_validate({"precision": kind})
    optimizer = precision.adamw(parameters, settings, 0)

    def step() -> None:
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()

    found = allocations(step)
    matrix = max(p.numel() for p in parameters)
    assert found.largest <= 2 * 2 * matrix  # float32 of a bfloat16 matrix
    assert found.peak == pytest.approx(precision.reserved(parameters, settings), rel=0.1)
