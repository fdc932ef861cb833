"""Localized fine-tuning (sections 2.2, 2.4 and A.3): unlearn by training the chosen components only."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.config.data import Prompts
from localized_unlearning.config.unlearning import RANDOM, Finetune
from localized_unlearning.data import tokens as tokens_module
from localized_unlearning.data.answers import candidates
from localized_unlearning.data.prompts import PromptBook, load_prompts
from localized_unlearning.data.splits import read_split
from localized_unlearning.data.targets import targets
from localized_unlearning.errors import UserError
from localized_unlearning.localization import weights
from localized_unlearning.models import components, deltas, loading, sharding
from localized_unlearning.models import device as device_module
from localized_unlearning.progress import Progress
from localized_unlearning.unlearning import method as method_module
from localized_unlearning.unlearning import precision
from localized_unlearning.unlearning.disruption import (
    Cost,
    Question,
    Tried,
    retained_loss,
    strongest,
    text_divergence,
)
from localized_unlearning.unlearning.method import Facts, Method, Training
from localized_unlearning.unlearning.settings import finetune_settings, forget_weight
from localized_unlearning.unlearning.steps import (
    Data,
    Lambdas,
    Sizes,
    gradients,
    read_data,
    schedule_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.jobs.job import Job


LOSSES = ("forget", "retain", "sft")
"""What a step's losses are called."""


def train(
    model: Any,
    data: Data,
    trainable: dict[str, Any],
    settings: Finetune,
    lambdas: Lambdas,
    method: Method,
    seed: int,
) -> pd.DataFrame:
    """Train the parameters in ``trainable`` in place; everything else keeps its bits.

    Returns:
        One row per step: ``step``, ``learning_rate``, ``forget``, ``retain``, ``sft`` and ``gradient_norm``.

    Raises:
        UserError: when a loss cannot be descended on, or a step's gradient is no finite number.
    """
    import math

    import torch

    parameters = {name: model.get_parameter(name).requires_grad_(True) for name in trainable}
    held = {name: sharding.held(p) for name, p in parameters.items()}
    masks = {n: sharding.part(parameters[n], mask) for n, mask in trainable.items() if mask is not None}
    before = {name: held[name].clone() for name in masks}
    optimizer = method.optimizer(list(held.values()), settings, seed)
    schedule = schedule_of(optimizer, settings.schedule, settings.steps)
    size, reserved = settings.batch_size, precision.reserved(list(held.values()), settings)
    tokens = device_module.micro_batch_tokens(settings.micro_batch_tokens, model, reserved)
    sizes = Sizes(size, size, settings.sft_batch_size or size, tokens)
    forget = Facts(model, data.forget, data.forget_about, tokens, seed)
    retain = Facts(model, data.retain, data.retain_about, tokens, seed)
    own = method.gradients(Training(model, parameters, forget, retain, settings, seed))
    steps = gradients(model, data, sizes, lambdas, method, seed) if own is None else owned(own, method)
    history = []
    progress = Progress("fine-tuning", "step")
    for step in progress.over(range(settings.steps)):
        total = next(steps)
        sharding.take_gradients(parameters, held)
        for name, mask in masks.items():
            gradient = held[name].grad
            if gradient is not None:  # a loss on a middle layer reaches none above it
                gradient.mul_(mask)
        norm = sharding.clip(list(held.values()), settings.clip_norm, model)
        if not math.isfinite(norm):
            spoilt = UserError(
                f"{method.named}: the gradient of step {step + 1} is {norm}, which would spoil every trained weight: "
                "lower finetune.learning_rate, set finetune.clip_norm, or correct the loss"
            )
            steps.throw(spoilt)  # type: ignore[attr-defined]  # what took the step knows its items
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


def owned(steps: Iterator[dict[str, float]], method: Method) -> Iterator[dict[str, float]]:
    """The steps of a method that owns them, each checked.

    Raises:
        UserError: when it raises, ends too early, or yields other than losses by name.
    """
    for number in itertools.count(1):
        try:
            found = next(steps)
        except UserError:
            raise
        except StopIteration:
            raise UserError(
                f"{method.named}: gradients() ends before step {number}: yield a step's losses for as long as it is asked"
            ) from None
        except Exception as error:
            raise UserError(
                f"{method.named}: gradients() fails in step {number} ({type(error).__name__}: {error})"
            ) from error
        if not isinstance(found, dict) or set(found) != set(LOSSES):
            raise UserError(
                f"{method.named}: gradients() must yield a dict with the losses {', '.join(LOSSES)} (NaN for none), but in step "
                f"{number} it is {found!r}"
            )
        yield found


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
        difference = (now - base[name].to(now.device)).abs_()
        total += components.selected(parameter, mask)
        changed += int((difference > 0).sum())
        largest = max(largest, float(difference.max()) if difference.numel() else 0.0)
    changed = int(sharding.total(torch.tensor(changed), model))
    largest = float(sharding.largest(torch.tensor(largest, dtype=torch.float64), model))
    return {"share_of_weights_moved": changed / total, "largest_change": largest}


def within_budget(
    model: Any,
    data: Data,
    names: Sequence[str],
    settings: Finetune,
    train: Callable[[Data, Finetune], pd.DataFrame],
    cost: Cost | None = None,
) -> tuple[pd.DataFrame, list[Tried]]:
    """``train`` at the fixed rate, or with a budget of disruption at the largest rate that stays within it.

    Args:
        model: what ``train`` trains in place.
        data: what it is trained on.
        names: the parameters that it trains.
        settings: the rate, and the budget.
        train: trains the model on data, as settings say; returns a row per step.
        cost: measures disruption; None measures it on the last text windows, which training then does not read.

    Raises:
        UserError: when too little text is left to train on, or the model is sharded.
    """
    equal = settings.equal_disruption
    if equal.budget is None:
        return train(data, settings), []
    if sharding.count(model) > 1:
        raise UserError("equal disruption needs a whole model: set compute.shards to 1")
    if cost is None:
        if len(data.text) <= equal.windows:
            raise UserError(
                f"finetune.equal_disruption keeps {equal.windows} of {len(data.text)} text windows for validation: keep "
                "fewer"
            )
        cost = text_divergence(model, data.text[-equal.windows :])
        data = replace(data, text=data.text[: -equal.windows])

    def at(rate: float) -> pd.DataFrame:
        return train(data, settings.model_copy(update={"learning_rate": rate}))

    return strongest(model, names, equal.learning_rates, equal.budget, cost, at)


def asked_about(
    people: pd.DataFrame,
    known: Sequence[str],
    tokenizer: Any,
    book: PromptBook,
    prompts: Prompts,
    seed: int,
) -> list[Question]:
    """The three prompts about ``people``, as disruption is measured on them; options in random order."""
    rng = random.Random(seed)
    names, sports = list(people["subject"]), list(people["answer"])
    found = []
    for prompt in (book[prompts.training], book[prompts.question]):
        texts = [prompt.render(a) for a in names]
        if prompt.facts:
            raise UserError(
                "finetune.equal_disruption.measure is retained, but these facts bring their own answers: measure by text"
            )
        spelled = tokens_module.answer_tokens(tokenizer, prompt, texts, prompt.answers or known)
        first = list(dict.fromkeys(own[0] for own in spelled))
        right = [first.index(spelled[known.index(s)][0]) for s in sports]
        found.append(Question(tokens_module.asked(tokenizer, prompt, texts), first, right))
    choice = book[prompts.multiple_choice]
    orders = [choice.offered(rng, answer) for answer in sports]
    texts = [choice.render(a, o) for a, o in zip(names, orders, strict=True)]
    spelled = tokens_module.answer_tokens(tokenizer, choice, texts, choice.letters)
    letters = tokens_module.first_tokens(spelled, choice.letters)
    encoded = tokens_module.asked(tokenizer, choice, texts)
    found.append(Question(encoded, letters, [o.index(s) for o, s in zip(orders, sports, strict=True)]))
    return found


def kept_for_validation(split: pd.DataFrame, share: float, seed: int) -> pd.Series:
    """Which rows of the training part are not trained on but measured: a share of the retained, drawn ``[row]``."""
    retain = split.index[~split["forget"]]
    drawn = random.Random(seed).sample(list(retain), max(1, round(share * len(retain))))
    return pd.Series(split.index.isin(drawn), index=split.index)


def run(job: Job) -> None:
    """Stage: one unlearned model, as a delta and the losses of every step.

    A task that comes ``after`` another starts from that one's model. Its delta holds what all tasks so far have
    trained, so that base and one delta are the model; the record names the delta before it.
    """
    config = job.config
    task = config.tasks[job.wildcards["task"]]
    objective = config.objectives[job.wildcards["objective"]]
    assert task is not None and objective is not None
    seed = int(job.wildcards["seed"])
    device = device_module.setup(config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], config.model.dtype, device)
    split = read_split(job.inputs["split"])
    split = split[split["train"]].reset_index(drop=True)
    book = load_prompts(job.inputs["prompts"])
    known = candidates(book, split)
    if objective.loss == "inject" and objective.target not in (RANDOM, *known):
        raise UserError(
            f"the objective injects '{objective.target}', which is none of the answers {', '.join(known)}: "
            f"set its 'target' to one of them, or to {RANDOM}"
        )
    settings = finetune_settings(config.finetune, objective, job.wildcards["localization"])
    equal, cost = settings.equal_disruption, None
    if equal.budget is not None and equal.measure == "retained":
        kept = kept_for_validation(split, equal.retained, seed)
        asked = asked_about(split[kept], known, tokenizer, book, config.prompts, seed)
        cost = retained_loss(model, asked, device_module.batch_tokens(config.compute, model))
        split = split[~kept].reset_index(drop=True)
    answers = targets(split, objective, seed)
    data = read_data(job, tokenizer, split, answers, list(split["forget"]))
    strength = forget_weight(task, objective, job.wildcards["localization"])
    lambdas = Lambdas(strength, settings.lambda_retain, settings.lambda_sft)
    loss = method_module.load(objective.loss, job.inputs["loss"], objective.parameters)
    digest = deltas.base_digest(job)
    trainable = weights.trainable(model, job.inputs["selection"], job.inputs.get("weights"), digest)
    earlier = deltas.read_delta(job.inputs["previous"], digest) if job.inputs.get("previous") else {}
    with deltas.applied(model, earlier):  # of a chain, the model that the task before left
        base = {name: sharding.held(model.get_parameter(name)).to("cpu", copy=True) for name in trainable}

        def trained(data: Data, settings: Finetune) -> pd.DataFrame:
            return train(model, data, trainable, settings, lambdas, loss, seed)

        history, tried = within_budget(model, data, list(trainable), settings, trained, cost)
        history.to_csv(job.outputs["history"], index=False)
        parameters = {name: model.get_parameter(name) for name in trainable}
        tensors = {name: sharding.whole(p, sharding.held(p)) for name, p in parameters.items()}
        whole = {**earlier, **tensors}
        job.written["delta"] = deltas.save_delta(job.outputs["delta"], whole, digest)
        job.facts.update(seeds={"finetune": seed}, device=device, **moved(model, base, trainable))
        if tried:
            job.facts.update(equal_disruption=[t._asdict() for t in tried])
    if objective.loss == "inject" and objective.target == RANDOM:
        told = zip(split["subject"], answers, split["forget"], strict=True)
        job.facts["injected"] = {athlete: answer for athlete, answer, forget in told if forget}
