"""Gradient ascent (Jang et al. 2023, arXiv 2210.01504) on the right answers; with a retain loss, gradient difference.

The two are one forget loss: gradient ascent has no other term (λ2 = λ3 = 0), gradient difference (Liu et al. 2022, arXiv
2203.12817; Maini et al. 2024, arXiv 2401.06121) adds cross-entropy on the retain set; γ = α = 1 in open-unlearning at
7fa0b55, src/trainer/unlearn/grad_diff.py. The loss has no bound below. Cost: that of erase.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.unlearning.method import Batch


def gradient_ascent(batch: Batch) -> Tensor:
    """log p of the right answer ``[item]``, to be made small."""
    return batch.log_p
