"""Localized fine-tuning (sections 2.2, 2.4 and A.3): unlearn by training the chosen components only."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning import components as comp
from localized_unlearning import losses, models, packing
from localized_unlearning.config import SPORTS, Finetune, Objective
from localized_unlearning.localization import read_selection
from localized_unlearning.progress import Progress
from localized_unlearning.prompts import load_prompts
from localized_unlearning.splits import read_split

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.stages import Job

Item = tuple[list[int], int]
"""A tokenised prompt and its answer's token."""


@dataclass(frozen=True)
class Data:
    """What fine-tuning reads.

    Attributes:
        forget: forget-set prompts with the right answer (erase) or the injected one (inject).
        retain: retain-set prompts with the right answer.
        text: windows of plain text ``[window, token]``.
    """

    forget: list[Item]
    retain: list[Item]
    text: Tensor


@dataclass(frozen=True)
class Weights:
    """λ1, λ2 and λ3."""

    forget: float
    retain: float
    sft: float


def targets(split: pd.DataFrame, objective: Objective, seed: int) -> list[str]:
    """The answer that each row of ``split`` is trained on: the sport, or for injected facts a false one."""
    rng = random.Random(seed)
    answers = []
    for sport, forget in zip(split["sport"], split["forget"], strict=True):
        if forget and objective.loss == "inject":
            others = [s for s in SPORTS if s != sport]
            answers.append("golf" if objective.target == "golf" else rng.choice(others))
        else:
            answers.append(sport)
    return answers


def cycle(items: Sequence[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Endless batches of ``size``: every item once in random order, then again in another order."""
    endless = itertools.chain.from_iterable(rng.sample(items, len(items)) for _ in itertools.count())
    while True:
        yield list(itertools.islice(endless, size))


def fact_losses(
    model: Any, forget: Sequence[Item], retain: Sequence[Item], loss: str, tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Summed forget and retain loss of each packed micro-batch, ready for ``backward``.

    Both sets share their prompt's beginning, so they are packed together.
    """
    import torch

    items = [*forget, *retain]
    for batch in packing.batches([prompt for prompt, _ in items], model, tokens):
        logits = packing.logits_of(model, packing.last_hidden(model, batch))
        answer = torch.tensor([items[i][1] for i in batch.prompts.tolist()], device=logits.device)
        is_forget = (batch.prompts < len(forget)).to(logits.device)
        forgotten = losses.erase if loss == "erase" else losses.cross_entropy
        yield (
            (forgotten(logits[is_forget], answer[is_forget])).sum(),
            losses.cross_entropy(logits[~is_forget], answer[~is_forget]).sum(),
        )


def train(
    model: Any,
    data: Data,
    trainable: dict[str, Any],
    settings: Finetune,
    weights: Weights,
    loss: str,
    seed: int,
) -> pd.DataFrame:
    """Train the parameters in ``trainable`` in place; everything else keeps its bits.

    One step takes ``batch_size`` examples of each loss term, accumulated over micro-batches; every
    term is averaged over its examples.

    Returns:
        One row per step: ``step``, ``learning_rate``, ``forget``, ``retain``, ``sft`` and ``gradient_norm``.
    """
    import torch

    parameters = {name: model.get_parameter(name).requires_grad_(True) for name in trainable}
    before = {name: p.detach().clone() for name, p in parameters.items() if trainable[name] is not None}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        if settings.schedule == "cosine"
        else torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    )
    rng = random.Random(seed)
    size = settings.batch_size
    forget_batches = cycle(range(len(data.forget)), size, rng)
    retain_batches = cycle(range(len(data.retain)), size, rng)
    windows_per_step = settings.sft_batch_size or size
    text_batches = cycle(range(len(data.text)), windows_per_step, rng)
    rows = max(1, settings.micro_batch_tokens // data.text.shape[1])
    history = []
    progress = Progress("fine-tuning", "step")
    for step in progress.over(range(settings.steps)):
        forget = [data.forget[i] for i in next(forget_batches)]
        retain = [data.retain[i] for i in next(retain_batches)]
        total = {"forget": 0.0, "retain": 0.0, "sft": 0.0}
        for f, r in fact_losses(model, forget, retain, loss, settings.micro_batch_tokens):
            ((weights.forget * f + weights.retain * r) / size).backward()
            total["forget"] += f.item() / size
            total["retain"] += r.item() / size
        if weights.sft:
            for windows in data.text[next(text_batches)].split(rows):
                sft = losses.text_losses(model, windows.to(model.device)).sum() / windows_per_step
                (weights.sft * sft).backward()
                total["sft"] += sft.item()
        for name, mask in trainable.items():
            if mask is not None:
                parameters[name].grad.mul_(mask)
        limit = settings.clip_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), limit))
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        with torch.no_grad():
            for name, old in before.items():
                parameters[name].copy_(torch.where(trainable[name], parameters[name], old))
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        history.append({"step": step + 1, "learning_rate": rate, **total, "gradient_norm": norm})
        progress.note(", ".join(f"{name} {value:.3f}" for name, value in total.items()))
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return pd.DataFrame(history)


def moved(model: Any, base: dict[str, Tensor], trainable: dict[str, Any]) -> dict[str, float]:
    """What share of the trainable weights changed, and by how much at most."""
    changed, total, largest = 0, 0, 0.0
    for name, mask in trainable.items():
        difference = (model.get_parameter(name).detach() - base[name]).abs()
        count = difference.numel() if mask is None else int(mask.expand_as(difference).sum())
        changed += int((difference > 0).sum())
        total += count
        largest = max(largest, float(difference.max()))
    return {"share_of_weights_moved": changed / total, "largest_change": largest}


def run(job: Job) -> None:
    """Stage: one unlearned model, as a delta and the losses of every step."""
    config = job.config
    task = config.tasks[job.wildcards["task"]]
    objective = config.objectives[job.wildcards["objective"]]
    assert task is not None and objective is not None
    seed = int(job.wildcards["seed"])
    device = models.setup(config.compute)
    model, tokenizer = models.load(job.inputs["base_model"], config.model.dtype, device)
    split = read_split(job.inputs["split"])
    split = split[split["train"]].reset_index(drop=True)
    prompt = load_prompts(job.inputs["prompts"])[config.prompts.training]
    answers = targets(split, objective, seed)
    kinds = sorted(set(answers))
    token = dict(zip(kinds, models.answer_tokens(tokenizer, kinds), strict=True))
    encoded = models.encode(tokenizer, [prompt.render(a) for a in split["athlete"]])
    items = [(ids, token[a]) for ids, a in zip(encoded, answers, strict=True)]
    text = Path(job.inputs["text"]).read_text(encoding="utf-8")
    data = Data(
        [i for i, f in zip(items, split["forget"], strict=True) if f],
        [i for i, f in zip(items, split["forget"], strict=True) if not f],
        losses.text_windows(tokenizer, text, config.text.tokens),
    )
    trainable = comp.trainable(model, read_selection(job.inputs["selection"]))
    base = {name: model.get_parameter(name).detach().clone() for name in trainable}
    weights = Weights(task.lambda_forget, config.finetune.lambda_retain, config.finetune.lambda_sft)
    history = train(model, data, trainable, config.finetune, weights, objective.loss, seed)
    job.facts.update(seeds={"finetune": seed}, device=device, **moved(model, base, trainable))
    tensors = {name: model.get_parameter(name) for name in trainable}
    models.save_delta(job.outputs["delta"], tensors, models.weights_digest(job.inputs["base_model"]))
    history.to_csv(job.outputs["history"], index=False)
