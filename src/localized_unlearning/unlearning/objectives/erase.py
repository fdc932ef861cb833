"""Log 1 minus p: make the right answer improbable, until it is (section 2.4; Mazeika et al. 2024).

Without its floor the gradient is that of CE-U, cross-entropy to the model's own distribution with the right answer's
logit at minus infinity (Yang 2025, arXiv 2503.01224): both push the other tokens up in proportion to their probability.
CE-U therefore has no file of its own; its reference skips an answer's first token, which here is the whole answer.
Cost: the unit in which the others are given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from localized_unlearning.unlearning.losses import erase as log_one_minus_p

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.unlearning.method import Batch


def erase(batch: Batch) -> Tensor:
    """-log(1 - p) ``[item]``, zero and without gradient once log p is below -5."""
    return log_one_minus_p(batch.log_odds)
