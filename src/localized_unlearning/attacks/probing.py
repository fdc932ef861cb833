"""Latent knowledge (sections 3.1.3 and A.4.3): can a probe on the residual stream still tell the sport?

For every layer, one logistic regression per sport on the last token of the training prompt. An athlete
counts as right when all three probes are, as the paper says; the released code left out sports that a
test set lacks. A control with shuffled labels shows what a probe of this size finds where nothing is
to be found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from localized_unlearning.data import tokens
from localized_unlearning.data.answers import candidates, occurring
from localized_unlearning.data.prompts import load_prompts
from localized_unlearning.data.splits import read_split
from localized_unlearning.errors import UserError
from localized_unlearning.evaluation.rows import identity
from localized_unlearning.interpretability.probes import all_right
from localized_unlearning.models import device as device_module
from localized_unlearning.models.activations import residuals
from localized_unlearning.models.checkpoint import checkpoint

if TYPE_CHECKING:
    from localized_unlearning.jobs.job import Job


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
            f"{split['subject'].iloc[both[0]]} alone is left of the forget set and cannot both train and test "
            "a probe: lower athletes.known_threshold or name more subjects"
        )
    if kind == "released":
        half = both[: len(both) // 2]
    else:
        order = np.random.default_rng(seed).permutation(both)
        half = order[np.argsort(split["answer"].to_numpy()[order], kind="stable")][::2]
    test[half] = False
    train[np.setdiff1d(both, half)] = False
    return train, test


def run(job: Job) -> None:
    """Stage: probe a model's layers; one row per layer, control and test athlete.

    Columns: ``layer``, ``control`` (labels shuffled among the training athletes), ``subject``, ``answer``,
    ``forget``, ``right`` (all three probes are) and ``majority`` (naming the training part's most common
    sport would be right).
    """

    config = job.config
    settings = config.probing
    split = read_split(job.inputs["split"])
    train, test = probe_parts(split, config.split.kind, settings.seed)
    book = load_prompts(job.inputs["prompts"])
    prompt, answers = book[config.prompts.training], occurring(candidates(book, split), split)
    with checkpoint(job) as (model, tokenizer, batch_tokens):
        encoded = tokens.asked(tokenizer, prompt, [prompt.render(a) for a in split["subject"]])
        activations = residuals(model, encoded, batch_tokens)
    sports = np.array([answers.index(s) for s in split["answer"]])
    shuffled = np.random.default_rng(settings.seed).permutation(sports[train])
    tested = split.loc[test, ["subject", "answer", "forget"]].reset_index(drop=True)
    tested["majority"] = tested["answer"] == answers[np.bincount(sports[train]).argmax()]
    tables = []
    for control, labels in ((False, sports[train]), (True, shuffled)):
        right = all_right(
            activations[:, train], labels, activations[:, test], sports[test], answers,
            settings, device_module.threads(config.compute),
        )  # fmt: skip
        tables += [tested.assign(layer=i, control=control, right=row) for i, row in enumerate(right)]
    job.facts.update(seeds={"probing": settings.seed}, trained_on=int(train.sum()))
    pd.concat(tables, ignore_index=True).assign(**identity(job)).to_parquet(
        job.outputs["probes"], index=False
    )
