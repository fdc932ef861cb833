"""Equal disruption: every localization is unlearned as hard as one budget of side effects allows.

At fixed settings "forgets more" may only mean "was hit harder". Here each localization's learning rate is the largest
of a common list at which the model stays within a budget, measured on what training does not read: the KL divergence
from the base model's next-token distribution on text, or what retained facts lose. The search is as large for one
localization as for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from localized_unlearning.models import packing

if TYPE_CHECKING:
    from torch import Tensor


def next_token_log_probabilities(model: Any, windows: Tensor) -> Tensor:
    """Log-probabilities of the next token over ``windows`` ``[window, position, token]``, float32, on the CPU."""
    import torch

    with torch.inference_mode():
        return model(windows.to(model.device)).logits.float().log_softmax(-1).cpu()  # type: ignore[no-any-return]


def divergence(base: Tensor, model: Any, windows: Tensor) -> float:
    """Mean KL divergence from the base model's next-token distribution to ``model``'s, in nats per token.

    Args:
        base: the base model's :func:`next_token_log_probabilities` on the windows.
        model: the model compared with it.
        windows: token ids ``[window, token]``.
    """
    now = next_token_log_probabilities(model, windows)
    return float((base.exp() * (base - now)).sum(-1).mean())


Cost = Callable[[Any], float]
"""How much a model is disrupted, against the base model."""


def text_divergence(base: Any, windows: Tensor) -> Cost:
    """The :func:`divergence` of a model from ``base`` on validation text ``[window, token]``."""
    before = next_token_log_probabilities(base, windows)
    return lambda model: divergence(before, model, windows)


class Question(NamedTuple):
    """Prompts with the same candidate answers, and which of them each one's right answer is."""

    prompts: Sequence[Sequence[int]]
    candidates: Sequence[int]
    right: Sequence[int]


def mean_probability(model: Any, asked: Sequence[Question], batch_tokens: int) -> float:
    """Probability of the right answer among the candidates, averaged over prompts, then over formats."""
    means = []
    for question in asked:
        found = packing.next_token(model, question.prompts, question.candidates, batch_tokens).candidates
        right = found.double().softmax(-1)[range(len(question.right)), list(question.right)]
        means.append(float(right.mean()))
    return sum(means) / len(means)


def retained_loss(base: Any, asked: Sequence[Question], batch_tokens: int) -> Cost:
    """What a model lost of ``base``'s :func:`mean_probability` of retained facts, in several formats."""
    before = mean_probability(base, asked, batch_tokens)
    return lambda model: before - mean_probability(model, asked, batch_tokens)


class Tried(NamedTuple):
    """One learning rate of the search: what it cost, and whether that is within the budget."""

    learning_rate: float
    cost: float
    within: bool


@contextmanager
def put_back(model: Any, names: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Yields a function that gives the named parameters the values that they had on entry."""
    import torch

    kept = {name: model.get_parameter(name).detach().clone() for name in names}

    def restore() -> None:
        with torch.no_grad():
            for name, value in kept.items():
                model.get_parameter(name).copy_(value)

    yield restore


def strongest(
    model: Any,
    names: Sequence[str],
    rates: Sequence[float],
    budget: float,
    cost: Cost,
    train: Callable[[float], Any],
) -> tuple[Any, list[Tried]]:
    """Train ``model`` in place at the largest rate that keeps within the budget.

    Rates are tried from the largest on, and the first one within the budget is kept. When none is, the smallest is
    kept and said to be outside.

    Args:
        model: the base model.
        names: the parameters that are trained.
        rates: the common list.
        budget: the most that it may cost.
        cost: measures a model.
        train: trains the model at a rate; what it returns is returned.

    Returns:
        What ``train`` returned for the rate that was kept, and all that were tried.
    """
    tried: list[Tried] = []
    with put_back(model, names) as restore:
        for rate in sorted(rates, reverse=True):
            if tried:
                restore()
            found = train(rate)
            price = cost(model)
            tried.append(Tried(rate, price, price <= budget))
            if tried[-1].within:
                break
    return found, tried
