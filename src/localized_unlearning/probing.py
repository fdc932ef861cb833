"""Latent knowledge (sections 3.1.3 and A.4.3): can a probe on the residual stream still tell the sport?

For every layer, one logistic regression a sport on the last token of the training prompt. An athlete
counts as right when all three probes are. A control with shuffled labels shows what a probe of this
size finds where nothing is to be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from localized_unlearning import components as comp
from localized_unlearning import models, packing
from localized_unlearning.config import SPORTS, Probing
from localized_unlearning.evaluation import identity, unlearned
from localized_unlearning.splits import read_split

if TYPE_CHECKING:
    from localized_unlearning.stages import Job


def residuals(model: Any, prompts: Sequence[Sequence[int]], batch_tokens: int) -> np.ndarray:
    """Residual stream after every layer at each prompt's last token ``[layer, prompt, hidden]``, float32."""
    import torch

    layers = comp.layers_of(model)
    out = np.empty((len(layers), len(prompts), model.config.get_text_config().hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for batch in packing.batches(prompts, model, batch_tokens):

            def keep(index: int, batch: packing.Batch = batch) -> Any:
                def hook(_module: Any, _args: Any, output: Any) -> None:
                    hidden = output[0] if isinstance(output, tuple) else output
                    out[index, batch.prompts.numpy()] = hidden[batch.rows, batch.nodes].float().cpu().numpy()

                return hook

            with ExitStack() as stack:
                for index, layer in enumerate(layers):
                    stack.callback(layer.register_forward_hook(keep(index)).remove)
                model.base_model(**batch.inputs)
    return out


def predictions(train: np.ndarray, labels: np.ndarray, test: np.ndarray, c: float) -> np.ndarray:
    """What a logistic regression with scikit-learn's ``C`` predicts for ``test`` ``[athlete]``.

    Activations ``[athlete, hidden]`` are standardised with the training part's mean and deviation, so that
    the solver converges at every layer (the released code did not scale, and gave it 10,000 iterations).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    classifier.fit(train, labels)
    return np.asarray(classifier.predict(test))


def all_right(
    train: np.ndarray, train_sport: np.ndarray, test: np.ndarray, test_sport: np.ndarray, c: float, jobs: int
) -> np.ndarray:
    """Whether all three sports' probes are right, at every layer ``[layer, athlete]``.

    Args:
        train, test: activations ``[layer, athlete, hidden]``.
        train_sport, test_sport: index into SPORTS ``[athlete]``.
        c: scikit-learn's C.
        jobs: threads; each probe is fitted by one.
    """
    sports = range(len(SPORTS))
    fits = [(layer, sport) for layer in range(len(train)) for sport in sports]
    with ThreadPoolExecutor(jobs) as pool:  # the solver releases the interpreter lock
        found = list(
            pool.map(lambda fit: predictions(train[fit[0]], train_sport == fit[1], test[fit[0]], c), fits)
        )
    said = np.array(found).reshape(len(train), len(sports), -1)
    truth = np.stack([test_sport == sport for sport in sports])
    return np.asarray((said == truth).all(1))


def probe_parts(split: pd.DataFrame, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which athletes train the probes and which test them ``[athlete]`` (A.4.3).

    The task's own parts; a forget set that is in both, as named athletes are, is halved by ``seed``.
    """
    train, test = split["train"].to_numpy().copy(), split["test"].to_numpy().copy()
    both = np.flatnonzero(train & test)
    half = np.random.default_rng(seed).permutation(both)[: len(both) // 2]
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
    settings: Probing = config.probing
    device = models.setup(config.compute)
    model, tokenizer = models.load(job.inputs["base_model"], config.model.dtype, device)
    split = read_split(job.inputs["split"])
    prompt = load_prompts(job.inputs["prompts"])[config.prompts.training]
    encoded = models.encode(tokenizer, [prompt.render(a) for a in split["athlete"]])
    with unlearned(job, model):
        activations = residuals(model, encoded, config.compute.batch_tokens)
    train, test = probe_parts(split, settings.seed)
    sports = np.array([SPORTS.index(s) for s in split["sport"]])
    shuffled = np.random.default_rng(settings.seed).permutation(sports[train])
    tested = split.loc[test, ["athlete", "sport", "forget"]].reset_index(drop=True)
    tested["majority"] = sports[test] == np.bincount(sports[train]).argmax()
    tables = []
    for control, labels in ((False, sports[train]), (True, shuffled)):
        right = all_right(
            activations[:, train], labels, activations[:, test], sports[test],
            settings.regularization, config.compute.threads,
        )  # fmt: skip
        tables += [tested.assign(layer=i, control=control, right=row) for i, row in enumerate(right)]
    job.facts.update(seeds={"probing": settings.seed}, device=device, trained_on=int(train.sum()))
    pd.concat(tables, ignore_index=True).assign(**identity(job)).to_parquet(
        job.outputs["probes"], index=False
    )
