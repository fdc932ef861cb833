"""Latent knowledge (sections 3.1.3 and A.4.3): can a probe on the residual stream still tell the sport?

For every layer, one logistic regression a sport on the last token of the training prompt. An athlete
counts as right when all three probes are, as the paper says; the released code left out sports that a
test set lacks. A control with shuffled labels shows what a probe of this size finds where nothing is
to be found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from localized_unlearning import components as comp
from localized_unlearning import models, packing
from localized_unlearning.config import SPORTS, Interpretability, Probing
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation import identity, unlearned
from localized_unlearning.splits import read_split

if TYPE_CHECKING:
    from localized_unlearning.stages import Job


def residuals(
    model: Any, prompts: Sequence[Sequence[int]], batch_tokens: int, layers: Sequence[int] | None = None
) -> np.ndarray:
    """Residual stream after ``layers`` (None: all) at each prompt's last token ``[layer, prompt, hidden]``, float32."""
    import torch

    found = comp.layers_of(model)
    chosen = range(len(found)) if layers is None else layers
    out = np.empty((len(chosen), len(prompts), model.config.get_text_config().hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for batch in packing.batches(prompts, model, batch_tokens):

            def keep(index: int, batch: packing.Batch = batch) -> Any:
                def hook(_module: Any, _args: Any, output: Any) -> None:
                    hidden = output[0] if isinstance(output, tuple) else output
                    out[index, batch.prompts.numpy()] = (
                        hidden[batch.rows.to(hidden.device), batch.nodes.to(hidden.device)]
                        .float()
                        .cpu()
                        .numpy()
                    )

                return hook

            with ExitStack() as stack:
                for index, layer in enumerate(chosen):
                    stack.callback(found[layer].register_forward_hook(keep(index)).remove)
                model.base_model(**batch.inputs)
    return out


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
    settings: Probing,
    threads: int = 1,
) -> np.ndarray:
    """Whether all three sports' probes are right, at every layer ``[layer, athlete]``.

    Args:
        train, test: activations ``[layer, athlete, hidden]``.
        train_sport, test_sport: index into SPORTS ``[athlete]``.
        settings: of the logistic regressions.
        threads: how many layers are fitted at a time.

    Raises:
        UserError: when a sport has no athlete to train its probe.
    """
    sports = range(len(SPORTS))
    missing = [SPORTS[sport] for sport in sports if not (train_sport == sport).any()]
    if missing:
        raise UserError(f"no {missing[0]} athlete is left to train a probe: lower athletes.known_threshold")
    labels, truth = (np.stack([found == sport for sport in sports]) for found in (train_sport, test_sport))
    fits = (Fit(a, labels, b) for a, b in zip(train, test, strict=True))
    return np.array([(said == truth).all(0) for said in predictions(fits, settings, threads)])


def probe_parts(split: pd.DataFrame, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which athletes train the probes and which test them ``[athlete]`` (A.4.3).

    The task's own parts. Athletes that are in both, as those of a named forget set are, are halved: in a
    ``released`` split the first half trains; otherwise every second one of a seeded order, sport by sport.

    Raises:
        UserError: when there is but one athlete to halve.
    """
    train, test = split["train"].to_numpy(dtype=bool).copy(), split["test"].to_numpy(dtype=bool).copy()
    both = np.flatnonzero(train & test)
    if len(both) == 1:
        raise UserError(
            f"{split['athlete'].iloc[both[0]]} alone is left of the forget set and cannot both train and test "
            "a probe: lower athletes.known_threshold or name more athletes"
        )
    if kind == "released":
        half = both[: len(both) // 2]
    else:
        order = np.random.default_rng(seed).permutation(both)
        half = order[np.argsort(split["sport"].to_numpy()[order], kind="stable")][::2]
    test[half] = False
    train[np.setdiff1d(both, half)] = False
    return train, test


def run(job: Job) -> None:
    """Stage: probe a model's layers; one row per layer, control and test athlete.

    Columns: ``layer``, ``control`` (labels shuffled among the training athletes), ``athlete``, ``sport``,
    ``forget``, ``right`` (all three probes are) and ``majority`` (naming the training part's most common
    sport would be right).
    """
    from localized_unlearning.prompts import load_prompts

    config = job.config
    settings = config.probing
    device = models.setup(config.compute)
    split = read_split(job.inputs["split"])
    train, test = probe_parts(split, config.split.kind, settings.seed)
    model, tokenizer = models.load(job.inputs["base_model"], config.model.dtype, device)
    prompt = load_prompts(job.inputs["prompts"])[config.prompts.training]
    encoded = models.encode(tokenizer, [prompt.render(a) for a in split["athlete"]])
    with unlearned(job, model):
        activations = residuals(model, encoded, models.batch_tokens(config.compute, model))
    sports = np.array([SPORTS.index(s) for s in split["sport"]])
    shuffled = np.random.default_rng(settings.seed).permutation(sports[train])
    tested = split.loc[test, ["athlete", "sport", "forget"]].reset_index(drop=True)
    tested["majority"] = tested["sport"] == SPORTS[np.bincount(sports[train]).argmax()]
    tables = []
    for control, labels in ((False, sports[train]), (True, shuffled)):
        right = all_right(
            activations[:, train], labels, activations[:, test], sports[test],
            settings, models.threads(config.compute),
        )  # fmt: skip
        tables += [tested.assign(layer=i, control=control, right=row) for i, row in enumerate(right)]
    job.facts.update(seeds={"probing": settings.seed}, device=device, trained_on=int(train.sum()))
    pd.concat(tables, ignore_index=True).assign(**identity(job)).to_parquet(
        job.outputs["probes"], index=False
    )
