"""Attacks on the weights that need no data: quantization, noise and pruning.

Rounding the unlearned weights can undo small changes (Zhang et al. 2025, arXiv 2410.16454: 21 % to 83 % of the knowledge
back at 4 bits). Noise and pruning are the weight-space attacks of Che et al. 2025 (arXiv 2502.05209).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pandas as pd

from localized_unlearning.attacks.subject import Subject, ask
from localized_unlearning.config.attacks import Noise, Pruning, Quantization
from localized_unlearning.config.localization import Components
from localized_unlearning.errors import UserError
from localized_unlearning.models import components

if TYPE_CHECKING:
    from torch import Tensor


def rounded(weight: Tensor, bits: int, group: int) -> Tensor:
    """``weight`` rounded to the nearest of ``2**bits - 1`` levels, symmetric, each ``group`` of a row by its own scale.

    The scale is the group's largest absolute value over ``2**(bits - 1) - 1``; a group of zeros stays.

    Raises:
        UserError: when ``group`` does not divide the rows.
    """
    if weight.shape[-1] % group:
        raise UserError(
            f"attacks.quantization.group is {group}, which does not divide the {weight.shape[-1]} columns of a matrix "
            "of this model: choose a divisor"
        )
    most = 2 ** (bits - 1) - 1
    groups = weight.float().reshape(-1, group)
    scale = groups.abs().amax(1, keepdim=True) / most
    scale = scale.where(scale > 0, scale.new_ones(()))
    levels: Tensor = (groups / scale).round().clamp(-most, most) * scale
    return levels.reshape(weight.shape).to(weight.dtype)


@contextmanager
def replaced(subject: Subject, change: Callable[[Tensor, str], Tensor]) -> Iterator[None]:
    """Inside, every matrix of the layers is what ``change`` makes of it and its name."""
    import torch

    found = components.trainable(
        subject.model, components.list_components(subject.model.config, Components(include_gate=True))
    )
    kept = {}
    try:
        with torch.no_grad():
            for name in found:
                parameter = subject.model.get_parameter(name)
                kept[name] = parameter.detach().clone()
                parameter.copy_(change(kept[name], name))
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                subject.model.get_parameter(name).copy_(value)


def quantization(subject: Subject, settings: Quantization) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every matrix rounded, in each number of bits."""
    for bits in settings.bits:
        with replaced(subject, lambda w, _, bits=bits: rounded(w, bits, settings.group)):  # type: ignore[misc]
            yield f"int{bits}", ask(subject)


def noise(subject: Subject, settings: Noise) -> Iterator[tuple[str, pd.DataFrame]]:
    """Gaussian noise on every matrix, in units of its own standard deviation."""
    import torch

    for scale in settings.scales:
        generator = torch.Generator().manual_seed(subject.seed)

        def noisy(
            weight: Tensor, _name: str, scale: float = scale, generator: torch.Generator = generator
        ) -> Tensor:
            draw = torch.randn(weight.shape, generator=generator).to(weight)
            return weight + scale * weight.float().std().to(weight) * draw

        with replaced(subject, noisy):
            yield f"noise {scale:g}", ask(subject)


def pruning(subject: Subject, settings: Pruning) -> Iterator[tuple[str, pd.DataFrame]]:
    """The smallest weights of every matrix set to zero."""
    for share in settings.shares:

        def pruned(weight: Tensor, _name: str, share: float = share) -> Tensor:
            size = weight.abs().float().flatten()
            limit = size.kthvalue(max(1, round(share * len(size)))).values
            return weight.where(weight.abs() > limit, weight.new_zeros(()))

        with replaced(subject, pruned):
            yield f"pruned {share:g}", ask(subject)
