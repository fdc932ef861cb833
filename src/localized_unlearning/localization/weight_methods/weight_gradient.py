"""The weights whose removal would change the forget set's loss most, to first order: |w dL/dw| (SNIP's connection sensitivity,
Lee et al. 2019, arXiv 1810.02340, equation 5; the forget part of WAGLE's attribution, Jia et al. 2024, arXiv 2410.17509).

WAGLE's public repository holds no code; its retain part is not here. Cost: one pass over the facts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def weight_gradient(weight: Tensor, forget: Tensor, retain: Tensor) -> Tensor:
    """The absolute product of a weight and its gradient of the forget set's mean -log p, in the shape of ``weight``."""
    return (weight * forget).abs()
