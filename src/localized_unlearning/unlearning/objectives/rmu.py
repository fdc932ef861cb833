"""RMU: push the forget set's hidden states to a random direction, hold the retain set's where they were (Li et al. 2024,
arXiv 2403.03218, section 4).

Zephyr-7B's recipe in centerforaisafety/wmdp (run_rmu_zephyr, as quoted by its users): layer 7 of 32, steering coefficient 6.5,
α 1200 (λ2 here), learning rate 5e-5, 150 batches of 4, trained in layers 5 to 7. open-unlearning's
src/trainer/unlearn/rmu.py at 7fa0b55 defaults to 20, its configs/trainer/RMU.yaml at 8f9872c has 300 and α 1000, "tune them
carefully". The references read every token; here it is the prompt's last, where the answer stands, and what is
trained is the localization's. Cost: at most 1.5 times erase, and one forward pass per fact for the base's states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from localized_unlearning.unlearning.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from localized_unlearning.unlearning.method import Batch


@dataclass(frozen=True)
class RMU(Method):
    """States are read after ``layer`` and pushed to a random vector of length ``steering``, one per model."""

    layer: int = 7
    steering: float = 6.5

    def loss(self, batch: Batch) -> Tensor:
        """Mean square of h - c u ``[item]``; u uniform in [0, 1) by dimension, then normalised."""
        hidden = batch.hidden(self.layer).float()
        draw = torch.rand(hidden.shape[1], generator=torch.Generator().manual_seed(batch.facts.seed))
        target: Tensor = (self.steering * draw / draw.norm()).to(hidden)
        return (hidden - target).pow(2).mean(1)

    def retain(self, batch: Batch) -> Tensor:
        """Mean square of h minus the base model's h ``[item]``."""
        return (batch.hidden(self.layer).float() - batch.base.hidden(self.layer).float()).pow(2).mean(1)
