"""The weights whose unlearning would not harm: where raising the forget set's loss also lowers the retain set's (MUDMAN's
disruption mask, Sondej et al. 2025, arXiv 2506.12484), those that unlearn most first.

filyp/MUDMAN at 5630e91, src/MUDMAN_simplified.py, keeps an update where its sign is that of a running mean of the retain
gradient, renewed at each step; here the two gradients are the base model's, once. A weight whose signs disagree is
taken after all that agree. Cost: one pass over forget and retain facts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def gradient_agreement(weight: Tensor, forget: Tensor, retain: Tensor) -> Tensor:
    """|forget gradient| where a step up the forget loss is a step down the retain loss, its negative elsewhere."""
    agrees = (-forget).sign() == retain.sign()
    return forget.abs().where(agrees, -forget.abs())
