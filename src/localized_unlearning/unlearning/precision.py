"""Precision of training: what a step of 1e-5 does to a bfloat16 weight.

A bfloat16 has 8 significant bits: between 2^-8 = 0.0039 and 2^-7 neighbours lie 3.1e-5 apart, so that adding 1e-5 to
any weight of 0.0039 or more rounds back to the weight. An optimizer that keeps its weights in bfloat16, as the
released code's did, therefore moves only the smallest ones. Two remedies are here: a float32 copy of the trained
weights, or rounding at random, up or down in proportion to the distance, so that the mean is right.

torchao's optimizers round at random too, but from the global generator and through a compiler; ours takes its
generator, so that a seed repeats the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.adamw import adamw as adamw_step

from localized_unlearning.config.unlearning import Finetune

if TYPE_CHECKING:
    from torch import Tensor


def adamw(parameters: Sequence[Tensor], settings: Finetune, seed: int) -> torch.optim.Optimizer:
    """AdamW with the learning rate, decay and precision of ``settings``.

    Args:
        parameters: what is trained; of one type, float32 or bfloat16 (float64 counts as float32).
        settings: fine-tuning's.
        seed: of the rounding, where it is random.
    """
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.precision == "bf16" or parameters[0].dtype != torch.bfloat16:
        # foreach would hold a second copy of every state on a GPU
        return torch.optim.AdamW(parameters, foreach=False, **options)
    if settings.precision == "fp32_master":
        return HalfAdamW(parameters, master=True, **options)
    return HalfAdamW(parameters, master=False, seed=seed, **options)


def reserved(parameters: Sequence[Tensor], settings: Finetune) -> float:
    """Bytes of gradients, of :func:`adamw`'s states and of its temporaries for one parameter, all still to come."""
    width = parameters[0].element_size()
    half = parameters[0].dtype == torch.bfloat16
    states = 12 if half and settings.precision == "fp32_master" else 2 * width
    step = 3 * width if settings.precision == "bf16" or not half else 20
    return sum(p.numel() for p in parameters) * (width + states) + step * max(p.numel() for p in parameters)


class HalfAdamW(torch.optim.Optimizer):
    """AdamW for bfloat16 weights in float32 arithmetic, one parameter's float32 temporaries at a time.

    Args:
        parameters: bfloat16 leaves with bfloat16 gradients.
        lr, weight_decay: as ``torch.optim.AdamW``, whose betas and epsilon are kept.
        master: keep float32 weights and states, 12 bytes per weight, and round the weights to nearest into the model's;
            otherwise keep weights and states in bfloat16, 4 bytes per weight besides the model's, rounded at random.
        seed: of the random rounding; one generator per device.
    """

    def __init__(
        self, parameters: Sequence[Tensor], lr: float, weight_decay: float, master: bool, seed: int = 0
    ) -> None:
        super().__init__(
            parameters, {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8}
        )
        self.master = master
        devices = {p.device for p in parameters}
        self.generators = {device: torch.Generator(device).manual_seed(seed) for device in devices}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            kept = torch.float32 if self.master else torch.bfloat16
            state["step"] = torch.tensor(0.0)
            state["mean"] = torch.zeros_like(parameter, dtype=kept)
            state["square"] = torch.zeros_like(parameter, dtype=kept)
            if self.master:
                state["weight"] = parameter.detach().float()
        weight, mean, square = (
            state.get("weight", parameter).float(),
            state["mean"].float(),
            state["square"].float(),
        )
        adamw_step(
            [weight], [parameter.grad.float()], [mean], [square], [], [state["step"]],
            foreach=False, amsgrad=False, maximize=False, lr=group["lr"], weight_decay=group["weight_decay"],
            beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
        )  # fmt: skip
        if self.master:  # the float32 tensors above are the state itself
            parameter.copy_(weight)
            return
        generator = self.generators[parameter.device]
        for target, value in ((parameter, weight), (state["mean"], mean), (state["square"], square)):
            target.copy_(round_at_random(value, generator))


def round_at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """``values`` in bfloat16, each one of its two neighbours there, nearer ones more often: right on average.

    Args:
        values: finite float32.
        generator: on the device of ``values``.
    """
    bits = values.view(torch.int32)
    noise = torch.randint(1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    return noise.add_(bits).bitwise_and_(-(1 << 16)).view(torch.float32).bfloat16()
