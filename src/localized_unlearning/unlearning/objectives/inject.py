"""Inject a false answer (appendix A.1): cross-entropy to it. Cost: that of erase."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.unlearning.method import Batch


def inject(batch: Batch) -> Tensor:
    """-log p of the answer that is injected ``[item]``."""
    return -batch.log_p
