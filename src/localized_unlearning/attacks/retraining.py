"""Attacks that train: on half of the forget set, on retained facts alone, and the attacker's search over both.

*Half and half* (Deeb and Roger 2024, "Do unlearning methods remove information from language model weights?"): retrain
on half of the unlearned facts and test the other half, which shares nothing with the first but having been unlearned.
*On false answers*, retained facts included, is what the
journal version's code does on CounterFact under the name of relearning: kept as a control, beside the right one.
*Retain only* (Siddiqui et al. 2025, arXiv 2505.22310): retrain on what was to be kept. *Search* (the standard of
TamperBench): the same as half and half over learning rates, steps and ranks, the worst case counting.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.attacks.adapters import linear_modules
from localized_unlearning.attacks.subject import Subject, ask
from localized_unlearning.config.attacks import Retraining, Search
from localized_unlearning.config.localization import Components
from localized_unlearning.data import tokens
from localized_unlearning.data.answers import candidates
from localized_unlearning.models import components
from localized_unlearning.unlearning import method
from localized_unlearning.unlearning import steps as steps_module
from localized_unlearning.unlearning.objectives.inject import inject

if TYPE_CHECKING:
    from localized_unlearning.unlearning.steps import Item


def items(subject: Subject, people: pd.DataFrame, false: bool = False) -> list[Item]:
    """The training prompt about ``people``, each with the right answer, or with another of its candidates.

    Where facts bring their own answers, the other is the one false answer that a fact has; else it is drawn.
    """
    prompt = subject.book[subject.prompts.training]
    known, answers = candidates(subject.book, people), list(people["answer"])
    if false:
        rng = random.Random(subject.seed)
        answers = [rng.choice([other for other in known if other != answer]) for answer in answers]
    return tokens.fact_items(subject.tokenizer, prompt, list(people["subject"]), answers, known)


@contextmanager
def low_rank(model: Any, rank: int, seed: int) -> Iterator[list[Any]]:
    """Inside, ``model`` has LoRA adapters of ``rank`` on every linear module but the output layer; yields their parameters."""
    import torch
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=linear_modules(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = LoraModel(model, config, "attack")
    try:
        yield [p.requires_grad_(True) for name, p in model.named_parameters() if "lora_" in name]
    finally:
        wrapped.unload()
        model.requires_grad_(False)


@contextmanager
def whole(model: Any) -> Iterator[list[Any]]:
    """Inside, every matrix of the layers can be trained; they are put back on leaving."""
    import torch

    found = components.list_components(model.config, Components(include_gate=True))
    names = list(components.trainable(model, found))
    parameters = [model.get_parameter(name) for name in names]
    kept = [p.detach().clone() for p in parameters]
    try:
        yield [p.requires_grad_(True) for p in parameters]
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.requires_grad_(False).copy_(value)


@contextmanager
def retrained(
    subject: Subject, facts: pd.DataFrame, settings: Retraining, false: bool = False
) -> Iterator[None]:
    """Inside, the model has been retrained on ``facts`` (which may be empty), retained facts and text.

    Args:
        subject: the model and whose facts they are.
        facts: the attacker's.
        settings: of retraining.
        false: whether all facts, the retained ones too, have false answers.
    """
    import torch

    forget = items(subject, facts, false) if len(facts) else []
    retain = items(subject, subject.retain, false)
    data = steps_module.Data(forget or retain[:1], retain, subject.text)
    sizes = steps_module.Sizes(
        min(settings.batch_size, len(data.forget)),
        settings.batch_size,
        settings.text_batch,
        settings.micro_batch_tokens,
    )
    lambdas = steps_module.Lambdas(
        settings.lambda_facts if forget else 0.0, settings.lambda_retain, settings.lambda_text
    )
    width = subject.model.config.get_text_config().hidden_size
    rank = None if settings.rank is None else min(settings.rank, width)
    with whole(subject.model) if rank is None else low_rank(subject.model, rank, subject.seed) as parameters:
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=0.0, foreach=False
        )  # else a GPU's step builds temporaries of all parameters at once
        steps = steps_module.gradients(
            subject.model, data, sizes, lambdas, method.of(inject, {}, "inject"), subject.seed
        )
        for _ in range(settings.steps):
            next(steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield


def half_and_half(subject: Subject, settings: Retraining) -> Iterator[tuple[str, pd.DataFrame]]:
    """Retrained on the attacker's half of the forget set."""
    with retrained(subject, subject.attacker, settings):
        yield "half", ask(subject)


def half_and_half_false(subject: Subject, settings: Retraining) -> Iterator[tuple[str, pd.DataFrame]]:
    """Retrained on false answers, of the attacker's half and of the retained facts (see the module)."""
    with retrained(subject, subject.attacker, settings, false=True):
        yield "half, false", ask(subject)


def retain_only(subject: Subject, settings: Retraining) -> Iterator[tuple[str, pd.DataFrame]]:
    """Retrained on retained facts and text alone."""
    with retrained(subject, subject.attacker[:0], settings):
        yield "retain", ask(subject)


def search(subject: Subject, settings: Search) -> Iterator[tuple[str, pd.DataFrame]]:
    """Half and half in every cell of the attacker's grid."""
    grid = itertools.product(settings.learning_rates, settings.steps, settings.ranks)
    for rate, steps, rank in grid:
        cell = settings.base.model_copy(update={"learning_rate": rate, "steps": steps, "rank": rank or None})
        with retrained(subject, subject.attacker, cell):
            yield f"rate {rate:g}, {steps} steps, {f'rank {rank}' if rank else 'full'}", ask(subject)
