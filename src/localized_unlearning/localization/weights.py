"""Localizations of single weights: which ones a method scores highest, as masks of the gradient (kind ``weights``).

A method is a file with a function of one matrix, its gradient of the forget set's loss and that of the retain set's, each
``[out, in]``, that gives a score per weight; the highest are trained. Ours lie in ``weight_methods/``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localized_unlearning.errors import UserError
from localized_unlearning.localization.selection import read_selection
from localized_unlearning.models import components, packing
from localized_unlearning.models.vocabulary import log_odds

if TYPE_CHECKING:
    from torch import Tensor

WeightMethod = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


def loss_gradients(
    model: Any, names: Sequence[str], items: Sequence[tuple[list[int], int]], tokens: int
) -> dict[str, Tensor]:
    """The gradient of the mean of -log p of ``items`` (prompts and answers) by each parameter in ``names``."""
    import torch

    parameters = [model.get_parameter(name) for name in names]
    for parameter in parameters:
        parameter.requires_grad_(True)
    for batch in packing.batches([prompt for prompt, _ in items], model, tokens):
        answer = torch.tensor([items[i][1] for i in batch.prompts.tolist()], device=model.device)
        odds = log_odds(model, packing.last_hidden(model, batch), answer)
        (-torch.nn.functional.logsigmoid(odds).sum() / len(items)).backward()
    found = {}
    for name, parameter in zip(names, parameters, strict=True):
        found[name] = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        parameter.grad = None
        parameter.requires_grad_(False)
    return found


def highest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks of the ``count`` highest scores over all parameters; of equal ones, the first in order of name and place.

    The threshold is found by halving the range of float32 bit patterns: 32 passes, and no copy of all scores.
    """
    import torch

    def key(score: Tensor) -> Tensor:  # ordered as the numbers are
        bits = (score.float() + 0.0).to(torch.float32).view(torch.int32)
        return torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)

    keys = {name: key(scores[name]) for name in sorted(scores)}
    low, high = -(2**31), 2**31 - 1
    while low < high:
        middle = (low + high + 1) // 2
        if sum(int((k >= middle).sum()) for k in keys.values()) >= count:
            low = middle
        else:
            high = middle - 1
    masks = {name: k > low for name, k in keys.items()}
    left = count - sum(int(mask.sum()) for mask in masks.values())
    for name, k in keys.items():
        equal = (k.flatten() == low).nonzero()[:left, 0]
        masks[name].view(-1)[equal] = True
        left -= len(equal)
    return masks


def weight_scores(
    method: WeightMethod,
    named: str,
    parameters: Mapping[str, Any],
    weights: Mapping[str, tuple[Tensor, Tensor, Tensor]],
    allowed: Mapping[str, Tensor | None],
) -> dict[str, Tensor]:
    """The method's scores of every weight, float32; what a component's mask leaves out is never taken.

    Args:
        method: the method.
        named: how the config names it.
        parameters: its settings.
        weights: by parameter, the weights and their two gradients.
        allowed: by parameter, the mask of the components that may be taken; None: all of it.

    Raises:
        UserError: when the method raises, or gives another shape, NaN or infinity.
    """
    import torch

    found = {}
    for name, (weight, forget, retain) in weights.items():
        try:
            score = method(weight, forget, retain, **parameters)
        except Exception as error:
            raise UserError(
                f"{named} fails on {name} ({type(error).__name__}: {error}): correct it"
            ) from error
        if not isinstance(score, torch.Tensor) or score.shape != weight.shape:
            raise UserError(
                f"{named} must give one score per weight, a tensor in the shape of {name}: correct it"
            )
        if not torch.isfinite(score).all():
            raise UserError(f"{named} gives NaN or infinity on {name}: correct it")
        mask = allowed[name]
        found[name] = score.float() if mask is None else score.float().where(mask, -torch.inf)
    return found


def save_masks(path: Path, masks: Mapping[str, Tensor], base: str) -> None:
    """Write masks, a bit per weight, named by the base model's digest."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    packed = {n: torch.from_numpy(np.packbits(m.cpu().numpy().reshape(-1))) for n, m in sorted(masks.items())}
    shapes = {name: list(mask.shape) for name, mask in sorted(masks.items())}
    save_file(
        packed, path, metadata={"weights": json.dumps({"base": base, "shapes": shapes}, sort_keys=True)}
    )


def read_masks(path: Path, base: str) -> dict[str, Tensor]:
    """The masks in a file, true where a weight is trained.

    Raises:
        UserError: when the file is damaged or belongs to another base model.
    """
    import numpy as np
    import torch
    from safetensors import SafetensorError, safe_open

    masks = {}
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["weights"])
            for name, shape in about["shapes"].items():
                bits = np.unpackbits(file.get_tensor(name).numpy(), count=int(np.prod(shape)))
                masks[name] = torch.from_numpy(bits.reshape(shape).astype(bool))
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and rerun") from error
    if about["base"] != base:
        raise UserError(
            f"{path} was made from another base model ({about['base'][:12]}): rerun the selection"
        )
    return masks


def trainable(model: Any, selection: Path, weights: Path | None, base: str) -> dict[str, Any]:
    """What a selection trains, as :func:`components.trainable`: its components, or of these the single ``weights``."""
    if not weights:
        return components.trainable(model, read_selection(selection))
    return {
        n: mask.to(model.get_parameter(n).device)
        for n, mask in read_masks(weights, base).items()
        if mask.any()
    }
