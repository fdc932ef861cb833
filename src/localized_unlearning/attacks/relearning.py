"""Relearning (sections 3.1.2 and A.4.2): does training on two forgotten athletes bring the others back?

LoRA adapters on every linear module of the unlearned model are trained on two athletes of the forget set,
with the retain and text losses; after every iteration the model sits the short exam. Dropout is on
while training and off while answering.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.attacks.adapters import folded, linear_modules
from localized_unlearning.config.evaluation import Relearning
from localized_unlearning.data.splits import read_split
from localized_unlearning.evaluation.exam import sheet, short_exam, take
from localized_unlearning.evaluation.rows import identity
from localized_unlearning.models import device as device_module
from localized_unlearning.models import loading
from localized_unlearning.models.deltas import unlearned
from localized_unlearning.progress import Progress
from localized_unlearning.unlearning import method
from localized_unlearning.unlearning.objectives.inject import inject
from localized_unlearning.unlearning.steps import Data, Lambdas, Sizes, gradients, read_data, schedule_of

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


def add_lora(model: Any, settings: Relearning, seed: int) -> list[Any]:
    """Put LoRA adapters on every linear module but the output layer, in place; B is 0, so nothing changes yet.

    Returns:
        The adapters' parameters, in float32; they alone require gradients.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=linear_modules(model),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    return [p.requires_grad_(True) for name, p in model.named_parameters() if "lora_" in name]


def dropout(model: Any, on: bool) -> None:
    """Switch the adapters' dropout, and only that."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.train(on)  # type: ignore[attr-defined]


def relearn(
    model: Any, adapters: list[Any], data: Data, settings: Relearning, seed: int
) -> Iterator[dict[str, float]]:
    """Train the adapters, one iteration after another; yields each iteration's losses, with dropout off.

    ``data.forget`` holds the relearned athletes with their right sport.
    """
    import torch

    optimizer = torch.optim.AdamW(adapters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = schedule_of(optimizer, settings.schedule, settings.iterations)
    states = 12.0 * sum(p.numel() for p in adapters)  # gradients and two moments
    tokens = device_module.micro_batch_tokens(settings.micro_batch_tokens, model, states)
    sizes = Sizes(len(data.forget), settings.retain_batch, settings.text_batch, tokens)
    lambdas = Lambdas(settings.lambda_relearn, settings.lambda_retain, settings.lambda_sft)
    # Not divided over the processes of a sharded model: dropout's draws must be those of one.
    steps = gradients(model, data, sizes, lambdas, method.of(inject, {}, "inject"), seed, divided=False)
    for iteration in range(settings.iterations):
        dropout(model, True)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed * 1_000_003 + iteration)
            losses = next(steps)
        dropout(model, False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        yield losses


def start(job: Job, model: Any, tokenizer: Any) -> tuple[list[Any], Iterator[dict[str, float]]]:
    """A job's unlearned model made ready in place; reading the iterator trains it, one iteration after another.

    Returns:
        The adapters' parameters, and :func:`relearn`.
    """
    settings, seed = job.config.relearning, int(job.wildcards["seed"])
    split = read_split(job.inputs["split"])
    used = split[split["train"] & (split["relearn"] | ~split["forget"])]
    data = read_data(job, tokenizer, used, list(used["answer"]), list(used["relearn"]))
    with unlearned(job, model):
        adapters = add_lora(model, settings, seed)
    dropout(model, False)
    job.facts.update(relearned=sorted(used.loc[used["relearn"], "subject"]))
    return adapters, relearn(model, adapters, data, settings, seed)


def run(job: Job) -> None:
    """Stage: the short exam before relearning (iteration 0) and after each iteration."""
    config, seed = job.config, int(job.wildcards["seed"])
    device = device_module.setup(config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], config.model.dtype, device)
    tokens = device_module.batch_tokens(config.compute, model)
    exam = sheet(short_exam(job), tokenizer, model, tokens)
    adapters, steps = start(job, model, tokenizer)
    answers = [take(exam, model)]
    progress = Progress("relearning", "iteration")
    for _ in progress.over(range(config.relearning.iterations)):
        losses = next(steps)
        with folded(model):
            answers.append(take(exam, model))
        progress.note(", ".join(f"{name} {value:.3f}" for name, value in losses.items()))
    job.facts.update(
        seeds={"relearning": seed, "athletes": config.series.seed, "mmlu": config.mmlu.seed},
        device=device,
        trained_parameters=sum(p.numel() for p in adapters),
    )
    for name in answers[0]:
        rows = [table[name].assign(iteration=iteration) for iteration, table in enumerate(answers)]
        pd.concat(rows, ignore_index=True).assign(**identity(job)).to_parquet(job.outputs[name], index=False)
