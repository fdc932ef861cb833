"""Weight masking (sections 2.4 and 3.2): which single weights must go for a fact to be unlearned?

A mask m in [0, 1] multiplies every weight of the localized components. What is kept and trained is the
removed part d = 1 - m, in float32 from 0, because near 1 a float32 cannot take the small steps that count
here. After training the weights are ranked by d; the sweep sets the first n of them to zero.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from localized_unlearning import components as comp
from localized_unlearning import models, sharding
from localized_unlearning.config import Masking
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation import identity, short_exam, take
from localized_unlearning.finetune import Data, Sizes, Weights, gradients, read_data, schedule_of
from localized_unlearning.localization import read_selection
from localized_unlearning.progress import Progress
from localized_unlearning.splits import read_split

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.stages import Job

HARDLY = 1e-3
"""A largest d below this means that no weight lost a thousandth of itself: the mask hardly moved."""


class Mask:
    """The paper's mask (2.4): what is trained is its removed part d, in float32 from 0.

    With W the base weights, the model runs on W (1 - d). The gradient of d is -W times that of the masked
    weight, minus λ4: the paper's λ4 times the sum of the mask falls as d grows. d is clamped to [0, 1].
    """

    def __init__(self, parameters: dict[str, Any], trainable: dict[str, Any], settings: Masking) -> None:
        import torch

        self.parameters, self.trainable, self.settings = parameters, trainable, settings
        self.base = {name: p.detach().clone() for name, p in parameters.items()}
        self.trained = {
            n: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for n, p in self.base.items()
        }

    def give_gradient(self, name: str) -> None:
        """Turn the gradient of a masked parameter into that of what is trained."""
        masked, d = self.parameters[name], self.trained[name]
        d.grad = (-self.base[name].float() * masked.grad.float() - self.settings.lambda_mask).to(d.dtype)
        if self.trainable[name] is not None:
            d.grad.mul_(self.trainable[name])
        masked.grad = None

    def put(self, name: str) -> None:
        """Bring what was trained back into its bounds, and the model's weights in step with it."""
        d = self.trained[name].clamp_(0, 1)
        self.parameters[name].copy_(self.base[name] * (1 - d).to(self.base[name].dtype))

    def removed(self, name: str) -> Tensor:
        """The removed part of a parameter's weights, float32; 0 outside the selection."""
        return self.trained[name]


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

        base = self.base[name].float()
        return torch.where(base == 0, 0, 1 - self.parameters[name].detach().float() / base)


def optimizer_of(trained: Sequence[Tensor], settings: Masking) -> Any:
    """SGD, as in the paper (A.3), or Adam."""
    import torch

    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            trained,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.Adam(trained, lr=settings.learning_rate)


def train(
    model: Any, data: Data, trainable: dict[str, Any], settings: Masking, weights: Weights, seed: int
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
    count = sum(comp.selected(parameters[name], part) for name, part in trainable.items())
    optimizer = optimizer_of(list(mask.trained.values()), settings)
    schedule = schedule_of(optimizer, settings.schedule, settings.steps)
    sizes = Sizes(settings.batch_size, settings.batch_size, settings.text_batch, settings.micro_batch_tokens)
    steps = gradients(model, data, sizes, weights, "erase", seed)
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
            moved, total = moved + int((d > 0).sum()), total + float(d.double().sum())
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
    removed = {name: mask.removed(name) for name in trainable}
    with torch.no_grad():
        for name, parameter in parameters.items():
            held[name].copy_(mask.base[name])
            parameter.requires_grad_(False)
    return removed, pd.DataFrame(history)


def rank(removed: dict[str, Tensor], largest: int) -> Tensor:
    """The weights that lose most, first; at most ``largest``, and only those with d > 0 ``[rank]``, int64.

    A weight is its position in the concatenation of the parameters in order of their names. Equal d go by
    that position.
    """
    import torch

    flat = torch.cat([removed[name].flatten() for name in sorted(removed)])
    count = min(largest, int((flat > 0).sum()))
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    threshold = flat.topk(count).values[-1]
    candidates = (flat >= threshold).nonzero()[:, 0]
    order = torch.sort(flat[candidates], descending=True, stable=True).indices
    return candidates[order][:count].cpu()


def save_mask(path: Path, ranked: Tensor, sizes: dict[str, int], base: str) -> None:
    """Write a ranking; far below 2 bytes a weight, since only the sweep's largest edit is kept.

    Args:
        path: the safetensors file.
        ranked: weights, the most removed first ``[rank]``.
        sizes: number of weights of every parameter in the concatenation.
        base: the base model's :func:`models.weights_digest`.
    """
    import torch
    from safetensors.torch import save_file

    small = sum(sizes.values()) <= torch.iinfo(torch.int32).max
    about = json.dumps({"base": base, "parameters": dict(sorted(sizes.items()))}, sort_keys=True)
    save_file({"ranked": ranked.to(torch.int32 if small else torch.int64)}, path, metadata={"mask": about})


def read_mask(path: Path, base: str) -> tuple[Tensor, dict[str, int]]:
    """A ranking, int64, and the number of weights of each parameter it counts through.

    Raises:
        UserError: when the mask is damaged or belongs to another base model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["mask"])
            ranked = file.get_tensor("ranked").long()
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and rerun") from error
    if about["base"] != base:
        raise UserError(
            f"{path} was trained from another base model ({about['base'][:12]} instead of {base[:12]}): "
            "rerun the mask"
        )
    return ranked, about["parameters"]


def edits(
    model: Any, ranked: Tensor, sizes: dict[str, int], edit_sizes: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Set ever more weights of ``model`` to zero; yields each edit size and how many weights are zero then.

    Each edit holds the smaller ones, so nothing is restored or loaded in between. A size beyond the moved
    weights zeroes those alone.
    """
    import torch

    parameters = [model.get_parameter(name) for name in sorted(sizes)]
    ends = torch.tensor([sizes[name] for name in sorted(sizes)]).cumsum(0)
    done = 0
    for size in sorted(edit_sizes):
        chosen = ranked[done:size]
        owners = torch.bucketize(chosen, ends, right=True)
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                view = sharding.held(parameter).view(-1)
                start = int(ends[index]) - parameter.numel()
                place = chosen[owners == index] - start - sharding.first_row(parameter) * parameter.shape[1]
                view[place[(place >= 0) & (place < len(view))].to(view.device)] = 0
        done += len(chosen)
        yield size, done


def mask(job: Job) -> None:
    """Stage: one mask, as the ranking of its weights and the losses of every step."""
    config, seed = job.config, int(job.wildcards["seed"])
    settings: Masking = config.masking
    device = models.setup(config.compute)
    model, tokenizer = models.load(job.inputs["base_model"], config.model.dtype, device)
    split = read_split(job.inputs["split"])
    split = split[split["train"]].reset_index(drop=True)
    data = read_data(job, tokenizer, split, list(split["sport"]), list(split["forget"]))
    trainable = comp.trainable(model, read_selection(job.inputs["selection"]))
    weights = Weights(settings.lambda_forget, settings.lambda_retain, settings.lambda_sft)
    removed, history = train(model, data, trainable, settings, weights, seed)
    last: Any = history.iloc[-1]
    if last["most_removed"] < HARDLY:
        print(
            f"the settings under 'masking' hardly move the mask: after {settings.steps} steps the largest removed "
            f"part of a weight is {last['most_removed']:.1e} (of 1); the sweep only ranks by it. "
            "Raise masking.learning_rate or masking.steps for a mask that binds.",
            file=sys.stderr,
        )
    parameters = {name: model.get_parameter(name) for name in trainable}
    removed = {name: sharding.whole(parameters[name], d) for name, d in removed.items()}
    ranked = rank(removed, max(settings.edit_sizes))
    sizes = {name: p.numel() for name, p in parameters.items()}
    save_mask(job.outputs["mask"], ranked, sizes, models.weights_digest(job.inputs["base_model"]))
    history.to_csv(job.outputs["history"], index=False)
    job.facts.update(
        seeds={"masking": seed},
        device=device,
        masked_weights=sum(comp.selected(parameters[name], part) for name, part in trainable.items()),
        share_moved=float(last["moved"]),
        largest_removed=float(last["most_removed"]),
        removed_by_half=sum(int((d > 0.5).sum()) for d in removed.values()),
        hardly_moved=bool(last["most_removed"] < HARDLY),
    )


def sweep(job: Job) -> None:
    """Stage: the short exam at every edit size of a mask, on one loaded model.

    Rows carry ``edit_size`` (what was asked for) and ``masked`` (the weights that are zero: fewer when
    training moved fewer).
    """
    config = job.config
    device = models.setup(config.compute)
    model, tokenizer = models.load(job.inputs["base_model"], config.model.dtype, device)
    ranked, sizes = read_mask(job.inputs["mask"], models.weights_digest(job.inputs["base_model"]))
    exam = short_exam(job)
    points = sorted(config.masking.edit_sizes)
    parts: dict[str, list[pd.DataFrame]] = {}
    steps = edits(model, ranked, sizes, points)
    tokens = models.batch_tokens(config.compute, model)
    for _ in Progress("sweeping edit sizes", "size").over(points):
        size, masked = next(steps)
        for name, table in take(exam, model, tokenizer, tokens).items():
            parts.setdefault(name, []).append(table.assign(edit_size=size, masked=masked))
    job.facts.update(seeds={"athletes": config.series.seed, "mmlu": config.mmlu.seed}, device=device)
    for name, tables in parts.items():
        rows = pd.concat(tables, ignore_index=True).assign(objective="mask", **identity(job))
        rows.to_parquet(job.outputs[name], index=False)
