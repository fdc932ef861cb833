"""What a mask is compared with: the weights by plain saliency |w dL/dw|, and in random order (Figures 5 to 12).

With a small step SGD moves the mask's removed part of a weight w by w dL/dw, so that the first-order saliency is where
training begins: what it adds shows beside it. The distribution of the saliency also gives the learning rate at which
the mask moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from localized_unlearning.config.unlearning import AT, FIRST_STEP, Masking
from localized_unlearning.errors import UserError
from localized_unlearning.models import device as device_module
from localized_unlearning.models import sharding
from localized_unlearning.unlearning import method
from localized_unlearning.unlearning.objectives.erase import erase
from localized_unlearning.unlearning.steps import Data, Lambdas, Sizes, gradients

if TYPE_CHECKING:
    from torch import Tensor

PERCENTILES = (10, 50, AT, 99)
"""Percentiles of the saliency that are recorded."""


def sizes_of(model: Any, settings: Masking, reserved: float) -> Sizes:
    """Examples of a step of a mask's loss; ``reserved`` are bytes that are still to be taken on the device."""
    tokens = device_module.micro_batch_tokens(settings.micro_batch_tokens, model, reserved)
    return Sizes(settings.batch_size, settings.batch_size, settings.text_batch, tokens)


def saliencies(
    model: Any, data: Data, trainable: Mapping[str, Any], settings: Masking, lambdas: Lambdas, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """|w dL/dw| of the weights that a mask covers, of the whole loss at the base weights; parameter by parameter.

    The gradient is the mean over the first ``settings.saliency_steps`` batches that training reads.

    Yields:
        Names in order, each with what this process holds of the parameter's saliency, float32, in its shape; 0 outside
        the selection. The model's gradients are gone in the end.
    """
    parameters = {name: model.get_parameter(name).requires_grad_(True) for name in trainable}
    held = {name: sharding.held(p) for name, p in parameters.items()}
    sizes = sizes_of(model, settings, sum(p.nbytes for p in held.values()))
    steps = gradients(model, data, sizes, lambdas, method.of(erase, {}, "erase"), seed)
    for _ in range(settings.saliency_steps):  # what is not cleared adds up
        next(steps)
    del steps
    sharding.take_gradients(parameters, held)
    for name in sorted(parameters):
        parameters[name].requires_grad_(False)
        gradient, held[name].grad = held[name].grad, None
        assert gradient is not None
        size = held[name].float().mul(gradient).div_(settings.saliency_steps).abs_()
        if trainable[name] is not None:
            size.mul_(sharding.part(parameters[name], trainable[name]))
        yield name, size


class Distribution:
    """Sizes as counts in bins of a 64th of an octave, from which percentiles are read to about 1 %.

    Of billions of weights no list is made.
    """

    LOWEST, OCTAVES, FINE = -126, 160, 64

    def __init__(self) -> None:
        import torch

        self.counts = torch.zeros(self.OCTAVES * self.FINE, dtype=torch.float64)
        self.largest = 0.0

    def add(self, sizes: Tensor) -> None:
        """Count more sizes, which are not negative."""
        import torch

        for part in sizes.flatten().split(2**24):  # float32 counts to 2^24
            places = part.log2().clamp_(self.LOWEST, self.LOWEST + self.OCTAVES - 1 / self.FINE)
            found = torch.histc(
                places, len(self.counts), float(self.LOWEST), float(self.LOWEST + self.OCTAVES)
            )
            self.counts += found.double().cpu()
            self.largest = max(self.largest, float(part.max()) if len(part) else 0.0)

    def over(self, model: Any) -> Distribution:
        """The counts of all processes that share ``model``."""
        import torch

        found = Distribution()
        found.counts = sharding.total(self.counts, model)
        found.largest = float(sharding.largest(torch.tensor(self.largest, dtype=torch.float64), model))
        return found

    def percentile(self, percent: float) -> float:
        """The size that ``percent`` of all counted do not exceed; 0 where it is no number of float32."""
        import torch

        total = self.counts.cumsum(0)
        place = int(torch.searchsorted(total, total[-1] * percent / 100))
        return 0.0 if place == 0 else float(2.0 ** (self.LOWEST + (place + 0.5) / self.FINE))


def rate_of(settings: Masking, found: Distribution) -> float:
    """The mask's learning rate: the config's, or one that moves the mask (:data:`localized_unlearning.config.unlearning.FIRST_STEP`).

    Raises:
        UserError: when so many weights have no gradient that none follows from it.
    """
    if settings.learning_rate != "auto":
        return settings.learning_rate
    size = found.percentile(AT)
    if size == 0:
        raise UserError(
            f"{AT} of 100 masked weights have no gradient, so that no learning rate follows from it: give masking.learning_rate"
        )
    return FIRST_STEP / size


def chosen_by(settings: Masking) -> str:
    """How a mask's learning rate came about, in words."""
    if settings.learning_rate != "auto":
        return "the settings"
    return f"a weight at percentile {AT} of |w dL/dw| loses {FIRST_STEP:g} of itself in the first step"


def random_sizes(model: Any, trainable: Mapping[str, Any], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Random numbers in (0, 1] for the weights that a mask covers, to rank them by; parameter by parameter, whole."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name in sorted(trainable):
        sizes = 1 - torch.rand(model.get_parameter(name).shape, generator=generator)
        if trainable[name] is not None:
            sizes.mul_(trainable[name].cpu())
        yield name, sizes
