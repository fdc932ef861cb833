"""Negative preference optimization (Zhang et al. 2024, arXiv 2404.05868, equation 3).

Definition as in open-unlearning at 19a6141, src/trainer/utils.py (compute_dpo_loss without a preferred answer). β = 0.1 in
Unlearn-Simple's TOFU/config/forget.yaml at a7782fc, with λ1 = λ2 = 1; open-unlearning's trainer defaults to 1.
Cost: the base model's log p, one forward pass per fact; then that of erase.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.unlearning.method import Batch


def npo(batch: Batch, *, beta: float = 0.1) -> Tensor:
    """(2 / β) log(1 + (p / p_base)^β) ``[item]``."""
    return -2 / beta * logsigmoid(-beta * (batch.log_p - batch.base.log_p))
