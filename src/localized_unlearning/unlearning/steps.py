"""One step of training after another: the whole loss of section 2.2 and its gradient."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.data import windows as windows_module
from localized_unlearning.data.answers import candidates
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.data.tokens import fact_items
from localized_unlearning.errors import UserError
from localized_unlearning.models import sharding
from localized_unlearning.unlearning import losses
from localized_unlearning.unlearning.method import About, Facts, Method, micro_batches

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.jobs.job import Job


Item = tuple[list[int], int]
"""A tokenised prompt and its answer's token: the first, or where answers share it the one that tells them apart."""


@dataclass(frozen=True)
class Data:
    """What fine-tuning reads.

    Attributes:
        forget: forget-set prompts with the right answer (erase) or the injected one (inject).
        retain: retain-set prompts with the right answer.
        text: windows of plain text ``[window, token]``.
        forget_about, retain_about: whom each prompt is about, and its answer in words; may be empty.
    """

    forget: list[Item]
    retain: list[Item]
    text: Tensor
    forget_about: Sequence[About] = ()
    retain_about: Sequence[About] = ()


@dataclass(frozen=True)
class Lambdas:
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


def read_data(
    job: Job, tokenizer: Any, athletes: pd.DataFrame, answers: Sequence[str], forget: Sequence[bool]
) -> Data:
    """The training prompt about ``athletes``, each with its answer, and the plain text; all tokenised.

    Args:
        job: gives the prompts file, the text file and their settings.
        tokenizer: the model's.
        athletes: rows with a column ``subject``.
        answers: what each athlete's prompt is trained on.
        forget: which of them count for the forget loss; the others for the retain loss.
    """
    book = load_prompts(job.inputs["prompts"])
    prompt, known = book[job.config.prompts.training], candidates(book, athletes)
    items = fact_items(tokenizer, prompt, list(athletes["subject"]), answers, known)
    about = [About(a, answer) for a, answer in zip(athletes["subject"], answers, strict=True)]
    text = job.config.text
    return Data(
        [i for i, f in zip(items, forget, strict=True) if f],
        [i for i, f in zip(items, forget, strict=True) if not f],
        windows_module.read_windows(job.inputs["text"], tokenizer, text.tokens, text.documents),
        [a for a, f in zip(about, forget, strict=True) if f],
        [a for a, f in zip(about, forget, strict=True) if not f],
    )


def cycle(items: Sequence[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Endless batches of ``size``: every item once in random order, then again in another order."""
    endless = itertools.chain.from_iterable(rng.sample(items, len(items)) for _ in itertools.count())
    while True:
        yield list(itertools.islice(endless, size))


def fact_losses(
    model: Any,
    chosen: Sequence[tuple[Facts, Sequence[int]]],
    method: Method,
    tokens: int,
    step: int = 0,
    divided: bool = True,
) -> Iterator[list[Tensor]]:
    """Summed loss of each set's items in each packed micro-batch, ready for ``backward``.

    The sets share their prompts' beginning, so they are packed together. Of a sharded model's batches, this process's.

    Args:
        model: the model.
        chosen: the forget set, and the retain set if any, each with the items of this step.
        method: gives the losses: the first set's is its forget loss, the second's its retain loss.
        tokens: tokens of one forward and backward.
        step: which step it is, from 0.
        divided: whether the processes of a sharded model take a part of the batches each.

    Raises:
        UserError: when a loss cannot be descended on (:meth:`Method.checked`).
    """
    empty = sharding.count(model) > 1  # processes that share a model ask alike, also where they have no item
    for parts, counts in micro_batches(model, chosen, tokens, step, divided):
        yield [
            counts * (method.checked(part, place > 0) if len(part.index) or empty else part.log_odds).sum()
            for place, part in enumerate(parts)
        ]


def _backward(loss: Tensor, method: Method, step: int) -> None:
    """The gradient of a step's fact losses; a method that spoilt its own graph is told so."""
    import torch

    try:
        loss.backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"{method.named}: the gradient of its loss cannot be computed in step {step + 1} ({said}): change no tensor of the "
            "batch in place, and use torch's own functions"
        ) from error


def first_spoilt(
    model: Any, chosen: Sequence[tuple[Facts, Sequence[int]]], method: Method, tokens: int, step: int
) -> str | None:
    """The first item of a step whose own gradient is no finite number; None where none is by itself, or of a sharded model.

    One backward pass per item, for after a failure. The gradients of ``model`` are lost.

    Args:
        model: the model.
        chosen: as for :func:`fact_losses`.
        method: gives the losses.
        tokens: tokens of one forward and backward.
        step: which step it was, from 0.
    """
    if sharding.count(model) > 1:
        return None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for place, (facts, indices) in enumerate(chosen):
        for index in dict.fromkeys(indices):
            model.zero_grad(set_to_none=True)
            alone = [(other, [index] if other is facts else []) for other, _ in chosen]
            for parts in fact_losses(model, alone, method, tokens, step, divided=False):
                parts[place].backward()
            if not all(p.grad is None or bool(p.grad.isfinite().all()) for p in trained):
                return f"'{facts.about[index].subject}' of the {'retain' if place else 'forget'} set"
    return None


def gradients(
    model: Any,
    data: Data,
    sizes: Sizes,
    lambdas: Lambdas,
    method: Method,
    seed: int,
    divided: bool = True,
) -> Iterator[dict[str, float]]:
    """One step after another: accumulate the gradient of the whole loss, and yield the step's losses.

    Gradients land in those parameters of ``model`` that require them; the caller moves the parameters and clears
    the gradients before it asks for the next step. Every loss term is averaged over its examples. The processes of a
    sharded model take a part of the work each, unless it is not to be ``divided``.

    Yields:
        ``forget``, ``retain`` and ``sft`` in nats, before the step.
    """
    import torch

    among = model if divided else None
    rng = random.Random(seed)
    forget_set = Facts(model, data.forget, data.forget_about, sizes.micro_batch_tokens, seed)
    retain_set = Facts(model, data.retain, data.retain_about, sizes.micro_batch_tokens, seed)
    forget_batches = cycle(range(len(data.forget)), sizes.forget, rng)
    retain_batches = cycle(range(len(data.retain)), sizes.retain, rng)
    text_batches = cycle(range(len(data.text)), sizes.text, rng)
    rows = min(sizes.micro_batch_tokens // data.text.shape[1], -(-sizes.text // sharding.count(among)))
    rows = max(1, rows)
    for step in itertools.count():
        chosen = [(forget_set, next(forget_batches)), (retain_set, next(retain_batches))]
        total = {"forget": 0.0, "retain": 0.0, "sft": 0.0}
        for f, r in fact_losses(model, chosen, method, sizes.micro_batch_tokens, step, divided):
            _backward(lambdas.forget * f / sizes.forget + lambdas.retain * r / sizes.retain, method, step)
            total["forget"] += f.item() / sizes.forget
            total["retain"] += r.item() / sizes.retain
        if lambdas.sft:
            for windows, counts in sharding.share(data.text[next(text_batches)].split(rows), among):
                sft = counts * losses.text_losses(model, windows.to(model.device)).sum() / sizes.text
                (lambdas.sft * sft).backward()
                total["sft"] += sft.item()
        summed = sharding.total(torch.tensor([*total.values()], dtype=torch.float64), among)
        try:
            yield dict(zip(total, summed.tolist(), strict=True))
        except UserError as error:  # thrown in by a caller that found the gradient to be no finite number
            if (item := first_spoilt(model, chosen, method, sizes.micro_batch_tokens, step)) is None:
                raise
            raise UserError(f"{error} (first at {item})") from error
        forget_set.moved()
        retain_set.moved()


def schedule_of(optimizer: Any, kind: str, steps: int) -> Any:
    """The learning-rate schedule: cosine to 0 over ``steps`` (A.3), or constant."""
    import torch

    if kind == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
