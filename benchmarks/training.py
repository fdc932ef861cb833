"""One step of fine-tuning, of a mask and of relearning: ours, the straightforward way, a careful user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import careful
from benchmarks.bench import (
    MANUAL,
    TEXT,
    Bench,
    Outputs,
    Work,
    padded,
)
from benchmarks.sports import SPORTS, first_tokens
from localized_unlearning.attacks import relearning
from localized_unlearning.config.evaluation import Relearning
from localized_unlearning.config.unlearning import Masking
from localized_unlearning.data import windows as windows_module
from localized_unlearning.models import components
from localized_unlearning.models.components import Component
from localized_unlearning.unlearning import masking, method
from localized_unlearning.unlearning import steps as steps_module
from localized_unlearning.unlearning.objectives.erase import erase
from localized_unlearning.unlearning.objectives.inject import inject

MICRO = 512
"""Tokens of one of our forward and backward passes; the straightforward way takes 4 prompts or windows at a time."""


def training_data(bench: Bench, forget: int | None = None) -> tuple[steps_module.Data, steps_module.Lambdas]:
    """Prompts to forget (None: 64) and to retain, and text, 64 of each; and the weights of their losses."""
    athletes = bench.athletes(128)
    size = len(athletes) // 2
    tokens = dict(zip(SPORTS, first_tokens(bench.tokenizer, SPORTS), strict=True))
    items = [
        (ids, tokens[sport])
        for ids, sport in zip(bench.rendered("training", athletes), athletes["answer"], strict=True)
    ]
    text = windows_module.text_windows(bench.tokenizer, TEXT.read_text(encoding="utf-8"), 48)
    text = text.repeat(size // len(text) + 1, 1)[:size]
    data = steps_module.Data(items[: forget or size], items[size : 2 * size], text)
    return data, steps_module.Lambdas(0.2, 1.0, 1.0)


def manual(bench: Bench) -> list[str]:
    """The weights that the manual localization trains; from now on they take gradients."""
    chosen = [Component(layer, kind) for layer in MANUAL for kind in ("up", "down")]  # type: ignore[arg-type]
    names = list(components.trainable(bench.model, chosen))
    for name in names:
        bench.model.get_parameter(name).requires_grad_(True)
    return names


def flat(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors]).cpu().numpy()


def floor_of_step(bench: Bench, data: steps_module.Data, lowest: int, trained: int) -> None:
    layers = components.geometry_of(bench.model.config).layers
    passes = 1 + (layers - lowest) / layers + trained * 2 / bench.body
    prompts = [ids for ids, _ in (*data.forget, *data.retain)]
    bench.floor(prompts, passes=passes, heads=2)
    bench.floor([w[:-1] for w in data.text.tolist()], passes=passes, heads=2 * data.text.shape[1] - 2)


def sizes_of(data: steps_module.Data, tokens: int = MICRO) -> steps_module.Sizes:
    return steps_module.Sizes(len(data.forget), len(data.retain), len(data.text), tokens)


def plain_terms(
    bench: Bench,
    data: steps_module.Data,
    lambdas: steps_module.Lambdas,
    erase: bool = True,
    last: bool = False,
) -> np.ndarray:
    """Each term by itself: micro-batches of 4, padded, the whole vocabulary at every position, in float32.

    With ``last``, facts are padded on the left and read their last logits alone.
    """
    micro, totals = 4, np.zeros(3)
    for term, items in enumerate((data.forget, data.retain)):
        for start in range(0, len(items), micro):
            part = items[start : start + micro]
            prompts, answers = [p for p, _ in part], [a for _, a in part]
            if last:
                ids, mask, positions = careful.left_padded(prompts, 0, bench.device)
                inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
                logits = bench.model(**inputs, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
                value = logits[range(len(part)), answers]
            else:
                ids, mask = padded(prompts, bench.device)
                logits = bench.model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
                value = logits[range(len(part)), [len(p) - 1 for p in prompts], answers]
            if term == 0 and erase:
                value = torch.where(value > -5, torch.log1p(-value.exp()), 0)
            loss = -value.sum() / len(items)
            ((lambdas.forget, lambdas.retain)[term] * loss).backward()
            totals[term] += loss.item()
    for windows in data.text.to(bench.device).split(micro):
        logits = bench.model(input_ids=windows[:, :-1]).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss = loss * len(windows) / len(data.text)
        (lambdas.sft * loss).backward()
        totals[2] += loss.item()
    return totals


def gradient_of(parameters: Sequence[Any], terms: Callable[[], np.ndarray]) -> Work:
    """A step's losses and the gradient that computing them leaves in ``parameters``."""
    return lambda: {"loss": terms(), "vector": flat([p.grad for p in parameters])}


def step_ours(bench: Bench) -> Work:
    trained = [bench.model.get_parameter(name) for name in manual(bench)]
    data, lambdas = training_data(bench)
    floor_of_step(bench, data, min(MANUAL), sum(p.numel() for p in trained))
    steps = steps_module.gradients(
        bench.model, data, sizes_of(data), lambdas, method.of(erase, {}, "erase"), 0
    )
    return gradient_of(trained, lambda: np.array(list(next(steps).values())))


def step_theirs(bench: Bench, last: bool = False) -> Work:
    trained = [bench.model.get_parameter(name) for name in manual(bench)]
    data, lambdas = training_data(bench)
    return gradient_of(trained, lambda: plain_terms(bench, data, lambdas, last=last))


def step_careful(bench: Bench) -> Work:
    return step_theirs(bench, last=True)


def adapters(bench: Bench) -> tuple[list[Any], steps_module.Data, steps_module.Lambdas]:
    """LoRA of rank 64 on everything, dropout off, and two athletes to relearn."""
    found = relearning.add_lora(bench.model, Relearning(), 0)
    relearning.dropout(bench.model, False)
    return found, *training_data(bench, forget=2)


def relearn_ours(bench: Bench) -> Work:
    found, data, lambdas = adapters(bench)
    floor_of_step(bench, data, 0, sum(p.numel() for p in found))
    steps = steps_module.gradients(
        bench.model, data, sizes_of(data, MICRO // 2), lambdas, method.of(inject, {}, "inject"), 0
    )
    return gradient_of(found, lambda: np.array(list(next(steps).values())))


def relearn_theirs(bench: Bench, last: bool = False) -> Work:
    found, data, lambdas = adapters(bench)
    return gradient_of(found, lambda: plain_terms(bench, data, lambdas, erase=False, last=last))


def relearn_careful(bench: Bench) -> Work:
    return relearn_theirs(bench, last=True)


def same_step(ours: Outputs, theirs: Outputs) -> tuple[bool, str]:
    a, b = ours["vector"].astype(np.float64), theirs["vector"].astype(np.float64)
    error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    loss = float(np.abs(ours["loss"] - theirs["loss"]).max())
    return error < 1e-3 and loss < 1e-3, f"step within {error:.1e} of its norm, losses within {loss:.1e}"


# ---- masks

RATE = 1e4
"""Learning rate of a mask's single step, with momentum as in the released code: large, so that the step is no rounding."""


def mask_ours(bench: Bench) -> Work:
    names = manual(bench)
    data, lambdas = training_data(bench)
    size = len(data.retain)
    settings = Masking(
        steps=1, batch_size=size, text_batch=size, optimizer="sgd", momentum=0.9, learning_rate=RATE,
        micro_batch_tokens=MICRO,
    )  # fmt: skip
    floor_of_step(bench, data, min(MANUAL), sum(bench.model.get_parameter(name).numel() for name in names))

    def work() -> Outputs:
        trainable = dict.fromkeys(names)
        removed, history = masking.train(bench.model, data, trainable, settings, lambdas, 0)
        terms = history[["forget", "retain", "sft"]].to_numpy()[0]
        return {"loss": terms, "vector": flat([removed[name] for name in names])}

    return work


class Masked(torch.nn.Module):
    """A weight times its mask, which starts at 1."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.mask = torch.nn.Parameter(torch.ones_like(weight, dtype=torch.float32))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask.to(weight.dtype)


def mask_careful(bench: Bench) -> Work:
    return mask_theirs(bench, last=True)


def mask_theirs(bench: Bench, last: bool = False) -> Work:
    """The mask as a parametrization of each weight, in torch's own way, and SGD with momentum."""
    names = manual(bench)
    data, lambdas = training_data(bench)

    def work() -> Outputs:
        masks = []
        for name in names:
            place, _, attribute = name.rpartition(".")
            module = bench.model.get_submodule(place)
            form = Masked(getattr(module, attribute))
            torch.nn.utils.parametrize.register_parametrization(module, attribute, form)
            module.parametrizations[attribute].original.requires_grad_(False)
            masks.append(form.mask)
        optimizer = torch.optim.SGD(masks, lr=RATE, momentum=0.9)
        totals = plain_terms(bench, data, lambdas, last=last)
        (Masking().lambda_mask * torch.stack([mask.sum() for mask in masks]).sum()).backward()
        optimizer.step()
        with torch.no_grad():
            for mask in masks:
                mask.clamp_(0, 1)
        return {"loss": totals, "vector": flat([1 - mask for mask in masks])}

    return work
