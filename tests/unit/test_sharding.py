"""Models in parts over several processes, and batch sizes from free memory: both change where and when, not what."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_finetune import some_data

from localized_unlearning import computing, extensions
from localized_unlearning.attacks import relearning
from localized_unlearning.config.base import Compute
from localized_unlearning.config.evaluation import Relearning
from localized_unlearning.config.localization import Components, Score
from localized_unlearning.config.reading import load
from localized_unlearning.config.run import Config
from localized_unlearning.config.unlearning import Finetune, Masking
from localized_unlearning.errors import UserError
from localized_unlearning.jobs.job import Job
from localized_unlearning.jobs.stages import STAGES
from localized_unlearning.localization import attribution_patching, causal_tracing
from localized_unlearning.localization import pairs as pairs_module
from localized_unlearning.localization.effects import Effects
from localized_unlearning.models import activations, deltas, packing, sharding
from localized_unlearning.models import components as components_module
from localized_unlearning.models import device as device_module
from localized_unlearning.models.components import Component
from localized_unlearning.provenance import records
from localized_unlearning.unlearning import finetune, masking
from localized_unlearning.unlearning import masks as masks_module
from localized_unlearning.unlearning import method as method_module
from localized_unlearning.unlearning import steps as steps_module
from localized_unlearning.unlearning.objectives.erase import erase
from localized_unlearning.workflow import runner
from tiny_base import PROMPTS as BOOK
from tiny_base import ROOT, TEXT, TinyBase
from tiny_models import ARCHITECTURES

QUESTIONS = ROOT / "workflow/resources/general_knowledge.csv"
PROMPTS = [[2, 7, 3, *range(10, 10 + n)] for n in (1, 4, 2, 6, 3, 5)]
CHOSEN = [Component(0, "up"), Component(1, "o", 2), Component(1, "q", 1), Component(2, "v")]
"""Whole matrices, and heads by rows (q) and by columns (o)."""
PAIRS = pairs_module.Pairs(
    [[2, 7, 30, 31, 5], [2, 7, 32, 5]],
    [[2, 7, 40, 41, 5], [2, 7, 42, 5]],
    [(2, 4), (2, 3)],
    [0, 1],
    [3, 9, 11],
)


# ---- in parts and whole, side by side in each of the processes


def compare(job: Job) -> None:
    """What a process checks on the models given: all that stages do with a model gives the same in parts."""
    for original in job.inputs["models"]:
        answers(*both(original))
        for settings, lambdas, rtol in (
            (Finetune(micro_batch_tokens=16, clip_norm=0.5), steps_module.Lambdas(1, 1, 1), 1e-9),
            (Finetune(micro_batch_tokens=4096, weight_decay=0.1), steps_module.Lambdas(1, 1, 0), 1e-9),
            (Finetune(micro_batch_tokens=4096), steps_module.Lambdas(1, 1, 1), 1e-4),  # logits are float32
        ):
            finetuning(*both(original), settings, lambdas, rtol)
        # In one batch, so that nothing is added up in another order.
        half = copy.deepcopy(original).bfloat16()
        finetuning(*both(half), Finetune(precision="fp32_master"), steps_module.Lambdas(1, 1, 0), 0)
        for form in ("mask", "weights"):
            masks(*both(original), form)
        edits(*both(original))
        relearned(*both(original))


def both(original: Any) -> tuple[Any, Any]:
    """A model, and the same in parts."""
    return copy.deepcopy(original), sharding.sharded(lambda: copy.deepcopy(original), "cpu")


def next_tokens(model: Any) -> torch.Tensor:
    return packing.next_token(model, PROMPTS, [3, 9], 16).candidates


def answers(whole: Any, parts: Any) -> None:
    weights = [components_module.module_of(model, 0, "up").weight for model in (whole, parts)]
    assert sharding.held(weights[1]).numel() < weights[0].numel() == weights[1].numel()
    for tokens in (8, 16, 4096):  # many batches, fewer than processes, one
        wanted, found = (packing.next_token(m, PROMPTS, [3, 9], tokens) for m in (whole, parts))
        for name in ("candidates", "argmax", "log_normalizer"):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    residuals = [activations.residuals(m, PROMPTS, 16) for m in (whole, parts)]
    assert (residuals[0] == residuals[1]).all()
    components = components_module.list_components(whole.config, Components())
    methods: tuple[Callable[..., Effects], ...] = (attribution_patching.attribution_patching, traced)
    for method in methods:
        one, two = (method(model, PAIRS, components, 16) for model in (whole, parts))
        assert (one.values == two.values).all() and (one.differences == two.differences).all()


def finetuning(
    whole: Any, parts: Any, settings: Finetune, lambdas: steps_module.Lambdas, rtol: float
) -> None:
    settings = settings.model_copy(update={"steps": 3, "batch_size": 4, "learning_rate": 0.01})
    histories, trained = [], []
    untouched = copy.deepcopy(whole)
    for model in (whole, parts):
        trainable = components_module.trainable(model, CHOSEN)
        parameters = {n: model.get_parameter(n) for n in trainable}
        base = {n: sharding.held(p).clone() for n, p in parameters.items()}
        history = finetune.train(
            model, some_data(), trainable, settings, lambdas, method_module.of(erase, {}, "erase"), 0
        )
        histories.append(history.assign(**finetune.moved(model, base, trainable)))
        trained.append({n: sharding.whole(p, sharding.held(p)) for n, p in parameters.items()})
    # a norm of bfloat16 gradients is a bfloat16, whose last bit may differ
    pd.testing.assert_frame_equal(histories[0], histories[1], rtol=rtol or 2**-7)
    same(trained[0], trained[1], rtol=rtol)
    before = next_tokens(untouched)
    fresh = sharding.sharded(lambda: copy.deepcopy(untouched), "cpu")
    with deltas.applied(fresh, trained[0]):
        assert torch.equal(next_tokens(fresh), next_tokens(whole))
    assert torch.equal(next_tokens(fresh), before)


def masks(whole: Any, parts: Any, form: Any) -> None:
    settings = Masking(
        steps=3, batch_size=4, text_batch=4, micro_batch_tokens=16, learning_rate=5.0, clip_norm=1.0,
        parameterization=form, optimizer="sgd",
    )  # fmt: skip
    histories, trained = [], []
    for model in (whole, parts):
        trainable = components_module.trainable(model, CHOSEN)
        d, history = masking.train(model, some_data(), trainable, settings, steps_module.Lambdas(1, 1, 1), 0)
        histories.append(history)
        trained.append({n: sharding.whole(model.get_parameter(n), value) for n, value in d.items()})
    pd.testing.assert_frame_equal(histories[0], histories[1], rtol=1e-6)  # d is float32
    same(trained[0], trained[1], rtol=1e-5)
    assert torch.equal(next_tokens(whole), next_tokens(parts))  # the base's weights are back


def edits(whole: Any, parts: Any) -> None:
    sizes = {n: whole.get_parameter(n).numel() for n in components_module.trainable(whole, CHOSEN)}
    ranked = torch.randperm(sum(sizes.values()), generator=torch.Generator().manual_seed(0))[:900]
    before = next_tokens(whole)
    for _ in zip(*(masks_module.edits(m, ranked, sizes, [10, 900]) for m in (whole, parts)), strict=True):
        assert torch.equal(next_tokens(whole), next_tokens(parts))
        assert not torch.equal(next_tokens(whole), before)
    assert torch.equal(next_tokens(whole), before) and torch.equal(next_tokens(parts), before)


def relearned(whole: Any, parts: Any) -> None:
    settings = Relearning(iterations=2, rank=4, retain_batch=4, text_batch=4, dropout=0.5)
    found = []
    for model in (whole, parts):
        next_tokens(model)  # as the exam before
        adapters = relearning.add_lora(model, settings, 0)
        steps = list(relearning.relearn(model, adapters, some_data(), settings, 0))
        found.append((steps, next_tokens(model)))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def traced(model: Any, pairs: Any, found: Any, tokens: int) -> Effects:
    sites = causal_tracing.tracing_sites(model, Score(method="causal_tracing"), found)
    return causal_tracing.causal_tracing(model, pairs, sites, 3.0, 0, tokens)


def same(wanted: dict[str, Any], found: dict[str, Any], rtol: float = 1e-9) -> None:
    """Parameters are equal where they were put together: on the first process."""
    first = torch.distributed.get_rank() == 0
    for name, value in wanted.items():
        if first:
            torch.testing.assert_close(found[name], value, rtol=rtol, atol=min(rtol, 1e-9), msg=name)
        else:
            assert not found[name].numel()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "names"), [(2, ARCHITECTURES), (3, ["gemma3"])])
def test_a_model_in_parts_is_the_whole(
    processes: int, names: Sequence[str], tiny: Callable[[str], Any]
) -> None:
    """Catches a layer that is read in part, gradients added twice or once too little, and rows off by a process.

    Three processes divide no matrix here evenly, and have fewer batches than processes.
    """
    config = Config(compute=Compute(device="cpu", shards=processes))
    given = {"models": [tiny(name) for name in names]}
    sharding.run(Job(STAGES["finetune"], config, {}, given, {}, "key"), compare, processes)


# ---- stages, as the config asks


@dataclass
class Runs:
    """Stages of the tiny base model, run by the runner with the config given."""

    base: TinyBase
    folder: Path
    config: Config

    def __call__(self, stage: str, inputs: dict[str, Path]) -> tuple[dict[str, Path], records.Record]:
        found = STAGES[stage]
        named = {
            "base_seed": "0",
            "task": "sports",
            "objective": "erase",
            "localization": "manual",
            "seed": "0",
        }
        wildcards = {name: named[name] for name in found.wildcards}
        outputs = {name: self.folder / stage / f"{name}.file" for name in found.outputs}
        given: dict[str, Any] = {i.name: [] if i.many else None for i in found.inputs}
        given |= {"base_model": self.base.folder, "prompts": BOOK, "text": TEXT, **inputs}
        record = runner.execute(found, self.config, wildcards, given, outputs, self.folder)
        assert record is not None
        return outputs, record


@pytest.fixture
def runs(tiny_base: TinyBase, tmp_path: Path) -> Callable[[int], Runs]:
    """Runs with as many processes per job; each in its own folder."""

    def make(shards: int) -> Runs:
        changed = {
            "compute": {"device": "cpu", "shards": shards, "threads": 2, "batch_tokens": 512},
            "finetune": {"steps": 3, "batch_size": 6, "micro_batch_tokens": 64},
            "masking": {"steps": 2, "batch_size": 6, "learning_rate": 1.0, "edit_sizes": [0, 50, 100]},
        }
        config = load([ROOT / "config.yaml"], changed)
        folder = tmp_path / str(shards)
        folder.mkdir()
        return Runs(tiny_base, folder, config)

    return make


@pytest.mark.slow
def test_stages_in_two_processes_make_the_same_files(runs: Callable[[int], Runs], tmp_path: Path) -> None:
    """Catches outputs of the wrong process, parts of a weight for the whole, and records without what the job found."""
    selection = tmp_path / "selection.json"
    selection.write_text(json.dumps({"components": [str(c) for c in CHOSEN]}))
    erase_file = extensions.file_of("erase", extensions.OBJECTIVES)
    assert erase_file is not None
    made: list[dict[str, Any]] = []
    for several in (runs(1), runs(2)):
        split = several.base.write(several.folder / "split.parquet", several.base.split)
        delta, trained = several("finetune", {"split": split, "selection": selection, "loss": erase_file})
        mask, masked = several("mask", {"split": split, "selection": selection})
        facts, evaluated = several("facts", {"split": split, "delta": delta["delta"]})
        mmlu, _ = several("mmlu", {"delta": delta["delta"], "mmlu": QUESTIONS})
        made.append(
            {
                "history": pd.read_csv(delta["history"]),
                "delta": load_file(delta["delta"]),
                "mask": {name: order.tolist() for name, order in load_file(mask["mask"]).items()},
                "facts": pd.read_parquet(facts["facts"]),
                "mmlu": pd.read_parquet(mmlu["mmlu"]),
                "records": (trained, masked, evaluated),
            }
        )
        assert not list(several.folder.rglob(".tmp-*"))
    one, two = made
    for name in ("history", "facts", "mmlu"):
        pd.testing.assert_frame_equal(two[name], one[name], rtol=1e-4, atol=1e-5)
    assert two["delta"].keys() == one["delta"].keys()
    for name, value in one["delta"].items():
        torch.testing.assert_close(two["delta"][name], value, rtol=1e-4, atol=1e-6)
    assert two["mask"]["random"] == one["mask"]["random"]
    for ranking in ("mask", "saliency"):
        assert len(set(two["mask"][ranking]) & set(one["mask"][ranking])) >= 98  # of 100, in float32
    for record, other in zip(
        one["records"][:2], two["records"][:2], strict=True
    ):  # the third reads the delta
        assert record.key == other.key
    for record, other in zip(one["records"], two["records"], strict=True):
        assert (record.facts["device"], other.facts["device"]) == ("cpu", "cpu*2")
        assert other.memory and other.memory["process"] > 0
        assert record.facts.keys() == other.facts.keys()


def refuse(job: Job) -> None:
    raise UserError(f"no athlete in {job.wildcards['task']}: add one")


def ends(job: Job) -> None:
    import torch.distributed

    if torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "said"),
    [(refuse, "no athlete in basketball: add one"), (ends, "process 2 of the 2 that share the model ended")],
)
def test_a_process_that_fails_ends_the_job(function: Callable[[Job], None], said: str) -> None:
    """Catches a job that waits for ever for a process that is gone, and a traceback for a user's mistake."""
    config = Config(compute=Compute(device="cpu", shards=2))
    job = Job(STAGES["finetune"], config, {"task": "basketball"}, {}, {}, "key")
    with pytest.raises(UserError, match=said):
        sharding.run(job, function, 2)
    assert not multiprocessing.active_children()


def test_more_processes_than_gpus() -> None:
    """Catches a model that is quietly put on fewer devices than it was planned for."""
    if torch.cuda.device_count() >= 64:
        pytest.skip("this machine has 64 GPUs")
    with pytest.raises(UserError, match=r"compute\.shards is 64"):
        device_module.setup(Compute(shards=64))


# ---- batches


def test_batches_from_free_memory(tiny: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a batch larger than memory, one that ignores the config, and one that follows every free megabyte."""
    model = tiny("gemma")
    assert device_module.batch_tokens(Compute(batch_tokens=77), model) == 77
    with computing.noting():  # what a setting came to is what a record says
        assert device_module.batch_tokens(Compute(batch_tokens="auto"), model) == 1024
        assert device_module.micro_batch_tokens(512, model, 0) == 512
        found = computing.compute(Compute().model_dump())
    assert (found["batch_tokens"], found["micro_batch_tokens"]) == (1024, 512)
    assert "batch_tokens" not in computing.compute(Compute().model_dump())

    gpu = torch.device("cuda:0")
    sizes_of = SimpleNamespace(
        hidden_size=3072,
        intermediate_size=24576,
        model_type="gemma",
        num_attention_heads=16,
        head_dim=256,
        num_hidden_layers=28,
    )
    config = SimpleNamespace(get_text_config=lambda: sizes_of, model_type="gemma")
    large: Any = SimpleNamespace(
        device=gpu, config=config, get_submodule=lambda name: [torch.nn.Linear(1, 1)]
    )
    auto = Compute(batch_tokens="auto")

    def chosen(free: float, kept: int = 1) -> int:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        return device_module.batch_tokens(auto, large, kept)

    sizes = [chosen(free) for free in (1e6, 2e9, 10e9, 60e9)]
    assert (
        sizes == sorted(sizes)
        and sizes[0] == device_module.LEAST_TOKENS
        and sizes[-1] == device_module.MOST_TOKENS
    )
    assert chosen(10e9) == chosen(10.1e9)
    assert chosen(60e9, kept=28) < chosen(60e9)
    assert chosen(60e9, kept=28) * 28 * (10 * 3072 + 4 * 24576) * 4 <= 30e9


def test_micro_batches_from_free_memory(tiny: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches activations that are not measured, states that are forgotten, and a micro-batch that does not fit."""
    model = tiny("gemma").float()
    assert device_module.micro_batch_tokens(77, model, 0) == 77
    assert device_module.micro_batch_tokens("auto", model, 0) == 4096
    gpu: Any = SimpleNamespace(
        device=torch.device("cuda:0"), config=model.config, get_submodule=model.get_submodule
    )
    monkeypatch.setattr(device_module, "kept_for_backward", lambda model: 5.7e6)  # Gemma-7B, manual
    monkeypatch.setattr(device_module, "free_memory", lambda device: 68_000_000_000)
    sizes = [device_module.micro_batch_tokens("auto", gpu, gb * 1e9) for gb in (67.9, 50, 30, 6)]
    assert sizes == [device_module.LEAST_MICRO, 2048, 4096, 6144]
    assert all(size * 5.7e6 <= (68 - gb) * 1e9 for size, gb in zip(sizes[1:], (50, 30, 6), strict=True))


def test_activations_are_measured_for_what_is_trained(tiny: Callable[[str], Any]) -> None:
    """Catches a measurement that counts weights, or the same whatever is trained."""
    model = tiny("llama").float()
    found = []
    for layer in (2, 0):
        model.get_submodule(f"model.layers.{layer}.mlp").requires_grad_(True)
        found.append(device_module.kept_for_backward(model))
    hidden, mlp = 32, 48
    assert 4 * 3 * mlp < found[0] < 4 * (8 * hidden + 5 * mlp)  # one layer's MLP and what is above it
    assert 2 * found[0] < found[1] < 4 * (3 * (20 * hidden + 6 * mlp))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_do_not_depend_on_the_batch(
    architecture: str, tiny: Callable[[str], Any], float64: None
) -> None:
    """Catches padding or a neighbour that leaks into an answer."""
    model = tiny(architecture)
    one, many = (packing.next_token(model, PROMPTS, [3, 9], tokens) for tokens in (8, 4096))
    torch.testing.assert_close(one.candidates, many.candidates, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.log_normalizer, many.log_normalizer, rtol=1e-5, atol=1e-6)
    assert torch.equal(one.argmax, many.argmax)
