"""RepSelect: unlearn where an adversary's relearning does not look (arXiv 2606.17168).

As filyp/RepSelect at 02927c8, src/trainer/unlearn/repselect_simple.py, with its paper's settings (distribution forget, soft,
collapse on both): a LoRA adversary (peft's rank 8, alpha 8) descends one epoch on -log p of the forget set; with it in place
the gradient of log p is summed over an epoch, its top components divided by their relative singular values on both
sides; each step moves by the learning rate (0.05; swept .005 to .5) times that, until a budget of KL divergence (here:
finetune.steps). It trains every MLP matrix, here the localization's. Components beyond a gradient's rank are left out.
Cost: two epochs of the forget set and one SVD per matrix; a step computes no loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from localized_unlearning.unlearning.method import Method, Training, with_lora


@dataclass(frozen=True)
class RepSelect(Method):
    """``components`` of the gradient are collapsed; the adversary has ``rank``, ``alpha``, ``lora_lr`` and ``batch``."""

    components: int = 512
    rank: int = 8
    alpha: float = 8.0
    lora_lr: float = 0.01
    batch: int = 16

    def optimizer(self, parameters: Sequence[Tensor], settings: Any, seed: int) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=settings.learning_rate)

    def gradients(self, training: Training) -> Iterator[dict[str, float]]:
        weights = list(training.parameters.values())
        total = [torch.zeros_like(weight).float() for weight in weights]
        with with_lora(training, self.rank, self.alpha) as adapters:
            for gradient in training.epoch(adapters, self.batch):
                torch._foreach_sub_([a.data for a in adapters], gradient, alpha=self.lora_lr)
            for gradient in training.epoch(weights, self.batch):
                torch._foreach_sub_(total, [g.float() for g in gradient])
        total = [self.filtered(g).to(weight.dtype) for g, weight in zip(total, weights, strict=True)]
        while True:
            for weight, whole in zip(weights, total, strict=True):
                weight.grad = whole.clone()
            yield {"forget": math.nan, "retain": math.nan, "sft": math.nan}

    def filtered(self, gradient: Tensor) -> Tensor:
        """A gradient with its top components divided by their singular value over the smallest one's, on both sides."""
        u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
        kept = slice(
            min(self.components, int((s > s[0] * max(gradient.shape) * torch.finfo(s.dtype).eps).sum()))
        )
        for vectors in (vh[kept].T, u[:, kept]):
            along = gradient @ vectors
            gradient = (gradient - (along - along * s[kept].min() / s[kept]) @ vectors.T).T
        return gradient
