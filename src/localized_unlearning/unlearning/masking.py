"""Weight masking (sections 2.4 and 3.2): which single weights must go for a fact to be unlearned?

A mask m in [0, 1] multiplies every weight of the localized components. What is kept and trained is the
removed part d = 1 - m, in float32 from 0, because near 1 a float32 cannot take the small steps that count
here. After training the weights are ranked by d; the sweep sets the first n of them to zero.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning.config.unlearning import AT, Masking
from localized_unlearning.data.splits import read_split
from localized_unlearning.localization import weights as weights_module
from localized_unlearning.models import components, deltas, loading, sharding
from localized_unlearning.models import device as device_module
from localized_unlearning.progress import Progress
from localized_unlearning.unlearning import method
from localized_unlearning.unlearning.masks import Mask, Ranking, save_mask
from localized_unlearning.unlearning.objectives.erase import erase
from localized_unlearning.unlearning.saliency import (
    PERCENTILES,
    Distribution,
    chosen_by,
    random_sizes,
    rate_of,
    saliencies,
    sizes_of,
)
from localized_unlearning.unlearning.steps import Data, Lambdas, gradients, read_data, schedule_of

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.jobs.job import Job


HARDLY = 1e-3
"""A largest d below this means that no weight lost a thousandth of itself: the mask hardly moved."""


class ClampedWeights(Mask):
    """What the released code trains as a mask: the weights themselves, in their own type.

    Each weight is clamped between 0 and what it was, the loss has λ4 times the sum of absolute weights instead of
    the sum of a mask, and momentum and decay act on the weights. The mask is their ratio to the base weights.
    """

    def __init__(self, parameters: dict[str, Any], trainable: dict[str, Any], settings: Masking) -> None:
        self.parameters, self.trainable, self.settings = parameters, trainable, settings
        self.base = {name: p.detach().clone() for name, p in parameters.items()}
        self.trained = parameters

    def give_gradient(self, name: str) -> None:
        weight = self.parameters[name]
        weight.grad.add_(weight.detach().sign(), alpha=self.settings.lambda_mask)
        if self.trainable[name] is not None:
            weight.grad.mul_(self.trainable[name])

    def put(self, name: str) -> None:
        import torch

        base, part = self.base[name], self.trainable[name]
        weight = self.parameters[name].clamp_(base.clamp(max=0), base.clamp(min=0))
        if part is not None:  # decay acts on the others too
            weight.copy_(torch.where(part, weight, base))

    def removed(self, name: str) -> Tensor:
        import torch

        base = self.base[name]
        wide = torch.promote_types(base.dtype, torch.float32)
        kept: Tensor = self.parameters[name].detach().to(dtype=wide, copy=True)
        return kept.div_(base).neg_().add_(1).masked_fill_(base == 0, 0)


def optimizer_of(trained: Sequence[Tensor], settings: Masking) -> Any:
    """SGD, as in the paper (A.3), or Adam, whose order is not that of importance."""
    import torch

    assert settings.learning_rate != "auto"  # see saliency.rate_of
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            trained,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.Adam(trained, lr=settings.learning_rate)


def reserved(mask: Mask, settings: Masking) -> float:
    """Bytes that training a mask still has to take: gradients, the optimizer's states and one matrix's temporaries."""
    states = 2 if settings.optimizer == "adam" else int(settings.momentum > 0)
    gradients: int = sum(base.nbytes for base in mask.base.values())
    trained: int = sum(d.nbytes for d in mask.trained.values())
    largest: int = max(base.numel() for base in mask.base.values())
    return float(gradients + states * trained + 12 * largest)


def train(
    model: Any, data: Data, trainable: dict[str, Any], settings: Masking, lambdas: Lambdas, seed: int
) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """Train a mask, in one of its two forms; the model's weights return to the base's.

    Returns:
        The removed part d of what this process holds of every touched parameter, in its shape, float32 (0 outside the
        selection), and one row per step: ``step``, ``learning_rate``, ``forget``, ``retain``, ``sft``, ``moved`` (share of the
        masked weights with d > 0), ``mean_removed`` and ``most_removed`` (mean and largest d).
    """
    import torch

    parameters = {name: model.get_parameter(name).requires_grad_(True) for name in trainable}
    held = {name: sharding.held(p) for name, p in parameters.items()}
    parts = {n: None if m is None else sharding.part(parameters[n], m) for n, m in trainable.items()}
    form = Mask if settings.parameterization == "mask" else ClampedWeights
    mask = form(held, parts, settings)
    count = sum(components.selected(parameters[name], part) for name, part in trainable.items())
    optimizer = optimizer_of(list(mask.trained.values()), settings)
    schedule = schedule_of(optimizer, settings.schedule, settings.steps)
    sizes = sizes_of(model, settings, reserved(mask, settings))
    steps = gradients(model, data, sizes, lambdas, method.of(erase, {}, "erase"), seed)
    history = []
    progress = Progress("training the mask", "step")
    for step in progress.over(range(settings.steps)):
        losses = next(steps)
        rate = optimizer.param_groups[0]["lr"]
        sharding.take_gradients(parameters, held)
        if settings.clip_norm is not None:  # over whole parameters, as in the released code
            sharding.clip(list(held.values()), settings.clip_norm, model)
        kept = {name: p.grad for name, p in held.items()}
        for p in held.values():
            p.grad = None
        moved, total, most = 0, 0.0, 0.0
        for name in trainable:  # one parameter at a time: one float32 gradient in memory
            held[name].grad = kept.pop(name)
            mask.give_gradient(name)
            optimizer.step()  # moves this one alone: the others have no gradient now
            mask.trained[name].grad = None
            with torch.no_grad():
                mask.put(name)
                d = mask.removed(name)
            moved, total = moved + int((d > 0).sum()), total + float(d.sum(dtype=torch.float64))
            most = max(most, float(d.max()) if d.numel() else 0.0)
        moved, total = sharding.total(torch.tensor([moved, total], dtype=torch.float64), model).tolist()
        most = float(sharding.largest(torch.tensor(most, dtype=torch.float64), model))
        schedule.step()
        history.append(
            {
                "step": step + 1,
                "learning_rate": rate,
                **losses,
                "moved": moved / count,
                "mean_removed": total / count,
                "most_removed": most,
            }
        )
        progress.note(
            f"forget {losses['forget']:.3f}, retain {losses['retain']:.3f}, most removed {most:.2g}"
        )
    del optimizer, schedule, steps  # their states go before anything else is made
    removed = {}
    with torch.no_grad():
        for name, parameter in parameters.items():  # the base's copy goes as its removed part comes
            removed[name] = mask.removed(name)
            held[name].copy_(mask.base.pop(name))
            parameter.requires_grad_(False)
    return removed, pd.DataFrame(history)


def mask(job: Job) -> None:
    """Stage: one mask, as the ranking of its weights, its controls' rankings, and the losses of every step.

    Recorded: the learning rate, and the distribution of |w dL/dw| that it was chosen by or may be judged by.
    """
    config, seed = job.config, int(job.wildcards["seed"])
    settings: Masking = config.masking
    device = device_module.setup(config.compute)
    model, tokenizer = loading.load(job.inputs["base_model"], config.model.dtype, device)
    split = read_split(job.inputs["split"])
    split = split[split["train"]].reset_index(drop=True)
    data = read_data(job, tokenizer, split, list(split["answer"]), list(split["forget"]))
    trainable = weights_module.trainable(
        model, job.inputs["selection"], job.inputs.get("weights"), deltas.base_digest(job)
    )
    lambdas = Lambdas(settings.lambda_forget, settings.lambda_retain, settings.lambda_sft)
    largest = max(settings.edit_sizes)
    parameters = {name: model.get_parameter(name) for name in trainable}
    distribution, salient = Distribution(), Ranking(largest)
    for name, size in saliencies(model, data, trainable, settings, lambdas, seed):
        part = trainable[name]
        chosen = size if part is None else size[sharding.part(parameters[name], part).expand_as(size)]
        distribution.add(chosen)
        if "saliency" in settings.controls:
            salient.add(sharding.whole(parameters[name], size))
    distribution = distribution.over(model)
    rate, typical = rate_of(settings, distribution), distribution.percentile(AT)
    settings = settings.model_copy(update={"learning_rate": rate})
    print(
        f"learning rate {rate:.3g} ({settings.optimizer}): |w dL/dw| is {typical:.2g} at its {AT}th "
        f"percentile, so that SGD takes {rate * typical:.2g} of such a weight in the first step",
        file=sys.stderr,
    )
    rankings = {"mask": Ranking(largest)}
    if "saliency" in settings.controls:
        rankings["saliency"] = salient
    if "random" in settings.controls:
        rankings["random"] = Ranking(largest)
        for _, size in random_sizes(model, trainable, seed):
            rankings["random"].add(size)
    removed, history = train(model, data, trainable, settings, lambdas, seed)
    history.to_csv(job.outputs["history"], index=False)
    by_half = 0
    for name in sorted(removed):  # what is ranked goes
        d = sharding.whole(parameters[name], removed.pop(name))
        by_half += int((d > 0.5).sum())
        rankings["mask"].add(d)
    sizes = {name: p.numel() for name, p in parameters.items()}
    places = {name: ranking.places.cpu() for name, ranking in rankings.items()}
    save_mask(job.outputs["mask"], places, sizes, deltas.base_digest(job))
    last: Any = history.iloc[-1]
    if last["most_removed"] < HARDLY:
        print(
            f"the settings under 'masking' hardly move the mask: after {settings.steps} steps the largest removed "
            f"part of a weight is {last['most_removed']:.1e} (of 1); the sweep only ranks by it. "
            "Set masking.learning_rate to auto, or raise it or masking.steps, for a mask that binds.",
            file=sys.stderr,
        )
    job.facts.update(
        seeds={"masking": seed},
        device=device,
        masked_weights=sum(components.selected(parameters[name], part) for name, part in trainable.items()),
        optimizer=settings.optimizer,
        learning_rate=rate,
        learning_rate_from=chosen_by(config.masking),
        saliency={
            **{f"percentile_{p}": distribution.percentile(p) for p in PERCENTILES},
            "largest": distribution.largest,
            "batches": settings.saliency_steps,
        },
        share_moved=float(last["moved"]),
        largest_removed=float(last["most_removed"]),
        removed_by_half=by_half,
        hardly_moved=bool(last["most_removed"] < HARDLY),
    )
