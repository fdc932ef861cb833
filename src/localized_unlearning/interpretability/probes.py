"""Logistic probes: fits, and what they predict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from localized_unlearning.config.evaluation import Interpretability, Probing
from localized_unlearning.errors import UserError

LARGE = 1_000_000
"""Numbers in a fit's activations from which several threads are faster than one: measured on two cores."""


class Fit(NamedTuple):
    """Probes on the same activations: ``[athlete, hidden]`` with labels ``[target, athlete]``, and those to label."""

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray


def predictions(
    fits: Iterable[Fit], settings: Probing | Interpretability, threads: int = 1
) -> list[np.ndarray]:
    """What logistic regressions on each fit's training part say of its test part ``[target, athlete]``, in order.

    Activations are standardised with the training part's mean and deviation, so that the solver converges
    at every layer. The released code did not scale and allowed 10,000 iterations; on the organism that takes
    up to 920 of them instead of 140. Each fit has one thread, since with several the linear algebra sums in
    another order: the predictions do not depend on ``threads``. Small fits follow one another, since they spend
    their time in Python, which one thread at a time can run.
    """
    from threadpoolctl import threadpool_limits

    todo = list(fits)
    workers = threads if any(fit.train.size >= LARGE for fit in todo) else 1
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda fit: _predict(fit, settings), todo))


def _predict(fit: Fit, settings: Probing | Interpretability) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(fit.train)
    train, test = scaler.transform(fit.train), scaler.transform(fit.test)
    regression = LogisticRegression(C=settings.regularization, max_iter=settings.max_iterations)
    return np.array([regression.fit(train, labels).predict(test) for labels in fit.labels])


def all_right(
    train: np.ndarray,
    train_sport: np.ndarray,
    test: np.ndarray,
    test_sport: np.ndarray,
    answers: Sequence[str],
    settings: Probing,
    threads: int = 1,
) -> np.ndarray:
    """Whether the probes of all answers are right, at every layer ``[layer, athlete]``.

    Args:
        train, test: activations ``[layer, athlete, hidden]``.
        train_sport, test_sport: index into ``answers`` ``[athlete]``.
        answers: the answers, one probe each.
        settings: of the logistic regressions.
        threads: how many layers are fitted at a time.

    Raises:
        UserError: when an answer has no fact to train its probe.
    """
    sports = range(len(answers))
    missing = [answers[sport] for sport in sports if not (train_sport == sport).any()]
    if missing:
        raise UserError(
            f"no fact with the answer '{missing[0]}' is left to train a probe: lower athletes.known_threshold"
        )
    labels, truth = (np.stack([found == sport for sport in sports]) for found in (train_sport, test_sport))
    fits = (Fit(a, labels, b) for a, b in zip(train, test, strict=True))
    return np.array([(said == truth).all(0) for said in predictions(fits, settings, threads)])
