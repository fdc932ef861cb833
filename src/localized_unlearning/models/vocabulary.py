"""The output layer, read no further than needed: some tokens' logits, or sums over the vocabulary in blocks.

The layer may be most of a model (63 % of Gemma 3 270M) and its logits most of the memory, so neither is ever
held whole in float32. Logits are float32 throughout: in bfloat16 those near 16 to 32 are 0.125 apart.

A GPU multiplies bfloat16 operands with float32 sums at the full rate of its matrix units, and a product of two such
numbers is exact in float32: logits of a bfloat16 model lose nothing by it (:func:`wide_product`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from localized_unlearning.models import device as device_module

if TYPE_CHECKING:
    from torch import Tensor


BLOCK = 2**22
"""Most numbers of one block of logits, and of the weights behind it, in float32 (16 MiB), on a CPU; the least on a GPU."""

MOST = 2**28
"""Most numbers of one block on a GPU: larger ones were no faster on an H100 (docs/performance.md)."""

EACH = 32
"""Bytes that a number of a block takes while it is used: logits, shares, their two halves, scratch of the sums."""


def logits_of(model: Any, hidden: Tensor, tokens: slice | Sequence[int] = slice(None)) -> Tensor:
    """Logits in float32 of ``tokens`` (default: the vocabulary) ``[..., token]``, soft-capped where the model does.

    The slow definition, against which the rest of this module is tested, takes the whole vocabulary.
    """
    import torch

    head = model.get_output_embeddings()
    rows = tokens if isinstance(tokens, slice) else list(tokens)
    weight = head.weight[rows]
    bias = None if getattr(head, "bias", None) is None else head.bias[rows].float()
    if has_wide_products(hidden, weight):
        logits = wide_product(hidden.flatten(0, -2), weight.T).view(*hidden.shape[:-1], len(weight))
        logits = logits if bias is None else logits.add_(bias)
    else:
        logits = torch.nn.functional.linear(hidden.float(), weight.float(), bias)
    factor = _factor(model)
    logits = logits if factor == 1 else logits * factor
    cap = _cap(model)
    return logits if not cap else cap * torch.tanh(logits / cap)


def has_wide_products(hidden: Tensor, weight: Tensor) -> bool:
    """Whether operands of their own type can be multiplied with float32 sums: bfloat16, on a GPU, without autograd."""
    import torch

    graded = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return weight.is_cuda and hidden.dtype == weight.dtype == torch.bfloat16 and not graded


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """The product of two bfloat16 matrices, summed and given in float32 ``[row, column]``; on a GPU."""
    import torch

    found: Tensor = torch.mm(left, right, out_dtype=torch.float32)
    return found


def _cap(model: Any) -> float | None:
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def _factor(model: Any) -> float:
    """What the output layer's results are multiplied by (Cohere, Granite)."""
    config = model.config.get_text_config()
    return getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)


def blocks(model: Any, items: int) -> Iterator[slice]:
    """The vocabulary in blocks, such that the logits of ``items`` positions stay within :func:`block_numbers`."""
    weight = model.get_output_embeddings().weight
    size, width = weight.shape
    step = max(2, block_numbers(weight.device) // max(items, width))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def block_numbers(device: Any) -> int:
    """Numbers of one block: :data:`BLOCK` on a CPU, and where only deterministic algorithms may run; else what fits
    half of the GPU's free memory."""
    import torch

    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return BLOCK
    return fitting(device_module.free_memory(device))


def fitting(free: int) -> int:
    """Numbers of a block for so many ``free`` bytes: a power of two, so that a neighbour's megabyte changes nothing."""
    fits = free // 2 // EACH
    return max(BLOCK, min(MOST, 1 << max(0, fits.bit_length() - 1)))


def argmax_and_normalizer(model: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Most likely token, and log-sum-exp of the logits over the vocabulary ``[item]``, of ``[item, width]``."""
    import torch

    best = normalizer = torch.full((len(hidden),), float("-inf"), device=hidden.device)
    argmax = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    for rows in blocks(model, len(hidden)):
        logits = logits_of(model, hidden, rows)
        top = logits.max(-1)
        argmax = torch.where(top.values > best, top.indices + rows.start, argmax)
        best = torch.maximum(best, top.values)
        normalizer = torch.logaddexp(normalizer, torch.logsumexp(logits, -1))
    return argmax, normalizer


def kl_divergence(model: Any, hidden: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) of next-token distributions over the vocabulary, in nats ``[item]``, float32.

    One pass over the vocabulary in blocks; the sums of earlier blocks are rescaled as later ones arrive.

    Args:
        model: gives the output layer.
        hidden: final hidden states that p follows from ``[item, width]``.
        other: those that q follows from, of the same output layer.
    """
    import torch

    lowest = torch.full((len(hidden),), float("-inf"), device=hidden.device)
    of_p, of_q, mean = lowest, lowest, torch.zeros_like(lowest)
    for rows in blocks(model, 2 * len(hidden)):
        p, q = logits_of(model, hidden, rows), logits_of(model, other, rows)
        total = torch.logaddexp(of_p, torch.logsumexp(p, 1))
        here = ((p - total[:, None]).exp_() * (p - q)).sum(1)
        mean = mean * (of_p - total).exp_() + here  # of p - q under the part of p seen so far
        of_p, of_q = total, torch.logaddexp(of_q, torch.logsumexp(q, 1))
    return (mean - (of_p - of_q)).clamp_(min=0)


def log_odds(model: Any, hidden: Tensor, answer: Tensor) -> Tensor:
    """log(p / (1 - p)) of each answer: its logit minus the log-sum-exp of all others ``[item]``, float32.

    One pass over the vocabulary in blocks computes the value and its gradient, in which the sums of earlier
    blocks are rescaled as later ones arrive; neither logits nor probabilities are kept.

    Args:
        model: gives the output layer, which must be frozen: no gradient reaches it.
        hidden: final hidden states ``[item, width]``.
        answer: token of each answer ``[item]``.
    """
    import torch

    head = model.get_output_embeddings()
    if head.weight.requires_grad:
        raise ValueError("log_odds gives the output layer no gradient: freeze it or use logits_of")
    with torch.no_grad():
        value, slope = _log_odds(model, hidden, answer, hidden.requires_grad)
    if slope is None:
        return value
    # The value, since what is added is zero, with the slope as its gradient.
    return value + ((hidden - hidden.detach()).float() * slope).sum(1)


def _log_odds(model: Any, hidden: Tensor, answer: Tensor, graded: bool) -> tuple[Tensor, Tensor | None]:
    """The log-odds ``[item]`` and, where wanted, their gradient by the hidden states ``[item, width]``."""
    import torch

    head, cap, factor = model.get_output_embeddings(), _cap(model), _factor(model)
    own = torch.empty(len(hidden), device=hidden.device)
    others = torch.full_like(own, float("-inf"))
    push = torch.zeros(hidden.shape, device=hidden.device) if graded else None
    for rows in blocks(model, len(hidden)):
        logits = logits_of(model, hidden, rows)
        here = ((answer >= rows.start) & (answer < rows.stop)).nonzero()[:, 0]
        column = answer[here] - rows.start
        own[here] = logits[here, column]
        logits[here, column] = float("-inf")
        total = torch.logaddexp(others, torch.logsumexp(logits, 1))
        if push is not None:
            share = (logits - total[:, None]).exp_()
            if cap:  # the derivative of cap * tanh(x / cap); the answer's own share is 0
                share *= 1 - (logits.clamp_(min=-cap) / cap) ** 2
            share = share if factor == 1 else share.mul_(factor)
            _add_product(push.mul_((others - total).exp_()[:, None]), share, head.weight[rows])
        others = total
    if push is None:
        return own - others, None
    pull = factor * head.weight[answer].float()
    if cap:
        pull *= 1 - (own[:, None] / cap) ** 2
    return own - others, pull - push


def _add_product(sums: Tensor, share: Tensor, weight: Tensor) -> None:
    """Add ``share @ weight`` to ``sums``, both float32.

    Where bfloat16 operands are multiplied with float32 sums, a share is the sum of two of them, exact to 16 bits; at
    torch's float32 precision ``high`` (``compute.precision: fast``) it is one, exact to 8.
    """
    import torch

    if not has_wide_products(weight, weight):
        sums.addmm_(share, weight.float())
        return
    first = share.to(weight.dtype)
    sums.add_(wide_product(first, weight))
    if torch.get_float32_matmul_precision() == "highest":
        sums.add_(wide_product(share.sub_(first).to(weight.dtype), weight))
