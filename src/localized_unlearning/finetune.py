"""Localized fine-tuning (sections 2.2, 2.4 and A.3): unlearn by training the chosen components only."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning import components as comp
from localized_unlearning import extensions, losses, models, packing, precision, sharding
from localized_unlearning.config import SPORTS, Finetune, Objective, finetune_settings
from localized_unlearning.documents import read_documents
from localized_unlearning.errors import UserError
from localized_unlearning.localization import read_selection
from localized_unlearning.losses import ForgetLoss
from localized_unlearning.progress import Progress
from localized_unlearning.prompts import load_prompts
from localized_unlearning.splits import read_split
from localized_unlearning.vocabulary import log_odds

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


@dataclass(frozen=True)
class Sizes:
    """Examples of each loss term in a step, and tokens of one forward and backward."""

    forget: int
    retain: int
    text: int
    micro_batch_tokens: int


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


def read_data(
    job: Job, tokenizer: Any, athletes: pd.DataFrame, answers: Sequence[str], forget: Sequence[bool]
) -> Data:
    """The training prompt about ``athletes``, each with its answer, and the plain text; all tokenised.

    Args:
        job: gives the prompts file, the text file and their settings.
        tokenizer: the model's.
        athletes: rows with a column ``athlete``.
        answers: what each athlete's prompt is trained on.
        forget: which of them count for the forget loss; the others for the retain loss.
    """
    prompt = load_prompts(job.inputs["prompts"])[job.config.prompts.training]
    kinds = sorted(set(answers))
    token = dict(zip(kinds, models.answer_tokens(tokenizer, kinds), strict=True))
    encoded = models.encode(tokenizer, [prompt.render(a) for a in athletes["athlete"]])
    items = [(ids, token[a]) for ids, a in zip(encoded, answers, strict=True)]
    text = read_documents(job.inputs["text"], job.config.text.documents)
    return Data(
        [i for i, f in zip(items, forget, strict=True) if f],
        [i for i, f in zip(items, forget, strict=True) if not f],
        losses.text_windows(tokenizer, text, job.config.text.tokens),
    )


def cycle(items: Sequence[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Endless batches of ``size``: every item once in random order, then again in another order."""
    endless = itertools.chain.from_iterable(rng.sample(items, len(items)) for _ in itertools.count())
    while True:
        yield list(itertools.islice(endless, size))


def fact_losses(
    model: Any,
    forget: Sequence[Item],
    retain: Sequence[Item],
    loss: str | ForgetLoss,
    tokens: int,
    divided: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Summed forget and retain loss of each packed micro-batch, ready for ``backward``.

    Both sets share their prompt's beginning, so they are packed together. Of a sharded model's batches, this process's.

    Raises:
        UserError: when a loss that is not ours gives anything but one number a prompt.
    """
    import torch

    items = [*forget, *retain]
    batches = packing.batches([prompt for prompt, _ in items], model, tokens)
    for batch, counts in sharding.share(batches, model if divided else None):
        answer = torch.tensor([items[i][1] for i in batch.prompts.tolist()], device=model.device)
        odds = log_odds(model, packing.last_hidden(model, batch), answer)
        is_forget = (batch.prompts < len(forget)).to(odds.device)
        forgotten = (losses.FORGET[loss] if isinstance(loss, str) else loss)(odds[is_forget])
        if getattr(forgotten, "shape", None) != odds[is_forget].shape:
            raise UserError(
                "the forget loss must give one number a prompt, as a tensor in the shape of the log-odds: correct it"
            )
        yield forgotten.sum() * counts, losses.cross_entropy(odds[~is_forget]).sum() * counts


def gradients(
    model: Any,
    data: Data,
    sizes: Sizes,
    weights: Weights,
    loss: str | ForgetLoss,
    seed: int,
    divided: bool = True,
) -> Iterator[dict[str, float]]:
    """One step after another: accumulate the gradient of the whole loss, and yield the step's losses.

    Gradients land in whatever of ``model`` requires them; the caller moves the parameters and clears
    the gradients before it asks for the next step. Every loss term is averaged over its examples. The processes of a
    sharded model take a part of the work each, unless it is not to be ``divided``.

    Yields:
        ``forget``, ``retain`` and ``sft`` in nats, before the step.
    """
    import torch

    among = model if divided else None
    rng = random.Random(seed)
    forget_batches = cycle(range(len(data.forget)), sizes.forget, rng)
    retain_batches = cycle(range(len(data.retain)), sizes.retain, rng)
    text_batches = cycle(range(len(data.text)), sizes.text, rng)
    rows = min(sizes.micro_batch_tokens // data.text.shape[1], -(-sizes.text // sharding.count(among)))
    rows = max(1, rows)
    while True:
        forget = [data.forget[i] for i in next(forget_batches)]
        retain = [data.retain[i] for i in next(retain_batches)]
        total = {"forget": 0.0, "retain": 0.0, "sft": 0.0}
        for f, r in fact_losses(model, forget, retain, loss, sizes.micro_batch_tokens, divided):
            (weights.forget * f / sizes.forget + weights.retain * r / sizes.retain).backward()
            total["forget"] += f.item() / sizes.forget
            total["retain"] += r.item() / sizes.retain
        if weights.sft:
            for windows, counts in sharding.share(data.text[next(text_batches)].split(rows), among):
                sft = counts * losses.text_losses(model, windows.to(model.device)).sum() / sizes.text
                (weights.sft * sft).backward()
                total["sft"] += sft.item()
        summed = sharding.total(torch.tensor([*total.values()], dtype=torch.float64), among)
        yield dict(zip(total, summed.tolist(), strict=True))


def schedule_of(optimizer: Any, kind: str, steps: int) -> Any:
    """The learning-rate schedule: cosine to 0 over ``steps`` (A.3), or constant."""
    import torch

    if kind == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def train(
    model: Any,
    data: Data,
    trainable: dict[str, Any],
    settings: Finetune,
    weights: Weights,
    loss: str | ForgetLoss,
    seed: int,
) -> pd.DataFrame:
    """Train the parameters in ``trainable`` in place; everything else keeps its bits.

    Returns:
        One row per step: ``step``, ``learning_rate``, ``forget``, ``retain``, ``sft`` and ``gradient_norm``.
    """
    import torch

    parameters = {name: model.get_parameter(name).requires_grad_(True) for name in trainable}
    held = {name: sharding.held(p) for name, p in parameters.items()}
    masks = {n: sharding.part(parameters[n], mask) for n, mask in trainable.items() if mask is not None}
    before = {name: held[name].clone() for name in masks}
    optimizer = precision.adamw(list(held.values()), settings, seed)
    schedule = schedule_of(optimizer, settings.schedule, settings.steps)
    size = settings.batch_size
    sizes = Sizes(size, size, settings.sft_batch_size or size, settings.micro_batch_tokens)
    steps = gradients(model, data, sizes, weights, loss, seed)
    history = []
    progress = Progress("fine-tuning", "step")
    for step in progress.over(range(settings.steps)):
        total = next(steps)
        sharding.take_gradients(parameters, held)
        for name, mask in masks.items():
            held[name].grad.mul_(mask)  # type: ignore[union-attr]
        norm = sharding.clip(list(held.values()), settings.clip_norm, model)
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        with torch.no_grad():
            for name, old in before.items():
                held[name].copy_(torch.where(masks[name], held[name], old))
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        history.append({"step": step + 1, "learning_rate": rate, **total, "gradient_norm": norm})
        progress.note(", ".join(f"{name} {value:.3f}" for name, value in total.items()))
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return pd.DataFrame(history)


def moved(model: Any, base: dict[str, Tensor], trainable: dict[str, Any]) -> dict[str, float]:
    """What share of the trainable weights changed, and by how much at most.

    Args:
        model: the trained model.
        base: what this process held of each trained parameter before.
        trainable: as for :func:`train`.
    """
    import torch

    changed, total, largest = 0, 0, 0.0
    for name, mask in trainable.items():
        parameter = model.get_parameter(name)
        now = sharding.held(parameter)
        difference = (now - base[name].to(now.device)).abs()
        total += comp.selected(parameter, mask)
        changed += int((difference > 0).sum())
        largest = max(largest, float(difference.max()) if difference.numel() else 0.0)
    changed = int(sharding.total(torch.tensor(changed), model))
    largest = float(sharding.largest(torch.tensor(largest, dtype=torch.float64), model))
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
    answers = targets(split, objective, seed)
    data = read_data(job, tokenizer, split, answers, list(split["forget"]))
    trainable = comp.trainable(model, read_selection(job.inputs["selection"]))
    base = {name: sharding.held(model.get_parameter(name)).to("cpu", copy=True) for name in trainable}
    settings = finetune_settings(config.finetune, objective, job.wildcards["localization"])
    weights = Weights(task.lambda_forget, settings.lambda_retain, settings.lambda_sft)
    own = job.inputs.get("loss")
    loss = extensions.load(objective.loss, own) if own else objective.loss
    history = train(model, data, trainable, settings, weights, loss, seed)
    job.facts.update(seeds={"finetune": seed}, device=device, **moved(model, base, trainable))
    parameters = {name: model.get_parameter(name) for name in trainable}
    tensors = {name: sharding.whole(p, sharding.held(p)) for name, p in parameters.items()}
    models.save_delta(job.outputs["delta"], tensors, models.weights_digest(job.inputs["base_model"]))
    history.to_csv(job.outputs["history"], index=False)
