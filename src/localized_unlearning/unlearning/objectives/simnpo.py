"""SimNPO: negative preference optimization without a reference model (Fan et al. 2024, arXiv 2410.07163).

As in open-unlearning at 56b662e, src/trainer/unlearn/simnpo.py, where -log p is divided by the answer's length, which is
one token here. β = 4.5, δ = 0 and λ1 = γ = 0.125 are open-unlearning's settings; the paper's WMDP model card
(OPTML-Group/SimNPO-WMDP-zephyr-7b-beta) has β = 5.5 and λ2 = 5. Cost: that of erase.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.unlearning.method import Batch


def simnpo(batch: Batch, *, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """(2 / β) log(1 + exp(β (log p + δ))) ``[item]``."""
    return -2 / beta * logsigmoid(-beta * (batch.log_p + delta))
