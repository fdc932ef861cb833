"""UNDIAL: self-distillation to the base model's distribution with the answer's logit lowered (Dong et al. 2024,
arXiv 2402.10052).

As in open-unlearning at 19a6141, src/trainer/utils.py (compute_undial_loss); β = 10, λ1 = 1, λ2 = 0 and a learning rate of
1e-4 in configs/trainer/UNDIAL.yaml at 5a7dfb4. There the mean goes over every position; here over the answers.
Cost: the base model's final hidden states, one forward pass per fact; then erase and twice the batch's logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import one_hot

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.unlearning.method import Batch


def undial(batch: Batch, *, beta: float = 10.0) -> Tensor:
    """Cross-entropy to softmax(base logits - β at the answer) ``[item]``."""
    base = batch.base.logits()
    target = (base - beta * one_hot(batch.answer, base.shape[1])).softmax(1)
    return -(target * batch.logits().log_softmax(1)).sum(1)
