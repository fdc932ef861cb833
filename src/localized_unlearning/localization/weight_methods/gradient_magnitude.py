"""The weights on which the forget set's loss depends most: |dL/dw| (SalUn, Fan et al. 2024, arXiv 2310.12508, equation 3).

OPTML-Group/Unlearn-Saliency at 2b0a8a1, Classification/generate_mask.py, sums the gradient over batches and takes shares
of 10 to 50 % of all weights (its loader also trains while it sums; here the weights stay). Cost: one pass over the facts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def gradient_magnitude(weight: Tensor, forget: Tensor, retain: Tensor) -> Tensor:
    """The absolute gradient of the forget set's mean -log p, in the shape of ``weight``."""
    return forget.abs()
