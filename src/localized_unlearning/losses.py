"""The losses (section 2.4): L = λ1 L_forget + λ2 L_retain + λ3 L_SFT.

All take next-token logits in float32 and are computed at the answer position alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ERASE_FLOOR = -5.0
"""log p below which a fact counts as forgotten and adds no loss (Mazeika et al. 2024)."""


def log_one_minus_p(logits: Tensor, answer: Tensor) -> Tensor:
    """log(1 - p) of the answers, stable for p near 0 and near 1.

    Args:
        logits: ``[item, vocabulary]``, float32.
        answer: token of each answer ``[item]``.

    Returns:
        ``[item]``, the log-sum-exp over all other tokens minus that over all tokens.
    """
    import torch

    others = logits.scatter(1, answer[:, None], float("-inf"))
    return torch.logsumexp(others, 1) - torch.logsumexp(logits, 1)


def erase(logits: Tensor, answer: Tensor) -> Tensor:
    """The Log-1-minus-P unlearning loss, -log(1 - p) ``[item]``; zero once log p is below -5."""
    import torch

    log_p = torch.log_softmax(logits, 1).gather(1, answer[:, None])[:, 0]
    return -log_one_minus_p(logits, answer) * (log_p.detach() > ERASE_FLOOR)


def cross_entropy(logits: Tensor, answer: Tensor) -> Tensor:
    """-log p of the answers ``[item]``: L_retain, and the injection loss with a false answer (A.1)."""
    import torch

    return torch.nn.functional.cross_entropy(logits, answer, reduction="none")


def text_losses(model: Any, windows: Tensor) -> Tensor:
    """Next-token cross-entropy of plain text, averaged over each window's tokens ``[window]``.

    Args:
        windows: token ids ``[window, token]``, without padding.
    """
    import torch

    from localized_unlearning.packing import logits_of

    hidden = model.base_model(input_ids=windows[:, :-1], use_cache=False).last_hidden_state
    logits = logits_of(model, hidden)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none"
    )
    return losses.view(windows.shape[0], -1).mean(1)


def text_windows(tokenizer: Any, text: str, tokens: int) -> Tensor:
    """The beginning of each document (a line) as ``[window, tokens + 1]``; shorter documents are joined.

    Raises:
        UserError: when the text holds no window.
    """
    import torch

    from localized_unlearning import models
    from localized_unlearning.errors import UserError

    windows: list[Sequence[int]] = []
    waiting: list[int] = []
    for ids in models.encode(tokenizer, [line for line in text.splitlines() if line.strip()]):
        waiting += ids
        if len(waiting) > tokens:
            windows.append(waiting[: tokens + 1])
            waiting = []
    if not windows:
        raise UserError(f"the text holds fewer than {tokens + 1} tokens: give more text or lower text.tokens")
    return torch.tensor(windows)
