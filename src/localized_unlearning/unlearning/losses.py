"""The losses (section 2.4): L = λ1 L_forget + λ2 L_retain + λ3 L_SFT.

Fact losses are read at the answer position alone. All are functions of the answer's log-odds, its logit minus
the log-sum-exp of all others: with those, log p = -log(1 + exp(-odds)) and log(1 - p) = -log(1 + exp(odds)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localized_unlearning.models.vocabulary import log_odds

if TYPE_CHECKING:
    from torch import Tensor


ERASE_FLOOR = -5.0
"""log p below which a fact counts as forgotten and adds no loss (Mazeika et al. 2024)."""


def erase(odds: Tensor) -> Tensor:
    """The Log-1-minus-P unlearning loss, -log(1 - p) ``[item]``; zero once log p is below -5.

    Stable for p near 0 and near 1, since it never forms p.
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(-odds) * (logsigmoid(odds.detach()) > ERASE_FLOOR)


def cross_entropy(odds: Tensor) -> Tensor:
    """-log p of the answers ``[item]``: L_retain, and the injection loss with a false answer (A.1)."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(odds)


def text_losses(model: Any, windows: Tensor) -> Tensor:
    """Next-token cross-entropy of plain text, averaged over each window's tokens ``[window]``.

    Args:
        model: the model; its output layer must be frozen.
        windows: token ids ``[window, token]``, without padding.
    """
    hidden = model.base_model(input_ids=windows[:, :-1], use_cache=False).last_hidden_state
    found = answer_losses(model, hidden.flatten(0, 1), windows[:, 1:].flatten())
    return found.view(len(windows), -1).mean(1)


def answer_losses(model: Any, hidden: Tensor, answer: Tensor) -> Tensor:
    """Cross-entropy of each answer ``[item]`` after final hidden states ``[item, width]``, in nats ``[item]``."""
    return cross_entropy(log_odds(model, hidden, answer))
